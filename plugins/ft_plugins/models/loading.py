"""The built-in loaders: a plugin's model, a local folder, or a hub id; safetensors only."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.checks import place
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.plan import Plan


def source_of(plan: Plan) -> str:
    """The folder or hub id to load from; a plugin's model is fetched on first use."""
    if plan.source is not None:
        module, _, function = plan.source.fetch.partition(":")
        return str(getattr(importlib.import_module(module), function)())
    name = str(plan.model.model_name_or_path)
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def hub_kwargs(plan: Plan) -> dict[str, Any]:
    """What every ``from_pretrained`` is told."""
    kwargs: dict[str, Any] = {"trust_remote_code": plan.model.trust_remote_code, "revision": plan.model.model_revision}
    if plan.model.cache_dir:
        kwargs["cache_dir"] = plan.model.cache_dir
    if plan.model.hf_hub_token:
        kwargs["token"] = plan.model.hf_hub_token
    return kwargs


def load_tokenizer(plan: Plan) -> PreTrainedTokenizerBase:
    """A fast tokenizer with a padding token.

    Raises:
        UsageError: when there is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    source = source_of(plan)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub_kwargs(plan))
    except (OSError, ValueError) as error:
        raise UsageError(_cannot_load(plan, "tokenizer", error)) from error
    if not tokenizer.is_fast:
        hint = "masks are made from the offsets that only fast tokenizers have; convert it to tokenizer.json"
        raise UsageError(Problem("the model's tokenizer is a slow one", place(plan, "model_name_or_path"), hint))
    if tokenizer.pad_token is None:
        # Nothing is padded in training; generation in batches needs some token, which attention then leaves out.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(plan: Plan, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The base model, on the GPU where there is one.

    Raises:
        UsageError: when it cannot be found, or has only pickled weights, which may run code.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    source = source_of(plan)
    automatic: Any = AutoModelForCausalLM
    if plan.stage.component.head == "sequence_classification":
        automatic, kwargs = AutoModelForSequenceClassification, kwargs | {"num_labels": 1}
    try:
        model = automatic.from_pretrained(source, use_safetensors=True, **hub_kwargs(plan), **kwargs)
    except (OSError, ValueError) as error:
        raise UsageError(_cannot_load(plan, "model", error)) from error
    if getattr(model, "quantization_method", None) == "bitsandbytes":
        from ft_plugins.methods.quantized import use_tables

        use_tables(model)
    # What transformers then writes as base model, and what adapters name.
    model.config.name_or_path = (plan.source.hub_id if plan.source else "") or str(plan.model.model_name_or_path)
    return model.to("cuda") if torch.cuda.is_available() and not getattr(model, "hf_device_map", None) else model


def _cannot_load(plan: Plan, what: str, error: Exception) -> Problem:
    """transformers' long answers as one line with the cure."""
    name, text = plan.model.model_name_or_path, " ".join(str(error).split())
    where = place(plan, "model_name_or_path")
    if "gated" in text or "401" in text:
        return Problem(f"{name} is gated", where, "accept its terms on the hub and set HF_TOKEN")
    if "trust_remote_code" in text:
        hint = "read it, then set trust_remote_code: true"
        return Problem(f"{name} needs code of its own", where, hint)
    if "safetensors" in text:
        hint = "pickled weights can run code and are not read; convert them with save_pretrained"
        return Problem(f"{name} has no safetensors", where, hint)
    if not Path(str(name)).exists() and plan.source is None:
        hint = "is the name right, and is the network there? A folder on this machine serves as well"
        return Problem(f"the {what} of {name} cannot be fetched", where, hint)
    return Problem(f"the {what} of {name} cannot be loaded: {text[:300]}", where)
