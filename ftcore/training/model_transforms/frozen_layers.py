"""The cache of frozen layers' outputs as a model transform: whether a run uses it, and what its key covers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ftcore.api.model_transform import Change, ModelTransform, NotComparableError, Output, Slot, TransformContext
from ftcore.api.plan import Plan
from ftcore.data.pipeline.streaming import Stream
from ftcore.errors import Problem, RunError, UsageError
from ftcore.training.batching.collators import Batch
from ftcore.training.batching.token_budget import row_tokens
from ftcore.training.checkpointing import state
from ftcore.training.frozen_layer_cache.cache import FrozenLayerCache
from ftcore.training.frozen_layer_cache.row_store import RowStore, make_room
from ftcore.training.model_transforms.capability_cache import files_of_classes
from ftcore.training.numerics import TOLERANCE, evaluating
from ftcore.utils.content_store import FROZEN_LAYERS, Entry, entry_name, store_root
from ftcore.utils.hashing import new_digest, package_of
from ftcore.utils.units import in_units

SOURCES = (package_of(__name__),)
"""Packages whose sources are part of the cache's key, besides those of the backend and of the layers' classes."""


class _ImpossibleError(Exception):
    """The reason why frozen layers cannot be cached."""


class FrozenLayers(ModelTransform):
    """Caches the outputs of frozen layers, as ``cache_frozen_prefix`` says.

    Without disk space the cache is there and disabled: a resumed run may have to enable it to continue as it began.
    """

    name = "cached frozen layers"
    summary = "the outputs of layers before the first trainable one are computed once per row (cache_frozen_prefix)"
    slot = Slot.CACHE

    def planned(self, plan: Plan) -> str:
        """Only if later epochs read the same rows; on a GPU only if asked for."""
        wish = plan.training.cache_frozen_prefix
        if wish is False:
            return "cache_frozen_prefix is false"
        # rows are computed one at a time, which reads all weights for each row on a GPU
        return "on a GPU it is used only with cache_frozen_prefix: true" if wish == "auto" and _on_gpu(plan) else ""

    def applies(self, context: TransformContext) -> str:
        """Rows must be read more than once, and trainable layers must read nothing but the frozen ones' outputs.

        Raises:
            UsageError: the option is true and the model or the data do not allow it; with the reason.
        """
        if context.train_dataset is None:
            return "there is no training data"
        if context.plan.training.cache_frozen_prefix == "auto" and _passes(context) <= 1:
            return "each row is read only once"
        why = _impossible(context)
        if why:
            _refuse(context, why)
        return why

    def changes(self, context: TransformContext) -> Iterator[Change]:
        """The gates before the layers; then the cache is opened.

        Raises:
            UsageError: the option is true, and the model or the disk do not allow it.
        """
        gates = _Gates(context)
        yield gates
        if gates.refused:
            more = "trainable layers read more than the hidden states of the frozen ones"
            _refuse(context, more if gates.differs else gates.refused)
            return
        cache = gates.cache
        name, tokens = _name(context, cache), _tokens(context.train_dataset, context.eval_dataset)
        try:
            cache.store = _store(context, cache, name, tokens * cache.width)
        except _ImpossibleError as why:
            _refuse(context, str(why))
            context.reports.info(f"frozen layers are not cached: {why}")
            return
        cache.enabled = True
        there, whole = f"{cache.first_trainable} of {len(cache.layers)}", in_units(tokens * cache.width)
        context.reports.info(
            f"frozen layers: {there} are computed once per row, {whole} cached in {cache.store.folder}"
        )

    def describe(self, kept: Sequence[Change]) -> str:
        """Whether it is in use."""
        return self.name if any(isinstance(one, _Gates) and one.cache.enabled for one in kept) else ""


class _Gates(Change):
    def __init__(self, context: TransformContext) -> None:
        scorer, layers = context.scorer, context.scorer.layers()
        self.context, self.boundary = context, torch.empty(0)
        decoder, first = scorer.inner.get_decoder(), first_trainable_layer(layers)
        self.cache = FrozenLayerCache(decoder, layers, first, scorer.inputs, executor=context.executor)
        self.attached = self.differs = False

    def apply(self) -> None:
        self.restore = self.cache.attach()
        self.attached = self.differs = True
        self.context.scorer.frozen_layer_cache = self.cache

    def undo(self) -> None:
        self.context.scorer.frozen_layer_cache = None
        self.attached = False
        self.restore()

    def outputs(self) -> Sequence[Output]:
        """The first trainable layer's input and the last hidden states of two short sequences: of the model as it is,
        and in two steps. The second step must give the same bits."""
        context, cache = self.context, self.cache
        probe, tolerance = context.scorer.probe(), TOLERANCE[context.scorer.compute_dtype]
        with context.autocast():
            if self.attached:
                with evaluating(context.model):
                    boundary, last = cache.frozen_outputs(probe), cache.run_trainable(probe, self.boundary)
                cache.proof = boundary.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            else:
                self.boundary, last = boundary, _ = self._repeated(probe)
                cache.dtype, cache.width = boundary.dtype, boundary.shape[-1] * boundary.element_size()
        return [
            Output("the input of the first trainable layer", boundary, tolerance),
            Output("the last trainable layer", last, 0.0),
        ]

    def _repeated(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of the model without gates, after a comparison with the model in training."""
        training = self.context.model.training
        self.context.model.train()
        try:
            with torch.enable_grad():
                trained, _ = self._recorded(batch)
        finally:
            self.context.model.train(training)
        if trained.requires_grad:
            raise NotComparableError(
                "parameters before the first trainable layer are trained too, such as the embedding"
            )
        with evaluating(self.context.model):
            boundary, last = self._recorded(batch)
        if not torch.equal(trained, boundary):
            raise NotComparableError("dropout or another random operation comes before the first trainable layer")
        return boundary, last

    def _recorded(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The first trainable layer's input and the decoder's last hidden states, each ``[1, N, H]``."""
        found = []

        def record(layer: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        hook = self.cache.layers[self.cache.last_frozen].register_forward_hook(record)
        try:
            last = self.cache.decoder(**self.cache.inputs(batch)).last_hidden_state
        finally:
            hook.remove()
        return found[0], last


def _refuse(context: TransformContext, why: str) -> None:
    """An error if the option is true; nothing if it is ``auto``."""
    if context.plan.training.cache_frozen_prefix is True:
        hint = "write cache_frozen_prefix: auto, or false"
        where = context.plan.where("cache_frozen_prefix")
        raise UsageError(Problem(f"cache_frozen_prefix is true, and {why}", where, hint))


def _on_gpu(plan: Plan) -> bool:
    return plan.device != "cpu"


def _passes(context: TransformContext) -> float:
    """Number of epochs of the run, possibly a fraction."""
    arguments, constant = context.args, context.plan.stage.component.deterministic_rows
    if arguments.max_steps <= 0 or isinstance(context.train_dataset, Stream) or not constant:
        return float(arguments.num_train_epochs)
    return arguments.max_steps * arguments.gradient_accumulation_steps / max(len(context.train_loader()), 1)


def _impossible(context: TransformContext) -> str:
    """Why frozen layers cannot be cached, as far as it is known without a forward pass; empty if they can."""
    scorer = context.scorer
    if isinstance(context.train_dataset, Stream):
        return "streaming reads each row only once"
    if not context.plan.stage.component.deterministic_rows:
        return "this stage generates new sequences in each epoch"
    if context.noise is not None:
        return "neftune_noise_alpha adds noise to the inputs of the first layer"
    if not (scorer.packed and scorer.fused):
        return "the model does not support packed sequences or the fused loss"
    layers = scorer.layers()
    if layers is None:
        return "the decoder is not a plain stack of layers"
    first_trainable = first_trainable_layer(layers)
    if not first_trainable:
        return "the first layer is trained"
    if any(hasattr(module, "disable_adapters") for layer in layers[:first_trainable] for module in layer.modules()):
        return "layers before the first trainable one have adapters"
    return ""


def first_trainable_layer(layers: nn.ModuleList) -> int:
    """Number of the first trainable layer; the number of layers where none is."""
    trained = (any(tensor.requires_grad for tensor in layer.parameters()) for layer in layers)
    return next((number for number, found in enumerate(trained) if found), len(layers))


def _name(context: TransformContext, cache: FrozenLayerCache) -> str:
    """Digest of everything that decides the outputs of the frozen layers, bit for bit.

    It covers weights, versions, number of threads, processor, and the backend with its choices. It also covers the
    outputs for two short sequences, which depend on state besides the weights, such as scales of quantised ones.
    """
    above = {id(tensor) for layer in cache.layers[cache.first_trainable :] for tensor in layer.state_dict().values()}
    above |= {id(tensor) for layer in cache.layers[cache.first_trainable :] for tensor in layer.parameters()}
    capability = torch.backends.cpu.get_cpu_capability()
    device = torch.cuda.get_device_name() if cache.decoder.device.type == "cuda" else capability
    threads = cache.executor.threads
    how = [cache.first_trainable, str(cache.dtype), device, threads, state.versions()]
    backend = context.scorer.backend
    how += [backend.numerics_key(), *(context.scorer.compiled or ())]
    classes = [module for layer in cache.layers[: cache.first_trainable] for module in layer.modules()]
    sources = [*SOURCES, *backend.sources(), *files_of_classes([cache.decoder, *classes])]
    digest = new_digest(entry_name(how, sources), cache.proof)
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


def _store(context: TransformContext, cache: FrozenLayerCache, name: str, needed: int) -> RowStore:
    """The store of the rows; its entry stays marked as used while the store exists."""
    limit, locking = int(context.plan.training.frozen_prefix_size * 1e9), context.plan.training.use_file_locking
    entry = Entry(FROZEN_LAYERS, name, store_root(), locking)
    try:
        with ExitStack() as stack:
            with entry.making():
                if why := make_room(entry, needed, limit):
                    raise _ImpossibleError(why)
                held = entry.open()
                if held is None:
                    about = (
                        f"{cache.first_trainable} of {len(cache.layers)} layers, {type(context.scorer.inner).__name__}"
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
