"""Two processes that share a run."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing.directory import checkpoints, verify

SCRIPT = Path(__file__).with_name("process_runs.py")


def run_processes(warm: Any, count: int, folder: Path, options: dict[str, Any]) -> None:
    """Starts ``count`` processes, as torchrun does, and waits for them."""
    folder.mkdir(exist_ok=True)
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"options": options, "folder": str(folder / "out")}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"CUDA_VISIBLE_DEVICES": "", "FT_CACHE": str(folder / "cache")}
    if count > 1:
        common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    ended = warm(*((SCRIPT, [str(spec)], common | rank) for rank in ranks))
    assert [one.stderr[-2000:] for one in ended if one.returncode] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_train_what_one_does(method: str, warm: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same global batches, of which one takes half: losses to 1e-5, and a checkpoint that both can go on from.

    13 rows in batches of four leave one row for two processes at an epoch's end.
    """
    options = {"model_name_or_path": str(tiny_model_dir), "finetuning_type": method, "gradient_accumulation_steps": 2}
    options |= {"logging_steps": 1, "learning_rate": 1e-3, "save_steps": 3, "max_steps": 5}
    run_processes(warm, 1, tmp_path / "one", options | {"per_device_train_batch_size": 4})
    run_processes(warm, 2, tmp_path / "two", options | {"per_device_train_batch_size": 2})
    losses = [
        [line["loss"] for line in read_log(tmp_path / name / "out" / "trainer_log.jsonl")] for name in ("one", "two")
    ]
    assert len(losses[0]) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    one, two = (load_file(tmp_path / folder / "out" / name) for folder in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=2e-5) for key in one)
    folder = tmp_path / "two" / "out"
    kept = (folder / name).read_bytes()
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3", "checkpoint-5"]
    assert {"random-0.json", "random-1.json"} <= verify(folder / "checkpoint-3").files.keys()
    verify(folder / "checkpoint-5")
    for path in (folder / "checkpoint-5").iterdir():
        path.unlink()
    run_processes(warm, 2, tmp_path / "two", options | {"per_device_train_batch_size": 2})
    assert (folder / name).read_bytes() == kept
