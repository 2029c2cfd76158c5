"""Sampling of responses from the model in training, for objectives that make their rows (`Objective.rollouts`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ftcore.api.plan import Run
from ftcore.data.chat_template.renderer import Renderer

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

T = TypeVar("T")


@dataclass(frozen=True)
class Sampler:
    """Samples responses at temperature 1 over the whole vocabulary, so log-probabilities are the policy's own.

    Args:
        model: a transformers model, with or without adapters.
        stop_ids: tokens that end a response; they are part of it.
        pad: padding token.
        new_tokens: most tokens of a response.
    """

    model: Any
    stop_ids: tuple[int, ...]
    pad: int
    new_tokens: int

    @classmethod
    def of(cls, run: Run) -> Sampler:
        """For the model of a run, with the stop tokens of its template and its ``max_new_tokens``."""
        stop_ids = Renderer.from_plan(run.plan, run.tokenizer).stop_ids
        inner: Any = run.model.get_base_model() if hasattr(run.model, "get_base_model") else run.model
        pad = run.tokenizer.pad_token_id
        pad = pad if pad is not None else min(stop_ids, default=0)
        return cls(inner, stop_ids, pad, run.plan.generation.max_new_tokens)

    def __call__(self, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """A response to each prompt, at least one token; the global random state stays as it was."""
        from transformers import GenerationConfig

        longest = max(map(len, prompts))
        device = self.model.device
        rows = torch.tensor([[self.pad] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        real = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        config = GenerationConfig(
            max_new_tokens=self.new_tokens,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=self.pad,
        )
        # transformers fills unset fields from the model's own generation_config
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                out = self.model.generate(input_ids=rows, attention_mask=real, generation_config=config)
        finally:
            self.model.generation_config = own
        return [self._cut(row) for row in out[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids) - 1)
        return ids[: end + 1]


def answered(prompt: Sequence[int], response: Sequence[int], index: int) -> dict[str, Any]:
    """Prompt and response as a row for `collate`; labels are the response's tokens."""
    weights = torch.cat([torch.zeros(len(prompt)), torch.ones(len(response))])
    return {"input_ids": torch.tensor([*prompt, *response]), "weights": weights, "index": index}


def shared_out(
    context: TrainingContext, numbers: Sequence[int], job: Callable[[int, Sequence[int]], list[T]]
) -> list[T]:
    """The results of a job for all numbers, in their order, in all processes.

    The processes take in turn ``per_device_eval_batch_size`` numbers each. The model is in evaluation mode, without
    gradients.

    Args:
        context: the trainer.
        numbers: such as those of prompts.
        job: computes one result per number; its first argument is the place of the first number.
    """
    strategy, size = context.strategy, context.args.per_device_eval_batch_size
    mine = []
    for start in range(0, len(numbers), size)[strategy.rank :: strategy.world_size]:
        with context.estimating():
            mine.append((start, job(start, numbers[start : start + size])))
    every = sorted((part for some in strategy.gather_object(mine) for part in some), key=lambda part: part[0])
    return [result for _, results in every for result in results]
