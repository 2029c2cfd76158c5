"""Names of modules and classes before version 0.2, forwarded with a DeprecationWarning; they go in 0.3.

A finder behind all others: it is asked only for modules that are not there. What is imported under an old name is a
module that forwards every attribute, so a class is the same object under both names.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

MODULES: Mapping[str, str] = {
    "ftcore.adapters": "ftcore.models.adapters",
    "ftcore.architecture": "ftcore.resources.model_shapes",
    "ftcore.checks": "ftcore.config.validation.core",
    "ftcore.component_base": "ftcore.api.component",
    "ftcore.components": "ftcore.api.components",
    "ftcore.data.accounting": "ftcore.data.row_stats",
    "ftcore.data.answers": "ftcore.data.datasets.preference_dataset",
    "ftcore.data.dataset": "ftcore.data.datasets.token_dataset",
    "ftcore.data.jinja": "ftcore.data.chat_template.jinja_env",
    "ftcore.data.kinds": "ftcore.data.formats.sample_kinds",
    "ftcore.data.loading": "ftcore.data.pipeline.loading",
    "ftcore.data.media": "ftcore.data.multimodal.media_files",
    "ftcore.data.mixing": "ftcore.data.datasets.mixing",
    "ftcore.data.packing": "ftcore.data.datasets.packing",
    "ftcore.data.pictures": "ftcore.data.multimodal.images",
    "ftcore.data.preparing": "ftcore.data.preprocessing.prepare",
    "ftcore.data.reading": "ftcore.data.sources.readers",
    "ftcore.data.reasons": "ftcore.data.tokenization.loss_reasons",
    "ftcore.data.rendering": "ftcore.data.chat_template.renderer",
    "ftcore.data.tables": "ftcore.data.storage.arrays",
    "ftcore.data.thinking": "ftcore.data.chat_template.reasoning",
    "ftcore.data.tokenizing": "ftcore.data.tokenization.encoder",
    "ftcore.data.truncation": "ftcore.data.tokenization.truncation",
    "ftcore.engine.attention": "ftcore.training.attention.varlen",
    "ftcore.engine.collate": "ftcore.training.batching.collators",
    "ftcore.engine.head": "ftcore.training.losses.linear_cross_entropy",
    "ftcore.engine.pair_batches": "ftcore.training.batching.pairs",
    "ftcore.engine.precomputed": "ftcore.training.reference.logprob_cache",
    "ftcore.engine.reference": "ftcore.training.reference.start_weights",
    "ftcore.engine.rewards": "ftcore.training.forward.reward",
    "ftcore.engine.sampling": "ftcore.training.batching.samplers",
    "ftcore.engine.scoring": "ftcore.training.forward.causal_lm",
    "ftcore.engine.sequences": "ftcore.training.losses.sequence_reductions",
    "ftcore.engine.trainer": "ftcore.training.trainer",
    "ftcore.groups": "ftcore.api.option_groups",
    "ftcore.hardware": "ftcore.resources.hardware",
    "ftcore.hookspecs": "ftcore.api.hookspecs",
    "ftcore.inference_components": "ftcore.api.plan",
    "ftcore.locate": "ftcore.models.resolve",
    "ftcore.lock": "ftcore.utils.file_lock",
    "ftcore.memory": "ftcore.resources.memory_model",
    "ftcore.model_files": "ftcore.models.files",
    "ftcore.plan": "ftcore.api.plan",
    "ftcore.plugins": "ftcore.api.registry",
    "ftcore.run": "ftcore.runner.run",
    "ftcore.samples": "ftcore.api.samples",
}
"""Old name -> new name, of modules that are gone."""

ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "ftcore.checks": {
        "place": "ftcore.deprecated_names:place",
    },
    "ftcore.config": {
        "COMMAND_LINE": "ftcore.config.reader:COMMAND_LINE",
        "MAX_BYTES": "ftcore.config.reader:MAX_BYTES",
        "MAX_DEPTH": "ftcore.config.reader:MAX_DEPTH",
        "MAX_NODES": "ftcore.config.reader:MAX_NODES",
        "Setting": "ftcore.config.reader:Setting",
        "from_mapping": "ftcore.config.reader:from_mapping",
        "read_settings": "ftcore.config.reader:read_settings",
    },
    "ftcore.data.accounting": {
        "Accounting": "ftcore.data.row_stats:RowStats",
        "Counts": "ftcore.data.row_stats:RowCounts",
    },
    "ftcore.data.formats": {
        "Samples": "ftcore.data.formats.detection:Samples",
        "find_reading": "ftcore.data.formats.detection:find_reading",
        "limited_rows": "ftcore.data.formats.detection:limited_rows",
        "open_rows": "ftcore.data.formats.detection:open_rows",
        "read_samples": "ftcore.data.formats.detection:read_samples",
        "row_problem": "ftcore.data.formats.detection:row_problem",
    },
    "ftcore.data.pictures": {
        "Picture": "ftcore.data.multimodal.images:ReadImage",
        "Pictures": "ftcore.data.multimodal.images:ImageReader",
    },
    "ftcore.data.rendering": {
        "Rendered": "ftcore.data.chat_template.rendered:Rendered",
        "Span": "ftcore.data.chat_template.rendered:Span",
    },
    "ftcore.data.sources": {
        "DatasetSpec": "ftcore.api.dataset_spec:DatasetSpec",
        "SUFFIXES": "ftcore.data.sources.resolve:SUFFIXES",
        "data_files": "ftcore.data.sources.resolve:data_files",
        "has_split": "ftcore.data.sources.resolve:has_split",
        "split_problems": "ftcore.data.sources.resolve:split_problems",
    },
    "ftcore.data.tables": {
        "KeptRow": "ftcore.data.storage.arrays:TokenizedRow",
        "Places": "ftcore.data.storage.arrays:SourceLocations",
    },
    "ftcore.engine.head": {
        "Head": "ftcore.training.losses.linear_cross_entropy:LMHead",
    },
    "ftcore.engine.precomputed": {
        "Measure": "ftcore.training.reference.logprob_cache:ReferenceMetric",
        "with_reference": "ftcore.training.reference.logprob_cache:add_reference_logprobs",
    },
    "ftcore.engine.reference": {
        "kept_start": "ftcore.training.reference.start_weights:snapshot_initial_weights",
    },
    "ftcore.engine.rewards": {
        "RewardScorer": "ftcore.training.forward.reward:RewardForward",
    },
    "ftcore.engine.scoring": {
        "Scorer": "ftcore.training.forward.causal_lm:CausalLMForward",
        "TOLD": "ftcore.training.forward.causal_lm:ATTENTION_KWARGS",
    },
    "ftcore.engine.trainer": {
        "recompute": "ftcore.training.model_transforms.recomputation:enable_recomputation",
    },
    "ftcore.hardware": {
        "MEMBERS": "ftcore.resources.hardware:NUM_WORKERS",
    },
    "ftcore.inference": {
        "Chunk": "ftcore.api.inference_types:Chunk",
        "Likely": "ftcore.api.inference_types:TokenLogprob",
        "Prompt": "ftcore.api.inference_types:Prompt",
        "Scored": "ftcore.api.inference_types:ScoredToken",
    },
    "ftcore.locate": {
        "Located": "ftcore.models.resolve:ResolvedModel",
        "locate": "ftcore.models.resolve:resolve_model",
    },
    "ftcore.plugins": {
        "Listed": "ftcore.api.plan:Listed",
        "Offer": "ftcore.api.plan:RegisteredComponent",
    },
    "ftcore.run": {
        "Result": "ftcore.api.plan:Result",
        "Run": "ftcore.api.plan:Run",
        "announce": "ftcore.runner.run:print_summary",
        "carry_out": "ftcore.runner.run:execute",
        "leave_group": "ftcore.runner.run:destroy_process_group",
        "quieten": "ftcore.runner.run:silence_libraries",
        "ready": "ftcore.runner.run:prepare",
    },
}
"""Old module -> name in it -> where that is now, ``module:name``; other names are in the new module unchanged. A module
that is a package now forwards these by its own ``__getattr__`` (`forwarded`)."""


def place(plan: Any, option: str) -> str:
    """What ``plan.where(option)`` is now."""
    return str(plan.where(option))


def forwarded(module: str, name: str) -> Any:
    """What an old module has under a name.

    Args:
        module: the old module.
        name: of the attribute.

    Raises:
        AttributeError: there was no such name.
    """
    place = ATTRIBUTES.get(module, {}).get(name)
    if place is None and module not in MODULES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new, _, attribute = (place or f"{MODULES[module]}:{name}").partition(":")
    if place is not None:
        _warn(f"{module}.{name}", f"{new}.{attribute}", 4)
    return getattr(importlib.import_module(new), attribute)


def _warn(old: str, new: str, level: int) -> None:
    message = f"{old} is {new} since ftcore 0.2; the old name goes in 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=level)


class _Forwarding(ModuleType):
    """A module that is gone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return forwarded(self.__name__, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are gone, and the packages that they lay in."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of an old name; None for any other."""
        if not fullname.startswith(("ftcore.", "ft_plugins.")):
            return None
        package = any(old.startswith(f"{fullname}.") for old in MODULES)
        if fullname not in MODULES and not package:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module that forwards."""
        return _Forwarding(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Says the new name once, where the old one is imported."""
        if (new := MODULES.get(module.__name__)) is not None:
            importlib.import_module(new)
            _warn(module.__name__, new, 3)


def install() -> None:
    """Puts the finder behind all others, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
