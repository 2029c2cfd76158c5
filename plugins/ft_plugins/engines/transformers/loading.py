"""Loads the base model with its adapters for inference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan


def load_adapted(plan: Plan) -> PreTrainedModel:
    """Loads the base model in ``infer_dtype`` with the adapters of ``adapter_name_or_path``, in evaluation mode.

    Adapters are merged in order, as in training. The last one is merged only in float32: in bfloat16 with its 8 bits,
    or with quantised weights, rounding would remove small changes.

    Raises:
        UsageError: the model or an adapter cannot be loaded.
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
    """The dtype; ``auto`` is resolved for this machine."""
    if plan.model.infer_dtype != "auto":
        return plan.model.infer_dtype
    return "bfloat16" if "bfloat16" in plan.traits.fast_dtypes else "float32"
