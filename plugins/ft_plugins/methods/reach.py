"""What part of the weights adapters and quantisation reach: counted on a model, and beforehand from its config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftcore.models.adapters import CONFIG
from ftcore.resources.coverage import Coverage
from ftcore.resources.experts import has_experts, matrices

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan

_QWEN = ("gate", "gate_proj", "up_proj", "down_proj")
_MIXTRAL = ("gate", "w1", "w2", "w3")
TAKEN = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), _MIXTRAL),
    **dict.fromkeys(
        (
            *("afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe"),
            *("exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe"),
            *("longcat_flash", "mellum", "olmoe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe"),
            *("qwen3_omni_moe_thinker", "qwen3_omni_moe_text", "solar_open"),
        ),
        _QWEN,
    ),
}
"""Model type -> names that peft 0.21 reads as those of experts, as they were in transformers 4 (`taken_names`)."""


def taken_names(model: PreTrainedModel, names: Sequence[str]) -> tuple[str, ...]:
    """The names, or ends of names, that peft would take for experts' instead of the linear layers that have them.

    It reads adapters of transformers 4 so, where each expert was three linear layers, and does it to new ones too: a
    DeepSeek-V3 would get no adapters on its dense layers and shared experts, but one of all experts together, which
    knows no dropout and no second thread, and nobody loads the ones on the linear layers.
    """
    if find_spec("peft.utils.transformers_weight_conversion") is None:
        return ()  # peft before 0.19
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def taken(name: str) -> bool:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # one of two that are one tensor now
            return True
        return name not in set(config.target_modules or ())

    return tuple(end for end in sorted({name.rsplit(".", 1)[-1] for name in names}) if taken(end))


def note_of(names: Sequence[str]) -> str:
    """Why layers of these names have no adapter."""
    listed = ", ".join(names)
    return f"linear layers named {listed} have none, since peft takes these names for experts'" if names else ""


def counted(
    model: Any, *, quantizes: bool, fresh: bool, frozen: Callable[[str], bool] = lambda name: False
) -> Coverage:
    """What is reached of a model with an adapter.

    Args:
        model: peft's.
        quantizes: whether its linear layers are meant to be quantised.
        fresh: whether the adapter was meant for all of them.
        frozen: whether a part, by its path, is meant to stay as it is.
    """
    base, adapted, total, without = model.get_base_model(), _adapted(model), Coverage(), list[str]()
    for weight in _weights(base):
        has = (id(weight.owner), weight.name) in adapted
        reachable = has or not frozen(weight.path)
        if reachable and not has and not weight.expert:
            without.append(weight.path)
        total = replace(
            total,
            adaptable=total.adaptable + weight.size * reachable,
            adapted=total.adapted + weight.size * has,
            quantizable=total.quantizable + weight.size * quantizes,
            quantized=total.quantized + weight.size * (quantizes and weight.quantised),
            experts=total.experts + weight.size * weight.expert,
        )
    return replace(total, note=note_of(taken_names(base, without)) if fresh else "")


class _Weight(NamedTuple):
    """A weight of a linear layer or of experts.

    Args:
        path: of its owner, without what peft adds to it.
        owner: the module that holds it.
        name: in its owner.
        size: how many numbers, whatever they are stored in.
        expert: whether it is no linear layer's.
    """

    path: str
    owner: nn.Module
    name: str
    size: int
    expert: bool

    @property
    def quantised(self) -> bool:
        """Whether it is stored in integers."""
        tensor = getattr(self.owner, self.name, None)
        return tensor is not None and not tensor.is_floating_point()


def _adapted(model: Any) -> set[tuple[int, str]]:
    """Owner and name of each weight that has an adapter or is trained in full."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    found = set()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            found.add((id(layer.get_base_layer()), getattr(layer, "parameter_name", None) or "weight"))
        elif isinstance(layer, ModulesToSaveWrapper):
            found |= {(id(inner), "weight") for inner in layer.original_module.modules()}
    return found


def _weights(model: PreTrainedModel) -> Iterator[_Weight]:
    from ft_plugins.methods.adapters import is_linear

    heads = [head for head in (model.get_output_embeddings(), getattr(model, "score", None)) if head is not None]
    left_out = {id(module) for head in heads for module in head.modules()}
    for full, module in model.named_modules():
        parts = full.split(".")
        if id(module) in left_out or any(part.startswith("lora_") or part == "modules_to_save" for part in parts):
            continue
        path = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
        if is_linear(module):
            yield _Weight(path, module, "weight", _size(module), expert=False)
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if _of_experts(path, module, name, tensor):
                size = tensor.numel() * (1 if tensor.is_floating_point() else 2)  # of four bits two lie in a byte
                yield _Weight(path, module, name, size, expert=True)


def _of_experts(path: str, owner: nn.Module, name: str, tensor: Any) -> bool:
    kind = type(owner).__name__
    if tensor.ndim == 2:  # DBRX lays its experts end to end
        return "Expert" in kind and "bias" not in name and "norm" not in kind.lower()
    return tensor.ndim >= 3 and ("expert" in path or "Expert" in kind)


def _size(layer: nn.Module) -> int:
    """Of a linear layer's weight, whatever it is stored in."""
    weight = getattr(layer, "weight", None)
    if weight is not None and weight.is_floating_point():
        return int(weight.numel())
    return int(getattr(layer, "in_features", 0)) * int(getattr(layer, "out_features", 0))


def planned(plan: Plan, targets: tuple[str, ...] | None, whole: tuple[str, ...], *, quantizes: bool) -> Coverage | None:
    """The same from config.json alone.

    Args:
        plan: its model's.
        targets: ends of names of the linear layers that get an adapter; ``all`` for all; None where nobody knows.
        whole: modules that are trained in full.
        quantizes: whether linear layers are quantised.

    Returns:
        None where the config.json is not known, or there is nothing to say of it.
    """
    if not (config := plan.config):
        return None
    found, kind = matrices(config), str(config.get("model_type"))
    names = TAKEN.get(kind, ())
    named = targets is not None and targets != ("all",)
    if found is None or targets is None or (named and {_end(name) for name in targets or ()} & set(names)):
        told = "it names its experts'" if found else "its linear layers are not counted here"
        return Coverage(unknown=f"{kind} has experts, and {told}") if has_experts(config) else None
    taken = [end for end in names if not named and any(_end(name) == end for name, *_ in found.linears)]

    def reached(name: str) -> bool:
        return _fits(name, whole) or (_fits(name, targets) if named else _end(name) not in taken)

    every = found.linear + found.experts
    adapted = sum(wide * high * count for name, wide, high, count in found.linears if reached(name))
    return Coverage(
        adaptable=every,
        adapted=adapted,
        quantizable=every if quantizes else 0,
        quantized=found.linear - found.odd if quantizes else 0,
        experts=found.experts,
        note=note_of(sorted(taken)),
    )


def saved_targets(folder: Path) -> tuple[str, ...] | None:
    """Ends of names that an adapter on disk has; None where they are not listed."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    listed = settings.get("target_modules")
    return tuple(listed) if isinstance(listed, list) and not settings.get("target_parameters") else None


def _fits(name: str, ends: Sequence[str]) -> bool:
    """Whether a layer is meant by any of these; where only its end is known, by their ends."""
    if "." not in name:
        return name in {_end(end) for end in ends}
    return any(name == end or name.endswith(f".{end}") or end.endswith(f".{name}") for end in ends)


def _end(name: str) -> str:
    return name.rsplit(".", 1)[-1]
