"""``ft generate``: answers prompts from the command line, a file, a dataset or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.cli.model_arguments import ModelArguments, names_a_model
from ftcore.errors import Problem, RunError, UsageError
from ftcore.runner.console_log import surviving

if TYPE_CHECKING:
    from ftcore.api.inference_types import Prompt
    from ftcore.cli.output_writer import Lines, OutputWriter
    from ftcore.inference.answers import Answer
    from ftcore.inference.target import Target

WINDOW = 8
"""Batches per write of answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Where prompts come from.

    Args:
        texts: values of ``--prompt``.
        source: file of ``--input``.
        dataset: names of ``--dataset``.
        system: system message of prompts without one.
        seed: seed for sampling; None for the option ``seed``.
    """

    texts: tuple[str, ...]
    source: Path | None
    dataset: str | None
    system: str | None
    seed: int | None


@click.command(name="generate")
@names_a_model
@click.option("--prompt", "texts", metavar="TEXT", multiple=True, help="Prompt to answer; repeatable.")
@click.option(
    "--input", "source", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="File with one prompt per line."
)
@click.option(
    "--dataset", metavar="NAME", help="Datasets, as in the option dataset: generate their last answers again."
)
@click.option("--output", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="File for the answers.")
@click.option("--overwrite", is_flag=True, help="Replace --output if it exists.")
@click.option("--system", metavar="TEXT", help="System message for prompts without one.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Seed for sampling; default: the option seed.")
@click.option("--score", is_flag=True, help="Score the conversations of --input with a reward model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per answer.")
def command(
    words: ModelArguments, output: Path | None, overwrite: bool, score: bool, as_json: bool, **request: Any
) -> None:
    """Answers the prompts of --prompt, --input and --dataset, or a prompt from standard input.

    A line of --input is {"prompt": "..."} or {"messages": [...]}, optionally with "system", "tools", "settings"
    (such as {"temperature": 0}) and "seed". Answers keep the order of the prompts. An unfinished output is in
    FILE.jsonl.partial; run the same command again to resume.

    With --score each line is {"messages": [...]} that ends with an assistant turn. The output is this line with "score"
    and "tokens" added.
    """
    source = Request(**request)
    if score and (
        source.source is None or source.texts or source.dataset or source.system is not None or source.seed is not None
    ):
        hint = "write --input FILE.jsonl with whole conversations, and none of these"
        raise UsageError(Problem("--score cannot be combined with --prompt, --dataset, --system or --seed", hint=hint))
    from ftcore.cli.output_writer import check_output

    if score:
        from ftcore.cli.score import score_work

        assert source.source is not None
        work = score_work(words, source.source)
    else:
        target, rows, prompts = _questions(words, source)
        if not output and not as_json and len(prompts) == 1:
            _stream(words.load(target), prompts)
            return
        work = _answer_work(words, target, rows, prompts)
    if output:
        check_output(output, overwrite)
        with surviving():  # the answers are written to the file
            work.to_file(output, as_json)
    else:
        work.to_terminal(as_json)


def _questions(words: ModelArguments, request: Request) -> tuple[Target, list[Mapping[str, Any]], list[Prompt]]:
    """The model, and the rows with their prompts."""
    from ftcore.inference.prompts import read_prompts, text_prompt

    rows: list[Mapping[str, Any]] = [{"prompt": text} for text in request.texts]
    prompts = [text_prompt(text, request.system) for text in request.texts]
    if request.source:
        more, read = read_prompts(request.source, request.system)
        rows, prompts = rows + more, prompts + read
    elif not request.texts and not request.dataset:
        text = sys.stdin.read().rstrip("\n") if not sys.stdin.isatty() else ""
        if not text:
            raise UsageError("there is no prompt; write --prompt, --input, --dataset, or pipe one in")
        rows, prompts = [{"prompt": text}], [text_prompt(text, request.system)]
    target = words.find()
    if request.dataset:
        from ftcore.inference.dataset_prompts import dataset_prompts

        more, read, notes = dataset_prompts(request.dataset, target.plan, request.system)
        rows, prompts = rows + more, prompts + read
        for line in notes:
            click.echo(line, err=True)
    seed = target.plan.training.seed if request.seed is None else request.seed
    return target, rows, [prompt if prompt.seed is not None else replace(prompt, seed=seed) for prompt in prompts]


def _answer_work(
    words: ModelArguments, target: Target, rows: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt]
) -> OutputWriter:
    from ftcore.cli.output_writer import OutputWriter

    failed: list[Problem] = []

    def load(done: int) -> Lines:
        from ftcore.inference.answers import collect, failures

        generator = words.load(target)
        generator.check(prompts[done:])

        def lines(start: int, end: int) -> Sequence[tuple[str, str]]:
            answers = collect(generator.stream(prompts[start:end]), end - start)
            failed.extend(failures(answers, prompts[start:end]))
            return [
                (_line(rows[number], answer), f"{click.style(f'── {number + 1}', bold=True)}\n{_shown(answer)}")
                for number, answer in enumerate(answers, start=start)
            ]

        return lines

    size = target.plan.training.per_device_eval_batch_size * WINDOW
    inputs = [[row, asdict(replace(prompt, place=""))] for row, prompt in zip(rows, prompts, strict=True)]
    return OutputWriter(what="answers", plan=target.plan, inputs=inputs, window=size, load=load, failed=failed)


def _stream(generator: Any, prompts: Sequence[Prompt]) -> None:
    """Prints one answer while it is generated."""
    from ftcore.training.callbacks.signals import ended_at_once

    with ended_at_once(lambda: ""):
        for chunk in generator.stream(prompts):
            click.echo(chunk.text, nl=False)
            if chunk.finish == "error":
                raise RunError(chunk.error)
    click.echo()


def _line(row: Mapping[str, Any], answer: Answer) -> str:
    found = asdict(answer)
    text, error = found.pop("text"), found.pop("error")
    found |= {"error": error} if error else {}
    return json.dumps({**row, "answer": None if error else text, **found}, ensure_ascii=False)


def _shown(answer: Answer) -> str:
    return f"failed: {answer.error}" if answer.error else answer.text
