"""The state of a checkpoint besides the weights, and the fingerprint that a resume compares."""

from __future__ import annotations

import importlib.metadata
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ftcore.api.plan import Plan
from ftcore.data.fingerprint import data_hashes
from ftcore.data.pipeline.streaming import Cursor
from ftcore.errors import RunError
from ftcore.models.files import model_files
from ftcore.training.backend import BackendRuntime
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing.directory import RunFingerprint
from ftcore.training.checkpointing.fingerprint import compared_options
from ftcore.training.checkpointing.safe_serialization import load_pytree, save_pytree
from ftcore.utils.hashing import new_digest, sha256_of
from ftcore.utils.ownership import sealed_manifest


def run_fingerprint(plan: Plan, tokenizer: Any, dataset: Any, processes: int) -> RunFingerprint:
    """Everything that decides the run's weights: options, components and versions, model files, template, rows.

    It lists all options except those declared harmless; see `ftcore.training.checkpointing.fingerprint`.
    """
    values: dict[str, Any] = {"processes": processes, **compared_options(plan)}
    values["chat template"] = _digest(str(getattr(tokenizer, "chat_template", None)).encode())
    digest = getattr(dataset, "fingerprint", "") or fingerprint(dataset)
    values["training rows"] = f"{getattr(dataset, 'size', None) or f'{len(dataset)} rows'}, {digest[:16]}"
    models = {"model files": plan} | {
        f"{name} files": other for name, other in plan.stage.component.auxiliary_models(plan).items()
    }
    files = {name: model_files(other) for name, other in models.items()}
    values |= {name: _digest(json.dumps(found).encode()) for name, found in files.items()}
    causes = {name: {file: digest[:16] for file, digest in found.items()} for name, found in files.items()}
    causes["training rows"] = _data_causes(plan)
    return RunFingerprint(_texts(values), {name: _texts(found) for name, found in causes.items()})


def _data_causes(plan: Plan) -> dict[str, Any]:
    """The sources of the rows: data options and digests of the files."""
    options = plan.data.model_dump(mode="json").items()
    causes = {name: value for name, value in options if not name.startswith(("overwrite_", "preprocessing_"))}
    hashes = data_hashes(plan)
    return causes | {spec.name: hashes[spec.name][:32] for spec in plan.datasets if spec.name in hashes}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, default=str) for name, value in values.items()}


