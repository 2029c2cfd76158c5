"""The plan, the seven kinds of component whose methods take a plan, and the state of a run.

Their signatures name each other, so they share one file. Nothing here imports torch: a component describes, it never
holds the state of a run, and its methods import what they need when they are called.
`ftcore.config.planner.make_plan` makes a plan; `ftcore.runner.run` carries it out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from ftcore.api.chat_template import ChatTemplate
from ftcore.api.component import Component, Harmless, OptionGroup, learns_from_answers
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.model_family import ModelFamily, ModelSource
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
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.api.inference_types import Chunk, Prompt
    from ftcore.api.samples import Chat
    from ftcore.resources.coverage import Coverage
    from ftcore.resources.device_traits import DeviceTraits
    from ftcore.resources.memory_model import Architecture, Depth, Estimate

C = TypeVar("C", bound=Component)


@dataclass(frozen=True, slots=True)
class RegisteredComponent(Generic[C]):
    """A component and the plugin that registers it."""

    component: C
    distribution: str
    version: str
    plugin: str
    """Plugin id, ``distribution/entry-point``."""

    @property
    def full_name(self) -> str:
        """``distribution:name``, unique whatever else is installed."""
        return f"{self.distribution}:{self.component.name}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A plugin as listed: ``status`` is ``ok``, ``disabled`` or the problem."""

    id: str
    distribution: str
    version: str
    status: str


class Registry(Protocol):
    """The interface of the installed plugins for a plan; `ftcore.api.registry.Plugins` implements it."""

    listed: tuple[Listed, ...]
    offers: tuple[RegisteredComponent[Any], ...]

    @property
    def hook(self) -> Any:
        """pluggy's caller: ``plugins.hook.ft_load_model(plan=..., kwargs=...)``."""

    @property
    def broken(self) -> tuple[Listed, ...]:
        """Plugins that could not be loaded, or only in part."""

    def of(self, kind: type[C]) -> tuple[RegisteredComponent[C], ...]:
        """All components of one kind."""

    def find(self, kind: type[C], name: str, where: str = "") -> RegisteredComponent[C]:
        """The one component that ``name`` selects: a name, an alias or a full name.

        Raises:
            UsageError: if there is none, or more than one.
        """


@dataclass(frozen=True, kw_only=True)
class Selected(Generic[C]):
    """A component that this run uses, its source and its options."""

    component: C
    full_name: str
    """``distribution:name``."""
    version: str
    options: OptionGroup


@dataclass(frozen=True, slots=True)
class Bound:
    """One option's value.

    Args:
        value: the validated value.
        owner: ``model``, ``data``, ..., ``transformers``, or ``kind name`` of a component.
        origin: ``default``, ``family``, ``x.yaml:12`` or ``command line``.
    """

    value: Any
    owner: str
    origin: str


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtypes of a run.

    Args:
        compute: ``float32``, ``bfloat16`` or ``float16``: the dtype of frozen weights and of activations.
        trained: dtype of the trained parameters.
        reason: why it differs from the file; empty if it does not.
    """

    compute: str = "float32"
    trained: str = "float32"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines a run.

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
    backend: Selected[Backend]
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

    plugins: Registry
    device: str = "cpu"
    """torch's name of the type of device that the run uses, such as ``cuda``; chosen together with the backend."""
    source: ModelSource | None = None
    """Set when ``model_name_or_path`` is a plugin's model."""
    config: Mapping[str, Any] | None = None
    """The model's config.json, if it can be read without the network."""
    datasets: tuple[DatasetSpec, ...] = ()
    eval_datasets: tuple[DatasetSpec, ...] = ()
    precision: Precision = field(default_factory=Precision)
    gradient_checkpointing: bool = False
    memory: Estimate | None = None
    force: bool = False
    """``ft run --force``: resume from a checkpoint although data, template or options differ."""

    options: Mapping[str, Bound] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    """What could not be determined without the network."""

    @property
    def traits(self) -> DeviceTraits:
        """The traits of the run's device, as the backend states them for this plan."""
        return self.backend.component.traits(self)

    @property
    def output_dir(self) -> Path:
        """The folder for the run's files."""
        assert self.training.output_dir is not None  # make_plan sets it
        return Path(self.training.output_dir).expanduser()

    @property
    def components(self) -> dict[str, Selected[Any]]:
        """Kind -> the component that this run uses."""
        training = (self.stage, self.method, self.optimizer, self.launcher)
        found = (*training, self.engine, self.backend, self.family, self.template)
        return {selected.component.kind: selected for selected in found if selected is not None}

    def where(self, option: str) -> str:
        """The place of an option, such as ``x.yaml:12``; for an option that is not set, the file."""
        bound = self.options.get(option)
        return bound.origin if bound and bound.origin not in ("default", "family") else self.file


