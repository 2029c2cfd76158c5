"""The stages against TRL's trainers on the same batch: loss and gradient norm. Needs trl 1.16 and datasets."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ftcore.runner.run import new_trainer

pytestmark = pytest.mark.slow

LOSSES = (
    "sigmoid hinge ipo nca_pair bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm".split()
)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL warns, and reports home, at every construction."""
    for name in ("HF_HUB_OFFLINE", "TRL_EXPERIMENTAL_SILENCE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl", minversion="1.16", exc_type=ImportError)
        yield


@pytest.fixture
def both(stage_run: Any, tmp_path: Path, moved: Any, own_loss: Any, gradient: Any) -> Any:
    """``both("dpo", make, exact, **options)``: loss and gradient norm of ours and of the trainer that ``make`` makes.

    Both start alike, so that their references are the same, and are moved alike.
    """

    def compare(stage: str, make: Any, exact: float, rows: int = 6, **options: Any) -> None:
        run = stage_run(stage, rows, **options)
        copied = copy.deepcopy(run.model)
        ours = new_trainer(run)
        base = {"output_dir": str(tmp_path / "trl"), "report_to": "none", "use_cpu": True, "bf16": False}
        base |= {"gradient_checkpointing": False, "per_device_train_batch_size": rows, "max_length": None}
        theirs = make(copied, ours, base | {"disable_tqdm": True})
        moved(ours.model)
        theirs.model.load_state_dict(ours.model.state_dict(), strict=False)
        with torch.no_grad():
            ours.objective.begin_step([ours.data_collator([ours.train_dataset[row] for row in range(rows)])])
        batch = theirs.data_collator(list(theirs.train_dataset))
        expected = gradient(theirs.model, theirs.compute_loss(theirs.model, batch))
        found = own_loss(ours, range(rows))
        print(stage, options, "ours", found, "trl", expected)
        assert found == tuple(pytest.approx(value, rel=exact) for value in expected)

    return compare


def prepared(kind: Any) -> Any:
    """TRL's trainer over rows that are tokens already."""
    return type(kind.__name__, (kind,), {"_prepare_dataset": lambda self, rows, *args, **kwargs: rows})


def trained(ids: Any, weights: Any) -> list[int]:
    """TRL scores every token of an answer; the line end after it is not trained here."""
    assert np.all(np.diff(weights) <= 0)
    return ids[weights > 0].tolist()


def rows_of(trainer: Any, make: Any) -> Any:
    from datasets import Dataset

    return Dataset.from_list([make(trainer.train_dataset[row]) for row in range(len(trainer.train_dataset))])


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", [*LOSSES, "robust", "exo_pair", "ld_alpha"])
def test_dpo(name: str, method: str, both: Any) -> None:
    from trl import DPOConfig, DPOTrainer

    smoothing = 0.1 if name in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    alpha = 0.4 if name == "ld_alpha" else None
    loss = "sigmoid" if alpha else name
    fields = {"loss_type": [loss], "beta": 0.3, "label_smoothing": smoothing, "ld_alpha": alpha}

    def make(model: Any, ours: Any, base: Any) -> Any:
        rows = rows_of(
            ours,
            lambda row: {
                "prompt_ids": row["prompt_ids"].tolist(),
                "chosen_ids": trained(row["chosen_ids"], row["chosen_weights"]),
                "rejected_ids": trained(row["rejected_ids"], row["rejected_weights"]),
            },
        )
        frozen = {"ref_model": copy.deepcopy(model)} if method == "full" else {}
        arguments = DPOConfig(**base, **fields)
        return prepared(DPOTrainer)(
            model=model, args=arguments, train_dataset=rows, processing_class=copy.deepcopy(ours.tokenizer), **frozen
        )

    options = {"pref_loss": loss, "pref_beta": 0.3, "dpo_label_smoothing": smoothing, "ld_alpha": alpha}
    both("dpo", make, 1e-4, finetuning_type=method, **options)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.6, 1.9)])
def test_kto(method: str, weights: tuple[float, float], both: Any) -> None:
    from trl import KTOConfig, KTOTrainer

    def make(model: Any, ours: Any, base: Any) -> Any:
        rows = rows_of(
            ours,
            lambda row: {
                "prompt_ids": row["prompt_ids"].tolist(),
                "completion_ids": trained(row["answer_ids"], row["answer_weights"]),
                "KL_completion_ids": trained(row["other_ids"], row["other_weights"]),
                "label": row["good"],
            },
        )
        frozen = {"ref_model": copy.deepcopy(model)} if method == "full" else {}
        arguments = KTOConfig(**base, beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
        return prepared(KTOTrainer)(
            model=model, args=arguments, train_dataset=rows, processing_class=copy.deepcopy(ours.tokenizer), **frozen
        )

    options = {"pref_beta": 0.3, "kto_chosen_weight": weights[0], "kto_rejected_weight": weights[1]}
    both("kto", make, 1e-4, finetuning_type=method, **options)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_rm(method: str, dtype: torch.dtype, exact: float, both: Any) -> None:
    from trl import RewardConfig, RewardTrainer

    def make(model: Any, ours: Any, base: Any) -> Any:
        def whole(row: Any) -> dict[str, list[int]]:
            return {
                f"{name}_ids": [*row["prompt_ids"].tolist(), *row[f"{name}_ids"].tolist()]
                for name in ("chosen", "rejected")
            }

        return prepared(RewardTrainer)(
            model=model,
            args=RewardConfig(**base),
            train_dataset=rows_of(ours, whole),
            processing_class=copy.deepcopy(ours.tokenizer),
        )

    both("rm", make, exact, finetuning_type=method, dtype=dtype)


def test_orpo_and_simpo() -> None:
    """The odds ratio's part of orpo, whose likelihood TRL takes over prompts too, and simpo with smoothing."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    from ft_plugins.stages.dpo.losses import LOSSES as OURS
    from ft_plugins.stages.dpo.losses import Knobs
    from ft_plugins.stages.dpo.objective import PairScores

    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (-3 * torch.rand(9, generator=generator, dtype=torch.float64) for _ in range(2))
    length, none = torch.full((9,), 7.0, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    scores = PairScores(7 * chosen, 7 * rejected, none, none, 7 * chosen, 7 * rejected, length, length)
    device = SimpleNamespace(device=torch.device("cpu"))
    stand_in = SimpleNamespace(beta=0.4, alpha=0.0, loss_type="simpo", simpo_gamma=0.7, label_smoothing=0.1)
    stand_in.accelerator = device
    expected = CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0]
    torch.testing.assert_close(OURS["simpo"](scores, Knobs(0.4, 0.1, 0.7)), expected, rtol=1e-12, atol=0)
    odds = ORPOTrainer.odds_ratio_loss(stand_in, chosen, rejected)[0].double()
    torch.testing.assert_close(OURS["orpo"](scores, Knobs(0.4)) + chosen, -odds, rtol=1e-5, atol=1e-6)
