"""Generates with a loaded model: one prompt as a stream, several in batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ft_plugins.engines.transformers.detokenizing import Detokenizer
from ft_plugins.engines.transformers.generation_settings import Settings
from ft_plugins.engines.transformers.sampling import FiniteScores
from ft_plugins.engines.transformers.task import Task
from ftcore.api.inference_types import Chunk, Prompt
from ftcore.api.plan import Plan
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import Problem, UsageError
from ftcore.inference.row_isolation import failed_chunk, isolated
from ftcore.inference.sessions import BatchingGenerator, Session

NOT_SHORTER = 2.0
"""Prompts share a batch while the longest is at most this many times the shortest."""


class TransformersGenerator(BatchingGenerator):
    """A generator that runs one call at a time; further callers wait.

    Args:
        plan: supplies generation options and batch size (``per_device_eval_batch_size``).
        model: model in evaluation mode.
        renderer: tokenises prompts as in training.
        active: context that activates this generator's adapter; None if it is always active.
    """

    def __init__(
        self,
        plan: Plan,
        model: PreTrainedModel,
        renderer: Renderer,
        active: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.active = active or nullcontext
        self.plan, self.model, self.renderer, self.tokenizer = plan, model, renderer, renderer.tokenizer
        self.stop_ids = frozenset(renderer.stop_ids)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        pad = self.tokenizer.pad_token_id
        self.pad = pad if pad is not None else min(self.stop_ids, default=0)
        # transformers fills unset values from the model's configuration; the plan decides sampling
        model.generation_config = GenerationConfig()
        self._lock = threading.Lock()

    def session(self, slots: int) -> Session | None:
        """A session with continuous batching; None for models with sliding windows or recurrent states."""
        from ft_plugins.engines.transformers.continuous_batching import ContinuousSession
        from ft_plugins.engines.transformers.kv_cache import supports_batching

        return ContinuousSession(self, slots) if supports_batching(self.model) else None

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Streams the answer of a single prompt; answers of several prompts come whole, batch by batch.

        If a batch fails, its prompts are answered one by one; a prompt that fails again is answered with its error.

        Raises:
            UsageError: a prompt or setting is not supported; raised before generation.
        """
        tasks = [self.task(index, prompt) for index, prompt in enumerate(prompts)]
        if len(tasks) == 1 and tasks[0].settings.options.num_beams == 1:
            yield from self._stream(tasks[0])
            return
        for batch in self._batches(tasks):
            with self._lock:
                answers = isolated(self._generate, batch)
            for task, found in zip(batch, answers, strict=True):
                if isinstance(found, Exception):
                    yield failed_chunk(task.index, found, len(task.ids))
                else:
                    yield self._last(task, found, self._text(task, found))

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises UsageError with all prompts that are too long, or that template or settings refuse."""
        problems: list[Problem] = []
        for prompt in prompts:
            try:
                self.task(0, prompt)
            except UsageError as error:
                problems += [Problem(each.message, prompt.place or each.where, each.hint) for each in error.problems]
        if problems:
            raise UsageError(problems)

    def task(self, index: int, prompt: Prompt) -> Task:
        """Prepares a prompt.

        Raises:
            UsageError: the prompt or a setting is not supported.
        """
        settings = Settings.of(self.plan, prompt.settings)
        ids = prompt.ids
        if ids is None:
            ids = tuple(self.renderer.prompt_ids(prompt.messages, prompt.tools))
        return Task(index, ids, settings, settings.new_tokens(len(ids), self.context), prompt.seed)

    def _batches(self, tasks: Sequence[Task]) -> Iterator[list[Task]]:
        """Groups tasks with the same settings and similar length into batches."""
        groups: dict[tuple[Any, ...], list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.batchable, []).append(task)
        size = self.plan.training.per_device_eval_batch_size
        for group in groups.values():
            batch: list[Task] = []
            for task in sorted(group, key=lambda task: len(task.ids)):
                if batch and (len(batch) == size or len(task.ids) > NOT_SHORTER * len(batch[0].ids)):
                    yield batch
                    batch = []
                batch.append(task)
            yield batch

    def _generate(self, batch: Sequence[Task], **more: Any) -> list[list[int]]:
        """The new tokens of each task, up to the first stop token."""
        longest = max(len(task.ids) for task in batch)
        rows = [[self.pad] * (longest - len(task.ids)) + list(task.ids) for task in batch]
        ids = torch.tensor(rows, device=self.model.device)
        real = torch.tensor([[0] * (longest - len(task.ids)) + [1] * len(task.ids) for task in batch])
        config = batch[0].settings.config(batch[0].new_tokens, self.stop_ids, self.pad)
        with self.active(), _seeded(batch[0].seed, self.model.device), torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=real.to(ids.device),
                generation_config=config,
                logits_processor=[FiniteScores()],
                **more,
            )
        return [self._cut(row) for row in out[:, longest:].tolist()]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids) - 1)
        return ids[: end + 1]

    def _stream(self, task: Task) -> Iterator[Chunk]:
        """Generates in a thread; closing the iterator or Ctrl-C stops the thread at its next token."""
        channel = _Channel()
        worker = threading.Thread(target=self._work, args=(task, channel), name="ft-generate", daemon=True)
        detokenizer = Detokenizer(self.tokenizer, task.settings.options.skip_special_tokens)
        ids: list[int] = []
        worker.start()
        try:
            for token in channel.tokens():
                ids.append(token)
                if not self.hidden(task, token) and (text := detokenizer.add(token)):
                    yield Chunk(task.index, text)
            yield self._last(task, ids, detokenizer.rest())
        finally:
            channel.cancelled.set()
            worker.join()

    def _work(self, task: Task, channel: _Channel) -> None:
        try:
            with self._lock:
                self._generate([task], streamer=channel, stopping_criteria=[channel])
        except BaseException as error:  # passed to the calling thread
            channel.queue.put(error)
        else:
            channel.queue.put(None)

    def hidden(self, task: Task, token: int) -> bool:
        """Whether the text omits a token, because it is a stop token."""
        return token in self.stop_ids and task.settings.options.skip_special_tokens

    def _text(self, task: Task, ids: list[int]) -> str:
        shown = ids[:-1] if ids and self.hidden(task, ids[-1]) else ids
        return Detokenizer(self.tokenizer, task.settings.options.skip_special_tokens).decode(shown)

    def _last(self, task: Task, ids: list[int], text: str) -> Chunk:
        finish = "stop" if ids and ids[-1] in self.stop_ids else "length"
        return Chunk(task.index, text, finish, prompt_tokens=len(task.ids), tokens=len(ids))


class _Channel(BaseStreamer, StoppingCriteria):
    """Carries tokens from the generating thread, and the stop request to it."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by ``generate``; the first call has the prompt."""
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self.queue.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        """Does nothing: `_work` signals the end and errors."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether to stop, ``[rows]``."""
        return torch.full((input_ids.shape[0],), self.cancelled.is_set(), device=input_ids.device)

    def tokens(self) -> Iterator[int]:
        """Yields tokens until the end; raises an error of the other thread."""
        while (item := self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds the random state inside the context, and restores it afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
