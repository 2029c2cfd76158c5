"""Proximal policy optimisation: rollouts, their rewards, and the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from ft_plugins.stages.ppo import losses
from ft_plugins.stages.ppo.rollout import COLUMNS, RolloutBatches, Sampler, answered, collate_responses
from ft_plugins.stages.ppo.value_head import ValueHead, copied_decoder
from ftcore.api.plan import Run
from ftcore.errors import RunError
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.samplers import EpochLoader
from ftcore.training.model_transforms.recomputation import enable_recomputation
from ftcore.training.numerics import evaluating
from ftcore.training.reference.start_weights import reference_of
from ftcore.training.step.micro_batching import ROWS
from ftcore.training.trainer import FtTrainer

VALUE_HEAD = "ft_value_head"
"""Name of the value head in the model during training. The model's own files do not contain it."""
VALUE_FILE = "value_head.safetensors"
_SEEDS, _EVALUATION = 1_000_003, 500_009
"""Distance between the seeds of two rollouts, and offset of an evaluation's seeds. A batch adds its first row's number,
so seeds stay distinct while a rollout has fewer than ``_EVALUATION`` rows."""

Score = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], torch.Tensor]
"""Prompts' and responses' tokens -> float64 ``[B]``."""


@dataclass(frozen=True, kw_only=True)
class Proximal:
    """Hyperparameters, each an option of stage ppo.

    Args:
        buffer: prompts of a rollout, in optimizer batches.
        epochs: training epochs over a rollout.
        coefficient: initial weight of the KL divergence from the reference.
        target: KL divergence per response to which the coefficient adapts; None keeps it fixed.
        horizon: responses over which it adapts.
        estimator: ``k1`` or ``k3``.
        clip: clipping range of the probability ratio.
        value_clip: clipping range of the values.
        value_weight: weight of the value loss.
        discount: gamma.
        decay: lambda.
        whiten_rewards: whether rewards are scaled to variance 1.
        norm_scores: whether scores are normalised by their running statistics.
        clip_scores: largest absolute score; None for no limit.
        missing_stop: subtracted from the score of a response without a stop token.
        own_values: whether the value head has a separate backbone.
    """

    buffer: int
    epochs: int
    coefficient: float
    target: float | None
    horizon: int
    estimator: str
    clip: float
    value_clip: float
    value_weight: float
    discount: float
    decay: float
    whiten_rewards: bool
    norm_scores: bool
    clip_scores: float | None
    missing_stop: float
    own_values: bool = False


