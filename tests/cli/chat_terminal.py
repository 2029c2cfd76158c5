"""``ft chat`` on a pseudo-terminal: ``python tests/cli/chat_terminal.py MODEL LONG FOLDER``; LONG talks for seconds.

Prints what the terminal showed after each thing that was typed, as one JSON object. Nothing heavy is imported here:
the process that forks has one thread.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

WAIT = 60.0
"""Seconds until something that should be shown is given up."""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, words: list[str]) -> None:
        self.child, self.screen = pty.fork()
        if not self.child:
            os.environ |= {"TERM": "dumb", "OMP_NUM_THREADS": "1", "FT_CPU_BF16": "0", "NO_COLOR": "1"}
            os.environ.pop("INPUTRC", None)
            # a shell ignores it in what it starts with &, and so would tests that are
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, [sys.executable, "-c", "from ftcore.cli import main; main()", *words])

    def until(self, end: str, wait: float = WAIT) -> str:
        """What is shown up to and with this."""
        found, limit = "", time.monotonic() + wait
        while not found.endswith(end) or not end:
            ready, _, _ = select.select([self.screen], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                raise SystemExit(f"waited for {end!r}, and there was {found!r}")
            try:
                more = os.read(self.screen, 4096)
            except OSError:  # the other side is closed
                break
            if not more:
                break
            found += plain(more.decode(errors="replace"))
        return found

    def type(self, keys: str, end: str = "\n> ") -> str:
        """What is shown from these keys on."""
        os.write(self.screen, keys.encode())
        return self.until(end)

    def ask(self, line: str) -> None:
        """Until there is a piece of the answer, which may come with the line's echo."""
        os.write(self.screen, f"{line}\r".encode())
        shown = ""
        while not shown.partition(f"{line}\n")[2].strip():
            shown += plain(os.read(self.screen, 4096).decode(errors="replace"))

    def interrupt(self, end: str = "\n> ") -> str:
        """What is shown from Ctrl-C on, at a prompt.

        Pressed again where nothing comes of it: CPython's readline looks for signals before it waits for a key, and
        one that comes between is seen with the next (1 in 3 times with three of these at once on two cores).
        """
        limit = time.monotonic() + WAIT
        while time.monotonic() < limit:
            os.write(self.screen, b"\x03")
            if select.select([self.screen], [], [], 1.0)[0]:
                break
        return self.until(end)


def plain(text: str) -> str:
    """Without colours and the marks of bracketed paste."""
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text).replace("\r\n", "\n").replace("\r", "")


def talk(model: str, long: str, folder: Path) -> dict[str, object]:
    """The session."""
    words = ["do_sample=false", "infer_dtype=float32"]
    chat = Terminal(["chat", "--model", model, *words, "max_new_tokens=8"])
    chat.until("> ")
    shown: dict[str, object] = {"hello": chat.type("hello\r"), "again": chat.type("\x1b[A\r")}
    shown["system"] = chat.type("/system be brief\r")
    chat.type("one\\\r", "\n. ")
    shown["lines"] = "one\\\n. " + chat.type("two\r")
    chat.type("/system\r")
    shown["block begun"] = chat.type('"""\r', "\n. ")
    chat.type("x", "x")  # alone: the terminal forgets what is typed just before Ctrl-C
    shown["block dropped"] = chat.interrupt()
    shown["paste"] = chat.type("\x1b[200~one\ntwo\x1b[201~\r")
    shown["clear"] = chat.type("/clear\r")
    shown["end"] = chat.type("\x04", "")
    shown["status"] = os.waitstatus_to_exitcode(os.waitpid(chat.child, 0)[1])
    chat = Terminal(["chat", "--model", long, *words, "max_new_tokens=8000"])
    chat.until("> ")
    for said in ("hello", "and?"):
        chat.ask(said)
        chat.type("\x03")
    chat.type(f"/save {folder}/stopped.jsonl\r")
    chat.type("/exit\r", "")
    assert os.waitstatus_to_exitcode(os.waitpid(chat.child, 0)[1]) == 0
    return shown


if __name__ == "__main__":
    print(json.dumps(talk(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
