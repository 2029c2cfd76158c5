"""A transformers Trainer with atomic checkpoints and exact resume; signals stop it after a whole step."""

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
    """Overrides what transformers writes to and reads from checkpoints. The subclass sets the attributes.

    Attributes:
        plan: of the run.
        tokenizer: saved with the trained weights.
        reports: closed when the run ends, also on errors.
        signals: handles signals during training.
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
    """Whether an evaluation is running. A resume from a checkpoint of that moment evaluates first."""
    _saved = _seen = 0
    _postponed = False
    _replaced: tuple[Path, ...] = ()
    """Checkpoints of an earlier run, deleted after this run has written its first one."""
    _left: frozenset[Path] = frozenset()
    """Checkpoints not written by ft, as reported to the user."""

    def train(self, resume_from_checkpoint: Path | str | None = None, **kwargs: Any) -> TrainOutput:
        """Trains, resuming from the checkpoint that the plan selects.

        Args:
            resume_from_checkpoint: instead of the plan's ``resume_from_checkpoint``.

        Raises:
            InterruptedRunError: after SIGTERM or Ctrl-C, once the checkpoint is written.
            RunError: a loss or gradient is not finite, or a checkpoint cannot be written.
            UsageError: the checkpoint is that of another run.
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
            self.reports.info(f"{self.resumed} is the last step of this run: nothing left to train")
        return output

    def _start(self, wanted: Path | str | bool | None) -> Path | None:
        """The checkpoint from which all processes resume. The first process selects it, and deletes incomplete ones."""
        found: list[Path | None] = [None]
        if self.args.should_save:
            directory.clean(self.plan.output_dir)
            found = [_checkpoint(self.plan, self.setting, wanted)]
            if found[0] is not None:
                self.reports.info(f"resuming from {found[0]}")
            elif self.plan.training.overwrite_output_dir and wanted in (None, False, "never"):
                self._replaced = tuple(directory.earlier_checkpoints(self.plan.output_dir))
        if self.args.world_size > 1:
            broadcast_object_list(found)
        self._left = frozenset(_not_ours(self.plan.output_dir))  # the plan has reported them
        self.add_callback(_Occupied(self.plan.output_dir))
        return found[0]

    # ---- state of a stage ----

    def extra_state(self) -> dict[str, Any]:
        """State that a resume needs besides weights and optimizer; empty for none. Types:
        `ftcore.training.checkpointing.safe_serialization`."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `extra_state` returned, before the first step."""

    # ---- the loop ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.resumed is not None:
            self.add_callback(_Progress(self, self.resumed))
        return super()._inner_training_loop(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True  # a resumed finished run would take one more step
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Saves after the evaluation at the end of an epoch.

        transformers calls this twice after the last step of an epoch, and the second call may evaluate. A checkpoint
        written by the first call would, after a kill, resume behind the evaluation, which would be lost.
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
        """Writes a checkpoint and ends the run if any process has received a signal."""
        number = int(self.signals.received or 0)
        if self.args.world_size > 1:
            number = int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())
        if not number:
            return
        step, name = self.state.global_step, shown(number)
        folder = self.plan.output_dir / f"checkpoint-{step}"
        if folder in self._left:
            return  # a foreign folder has this name: the run stops one step later, or ends
        if step and self._saved != step:
            self._save_checkpoint(self.model, None)
        written = f"{folder} is written" if step else "no checkpoint was written yet"
        raise InterruptedRunError(
            f"stopped by {name} at step {step}; {written}; run the same command to resume", number
        )

    # ---- writing ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the trained weights, and the tokenizer with its chat template; in the first process only."""
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
        """The staging folder, created by the first process, in all processes."""
        paths = [directory.stage(folder, step) if self.args.should_save else Path()]
        if self.args.world_size > 1:
            broadcast_object_list(paths)
        return paths[0]

    def _fill(self, staged: Path, step: int) -> None:
        """Writes the checkpoint into the staging folder, renames the folder, and deletes older ones after that."""
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
        """Deletes the checkpoints of an earlier run with ``overwrite_output_dir``, once this run has saved something.

        Args:
            written: this run's first checkpoint; None where it saved its trained weights without one.
        """
        for path in self._replaced:
            if path != written and path.is_dir() and not not_ours(path):
                directory.remove(path)
        self._replaced = ()

    def _name_what_stays(self) -> None:
        """Reports checkpoints into which others have put files since the run started."""
        found = _not_ours(self.plan.output_dir)
        for path in found.keys() - self._left:
            self.reports.info(f"{path} {found[path]}, and is not deleted")
        self._left = frozenset(found)

    def _export_callbacks(self) -> None:
        """Stores the state of callbacks in the trainer state, as transformers does."""
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
        """Does nothing: `snapshots.load_snapshot` loads the scaler."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            snapshots.set_random_state(load_pytree(Path(checkpoint), f"random-{self.args.process_index}"))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        directory.verify(best)
        self.plan.method.component.load(self.model, best)


class _Occupied(TrainerCallback):
    """Refuses a run, before its first step, if one of its checkpoints would replace a folder of others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hint = "move it away, or write another output_dir"
        found = [
            Problem(f"{path} {reason}, and this run would write a checkpoint there", hint=hint)
            for path, reason in _not_ours(self.folder).items()
            if _saves_at(int(path.name.rpartition("-")[2]), args, state)
        ]
        if found:
            raise UsageError(found)


def _saves_at(step: int, args: Any, state: Any) -> bool:
    """Whether a run may write a checkpoint after this step; any step with strategies other than ``steps``."""
    if args.save_strategy == SaveStrategy.NO or not state.global_step < step <= state.max_steps:
        return False
    return args.save_strategy != SaveStrategy.STEPS or step % state.save_steps == 0 or step == state.max_steps


def _not_ours(output_dir: Path) -> dict[Path, str]:
    """Paths named like checkpoints that must not be replaced -> the reason."""
    return {path: reason for path in named_checkpoints(output_dir) if (reason := not_ours(path))}


class _Progress(TrainerCallback):
    """Restores progress after the training loop has reset it."""

    def __init__(self, trainer: ResumableTrainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if snapshots.load_progress(self.trainer, self.folder):
            metrics = self.trainer._evaluate(None, None)
            self.trainer._determine_best_metric(metrics, None)


def _checkpoint(plan: Plan, setting: directory.RunFingerprint, wanted: Path | str | bool | None) -> Path | None:
    """The checkpoint to resume from; None for a new run.

    Raises:
        UsageError: a new run, and the folder holds checkpoints that ``overwrite_output_dir`` does not allow to replace.
    """
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
    """The checkpoint that the user names, after checks that it is whole, resumable and of this run."""
    try:
        manifest = directory.verify(folder)
    except directory.DamagedError as error:
        raise UsageError(Problem(f"resume_from_checkpoint: {error}")) from error
    if not manifest.resumable:
        raise UsageError(Problem(f"resume_from_checkpoint: {folder} holds weights only (save_only_model)"))
    directory.check_setting(folder, manifest, setting, force=force)
    return folder
