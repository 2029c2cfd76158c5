"""Whole runs of ``ft run``, from files to files, in forks of one process: a fork takes milliseconds, imports 10 s.

A script that imports this must not have used a tokenizer or started a thread before it forks.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
# Threads do not survive a fork. Neither the pool that torch.set_num_threads makes («Invalid thread pool!» in the child)
# nor the tokenizers' (the child waits for it for ever) may exist in the process that forks.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["FT_CPU_BF16"] = "0"

import ftcore.data.preprocessing.prepare
import ftcore.runner.run
import ftcore.training.plots
import ftcore.training.trainer
from ftcore.config.planner import make_plan
from ftcore.errors import FtError
from ftcore.testing import tiny_model
from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing import directory

_COMMON = {
    "do_train": True,
    "dataset": "one,two",
    "val_size": 3,
    "num_train_epochs": 2,  # 17 rows in batches of two: five steps an epoch, the last of one row
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "lora_dropout": 0.2,
    "template": "chatml",
}
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"finetuning_type": "full", "eval_strategy": "epoch", "neftune_noise_alpha": 5.0},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "qlora": {"finetuning_type": "qlora", "lora_target": "q_proj"},
    "packing": {"packing": True, "cutoff_len": 48, "eval_strategy": "no", "val_size": 0},
    "interleaved": {"mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"},
    "streaming": {
        "streaming": True,
        "buffer_size": 4,
        "dataset": "one",
        "max_steps": 8,  # 32 rows: three passes over 13 rows, not whole
        "eval_strategy": "no",
        "val_size": 0,
    },
    "dpo": {"stage": "dpo", "dataset": "pairs"},
    "rm": {"stage": "rm", "dataset": "pairs"},
    "kto": {"stage": "kto", "dataset": "marked"},
    "pt": {"stage": "pt", "dataset": "texts", "cutoff_len": 32},
    "ppo": {
        "stage": "ppo",
        "dataset": "one",
        "reward_model": "{inputs}/scorer",
        "reward_model_type": "full",
        "num_train_epochs": 1,  # 10 rows in rollouts of four: three, of two steps each
        "ppo_epochs": 2,
        "ppo_value_backbone": "separate",
        "ppo_score_norm": True,
        "max_new_tokens": 6,
    },
}
"""Name -> options besides those that all share; ``{inputs}`` is the folder of `write_inputs`."""


def write_inputs(folder: Path) -> None:
    """Tiny models and datasets, in ``folder``; the models in a fork: training a tokenizer starts threads."""
    if not (child := os.fork()):
        scorer_of(tiny_model(folder / "model"), folder / "scorer")
        os._exit(0)
    assert ended(child) == 0
    words = "the quick brown fox jumps over the lazy dog".split()

    def rows(count: int, offset: int) -> list[dict[str, str]]:
        numbers = range(offset, offset + count)
        return [
            {"instruction": " ".join(words[: 1 + n % 7]), "output": " ".join(words[n % 5 :]) + f" {n}"} for n in numbers
        ]

    pairs = [{"instruction": r["instruction"], "chosen": r["output"], "rejected": "no"} for r in rows(20, 40)]
    marked: list[dict[str, Any]] = [{**row, "kto_tag": number % 3 > 0} for number, row in enumerate(rows(20, 60))]
    texts = [{"text": f"{row['instruction']} {row['output']}"} for row in rows(40, 80)]
    files = {"one": rows(13, 0), "two": rows(7, 20), "pairs": pairs, "marked": marked, "texts": texts}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    info: dict[str, Any] = {name: {"file_name": f"{name}.json"} for name in files}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"pairs": info["pairs"] | {"ranking": True}}))


def scorer_of(model: Path, folder: Path) -> None:
    """A full reward model over a model, its head at random."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def options_of(case: str, inputs: Path, output: Path) -> dict[str, Any]:
    """All options of a case."""
    places = {"model_name_or_path": str(inputs / "model"), "dataset_dir": str(inputs), "output_dir": str(output)}
    own = {
        name: value.replace("{inputs}", str(inputs)) if isinstance(value, str) else value
        for name, value in CASES[case].items()
    }
    return _COMMON | own | places


def forked(options: dict[str, Any], before: Callable[[], None] | None = None) -> int:
    """Starts ``ft run`` in a fork and returns its process number.

    Its output goes into a text file beside the output folder. It ends as ``ft`` does, or with 99 after a traceback.

    Args:
        options: of the run.
        before: called in the fork first.
    """
    said = Path(options["output_dir"]).with_suffix(".txt")
    if child := os.fork():
        return child
    status = 99
    try:
        target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        if before is not None:
            before()
        status = ftcore.runner.run.run(make_plan(None, values=options))
    except FtError as error:
        print(error, file=sys.stderr)
        status = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(child: int) -> int:
    """Waits; the exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def differences(whole: Path, other: Path, but: tuple[str, ...] = ("trainer_state.json",)) -> list[str]:
    """What of two finished runs is not the same: weights, last checkpoints, logs, or what lies about.

    Args:
        whole, other: their folders.
        but: files that may differ; the trainer's state holds speeds.
    """
    found = [f"{path.name} is left" for path in other.glob(".tmp-*")]
    lasts = [directory.checkpoints(folder)[-1] for folder in (whole, other)]
    if lasts[0].name != lasts[1].name:
        return [*found, f"the last checkpoint is {lasts[1].name}, not {lasts[0].name}"]
    for path in directory.checkpoints(other):
        directory.verify(path)
    names = [f"{lasts[0].name}/{name}" for name in directory.verify(lasts[0]).files]
    names += [path.name for path in whole.glob("*.safetensors")]
    found += [
        f"{name} differs"
        for name in names
        if Path(name).name not in but and (whole / name).read_bytes() != (other / name).read_bytes()
    ]
    if steady_lines(whole) != steady_lines(other):
        found.append("the log differs")
    return found


def steady_lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    clock = {"throughput", "elapsed_time", "remaining_time"}
    return [{key: line[key] for key in line if key not in clock} for line in read_log(folder / "trainer_log.jsonl")]
