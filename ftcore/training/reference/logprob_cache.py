"""Log-probabilities of a dataset under a reference model, computed once before training and cached on disk.

By default the reference is the model as it is when the trainer is created, so training needs no second model in memory.
A resumed run creates its trainer before it loads its checkpoint, and gets the same values. The content store keeps them
under a digest of everything that decides them: sources, the reference's weights, the rows' fingerprint and more. Later
epochs and runs read them from there. A run that ends within its first epoch computes only the rows that it uses. Their
entry has its own key, so a resume finds the same values whatever other runs have stored.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ftcore.data.pipeline.streaming import Stream
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.shared_prefix import PrefixSharingCollator
from ftcore.training.batching.token_budget import row_tokens
from ftcore.training.checkpointing import state
from ftcore.training.model_transforms import capability_cache
from ftcore.training.model_transforms.adapter_noop import adapter_is_noop
from ftcore.training.model_transforms.apply import transform_reference
from ftcore.training.numerics import evaluating
from ftcore.utils.content_store import REFERENCE, Entry, entry_name, store_root
from ftcore.utils.hashing import new_digest, package_of, sha256_of

log = logging.getLogger(__name__)

SOURCES = (package_of(__name__),)
"""Packages whose sources are part of the key, besides those of the backend, the model's classes and the metric."""
_NAMES = ("_name_or_path", "name_or_path", "_attn_implementation", "transformers_version")
"""Fields of a model's configuration that do not affect its outputs."""

(_FILE,) = REFERENCE.files

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceMetric:
    """The values that a stage needs of each row.

    Args:
        name: unique to this metric.
        values: computes ``[B, ...]`` from a scorer and a batch of B rows.
    """

    name: str
    values: Callable[[Any, Batch], torch.Tensor]


class ReferencedRows:
    """A dataset whose rows hold the reference's values as ``reference``.

    Args:
        rows: the dataset.
        reference: ``[R, ...]``.
    """

    def __init__(self, rows: Any, reference: Array) -> None:
        assert len(rows) == len(reference)
        self.rows, self.reference = rows, reference

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "reference": self.reference[index]}

    @property
    def places(self) -> Any:
        """Where each row came from; None where unknown."""
        return getattr(self.rows, "places", None)

    @property
    def row_tokens(self) -> Any:
        """Tokens of each row's sequences, ``[R]``."""
        return row_tokens(self.rows)

    @property
    def fingerprint(self) -> str:
        """That of the rows, without the reference."""
        return _fingerprint(self.rows)


@dataclass(frozen=True)
class Reference:
    """A reference model.

    Args:
        model: the model.
        scorer: its forward pass.
        context: a context in which the model is the reference.
        digest: of its configuration and weights.
        sources: source files of its classes.
        collate: makes its batches.
    """

    model: Any
    scorer: Any
    context: Callable[[], AbstractContextManager[Any]]
    digest: str
    sources: Sequence[Path]
    collate: PrefixSharingCollator

    @classmethod
    def of(cls, model: Any, scorer: Any, collate: PrefixSharingCollator) -> Reference:
        """The model as it is now.

        Adapters that do not change outputs yet are disabled. This saves time, and the digest is then the same for
        adapters of any shape and seed.
        """
        tensors, context = [*model.parameters(), *model.buffers()], nullcontext
        if hasattr(model, "disable_adapter") and adapter_is_noop(model):
            tensors, context = [tensor for tensor in tensors if not tensor.requires_grad], model.disable_adapter
        adapters = {} if context is not nullcontext else getattr(model, "peft_config", {})
        described = [
            _described(scorer.inner.config.to_dict()),
            *(_described(one.to_dict()) for one in adapters.values()),
        ]
        used = model.modules() if adapters else [scorer.inner]
        return cls(
            model, scorer, context, _digest(described, tensors), capability_cache.files_of_classes(used), collate
        )


def add_reference_logprobs(
    trainer: Any, measure: ReferenceMetric, datasets: Sequence[Any], load: Callable[[], Any] | None
) -> list[ReferencedRows | None]:
    """The datasets with a reference's values, read from the cache or computed.

    Args:
        trainer: its ``model`` and ``scorer`` are the reference where ``load`` is None.
        measure: what to compute.
        datasets: each may be None.
        load: loads another model as the reference, which is freed afterwards.
    """
    if load is None:
        reference = Reference.of(trainer.model, trainer.scorer, trainer.data_collator)
    else:
        model = load().to(trainer.strategy.device)
        scorer = trainer.objective.forward_of(model, trainer.backend)
        scorer.smoothing = trainer.scorer.smoothing
        transform_reference(trainer, model, scorer)
        reference = Reference.of(model, scorer, trainer.sharing_collator(scorer, strict=False))
    taken = _rows_taken(trainer)
    return [
        None if rows is None else ReferencedRows(rows, _values_of(trainer, measure, reference, rows, some))
        for rows, some in zip(datasets, (taken, *(None for _ in datasets)), strict=False)
    ]


def _rows_taken(trainer: Any) -> list[int] | None:
    """Numbers of the training rows that a run uses which ends within its first epoch; None for all rows."""
    arguments, rows = trainer.args, trainer.train_dataset
    if rows is None or isinstance(rows, Stream) or arguments.max_steps <= 0 or trainer.strategy.world_size > 1:
        return None
    batches = trainer.train_loader().batch_sampler
    count = arguments.max_steps * arguments.gradient_accumulation_steps
    return None if count >= len(batches) else sorted({row for batch in islice(batches, count) for row in batch})


