"""Merges adapters into the base model, layer by layer in float32."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.models.adapters import adapter_folder, fitting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan


def merged_model(plan: Plan) -> PreTrainedModel:
    """The base model, dequantised, with the adapters of ``adapter_name_or_path`` merged in order.

    Raises:
        UsageError: the model or an adapter cannot be loaded, or does not fit.
    """
    model = _dequantized(plan, _base(plan))
    for name in plan.model.adapter_name_or_path:
        model = _merge(plan, model, name)
    return model.to(export_dtype(plan, model)).eval()


def export_dtype(plan: Plan, model: PreTrainedModel) -> torch.dtype:
    """The export dtype; ``auto`` is resolved."""
    import torch

    names = (plan.export.export_dtype, plan.model.infer_dtype)
    name = next((name for name in names if name != "auto"), "")
    return getattr(torch, name) if name else model.dtype


def _base(plan: Plan) -> Any:
    import torch

    kwargs: dict[str, Any] = plan.method.component.load_kwargs(plan) | {"dtype": "auto"}
    if plan.export.export_device == "cpu" and torch.cuda.is_available():
        kwargs["device_map"] = {"": "cpu"}
    return plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)


def _dequantized(plan: Plan, model: Any) -> Any:
    """Dequantises a model to its compute dtype."""
    if not getattr(model, "is_quantized", False) and getattr(model, "hf_quantizer", None) is None:
        return model
    try:
        return model.dequantize()
    except (NotImplementedError, ValueError) as error:
        method = getattr(model.config, "quantization_config", None)
        kind = getattr(method, "quant_method", "unknown")
        reason = f"{plan.model.model_name_or_path} is quantised ({kind}) and cannot be dequantised: {error}"
        hint = "write the name of the unquantised model"
        raise UsageError(Problem(reason, plan.where("model_name_or_path"), hint)) from error


def _merge(plan: Plan, model: Any, name: str) -> Any:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    folder = adapter_folder(plan, name)
    dtype = model.dtype
    try:
        with warnings.catch_warnings():
            # peft 0.21 uses a deprecated name of transformers 5.23; tied weights are untied below
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
            with fitting(folder, model) as whole:
                adapted = PeftModel.from_pretrained(model, str(whole))
    except (RuntimeError, ValueError) as error:
        reason = f"adapter {name} does not fit {plan.model.model_name_or_path}: {' '.join(str(error).split())[:200]}"
        hint = "write the model that the adapter was trained on"
        raise UsageError(Problem(reason, plan.where("adapter_name_or_path"), hint)) from error
    _untie(adapted.get_base_model(), BaseTunerLayer)
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            # in bfloat16 the delta and the sum would both be rounded
            layer.float()
            layer.merge()
            layer.to(dtype)
    model = adapted.base_model.unload()
    _untie(model, ())
    return model


def _untie(model: Any, adapters: Any) -> None:
    """Unties head and embedding if their weights differ or will differ.

    Args:
        model: a model whose head may be tied to the embedding.
        adapters: classes of adapter layers that will change one of the two; if empty, the values are compared.
    """
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not model.config.tie_word_embeddings:
        return
    if adapters and not (isinstance(embedding, adapters) or isinstance(head, adapters)):
        return
    if not adapters and embedding.weight is not head.weight and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
    if not adapters and embedding.weight is head.weight:
        return
    inner = head.get_base_layer() if adapters and isinstance(head, adapters) else head
    inner.weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {}
