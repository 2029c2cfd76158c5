"""dpo: every loss against its paper in float64, the reference, the trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ft_plugins.stages.dpo.losses import LOSSES, Knobs
from ft_plugins.stages.dpo.objective import PairScores
from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nll(x: float) -> float:
    """``-log sigmoid(x)``."""
    return math.log1p(math.exp(-x))


def smoothed(x: float, e: float) -> float:
    return (1 - e) * nll(x) + e * nll(-x)


def log_odds(x: float) -> float:
    return x - math.log(1 - math.exp(x))


def by_hand(name: str, c: float, r: float, lc: float, lr: float, n: float, m: float, k: Knobs) -> float:
    """A pair's loss as its paper writes it.

    Args:
        name: of the loss.
        c, r: log-ratios of chosen and rejected.
        lc, lr: log-probabilities.
        n, m: lengths.
        k: the knobs.
    """
    b, e = k.beta, k.smoothing
    d = b * (c - r)
    return {
        "sigmoid": lambda: smoothed(d, e),
        "robust": lambda: ((1 - e) * nll(d) - e * nll(-d)) / (1 - 2 * e),
        "hinge": lambda: max(0.0, 1 - d),
        "ipo": lambda: (c / n - r / m - 1 / (2 * b)) ** 2,
        "sigmoid_norm": lambda: nll(b * (c / n - r / m)),
        "exo_pair": lambda: sigma(d) * math.log(sigma(d) / (1 - e)) + sigma(-d) * math.log(sigma(-d) / e),
        "nca_pair": lambda: nll(b * c) + 0.5 * nll(-b * c) + 0.5 * nll(-b * r),
        "bco_pair": lambda: nll(b * c) + nll(-b * r),
        "sppo_hard": lambda: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
        "apo_zero": lambda: 1 - sigma(b * c) + sigma(b * r),
        "apo_down": lambda: sigma(b * c) + 1 - sigma(d),
        "discopop": lambda: (1 - sigma(d / k.tau)) * nll(d) + sigma(d / k.tau) * math.exp(-d),
        "sft": lambda: -lc,
        "orpo": lambda: -lc / n + b * nll(log_odds(lc / n) - log_odds(lr / m)),
        "simpo": lambda: smoothed(b * (lc / n - lr / m) - k.gamma, e),
    }[name]()


LC, LR = [-12.0, -30.5, -7.25, -18.0], [-15.0, -21.0, -9.5, -40.0]
RC, RR = [-14.0, -29.0, -8.0, -18.5], [-14.5, -24.0, -8.75, -35.0]
N, M = [6.0, 11.0, 4.0, 9.0], [7.0, 8.0, 5.0, 20.0]


def scores() -> PairScores:
    def of(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return PairScores(of(LC), of(LR), of(RC), of(RR), of(LC), of(LR), of(N), of(M))


GAINS = [(c - rc, r - rr) for c, r, rc, rr in zip(LC, LR, RC, RR, strict=True)]


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("kto_pair", "aot", "aot_unpaired")])
@pytest.mark.parametrize("knobs", [Knobs(0.1, 0.05), Knobs(0.5, 0.3, 1.5, 0.2)])
def test_losses_are_the_papers(name: str, knobs: Knobs) -> None:
    found = LOSSES[name](scores(), knobs).tolist()
    expected = [by_hand(name, *GAINS[i], LC[i], LR[i], N[i], M[i], knobs) for i in range(4)]
    assert found == [pytest.approx(value, rel=1e-12) for value in expected]


def test_losses_that_compare_pairs() -> None:
    """Each side against the other's mean gain; quantiles against quantiles."""
    knobs = Knobs(0.3, 0.1)
    chosen, rejected = [gain[0] for gain in GAINS], [gain[1] for gain in GAINS]
    over, under = max(0, sum(chosen) / 4), max(0, sum(rejected) / 4)
    expected = [
        (2 - sigma(0.3 * (c - under)) - sigma(0.3 * (over - r))) / 2 for c, r in zip(chosen, rejected, strict=True)
    ]
    assert LOSSES["kto_pair"](scores(), knobs).tolist() == [pytest.approx(value, rel=1e-12) for value in expected]
    margins = zip(
        sorted(c - r for c, r in zip(LC, LR, strict=True)),
        sorted(c - r for c, r in zip(RC, RR, strict=True)),
        strict=True,
    )
    expected = [smoothed(0.3 * (own - theirs), 0.1) for own, theirs in margins]
    assert LOSSES["aot"](scores(), knobs).tolist() == [pytest.approx(value, rel=1e-12) for value in expected]
    sides = zip(sorted(chosen), sorted(rejected), strict=True)
    expected = [smoothed(0.3 * (c - r), 0.1) for c, r in sides]
    assert LOSSES["aot_unpaired"](scores(), knobs).tolist() == [pytest.approx(value, rel=1e-12) for value in expected]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "options", [{}, {"ld_alpha": 0.3}, {"pref_ftx": 0.5}, {"pref_loss": "ipo"}, {"pref_loss": "sft"}]
)
def test_loss_and_gradient_in_float64(
    method: str, options: Any, trainer_of: Any, moved: Any, own_loss: Any, plain_logps: Any, gradient: Any
) -> None:
    """Row by row through plain transformers, with a model that has moved away from its reference."""
    trainer = trainer_of("dpo", 6, dtype=torch.float64, finetuning_type=method, **options)
    model, rows = trainer.model, [trainer.train_dataset[row] for row in range(6)]
    sides = [
        (row["prompt_ids"], row[f"{name}_ids"], row[f"{name}_weights"])
        for row in rows
        for name in ("chosen", "rejected")
    ]

    def logps() -> list[torch.Tensor]:
        return [plain_logps(model, prompt, answer)[torch.tensor(weights) > 0] for prompt, answer, weights in sides]

    with torch.no_grad():
        before = logps()
    moved(model)
    alpha, name = options.get("ld_alpha", 1.0), options.get("pref_loss", "sigmoid")
    own, losses, tokens = logps(), [], 0
    for row in range(6):
        pair = range(2 * row, 2 * row + 2)
        shared = min(len(own[side]) for side in pair)
        ld = [
            [part[side][:shared].sum() + alpha * part[side][shared:].sum() for side in pair] for part in (own, before)
        ]
        c, r = ld[0][0] - ld[1][0], ld[0][1] - ld[1][1]
        mean = own[pair[0]].mean()
        loss = {
            "sigmoid": torch.log1p(torch.exp(-0.1 * (c - r))),
            "ipo": (c / len(own[pair[0]]) - r / len(own[pair[1]]) - 5) ** 2,
            "sft": -own[pair[0]].sum(),
        }[name]
        losses.append(loss - options.get("pref_ftx", 0) * mean)
        tokens += len(own[pair[0]])
    expected = gradient(model, sum(losses) / (tokens if name == "sft" else 6))
    assert own_loss(trainer, range(6)) == (pytest.approx(expected[0], rel=1e-9), pytest.approx(expected[1], rel=1e-9))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_in_numbers(method: str, trainer_of: Any, tmp_path: Path) -> None:
    """It begins at log 2; a change of any of these numbers is a change of what is trained."""
    expected = {"full": [0.693147, 0.746653, 0.566934], "lora": [0.693147, 0.696816, 0.600595]}[method]
    trainer_of("dpo", 8, finetuning_type=method, max_steps=3).train()
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl")]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses == [pytest.approx(value, rel=1e-4) for value in expected]