class _Taken:
    """Some rows of a dataset, with their own fingerprint: values of other rows do not affect theirs."""

    def __init__(self, rows: Any, numbers: list[int]) -> None:
        self.rows, self.numbers = rows, numbers
        lengths = getattr(rows, "lengths", None)
        self.lengths = None if lengths is None else lengths[numbers]
        self.fingerprint = sha256_of(f"{_fingerprint(rows)} {numbers}")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.rows[self.numbers[index]]


def _values_of(
    trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any, some: list[int] | None
) -> Array:
    """Values of all rows, or of some rows with NaN for the others."""
    if some is None:
        return _values(trainer, measure, reference, rows)
    found = _values(trainer, measure, reference, _Taken(rows, some))
    values = np.full((len(rows), *found.shape[1:]), np.nan)
    values[some] = found
    return values


def _values(trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any) -> Array:
    """Values from the cache, or computed by all processes and cached by the first one."""
    locking = None if trainer.plan.training.use_file_locking else False
    entry = Entry(REFERENCE, _key(trainer, measure, reference, rows), store_root(), locking)
    with _alone(entry, trainer.strategy):
        found = trainer.strategy.broadcast(_read(entry) if trainer.strategy.rank == 0 else None)
        if found is not None:
            trainer.reports.info(f"reference of {len(rows):,} rows: read from {entry.folder}")
            return cast("Array", found)
        begun = time.monotonic()
        values = _computed(trainer, measure, reference, rows)
        if trainer.strategy.rank == 0:
            seconds = time.monotonic() - begun
            about = f"{measure.name}, {len(rows):,} rows, {type(reference.scorer.inner).__name__}"
            written = _write(entry, about, values)
            kept = f"cached in {entry.folder}" if written else f"not cached: {entry.folder} cannot be written"
            trainer.reports.info(f"reference of {len(rows):,} rows: computed in {seconds:.1f} s, {kept}")
    return values


@contextmanager
def _alone(entry: Entry, strategy: Any) -> Iterator[None]:
    """Lets one run at a time compute; another waits and then reads the cache.

    Runs of several processes do not lock: the other processes would wait for the first beyond their timeout.
    """
    with ExitStack() as stack:
        if strategy.world_size == 1:
            with suppress(OSError):
                stack.enter_context(entry.making())
        yield


def _computed(trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any) -> Array:
    strategy, workers = trainer.strategy, trainer.executor.workers
    batches = list(_batches(rows, trainer.args.per_device_eval_batch_size))[strategy.rank :: strategy.world_size]
    # with two workers half as many rows per batch: the same tokens at a time, rows of similar length for both workers
    batches = [numbers[side::workers] for numbers in batches for side in range(min(workers, len(numbers)))]

    def measured(numbers: list[int]) -> Array:
        batch = trainer.on_device(reference.collate([rows[number] for number in numbers]))
        return cast("Array", measure.values(reference.scorer, batch).double().cpu().numpy())

    with evaluating(reference.model), reference.context(), trainer.autocast():
        mine = list(zip(batches, trainer.each(measured, batches), strict=True))
    every = [part for some in strategy.gather_object(mine) for part in some]
    values = np.zeros((len(rows), *every[0][1].shape[1:]))
    for numbers, found in every:
        values[numbers] = found
    return values


def _batches(rows: Any, size: int) -> Iterator[list[int]]:
    """Batches of rows of similar length, which need little padding."""
    lengths = getattr(rows, "lengths", None)
    order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size].tolist()


def _key(trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any) -> str:
    how = [reference.scorer.packed, trainer.args.bf16, trainer.args.fp16, trainer.strategy.device.type]
    how += [repr(reference.collate.shares), trainer.executor.workers > 1]  # batches affect rounding
    how += [*(reference.scorer.compiled or ())]
    parts = [measure.name, reference.digest, _fingerprint(rows), how, state.versions()]
    measured = getattr(sys.modules.get(measure.values.__module__), "__file__", None)
    return entry_name(
        parts,
        [*SOURCES, *reference.scorer.backend.sources(), *reference.sources, *([Path(measured)] if measured else [])],
    )


def _fingerprint(rows: Any) -> str:
    return getattr(rows, "fingerprint", "") or state.fingerprint(rows)


def _described(config: Mapping[str, Any]) -> str:
    """A configuration as text that is equal in all processes."""
    kept = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    return json.dumps({name: kept[name] for name in kept if name not in _NAMES}, sort_keys=True, default=str)


def _digest(texts: Iterable[str], tensors: Iterable[torch.Tensor]) -> str:
    """sha256 over texts, and over shapes and bytes of tensors; 1.2 GB per second."""
    digest = new_digest("\n".join(texts))
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(entry: Entry) -> Array | None:
    """The cached values; None where they are missing or damaged."""
    held = entry.open()
    if held is None:
        return None
    with held:
        if not held.is_whole():
            log.warning("%s is damaged and is computed again", entry.folder)
            return None
        with safe_open(entry.folder / _FILE, framework="numpy") as file:
            return file.get_tensor("values")


def _write(entry: Entry, about: str, values: Array) -> bool:
    """Caches the values; returns whether that succeeded."""
    try:
        entry.write(about, None, lambda folder: save_file({"values": values}, folder / _FILE))
    except (OSError, SafetensorError):
        return False
    return True
