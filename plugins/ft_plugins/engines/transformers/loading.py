"""The base model with its adapters, ready to infer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.resources import hardware

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan


def load_adapted(plan: Plan) -> PreTrainedModel:
    """The base model in ``infer_dtype``, with the adapters of ``adapter_name_or_path``, ready to infer.

    Adapters are merged in order, as training does; the last one too in float32. In half precision it stays beside the
    weights: merged into bfloat16 (8 bits) a small change would be rounded away. So it does beside quantised ones.

    Raises:
        UsageError: when the model or an adapter cannot be loaded.
    """
    import torch

    from ftcore.models.adapters import adapter_folder

    dtype = getattr(torch, infer_dtype(plan))
    kwargs: dict[str, Any] = plan.method.component.load_kwargs(plan) | {"dtype": dtype}
    model = plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)
    names = plan.model.adapter_name_or_path
    quantized = getattr(model, "is_quantized", False)
    if quantized and len(names) > 1:
        hint = "merge all but the last with ft export, and write the merged model"
        reason = "several adapters cannot be merged into quantised weights without requantising them"
        raise UsageError(Problem(reason, plan.where("adapter_name_or_path"), hint))
    for number, name in enumerate(names, start=1):
        model = _with_adapter(model, adapter_folder(plan, name), plan, name)
        if number < len(names) or (dtype == torch.float32 and not quantized):
            model = model.merge_and_unload()
    return model.eval()


def _with_adapter(model: Any, folder: Path, plan: Plan, name: str) -> Any:
    from ft_plugins.methods.adapters import with_adapter

    try:
        return with_adapter(model, folder, trainable=False)
    except (RuntimeError, ValueError) as error:
        reason = f"adapter {name} does not fit {plan.model.model_name_or_path}: {' '.join(str(error).split())[:200]}"
        raise UsageError(
            Problem(reason, plan.where("adapter_name_or_path"), "write the model that the adapter was trained on")
        ) from error


def infer_dtype(plan: Plan) -> str:
    """What ``auto`` means here."""
    if plan.model.infer_dtype != "auto":
        return plan.model.infer_dtype
    return "bfloat16" if hardware.detect().bf16 else "float32"
