"""The method full: trains every parameter."""

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
    """Trains the whole model and saves a whole model."""

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """All weights are loaded in the dtype of trained weights."""
        import torch

        return {"dtype": getattr(torch, plan.precision.trained)}

    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model with all parameters trainable, except those that the ``freeze_*`` options of media freeze."""
        import torch

        model.to(getattr(torch, plan.precision.trained))
        model.requires_grad_(True)
        MultimodalFreezing(plan, model).freeze(model)
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """``model.safetensors`` (in shards where large) and ``config.json``."""
        model.save_pretrained(folder)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Copies the weights in place; raises for a folder of another architecture."""
        import torch

        saved = _tensors(folder)
        own = model.state_dict()
        tied = {tensor.data_ptr() for name, tensor in own.items() if name in saved}
        wanted = {name: tensor for name, tensor in own.items() if name in saved or tensor.data_ptr() not in tied}
        if wanted.keys() != saved.keys():
            # transformers saves some layers under other names than the module's, such as fused experts
            wanted, saved = own, type(model).from_pretrained(folder, dtype=model.dtype).state_dict()
        check_names(wanted, saved, folder)
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(saved[name])

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """All parameters in float32, all of them trained."""
        return 4.0 * architecture.parameters, architecture.parameters


def check_names(own: dict[str, Any], saved: dict[str, Any], folder: Path) -> None:
    """Raises RunError where saved weights do not fit a model, with the first difference.

    Args:
        own: parameter name -> tensor of the model.
        saved: parameter name -> tensor of the files.
        folder: of the files, for the message.
    """
    for name in sorted(own.keys() | saved.keys()):
        if name not in saved:
            raise RunError(f"the weights in {folder} do not fit this model: {name} is missing")
        if name not in own:
            raise RunError(f"the weights in {folder} do not fit this model: {name} is not part of it")
        if own[name].shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)}, not {tuple(own[name].shape)}"
            raise RunError(f"the weights in {folder} do not fit this model: {name} is {shapes}")


def _tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a saved model, by name."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise RunError(f"{folder} holds no model.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
