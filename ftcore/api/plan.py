"""The plan and what acts on it: six kinds of component whose methods take a plan, and the run that a plan becomes.

They name each other in their signatures, and so stand in one file. Nothing here imports torch: a component describes,
it never holds the state of a run, and its methods import what they need when they are called.
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
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from ftcore.api.inference_types import Chunk, Prompt
    from ftcore.api.samples import Chat
    from ftcore.resources.coverage import Coverage
    from ftcore.resources.memory_model import Architecture, Depth, Estimate

C = TypeVar("C", bound=Component)


@dataclass(frozen=True, slots=True)
class RegisteredComponent(Generic[C]):
    """A component and where it comes from."""

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
    """What a plan can ask of the installed plugins; `ftcore.api.registry.Plugins` is it."""

    listed: tuple[Listed, ...]
    offers: tuple[RegisteredComponent[Any], ...]

    @property
    def hook(self) -> Any:
        """pluggy's caller: ``plugins.hook.ft_load_model(plan=..., kwargs=...)``."""

    @property
    def broken(self) -> tuple[Listed, ...]:
        """Plugins that could not be loaded, or not in full."""

    def of(self, kind: type[C]) -> tuple[RegisteredComponent[C], ...]:
        """Every component of one kind."""

    def find(self, kind: type[C], name: str, where: str = "") -> RegisteredComponent[C]:
        """The one component that ``name`` selects: a name, an alias or a full name.

        Raises:
            UsageError: when there is none, or more than one.
        """


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

    plugins: Registry
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

    def where(self, option: str) -> str:
        """Where the user wrote an option, such as ``x.yaml:12``; else the file."""
        bound = self.options.get(option)
        return bound.origin if bound and bound.origin not in ("default", "family") else self.file


