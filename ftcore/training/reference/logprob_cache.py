"""What a reference model makes of a dataset: computed once, before training, and kept on disk by content.

The reference is the model as it is when the trainer is made, so no second model is in memory while training, whatever
the method: adapters, merged ones or none. A resumed run makes its trainer before it reads its checkpoint and finds the
same numbers. They are kept in the content store under a digest of the sources, the reference's weights, the rows'
fingerprint and all else that decides them, so that later epochs and runs take them from there. A run that ends within
its first epoch computes them of the rows that it takes, and keeps these under a name of their own: a resume finds the
same ones, whatever other runs have left.
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
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ftcore.data.pipeline.streaming import Stream
from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.shared_prefix import PrefixSharingCollator
from ftcore.training.batching.token_budget import row_tokens
from ftcore.training.checkpointing import state
from ftcore.training.model_transforms import capability_cache
from ftcore.training.model_transforms.adapter_noop import adapter_is_noop
from ftcore.training.model_transforms.torch_compile import compile_layers
from ftcore.training.numerics import evaluating
from ftcore.utils.content_store import REFERENCE, Entry, entry_name, store_root
from ftcore.utils.hashing import new_digest, package_of, sha256_of

log = logging.getLogger(__name__)

SOURCES = (package_of(__name__),)
"""Packages whose code computes, besides those of the model's classes, of the scorer and of what is measured."""
_NAMES = ("_name_or_path", "name_or_path", "_attn_implementation", "transformers_version")
"""Fields of a model's configuration that change nothing that it computes."""

(_FILE,) = REFERENCE.files

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceMetric:
    """What is wanted of each row.

    Args:
        name: another one for everything else that is measured.
        values: of a batch of B rows, by a scorer: ``[B, ...]``.
    """

    name: str
    values: Callable[[Any, Batch], torch.Tensor]


class ReferencedRows:
    """A dataset whose rows have the reference's numbers as ``reference``.

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
        """Where each row came from; None where nobody knows."""
        return getattr(self.rows, "places", None)

    @property
    def row_tokens(self) -> Any:
        """Tokens of each row's sequences, ``[R]``."""
        return row_tokens(self.rows)

    @property
    def fingerprint(self) -> str:
        """Of the rows alone."""
        return _fingerprint(self.rows)


