"""Sessions: prompts join and leave while other answers are generated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ftcore.api.components import Generator
from ftcore.api.inference_types import Chunk, Prompt
from ftcore.errors import RunError, UsageError


@dataclass(frozen=True, slots=True)
class Refused:
    """The error of one answer; other answers of the session continue.

    Args:
        index: number of the prompt.
        error: `UsageError` if the prompt cannot be answered; any other exception if the engine failed.
    """

    index: int
    error: Exception


class Session(ABC):
    """Answers several prompts concurrently; used by one thread."""

    @abstractmethod
    def add(self, prompt: Prompt, logprobs: int | None = None) -> int:
        """Adds a prompt and returns its number, which is unique in the session.

        Args:
            prompt: the prompt.
            logprobs: number of most likely tokens to return for each token; None for no log-probabilities.

        Raises:
            UsageError: the prompt, a setting or ``logprobs`` is not supported.
        """

    @abstractmethod
    def drop(self, number: int) -> None:
        """Stops an answer and frees its slot; a finished answer may be dropped as well."""

    @abstractmethod
    def step(self) -> Sequence[Chunk | Refused]:
        """Generates at most one token per answer; chunks have the numbers of their prompts.

        An error of one answer is returned as `Refused`. An exception of this method ends all answers.
        """


class BatchingGenerator(Generator):
    """A generator with a session that batches across requests."""

    @abstractmethod
    def session(self, slots: int) -> Session | None:
        """A session with at most ``slots`` concurrent answers; further prompts wait. None if unsupported."""


def open_session(generator: Generator, slots: int, count: Callable[[Prompt], int]) -> Session:
    """The session of the generator, or a sequential one if it has none.

    Args:
        generator: the generator.
        slots: maximum number of concurrent answers.
        count: counts the tokens of a prompt, for generators that report them only at the end.
    """
    own = generator.session(slots) if isinstance(generator, BatchingGenerator) else None
    return own or Turns(generator, count)


class Turns(Session):
    """A sequential session over `Generator.stream`; each chunk counts as one token until the last.

    Args:
        generator: the generator.
        count: counts the tokens of a prompt.
    """

    def __init__(self, generator: Generator, count: Callable[[Prompt], int]) -> None:
        self.generator, self.count = generator, count
        self._waiting: dict[int, Prompt] = {}
        self._added = 0
        self._current: tuple[int, Iterator[Chunk]] | None = None
        self._prompt_tokens = self._tokens = 0

    def add(self, prompt: Prompt, logprobs: int | None = None) -> int:
        """Queues the prompt."""
        if logprobs is not None:
            raise UsageError("this inference engine does not return log-probabilities")
        self.generator.check([prompt])
        self._added += 1
        self._waiting[self._added] = prompt
        return self._added

    def drop(self, number: int) -> None:
        """Closes the stream, which stops the answer."""
        self._waiting.pop(number, None)
        if self._current and self._current[0] == number:
            self._leave()

    def step(self) -> Sequence[Chunk | Refused]:
        """The next chunk of the current answer."""
        number = self._current[0] if self._current else next(iter(self._waiting), None)
        if number is None:
            return []
        try:
            if self._current is None:
                self._begin(number)
            assert self._current is not None
            self._prompt_tokens = self._prompt_tokens or self.count(self._prompt)
            chunk = next(self._current[1])
        except Exception as error:  # one prompt at a time: the error is that of this prompt
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
