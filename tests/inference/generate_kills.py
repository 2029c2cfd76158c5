"""``ft generate`` killed and stopped, and gone on with: ``python tests/inference/generate_kills.py FOLDER``.

Prints a line of JSON a case: how the first process ended, what it said last, how many answers the second one found, and
whether the bytes are those of a run in peace. Processes are forks after the imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
# threads do not survive a fork (see tests/training/real_runs.py)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["FT_CPU_BF16"] = "0"

import ft_plugins.engines.transformers.generator
from ftcore.cli import main
from ftcore.inference import resumable_output
from ftcore.testing import tiny_model

COUNT = 20
"""Prompts, in windows of eight."""


def forked(folder: Path, output: Path, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """Status and last line of ``ft generate`` with sampling, in a fork."""
    words = ["generate", "--model", str(folder / "model"), "--input", str(folder / "prompts.jsonl")]
    words += ["--output", str(output), "--overwrite", "temperature=1.3", "top_k=0", "max_new_tokens=6"]
    words += ["per_device_eval_batch_size=1", "infer_dtype=float32"]
    said = output.with_suffix(".txt")
    if not (child := os.fork()):
        target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        status = 99
        try:
            if before:
                before()
            main(words)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, said.read_text(encoding="utf-8")


def at(place: str, number: int) -> Callable[[], None]:
    """Sends this process a signal at a place."""

    def end(*_: Any) -> None:
        os.kill(os.getpid(), number)

    def prepare() -> None:
        write, replace = resumable_output.ResumableOutput.write, Path.replace
        state = {"calls": 0}

        def writing(self: Any, lines: Any) -> None:
            state["calls"] += 1
            if state["calls"] == 2 and place == "before a window is written":
                end()
            if state["calls"] == 2 and place == "in a line":
                self.stream.write("".join(lines[:3]).encode()[:-5])
                self.stream.flush()
                end()
            write(self, lines)
            if state["calls"] == 2 and place == "after a window":
                end()

        def replacing(self: Path, target: Any) -> Path:
            if place == "before the move":
                end()
            found = replace(self, target)
            if place == "after the move":
                end()
            return found

        generate = ft_plugins.engines.transformers.generator.TransformersGenerator._generate

        def generating(self: Any, *arguments: Any, **more: Any) -> Any:
            state["answers"] = state.get("answers", 0) + 1
            if place == "in an answer" and state["answers"] == 11:
                end()
            return generate(self, *arguments, **more)

        resumable_output.ResumableOutput.write = writing
        Path.replace = replacing
        ft_plugins.engines.transformers.generator.TransformersGenerator._generate = generating

    return prepare


PLACES = ("in an answer", "before a window is written", "in a line", "after a window", "before the move")
CASES = [(place, signal.SIGKILL) for place in (*PLACES, "after the move")]
CASES += [("in an answer", number) for number in (signal.SIGTERM, signal.SIGINT)]


def run(folder: Path) -> None:
    """Every case."""
    if not (child := os.fork()):
        tiny_model(folder / "model")
        os._exit(0)
    os.waitpid(child, 0)
    rows = [{"prompt": f"say {number} " + "dog " * (number * 7 % 13)} for number in range(COUNT)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = folder / "whole.jsonl"
    status, said = forked(folder, whole)
    assert status == 0, said
    for place, number in CASES:
        output = folder / f"{place.replace(' ', '-')}-{number.name}.jsonl"
        output.write_text("old")
        first, said = forked(folder, output, at(place, number))
        found = {"place": place, "signal": number.name, "status": first, "said": said.splitlines()[-1:]}
        found["old"] = output.read_text(encoding="utf-8") == "old"
        second, said = forked(folder, output)
        found |= {"again": second, "told": said.splitlines()[:-1]}
        found["same"] = output.read_bytes() == whole.read_bytes()
        found["left"] = sorted(path.name for path in folder.glob("*partial*")) + [
            path.name for path in folder.glob(".tmp*")
        ]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
