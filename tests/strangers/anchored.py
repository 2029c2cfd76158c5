"""Stage ``anchored`` as a package of its own would have it: next-token loss, and a penalty for leaving the start.

The penalty is the squared difference between an answer's log-probability and what it was before training.
"""

from ftcore import hookimpl
from ftcore.api.components import OptionGroup, Stage


class AnchorOptions(OptionGroup):
    """The penalty."""

    anchor: float = 0.01
    """Weight of the penalty."""


class Anchored(Stage):
    Options = AnchorOptions
    samples = ("Chat",)
    packs_by_default = False

    def datasets(self, run):
        from ftcore.data.pipeline.loading import chat_datasets

        return chat_datasets(run.plan, run.tokenizer)

    def objective(self, run):
        import torch

        from ftcore.training.batching.collators import collate
        from ftcore.training.losses.sequence_reductions import sums
        from ftcore.training.objective import Objective
        from ftcore.training.reference.logprob_cache import ReferenceMetric

        class AnchoredLoss(Objective):
            reference_metric = ReferenceMetric("answers", lambda scorer, batch: sums(scorer.logps(batch), batch))

            def collate(self, rows):
                batch = collate(rows)
                if "reference" in rows[0]:
                    batch["reference"] = torch.tensor([float(row["reference"]) for row in rows])
                    batch["real"] = torch.tensor([float(not row.get("filler")) for row in rows])
                return batch

            def loss_sum(self, batch):
                logps = sums(self.scorer.logps(batch), batch)
                moved = (logps - batch["reference"]).square() * batch["real"]
                self.log_metric("moved", moved, batch["real"])
                return -logps.sum() + run.plan.stage.options.anchor * moved.sum()

        return AnchoredLoss()


@hookimpl
def ft_stages():
    return [Anchored(name="anchored", summary="next-token loss near the start")]
