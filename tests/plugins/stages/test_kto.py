"""kto: the paper's loss in float64, mismatched answers, batches of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ft_plugins.stages.kto.objective import MismatchedRows
from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log


def gains(model: Any, rows: Any, plain_logps: Any, name: str) -> torch.Tensor:
    """Log-probability of each row's answer by plain transformers."""
    each = [
        plain_logps(model, row["prompt_ids"], row[f"{name}_ids"]) * torch.tensor(row[f"{name}_weights"]) for row in rows
    ]
    return torch.stack([one.sum() for one in each]).double()


@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
@pytest.mark.parametrize("options", [{}, {"kto_chosen_weight": 0.5, "kto_rejected_weight": 1.7, "pref_ftx": 0.3}])
def test_loss_and_gradient_in_float64(
    method: str, options: Any, trainer_of: Any, moved: Any, plain_logps: Any, gradient: Any
) -> None:
    """Row by row through plain transformers; the divergence is the mean over mismatched answers, and a constant."""
    trainer = trainer_of("kto", 8, dtype=torch.float64, finetuning_type=method, **options)
    trainer.train_dataset.reference -= 9  # a model that has gained, so that there is a divergence
    model, rows = trainer.model, [trainer.train_dataset[row] for row in range(8)]
    with torch.no_grad():
        before = [gains(model, rows, plain_logps, name) - 9 for name in ("answer", "other")]
    moved(model, 0.05)
    own = gains(model, rows, plain_logps, "answer")
    with torch.no_grad():
        divergence = (gains(model, rows, plain_logps, "other") - before[1]).mean().clamp(min=0).item()
    assert divergence > 0.1
    losses = []
    for number, row in enumerate(rows):
        over = 0.1 * (own[number] - before[0][number] - divergence)
        length = row["answer_weights"].sum().item()
        good = options.get("kto_chosen_weight", 1.0) / (1 + torch.exp(over))
        good = good - options.get("pref_ftx", 0.0) * own[number] / length
        losses.append(good if row["good"] else options.get("kto_rejected_weight", 1.0) / (1 + torch.exp(-over)))
    expected = gradient(model, sum(losses) / 8)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        trainer.objective.begin_step([batch])
    assert trainer.objective._divergence == pytest.approx(divergence, rel=1e-9)
    assert trainer.objective.weight(batch) == 8
    found = gradient(model, trainer.objective.loss_sum(batch) / 8)
    assert found == (pytest.approx(expected[0], rel=1e-9), pytest.approx(expected[1], rel=1e-9))


@pytest.mark.parametrize(("size", "accumulated"), [(1, 7), (2, 4), (7, 1)])
def test_a_global_batch_is_the_same_however_it_is_divided(
    size: int, accumulated: int, trainer_of: Any, moved: Any, gradient: Any, tmp_path: Path
) -> None:
    """Micro-batches of one row too: the divergence is that of the global batch."""
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_grad_norm": 0}
    trainer = trainer_of("kto", 7, max_steps=1, **options)
    moved(trainer.model, 0.1)
    trainer.train_dataset.reference -= 9  # a model that has gained, so that there is a divergence
    together = trainer.data_collator([trainer.train_dataset[row] for row in range(7)])
    with torch.no_grad():
        trainer.objective.begin_step([together])
    expected = (*gradient(trainer.model, trainer.objective.loss_sum(together) / 7), trainer.objective._divergence)
    assert expected[2] > 0.1
    trainer.train()
    line = read_log(tmp_path / "out" / "trainer_log.jsonl")[0]
    found = (line["loss"], line["grad_norm"], line["divergence"])
    assert found == tuple(pytest.approx(value, rel=1e-5) for value in expected)


class Rows:
    """Marked answers, the prompts given by letters."""

    def __init__(self, prompts: str) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Any:
        return {
            "prompt_ids": np.array([ord(self.prompts[index])], np.int32),
            "answer_ids": np.array([index, index], np.int32),
            "answer_weights": np.array([0, 1], np.float32),
            "good": True,
            "index": index,
        }