@pytest.mark.parametrize(("size", "accumulated"), [(1, 7), (3, 3), (7, 1)])
@pytest.mark.parametrize("loss", ["sigmoid", "sft"])
def test_a_global_batch_is_the_same_however_it_is_divided(
    size: int, accumulated: int, loss: str, trainer_of: Any, moved: Any, own_loss: Any, tmp_path: Path
) -> None:
    """Seven pairs, the last micro-batch short: the mean over pairs, or for sft over the chosen answers' tokens."""
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_grad_norm": 0}
    trainer = trainer_of("dpo", 7, pref_loss=loss, max_steps=1, **options)
    moved(trainer.model)
    expected = own_loss(trainer, range(7))
    trainer.train()
    line = read_log(tmp_path / "out" / "trainer_log.jsonl")[0]
    assert (line["loss"], line["grad_norm"]) == tuple(pytest.approx(value, rel=1e-5) for value in expected)


@pytest.mark.slow
def test_metrics(trainer_of: Any, moved: Any, plain_logps: Any, tmp_path: Path) -> None:
    """Means over the evaluation's pairs, by plain transformers; the batches do not matter."""
    found = []
    for size in (2, 5):
        trainer = trainer_of(
            "dpo", 9, val_size=5, per_device_eval_batch_size=size, output_dir=str(tmp_path / str(size))
        )
        rows = [trainer.eval_dataset[row] for row in range(5)]

        def logps(name: str, trainer: Any = trainer, rows: Any = rows) -> torch.Tensor:
            with torch.no_grad():
                each = [
                    plain_logps(trainer.model.eval(), row["prompt_ids"], row[f"{name}_ids"])
                    * torch.tensor(row[f"{name}_weights"])
                    for row in rows
                ]
            return torch.stack([one.sum() for one in each]).double()

        before = [logps(name) for name in ("chosen", "rejected")]
        moved(trainer.model)
        after = [logps(name) for name in ("chosen", "rejected")]
        rewards = [0.1 * (new - old) for new, old in zip(after, before, strict=True)]
        expected = {
            "eval_loss": torch.log1p(torch.exp(rewards[1] - rewards[0])).mean(),
            "eval_rewards/chosen": rewards[0].mean(),
            "eval_rewards/rejected": rewards[1].mean(),
            "eval_rewards/margins": (rewards[0] - rewards[1]).mean(),
            "eval_rewards/accuracies": (rewards[0] > rewards[1]).double().mean(),
            "eval_logps/chosen": after[0].mean(),
            "eval_logps/rejected": after[1].mean(),
        }
        metrics = trainer.evaluate()
        assert {name: metrics[name] for name in expected} == {
            name: pytest.approx(value.item(), rel=1e-4) for name, value in expected.items()
        }
        found.append([metrics[name] for name in expected])
    assert found[0] == [pytest.approx(value, rel=1e-5) for value in found[1]]


