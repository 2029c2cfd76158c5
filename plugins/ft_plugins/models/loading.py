"""The built-in loaders: a plugin's model, a local folder, or a hub id; safetensors only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.models.classes import automatic_class
from ft_plugins.models.quantizers import quantized_by, reading
from ftcore.errors import Problem, UsageError, listed
from ftcore.models import hub_access
from ftcore.models.files import source_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.api.plan import Plan


UNREADABLE = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""Exceptions that transformers raises for unexpected files."""


def hub_kwargs(plan: Plan) -> dict[str, Any]:
    """Arguments of every ``from_pretrained``.

    Raises:
        UsageError: the model can neither be downloaded nor found in the hub's cache.
    """
    kwargs: dict[str, Any] = {"trust_remote_code": plan.model.trust_remote_code, "revision": plan.model.model_revision}
    if plan.model.cache_dir:
        kwargs["cache_dir"] = plan.model.cache_dir
    if plan.model.hf_hub_token:
        kwargs["token"] = plan.model.hf_hub_token
    if name := hub_access.model_name(plan):
        if problem := name.problem(_where(plan)):
            raise UsageError(problem)
        if name.local_only():
            kwargs["local_files_only"] = True
    return kwargs


def _where(plan: Plan) -> str:
    """The place that names the model; for a reference or reward model, that of its option."""
    return plan.where(hub_access.naming(plan, str(plan.model.model_name_or_path)) or "model_name_or_path")


def load_tokenizer(plan: Plan) -> PreTrainedTokenizerBase:
    """Loads a fast tokenizer with a padding token.

    Raises:
        UsageError: the model has no fast tokenizer.
    """
    from transformers import AutoTokenizer

    source = source_of(plan)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub_kwargs(plan))
    except UNREADABLE as error:
        raise UsageError(_cannot_load(plan, "tokenizer", error)) from error
    if not tokenizer.is_fast:
        hint = "loss masks require token offsets, which only fast tokenizers provide; convert it to tokenizer.json"
        raise UsageError(Problem("the model has a slow tokenizer", plan.where("model_name_or_path"), hint))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _padding(tokenizer)
    return tokenizer


# Undeclared padding tokens: that of Llama 3.1, common names, and the end-of-text token of GPT-2 and Qwen.
PADDING = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<PAD>", "<|endoftext|>")


def _padding(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """An existing token for padding; none is added.

    Training does not pad. Batched generation needs a padding token, which attention masks.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()} - {tokenizer.eos_token}
    return next((name for name in PADDING if name in special), tokenizer.unk_token or tokenizer.eos_token)


def load_model(plan: Plan, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Loads the base model, on the GPU if there is one; ``ft_new_weights`` names weights of a new reward head.

    Raises:
        UsageError: the model is not found, or weights are missing, damaged, of other shapes, or only pickled, which may
            run code.
    """
    import torch
    from safetensors import SafetensorError

    source = source_of(plan)
    scores = plan.stage.component.head == "sequence_classification"
    automatic = automatic_class(plan.config or {}, scores=scores)
    kwargs = kwargs | {"num_labels": 1} if scores else kwargs
    kwargs = hub_kwargs(plan) | {"use_safetensors": True, "output_loading_info": True} | kwargs
    try:
        with _no_report() if scores else nullcontext(), reading(quantized_by(plan)) as quantization_kwargs:
            model, found = automatic.from_pretrained(source, **kwargs, **quantization_kwargs)
    except (*UNREADABLE, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UsageError(_cannot_load(plan, "model", error)) from error
    if model.config.is_encoder_decoder:
        hint = "choose a causal language model"
        reason = f"{type(model).__name__} is an encoder-decoder model"
        raise UsageError(Problem(reason, plan.where("model_name_or_path"), hint))
    # transformers initialises missing weights randomly; only a reward head may be new
    missing = sorted(name for name in found["missing_keys"] if not (scores and name.startswith("score.")))
    if missing:
        reason = f"{plan.model.model_name_or_path} has missing weights: {listed(missing, 3, length=200)}"
        raise UsageError(Problem(reason, plan.where("model_name_or_path"), "download the model again"))
    model.ft_new_weights = tuple(sorted(found["missing_keys"]))
    if getattr(model, "quantization_method", None) == "bitsandbytes":
        from ft_plugins.methods.quantized import settle, use_tables

        use_tables(model)
        settle(model)
    # transformers and adapters save this name of the base model.
    model.config.name_or_path = (plan.source.hub_id if plan.source else "") or str(plan.model.model_name_or_path)
    placed = plan.device == "cpu" or getattr(model, "hf_device_map", None)
    return model if placed else model.to(plan.device)


@contextmanager
def _no_report() -> Iterator[None]:
    """Suppresses transformers' report of a new head: an adapter may supply it later."""
    log = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _cannot_load(plan: Plan, what: str, error: Exception) -> Problem:
    """Turns an error of transformers into one line with a fix."""
    name, text = str(plan.model.model_name_or_path), " ".join(str(error).split())
    where = _where(plan)
    # the text contains the name, which must not match a reason
    reason = text.replace(name, "").replace(str(Path(name).expanduser()), "")
    if "trust_remote_code" in reason:
        return Problem(f"{name} requires custom code", where, "review the code, then set trust_remote_code: true")
    if "safetensors" in reason and isinstance(error, OSError):
        hint = "pickled weights can run code and are not supported; convert them with save_pretrained"
        return Problem(f"{name} has no safetensors", where, hint)
    if plan.source is None and not Path(name).expanduser().is_dir():
        if "gated" in reason or "401" in reason:
            return Problem(f"{name} is gated", where, "accept its terms on the hub and set HF_TOKEN")
        if (known := hub_access.model_name(plan)) and (refusal := hub_access.contact(known)):
            return Problem(f"the {what} of {name} {refusal[0]}", where, refusal[1])
        hint = "check the name and the network, or write a local folder"
        return Problem(f"the {what} of {name} cannot be fetched", where, hint)
    return Problem(f"the {what} of {name} cannot be loaded: {text[:300]}", where)