class PolicyTrainer(FtTrainer):
    """Samples responses, scores them, and trains the policy on the advantages.

    A rollout is sampled before the first step of its block of ``buffer * epochs`` steps. ``eval_loss`` is the negative
    mean score on the evaluation prompts. Several processes sample a rollout together, in turn a batch of
    ``per_device_eval_batch_size`` each, and every process then holds all of it.

    Args:
        run: plan, tokenizer and model.
        train: prompts as a `TokenDataset`; None where the run only evaluates.
        evaluation: the same; None for none.
        options: see `Proximal`.
        score: scores responses.
        sampler: samples them.
    """

    def __init__(
        self, run: Run, *, train: Any, evaluation: Any = None, options: Proximal, score: Score, sampler: Sampler
    ) -> None:
        backbone = copied_decoder(run.model) if options.own_values else None
        super().__init__(run, train=train, evaluation=evaluation, collator=collate_responses)
        self.options, self.score, self.sampler = options, score, sampler
        self.reference = reference_of(run.plan, run.model)
        size = run.model.config.get_text_config().hidden_size
        if backbone is not None and run.plan.gradient_checkpointing:
            enable_recomputation(backbone, run.plan.training.gradient_checkpointing_kwargs)
        self.value_head = ValueHead(size, backbone, self.scorer.attention, packed=self.scorer.packed).to(
            self.args.device
        )
        run.model.add_module(VALUE_HEAD, self.value_head)
        run.model.register_state_dict_post_hook(_without_head)
        self.coefficient = options.coefficient
        self.scored = [0.0, 0.0, 0.0]  # number, mean, sum of squared differences
        self.buffer: list[dict[str, Any]] = []

    # ---- pace ----

    @property
    def _size(self) -> int:
        """Prompts per rollout, of all processes."""
        per_process = self.options.buffer * self.args.gradient_accumulation_steps * self._train_batch_size
        return per_process * self.args.world_size

    def get_train_dataloader(self) -> EpochLoader:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = None if self.plan.data.disable_shuffling else seed
        repeats = self.options.buffer * self.options.epochs * self.args.gradient_accumulation_steps
        self.batches = RolloutBatches(len(self.train_dataset), self._size, order, repeats)
        return EpochLoader(self.train_dataset, self.batches, collate_fn=len)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        for _ in range(num_batches):
            next(epoch_iterator)
        number, step = divmod(self.state.global_step, self.options.buffer * self.options.epochs)
        if step == 0:
            self._roll_out(number)
        batches = self._micro_batches(number, step)
        total = self._get_num_items_in_batch(batches, device)
        self.guard.begin(batches, float(total))
        return batches, total

    def _micro_batches(self, number: int, step: int) -> list[Batch]:
        """This process's micro-batches of a step within its block; each epoch over the rollout has its own order."""
        turn, place = divmod(step, self.options.buffer)
        order = np.random.default_rng([self.args.seed, number, turn]).permutation(self._size)
        shape = (self.options.buffer, -1, self.args.world_size, self._train_batch_size)
        share = order.reshape(shape)[place, :, self.args.process_index]
        rows = [[self.buffer[row] for row in some] for some in share]
        return [{**self.data_collator(some), ROWS: some} for some in rows]

    def _check_labels(self) -> None:
        """Nothing to check: prompts have no labels."""

    # ---- rollouts ----

    def _roll_out(self, number: int) -> None:
        rows = self.batches.prompts(number)
        made, scores = self._made(self.train_dataset, rows, (self.args.seed + number) * _SEEDS)
        penalties = [losses.divergences(row["old_logps"], row["reference"], self.options.estimator) for row in made]
        shaped = self._shaped(scores, [int(row["input_ids"][-1]) for row in made])
        rewards = [
            losses.token_rewards(each, float(score), self.coefficient)
            for each, score in zip(penalties, shaped, strict=True)
        ]
        if self.options.whiten_rewards:
            rewards = list(losses.whitened(torch.cat(rewards), centred=False).split([len(row) for row in rewards]))
        for row, reward in zip(made, rewards, strict=True):
            found = losses.advantages(reward, row["old_values"], self.options.discount, self.options.decay)
            row["advantages"], row["returns"] = found
        gains = losses.whitened(torch.cat([row["advantages"] for row in made]))
        for row, gain in zip(made, gains.split([len(row["returns"]) for row in made]), strict=True):
            row["advantages"] = gain.clone()
        self._note_rollout(made, scores)
        self.log_metric("kl_coef", torch.tensor([self.coefficient]))
        self._adapt(made)
        self.buffer = [{name: row[name] for name in ("input_ids", "weights", "index", *COLUMNS)} for row in made]

    def _made(self, dataset: Any, numbers: Sequence[int], seed: int) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Rows (see `_measured`) with responses to these prompts, and their scores, gathered in all processes."""
        size, mine = self.args.eval_batch_size, []
        for start in range(0, len(numbers), size)[self.args.process_index :: self.args.world_size]:
            some = numbers[start : start + size]
            prompts = [dataset[number]["input_ids"].tolist() for number in some]
            responses, scores = self._responses(prompts, seed + start)
            mine.append((start, self._measured(prompts, responses, some), scores))
        every = sorted(gather_object(mine) if self.args.world_size > 1 else mine, key=lambda part: part[0])
        return [row for _, rows, _ in every for row in rows], torch.cat([scores for _, _, scores in every])

    def _responses(self, prompts: Sequence[Sequence[int]], seed: int) -> tuple[list[list[int]], torch.Tensor]:
        """Responses of one batch, and their scores."""
        with evaluating(self.model), self.accelerator.autocast():
            responses = self.sampler(prompts, seed)
            scores = self.score(prompts, responses).double().cpu()
        if not torch.isfinite(scores).all():
            raise RunError("the reward model returned a score that is not finite")
        return responses, scores

    def _measured(self, prompts: Any, responses: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows with the log-probabilities of policy and reference, and the values, of each response's tokens."""
        rows = [answered(*each) for each in zip(prompts, responses, indices, strict=True)]
        size = self._train_batch_size
        with evaluating(self.model), self.accelerator.autocast():
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                batch = self._prepare_inputs(self.data_collator(some))
                logps, values = self._forward(batch)
                with self.reference():
                    reference = self.scorer.logps(batch)
                counts = [int(row["weights"].sum()) for row in some]
                for name, found in (("old_logps", logps), ("old_values", values), ("reference", reference)):
                    for row, part in zip(some, found.double().cpu().split(counts), strict=True):
                        row[name] = part.clone()
        return rows

    def _shaped(self, scores: torch.Tensor, last: Sequence[int]) -> torch.Tensor:
        """Scores after normalisation, clipping and the penalty for a missing stop token.

        Args:
            scores: ``[B]``.
            last: last token of each response.
        """
        options = self.options
        if options.norm_scores:
            for score in scores.tolist():  # Welford's algorithm
                count, mean, squares = self.scored
                new = mean + (score - mean) / (count + 1)
                self.scored = [count + 1, new, squares + (score - mean) * (score - new)]
            scores = (scores - self.scored[1]) / math.sqrt(self.scored[2] / max(self.scored[0] - 1, 1) + 1e-8)
        if options.clip_scores is not None:
            scores = scores.clamp(-options.clip_scores, options.clip_scores)
        open_ended = torch.tensor([token not in self.sampler.stop_ids for token in last])
        return scores - options.missing_stop * open_ended

    def _adapt(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adapts the KL coefficient towards the target (arXiv 1909.08593, section 2.2)."""
        if self.options.target is None:
            return
        divergence = sum(float((row["old_logps"] - row["reference"]).sum()) for row in rows) / len(rows)
        error = min(max(divergence / self.options.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * len(rows) / self.options.horizon

    def _note_rollout(self, rows: Sequence[Mapping[str, Any]], scores: torch.Tensor) -> None:
        self.log_metric("reward", scores)
        self.log_metric("kl", torch.stack([(row["old_logps"] - row["reference"]).sum() for row in rows]))
        self.log_metric("entropy", -torch.cat([row["old_logps"] for row in rows]))
        self.log_metric("response_length", torch.tensor([float(len(row["old_logps"])) for row in rows]))

    # ---- loss ----

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and values at the batch's labels, each ``[T]``; one forward pass where logits are fused."""
        logps, values = self.scorer.run(batch, self._both).unbind(1)
        return logps, values

    def _both(self, batch: Batch) -> torch.Tensor:
        """The same, as ``[T, 2]``."""
        hidden = self.scorer.hidden(batch)
        values = self.value_head(batch, hidden)
        if not self.scorer.fused:
            return torch.stack([self.scorer.logps(batch), values], 1)
        logps = self.scorer.token_logps(hidden, batch["labels"][0, batch["positions"]])
        return torch.stack([logps, values], 1)

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        logps, values = self._forward(batch)
        logps, values, options = logps.double(), values.double(), self.options
        policy = losses.policy_losses(logps, batch["old_logps"], batch["advantages"], options.clip)
        value = losses.value_losses(values, batch["old_values"], batch["returns"], options.value_clip)
        outside = ((logps - batch["old_logps"]).exp() - 1).abs() > options.clip
        self.log_metric("policy_loss", policy)
        self.log_metric("value_loss", value)
        self.log_metric("clip_fraction", outside.double())
        return (policy + options.value_weight * value).sum()

    # ---- evaluation ----

    def eval_loss(self, dataloader: EpochLoader) -> float:
        """Negative mean score of responses to all prompts of the set, with the same seed each time."""
        rows, size, total = dataloader.dataset, self.args.eval_batch_size * self.args.world_size, 0.0
        for start in self.interruptible(range(0, len(rows), size)):
            numbers = range(start, min(start + size, len(rows)))
            made, scores = self._made(rows, numbers, self.args.seed * _SEEDS + _EVALUATION + start)
            self._note_rollout(made, scores)
            total += float(scores.sum())
        return -total / len(rows)

    # ---- checkpoints ----

    def extra_state(self) -> dict[str, Any]:
        """The current rollout, the KL coefficient, and the running moments of the scores."""
        return {"buffer": self.buffer, "coefficient": self.coefficient, "scored": self.scored}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.buffer, self.coefficient, self.scored = state["buffer"], state["coefficient"], list(state["scored"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            save_file(self.value_head.trained(), Path(output_dir or str(self.args.output_dir)) / VALUE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_values(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_values(Path(str(self.state.best_model_checkpoint)))

    def _load_values(self, folder: Path) -> None:
        self.value_head.load(load_file(folder / VALUE_FILE))


def _without_head(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if VALUE_HEAD in name]:
        del state[name]
