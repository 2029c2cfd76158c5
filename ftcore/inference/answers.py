"""Collects streamed chunks into answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ftcore.api.components import Generator
from ftcore.api.inference_types import Chunk, Prompt
from ftcore.errors import Problem, RunError

SHOWN = 5
"""Number of failures that a message lists."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a prompt.

    Args:
        text: text of the answer; empty after an error.
        finish: ``stop``, ``length`` or ``error``.
        prompt_tokens, tokens: number of tokens of prompt and answer.
        error: the message, for ``error``.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int
    error: str = ""


def collect(chunks: Iterable[Chunk], count: int) -> list[Answer]:
    """The answers to ``count`` prompts, in order."""
    texts: list[list[str]] = [[] for _ in range(count)]
    last: list[Chunk | None] = [None] * count
    for chunk in chunks:
        texts[chunk.index].append(chunk.text)
        if chunk.finish:
            last[chunk.index] = chunk
    answers = []
    for parts, chunk_ in zip(texts, last, strict=True):
        assert chunk_ is not None, "an engine must finish every answer"
        answers.append(Answer("".join(parts), chunk_.finish, chunk_.prompt_tokens, chunk_.tokens, chunk_.error))
    return answers


def failures(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> list[Problem]:
    """The errors of failed answers, with the places of their prompts."""
    return [
        Problem(answer.error, prompt.place or f"prompt {number}")
        for number, (answer, prompt) in enumerate(zip(answers, prompts, strict=True), start=1)
        if answer.finish == "error"
    ]


def check_answered(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> None:
    """Raises an error if any answer failed.

    Raises:
        RunError: with the first failures.
    """
    if failed := failures(answers, prompts):
        raise RunError(failed_line(failed, len(prompts)))


def failed_line(failed: Sequence[Problem], count: int) -> str:
    """A message with the number of failed answers and the first reasons."""
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    return f"{len(failed):,} of {count:,} answers failed: " + "; ".join(map(str, failed[:SHOWN])) + more


def answer_all(generator: Generator, prompts: Sequence[Prompt], window: int) -> Iterator[Answer]:
    """Answers in the order of the prompts, in windows of ``window`` prompts: an interruption loses one window."""
    for start in range(0, len(prompts), window):
        part = prompts[start : start + window]
        yield from collect(generator.stream(part), len(part))
