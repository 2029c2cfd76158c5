"""Checkpoints of a run: which one a run resumes from, and writing them whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from ftcore.api.plan import Plan
from ftcore.errors import Problem, RunError, UsageError
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing import state as snapshots
from ftcore.training.checkpointing.disk_space import check_room, checkpoint_bytes, weight_bytes, writing
from ftcore.training.checkpointing.safe_serialization import load_pytree, save_pytree
from ftcore.utils.ownership import named_checkpoints, not_ours

if TYPE_CHECKING:
    from ftcore.training.context import CheckpointedTrainer

STATE = "trainer_state.json"


class Checkpointer:
    """Writes the checkpoints of a run and reads the one that it resumes from.

    Args:
        trainer: whose state they hold.

    Attributes:
        resumed: the checkpoint that the run resumed from; None for a new run.
        saved: optimizer steps done at the last checkpoint of this process.
        left: folders named like checkpoints into which others have put files, as reported to the user.
    """

    def __init__(self, trainer: CheckpointedTrainer) -> None:
        self.trainer = trainer
        self.resumed: Path | None = None
        self.saved = 0
        self.left: frozenset[Path] = frozenset()
        self._replaced: tuple[Path, ...] = ()

    @property
    def plan(self) -> Plan:
        """Of the run."""
        return self.trainer.plan

    # ---- the start of a run ----

    def start(self, wanted: Path | str | bool | None) -> Path | None:
        """The checkpoint from which all processes resume; the first process selects it and deletes incomplete ones.

        Args:
            wanted: ``resume_from_checkpoint``.

        Raises:
            UsageError: the checkpoint is that of another run, or the folder holds checkpoints of one.
            RunError: the disk has no room for a checkpoint.
        """
        trainer, plan = self.trainer, self.plan
        self.saved = 0
        self.setting = snapshots.run_fingerprint(
            plan, trainer.tokenizer, trainer.train_dataset, trainer.strategy.world_size
        )
        found: Path | None = None
        if trainer.strategy.is_main:
            directory.clean(plan.output_dir)
            found = _checkpoint(plan, self.setting, wanted)
            if found is not None:
                trainer.reports.info(f"resuming from {found}")
            elif plan.training.overwrite_output_dir and snapshots.wanted_checkpoint(plan, wanted) is None:
                self._replaced = tuple(directory.earlier_checkpoints(plan.output_dir))
        self.resumed = trainer.strategy.broadcast(found)
        self.left = frozenset(_not_ours(plan.output_dir))  # the plan has reported them
        if trainer.strategy.is_main:
            needed = checkpoint_bytes(plan, trainer.model) + weight_bytes(plan, trainer.model)
            check_room(plan.output_dir, needed, "a checkpoint and what was trained")
        return self.resumed

    def load_weights(self, folder: Path) -> None:
        """Loads the trained weights of a checkpoint."""
        self.plan.method.component.load(self.trainer.model, folder)
        self.trainer.objective.load(folder)

    def load_state(self, folder: Path) -> TrainerState:
        """The trainer state of a checkpoint, with the states of callbacks restored."""
        state = TrainerState.load_from_json(str(folder / STATE))
        if state.best_model_checkpoint is not None and not Path(state.best_model_checkpoint).is_dir():
            state.best_model_checkpoint = None
        self._restore_callbacks(state)
        return state

    def load_best(self) -> None:
        """Loads the weights of the best checkpoint."""
        best = Path(str(self.trainer.state.best_model_checkpoint))
        directory.verify(best)
        self.load_weights(best)

    def load_random_state(self) -> None:
        """Restores the random state of the checkpoint that the run resumed from."""
        if self.resumed is not None:
            snapshots.set_random_state(load_pytree(self.resumed, f"random-{self.trainer.strategy.rank}"))

    # ---- writing ----

    def save(self) -> None:
        """Writes a checkpoint of the current step.

        Raises:
            RunError: it cannot be written; older checkpoints stay.
        """
        trainer, state, folder = self.trainer, self.trainer.state, self.plan.output_dir
        step = state.global_step
        best = folder / f"checkpoint-{state.best_global_step}"
        there = best.is_dir() and best not in self._replaced and best not in self.left
        if state.best_global_step and (there or state.best_global_step == step):
            state.best_model_checkpoint = str(best)
        try:
            room = checkpoint_bytes(self.plan, trainer.model)
            with trainer.phase("saving"), writing(f"checkpoint-{step}", folder, room):
                staged = directory.stage(folder, step) if trainer.strategy.is_main else Path()
                self._fill(trainer.strategy.broadcast(staged), step)
        except RunError:
            directory.clean(folder)
            raise
        self.saved = step

    def save_model(self, folder: Path) -> None:
        """Saves the trained weights, and the tokenizer with its chat template; in the first process only."""
        if self.trainer.strategy.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self.plan.method.component.save(self.trainer.model, folder)
            self.trainer.objective.save(folder)
            self.trainer.tokenizer.save_pretrained(folder)

    def _fill(self, staged: Path, step: int) -> None:
        """Writes the checkpoint into the staging folder, renames the folder, and deletes older ones after that."""
        trainer = self.trainer
        resumable = not trainer.args.save_only_model
        if resumable:
            save_pytree(staged, f"random-{trainer.strategy.rank}", snapshots.random_state())
        trainer.strategy.wait()
        if not trainer.strategy.is_main:
            return
        self.save_model(staged)
        if resumable:
            snapshots.save_snapshot(trainer, staged)
        self._export_callbacks()
        trainer.state.save_to_json(str(staged / STATE))
        written = directory.commit(staged, step, self.setting, resumable=resumable, versions=snapshots.versions())
        self.drop_replaced(written)
        best = trainer.state.best_model_checkpoint
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
        for path in found.keys() - self.left:
            self.trainer.reports.info(f"{path} {found[path]}, and is not deleted")
        self.left = frozenset(found)

    # ---- callbacks ----

    def _export_callbacks(self) -> None:
        """Stores the state of callbacks in the trainer state, as transformers does."""
        states: dict[str, Any] = {}
        trainer = self.trainer
        for callback in (*trainer.callback_handler.callbacks, trainer.control):
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        trainer.state.stateful_callbacks = {
            name: found if len(found) > 1 else found[0] for name, found in states.items()
        }

    def _restore_callbacks(self, state: TrainerState) -> None:
        """Replaces stateful callbacks by copies with the state of the checkpoint, as transformers does."""
        callbacks = self.trainer.callback_handler.callbacks
        empty: dict[str, Any] = {"args": {}, "attributes": {}}
        for name, stored in state.stateful_callbacks.items():
            waiting = [empty | some for some in (stored if isinstance(stored, list) else [stored])]
            for place, callback in enumerate(callbacks):
                if waiting and type(callback).__name__ == name and isinstance(callback, ExportableState):
                    callbacks[place] = type(callback).from_state(waiting.pop(0))
            if waiting and name == TrainerControl.__name__:
                self.trainer.control = TrainerControl.from_state(waiting.pop(0))
            elif len(waiting) == len(stored if isinstance(stored, list) else [stored]):
                self.trainer.reports.info(f"the checkpoint holds the state of {name}, a callback that this run lacks")


def refuse_occupied(folder: Path, args: Any, state: TrainerState) -> None:
    """Refuses a run, before its first step, if one of its checkpoints would replace a folder of others.

    Args:
        folder: of the run.
        args: TrainingArguments.
        state: with the run's steps.
    """
    hint = "move it away, or write another output_dir"
    found = [
        Problem(f"{path} {reason}, and this run would write a checkpoint there", hint=hint)
        for path, reason in _not_ours(folder).items()
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


def _checkpoint(plan: Plan, setting: directory.RunFingerprint, wanted: Path | str | bool | None) -> Path | None:
    """The checkpoint to resume from; None for a new run.

    Raises:
        UsageError: a new run, and the folder holds checkpoints that ``overwrite_output_dir`` does not allow to replace.
    """
    folder = snapshots.wanted_checkpoint(plan, wanted)
    if folder == "newest":
        return directory.find_resumable(plan.output_dir, setting, force=plan.force)
    if folder is not None:
        return _given(folder, setting, force=plan.force)
    earlier = directory.earlier_checkpoints(plan.output_dir)
    if earlier and not plan.training.overwrite_output_dir:
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
