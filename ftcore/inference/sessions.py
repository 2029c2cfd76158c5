"""Answers to prompts that come and go while others are being made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ftcore.api.components import Generator
from ftcore.api.inference_types import Chunk, Prompt
from ftcore.errors import RunError, UsageError


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that ends by an error, which no other answer of the session shares.

    Args:
        index: the prompt's number.
        error: why; `UsageError` where the prompt cannot be answered, anything else where the engine failed.
    """

    index: int
    error: Exception


class Session(ABC):
    """Prompts that are answered side by side; used by one thread."""

    @abstractmethod
    def add(self, prompt: Prompt, logprobs: int | None = None) -> int:
        """Takes a prompt in and gives its number, which no other prompt of the session gets.

        Args:
            prompt: to answer.
            logprobs: how many likeliest tokens are told beside each token; None where none is scored.

        Raises:
            UsageError: the prompt, a setting or ``logprobs`` cannot be.
        """

    @abstractmethod
    def drop(self, number: int) -> None:
        """Stops an answer and frees its place; one that has ended may be dropped too."""

    @abstractmethod
    def step(self) -> Sequence[Chunk | Refused]:
        """A little work, at most one token for each answer; chunks carry the prompts' numbers.

        What one answer raises ends that answer alone, as `Refused`; what is raised here ends them all.
        """


class BatchingGenerator(Generator):
    """A generator that has a session of its own, and batches across requests."""

    @abstractmethod
    def session(self, slots: int) -> Session | None:
        """A session that makes at most so many answers at a time; further prompts wait. None where it cannot."""


def open_session(generator: Generator, slots: int, count: Callable[[Prompt], int]) -> Session:
    """The generator's own session; one that answers prompt after prompt where it has none.

    Args:
        generator: answers.
        slots: answers that it may make at a time.
        count: the tokens of a prompt, for generators that tell them only at the end.
    """
    own = generator.session(slots) if isinstance(generator, BatchingGenerator) else None
    return own or Turns(generator, count)


class Turns(Session):
    """One prompt after the other, through `Generator.stream`; a chunk is counted as one token until the last.

    Args:
        generator: answers.
        count: the tokens of a prompt.
    """

    def __init__(self, generator: Generator, count: Callable[[Prompt], int]) -> None:
        self.generator, self.count = generator, count
        self._waiting: dict[int, Prompt] = {}
        self._added = 0
        self._current: tuple[int, Iterator[Chunk]] | None = None
        self._prompt_tokens = self._tokens = 0

    def add(self, prompt: Prompt, logprobs: int | None = None) -> int:
        """The prompt waits until its turn comes."""
        if logprobs is not None:
            raise UsageError("this inference engine does not return log-probabilities")
        self.generator.check([prompt])
        self._added += 1
        self._waiting[self._added] = prompt
        return self._added

    def drop(self, number: int) -> None:
        """Leaves the stream, which stops it."""
        self._waiting.pop(number, None)
        if self._current and self._current[0] == number:
            self._leave()

    def step(self) -> Sequence[Chunk | Refused]:
        """The next piece of the answer whose turn it is."""
        number = self._current[0] if self._current else next(iter(self._waiting), None)
        if number is None:
            return []
        try:
            if self._current is None:
                self._begin(number)
            assert self._current is not None
            self._prompt_tokens = self._prompt_tokens or self.count(self._prompt)
            chunk = next(self._current[1])
        except Exception as error:  # one prompt at a time: whatever is raised is this one's
            self._current = None
            return [Refused(number, error)]
        if chunk.finish == "error":
            self._leave()
            return [Refused(number, RunError(chunk.error))]
        self._tokens += 1
        if chunk.finish:
            self._leave()
        prompt_tokens, tokens = chunk.prompt_tokens or self._prompt_tokens, chunk.tokens or self._tokens
        return [replace(chunk, index=number, prompt_tokens=prompt_tokens, tokens=tokens)]

    def _begin(self, number: int) -> None:
        self._prompt = self._waiting.pop(number)
        self._current = number, iter(self.generator.stream([self._prompt]))
        self._prompt_tokens = self._tokens = 0

    def _leave(self) -> None:
        assert self._current is not None
        if close := getattr(self._current[1], "close", None):
            close()
        self._current = None
