"""Stage ``reinforce`` as a package of its own would have it: REINFORCE with a reward function in Python.

A response's reward, less the mean of its rollout, weights the log-probabilities of its tokens (Williams, 1992).
"""

from importlib import import_module

from ftcore import hookimpl
from ftcore.api.components import OptionGroup, Stage


class ReinforceOptions(OptionGroup):
    """Rewards."""

    reward: str
    """The reward function, ``module:name``; it takes the texts of a prompt and of a response and returns a number."""


class Reinforce(Stage):
    Options = ReinforceOptions
    samples = ("Prompt",)
    deterministic_rows = False

    def datasets(self, run):
        from ftcore.data.pipeline.loading import chat_datasets

        return chat_datasets(run.plan, run.tokenizer)

    def objective(self, run):
        import torch

        from ftcore.training.batching.collators import collate
        from ftcore.training.objective import Objective, Rollouts
        from ftcore.training.sampling import Sampler, answered, shared_out

        module, name = run.plan.stage.options.reward.split(":")
        reward, sampler = getattr(import_module(module), name), Sampler.of(run)

        class Rewarded(Objective):
            rollouts = Rollouts(batches=2)

            def respond(self, dataset, numbers, seed):
                def job(start, some):
                    prompts = [dataset[number]["input_ids"].tolist() for number in some]
                    made = list(zip(prompts, sampler(prompts, seed + start), some))
                    return [(answered(*one), reward(*map(run.tokenizer.decode, one[:2]))) for one in made]

                rows, rewards = zip(*shared_out(self.context, numbers, job))
                self.log_metric("reward", torch.tensor(rewards, dtype=torch.float64))
                return rows, rewards

            def make_rows(self, dataset, numbers, rollout):
                rows, rewards = self.respond(dataset, numbers, rollout * 1000 + 1)
                mean = sum(rewards) / len(rewards)
                return [{**row, "gain": torch.tensor([got - mean])} for row, got in zip(rows, rewards)]

            def collate(self, rows):
                lengths = [int(row["weights"].sum()) for row in rows]
                gains = [row["gain"].expand(length) for row, length in zip(rows, lengths) if "gain" in row]
                return {**collate(rows), "gains": torch.cat(gains)} if gains else collate(rows)

            def loss_sum(self, batch):
                return -(batch["gains"] * self.scorer.logps(batch)).sum()

            def eval_loss(self, dataset):
                rewards = self.respond(dataset, range(len(dataset)), 1)[1]
                return -sum(rewards) / len(rewards)

        return Rewarded()


@hookimpl
def ft_stages():
    return [Reinforce(name="reinforce", summary="REINFORCE with a reward function in Python")]
