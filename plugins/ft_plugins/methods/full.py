"""Every parameter is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.methods.multimodal_freezing import MultimodalFreezing
from ftcore.api.components import Method, OptionGroup
from ftcore.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan
    from ftcore.resources.memory_model import Architecture


class Full(Method):
    """Trains the whole model and leaves a model that loads by itself."""

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """All weights are trained, so all are loaded in the dtype that trained ones have."""
        import torch

        return {"dtype": getattr(torch, plan.precision.trained)}

    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model itself, everything requiring gradients but the eyes of one that sees."""
        import torch

        model.to(getattr(torch, plan.precision.trained))
        model.requires_grad_(True)
        MultimodalFreezing(plan, model).freeze(model)
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """``model.safetensors`` (in shards where large) and ``config.json``."""
        model.save_pretrained(folder)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """In place and exactly; a folder of another architecture is refused."""
        import torch

        saved = _tensors(folder)
        own = model.state_dict()
        tied = {tensor.data_ptr() for name, tensor in own.items() if name in saved}
        wanted = {name: tensor for name, tensor in own.items() if name in saved or tensor.data_ptr() not in tied}
        if wanted.keys() != saved.keys():
            # transformers stores some layers under other names than it computes with, such as fused experts
            wanted, saved = own, type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
        check_names(wanted, saved, folder)
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(saved[name])

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """float32 weights, all of them trained."""
        return 4.0 * architecture.parameters, architecture.parameters


def check_names(own: dict[str, Any], saved: dict[str, Any], folder: Path) -> None:
    """Raises where saved weights are not those of a model, naming the first difference.

    Args:
        own: parameter name -> tensor of the model.
        saved: the same of the files.
        folder: where the files are, for the message.
    """
    for name in sorted(own.keys() | saved.keys()):
        if name not in saved:
            raise RunError(f"{folder} holds other weights than this model has: {name} is missing")
        if name not in own:
            raise RunError(f"{folder} holds other weights than this model has: {name} is not part of it")
        if own[name].shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)}, not {tuple(own[name].shape)}"
            raise RunError(f"{folder} holds other weights than this model has: {name} is {shapes}")


def _tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a saved model, by name."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise RunError(f"{folder} holds no model.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
