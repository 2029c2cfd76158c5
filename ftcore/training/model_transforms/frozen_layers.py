"""Decides whether a run caches the outputs of its frozen layers, and verifies it on the model."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftcore.data.pipeline.streaming import Stream
from ftcore.errors import Problem, RunError, UsageError
from ftcore.training.batching.token_budget import row_tokens
from ftcore.training.checkpointing import state
from ftcore.training.frozen_layer_cache.cache import FrozenLayerCache
from ftcore.training.frozen_layer_cache.row_store import RowStore, make_room
from ftcore.training.model_transforms.capability_cache import files_of_classes
from ftcore.training.numerics import TOLERANCE, equivalent
from ftcore.utils.content_store import FROZEN_LAYERS, Entry, entry_name, store_root
from ftcore.utils.hashing import new_digest, package_of
from ftcore.utils.units import in_units

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

SOURCES = (package_of(__name__),)
"""Packages whose sources are part of the cache's key, besides those of the backend and of the layers' classes."""


class _ImpossibleError(Exception):
    """The reason why frozen layers cannot be cached."""


def choose_frozen_layer_cache(trainer: TrainingContext) -> FrozenLayerCache | None:
    """The cache of ``cache_frozen_prefix``; None for none.

    Without disk space the cache is returned disabled: a resumed run may have to enable it to continue as it began.

    Raises:
        UsageError: the option is true and the model, the data or the disk does not allow it; with the reason.
    """
    wish = trainer.plan.training.cache_frozen_prefix
    # auto is off on a GPU: rows are computed one at a time there, which reads all weights for each row
    unasked = wish == "auto" and (trainer.strategy.device.type != "cpu" or _passes(trainer) <= 1)
    if wish is False or trainer.train_dataset is None or unasked:
        return None
    cache: FrozenLayerCache | None = None
    try:
        cache = _proven(trainer)
        name, tokens = _name(trainer, cache), _tokens(trainer.train_dataset, trainer.eval_dataset)
        cache.store = _store(trainer, cache, name, tokens * cache.width)
        cache.enabled = True
    except _ImpossibleError as why:
        if wish is True:
            hint = "write cache_frozen_prefix: auto, or false"
            where = trainer.plan.where("cache_frozen_prefix")
            raise UsageError(Problem(f"cache_frozen_prefix is true, and {why}", where, hint)) from why
        if cache is not None:
            trainer.reports.info(f"frozen layers are not cached: {why}")
        return cache
    there, whole = f"{cache.first_trainable} of {len(cache.layers)}", in_units(tokens * cache.width)
    trainer.reports.info(f"frozen layers: {there} are computed once per row, {whole} cached in {cache.store.folder}")
    return cache


def _passes(trainer: TrainingContext) -> float:
    """Number of epochs of the run, possibly a fraction."""
    arguments, constant = trainer.args, trainer.plan.stage.component.deterministic_rows
    if arguments.max_steps <= 0 or isinstance(trainer.train_dataset, Stream) or not constant:
        return float(arguments.num_train_epochs)
    return arguments.max_steps * arguments.gradient_accumulation_steps / max(len(trainer.train_loader()), 1)


def _proven(trainer: TrainingContext) -> FrozenLayerCache:
    """A cache of the model's frozen layers, after checks that trainable layers read nothing but their outputs."""
    scorer = trainer.scorer
    if isinstance(trainer.train_dataset, Stream):
        raise _ImpossibleError("streaming reads each row only once")
    if not trainer.plan.stage.component.deterministic_rows:
        raise _ImpossibleError("this stage generates new sequences in each epoch")
    if trainer.noise is not None:
        raise _ImpossibleError("neftune_noise_alpha adds noise to the inputs of the first layer")
    if not (scorer.packed and scorer.fused):
        raise _ImpossibleError("the model does not support packed sequences or the fused loss")
    layers = scorer.layers()
    if layers is None:
        raise _ImpossibleError("the decoder is not a plain stack of layers")
    first_trainable = first_trainable_layer(layers)
    if not first_trainable:
        raise _ImpossibleError("the first layer is trained")
    if any(hasattr(module, "disable_adapters") for layer in layers[:first_trainable] for module in layer.modules()):
        raise _ImpossibleError("layers before the first trainable one have adapters")
    cache = FrozenLayerCache(
        scorer.inner.get_decoder(), layers, first_trainable, scorer.inputs, executor=trainer.executor
    )
    training = trainer.model.training
    try:
        with trainer.autocast():
            _prove(trainer, cache)
    finally:
        trainer.model.train(training)
    return cache