@dataclass(frozen=True)
class Reference:
    """A model in the state in which it is compared with.

    Args:
        model: itself.
        scorer: computes with it.
        context: in which it is in that state.
        digest: of all that it computes with, but for the code.
        sources: files of its classes.
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

        Adapters that change nothing yet are left out, which saves their time and makes the digest the same for
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
    """The datasets with a reference's numbers, which are computed unless they are kept from earlier.

    Args:
        trainer: whose ``model`` and ``scorer`` are the reference where ``load`` is None.
        measure: what is computed.
        datasets: a None stays one.
        load: loads another model as the reference; it is dropped again.
    """
    if load is None:
        reference = Reference.of(trainer.model, trainer.scorer, trainer.data_collator)
    else:
        model = load().to(trainer.args.device)
        scorer = trainer.make_scorer(model)
        capability_cache.probe_capabilities(scorer)
        compile_layers(trainer, scorer)  # as the model that it is compared with
        reference = Reference.of(model, scorer, trainer.sharing(scorer, strict=False))
    taken = _rows_taken(trainer)
    return [
        None if rows is None else ReferencedRows(rows, _values_of(trainer, measure, reference, rows, some))
        for rows, some in zip(datasets, (taken, *(None for _ in datasets)), strict=False)
    ]


def _rows_taken(trainer: Any) -> list[int] | None:
    """Numbers of the training rows that the run takes, where it ends within an epoch; None for all of them."""
    arguments, rows = trainer.args, trainer.train_dataset
    if rows is None or isinstance(rows, Stream) or arguments.max_steps <= 0 or arguments.world_size > 1:
        return None
    batches = trainer.get_train_dataloader().batch_sampler
    count = arguments.max_steps * arguments.gradient_accumulation_steps
    return None if count >= len(batches) else sorted({row for batch in islice(batches, count) for row in batch})


class _Taken:
    """Some rows of a dataset, under a name of their own: what was computed for them does not depend on the others."""

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
    """Of all rows, or of some of them and no number for the others."""
    if some is None:
        return _values(trainer, measure, reference, rows)
    found = _values(trainer, measure, reference, _Taken(rows, some))
    values = np.full((len(rows), *found.shape[1:]), np.nan)
    values[some] = found
    return values


def _values(trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any) -> Array:
    """From the disk, or computed by all processes together and put there by the first one."""
    locking = None if trainer.plan.training.use_file_locking else False
    entry = Entry(REFERENCE, _key(trainer, measure, reference, rows), store_root(), locking)
    with _alone(entry, trainer.args):
        found = [_read(entry) if trainer.args.process_index == 0 else None]
        if trainer.args.world_size > 1:
            broadcast_object_list(found)
        if found[0] is not None:
            trainer.reports.info(f"reference of {len(rows):,} rows: kept from an earlier run in {entry.folder}")
            return found[0]
        begun = time.monotonic()
        values = _computed(trainer, measure, reference, rows)
        if trainer.args.process_index == 0:
            seconds = time.monotonic() - begun
            about = f"{measure.name}, {len(rows):,} rows, {type(reference.scorer.inner).__name__}"
            written = _write(entry, about, values)
            kept = f"kept in {entry.folder}" if written else f"{entry.folder} cannot be written: not kept"
            trainer.reports.info(f"reference of {len(rows):,} rows: computed in {seconds:.1f} s, {kept}")
    return values


@contextmanager
def _alone(entry: Entry, arguments: Any) -> Iterator[None]:
    """One run at a time computes; another waits and finds it kept.

    Not where several processes compute together: the others would wait for the first for longer than their limit.
    """
    with ExitStack() as stack:
        if arguments.world_size == 1:
            with suppress(OSError):
                stack.enter_context(entry.making())
        yield


def _computed(trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any) -> Array:
    batches = list(_batches(rows, trainer.args.eval_batch_size))[trainer.args.process_index :: trainer.args.world_size]
    if trainer.pool is not None:  # as many tokens at a time, and rows of like length on both sides
        batches = [numbers[side::NUM_WORKERS] for numbers in batches for side in range(min(NUM_WORKERS, len(numbers)))]

    def measured(numbers: list[int]) -> Array:
        batch = trainer._prepare_inputs(reference.collate([rows[number] for number in numbers]))
        return cast("Array", measure.values(reference.scorer, batch).double().cpu().numpy())

    with evaluating(reference.model), reference.context(), trainer.accelerator.autocast():
        mine = list(zip(batches, trainer.each(measured, batches), strict=True))
    every = gather_object(mine) if trainer.args.world_size > 1 else mine
    values = np.zeros((len(rows), *every[0][1].shape[1:]))
    for numbers, found in every:
        values[numbers] = found
    return values


def _batches(rows: Any, size: int) -> Iterator[list[int]]:
    """Rows of like length together: where a model needs padding, there is little."""
    lengths = getattr(rows, "lengths", None)
    order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size].tolist()


def _key(trainer: Any, measure: ReferenceMetric, reference: Reference, rows: Any) -> str:
    how = [reference.scorer.packed, trainer.args.bf16, trainer.args.fp16, trainer.args.device.type]
    how += [repr(reference.collate.shares), trainer.pool is not None]  # other batches, other roundings
    how += [*(reference.scorer.compiled or ())]
    parts = [measure.name, reference.digest, _fingerprint(rows), how, state.versions()]
    measured = getattr(sys.modules.get(measure.values.__module__), "__file__", None)
    return entry_name(parts, [*SOURCES, *reference.sources, *([Path(measured)] if measured else [])])


def _fingerprint(rows: Any) -> str:
    return getattr(rows, "fingerprint", "") or state.fingerprint(rows)


def _described(config: Mapping[str, Any]) -> str:
    """A configuration as text, the same in each process."""
    kept = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    return json.dumps({name: kept[name] for name in kept if name not in _NAMES}, sort_keys=True, default=str)


def _digest(texts: Iterable[str], tensors: Iterable[torch.Tensor]) -> str:
    """sha256 over texts and over the tensors' shapes and bytes, 1.2 GB a second."""
    digest = new_digest("\n".join(texts))
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(entry: Entry) -> Array | None:
    """What is kept; None where there is nothing, or where it is damaged."""
    held = entry.open()
    if held is None:
        return None
    with held:
        if not held.is_whole():
            log.warning("%s is damaged: computed anew", entry.folder)
            return None
        with safe_open(entry.folder / _FILE, framework="numpy") as file:
            return file.get_tensor("values")


def _write(entry: Entry, about: str, values: Array) -> bool:
    """Whether the values could be kept."""
    try:
        entry.write(about, None, lambda folder: save_file({"values": values}, folder / _FILE))
    except (OSError, SafetensorError):
        return False
    return True
