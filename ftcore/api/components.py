"""What a plugin offers: eight kinds of component, each a frozen dataclass with a name, a summary and options.

A component describes; it never holds the state of a run. Nothing here imports torch: components are listed and their
options checked in a fraction of a second, and a component's methods import what they need when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftcore.api.component import Component as Component
from ftcore.api.component import OptionGroup as OptionGroup
from ftcore.api.inference_engine import Generator as Generator
from ftcore.api.inference_engine import InferenceEngine as InferenceEngine
from ftcore.api.inference_engine import Judge as Judge
from ftcore.api.stage_costs import StageCosts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

    from ftcore.api.plan import Plan
    from ftcore.api.samples import Sample
    from ftcore.resources.coverage import Coverage
    from ftcore.resources.memory_model import Architecture, Depth
    from ftcore.runner.run import Run


@dataclass(frozen=True, kw_only=True)
class DatasetFormat(Component, ABC):
    """Reads one row of a dataset into a sample.

    Args:
        columns: role -> column that holds it unless ``dataset_info.json`` says otherwise.
        tags: the same for names inside a column, such as the key that holds a message's role.
        samples: names of the sample classes that it can make, such as ``Chat``; empty when only the row tells.
    """

    kind = "dataset_format"

    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[str, ...] = ()

    @abstractmethod
    def matches(self, columns: frozenset[str]) -> bool:
        """Whether a dataset with these columns, and no ``formatting``, has this format."""

    @abstractmethod
    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample:
        """The row as a sample.

        Args:
            row: column -> value.
            columns: role -> column, the format's own completed by what the dataset's description says. The roles
                ``response``, ``chosen``, ``rejected`` and ``kto_tag`` are left out unless they are to be read: with
                ``chosen`` and ``rejected`` the sample is a `Preference`, with ``kto_tag`` a `Feedback`, with none of
                the four a prompt. A column without a name is one that the dataset does not have.
            tags: likewise.

        Raises:
            RowError: with the field, its value, the reason and the cure.
        """


@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Component):
    """One Jinja source with ``{% generation %}`` marks around what the model says, its end-of-turn included.

    It makes the training mask, the prompt at inference and the ``chat_template`` saved with the tokenizer.

    Args:
        path: the Jinja file; or
        text: the source itself.
        stop: what ends the model's turn, the first being the one that training teaches.
        default_system: the system message that the template writes when the conversation has none.
        tool_dialect: how tools are offered and called, such as ``json`` or ``xml``; None where the model has no tools.
        thinking: whether the template renders ``reasoning_content``.
    """

    kind = "chat_template"
    option = "template"

    path: Path | None = None
    text: str = ""
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    tool_dialect: str | None = None
    thinking: bool = False

    def source(self) -> str:
        """The Jinja source."""
        return self.path.read_text(encoding="utf-8") if self.path else self.text


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that a plugin brings along, selected by ``model_name_or_path: name``.

    Args:
        name: how a file names it.
        summary: one line.
        config: the model's ``config.json``, so that memory is estimated before anything is fetched.
        fetch: ``module:function``; called without arguments it returns the local folder, fetching on first use.
        hub_id: the same model on the hub, for the records.
    """

    name: str
    summary: str
    config: Mapping[str, Any]
    fetch: str
    hub_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Component):
    """What is known of an architecture: which models belong to it, and the defaults that suit them.

    Args:
        model_types: values of ``model_type`` in config.json.
        template: name of the chat template; None where only the tokenizer knows.
        lora_targets: module names that LoRA's ``all`` means; empty for every linear layer but the head.
        media: what a model reads beside text, ``image`` and ``video``, through its own processor.
        image: what stands in the text for an image, its processor's token in it; empty where the model's own chat
            template says so.
        models: models that the plugin offers by name.
        defaults: option -> value, used where the file is silent; the plan shows their origin as ``family``.
    """

    kind = "model_family"
    option = "model_family"

    model_types: tuple[str, ...] = ()
    template: str | None = None
    lora_targets: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    image: str = ""
    models: tuple[ModelSource, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, config: Mapping[str, Any], name: str) -> int:
        """How well a model fits: 0 not at all; the highest of all families wins.

        Args:
            config: its config.json.
            name: ``model_name_or_path`` as written.
        """
        return int(config.get("model_type") in self.model_types)


