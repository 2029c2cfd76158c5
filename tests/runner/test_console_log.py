"""Output that closes or fills up ends nothing, and its lines are in the log file."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from ftcore.errors import RunError, UsageError
from ftcore.runner.console_log import ConsoleLog, LineLog, SafeStream, surviving


class Broken(io.StringIO):
    """A stream that fails from its second write on, or at each flush."""

    def __init__(self, error: Exception, *, flushing: bool = False) -> None:
        super().__init__()
        self.error, self.flushing, self.calls = error, flushing, 0

    def write(self, text: str) -> int:
        self.calls += 1
        if self.calls > 1 and not self.flushing:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.flushing:
            raise self.error


ERRORS = [OSError(number, os.strerror(number)) for number in (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF)]


@pytest.mark.parametrize("flushing", [False, True])
@pytest.mark.parametrize("error", [*ERRORS, ValueError("I/O operation on closed file")], ids=repr)
def test_a_stream_that_fails_is_left_alone(error: Exception, flushing: bool, tmp_path: Path) -> None:
    log, real = LineLog(), Broken(error, flushing=flushing)
    stream = SafeStream(real, log)
    log.open(tmp_path / "log")
    for number in range(4):
        click.echo(f"line {number}", file=stream)
        stream.flush()
    log.close()
    assert stream.stream is None
    assert not stream.isatty()
    assert real.calls <= 2
    assert (tmp_path / "log").read_text() == "line 0\nline 1\nline 2\nline 3\n"


def test_a_slow_reader_is_no_reason_to_give_up() -> None:
    real = Broken(BlockingIOError(errno.EAGAIN, "later"))
    stream = SafeStream(real)
    for _ in range(3):
        stream.write("x\n")
    assert real.calls == 3
    assert stream.stream is real


def test_no_stream_at_all_and_one_of_few_characters() -> None:
    SafeStream(None).write("x\n")
    real = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = SafeStream(real)
    click.echo("café", file=stream)
    assert stream.stream is real
    real.seek(0)
    assert real.read() == "caf\\xe9\n"
    with pytest.raises(TypeError):
        stream.write(b"x")  # type: ignore[arg-type]


@given(st.lists(st.text(st.sampled_from("ab\r\né"), max_size=6), max_size=8))
def test_pieces_are_the_lines_that_they_make(tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    """However text is cut, the file has each line as a terminal shows it in the end, if nothing is written over."""
    found = []
    for cut in (pieces, ["".join(pieces)]):
        log, file = LineLog(), tmp_path_factory.mktemp("log") / "log"
        log.open(file)
        for piece in cut:
            log.write(piece)
        log.close()
        found.append(file.read_bytes().decode())
    assert found[0] == found[1]
    whole = "".join(pieces)
    expected = [line.rstrip("\r").rpartition("\r")[2] for line in whole.split("\n")]
    assert found[0].split("\n")[: whole.count("\n")] == expected[:-1]


def test_colours_and_bars_leave_lines(tmp_path: Path) -> None:
    """rich draws its bar anew below each line; of a bar the log has the last state."""
    log = LineLog()
    stream: Any = SafeStream(io.StringIO(), log)
    console = Console(file=stream, force_terminal=True, width=60)
    with Progress(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("training", total=3)
        for step in range(3):
            console.print(f"step {step}", style="red")
            bar.update(task, advance=1, refresh=True)
    click.echo("\x1b[31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", file=stream, color=True)
    stream.write("  0%|  |\r 50%|# |\r100%|##|\n")
    log.open(tmp_path / "log")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line.startswith("step")] == ["step 0", "step 1", "step 2"]
    assert [line for line in lines if "training" in line] == [lines[3]]
    assert "100%" in lines[3]
    assert lines[4:] == ["red link", "100%|##|"]


def test_a_log_begins_with_what_was_said_before_and_ends_with_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "ft_run.log"

    def run(error: BaseException | None) -> None:
        with ConsoleLog() as console:
            click.echo("early")
            print("to error", file=sys.stderr)
            console.write_to(file)
            click.echo("late, and no line end", nl=False)
            if error is not None:
                raise error

    run(None)
    assert capsys.readouterr() == ("early\nlate, and no line end", "to error\n")
    with pytest.raises(RunError):
        run(RunError("it failed"))
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError("boom"))
    lines = file.read_text().splitlines()
    assert lines[1:4] == ["early", "to error", "late, and no line end"]
    assert lines[4].startswith("---- 20")
    assert lines[8] == "error: it failed"
    assert lines[-1] == "ZeroDivisionError: boom"
    before = file.read_bytes()
    with pytest.raises(UsageError):
        run(UsageError("refused"))  # a run that is refused changes nothing
    assert file.read_bytes() == before
    with pytest.raises(RuntimeError), surviving():
        raise RuntimeError
    assert sys.stdout is not None


FT = "import sys; from ftcore.cli import main; main(sys.argv[1:])"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["options"], ["plugins", "list"], ["--help"]], ids=" ".join)
def test_commands_that_only_print_end_quietly(words: list[str]) -> None:
    """``| head -0``, ``> /dev/full`` and ``>&-``."""
    command = [sys.executable, "-c", FT, *words]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    message = b"error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)
    done = subprocess.run(command, preexec_fn=lambda: os.close(1), stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
