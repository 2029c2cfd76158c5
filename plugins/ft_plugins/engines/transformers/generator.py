"""A loaded model that answers: one prompt as a stream, several in batches."""

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
    """Answers until it is dropped; one call at a time, further callers wait.

    Args:
        plan: generation options, and the batch size (``per_device_eval_batch_size``).
        model: ready to infer.
        renderer: makes the prompt's tokens, the same as in training.
        active: a context in which the model computes with this generator's adapter; None where it always does.
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
        # transformers completes what it is told by the model's own: sampling must be what the plan says
        model.generation_config = GenerationConfig()
        self._lock = threading.Lock()

    def session(self, slots: int) -> Session | None:
        """Answers side by side; none where a model remembers more than keys and values (sliding windows, states)."""
        from ft_plugins.engines.transformers.continuous_batching import ContinuousSession
        from ft_plugins.engines.transformers.kv_cache import supports_batching

        return ContinuousSession(self, slots) if supports_batching(self.model) else None

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Pieces of a single prompt's answer as they are made; whole answers, batch by batch, of several.

        A prompt that fails in a batch is answered with its error, and the others of the batch each by themselves.

        Raises:
            UsageError: for a prompt or a setting that cannot be; before anything is generated.
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
        """Every prompt that is too long, or that template or settings refuse."""
        problems: list[Problem] = []
        for prompt in prompts:
            try:
                self.task(0, prompt)
            except UsageError as error:
                problems += [Problem(each.message, prompt.place or each.where, each.hint) for each in error.problems]
        if problems:
            raise UsageError(problems)

    def task(self, index: int, prompt: Prompt) -> Task:
        """A prompt made ready.

        Raises:
            UsageError: for a prompt or a setting that cannot be.
        """
        settings = Settings.of(self.plan, prompt.settings)
        ids = prompt.ids
        if ids is None:
            ids = tuple(self.renderer.prompt_ids(prompt.messages, prompt.tools))
        return Task(index, ids, settings, settings.new_tokens(len(ids), self.context), prompt.seed)

    def _batches(self, tasks: Sequence[Task]) -> Iterator[list[Task]]:
        """Tasks of one kind and like length together."""
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
        """New tokens of each, cut after the first that stops."""
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
        """Generates in a thread; leaving the iteration, or Ctrl-C in it, stops the thread at its next token."""
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
        except BaseException as error:  # handed to the thread that asked
            channel.queue.put(error)
        else:
            channel.queue.put(None)

    def hidden(self, task: Task, token: int) -> bool:
        """Whether a token is the end of the turn, which is no text, special token or not."""
        return token in self.stop_ids and task.settings.options.skip_special_tokens

    def _text(self, task: Task, ids: list[int]) -> str:
        shown = ids[:-1] if ids and self.hidden(task, ids[-1]) else ids
        return Detokenizer(self.tokenizer, task.settings.options.skip_special_tokens).decode(shown)

    def _last(self, task: Task, ids: list[int], text: str) -> Chunk:
        finish = "stop" if ids and ids[-1] in self.stop_ids else "length"
        return Chunk(task.index, text, finish, prompt_tokens=len(task.ids), tokens=len(ids))


class _Channel(BaseStreamer, StoppingCriteria):
    """Carries tokens from the thread that generates, and the wish to stop back to it."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by ``generate``, with the prompt first."""
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self.queue.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        """The end is told by `_work`, which also knows of errors."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether to stop, ``[rows]``."""
        return torch.full((input_ids.shape[0],), self.cancelled.is_set(), device=input_ids.device)

    def tokens(self) -> Iterator[int]:
        """Until the end; an error in the other thread is raised here."""
        while (item := self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Repeatable inside, and outside the random state goes on as if nothing had been."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