def fingerprint(dataset: Any) -> str:
    """sha256 over all values of all rows, for datasets without a ``fingerprint``."""
    digest = new_digest()
    for index in range(len(dataset)):
        for name, value in sorted(dataset[index].items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    return {
        name: importlib.metadata.version(name) for name in ("ftcore", "torch", "transformers", "peft", "accelerate")
    }


def random_state() -> dict[str, Any]:
    """Every global random state: Python, numpy, torch and its CUDA devices."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def save_snapshot(trainer: Any, folder: Path) -> None:
    """Writes optimizer, scheduler, scaler, and the sums since the last log line."""
    save_pytree(folder, "optimizer", trainer.optimizer.state_dict())
    save_pytree(folder, "scheduler", trainer.schedule.scheduler.state_dict())
    loss = trainer.running_loss
    progress = {"loss": loss.sum, "logged": loss.logged_step, "evaluating": trainer.evaluating}
    progress["meters"], progress["guard"] = trainer.metrics.training.sums, trainer.guard.state()
    progress["prefix"] = trainer.scorer.frozen_layer_cache is not None and trainer.scorer.frozen_layer_cache.enabled
    progress["backend"] = {"name": trainer.backend.name, "state": trainer.backend.state_dict()}
    if trainer.streamed is not None:
        progress["cursor"] = tuple(trainer.streamed.cursor)
    if trainer.rollouts is not None:
        progress["rollout"] = trainer.rollouts.rows
    if trainer.position is not None:
        progress["position"] = trainer.position
    save_pytree(folder, "progress", progress)
    if extra := trainer.objective.state():
        save_pytree(folder, "extra", extra)
    if trainer.strategy.scaler is not None:
        save_pytree(folder, "scaler", trainer.strategy.scaler.state_dict())


def load_snapshot(trainer: Any, folder: Path) -> None:
    """Restores optimizer, scheduler and scaler.

    Raises:
        RunError: the optimizer's state has another shape, which can happen with ``--force`` only.
    """
    try:
        trainer.optimizer.load_state_dict(load_pytree(folder, "optimizer"))
    except (KeyError, ValueError) as error:
        raise RunError(f"the optimizer state in {folder} does not fit this run: {error}") from error
    trainer.schedule.scheduler.load_state_dict(load_pytree(folder, "scheduler"))
    if trainer.strategy.scaler is not None:
        trainer.strategy.scaler.load_state_dict(load_pytree(folder, "scaler"))


def load_progress(trainer: Any, folder: Path) -> bool:
    """Restores the sums since the last log line. Means at the end of the run cover its own steps only.

    Returns:
        Whether the run was stopped during an evaluation.
    """
    progress = load_pytree(folder, "progress")
    loss = trainer.running_loss
    loss.sum = progress["loss"].to(trainer.strategy.device)
    trainer.metrics.training.sums.update(progress["meters"])
    trainer.guard.load(progress["guard"])
    if (kept := _backend_state(progress, trainer.backend)) is not None:
        trainer.backend.load_state_dict(kept)
    loss.logged_step = progress["logged"]
    trainer.position = progress.get("position")
    restore_frozen_layers(trainer, progress.get("prefix", False))
    if trainer.streamed is not None:
        number = trainer.state.global_step * trainer.args.gradient_accumulation_steps
        trainer.streamed.resume(number, Cursor(*progress["cursor"]))
    if trainer.rollouts is not None:
        trainer.rollouts.rows = progress["rollout"]
    if (folder / "extra.json").is_file():
        trainer.objective.load_state(load_pytree(folder, "extra"))
    loss.total = -loss.sum.item()
    return bool(progress["evaluating"])


def restore_frozen_layers(trainer: Any, used: bool) -> None:
    """Enables or disables the frozen layer cache as before the checkpoint, so that results agree bit for bit.

    Args:
        trainer: whose scorer may have a cache.
        used: whether it was enabled.
    """
    cache = trainer.scorer.frozen_layer_cache
    if cache is None or cache.enabled == used:
        return
    cache.enabled = used
    how = "row by row, without a cache" if used else "in batches"
    trainer.reports.info(f"frozen layers are computed {how}, as before the checkpoint")


def wanted_checkpoint(plan: Plan, wanted: Path | str | bool | None) -> Path | Literal["newest"] | None:
    """The checkpoint that a run is to resume from; None for a new run.

    Args:
        plan: of the run.
        wanted: a value of ``resume_from_checkpoint``. Unset, a run resumes unless it may overwrite its output folder.
    """
    if wanted in (True, "auto") or (wanted is None and not plan.training.overwrite_output_dir):
        return "newest"
    return None if wanted in (None, False, "never") else Path(str(wanted))


def _backend_state(progress: Mapping[str, Any], backend: BackendRuntime) -> dict[str, Any] | None:
    """The backend's state in a checkpoint; None where another backend wrote it."""
    kept = progress.get("backend", {})
    return kept["state"] if kept.get("name") == backend.name else None


def saved_backend_state(plan: Plan, backend: BackendRuntime) -> dict[str, Any] | None:
    """The backend's state in the checkpoint from which a run will resume, read before it is loaded; None for none.

    Results that are computed before the checkpoint is loaded, such as reference log-probabilities, then agree too.
    """
    folder = wanted_checkpoint(plan, plan.training.resume_from_checkpoint)
    if folder == "newest":
        whole = [path for path in directory.checkpoints(plan.output_dir) if sealed_manifest(path)]
        folder = whole[-1] if whole else None
    try:
        return None if folder is None else _backend_state(load_pytree(Path(folder), "progress"), backend)
    except (OSError, ValueError, TypeError):
        return None  # a damaged checkpoint is reported when the run resumes from it


def prepare_backend(trainer: Any) -> None:
    """Prepares the backend as it was at the checkpoint, or anew; its state is the same in all processes."""
    plan, backend = trainer.plan, trainer.backend
    backend.prepare(saved_backend_state(plan, backend), locking=plan.training.use_file_locking)
    if trainer.strategy.world_size > 1:
        backend.load_state_dict(trainer.strategy.broadcast(backend.state_dict()))


def _digest(content: bytes) -> str:
    return sha256_of(content)[:16]
