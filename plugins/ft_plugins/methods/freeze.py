"""The method freeze: trains some layers and keeps the others frozen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.methods.adapters import warn_of_new_rows
from ft_plugins.methods.full import Full
from ft_plugins.methods.multimodal_freezing import MultimodalFreezing
from ftcore.api.components import OptionGroup
from ftcore.api.option_groups import Names
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan
    from ftcore.resources.memory_model import Architecture, Depth

LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)\.[^.]+$")
"""Layer number and module path in a parameter's name. The first number in the name is the layer's."""
GROUPS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
}
"""Modules that contain linear layers, with the same names in every architecture whose memory is estimated."""


class FreezeOptions(OptionGroup):
    """What is trained."""

    freeze_trainable_layers: int = 2
    """Number of trained layers: n trains the last n layers, -n the first n. More than the model has trains all."""
    freeze_trainable_modules: Names = ("all",)
    """Modules of these layers to train, by name, such as ``self_attn`` or ``down_proj``; ``all`` trains all."""
    freeze_extra_modules: Names = ()
    """Modules outside the layers to train as well, such as ``embed_tokens``, ``norm`` or ``lm_head``."""

    def chosen(self, layers: int) -> range:
        """Numbers of the trained layers of a model with ``layers`` layers."""
        count = min(abs(self.freeze_trainable_layers), layers)
        return range(layers - count, layers) if self.freeze_trainable_layers > 0 else range(count)


class Freeze(Full):
    """Trains some layers of the model in float32 and saves a whole model.

    The backward pass ends at the first trainable layer. Layers before it require no gradients, so autograd stores none
    of their activations.
    """

    Options = FreezeOptions

    def load_kwargs(self, plan: Plan) -> dict[str, Any]:
        """Frozen weights are loaded in the run's compute dtype."""
        return {}

    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model in which the chosen layers and modules, and a score head, require gradients.

        Raises:
            UsageError: for unknown modules, with the known ones.
        """
        import torch

        options = plan.method.options
        assert isinstance(options, FreezeOptions)
        names = [name for name, _ in model.named_parameters()]
        self._check(plan, options, names)
        layers = options.chosen(model.config.get_text_config().num_hidden_layers)
        # a score head is initialised at random: it must be trained
        sight = MultimodalFreezing(plan, model)
        fresh = plan.stage.component.head != "causal_lm"
        for name, tensor in model.named_parameters():
            head = fresh and not name.startswith(f"{model.base_model_prefix}.")
            chosen = not sight.frozen(name) if sight.sees(name) else _is_trained(name, options, layers)
            tensor.requires_grad_(head or (chosen and not sight.frozen(name)))
            if tensor.requires_grad:
                tensor.data = tensor.data.to(getattr(torch, plan.precision.trained))
        warn_of_new_rows(plan, model, lambda end: end in options.freeze_extra_modules)
        return model

    def _check(self, plan: Plan, options: FreezeOptions, names: list[str]) -> None:
        inside = {step for name in names if (found := LAYER.search(name)) for step in found[2].split(".")}
        beside = {name.split(".")[-2] for name in names if not LAYER.search(name)}
        problems = []
        for option, known in (("freeze_trainable_modules", inside), ("freeze_extra_modules", beside)):
            for module in getattr(options, option):
                if module != "all" and not set(module.split(".")) <= known:
                    hint = f"it has {', '.join(sorted(known))}"
                    problems.append(Problem(f"{option}: the model has no {module!r}", plan.where(option), hint))
        if problems:
            raise UsageError(problems)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Saves the whole model, in float32 where frozen weights have another dtype: trained weights are not
        rounded."""
        import torch

        if {tensor.dtype for tensor in model.parameters()} <= {torch.float32}:
            super().save(model, folder)
            return
        model.save_pretrained(folder, state_dict={name: tensor.float() for name, tensor in model.state_dict().items()})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """Trained parameters in float32, the others in the run's compute dtype."""
        assert isinstance(options, FreezeOptions)
        trained = len(options.chosen(architecture.layers)) * _of_layer(architecture, options)
        ends = set(options.freeze_extra_modules)
        matrices = [name for name in ("embed_tokens", "lm_head") if name in ends]
        matrices = matrices[:1] if architecture.tied else matrices
        trained += len(matrices) * architecture.vocab_size * architecture.hidden_size
        trained += architecture.hidden_size * ("norm" in ends and architecture.norms > 0)
        return 4.0 * trained + float(width) * (architecture.parameters - trained), trained

    def depth(self, architecture: Architecture, options: OptionGroup) -> Depth:
        """Down to the first trainable layer, or to the embedding."""
        from ftcore.resources.memory_model import Depth

        assert isinstance(options, FreezeOptions)
        chosen, extra = options.chosen(architecture.layers), set(options.freeze_extra_modules)
        embedded = bool(extra & ({"embed_tokens", "lm_head"} if architecture.tied else {"embed_tokens"}))
        layers = architecture.layers if embedded else architecture.layers - min(chosen, default=architecture.layers)
        head = bool(extra & ({"embed_tokens", "lm_head"} if architecture.tied else {"lm_head"}))
        return Depth(layers=layers, head=head)


def _is_trained(name: str, options: FreezeOptions, layers: range) -> bool:
    if not (found := LAYER.search(name)):
        return name.split(".")[-2] in options.freeze_extra_modules
    path = f".{found[2]}."
    modules = options.freeze_trainable_modules
    return int(found[1]) in layers and ("all" in modules or any(f".{module}." in path for module in modules))


def _of_layer(architecture: Architecture, options: FreezeOptions) -> int:
    """Trained parameters of one layer; of named modules, their linear weights."""
    modules = options.freeze_trainable_modules
    if "all" in modules:
        return architecture.layer_parameters
    ends = {module.rsplit(".", 1)[-1] for module in modules}
    named = ends.union(*(GROUPS.get(end, ()) for end in ends))
    linears = sum(size_in * size_out for name, size_in, size_out, _ in architecture.linears if name in named)
    return linears + architecture.hidden_size * sum(end.endswith("layernorm") for end in ends)
