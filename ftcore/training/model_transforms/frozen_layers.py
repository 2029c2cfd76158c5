"""Whether a run keeps what lies under its lowest trained layer, proven on the model itself."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftcore.data.pipeline.streaming import Stream
from ftcore.errors import Problem, RunError, UsageError
from ftcore.training.batching.token_budget import row_tokens
from ftcore.training.checkpointing import state
from ftcore.training.forward.causal_lm import flat_inputs
from ftcore.training.frozen_layer_cache.cache import FrozenLayerCache
from ftcore.training.frozen_layer_cache.row_store import RowStore, make_room
from ftcore.training.kernels import matmul
from ftcore.training.model_transforms.capability_cache import files_of_classes
from ftcore.training.numerics import TOLERANCE, equivalent
from ftcore.utils.content_store import FROZEN_LAYERS, Entry, entry_name, store_root
from ftcore.utils.hashing import new_digest, package_of
from ftcore.utils.units import in_units

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

SOURCES = (package_of(__name__),)
"""Packages whose code computes, besides that of the layers' own classes."""


class _ImpossibleError(Exception):
    """Why nothing can be kept."""


def choose_frozen_layer_cache(trainer: TrainingContext) -> FrozenLayerCache | None:
    """What the option asks for: the frozen prefix, in use and with a place to keep it in; None for none.

    Where there is one and no room for it, it is returned but not in use: a resumed run goes on as it began.

    Raises:
        UsageError: with the reason, where the option demands what cannot be.
    """
    wish = trainer.plan.training.cache_frozen_prefix
    # a GPU reads all weights for each sequence that is computed by itself, which many sequences at a time would share
    unasked = wish == "auto" and (trainer.args.device.type != "cpu" or _passes(trainer) <= 1)
    if wish is False or trainer.train_dataset is None or unasked:
        return None
    prefix: FrozenLayerCache | None = None
    try:
        prefix = _proven(trainer)
        name, tokens = _name(trainer, prefix), _tokens(trainer.train_dataset, trainer.eval_dataset)
        prefix.store = _store(trainer, prefix, name, tokens * prefix.width)
        prefix.on = True
    except _ImpossibleError as why:
        if wish is True:
            hint = "write cache_frozen_prefix: auto, or false"
            where = trainer.plan.where("cache_frozen_prefix")
            raise UsageError(Problem(f"cache_frozen_prefix is true, and {why}", where, hint)) from why
        if prefix is not None:
            trainer.reports.say(f"what the frozen layers compute is not kept: {why}")
        return prefix
    there, whole = f"{prefix.border} of {len(prefix.layers)}", in_units(tokens * prefix.width)
    trainer.reports.say(f"frozen layers: {there} are computed once per row, {whole} kept in {prefix.store.folder}")
    return prefix


def _passes(trainer: TrainingContext) -> float:
    """How often the training rows are gone through."""
    arguments, constant = trainer.args, trainer.plan.stage.component.deterministic_rows
    if arguments.max_steps <= 0 or isinstance(trainer.train_dataset, Stream) or not constant:
        return float(arguments.num_train_epochs)
    return arguments.max_steps * arguments.gradient_accumulation_steps / max(len(trainer.get_train_dataloader()), 1)


def _proven(trainer: TrainingContext) -> FrozenLayerCache:
    """The model's layers under the border, shown to be the only thing that the layers above are given."""
    scorer = trainer.scorer
    if isinstance(trainer.train_dataset, Stream):
        raise _ImpossibleError("the rows are a stream, of which each comes once")
    if not trainer.plan.stage.component.deterministic_rows:
        raise _ImpossibleError("this stage makes its sequences anew in each epoch")
    if trainer.noise is not None:
        raise _ImpossibleError("neftune_noise_alpha puts noise on what the lowest layer reads")
    if not (scorer.packed and scorer.fused):
        raise _ImpossibleError("the model is computed in its own way")
    layers = scorer.layers()
    if layers is None:
        raise _ImpossibleError("the model is no plain stack of layers")
    border = first_trainable_layer(layers)
    if not border:
        raise _ImpossibleError("the lowest layer is trained")
    if any(hasattr(module, "disable_adapters") for layer in layers[:border] for module in layer.modules()):
        raise _ImpossibleError("layers under the lowest trained one have adapters")
    prefix = FrozenLayerCache(scorer.inner.get_decoder(), layers, border, flat_inputs, crew=trainer.crew)
    training = trainer.model.training
    try:
        with trainer.accelerator.autocast():
            _prove(trainer, prefix)
    finally:
        trainer.model.train(training)
    return prefix


