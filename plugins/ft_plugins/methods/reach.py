"""The share of adapted and of quantised weights: counted on a model, or estimated from its config.json."""

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
"""Model type -> names that peft 0.21 treats as those of experts in transformers 4; see `taken_names`."""


def taken_names(model: PreTrainedModel, names: Sequence[str]) -> tuple[str, ...]:
    """Ends of names that peft treats as names of experts instead of linear layers.

    In transformers 4 each expert was three linear layers. peft converts adapters of that form, and new configurations
    too. DeepSeek-V3 would get one adapter on all experts instead of adapters on dense layers and shared experts. That
    adapter supports neither dropout nor concurrent threads, and adapters on the linear layers would not load.
    """
    if find_spec("peft.utils.transformers_weight_conversion") is None:
        return ()  # peft before 0.19
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def taken(name: str) -> bool:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # the name is one of two that are merged into one tensor now
            return True
        return name not in set(config.target_modules or ())

    return tuple(end for end in sorted({name.rsplit(".", 1)[-1] for name in names}) if taken(end))


def note_of(names: Sequence[str]) -> str:
    """The reason why layers of these names have no adapter."""
    listed = ", ".join(names)
    return f"linear layers named {listed} get no adapter, because peft treats them as experts" if names else ""


def counted(
    model: Any, *, quantizes: bool, fresh: bool, frozen: Callable[[str], bool] = lambda name: False
) -> Coverage:
    """Counts adapted and quantised weights of a model with an adapter.

    Args:
        model: a PeftModel.
        quantizes: whether the method quantises linear layers.
        fresh: whether the adapter is new and targets all linear layers.
        frozen: whether options freeze the module at a path.
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
        size: number of weights, however they are stored.
        expert: whether it belongs to experts and not to a linear layer.
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
                size = tensor.numel() * (1 if tensor.is_floating_point() else 2)  # a byte holds two 4-bit weights
                yield _Weight(path, module, name, size, expert=True)


def _of_experts(path: str, owner: nn.Module, name: str, tensor: Any) -> bool:
    kind = type(owner).__name__
    if tensor.ndim == 2:  # DBRX concatenates its experts
        return "Expert" in kind and "bias" not in name and "norm" not in kind.lower()
    return tensor.ndim >= 3 and ("expert" in path or "Expert" in kind)


def _size(layer: nn.Module) -> int:
    """Number of weights of a linear layer, however they are stored."""
    weight = getattr(layer, "weight", None)
    if weight is not None and weight.is_floating_point():
        return int(weight.numel())
    return int(getattr(layer, "in_features", 0)) * int(getattr(layer, "out_features", 0))


def planned(plan: Plan, targets: tuple[str, ...] | None, whole: tuple[str, ...], *, quantizes: bool) -> Coverage | None:
    """The same from config.json alone.

    Args:
        plan: its model's.
        targets: ends of names of the linear layers that get an adapter; ``all`` for all; None where unknown.
        whole: modules that are trained in full.
        quantizes: whether linear layers are quantised.

    Returns:
        None where config.json is unknown, or describes a model without experts that cannot be counted.
    """
    if not (config := plan.config):
        return None
    found, kind = matrices(config), str(config.get("model_type"))
    names = TAKEN.get(kind, ())
    named = targets is not None and targets != ("all",)
    if found is None or targets is None or (named and {_end(name) for name in targets or ()} & set(names)):
        why = "names of its experts are targets" if found else "its linear layers cannot be counted from config.json"
        return Coverage(unknown=f"{kind} has experts, and {why}") if has_experts(config) else None
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
    """``target_modules`` of an adapter on disk; None where they are not listed."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    listed = settings.get("target_modules")
    return tuple(listed) if isinstance(listed, list) and not settings.get("target_parameters") else None


def _fits(name: str, ends: Sequence[str]) -> bool:
    """Whether a layer matches any of these ends of names; a name without a path is compared with their last parts."""
    if "." not in name:
        return name in {_end(end) for end in ends}
    return any(name == end or name.endswith(f".{end}") or end.endswith(f".{name}") for end in ends)


def _end(name: str) -> str:
    return name.rsplit(".", 1)[-1]