def test_fillers_change_nothing(trainer_of: Any, moved: Any) -> None:
    """Where processes share an epoch, and where a loss compares pairs."""
    from ftcore.training.batching.samplers import Rows

    for loss in ("sigmoid", "aot", "sft"):
        trainer = trainer_of("dpo", 4, pref_loss=loss)
        moved(trainer.model)
        rows = Rows(trainer.train_dataset)
        alone = trainer.data_collator([rows[0], rows[1]])
        filled = trainer.data_collator([rows[0], rows[-3], rows[1]])
        assert trainer.objective.weight(filled) == trainer.objective.weight(alone)
        assert trainer.objective.loss_sum(filled).item() == pytest.approx(
            trainer.objective.loss_sum(alone).item(), rel=1e-6
        )
        only = trainer.data_collator([rows[-3]])
        assert (trainer.objective.weight(only), trainer.objective.loss_sum(only).item()) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pref_loss": "hinge", "dpo_label_smoothing": 0.1}, "pref_loss hinge does not use dpo_label_smoothing"),
        ({"simpo_gamma": 1.0}, "pref_loss sigmoid does not use simpo_gamma"),
        ({"discopop_tau": 1.0}, "pref_loss sigmoid does not use discopop_tau"),
        ({"pref_loss": "orpo", "ref_model": "x"}, "pref_loss orpo does not use ref_model"),
        ({"pref_loss": "orpo", "pref_ftx": 0.1}, "pref_loss orpo does not use pref_ftx"),
        ({"pref_loss": "exo_pair"}, "pref_loss exo_pair needs dpo_label_smoothing above 0"),
        ({"ref_model": "nowhere"}, "model 'nowhere' does not exist"),
        ({"train_on_prompt": True}, "train_on_prompt is true, and stage 'dpo' compares answers"),
    ],
)
def test_options_that_do_not_go_together(options: Any, message: str, stage_run: Any) -> None:
    with pytest.raises(UsageError, match=message):
        stage_run("dpo", 2, **options)


@pytest.mark.parametrize("loss", ["sigmoid", "aot"])
def test_memory_that_does_not_suffice(loss: str, trainer_of: Any, moved: Any, tmp_path: Path) -> None:
    """Pairs are done fewer at a time where that is the same loss; a batch that compares its pairs stays whole."""
    from ftcore.errors import RunError

    trainer = trainer_of("dpo", 8, pref_loss=loss, max_steps=1)
    moved(trainer.model)
    expected = (
        trainer.objective.loss_sum(trainer.data_collator([trainer.train_dataset[row] for row in range(4)])).item() / 4
    )
    honest = trainer.objective.loss_sum

    def short(batch: Any) -> torch.Tensor:
        if len(batch["index"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return honest(batch)

    trainer.objective.loss_sum = short
    if loss == "aot":
        with pytest.raises(RunError, match="out of memory"):
            trainer.train()
        return
    trainer.train()
    assert read_log(tmp_path / "out" / "trainer_log.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-5)
