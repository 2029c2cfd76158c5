"""The plan: everything that a run will do, resolved, bound and checked. It imports nothing heavy and does not change.

`ftcore.config.planner.make_plan` makes it; `ftcore.runner.run` carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ftcore.api.components import (
    ChatTemplate,
    Component,
    InferenceEngine,
    Launcher,
    Method,
    ModelFamily,
    ModelSource,
    Optimizer,
    OptionGroup,
    Stage,
)
from ftcore.api.option_groups import (
    DataOptions,
    ExportOptions,
    GenerationOptions,
    HubOptions,
    MediaOptions,
    ModelOptions,
    ServingOptions,
    TrainingOptions,
    VideoOptions,
)

if TYPE_CHECKING:
    from ftcore.api.registry import Plugins
    from ftcore.data.sources.resolve import DatasetSpec
    from ftcore.resources.memory_model import Estimate

C = TypeVar("C", bound=Component)


@dataclass(frozen=True, kw_only=True)
class Selected(Generic[C]):
    """A component that this run uses, where it comes from, and its options."""

    component: C
    full_name: str
    """``distribution:name``."""
    version: str
    options: OptionGroup


@dataclass(frozen=True, slots=True)
class Bound:
    """One option's value.

    Args:
        value: after validation.
        owner: ``model``, ``data``, ..., ``transformers``, or ``kind name`` of a component.
        origin: ``default``, ``family``, ``x.yaml:12`` or ``command line``.
    """

    value: Any
    owner: str
    origin: str


@dataclass(frozen=True, slots=True)
class Precision:
    """What the run computes in.

    Args:
        compute: ``float32``, ``bfloat16`` or ``float16``: the dtype of frozen weights and of activations.
        trained: dtype of the trained parameters.
        reason: why it is not what the file asked for; empty when it is.
    """

    compute: str = "float32"
    trained: str = "float32"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, decided.

    ``model``, ``data``, ``training``, ``hub``, ``generation``, ``media``, ``videos``, ``export`` and ``serving`` are
    the core's option groups; ``transformers`` holds further fields of TrainingArguments; a component's own options are
    ``selected.options``.
    """

    file: str
    stage: Selected[Stage]
    method: Selected[Method]
    optimizer: Selected[Optimizer]
    launcher: Selected[Launcher]
    engine: Selected[InferenceEngine]
    family: Selected[ModelFamily] | None
    template: Selected[ChatTemplate] | None
    """None: the tokenizer's own."""

    model: ModelOptions
    data: DataOptions
    training: TrainingOptions
    generation: GenerationOptions
    media: MediaOptions
    videos: VideoOptions = field(default_factory=VideoOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    serving: ServingOptions = field(default_factory=ServingOptions)
    transformers: Mapping[str, Any]

    plugins: Plugins
    source: ModelSource | None = None
    """Set when ``model_name_or_path`` is a plugin's model."""
    config: Mapping[str, Any] | None = None
    """The model's config.json, where it can be read without the network."""
    datasets: tuple[DatasetSpec, ...] = ()
    eval_datasets: tuple[DatasetSpec, ...] = ()
    precision: Precision = field(default_factory=Precision)
    gradient_checkpointing: bool = False
    memory: Estimate | None = None
    force: bool = False
    """``ft run --force``: go on from a checkpoint although data, template or options differ."""

    options: Mapping[str, Bound] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    """What could not be looked at without the network, and what goes by it."""

    @property
    def on_cpu(self) -> bool:
        """Whether the run leaves a GPU alone."""
        return bool(self.transformers.get("use_cpu"))

    @property
    def output_dir(self) -> Path:
        """Where the run's files go."""
        assert self.training.output_dir is not None  # make_plan fills it in
        return Path(self.training.output_dir).expanduser()

    @property
    def components(self) -> dict[str, Selected[Any]]:
        """Kind -> what this run uses of it."""
        found = (self.stage, self.method, self.optimizer, self.launcher, self.engine, self.family, self.template)
        return {selected.component.kind: selected for selected in found if selected is not None}
