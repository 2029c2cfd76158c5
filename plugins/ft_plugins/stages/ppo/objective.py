"""Proximal policy optimisation: rollouts, their rewards, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ft_plugins.stages.ppo import losses
from ft_plugins.stages.ppo.rollout import COLUMNS, collate_responses
from ft_plugins.stages.ppo.value_head import ValueHead, copied_decoder
from ftcore.api.plan import Run
from ftcore.errors import RunError
from ftcore.training.batching.collators import Batch
from ftcore.training.context import TrainingContext
from ftcore.training.model_transforms.recomputation import enable_recomputation
from ftcore.training.objective import Objective, Rollouts, Rows
from ftcore.training.reference.start_weights import reference_of
from ftcore.training.sampling import Sampler, answered, shared_out

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


class PolicyObjective(Objective):
    """Samples responses, scores them, and trains the policy on the advantages.

    A rollout is sampled before the first step of its block of ``buffer * epochs`` steps. ``eval_loss`` is the negative
    mean score on the evaluation prompts. Several processes sample a rollout together, in turn a batch of
    ``per_device_eval_batch_size`` each, and every process then holds all of it.

    Args:
        run: plan and model.
        options: see `Proximal`.
        score: scores responses.
        sampler: samples them.
    """

    def __init__(self, run: Run, options: Proximal, score: Score, sampler: Sampler) -> None:
        self.run, self.options, self.score, self.sampler = run, options, score, sampler
        self.rollouts = Rollouts(options.buffer, options.epochs)
        self.coefficient = options.coefficient
        self.scored = [0.0, 0.0, 0.0]  # number, mean, sum of squared differences
        self._backbone: Any = None

    def before_transforms(self, model: Any) -> None:
        if self.options.own_values:
            self._backbone = copied_decoder(model)

    def bind(self, context: TrainingContext) -> None:
        super().bind(context)
        plan, model, backbone = context.plan, context.model, self._backbone
        self.reference = reference_of(plan, model)
        size = model.config.get_text_config().hidden_size
        if backbone is not None and plan.gradient_checkpointing:
            enable_recomputation(backbone, plan.training.gradient_checkpointing_kwargs)
        self.value_head = ValueHead(size, backbone, self.scorer.attention, packed=self.scorer.packed).to(
            context.strategy.device
        )
        model.add_module(VALUE_HEAD, self.value_head)
        model.register_state_dict_post_hook(_without_head)

    def collate(self, rows: Rows) -> Batch:
        return collate_responses(rows)

    # ---- rollouts ----

    def make_rows(self, dataset: Any, numbers: Sequence[int], rollout: int) -> list[dict[str, Any]]:
        made, scores = self._made(dataset, numbers, (self.context.args.seed + rollout) * _SEEDS)
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
        return [{name: row[name] for name in ("input_ids", "weights", "index", *COLUMNS)} for row in made]

    def _made(self, dataset: Any, numbers: Sequence[int], seed: int) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Rows (see `_measured`) with responses to these prompts, and their scores, gathered in all processes."""

        def job(start: int, some: Sequence[int]) -> list[tuple[dict[str, Any], torch.Tensor]]:
            prompts = [dataset[number]["input_ids"].tolist() for number in some]
            responses, scores = self._responses(prompts, seed + start)
            return list(zip(self._measured(prompts, responses, some), scores, strict=True))

        made = shared_out(self.context, numbers, job)
        return [row for row, _ in made], torch.stack([score for _, score in made])

    def _responses(self, prompts: Sequence[Sequence[int]], seed: int) -> tuple[list[list[int]], torch.Tensor]:
        """Responses of one batch, and their scores."""
        responses = self.sampler(prompts, seed)
        scores = self.score(prompts, responses).double().cpu()
        if not torch.isfinite(scores).all():
            raise RunError("the reward model returned a score that is not finite")
        return responses, scores

    def _measured(self, prompts: Any, responses: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows with the log-probabilities of policy and reference, and the values, of each response's tokens."""
        rows = [answered(*each) for each in zip(prompts, responses, indices, strict=True)]
        size = self.context.args.per_device_train_batch_size
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            batch = self.context.on_device(self.context.data_collator(some))
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

    def eval_loss(self, dataset: Any) -> float:
        """Negative mean score of responses to all prompts of the set, with the same seed each time."""
        args = self.context.args
        size, total = args.per_device_eval_batch_size * self.context.strategy.world_size, 0.0
        for start in self.context.interruptible(range(0, len(dataset), size)):
            numbers = range(start, min(start + size, len(dataset)))
            made, scores = self._made(dataset, numbers, args.seed * _SEEDS + _EVALUATION + start)
            self._note_rollout(made, scores)
            total += float(scores.sum())
        return -total / len(dataset)

    # ---- checkpoints ----

    def state(self) -> dict[str, Any]:
        """The KL coefficient, and the running moments of the scores."""
        return {"coefficient": self.coefficient, "scored": self.scored}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.coefficient, self.scored = state["coefficient"], list(state["scored"])

    def save(self, folder: Path) -> None:
        save_file(self.value_head.trained(), folder / VALUE_FILE)

    def load(self, folder: Path) -> None:
        self.value_head.load(load_file(folder / VALUE_FILE))


def _without_head(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if VALUE_HEAD in name]:
        del state[name]
