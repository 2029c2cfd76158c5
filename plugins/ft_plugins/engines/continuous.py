"""Continuous batching: prompts join the running batch at any token and leave it when they are answered.

The idea is Orca's (Yu et al., OSDI 2022, section 3, iteration-level scheduling), on left-padded keys and values.
transformers' own (`ContinuousBatchingManager`, 5.23) runs on the CPU too, but has one random state for all requests,
tells the log-probability of the chosen token only, and holds one set of weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ft_plugins.engines.choosing import Chooser
from ft_plugins.engines.detokenizing import Detokenizer
from ft_plugins.engines.likelihoods import scored
from ft_plugins.engines.memory import Memory, joins
from ftcore.inference import Chunk, Prompt, Scored
from ftcore.inference.sessions import Refused, Session

if TYPE_CHECKING:
    from ft_plugins.engines.generating import Task, TransformersGenerator

__all__ = ["ContinuousSession", "joins"]


@dataclass(eq=False)
class _Row:
    """An answer.

    Args:
        task: what is answered.
        logprobs: see `Session.add`.
        chooser: of its tokens.
        detokenizer: of its text.
        ids: its tokens so far.
    """

    task: Task
    logprobs: int | None
    chooser: Chooser
    detokenizer: Detokenizer
    ids: list[int] = field(default_factory=list)


class ContinuousSession(Session):
    """Answers side by side.

    Args:
        generator: its model, template and settings.
        slots: answers at a time; further prompts wait.
    """

    def __init__(self, generator: TransformersGenerator, slots: int) -> None:
        self.generator, self.model, self.slots = generator, generator.model, slots
        self.memory = Memory(self.model)
        self._waiting: list[_Row] = []
        self._rows: list[_Row] = []
        self._added = 0
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        # the vocabulary's projection of the last token alone
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}

    def add(self, prompt: Prompt, logprobs: int | None = None) -> int:
        """See `Session.add`."""
        self._added += 1
        task = self.generator.task(self._added, prompt)
        detokenizer = Detokenizer(self.generator.tokenizer, task.settings.options.skip_special_tokens)
        self._waiting.append(_Row(task, logprobs, Chooser(task, self.model.device), detokenizer))
        return self._added

    def drop(self, number: int) -> None:
        """See `Session.drop`."""
        self._waiting = [row for row in self._waiting if row.task.index != number]
        self._keep([row for row in self._rows if row.task.index != number])

    def step(self) -> Sequence[Chunk | Refused]:
        """One prompt is read, if one waits and there is room; then every other answer gets its next token."""
        with self.generator.active(), torch.inference_mode():
            running = list(self._rows)
            chunks = self._decode() if running else []
            if self._waiting and len(self._rows) < self.slots:
                chunks += self._prefill()
        return chunks

    def _prefill(self) -> list[Chunk]:
        """Reads a prompt, once for all that wait with the same tokens."""
        first = self._waiting[0].task
        same = [row for row in self._waiting if row.task.ids == first.ids][: self.slots - len(self._rows)]
        self._waiting = [row for row in self._waiting if row not in same]
        cache = self.memory.fresh()
        ids = torch.tensor([first.ids], device=self.model.device)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **self._last)
        self.memory.add(cache, len(first.ids), len(same))
        self._rows += same
        return self._told(same, out.logits[:, -1].float().expand(len(same), -1))

    def _decode(self) -> list[Chunk]:
        device = self.model.device
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[row.ids[-1]] for row in self._rows], device=device),
            "attention_mask": self.memory.mask(device),
            "position_ids": torch.tensor(self.memory.lengths, device=device)[:, None],
        }
        out = self.model(**inputs, past_key_values=self.memory.cache, use_cache=True, **self._last)
        self.memory.grow()
        return self._told(list(self._rows), out.logits[:, -1].float())

    def _told(self, rows: list[_Row], scores: torch.Tensor) -> list[Chunk]:
        """Chooses the next token of these rows, and lets those that have ended go.

        Args:
            rows: in the order of the scores.
            scores: ``[rows, vocabulary]``, float32.
        """
        chunks = [self._next(row, row_scores) for row, row_scores in zip(rows, scores, strict=True)]
        ended = {chunk.index for chunk in chunks if chunk.finish}
        self._keep([row for row in self._rows if row.task.index not in ended])
        return chunks

    def _next(self, row: _Row, scores: torch.Tensor) -> Chunk:
        task, generator = row.task, self.generator
        token = row.chooser.choose([*task.ids, *row.ids], scores)
        row.ids.append(token)
        hidden = generator.hidden(task, token)
        text, told = "", tuple[Scored, ...]()
        if not hidden:
            text = row.detokenizer.add(token)
            if row.logprobs is not None:
                told = (scored(generator.tokenizer, scores, token, row.logprobs),)
        stopped = token in generator.stop_ids
        if not stopped and len(row.ids) < task.new_tokens:
            return Chunk(task.index, text, "", len(task.ids), len(row.ids), told)
        finish = "stop" if stopped else "length"
        text += row.detokenizer.rest()
        return Chunk(task.index, text, finish, len(task.ids), len(row.ids), told)

    def _keep(self, rows: list[_Row]) -> None:
        if len(rows) != len(self._rows):
            self.memory.keep([self._rows.index(row) for row in rows])
            self._rows = rows
