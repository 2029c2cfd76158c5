"""A transformers Trainer whose checkpoints are whole, whose resume is exact, and which signals stop at whole steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ftcore.api.plan import Plan
from ftcore.errors import Problem, RunError, UsageError
from ftcore.training.batching.streaming_loader import StreamBatches
from ftcore.training.callbacks.progress import ProgressCallback
from ftcore.training.callbacks.signals import InterruptedRunError, StopSignals, shown
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing import state as snapshots
from ftcore.training.checkpointing.disk_space import check_room, checkpoint_bytes, weight_bytes, writing
from ftcore.training.checkpointing.safe_serialization import load_pytree, save_pytree
from ftcore.utils.ownership import named_checkpoints, not_ours

log = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """Overrides what transformers writes into and reads from checkpoints. Whoever makes it sets the attributes.

    Attributes:
        plan: of the run.
        tokenizer: saved beside what was trained.
        reports: closed when the run ends, however it ends.
        signals: entered while the run trains.
    """

    plan: Plan
    tokenizer: Any
    reports: ProgressCallback
    signals: StopSignals
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """See `ftcore.runner.run.Run`."""
    streamed: StreamBatches | None = None
    """The batches, where the training rows are a stream."""
    evaluating = False
    """Whether a checkpoint is written in the middle of an evaluation, which the resume then does first."""
    _saved = _seen = 0
    _postponed = False
    _replaced: tuple[Path, ...] = ()
    """An earlier run's checkpoints, which go when this one has something whole to put in their place."""
    _left: frozenset[Path] = frozenset()
    """Those not written by ft, as named to the user."""

    def train(self, resume_from_checkpoint: Path | str | None = None, **kwargs: Any) -> TrainOutput:
        """Trains, going on from the checkpoint that the plan asks for.

        Args:
            resume_from_checkpoint: instead of the plan's ``resume_from_checkpoint``.

        Raises:
            InterruptedRunError: after SIGTERM or Ctrl-C, when the checkpoint is written.
            RunError: when a loss or gradient is not a number, or a checkpoint cannot be written.
            UsageError: when the checkpoint is another run's.
        """
        self.setting = snapshots.run_fingerprint(self.plan, self.tokenizer, self.train_dataset, self.args.world_size)
        self.resumed = self._start(resume_from_checkpoint or self.plan.training.resume_from_checkpoint)
        self.args.eval_on_start &= self.resumed is None
        if self.args.should_save:
            needed = checkpoint_bytes(self.plan, self.model) + weight_bytes(self.plan, self.model)
            check_room(self.plan.output_dir, needed, "a checkpoint and what was trained")
        try:
            with self.signals:
                output = super().train(str(self.resumed) if self.resumed else None, **kwargs)
        finally:
            self.reports.close()
        if "train_loss" not in output.metrics and self.args.should_save:
            self.reports.say(f"{self.resumed} is the end of this run: no step was left to do")
        return output

    def _start(self, wanted: Path | str | bool | None) -> Path | None:
        """Where all processes go on from: the first one looks, and clears away what is half written."""
        found: list[Path | None] = [None]
        if self.args.should_save:
            directory.clean(self.plan.output_dir)
            found = [_checkpoint(self.plan, self.setting, wanted)]
            if found[0] is not None:
                self.reports.say(f"going on from {found[0]}")
            elif self.plan.training.overwrite_output_dir and wanted in (None, False, "never"):
                self._replaced = tuple(directory.earlier_checkpoints(self.plan.output_dir))
        if self.args.world_size > 1:
            broadcast_object_list(found)
        self._left = frozenset(_not_ours(self.plan.output_dir))  # the plan has named them
        self.add_callback(_Occupied(self.plan.output_dir))
        return found[0]

    # ---- what a stage may keep besides ----

    def extra_state(self) -> dict[str, Any]:
        """What a resume needs beyond weights and optimizer (see `ftcore.training.checkpointing.safe_serialization`);
        empty for nothing."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Puts back what `extra_state` returned, before the first step."""

    # ---- the loop ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.resumed is not None:
            self.add_callback(_Progress(self, self.resumed))
        return super()._inner_training_loop(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True  # a resume of a finished run would take one step more
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After the last step of an epoch this is called twice, and the second call may evaluate.

        The checkpoint waits for it: one that is written before would be gone on from after a kill, and the evaluation
        never made up for.
        """
        step, ends = self.state.global_step, float(self.state.epoch).is_integer()
        first, self._seen = self._seen != step, step
        if first and (ends or step >= self.state.max_steps or self.control.should_epoch_stop):
            self._postponed, self.control.should_save = self.control.should_save, False
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        self.control.should_save |= self._postponed
        self._postponed = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Writes a checkpoint and ends the run where a signal came in, in all processes or in none."""
        number = int(self.signals.received or 0)
        if self.args.world_size > 1:
            number = int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())
        if not number:
            return
        step, name = self.state.global_step, shown(number)
        folder = self.plan.output_dir / f"checkpoint-{step}"
        if folder in self._left:
            return  # it cannot be written where something of others lies, but one step later; the last needs none
        if step and self._saved != step:
            self._save_checkpoint(self.model, None)
        written = f"{folder} is written" if step else "there was nothing to write yet"
        raise InterruptedRunError(f"stopped by {name} at step {step}; {written}; the same command goes on", number)

    # ---- writing ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What the method trained, and the tokenizer with its chat template; by the first process alone."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.plan.method.component.save(self.accelerator.unwrap_model(self.model), folder)
            self.tokenizer.save_pretrained(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        step, folder = self.state.global_step, self.plan.output_dir
        best = folder / f"checkpoint-{self.state.best_global_step}"
        there = best.is_dir() and best not in self._replaced and best not in self._left
        if self.state.best_global_step and (there or self.state.best_global_step == step):
            self.state.best_model_checkpoint = str(best)
        try:
            room = checkpoint_bytes(self.plan, self.model)
            with self.phase("saving"), writing(f"checkpoint-{step}", folder, room):
                self._fill(self._staged(folder, step), step)
        except RunError:
            directory.clean(folder)
            raise
        self._saved = step

    def _staged(self, folder: Path, step: int) -> Path:
        """The folder that the first process made, in all of them."""
        paths = [directory.stage(folder, step) if self.args.should_save else Path()]
        if self.args.world_size > 1:
            broadcast_object_list(paths)
        return paths[0]

    def _fill(self, staged: Path, step: int) -> None:
        """Writes everything into the staged folder, moves it into place, and only then deletes older ones."""
        resumable = not self.args.save_only_model
        if resumable:
            save_pytree(staged, f"random-{self.args.process_index}", snapshots.random_state())
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        self.save_model(str(staged), _internal_call=True)
        if resumable:
            snapshots.save_snapshot(self, staged)
        self._export_callbacks()
        self.state.save_to_json(str(staged / "trainer_state.json"))
        written = directory.commit(staged, step, self.setting, resumable=resumable, versions=snapshots.versions())
        self.drop_replaced(written)
        best = self.state.best_model_checkpoint
        if (limit := self.plan.training.save_total_limit) is not None:
            directory.prune(staged.parent, limit, Path(best) if best else None, last=step)
            self._name_what_stays()

    def drop_replaced(self, written: Path | None = None) -> None:
        """Deletes an earlier run's checkpoints, which a run that starts anew replaces, once something whole is there.

        Args:
            written: this run's first checkpoint; None where what was trained is in place without one.
        """
        for path in self._replaced:
            if path != written and path.is_dir() and not not_ours(path):
                directory.remove(path)
        self._replaced = ()

    def _name_what_stays(self) -> None:
        """Checkpoints in which something of others was put since the run began."""
        found = _not_ours(self.plan.output_dir)
        for path in found.keys() - self._left:
            self.reports.say(f"{path} {found[path]}: it stays")
        self._left = frozenset(found)

    def _export_callbacks(self) -> None:
        """Puts the states of callbacks that have one into the trainer state, as transformers does."""
        states: dict[str, Any] = {}
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = {name: found if len(found) > 1 else found[0] for name, found in states.items()}

    # ---- reading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.plan.method.component.load(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            snapshots.load_snapshot(self, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """`snapshots.load_snapshot` has done it."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            snapshots.set_random_state(load_pytree(Path(checkpoint), f"random-{self.args.process_index}"))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        directory.verify(best)
        self.plan.method.component.load(self.model, best)


class _Occupied(TrainerCallback):
    """Refuses, before the first step, a run that would have to write a checkpoint where something of others lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hint = "move it away, or write another output_dir"
        found = [
            Problem(f"{path} {reason}, and this run would write {path.name} there", hint=hint)
            for path, reason in _not_ours(self.folder).items()
            if _saves_at(int(path.name.rpartition("-")[2]), args, state)
        ]
        if found:
            raise UsageError(found)


def _saves_at(step: int, args: Any, state: Any) -> bool:
    """Whether a run writes a checkpoint after this step; of strategies whose steps nobody knows, it may be any."""
    if args.save_strategy == SaveStrategy.NO or not state.global_step < step <= state.max_steps:
        return False
    return args.save_strategy != SaveStrategy.STEPS or step % state.save_steps == 0 or step == state.max_steps


def _not_ours(output_dir: Path) -> dict[Path, str]:
    """What is named like a checkpoint and may not be replaced -> why."""
    return {path: reason for path in named_checkpoints(output_dir) if (reason := not_ours(path))}


class _Progress(TrainerCallback):
    """Puts back what the training loop sets to zero before it calls this."""

    def __init__(self, trainer: ResumableTrainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if snapshots.load_progress(self.trainer, self.folder):
            metrics = self.trainer._evaluate(None, None)
            self.trainer._determine_best_metric(metrics, None)


def _checkpoint(plan: Plan, setting: directory.RunFingerprint, wanted: Path | str | bool | None) -> Path | None:
    """Where to go on from; None to start anew, which an earlier run's checkpoints forbid unless the file allows it."""
    anew = plan.training.overwrite_output_dir
    if wanted in (True, "auto") or (wanted is None and not anew):
        return directory.find_resumable(plan.output_dir, setting, force=plan.force)
    if wanted not in (None, False, "never"):
        return _given(Path(str(wanted)), setting, force=plan.force)
    earlier = directory.earlier_checkpoints(plan.output_dir)
    if earlier and not anew:
        names = ", ".join(path.name for path in earlier)
        hint = "write overwrite_output_dir: true to replace them, or another output_dir"
        raise UsageError(Problem(f"{plan.output_dir} holds checkpoints of an earlier run: {names}", hint=hint))
    return None


def _given(folder: Path, setting: directory.RunFingerprint, *, force: bool) -> Path:
    """A checkpoint that the user names: whole, resumable and of this run."""
    try:
        manifest = directory.verify(folder)
    except directory.DamagedError as error:
        raise UsageError(Problem(f"resume_from_checkpoint: {error}")) from error
    if not manifest.resumable:
        raise UsageError(
            Problem(f"resume_from_checkpoint: {folder} holds weights only, it was saved by save_only_model")
        )
    directory.check_setting(folder, manifest, setting, force=force)
    return folder
