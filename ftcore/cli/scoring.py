"""``ft generate --score``: scores of conversations by a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from ftcore.cli.inferring import Words


def write_scores(words: Words, source: Path, stream: TextIO | None, as_json: bool) -> int:
    """Scores the conversations of ``source``; returns how many.

    Each becomes its line with ``score`` and ``tokens`` in the stream, and with ``as_json`` on standard output; without
    either there is a number and its score.
    """
    from ftcore.inference.prompts import read_conversations

    rows, chats, places = read_conversations(source)
    target = words.find(score=True)
    judge = words.judge(target)
    read = judge.read(chats, places)
    for number, (row, ids, score) in enumerate(zip(rows, read, judge.score(read), strict=True), start=1):
        line = json.dumps({**row, "score": score, "tokens": len(ids)}, ensure_ascii=False)
        if stream is not None:
            stream.write(line + "\n")
        if as_json:
            click.echo(line)
        elif stream is None:
            click.echo(f"{number}  {score:.6f}")
    return len(rows)