@pytest.mark.parametrize(
    ("prompts", "others"),
    [("abc", [2, 0, 1]), ("aabb", [3, 3, 1, 1]), ("aba", [1, 0, 1]), ("abba", [2, 0, 0, 2]), ("aaab", [3, 3, 3, 2])],
)
def test_the_other_answer_is_one_to_another_prompt(prompts: str, others: list[int]) -> None:
    """The nearest one before it; of rows with prompts of their own the one before, as in TRL."""
    rows = MismatchedRows(Rows(prompts), limit=99)
    assert rows.others.tolist() == others
    assert [rows[index]["other_ids"].tolist() for index in range(len(prompts))] == [[other, other] for other in others]


def test_the_other_answer_is_cut_at_the_limit() -> None:
    row = MismatchedRows(Rows("ab"), limit=2)[0]
    assert (row["other_ids"].tolist(), row["other_weights"].tolist()) == ([1], [0])


def test_one_prompt_alone_is_refused(trainer_of: Any) -> None:
    rows = [{"instruction": "who?", "output": f"{number}", "kto_tag": True} for number in range(3)]
    with pytest.raises(UsageError, match="all 3 rows have the same prompt"):
        trainer_of("kto", rows)


def test_no_row_breaks_its_neighbour(trainer_of: Any, own_loss: Any, moved: Any) -> None:
    """A batch of good answers alone, of bad ones alone, and one row of the longest: sums of what each gives alone."""
    rows = [{"instruction": f"{n}?", "output": "fox " * (1 + n), "kto_tag": n < 3} for n in range(6)]
    trainer = trainer_of("kto", rows)
    moved(trainer.model)
    trainer.objective._divergence = 0.5
    alone = [own_loss(trainer, [row])[0] for row in range(6)]
    assert all(np.isfinite(alone))
    for batch in ([0, 1, 2], [3, 4, 5], [5, 0], range(6)):
        assert own_loss(trainer, batch)[0] == pytest.approx(sum(alone[row] for row in batch) / len(batch), rel=1e-5)


@pytest.mark.slow
def test_evaluation_is_over_the_whole_set(trainer_of: Any, moved: Any, plain_logps: Any, tmp_path: Path) -> None:
    """Its divergence too; and the training's stays."""
    found = []
    for size in (1, 5):
        options = {"val_size": 5, "per_device_eval_batch_size": size, "output_dir": str(tmp_path / str(size))}
        trainer = trainer_of("kto", 10, **options)
        moved(trainer.model)
        trainer.objective._divergence = 123.0
        found.append(trainer.evaluate())
        assert trainer.objective._divergence == 123.0
    rows = [trainer.eval_dataset[row] for row in range(5)]
    with torch.no_grad():
        own = gains(trainer.model.eval(), rows, plain_logps, "answer") - torch.tensor(
            [row["reference"][0] for row in rows]
        )
        other = gains(trainer.model, rows, plain_logps, "other") - torch.tensor([row["reference"][1] for row in rows])
    divergence, good = other.mean().clamp(min=0), torch.tensor([row["good"] for row in rows])
    over = 0.1 * (own - divergence) * torch.where(good, 1, -1)
    expected = {
        "eval_loss": (1 / (1 + torch.exp(over))).mean(),
        "eval_divergence": divergence,
        "eval_rewards/chosen": 0.1 * own[good].mean(),
        "eval_rewards/rejected": 0.1 * own[~good].mean(),
        "eval_rewards/margins": 0.1 * (own[good].mean() - own[~good].mean()),
        "eval_rewards/accuracies": (over > 0).double().mean(),
    }
    for metrics in found:
        assert {name: metrics[name] for name in expected} == {
            name: pytest.approx(value.item(), rel=1e-4, abs=1e-6) for name, value in expected.items()
        }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_in_numbers(method: str, trainer_of: Any, tmp_path: Path) -> None:
    expected = {"full": [0.5, 0.489489, 0.40698], "lora": [0.5, 0.493335, 0.461818]}[method]
    trainer_of("kto", 8, finetuning_type=method, max_steps=3).train()
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl")]
    assert losses[0] == pytest.approx(0.5, rel=1e-6)
    assert losses == [pytest.approx(value, rel=1e-4) for value in expected]
