"""The three programs: their commands, their options and their environments."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import OWN, SHARED, Peer, Work

HERE = Path(__file__).resolve().parent


class FailedError(Exception):
    """A program ended badly, or the programs do not do the same work; its text goes into the table."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where everything is.

    Args:
        llamafactory: its virtual environment.
        trl: its virtual environment.
        model: the folder that `start.make_model` made.
        adapters: the folder that `start.make_adapters` made.
        threads: of each program.
    """

    llamafactory: Path
    trl: Path
    model: Path
    adapters: Path
    threads: int

    def python(self, program: str) -> Path:
        """The interpreter of a program."""
        return Path(sys.executable) if program == "ft" else getattr(self, program) / "bin" / "python"


def call(
    setting: Setting, program: str, words: Sequence[Any], folder: Path, extra: Mapping[str, str] | None = None
) -> str:
    """Runs a command to its end, with its output in ``output.txt`` of the folder.

    Raises:
        FailedError: it ended with another status than 0.
    """
    own = os.environ.get("PYTHONPATH", "").split(":") if program == "ft" else []
    stand_in = [str(HERE / "peers" / "llamafactory")] if program == "llamafactory" else []
    environment = os.environ | {
        "PYTHONPATH": ":".join(path for path in [str(HERE / "probe"), *stand_in, *own] if path),
        "OMP_NUM_THREADS": str(setting.threads),
        "MKL_NUM_THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "FT_CACHE": str(folder / "cache"),
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of packages that are there and newer
        **(extra or {}),
    }
    output = folder / "output.txt"
    with output.open("w") as stream:
        done = subprocess.run([str(word) for word in words], env=environment, stdout=stream, stderr=stream)
    text = output.read_text(encoding="utf-8", errors="replace")
    if done.returncode:
        raise FailedError(f"{program} ended with {done.returncode}: {reason(text)} ({output})")
    return text


def reason(text: str) -> str:
    """The line of a program's output that says why it ended: its last with an error's name, else its last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception|error)\b", line)]
    return (told or lines or ["it said nothing"])[-1][:300]


def train(
    setting: Setting, work: Work, peer: Peer | None, data: Path, folder: Path, extra: Mapping[str, str] | None = None
) -> Path:
    """One process from its start to its end; returns the file of its events.

    Args:
        setting: where everything is.
        work: what is trained.
        peer: by whom; None for ft.
        data: folder of the rows.
        folder: is emptied and gets what the process leaves.
        extra: of the environment.

    Raises:
        FailedError: the process failed.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an earlier measurement's output would be resumed or refused
    folder.mkdir(parents=True)
    file, events = folder / "run.yaml", folder / "events.jsonl"
    program = peer.program if peer else "ft"
    options = trl_options(setting, work, peer, data) if program == "trl" and peer else flat(setting, work, peer, data)
    file.write_text(json.dumps(options | {"output_dir": str(folder / "out")}), encoding="utf-8")  # JSON is YAML, too
    command = {
        "ft": [Path(sys.executable).with_name("ft"), "run", file],
        "llamafactory": [setting.llamafactory / "bin" / "llamafactory-cli", "train", file],
        "trl": [setting.python("trl"), HERE / "peers" / "train_trl.py", file],
    }[program]
    call(setting, program, command, folder, {"FT_BENCH_EVENTS": str(events), **(extra or {})})
    return events


def train_together(
    setting: Setting, work: Work, peer: Peer, data: Path, folder: Path
) -> tuple[Path | FailedError, Path | FailedError]:
    """A peer and ft, which take their steps by turns, so that both meet a machine that drifts in the same state.

    Arguments as `train`; each has a folder of its own in ``folder``.

    Returns:
        The peer's file of events and ft's, or why there is none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    turn = folder / "turn"
    turn.write_text("peer", encoding="utf-8")

    def one(side: Peer | None, names: str) -> Path | FailedError:
        extra = {"FT_BENCH_TURN": str(turn), "FT_BENCH_SIDE": names}
        try:
            return train(setting, work, side, data, folder / names.partition(",")[0], extra)
        except FailedError as error:
            return error
        finally:
            turn.with_name("turn.over").touch()

    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(one, (peer, None), ("peer,ft", "ft,peer"))
    return theirs, ours


def flat(setting: Setting, work: Work, peer: Peer | None, data: Path) -> dict[str, Any]:
    """The file of ft and LLaMA-Factory, the same but for what one of them alone has."""
    options: dict[str, Any] = {
        **SHARED,
        **work.options,
        "stage": work.stage,
        "model_name_or_path": str(setting.model),
        "dataset_dir": str(data),
        "per_device_train_batch_size": work.batch,
        "max_steps": work.steps,
    }
    if work.start:
        name = work.start if peer is None else "lora"  # LLaMA-Factory's reward head lies beside a causal adapter
        options["adapter_name_or_path"] = str(setting.adapters / name)
    if peer:
        return options | {"report_to": "none", "use_cpu": True, **peer.options}
    return options | dict(OWN.get(work.stage, {}))


def trl_options(setting: Setting, work: Work, peer: Peer, data: Path) -> dict[str, Any]:
    """What `peers/train_trl.py` reads."""
    arguments = {
        "per_device_train_batch_size": work.batch,
        "max_steps": work.steps,
        "learning_rate": SHARED["learning_rate"],
        "lr_scheduler_type": SHARED["lr_scheduler_type"],
        "train_sampling_strategy": "sequential",
        "max_length": SHARED["cutoff_len"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        **peer.options,
    }
    return {
        "stage": work.stage,
        "model": str(setting.model),
        "adapter": str(setting.adapters / work.start) if work.start else None,
        "data": str(data / "rows.json"),
        "arguments": arguments,
    }