@dataclass(frozen=True, kw_only=True)
class Method(Component, ABC):
    """Which parameters are trained, and how they are loaded, saved and counted."""

    kind = "method"
    option = "finetuning_type"

    saves_adapter: ClassVar[bool] = False
    """Whether a run leaves an adapter beside the base model rather than a model."""

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``, a quantisation config for instance."""
        return {}

    @abstractmethod
    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model with its trainable parameters in place, in float32, and all others frozen."""

    def beneath(self, plan: Plan) -> tuple[str, ...]:
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

    def reference(self, plan: Plan, model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
        """Keeps what the model computes now, before it is trained, for stages that compare with it.

        Call it when `apply` has returned and before a checkpoint is read.

        Returns:
            Makes contexts in which the model computes as it did then; without gradients.
        """
        from ftcore.training.reference.start_weights import kept_start

        return kept_start(model)


@dataclass(frozen=True, kw_only=True)
class Stage(StageCosts, Component, ABC):
    """Turns samples into a dataset and a trainer."""

    kind = "stage"
    option = "stage"

    samples: ClassVar[tuple[str, ...]] = ()
    """Names of the sample classes that it eats, such as ``Chat``; ``Prompt`` is a chat without its last answer."""
    head: ClassVar[str] = "causal_lm"
    """``causal_lm``, or ``sequence_classification`` with one label."""
    copies: ClassVar[float] = 1.0
    """Full sequences that one row costs (two for a pair), for the memory estimate."""
    packs: ClassVar[bool | None] = None
    """Whether rows are packed unless the file says otherwise; None where they cannot be."""
    streams: ClassVar[bool] = False
    """Whether it trains on rows that come one after the other, of which nobody knows how many there are."""
    constant_rows: ClassVar[bool] = True
    """Whether every epoch computes the same sequences."""
    sees: ClassVar[bool] = False
    """Whether it trains on conversations with images."""
    smooths_labels: ClassVar[bool] = False
    """Whether its loss is that of labels which ``label_smoothing_factor`` may smooth."""
    smoothing_hint: ClassVar[str] = "remove label_smoothing_factor"
    """What to write instead where it is not."""
    predicts: ClassVar[bool] = False
    """Whether it can do what ``do_predict`` asks for."""

    @abstractmethod
    def trainer(self, run: Run) -> Trainer:
        """The trainer over the run's model, tokenizer and datasets (see `ftcore.training.trainer`)."""

    @abstractmethod
    def datasets(self, run: Run) -> Any:
        """Tokenised train and evaluation data with their accounting (see `ftcore.data`)."""

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

    @abstractmethod
    def launch(self, plan: Plan, work: Callable[[Plan], int]) -> int:
        """Runs ``work`` on the plan, here or in other processes, and returns the exit status."""


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """An option of another tool's files that nothing here owns.

    Args:
        advice: what is done instead, or why it is refused.
        same_as: the option that it is another name of; its value is passed on.
        harmless: values, besides null, under which leaving it out changes nothing; None for every value.
        instead: options to write in its place where it is refused; each such file plans.
        means: value -> the option and the value that say the same; they are passed on.
    """

    advice: str = ""
    same_as: str = ""
    harmless: tuple[Any, ...] | None = ()
    instead: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[Any, tuple[str, Any]] = field(default_factory=dict)

    @property
    def hint(self) -> str:
        """For a message that refuses it."""
        written = ", ".join(f"{name}: {_shown(value)}" for name, value in self.instead.items())
        return "; ".join(part for part in (self.advice, f"write {written}" if written else "") if part) or "remove it"

    def takes(self, value: Any) -> bool:
        """Whether nothing is lost where it is left out. 0 and False are equal in Python, and two things in a file."""
        if self.harmless is None or value is None:
            return True
        same = (other for other in self.harmless if value == other)
        return any(isinstance(value, bool) is isinstance(other, bool) for other in same)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


KINDS: tuple[type[Component], ...] = (
    DatasetFormat,
    ChatTemplate,
    ModelFamily,
    Method,
    Stage,
    Optimizer,
    Launcher,
    InferenceEngine,
)
