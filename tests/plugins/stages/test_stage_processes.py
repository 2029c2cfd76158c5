"""Stages in two processes: the reference is computed by both, and what is trained and logged is as in one."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from ftcore.training.callbacks.progress import read_log

SCRIPT = Path(__file__).with_name("stage_runs.py")


def run(warm: Any, count: int, folder: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The log of a run in so many processes."""
    folder.mkdir()
    file = folder / "options.json"
    file.write_text(json.dumps(options | {"output_dir": str(folder / "out")}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"CUDA_VISIBLE_DEVICES": "", "FT_CACHE": str(folder / "cache")}
    if count > 1:
        common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    ended = warm(*((SCRIPT, [str(file)], common | rank) for rank in ranks))
    assert [one.stderr[-2000:] for one in ended if one.returncode] == []
    return read_log(folder / "out" / "trainer_log.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["dpo", "rm", "kto", "ppo"])
def test_two_processes_train_what_one_does(
    stage: str, warm: Any, rows_of: Any, tiny_model_dir: Path, scorer_dir: Path, tmp_path: Path
) -> None:
    """Seven rows in global batches of four leave three for two processes, and evaluations of three leave a filler.

    What ppo samples depends on the batches that are answered together, which must be as large then.
    """
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(rows_of[stage](10)))
    options = {"model_name_or_path": str(tiny_model_dir), "stage": stage, "dataset": str(rows), "do_train": True}
    options |= {"val_size": 3, "max_steps": 4, "logging_steps": 2, "learning_rate": 1e-3, "save_strategy": "no"}
    if stage == "ppo":
        options |= {"reward_model": str(scorer_dir), "reward_model_type": "full", "max_new_tokens": 6}
        options |= {"ppo_epochs": 2, "ppo_buffer_size": 2, "max_steps": 6, "logging_steps": 3, "ppo_score_norm": True}
        options |= {"ppo_value_backbone": "separate", "gradient_accumulation_steps": 2}
    whole = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2}
    one = run(warm, 1, tmp_path / "one", options | whole)
    half = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2 if stage == "ppo" else 1}
    two = run(warm, 2, tmp_path / "two", options | half)
    unlike = {"throughput", "elapsed_time", "remaining_time", "num_input_tokens_seen"}
    assert [line.keys() for line in two] == [line.keys() for line in one]
    assert len(one) == 3
    for alone, shared in zip(one, two, strict=True):
        names = [name for name in alone if name not in unlike and isinstance(alone[name], int | float)]
        assert {"rewards/chosen", "eval_rewards/chosen", "reward", "eval_reward"} & set(names)
        assert [shared[name] for name in names] == [pytest.approx(alone[name], rel=1e-4, abs=1e-6) for name in names]
