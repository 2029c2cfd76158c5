"""Continuous batching: prompts join the running batch at any token, and leave it when answered.

This is the iteration-level scheduling of Orca (Yu et al., OSDI 2022, section 3), with left-padded keys and values.
`ContinuousBatchingManager` of transformers 5.23 also runs on the CPU. But it has one random state for all requests,
returns only the log-probability of the chosen token, and supports one set of weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ft_plugins.engines.transformers.detokenizing import Detokenizer
from ft_plugins.engines.transformers.kv_cache import BatchKVCache
from ft_plugins.engines.transformers.logprobs import scored_token
from ft_plugins.engines.transformers.sampling import Sampler
from ft_plugins.engines.transformers.task import Task
from ftcore.api.inference_types import Chunk, Prompt, ScoredToken
from ftcore.inference.row_isolation import isolated
from ftcore.inference.sessions import Refused, Session


@dataclass(eq=False)
class _Row:
    """A running answer.

    Args:
        task: the task.
        logprobs: see `Session.add`.
        chooser: samples its tokens.
        detokenizer: decodes its text.
        ids: token ids of the answer so far.
    """

    task: Task
    logprobs: int | None
    chooser: Sampler
    detokenizer: Detokenizer
    ids: list[int] = field(default_factory=list)


class GeneratorContext(Protocol):
    """The attributes of `TransformersGenerator` that a session uses."""

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    active: Callable[[], AbstractContextManager[None]]

    def task(self, index: int, prompt: Prompt) -> Task:
        """The prepared prompt."""

    def hidden(self, task: Task, token: int) -> bool:
        """Whether the text omits a token."""


class ContinuousSession(Session):
    """A session with continuous batching.

    Args:
        generator: supplies model, template and settings.
        slots: maximum number of concurrent answers; further prompts wait.
    """

    def __init__(self, generator: GeneratorContext, slots: int) -> None:
        self.generator, self.model, self.slots = generator, generator.model, slots
        self.memory = BatchKVCache(self.model.config)
        self._waiting: list[_Row] = []
        self._rows: list[_Row] = []
        self._added = 0
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        known = inspect.signature(type(base).forward).parameters
        # computes the logits of the last token only
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._cache = "cache" if "cache" in known else "past_key_values"  # its name since transformers 5.24, and before

    def add(self, prompt: Prompt, logprobs: int | None = None) -> int:
        """See `Session.add`."""
        self._added += 1
        task = self.generator.task(self._added, prompt)
        detokenizer = Detokenizer(self.generator.tokenizer, task.settings.options.skip_special_tokens)
        self._waiting.append(_Row(task, logprobs, Sampler(task, self.model.device), detokenizer))
        return self._added

    def drop(self, number: int) -> None:
        """See `Session.drop`."""
        self._waiting = [row for row in self._waiting if row.task.index != number]
        self._keep([row for row in self._rows if row.task.index != number])

    def step(self) -> Sequence[Chunk | Refused]:
        """Generates the next token of all running answers, then reads a waiting prompt if a slot is free."""
        with self.generator.active(), torch.inference_mode():
            chunks = self._decode() if self._rows else []
            if self._waiting and len(self._rows) < self.slots:
                chunks += self._prefill()
        return chunks

    def _prefill(self) -> list[Chunk | Refused]:
        """Reads a prompt once for all waiting answers with the same tokens; an error ends these answers."""
        first = self._waiting[0].task
        same = [row for row in self._waiting if row.task.ids == first.ids][: self.slots - len(self._rows)]
        self._waiting = [row for row in self._waiting if row not in same]
        try:
            cache = self.memory.fresh()
            ids = torch.tensor([first.ids], device=self.model.device)
            out = self.model(input_ids=ids, use_cache=True, **{self._cache: cache}, **self._last)
            self.memory.add(cache, len(first.ids), len(same))
        except Exception as error:
            return [Refused(row.task.index, error) for row in same]
        self._rows += same
        return self._sample(same, [out.logits[0, -1].float()] * len(same))

    def _decode(self) -> list[Chunk | Refused]:
        """The next token of all rows. If the batch fails, each row is computed alone, and ends if it fails again."""
        rows = list(self._rows)
        results = isolated(self._forward, range(len(rows)))
        scores: list[torch.Tensor] = []
        refused: list[Chunk | Refused] = []
        going, memory = list[_Row](), BatchKVCache(self.model.config)
        for row, found in zip(rows, results, strict=True):
            if isinstance(found, Exception):
                refused.append(Refused(row.task.index, found))
                continue
            if found[0] is self.memory:  # the pass over all rows
                memory = self.memory
            else:
                memory.join(found[0])
            going.append(row)
            scores.append(found[1])
        self.memory, self._rows = memory, going
        return refused + self._sample(going, scores)

    def _forward(self, numbers: Sequence[int]) -> list[tuple[BatchKVCache, torch.Tensor]]:
        """A forward pass over some rows: the cache and the logits ``[vocabulary]`` of each."""
        memory = self.memory if len(numbers) == len(self._rows) else self.memory.part(numbers)
        device = self.model.device
        try:
            inputs: dict[str, Any] = {
                "input_ids": torch.tensor([[self._rows[number].ids[-1]] for number in numbers], device=device),
                "attention_mask": memory.mask(device),
                "position_ids": torch.tensor(memory.lengths, device=device)[:, None],
            }
            out = self.model(**inputs, use_cache=True, **{self._cache: memory.cache}, **self._last)
            scores = out.logits[:, -1].float()
        except Exception:
            memory.undo_pass()
            raise
        memory.grow()
        return [(memory, row) for row in scores]

    def _sample(self, rows: list[_Row], scores: Sequence[torch.Tensor]) -> list[Chunk | Refused]:
        """Samples the next token of these rows, and removes finished rows.

        Args:
            rows: the rows, in the order of the scores.
            scores: logits of each row, float32 ``[vocabulary]``.
        """
        chunks = [self._next_or_error(row, row_scores) for row, row_scores in zip(rows, scores, strict=True)]
        ended = {chunk.index for chunk in chunks if isinstance(chunk, Refused) or chunk.finish}
        self._keep([row for row in self._rows if row.task.index not in ended])
        return chunks

    def _next_or_error(self, row: _Row, scores: torch.Tensor) -> Chunk | Refused:
        """The next chunk of a row; an exception ends only this row."""
        try:
            return self._next(row, scores)
        except Exception as error:
            return Refused(row.task.index, error)

    def _next(self, row: _Row, scores: torch.Tensor) -> Chunk:
        task, generator = row.task, self.generator
        token = row.chooser.choose([*task.ids, *row.ids], scores)
        row.ids.append(token)
        hidden = generator.hidden(task, token)
        text, scored = "", tuple[ScoredToken, ...]()
        if not hidden:
            text = row.detokenizer.add(token)
            if row.logprobs is not None:
                scored = (scored_token(generator.tokenizer, scores, token, row.logprobs),)
        stopped = token in generator.stop_ids
        if not stopped and len(row.ids) < task.new_tokens:
            return Chunk(task.index, text, "", len(task.ids), len(row.ids), scored)
        finish = "stop" if stopped else "length"
        text += row.detokenizer.rest()
        return Chunk(task.index, text, finish, len(task.ids), len(row.ids), scored)

    def _keep(self, rows: list[_Row]) -> None:
        if len(rows) != len(self._rows):
            self.memory.keep([self._rows.index(row) for row in rows])
            self._rows = rows