@dataclass(frozen=True, kw_only=True)
class Method(Component, ABC):
    """Which parameters are trained, and how they are loaded, saved and counted."""

    kind = "method"
    option = "finetuning_type"
    renamed: ClassVar[Mapping[str, str]] = {"beneath": "base_adapters"}

    saves_adapter: ClassVar[bool] = False
    """Whether a run saves an adapter instead of a whole model."""

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``, such as a quantisation config."""
        return {}

    @abstractmethod
    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """Returns the model with its trainable parameters in float32 and all others frozen."""

    def base_adapters(self, plan: Plan) -> tuple[str, ...]:
        """Adapters of ``adapter_name_or_path`` that are merged into the base model before the saved one is trained."""
        return plan.model.adapter_name_or_path[:-1]

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes the trained parameters as safetensors."""

    @abstractmethod
    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Loads into the model, bit by bit, what `save` wrote.

        Raises:
            RunError: if names or shapes differ.
        """

    @abstractmethod
    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """``(bytes of the base weights, number of trainable parameters)`` for the memory estimate.

        Args:
            architecture: shapes according to config.json.
            options: this method's options.
            width: bytes of a frozen weight in the run's compute dtype.
        """

    def coverage(self, plan: Plan, model: PreTrainedModel) -> Coverage | None:
        """The share of the weights of the model from `apply` that is adapted and quantised; None to report nothing."""
        return None

    def planned_coverage(self, plan: Plan) -> Coverage | None:
        """The same before the model is loaded, without torch."""
        return None

    def drops_inputs(self, options: OptionGroup) -> bool:
        """Whether dropout applies to the inputs of trained modules, which stores further activations."""
        return False

    def effective(self, plan: Plan) -> OptionGroup:
        """This method's options, adjusted to other options of the plan; `count` and `depth` are called with them."""
        return plan.method.options

    def depth(self, architecture: Architecture, options: OptionGroup) -> Depth:
        """The depth of the backward pass, for the memory estimate; by default the whole model."""
        from ftcore.resources.memory_model import Depth

        return Depth(layers=architecture.layers, head=not self.saves_adapter)

    def learning_rate(self, options: OptionGroup, name: str, tensor: torch.Tensor, rate: float) -> float:
        """The peak learning rate of a trained parameter.

        Args:
            options: this method's options.
            name: the parameter's name.
            tensor: the parameter.
            rate: the run's ``learning_rate``.
        """
        return rate

    def reference(self, plan: Plan, model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]] | None:
        """A way to compute with the model as it is before training, for stages that compare with it.

        A stage calls it through `ftcore.training.reference.start_weights.reference_of`, after `apply` and before a
        checkpoint is loaded.

        Returns:
            A function that returns a context without gradients; None if trained parameters are to be copied.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Stage(Component, ABC):
    """Makes a dataset of samples, and the objective of training."""

    kind = "stage"
    option = "stage"
    renamed: ClassVar[Mapping[str, str]] = {
        "beside": "auxiliary_models",
        "constant_rows": "deterministic_rows",
        "copies": "sequences_per_row",
        "divides": "loss_is_additive",
        "longest": "max_seq_len",
        "packs": "packs_by_default",
        "predicts": "supports_prediction",
        "sees": "supports_images",
        "sequences": "planned_sequences",
        "smoothing_hint": "label_smoothing_hint",
        "smooths_labels": "supports_label_smoothing",
        "streams": "supports_streaming",
        "trainer": "objective",
    }

    samples: ClassVar[tuple[str, ...]] = ()
    """Names of the sample classes that it accepts, such as ``Chat``; ``Prompt`` is a chat without its last answer."""
    head: ClassVar[str] = "causal_lm"
    """``causal_lm``, or ``sequence_classification`` with one label."""
    sequences_per_row: ClassVar[float] = 1.0
    """Full sequences per row (two for a pair), for the memory estimate."""
    packs_by_default: ClassVar[bool | None] = None
    """Whether rows are packed by default; None if they cannot be packed."""
    supports_streaming: ClassVar[bool] = False
    """Whether it can train on a stream, whose number of rows is unknown."""
    deterministic_rows: ClassVar[bool] = True
    """Whether every epoch has the same sequences."""
    supports_images: ClassVar[bool] = False
    """Whether it can train on conversations with images."""
    supports_label_smoothing: ClassVar[bool] = False
    """Whether ``label_smoothing_factor`` applies to its loss."""
    label_smoothing_hint: ClassVar[str] = "remove label_smoothing_factor"
    """The hint if it does not apply."""
    supports_prediction: ClassVar[bool] = False
    """Whether it supports ``do_predict``."""
    learns_from_answers: ClassVar[bool] = True
    """Whether it may train on answers that the model generates. A resume then compares the generation options too."""

    def objective(self, run: Run) -> Any:
        """What the run's model is trained on (`ftcore.training.objective.Objective`).

        Called when tokenizer, data and model are loaded. The trainer gives it batches; accumulation, evaluation,
        checkpoints and logs are the trainer's.
        """
        raise NotImplementedError(f"stage {self.name} has no objective(run)")

    @abstractmethod
    def datasets(self, run: Run) -> Any:
        """Tokenised training and evaluation data with their accounting (see `ftcore.data`)."""

    def max_seq_len(self, plan: Plan) -> int:
        """Tokens of the longest row in training."""
        return plan.data.cutoff_len

    def planned_sequences(self, plan: Plan) -> float:
        """Full sequences per row in forward and backward passes; by default `sequences_per_row`."""
        return self.sequences_per_row

    def loss_is_additive(self, plan: Plan) -> bool:
        """Whether the sum of the losses of a batch is that of its rows, so that a batch may be computed in parts.

        The memory estimate, the micro-batches and the retry after an out-of-memory error all ask this.
        """
        return True

    def memory(self, plan: Plan) -> Mapping[str, int]:
        """Memory besides the trained model and its batch: name -> bytes."""
        return {}

    def auxiliary_models(self, plan: Plan) -> Mapping[str, Plan]:
        """Further models that the run loads: option -> the plan with this model instead of the trained one.

        A run resumes from a checkpoint only if their files are unchanged.

        Raises:
            UsageError: the model does not exist.
        """
        return {}

    def predict(self, run: Run, trainer: Any) -> Mapping[str, float]:
        """Carries out ``do_predict``: writes predictions on the evaluation data into the run's folder.

        Called only if `supports_prediction` is true, after training if there is any.

        Returns:
            ``predict_*`` metrics, for ``predict_results.json``.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Optimizer(Component, ABC):
    """Creates a torch optimizer."""

    kind = "optimizer"
    option = "optim"

    state_bytes: float = 8.0
    """Bytes of state per trained parameter, for the memory estimate (AdamW: two float32)."""
    steps_in_backward: bool = False
    """Whether it updates weights inside the backward pass, as accelerate supports it, and so needs the rate there."""

    @abstractmethod
    def create(self, plan: Plan, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer for parameter groups, which already have ``lr`` and ``weight_decay``."""

    def create_for(self, plan: Plan, model: PreTrainedModel, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The same for optimizers that also need the model. A run calls this one."""
        return self.create(plan, groups)


@dataclass(frozen=True, kw_only=True)
class Launcher(Component, ABC):
    """Starts the processes of a run."""

    kind = "launcher"
    option = "launcher"
    resume_harmless = Harmless("the number of processes is compared")

    @abstractmethod
    def launch(self, plan: Plan, work: Callable[[Plan], int]) -> int:
        """Runs ``work`` on the plan, here or in other processes, and returns the exit status."""


@dataclass(frozen=True, kw_only=True)
class InferenceEngine(Component, ABC):
    """Generates answers, and may support scores of reward models."""

    kind = "inference_engine"
    option = "infer_backend"
    resume_harmless = Harmless("it generates after training only", unless=learns_from_answers)

    @abstractmethod
    def load(self, plan: Plan) -> Generator:
        """Loads model and adapters. The generator answers until it is released."""

    def load_all(self, plans: Mapping[str, Plan]) -> Mapping[str, Generator]:
        """Loads several models for use by one thread. An engine may let them share a base model.

        Args:
            plans: name -> plan.
        """
        return {name: self.load(plan) for name, plan in plans.items()}

    def judge(self, plan: Plan) -> Judge:
        """Loads a reward model.

        Raises:
            UsageError: if the engine does not support scores, or the model is not a reward model.
        """
        reason = f"inference engine {self.name} does not support scores"
        raise UsageError(Problem(reason, hint="select another engine with infer_backend"))

    def over(self, plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """A generator over the run's model with its weights at each call; it may change the generation config.

        Raises:
            UsageError: the engine supports only models that it loads itself.
        """
        reason = f"engine {self.name} supports only models that it loads itself, not the model of a run"
        raise UsageError(Problem(reason))


def _is_not_the_devices_own(plan: Plan) -> bool:
    """Whether another backend than the plan's would be used, or none, if the file named none."""
    own = [offer.full_name for offer in plan.plugins.of(Backend) if plan.device in offer.component.devices]
    return own != [plan.backend.full_name]


@dataclass(frozen=True, kw_only=True)
class Backend(Component, ABC):
    """What a run computes with on its device: kernels, transforms of the model, execution of micro-batches.

    Args:
        devices: torch's names of the types of device for which it is used if the file names no backend, such as
            ``cuda``. Empty: it is used only by name.
    """

    kind = "backend"
    option = "backend"
    resume_harmless = Harmless(
        "a run may resume on another device, where results differ in the last bits", unless=_is_not_the_devices_own
    )

    devices: tuple[str, ...] = ()

    @abstractmethod
    def runtime(self, plan: Plan) -> Any:
        """What the run computes with: a `ftcore.training.backend.BackendRuntime`. Imports torch; called once a run."""

    def traits(self, plan: Plan) -> DeviceTraits:
        """The traits of the run's device, for planning, the memory estimate and the trainer. Imports no torch.

        By default those of plain torch: float32 and what ft detects, whole batches, one micro-batch at a time.

        Args:
            plan: with its options; precision and memory estimate are computed with the traits.
        """
        from ftcore.resources.device_traits import plain

        return plain(plan.device)

    def present(self, device: str) -> bool:
        """Whether this machine has a device of this type, one of `devices`. Called for every plan, without torch."""
        from ftcore.resources import hardware

        return device in hardware.devices()

    def unsupported(self, device: str) -> str:
        """Why it cannot be used on a type of device; empty if it can. By default it can be used on all `devices`, or
        anywhere if there are none."""
        if not self.devices or device in self.devices:
            return ""
        return f"it is for {' and '.join(self.devices)}"


class Generator(ABC):
    """A loaded model that generates answers."""

    tokenizer: PreTrainedTokenizerBase
    context: int | None = None
    """Maximum tokens of prompt and answer together; None if unknown."""

    @abstractmethod
    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Answers the prompts in batches; yields pieces of text, each with the index of its prompt."""

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 (optional for an engine)
        """Refuses prompts that `stream` would refuse, before any answer is generated; by default it refuses none.

        Raises:
            UsageError: with all prompts that cannot be answered, and their places.
        """


class Judge(ABC):
    """A loaded reward model."""

    @abstractmethod
    def read(self, chats: Sequence[Chat], places: Sequence[str] = ()) -> list[Sequence[int]]:
        """The tokens of each conversation, the same as in training.

        Args:
            chats: each ends with the answer to score.
            places: their sources for errors, such as ``file:3``; by default ``conversation 3``.

        Raises:
            UsageError: with all conversations that cannot be scored.
        """

    @abstractmethod
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The scores of conversations from `read`, in order; higher is better.

        Scores are comparable within one model only. Runs in batches; concurrent callers wait for each other.
        """


@dataclass(kw_only=True)
class Run:
    """The state of one run, passed to the stage. Tokenizer, data and model are loaded in this order; None before."""

    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel = None
    """The model with the method applied: trainable parameters require gradients."""
    data: Any = None
    """The result of the stage's ``datasets``: ``train``, ``eval`` and ``accounting``."""
    pictures: Any = None
    """Reads images (`ftcore.data.multimodal.images.ImageReader`); None if stage or model does not support them."""
    backend: Any = None
    """What the plan's backend computes with (`ftcore.training.backend.BackendRuntime`); None before the model."""
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """``with run.phase("evaluating"):`` records the current phase in ``ft_run.json``."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run."""

    output_dir: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
