"""A process that has imported what a run needs, 6 s of CPU time, and runs scripts and ``ft`` in forks of itself.

Reads lines of JSON: a list of processes to run at once, each ``{"script": file or null, "words": [...], "environment":
{...}, "output": file, "errors": file}``; null is ``ft``. When all have ended, it prints their exit statuses as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

# threads do not survive a fork: neither torch's pool nor the tokenizers' may exist in the process that forks
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "FT_CPU_BF16": "0"}

import peft
import transformers.models.llama.modeling_llama

import ftcore.data.preprocessing.prepare
import ftcore.runner.run
import ftcore.training.checkpointing.directory
import ftcore.training.plots
import ftcore.training.trainer
from ftcore.cli import main

LOADED = (peft, transformers, ftcore)


def begin(process: dict[str, Any]) -> int:
    """Starts a process and returns its number."""
    if child := os.fork():
        return child
    status = 99
    try:
        for number, name in ((1, "output"), (2, "errors")):
            os.dup2(os.open(process[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        # a shell ignores SIGINT in what it starts with &, and nohup SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= process["environment"]
        sys.argv = [process["script"] or "ft", *process["words"]]
        if process["script"]:
            sys.path.insert(0, str(Path(process["script"]).parent))
            runpy.run_path(process["script"], run_name="__main__")
        else:
            main(process["words"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    gc.freeze()
    for line in sys.stdin:
        children = [begin(process) for process in json.loads(line)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


if __name__ == "__main__":
    serve()
