"""Checkpoints as a user meets them: through ``ft run``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ft_plugins.stages.sft.objective import NextToken
from ftcore.cli import group
from ftcore.errors import RunError, UsageError
from ftcore.training.callbacks.signals import InterruptedRunError
from ftcore.training.checkpointing import directory


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path, rows_file: Path) -> Callable[..., str]:
    """``run("--force", seed=1)``: four steps with a checkpoint every two, into ``out``; what it prints."""
    rows = [{"instruction": f"question {number}", "output": f"answer {number}"} for number in range(8)]
    rows_file.write_text(json.dumps(rows))
    lines = {"model_name_or_path": str(tiny_model_dir), "do_train": True, "dataset": str(rows_file), "max_steps": 4}
    lines |= {"output_dir": str(tmp_path / "out"), "save_steps": 2, "per_device_train_batch_size": 2}
    lines |= {"template": "chatml", "learning_rate": 1e-3, "logging_steps": 1}
    file = tmp_path / "run.yaml"
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))

    def call(*words: str, **options: Any) -> str:
        overrides = [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in options.items()]
        done = CliRunner().invoke(group, ["run", str(file), *overrides, *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return call


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def steps(folder: Path) -> list[str]:
    return [path.name for path in directory.checkpoints(folder)]


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def lose_the_last(folder: Path) -> None:
    """As if the run had been killed after its first checkpoint."""
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "adapter_model.safetensors").unlink()


def test_auto_goes_on_from_the_last_whole_one(run: Callable, out: Path) -> None:
    run()
    expected = weights(out)
    assert steps(out) == ["checkpoint-2", "checkpoint-4"]
    lose_the_last(out)
    assert f"resuming from {out / 'checkpoint-2'}" in run(resume_from_checkpoint="auto")
    assert weights(out) == expected
    assert f"{out / 'checkpoint-4'} is the last step of this run: nothing left to train" in run()
    assert weights(out) == expected


@pytest.mark.slow
def test_a_path_and_never(run: Callable, out: Path, tmp_path: Path) -> None:
    run()
    other = tmp_path / "other"
    again = run(resume_from_checkpoint=str(out / "checkpoint-2"), output_dir=str(other))
    assert f"resuming from {out / 'checkpoint-2'}" in again
    assert weights(other) == weights(out)
    with pytest.raises(UsageError, match="holds checkpoints of an earlier run: checkpoint-2, checkpoint-4"):
        run(resume_from_checkpoint="never")
    assert "resuming from" not in run(resume_from_checkpoint="never", overwrite_output_dir=True, seed=7)
    assert weights(other) != weights(out)


@pytest.mark.slow
def test_limit(run: Callable, out: Path) -> None:
    run(save_steps=1, save_total_limit=2)
    assert steps(out) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.slow
def test_weights_alone(run: Callable, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``save_only_model``: nothing but weights and tokenizer; no resume, but the run can be done again."""
    run(save_only_model=True)
    names = {path.name for path in (out / "checkpoint-4").iterdir()}
    assert not names & {"optimizer.safetensors", "scheduler.json", "random-0.json"}
    assert {"adapter_model.safetensors", "tokenizer.json", "trainer_state.json"} <= names
    expected = weights(out)
    with pytest.raises(UsageError, match=r"holds weights only \(save_only_model\)"):
        run(resume_from_checkpoint=str(out / "checkpoint-4"))
    run(save_only_model=True)
    assert "checkpoint-4 holds weights only (save_only_model) and cannot be resumed" in caplog.text
    assert weights(out) == expected


@pytest.mark.slow
def test_stale_ones_go_first(run: Callable, out: Path) -> None:
    """A run that begins anew where weights of higher steps lie keeps its own."""
    run(save_only_model=True)
    (out / "checkpoint-4").rename(out / "checkpoint-400")
    run(save_steps=1, save_total_limit=1)
    assert steps(out) == ["checkpoint-4"]
    lose = out / "checkpoint-4"
    assert directory.verify(lose).resumable