@dataclass(frozen=True, kw_only=True)
class Method(Component, ABC):
    """Which parameters are trained, and how they are loaded, saved and counted."""

    kind = "method"
    option = "finetuning_type"
    renamed: ClassVar[Mapping[str, str]] = {"beneath": "base_adapters"}

    saves_adapter: ClassVar[bool] = False
    """Whether a run leaves an adapter beside the base model rather than a model."""

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``, a quantisation config for instance."""
        return {}

    @abstractmethod
    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model with its trainable parameters in place, in float32, and all others frozen."""

    def base_adapters(self, plan: Plan) -> tuple[str, ...]:
        """Adapters of ``adapter_name_or_path`` that are merged into the base model under the one that a run leaves."""
        return plan.model.adapter_name_or_path[:-1]

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes what was trained, as safetensors."""

    @abstractmethod
    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Reads back, in place and exactly, what `save` wrote.

        Raises:
            RunError: when names or shapes differ.
        """

    @abstractmethod
    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """``(bytes of the base weights, number of trainable parameters)`` for the memory estimate.

        Args:
            architecture: shapes read off config.json.
            options: this method's options.
            width: bytes of a frozen weight in the run's compute dtype.
        """

    def coverage(self, plan: Plan, model: PreTrainedModel) -> Coverage | None:
        """What part of the weights of a model that `apply` returned is adapted and quantised; None to say nothing."""
        return None

    def planned_coverage(self, plan: Plan) -> Coverage | None:
        """The same before the model is loaded, without torch."""
        return None

    def drops_inputs(self, options: OptionGroup) -> bool:
        """Whether dropout is put on the inputs of what is trained, which keeps further activations."""
        return False

    def effective(self, plan: Plan) -> OptionGroup:
        """This method's options with what other options of the plan entail; `count` and `depth` are asked with them."""
        return plan.method.options

    def depth(self, architecture: Architecture, options: OptionGroup) -> Depth:
        """How far the backward pass goes, for the memory estimate; here through everything."""
        from ftcore.resources.memory_model import Depth

        return Depth(layers=architecture.layers, head=not self.saves_adapter)

    def learning_rate(self, options: OptionGroup, name: str, tensor: torch.Tensor, rate: float) -> float:
        """The peak learning rate of a trained parameter.

        Args:
            options: this method's options.
            name: of the parameter.
            tensor: the parameter.
            rate: the run's ``learning_rate``.
        """
        return rate

    def reference(self, plan: Plan, model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]] | None:
        """Contexts in which the model computes as it does now, before it is trained, for stages that compare with it.

        A stage asks by `ftcore.training.reference.start_weights.reference_of`, when `apply` has returned and before a
        checkpoint is read.

        Returns:
            Makes such contexts, without gradients; None to have what is trained copied.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Stage(Component, ABC):
    """Turns samples into a dataset and a trainer."""

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
    }

    samples: ClassVar[tuple[str, ...]] = ()
    """Names of the sample classes that it eats, such as ``Chat``; ``Prompt`` is a chat without its last answer."""
    head: ClassVar[str] = "causal_lm"
    """``causal_lm``, or ``sequence_classification`` with one label."""
    sequences_per_row: ClassVar[float] = 1.0
    """Full sequences that one row costs (two for a pair), for the memory estimate."""
    packs_by_default: ClassVar[bool | None] = None
    """Whether rows are packed unless the file says otherwise; None where they cannot be."""
    supports_streaming: ClassVar[bool] = False
    """Whether it trains on rows that come one after the other, of which nobody knows how many there are."""
    deterministic_rows: ClassVar[bool] = True
    """Whether every epoch computes the same sequences."""
    supports_images: ClassVar[bool] = False
    """Whether it trains on conversations with images."""
    supports_label_smoothing: ClassVar[bool] = False
    """Whether its loss is that of labels which ``label_smoothing_factor`` may smooth."""
    label_smoothing_hint: ClassVar[str] = "remove label_smoothing_factor"
    """What to write instead where it is not."""
    supports_prediction: ClassVar[bool] = False
    """Whether it can do what ``do_predict`` asks for."""
    learns_from_answers: ClassVar[bool] = True
    """Whether it may train on answers that it has generated: a resume then compares the options of generation too."""

    @abstractmethod
    def trainer(self, run: Run) -> Trainer:
        """The trainer over the run's model, tokenizer and datasets (see `ftcore.training.trainer`)."""

    @abstractmethod
    def datasets(self, run: Run) -> Any:
        """Tokenised train and evaluation data with their accounting (see `ftcore.data`)."""

    def max_seq_len(self, plan: Plan) -> int:
        """Tokens of the longest row that is trained on."""
        return plan.data.cutoff_len

    def planned_sequences(self, plan: Plan) -> float:
        """Full sequences that one row costs in forward and backward passes; `copies`, unless options say otherwise."""
        return self.sequences_per_row

    def loss_is_additive(self, plan: Plan) -> bool:
        """Whether a micro-batch may be computed in several passes
        (`ftcore.training.trainer.FtTrainer.loss_is_additive`)."""
        return True

    def memory(self, plan: Plan) -> Mapping[str, int]:
        """What is kept beside the trained model and its batch: name -> bytes."""
        return {}

    def auxiliary_models(self, plan: Plan) -> Mapping[str, Plan]:
        """Models that the run reads beside the trained one: option -> the plan with that one in the model's place.

        A run only goes on from a checkpoint while their files are what they were.

        Raises:
            UsageError: no such model.
        """
        return {}

    def predict(self, run: Run, trainer: Trainer) -> Mapping[str, float]:
        """What ``do_predict`` asks for: predictions on the evaluation data, written into the run's folder.

        Only called where `predicts`; after training, if there is any.

        Returns:
            ``predict_*`` metrics, for ``predict_results.json``.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Optimizer(Component, ABC):
    """Makes a torch optimizer."""

    kind = "optimizer"
    option = "optim"

    state_bytes: float = 8.0
    """Bytes of state per trained parameter, for the memory estimate (AdamW: two float32)."""

    @abstractmethod
    def create(self, plan: Plan, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over parameter groups, which already carry ``lr`` and ``weight_decay``."""

    def create_for(self, plan: Plan, model: PreTrainedModel, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """What a run calls: the same, for optimizers that need the model as well."""
        return self.create(plan, groups)


@dataclass(frozen=True, kw_only=True)
class Launcher(Component, ABC):
    """Decides in which processes a run takes place."""

    kind = "launcher"
    option = "launcher"
    resume_harmless = Harmless("the number of processes is compared")

    @abstractmethod
    def launch(self, plan: Plan, work: Callable[[Plan], int]) -> int:
        """Runs ``work`` on the plan, here or in other processes, and returns the exit status."""


@dataclass(frozen=True, kw_only=True)
class InferenceEngine(Component, ABC):
    """Answers, and scores where it can."""

    kind = "inference_engine"
    option = "infer_backend"
    resume_harmless = Harmless("it generates after training only", unless=learns_from_answers)

    @abstractmethod
    def load(self, plan: Plan) -> Generator:
        """Loads model and adapters once; what comes back answers until it is dropped."""

    def load_all(self, plans: Mapping[str, Plan]) -> Mapping[str, Generator]:
        """Loads several, which one thread will use; an engine that can lets them share a base model.

        Args:
            plans: name -> plan.
        """
        return {name: self.load(plan) for name, plan in plans.items()}

    def judge(self, plan: Plan) -> Judge:
        """Loads a reward model once; what comes back scores until it is dropped.

        Raises:
            UsageError: when the engine does not score, or the model does not.
        """
        reason = f"inference engine {self.name} does not score"
        raise UsageError(Problem(reason, hint="write infer_backend: and one that does"))

    def over(self, plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """Answers with a model that the run holds, as it is at each call; it may change its generation config.

        Raises:
            UsageError: the engine only answers with models that it loads itself.
        """
        reason = f"engine {self.name} only answers with models that it loads itself, not with that of a run"
        raise UsageError(Problem(reason))


class Generator(ABC):
    """A loaded model that answers."""

    tokenizer: PreTrainedTokenizerBase
    context: int | None = None
    """Tokens of prompt and answer together that the model has places for, where that is known."""

    @abstractmethod
    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Pieces of text as they are made, each with the index of its prompt; batched."""

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 (an engine need not know beforehand)
        """Refuses prompts that `stream` would refuse, before an hour of answers is made; here it knows of none.

        Raises:
            UsageError: with every prompt that cannot be answered, and its place.
        """


class Judge(ABC):
    """A loaded reward model."""

    @abstractmethod
    def read(self, chats: Sequence[Chat], places: Sequence[str] = ()) -> list[Sequence[int]]:
        """The tokens of each conversation, as the model read them in training.

        Args:
            chats: each ends with the answer that is scored.
            places: what they are called in errors, such as ``file:3``; without it ``conversation 3``.

        Raises:
            UsageError: with every conversation that cannot be scored.
        """

    @abstractmethod
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The score of each conversation that `read` has read, in order; the higher, the better.

        Scores compare within one model only. Batched; one call at a time, further callers wait.
        """


@dataclass(kw_only=True)
class Run:
    """The state of one run, handed to the stage. What is not loaded yet is None: tokenizer, data, model, in turn."""

    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel = None
    """The method has been applied: what is to be trained requires gradients."""
    data: Any = None
    """What the stage's ``datasets`` returned: ``train``, ``eval`` and ``accounting``."""
    pictures: Any = None
    """How images are read (`ftcore.data.multimodal.images.ImageReader`); None where the stage or the model sees
    none."""
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """``with run.phase("evaluating"):`` says in ``ft_run.json`` what the run does meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run."""

    output_dir: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
