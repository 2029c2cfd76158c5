"""Loaded by every measured process, ours and the peers': writes a line for each event of transformers' Trainer.

The programs stay as they are. ``FT_BENCH_EVENTS`` names the file. Each line: event, step, CPU seconds of the process
(all threads) and of its ended child processes, wall seconds, peak resident bytes, and of a log line its loss and
gradient norm.
"""

import importlib.abc
import importlib.machinery
import json
import os
import resource
import sys
import time

WATCHED = "transformers.trainer_callback"
EVENTS = ("on_init_end", "on_step_begin", "on_step_end", "on_log")
NUMBERS = ("loss", "grad_norm")


def note(event, state, logs):
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "event": event,
        "step": state.global_step,
        "cpu": time.process_time(),
        "children": children.ru_utime + children.ru_stime,
        "wall": time.time(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    line |= {name: float(logs[name]) for name in NUMBERS if logs and name in logs}
    with open(os.environ["FT_BENCH_EVENTS"], "a", encoding="utf-8") as stream:  # noqa: PTH123 - before anything else
        stream.write(json.dumps(line) + "\n")


class Watch(importlib.abc.MetaPathFinder):
    """Wraps ``CallbackHandler.call_event`` when its module is imported."""

    def find_spec(self, name, path, target=None):
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            own = module.CallbackHandler.call_event

            def call_event(handler, event, args, state, control, **kwargs):
                if event in EVENTS:
                    note(event, state, kwargs.get("logs"))
                return own(handler, event, args, state, control, **kwargs)

            module.CallbackHandler.call_event = call_event

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FT_BENCH_EVENTS"):
    sys.meta_path.insert(0, Watch())