def first_trainable_layer(layers: nn.ModuleList) -> int:
    """Number of the lowest layer that is trained; of layers, where none is."""
    trained = (any(tensor.requires_grad for tensor in layer.parameters()) for layer in layers)
    return next((number for number, found in enumerate(trained) if found), len(layers))


def _prove(trainer: TrainingContext, prefix: FrozenLayerCache) -> None:
    """Three passes over two short sequences: with gradients and dropout, without, and in two halves."""
    probe, tolerance = trainer.scorer.probe(), TOLERANCE[trainer.scorer.coarsest]
    trainer.model.train()
    with torch.enable_grad():
        trained, _ = prefix.watched(probe)
    if trained.requires_grad:
        raise _ImpossibleError("something under the lowest trained layer is trained too, such as the embedding")
    trainer.model.eval()
    with torch.no_grad():
        whole, last = prefix.watched(probe)
        if not torch.equal(trained, whole):
            raise _ImpossibleError("there is dropout, or another chance, under the lowest trained layer")
        prefix.dtype, prefix.width = whole.dtype, whole.shape[-1] * whole.element_size()
        try:
            same, own = prefix.halved(probe, whole), prefix.below(probe)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise _ImpossibleError("the model is no plain stack of layers") from error
    if not torch.equal(same, last) or not equivalent(own, whole, tolerance):
        raise _ImpossibleError("the upper layers read more than the hidden states of those below")
    prefix.proof = own.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _name(trainer: TrainingContext, prefix: FrozenLayerCache) -> str:
    """Digest of all that decides what the prefix computes, to the last bit.

    Weights, and what they make of two short sequences, which holds what is kept beside them, such as scales of
    quantised ones; versions, threads, processor and whose products.
    """
    above = {id(tensor) for layer in prefix.layers[prefix.border :] for tensor in layer.state_dict().values()}
    above |= {id(tensor) for layer in prefix.layers[prefix.border :] for tensor in layer.parameters()}
    capability = torch.backends.cpu.get_cpu_capability()
    device = torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else capability
    threads = torch.get_num_threads() if prefix.crew is None else prefix.crew.share
    how = [prefix.border, str(prefix.dtype), device, threads, state.versions()]
    how += [asdict(matmul.get_choice()), *(trainer.scorer.compiled or ())]
    classes = [module for layer in prefix.layers[: prefix.border] for module in layer.modules()]
    digest = new_digest(entry_name(how, [*SOURCES, *files_of_classes([prefix.decoder, *classes])]), prefix.proof)
    for name, tensor in (*prefix.decoder.named_parameters(), *prefix.decoder.named_buffers()):
        if id(tensor) not in above and not tensor.requires_grad:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _tokens(*datasets: Any) -> int:
    """Of all sequences that an epoch computes."""
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


def _store(trainer: TrainingContext, prefix: FrozenLayerCache, name: str, needed: int) -> RowStore:
    """Where rows are kept, marked as used as long as it is there."""
    limit, locking = int(trainer.plan.training.frozen_prefix_size * 1e9), trainer.plan.training.use_file_locking
    entry = Entry(FROZEN_LAYERS, name, store_root(), locking)
    try:
        with ExitStack() as stack:
            with entry.making():
                if why := make_room(entry, needed, limit):
                    raise _ImpossibleError(why)
                held = entry.open()
                if held is None:
                    about = f"{prefix.border} of {len(prefix.layers)} layers, {type(trainer.scorer.inner).__name__}"
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