def first_trainable_layer(layers: nn.ModuleList) -> int:
    """Number of the first trainable layer; the number of layers where none is."""
    trained = (any(tensor.requires_grad for tensor in layer.parameters()) for layer in layers)
    return next((number for number, found in enumerate(trained) if found), len(layers))


def _prove(trainer: TrainingContext, cache: FrozenLayerCache) -> None:
    """Compares forward passes over two short sequences: in training mode, in evaluation mode, and in two steps."""
    probe, tolerance = trainer.scorer.probe(), TOLERANCE[trainer.scorer.compute_dtype]
    trainer.model.train()
    with torch.enable_grad():
        trained, _ = cache.run_recording(probe)
    if trained.requires_grad:
        raise _ImpossibleError("parameters before the first trainable layer are trained too, such as the embedding")
    trainer.model.eval()
    with torch.no_grad():
        whole, last = cache.run_recording(probe)
        if not torch.equal(trained, whole):
            raise _ImpossibleError("dropout or another random operation comes before the first trainable layer")
        cache.dtype, cache.width = whole.dtype, whole.shape[-1] * whole.element_size()
        try:
            same, own = cache.run_trainable(probe, whole), cache.frozen_outputs(probe)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise _ImpossibleError("the decoder is not a plain stack of layers") from error
    if not torch.equal(same, last) or not equivalent(own, whole, tolerance):
        raise _ImpossibleError("trainable layers read more than the hidden states of the frozen ones")
    cache.proof = own.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _name(trainer: TrainingContext, cache: FrozenLayerCache) -> str:
    """Digest of everything that decides the outputs of the frozen layers, bit for bit.

    It covers weights, versions, number of threads, processor, and the backend with its choices. It also covers the
    outputs for two short sequences, which depend on state besides the weights, such as scales of quantised ones.
    """
    above = {id(tensor) for layer in cache.layers[cache.first_trainable :] for tensor in layer.state_dict().values()}
    above |= {id(tensor) for layer in cache.layers[cache.first_trainable :] for tensor in layer.parameters()}
    capability = torch.backends.cpu.get_cpu_capability()
    device = torch.cuda.get_device_name() if trainer.strategy.device.type == "cuda" else capability
    threads = cache.executor.threads
    how = [cache.first_trainable, str(cache.dtype), device, threads, state.versions()]
    backend = trainer.scorer.backend
    how += [backend.numerics_key(), *(trainer.scorer.compiled or ())]
    classes = [module for layer in cache.layers[: cache.first_trainable] for module in layer.modules()]
    digest = new_digest(
        entry_name(how, [*SOURCES, *backend.sources(), *files_of_classes([cache.decoder, *classes])]), cache.proof
    )
    for name, tensor in (*cache.decoder.named_parameters(), *cache.decoder.named_buffers()):
        if id(tensor) not in above and not tensor.requires_grad:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _tokens(*datasets: Any) -> int:
    """Tokens of all sequences that an epoch and its evaluation compute."""
    total = 0
    for rows in datasets:
        if rows is None:
            continue
        if isinstance(rows, dict):
            total += _tokens(*rows.values())
        elif (known := getattr(rows, "computed_tokens", None)) is not None:
            total += int(known)
        else:
            total += int(row_tokens(rows).sum())
    return total


def _store(trainer: TrainingContext, cache: FrozenLayerCache, name: str, needed: int) -> RowStore:
    """The store of the rows; its entry stays marked as used while the store exists."""
    limit, locking = int(trainer.plan.training.frozen_prefix_size * 1e9), trainer.plan.training.use_file_locking
    entry = Entry(FROZEN_LAYERS, name, store_root(), locking)
    try:
        with ExitStack() as stack:
            with entry.making():
                if why := make_room(entry, needed, limit):
                    raise _ImpossibleError(why)
                held = entry.open()
                if held is None:
                    about = (
                        f"{cache.first_trainable} of {len(cache.layers)} layers, {type(trainer.scorer.inner).__name__}"
                    )
                    entry.write(about, None)
                    held = entry.open()
            if held is not None:
                stack.callback(held.close)
            store = RowStore(entry.folder, limit)
            weakref.finalize(store, stack.pop_all().close)
    except OSError as error:
        raise _ImpossibleError(f"{entry.root} cannot be written: {error.strerror or error}") from error
    except RunError as error:
        raise _ImpossibleError(str(error)) from error
    return store
