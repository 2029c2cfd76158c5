"""``ft generate --score``: scores conversations with a reward model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftcore.cli.model_arguments import ModelArguments

if TYPE_CHECKING:
    from ftcore.cli.output_writer import Lines, OutputWriter

WINDOW = 64
"""Batches per write of scores."""


def score_work(words: ModelArguments, source: Path) -> OutputWriter:
    """Scores the conversations of ``source`` and adds ``score`` and ``tokens`` to each line."""
    from ftcore.cli.output_writer import OutputWriter
    from ftcore.inference.prompts import read_conversations

    rows, chats, places = read_conversations(source)
    target = words.find(score=True)

    def load(done: int) -> Lines:
        judge = words.judge(target)
        read = judge.read(chats[done:], places[done:])

        def lines(start: int, end: int) -> Sequence[tuple[str, str]]:
            window = read[start - done : end - done]
            scored = []
            for number, (ids, score) in enumerate(zip(window, judge.score(window), strict=True), start=start):
                line = json.dumps({**rows[number], "score": score, "tokens": len(ids)}, ensure_ascii=False)
                scored.append((line, f"{number + 1}  {score:.6f}"))
            return scored

        return lines

    size = target.plan.training.per_device_eval_batch_size * WINDOW
    return OutputWriter(what="scores", plan=target.plan, inputs=rows, window=size, load=load)
