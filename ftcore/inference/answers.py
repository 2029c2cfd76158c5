"""Whole answers out of streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ftcore.components import Generator
from ftcore.inference import Chunk, Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """What a prompt was answered with.

    Args:
        text: of the answer.
        finish: ``stop`` or ``length``.
        prompt_tokens, tokens: of prompt and answer.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int


def collect(chunks: Iterable[Chunk], count: int) -> list[Answer]:
    """The answers to ``count`` prompts, in their order."""
    texts: list[list[str]] = [[] for _ in range(count)]
    last: list[Chunk | None] = [None] * count
    for chunk in chunks:
        texts[chunk.index].append(chunk.text)
        if chunk.finish:
            last[chunk.index] = chunk
    answers = []
    for parts, chunk_ in zip(texts, last, strict=True):
        assert chunk_ is not None, "an engine must finish every answer"
        answers.append(Answer("".join(parts), chunk_.finish, chunk_.prompt_tokens, chunk_.tokens))
    return answers


def answer_all(generator: Generator, prompts: Sequence[Prompt], window: int) -> Iterator[Answer]:
    """Answers in the order of the prompts, ``window`` prompts at a time, so that few are lost when it is stopped."""
    for start in range(0, len(prompts), window):
        part = prompts[start : start + window]
        yield from collect(generator.stream(part), len(part))
