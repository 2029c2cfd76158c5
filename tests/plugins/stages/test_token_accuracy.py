"""Token accuracy at evaluation, against plain transformers, whatever the batch and the packing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ft_plugins.backends.cpu import linear_cross_entropy as tiled
from ft_plugins.backends.cpu.linear_cross_entropy import TiledLinearCrossEntropy
from ftcore.config.planner import make_plan
from ftcore.runner.run import run
from ftcore.training.losses import linear_cross_entropy as chunked
from ftcore.training.losses.linear_cross_entropy import CHUNKED, LinearCrossEntropy, LMHead

ROWS = [
    ("hello world", "one two three"),
    ("who are you?", "a tiny model"),
    ("name a dog", "fox"),
    ("x", "lazy dog " * 9),
]


@pytest.mark.parametrize("kernel", [TiledLinearCrossEntropy(), CHUNKED], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("tile", [(3, 2), (1536, 1024)])
def test_hits_against_argmax(
    kernel: LinearCrossEntropy, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_BYTES", tile[0])
    monkeypatch.setattr(tiled, "TILE", tile)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (40, 5))
    labels = torch.randint(0, 5, (40,), generator=generator)
    losses, hits = kernel.nll_and_hits(hidden, LMHead(weight), labels)
    z = hidden @ weight.T
    assert 0 < hits.sum() < 40
    assert torch.equal(hits, z.argmax(-1) == labels)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(z, labels, reduction="none"))


@pytest.mark.slow
def test_the_accuracy_of_any_batch_and_packing(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in ROWS))

    def evaluated(number: int, **values: Any) -> dict[str, Any]:
        given = {
            "model_name_or_path": str(tiny_model_dir),
            "eval_dataset": str(data),
            "do_eval": True,
            "finetuning_type": "full",
            "template": "chatml",
            "compute_accuracy": True,
            "output_dir": str(tmp_path / f"out{number}"),
        }
        assert run(make_plan(None, values=given | values)) == 0
        return json.loads((tmp_path / f"out{number}" / "eval_results.json").read_text())

    hits = total = 0
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for question, answer in ROWS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        before, ids = tokenizer(prompt).input_ids, tokenizer(f"{prompt}{answer}<|im_end|>").input_ids
        with torch.no_grad():
            best = model(torch.tensor([ids])).logits[0].argmax(-1)
        hits += sum(int(best[place - 1]) == ids[place] for place in range(len(before), len(ids)))
        total += len(ids) - len(before)
    for number, values in enumerate([{}, {"per_device_eval_batch_size": 1}, {"packing": True, "cutoff_len": 128}]):
        assert evaluated(number, **values)["eval_accuracy"] == pytest.approx(hits / total, abs=1e-12)
    assert "eval_accuracy" not in evaluated(9, compute_accuracy=False)


def test_the_best_checkpoint_by_accuracy(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in ROWS))
    given = {
        "model_name_or_path": str(tiny_model_dir),
        "dataset": str(data),
        "eval_dataset": str(data),
        "do_train": True,
        "finetuning_type": "full",
        "template": "chatml",
        "compute_accuracy": True,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "output_dir": str(tmp_path / "out"),
    }
    assert run(make_plan(None, values=given)) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()]
    seen = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    final = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert max(seen) > seen[0]
    assert final["eval_accuracy"] == max(seen)
