"""Adapters in models and on disk, through peft."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.models.adapters import WEIGHTS, fitting

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan

log = logging.getLogger(__name__)


def linear_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers without their paths, quantised ones included and heads excluded.

    peft's ``all-linear`` writes each layer's path into the adapter: 224 paths for Llama 3 8B, where seven names
    suffice.
    """
    ends = {name: name.rsplit(".", 1)[-1] for name in linear_paths(model)}
    return sorted({name if end.isdigit() else end for name, end in ends.items()})


def linear_paths(model: PreTrainedModel) -> list[str]:
    """The same layers with their paths."""
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    return [name for name, layer in model.named_modules() if is_linear(layer) and layer not in heads]


def is_linear(layer: Any) -> bool:
    """Whether this is a linear layer of any library, without an adapter."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    # layers of GPTQ and AWQ are not nn.Linear, and hold buffers only
    linear = isinstance(layer, nn.Linear | Conv1D) or "Linear" in type(layer).__name__
    return linear and not any(True for _ in layer.children())


def vocabulary_names(model: PreTrainedModel) -> list[str]:
    """Names of embedding and head without their paths."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if layer in [end for end in ends if end]]


def warn_of_new_rows(plan: Plan, model: PreTrainedModel, trained: Callable[[str], bool]) -> None:
    """Warns where the vocabulary grows and embedding or head is not trained; of tied ones, training either is
    enough."""
    names = vocabulary_names(model) if plan.model.grows_vocabulary else []
    frozen = [name for name in names if not trained(name)]
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if frozen and not (tied and len(frozen) < len(names)):
        log.warning("not trained: %s; the rows of new tokens keep their initial values there", ", ".join(frozen))


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """The base model without the adapter; modules trained in full are their originals. No gradients."""
    import torch

    with torch.no_grad(), model.disable_adapter():
        yield


def adapter_tensors(model: PeftModel) -> dict[str, Any]:
    """The trained adapter's tensors by the names that peft saves, sharing memory with the model."""
    from peft import get_peft_model_state_dict

    # the default "auto" would query the hub for the size of the base vocabulary
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def with_adapter(model: PreTrainedModel, adapter: Any, *, trainable: bool = True) -> PeftModel:
    """The model with an adapter from a folder, or a new adapter of a configuration.

    An adapter of a causal language model also fits a sequence-classification model: only the head is new.
    """
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    with warnings.catch_warnings(), _without_quantised_layers(model):
        # peft 0.21 reads an attribute that transformers 5.23 deprecates
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # an error below
        # peft looks for the experts' rank among modules only, after it assigned it to a parameter
        warnings.filterwarnings("ignore", r".*_pattern keys did not match .*gate_up_proj'\]", RuntimeWarning)
        if not isinstance(adapter, Path):
            return get_peft_model(model, adapter)
        config = PeftConfig.from_pretrained(str(adapter))
        head = getattr(model, "score", None)
        if head is None or config.task_type == "SEQ_CLS":
            with fitting(adapter, model) as folder:
                adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
            _check_places(adapted, adapter)
            return adapted
        config.task_type, config.inference_mode = "SEQ_CLS", not trainable
        adapted = get_peft_model(model, config)
        # peft fails on a file that lacks the head, which it trains
        with fitting(adapter, model) as folder:
            tensors = load_file(folder / WEIGHTS)
        set_peft_model_state_dict(adapted, tensors | {"base_model.model.score.weight": head.weight})
        return adapted


def _check_places(model: PeftModel, folder: Path) -> None:
    """Raises UsageError where an adapter does not fit the model: peft skips tensors without a counterpart."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        saved = {name for name in file.keys() if ".lora_" in name}  # noqa: SIM118 - not a dictionary
    own = {name for name in adapter_tensors(model) if ".lora_" in name}
    for names, what in (
        (saved - own, "of the adapter do not exist in this model"),
        (own - saved, "of this model's layers are missing in the adapter"),
    ):
        if names:
            reason = f"{folder}: {len(names)} tensors {what}, such as {min(names)}"
            hint = "load it on the model that it was trained on, or train it again"
            raise UsageError(Problem(reason, hint=hint))


@contextmanager
def _without_quantised_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keeps peft from importing bitsandbytes for a model without layers of bitsandbytes."""
    from peft.tuners.lora import model as peft_lora

    if getattr(model, "quantization_method", None) is not None:
        yield
        return
    names = ("is_bnb_available", "is_bnb_4bit_available")
    own = {name: getattr(peft_lora, name) for name in names}
    try:
        for name in names:
            setattr(peft_lora, name, lambda: False)
        yield
    finally:
        for name, asks in own.items():
            setattr(peft_lora, name, asks)


def base_name(plan: Plan) -> str | None:
    """The base model's name in the adapter: the hub id where there is one."""
    return (plan.source.hub_id if plan.source else "") or plan.model.model_name_or_path
