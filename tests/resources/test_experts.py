"""What part of the weights is reached: config.json's count against the model's, over all types of transformers."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig
from transformers.models.auto import modeling_auto as known

from ft_plugins.methods.lora import Lora, LoraOptions
from ft_plugins.methods.reach import TAKEN, taken_names
from ft_plugins.models.classes import automatic_class
from ftcore.api.option_groups import MediaOptions, ModelOptions, TrainingOptions
from ftcore.resources.coverage import Coverage
from ftcore.resources.experts import LAYOUTS, has_experts, matrices

TYPES = sorted({*known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})
ODD: dict[str, Any] = {
    "hidden_size": 156,
    "intermediate_size": 352,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "head_dim": 26,
    "num_key_value_heads": 3,
    "vocab_size": 64,
    "moe_intermediate_size": 38,
    "num_experts_per_tok": 2,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 7),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 2),
    "shared_expert_intermediate_size": 46,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 14,
    "q_lora_rank": 22,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 10,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
}
"""A small model of which each size is another number."""
LATENT = {"num_key_value_heads": 6, "head_dim": 4}


def _plan(config: Any, **options: Any) -> Any:
    values = LoraOptions(**options)
    return SimpleNamespace(
        config=json.loads(config.to_json_string()),
        family=None,
        media=MediaOptions(),
        model=ModelOptions(),
        training=TrainingOptions(do_train=True),
        method=SimpleNamespace(component=Lora(name="lora", summary=""), options=values),
        stage=SimpleNamespace(component=SimpleNamespace(head="causal_lm")),
    )


def _config(name: str, **fields: Any) -> Any:
    more = LATENT if name.startswith("deepseek") or getattr(LAYOUTS.get(name), "attention", "") == "mla" else {}
    return AutoConfig.for_model(name, **(fields | more if fields else fields))


def _model(config: Any) -> Any:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return automatic_class(json.loads(config.to_json_string())).from_config(config)


def _both(config: Any, **options: Any) -> tuple[Coverage, Coverage | None]:
    """What is counted on a model with an adapter as a run would put it there, and what a plan says."""
    plan, model = _plan(config, **options), _model(config)
    lora = plan.method.component
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = get_peft_model(model, lora.config(plan, model))
    return lora.coverage(plan, adapted), lora.planned_coverage(plan)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plan_counts_what_a_run_counts(name: str) -> None:
    found, planned = _both(_config(name, **ODD))
    assert planned == found
    assert 0 < found.experts <= found.adaptable - found.adapted
    assert str(planned) == str(found)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name in ("qwen3_moe", "glm4_moe", "deepseek_v3")])
@pytest.mark.parametrize("targets", [("q_proj", "o_proj"), ("self_attn.o_proj",), ("kv_b_proj", "v_proj")])
def test_named_layers(name: str, targets: tuple[str, ...]) -> None:
    found, planned = _both(_config(name, **ODD), lora_target=targets)
    assert planned == found
    assert 0 < found.adapted < found.adaptable / 4


LINE = "of the weights in linear layers and experts "
SAID = {
    "qwen3_moe": LINE + "37.0% have an adapter (365,040 of 987,480); 63.0% are in experts",
    "gpt_oss": LINE + "6.0% have an adapter (365,040 of 6,130,800); 94.0% are in experts",
    "deepseek_v3": LINE
    + "11.6% have an adapter (105,840 of 915,480); 40.8% are in experts; linear layers named down_proj, gate_proj, "
    "up_proj get no adapter, because peft treats them as experts",
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said(name: str) -> None:
    found, planned = _both(_config(name, **ODD))
    assert not found.enough
    assert str(found) == str(planned) == SAID[name]


def test_named_experts_are_adapted_and_no_plan_says_how_many() -> None:
    names = ("gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj")
    found, planned = _both(_config("qwen3_moe", **ODD), lora_target=names)
    assert (found.adapted, found.enough) == (found.adaptable, True)
    assert planned == Coverage(unknown="qwen3_moe has experts, and names of its experts are targets")


def test_a_dense_model_is_reached_whole_and_nothing_is_said() -> None:
    small = {name: value for name, value in ODD.items() if "expert" not in name}
    found, planned = _both(_config("llama", **small))
    assert planned == found
    assert (found.adapted, found.experts, found.enough) == (found.adaptable, 0, True)


def _buildable(name: str) -> tuple[Any, Any] | None:
    for fields in (ODD, {}):
        try:
            config = _config(name, **fields)
            return config, _model(config)
        except Exception:  # sizes that do not suit it, a package that is missing
            continue
    return None


NAMES = (*"gate gate_proj up_proj down_proj w1 w2 w3".split(), "q_proj")


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_every_model_with_experts_is_counted_or_told_to_be_unknown(name: str) -> None:
    """What config.json gives, what peft takes for experts, and that no experts go unseen."""
    if (built := _buildable(name)) is None:
        pytest.skip("transformers does not make one of sizes that are at hand, or a package is missing")
    config, model = built
    fields = json.loads(config.to_json_string())
    assert taken_names(model, NAMES) == tuple(sorted(TAKEN.get(name, ())))
    experts = sum(
        tensor.numel()
        for path, tensor in model.named_parameters()
        if tensor.ndim == 3 and "xpert" in f"{path}{type(model.get_submodule(path.rpartition('.')[0])).__name__}"
    )
    found = matrices(fields)
    assert found is None or found.experts == experts
    assert has_experts(fields) or not experts
