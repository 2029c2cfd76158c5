"""Experiment trackers: what they were told is read back from what they wrote; none of them talks to a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftcore.config.validation.trackers import TRACKERS
from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log

OPTIONS: dict[str, Any] = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "val_size": 2}


@pytest.fixture
def tracked(trainer_of: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``tracked(name)`` trains, reporting to that tracker, and returns the log's losses and evaluation losses."""

    def run(name: str) -> tuple[list[float], list[float]]:
        pytest.importorskip(TRACKERS[name][0])
        monkeypatch.chdir(tmp_path)
        trainer_of(tokens([9, 8, 7, 6]), tokens([7, 5]), report_to=name, **OPTIONS).train()
        lines = read_log(tmp_path / "out" / "trainer_log.jsonl")
        return tuple([line[key] for line in lines if key in line] for key in ("loss", "eval_loss"))

    return run


def test_tensorboard(tracked: Any, tmp_path: Path) -> None:
    losses, evaluations = tracked("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()

    def values(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert values("train/loss") == [(step + 1, pytest.approx(loss, rel=1e-6)) for step, loss in enumerate(losses)]
    assert values("eval/loss") == [(3, pytest.approx(evaluations[0], rel=1e-6))]
    assert [value for _, value in values("train/learning_rate")] == [
        pytest.approx(rate) for rate in (0.01, 0.02 / 3, 0.01 / 3)
    ]
    assert {"train/grad_norm", "train/throughput", "train/num_input_tokens_seen"} <= {*events.Tags()["scalars"]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb(tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    losses, evaluations = tracked("wandb")
    import wandb

    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["train/loss"] == pytest.approx(losses[-1])
    assert summary["eval/loss"] == pytest.approx(evaluations[-1])
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    losses, evaluations = tracked("mlflow")
    import mlflow

    mlflow.end_run()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [
        (step + 1, pytest.approx(loss)) for step, loss in enumerate(losses)
    ]
    assert run.data.metrics["eval_loss"] == pytest.approx(evaluations[-1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_swanlab(tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    tracked("swanlab")
    assert list((tmp_path / "swanlog").glob("*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio(tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    tracked("trackio")
    assert list((tmp_path / "trackio").glob("*.db"))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_is_an_error_before_anything_is_loaded(
    name: str, plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftcore.config.validation.trackers

    monkeypatch.setattr(ftcore.config.validation.trackers, "find_spec", lambda module: None)
    with pytest.raises(UsageError) as caught:
        plan_of(report_to=name)
    package = {"swanlab": '"swanlab<0.8"'}.get(name, TRACKERS[name][1])
    assert str(caught.value) == (
        f"command line: report_to: {name} is not installed; pip install {package}, or write report_to: none"
    )


def test_a_version_that_transformers_cannot_talk_to(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ftcore.config.validation.trackers

    monkeypatch.setattr(ftcore.config.validation.trackers, "find_spec", lambda module: module)
    monkeypatch.setattr(ftcore.config.validation.trackers, "version", lambda name: "0.10.3")
    with pytest.raises(UsageError, match=r'transformers does not support swanlab 0.10.3; pip install "swanlab<0.8"'):
        plan_of(report_to="swanlab")


def test_an_unknown_tracker_is_refused(plan_of: Any) -> None:
    with pytest.raises(
        UsageError, match="report_to: unknown tracker 'wandbb'; write none, all, or one of tensorboard, wandb"
    ):
        plan_of(report_to="wandbb")


def test_the_table_is_that_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert {*TRACKERS} == {*INTEGRATION_TO_CALLBACK}
