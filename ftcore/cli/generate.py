"""``ft generate``: answers to prompts, from the command line, a file or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ftcore.cli.inferring import Words, names_a_model
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.inference import Prompt
    from ftcore.inference.answers import Answer

WINDOW = 8
"""Batches that are answered before their answers are written."""


@click.command(name="generate")
@names_a_model
@click.option("--prompt", "texts", metavar="TEXT", multiple=True, help="What to answer; repeatable.")
@click.option("--input", "source", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="A prompt a line.")
@click.option("--output", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="Where answers go.")
@click.option("--overwrite", is_flag=True, help="Replace --output where it exists.")
@click.option("--system", metavar="TEXT", help="System message of prompts that have none.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Of sampling; unset, the option seed.")
@click.option("--score", is_flag=True, help="Score the conversations of --input by a reward model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an answer.")
def command(
    words: Words,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    overwrite: bool,
    system: str | None,
    seed: int | None,
    score: bool,
    as_json: bool,
) -> None:
    """Answers prompts: those of --prompt, of --input, or what standard input holds.

    A line of --input is {"prompt": "..."} or {"messages": [...]}, with "system", "tools", "settings" (such as
    {"temperature": 0}) and "seed" where wanted. Answers keep the prompts' order.

    With --score each line is {"messages": [...]} up to an assistant's turn, and what comes out is the line with
    "score" and "tokens".
    """
    if score:
        if source is None or texts or system is not None or seed is not None:
            hint = "it reads whole conversations, from --input alone"
            raise UsageError(Problem("--score goes with no --prompt, --system or --seed", hint=hint))
        _score(words, source, output, overwrite, as_json)
        return
    from ftcore.inference.prompts import read_prompts, text_prompt

    rows: list[Mapping[str, Any]] = [{"prompt": text} for text in texts]
    prompts = [text_prompt(text, system) for text in texts]
    if source:
        more, read = read_prompts(source, system)
        rows, prompts = rows + more, prompts + read
    elif not texts:
        text = sys.stdin.read().rstrip("\n") if not sys.stdin.isatty() else ""
        if not text:
            raise UsageError("there is no prompt; write --prompt, --input, or pipe one in")
        rows, prompts = [{"prompt": text}], [text_prompt(text, system)]
    if output:
        _check_output(output, overwrite)
    target = words.find()
    default = target.plan.training.seed if seed is None else seed
    prompts = [_seeded(prompt, default) for prompt in prompts]
    generator = words.load(target)
    size = target.plan.training.per_device_eval_batch_size * WINDOW
    with _opened(output) as stream:
        if stream is None and not as_json and len(prompts) == 1:
            for chunk in generator.stream(prompts):
                click.echo(chunk.text, nl=False)
            click.echo()
            return
        _write(rows, prompts, generator, size, stream, as_json)
    if output:
        click.echo(f"{len(prompts)} answers written to {output}", err=True)


def _score(words: Words, source: Path, output: Path | None, overwrite: bool, as_json: bool) -> None:
    from ftcore.cli.scoring import write_scores

    if output:
        _check_output(output, overwrite)
    with _opened(output) as stream:
        count = write_scores(words, source, stream, as_json)
    if output:
        click.echo(f"{count} scores written to {output}", err=True)


def _write(
    rows: Iterable[Mapping[str, Any]],
    prompts: list[Prompt],
    generator: Any,
    size: int,
    stream: TextIO | None,
    as_json: bool,
) -> None:
    from ftcore.inference.answers import answer_all

    for number, (row, answer) in enumerate(zip(rows, answer_all(generator, prompts, size), strict=True), start=1):
        if stream is not None:
            stream.write(_line(row, answer) + "\n")
            stream.flush()
        if as_json:
            click.echo(_line(row, answer))
        elif stream is None:
            click.secho(f"── {number}", bold=True)
            click.echo(answer.text)


def _line(row: Mapping[str, Any], answer: Answer) -> str:
    found = asdict(answer)
    return json.dumps({**row, "answer": found.pop("text"), **found}, ensure_ascii=False)


def _seeded(prompt: Prompt, seed: int) -> Prompt:
    from dataclasses import replace

    return prompt if prompt.seed is not None else replace(prompt, seed=seed)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise UsageError(Problem(f"{output} exists", "--output", "write another name, or --overwrite"))
    if not output.parent.is_dir():
        raise UsageError(Problem(f"there is no folder {output.parent}", "--output"))


def _opened(output: Path | None) -> Any:
    if output is None:
        return nullcontext(None)
    try:
        return output.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(Problem(f"{output} cannot be written: {error.strerror}", "--output")) from error