@pytest.mark.slow
def test_what_changed_is_named_and_force_goes_on(
    run: Callable, out: Path, rows_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The option or file behind other rows, and nothing is touched by a refusal."""
    run()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as caught:
        run(max_samples=7, learning_rate=0.5, template="qwen")
    messages = [str(problem) for problem in caught.value.problems]
    assert messages[0].startswith(f"this run cannot resume from {out / 'checkpoint-4'}; undo the change, write another")
    assert messages[0].endswith("or resume anyway with ft run --force")
    assert any(message.startswith("learning_rate was 0.001, now it is 0.5") for message in messages)
    (rows,) = [message for message in messages if message.startswith("training rows was")]
    assert "max_samples was null, now it is 7" in rows
    rows_file.write_text(rows_file.read_text().replace("answer 3", "another 3"))
    with pytest.raises(UsageError, match=rf"training rows was .*{rows_file.name} was \"\w+\", now it is \"\w+\""):
        run()
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in before if after[path] != before[path]} == set()
    lose_the_last(out)
    caplog.clear()
    assert f"resuming from {out / 'checkpoint-2'}" in run("--force", learning_rate=0.5)
    assert "because of --force: learning_rate was 0.001, now it is 0.5" in caplog.text
    assert "because of --force: training rows was" in caplog.text


def other_weights(file: Path) -> None:
    """One tensor of a file is another one, of the same shape."""
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})


@pytest.mark.slow
def test_other_weights_under_the_same_path_are_named(
    run: Callable, out: Path, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The base model's, then an adapter's on it; the manifests have their digests."""
    base, adapter = (shutil.copytree(tiny_model_dir, tmp_path / name) for name in ("base", "adapter"))
    shutil.rmtree(adapter)
    run(model_name_or_path=str(base), output_dir=str(adapter), save_strategy="no")
    where = {"model_name_or_path": str(base), "adapter_name_or_path": str(adapter), "create_new_adapter": True}
    run(**where)
    noted = json.loads((out / "ft_run.json").read_text())["model"]["files"]
    assert noted.keys() == {"config.json", "model.safetensors"}
    assert directory.verify(out / "checkpoint-2").setting.values["model files"]
    lose_the_last(out)
    for file in (base / "model.safetensors", adapter / "adapter_model.safetensors"):
        other_weights(file)
        with pytest.raises(UsageError, match=r"model files was .*model.safetensors was \"\w{16}\", now it is"):
            run(**where)
    assert f"resuming from {out / 'checkpoint-2'}" in run("--force", **where)
    assert "because of --force: model files was" in caplog.text


@pytest.mark.slow
def test_force_cannot_make_shapes_fit(run: Callable) -> None:
    run()
    with pytest.raises(RunError, match="do not fit this model"):
        run("--force", lora_rank=4)


def test_a_folder_that_a_run_was_killed_in_at_its_start_is_its_own(run: Callable, out: Path) -> None:
    out.mkdir()
    (out / ".ft.lock").touch()
    run()
    assert steps(out) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_two_processes_do_not_share_a_folder(run: Callable, out: Path) -> None:
    hold = (
        "import sys\nfrom pathlib import Path\nfrom ftcore.utils.file_lock import locked\n"
        f"with locked(Path({str(out)!r})):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        message = f"another run is writing to {out}; wait until it ends, or write another output_dir"
        with pytest.raises(RunError, match=message):
            run()
        other.communicate()
    run()


def test_ctrl_c_before_training(run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ftcore.runner.run

    def interrupted(plan: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ftcore.runner.run, "run", interrupted)
    done = CliRunner().invoke(group, ["run", str(tmp_path / "run.yaml")])
    assert done.exit_code == 130
    assert "stopped by Ctrl-C outside of training" in done.output


@pytest.mark.slow
def test_a_run_without_a_log_line_has_nothing_to_draw(run: Callable, out: Path) -> None:
    run(logging_steps=10, plot_loss=True)
    assert not (out / "training_loss.png").exists()


# ---- what is not ft's ----


def lying(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another_trainers(folder: Path) -> dict[str, bytes]:
    """A checkpoint and what was trained by another program; what lies there then."""
    folder.mkdir(parents=True)
    for name in ("trainer_state.json", "optimizer.pt", "model.safetensors"):
        (folder / name).write_text(f"weeks of work: {name}")
    return lying(folder)


@pytest.mark.slow
def test_starting_anew_leaves_what_others_wrote(run: Callable, out: Path, tmp_path: Path) -> None:
    """A checkpoint of another trainer, a link, and files of the names that a run writes; all of it is named."""
    theirs = another_trainers(out / "checkpoint-7")
    elsewhere = another_trainers(tmp_path / "elsewhere")
    (out / "checkpoint-9").symlink_to(tmp_path / "elsewhere")
    for name in ("adapter_config.json", "all_results.json", "thesis.txt"):
        (out / name).write_text("before")
    said = run(overwrite_output_dir=True)
    assert f"warning: {out}/checkpoint-7 was not written by ft: it stays" in said
    assert f"warning: {out}/checkpoint-9 is a symbolic link: it stays" in said
    assert (
        f"warning: {out} holds files that no run of ft wrote: adapter_config.json, all_results.json, thesis.t" in said
    )
    assert steps(out) == ["checkpoint-2", "checkpoint-4", "checkpoint-7"]
    for _ in range(2):
        assert (lying(out / "checkpoint-7"), lying(tmp_path / "elsewhere")) == (theirs, elsewhere)
        assert (out / "checkpoint-9").is_symlink()
        for name in ("adapter_config.json.before-ft", "all_results.json.before-ft", "thesis.txt"):
            assert (out / name).read_text() == "before"
        assert json.loads((out / "all_results.json").read_text())["train_loss"] > 0
        run(overwrite_output_dir=True, save_total_limit=1, seed=3)
    assert steps(out) == ["checkpoint-4", "checkpoint-7"]


@pytest.mark.slow
def test_an_earlier_runs_checkpoints_stay_until_there_is_a_whole_one(
    run: Callable, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails before its first checkpoint costs nothing; one without checkpoints replaces them at its end."""
    run()
    before = {name: content for name, content in lying(out).items() if name.startswith("checkpoint-")}
    assert len(before) > 10
    anew = {"overwrite_output_dir": True, "seed": 7, "save_steps": 3}

    def failing(*_: Any) -> Any:
        raise RunError("no")

    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "loss_sum", failing)
        with pytest.raises(RunError):
            run(**anew)
    assert {name: content for name, content in lying(out).items() if name.startswith("checkpoint-")} == before
    assert json.loads((out / "ft_run.json").read_text())["cause"] == "no"
    seen = []
    real = directory.commit

    def commit(*args: Any, **more: Any) -> Path:
        seen.append(steps(out))
        return real(*args, **more)

    monkeypatch.setattr(directory, "commit", commit)
    run(**anew)
    assert seen == [["checkpoint-2", "checkpoint-4"], ["checkpoint-3"]]
    assert steps(out) == ["checkpoint-3", "checkpoint-4"]
    run(**anew | {"save_strategy": "no"})
    assert steps(out) == []


@pytest.mark.slow
def test_a_checkpoint_that_is_in_the_way_is_an_error_before_the_first_step(run: Callable, out: Path) -> None:
    """What the run would write is known: every second step and the last, not the third."""
    for step in (2, 3, 4):
        another_trainers(out / f"checkpoint-{step}")
    (out / "all_results.json").write_text("theirs")
    before = lying(out)
    with pytest.raises(UsageError) as error:
        run(overwrite_output_dir=True)
    assert [str(problem) for problem in error.value.problems] == [
        f"{out}/checkpoint-{step} was not written by ft, and this run would write a checkpoint there; "
        "move it away, or write another output_dir"
        for step in (2, 4)
    ]
    assert {name: content for name, content in lying(out).items() if name in before} == before
    assert not (out / "adapter_model.safetensors").exists()
    run(overwrite_output_dir=True, save_strategy="no")
    assert (out / "all_results.json.before-ft").read_text() == "theirs"
    del before["all_results.json"]
    assert {name: content for name, content in lying(out).items() if name in before} == before


@pytest.mark.slow
def test_a_signal_does_not_write_over_what_others_wrote(
    run: Callable, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heeded one step later."""
    theirs = another_trainers(out / "checkpoint-1")
    real, calls = NextToken.loss_sum, []

    def stopping(self: NextToken, batch: Any) -> Any:
        if not calls:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append(1)
        return real(self, batch)

    monkeypatch.setattr(NextToken, "loss_sum", stopping)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM at step 2"):
        run(overwrite_output_dir=True, save_steps=4)
    assert steps(out) == ["checkpoint-1", "checkpoint-2"]
    assert lying(out / "checkpoint-1") == theirs


@pytest.mark.slow
def test_a_killed_run_is_told_by_the_next(run: Callable, out: Path) -> None:
    """Its manifest says running, and its process is gone; an earlier version's, which notes no process, too."""
    run(save_strategy="no")
    manifest = json.loads((out / "ft_run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["process"]["pid"] == os.getpid()
    killed = manifest | {"status": "running", "phase": "training", "process": manifest["process"] | {"start": "1"}}
    for left in (killed, {name: value for name, value in killed.items() if name != "process"}):
        (out / "ft_run.json").write_text(json.dumps(left))
        said = run(save_strategy="no", do_train=False, do_eval=True, val_size=2)
        assert (
            f"warning: {out}: the run started at {manifest['started_at']} ended without a record while training" in said
        )
