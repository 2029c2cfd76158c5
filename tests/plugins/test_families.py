"""Model families: types and names to templates."""

from __future__ import annotations

import pytest

from ft_plugins.models.families import FAMILIES
from ftcore.api.components import ChatTemplate, ModelFamily


def family(model_type: str, name: str) -> ModelFamily | None:
    scores = [(member.matches({"model_type": model_type}, name), member.name) for member in FAMILIES]
    best = max(score for score, _ in scores)
    found = [member for score, member in scores if score == best > 0]
    assert len(found) <= 1, found
    return next((member for member in FAMILIES if found and member.name == found[0]), None)


def test_at_least_sixty_and_every_template_is_there(built_in) -> None:
    assert len(FAMILIES) > 60
    assert len({member.name for member in FAMILIES}) == len(FAMILIES)
    for member in FAMILIES:
        if member.template:
            assert built_in.find(ChatTemplate, member.template)


@pytest.mark.parametrize(
    ("model_type", "name", "template"),
    [
        ("llama", "org/some-model", None),
        ("llama", "meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        ("llama", "meta-llama/Llama-3.1-8B-Instruct", "llama3_1"),
        ("llama", "meta-llama/Llama-3.2-1B-Instruct", "llama3_2"),
        ("llama", "meta-llama/Llama-2-7b-chat-hf", "llama2"),
        ("llama", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseekr1"),
        ("qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseekr1"),
        ("qwen2", "Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("qwen3", "Qwen/Qwen3-0.6B", "qwen3"),
        ("qwen3", "Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothink"),
        ("qwen3_moe", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder"),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_vl"),
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("mistral", "mistralai/Mistral-Nemo-Instruct-2407", "ministral"),
        ("gemma3_text", "google/gemma-3-270m-it", "gemma3"),
        ("phi3", "microsoft/Phi-3.5-mini-instruct", "phi"),
        ("phi3", "microsoft/phi-4", "phi4"),
        ("phi3", "microsoft/Phi-4-mini-instruct", "phi4_mini"),
        ("deepseek_v3", "deepseek-ai/DeepSeek-V3.1", "deepseek3_1"),
        ("glm4_moe", "zai-org/GLM-4.6", "glm4_moe"),
        ("glm4_moe", "zai-org/GLM-4.7", "glm4_7"),
        ("hunyuan_v1_dense", "tencent/Hunyuan-1.8B-Instruct", "hunyuan_small"),
    ],
)
def test_a_models_template(model_type: str, name: str, template: str | None) -> None:
    found = family(model_type, name)
    assert found is not None
    assert found.template == template


def test_an_unknown_type_has_no_family() -> None:
    assert family("zap", "org/zap") is None
    assert family("mamba", "org/llama-3-zap") is None


def test_no_type_ties() -> None:
    for model_type in sorted({model_type for member in FAMILIES for model_type in member.model_types}):
        family(model_type, "org/model")
