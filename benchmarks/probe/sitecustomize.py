"""Loaded by every measured process, ours and the peers': writes a line for each event of transformers' Trainer.

The programs stay as they are. ``FT_BENCH_EVENTS`` names the file. Each line: event, step, CPU seconds of the process
(all threads) and of its ended child processes, wall seconds, peak resident bytes, and of a log line its loss and
gradient norm.

Two programs take their steps by turns where ``FT_BENCH_TURN`` names the file that says whose turn it is, and
``FT_BENCH_SIDE`` who this one is: the other's name follows it, after a comma. A turn lasts to the end of a step, the
first one from when the trainer exists. Seconds of waiting, and what looking costs, are taken out.
"""

# nothing more is imported than has to be, before anything else
# ruff: noqa: PTH105, PTH110, PTH123
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


TURN = os.environ.get("FT_BENCH_TURN")
SIDE, _, OTHER = os.environ.get("FT_BENCH_SIDE", "").partition(",")
waited = looked = 0.0


def wait(begun, begun_cpu):
    """Until it is this program's turn, or the other one has ended; from these wall and CPU seconds on."""
    global waited, looked
    while TURN and not os.path.exists(f"{TURN}.over"):
        with open(TURN, encoding="utf-8") as stream:
            if stream.read() == SIDE:
                break
        time.sleep(0.05)
    waited += time.time() - begun
    looked += time.process_time() - begun_cpu


def hand_over():
    if TURN:
        with open(f"{TURN}.{SIDE}", "w", encoding="utf-8") as stream:
            stream.write(OTHER)
        begun = time.time(), time.process_time()
        os.replace(f"{TURN}.{SIDE}", TURN)
        wait(*begun)


def note(event, state, logs):
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "event": event,
        "step": state.global_step,
        "cpu": time.process_time() - looked,
        "children": children.ru_utime + children.ru_stime,
        "wall": time.time() - waited,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    line |= {name: float(logs[name]) for name in NUMBERS if logs and name in logs}
    with open(os.environ["FT_BENCH_EVENTS"], "a", encoding="utf-8") as stream:
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
                if event == "on_init_end":
                    wait(time.time(), time.process_time())
                if event in EVENTS:
                    note(event, state, kwargs.get("logs"))
                if event == "on_step_end":
                    hand_over()
                return own(handler, event, args, state, control, **kwargs)

            module.CallbackHandler.call_event = call_event

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FT_BENCH_EVENTS"):
    sys.meta_path.insert(0, Watch())
