"""The built-in model families with their templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.api.components import ModelFamily


@dataclass(frozen=True, kw_only=True)
class NamedFamily(ModelFamily):
    """A family that shares its ``model_type`` with others and is identified by words in the model's name.

    Args:
        words: lower-case words, one of which must be in the name; the longest match decides between families.
    """

    words: tuple[str, ...] = ()

    def matches(self, config: Mapping[str, Any], name: str) -> int:
        """Above 1, the score of a match by type only; longer words score higher."""
        found = [len(word) for word in self.words if word in name.lower().replace("_", "-")]
        return 1 + max(found) if found and super().matches(config, name) else 0


def _family(
    name: str, summary: str, types: str, template: str | None, *words: str, media: str = "", image: str = ""
) -> ModelFamily:
    """A row of the table; ``types`` and ``media`` are separated by spaces."""
    fields: dict[str, Any] = {"name": name, "summary": summary, "model_types": tuple(types.split())}
    fields |= {"template": template, "media": tuple(media.split()), "image": image}
    return NamedFamily(**fields, words=words) if words else ModelFamily(**fields)


_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"

FAMILIES: tuple[ModelFamily, ...] = (
    # Llama, and models of its architecture
    _family("llama", "Llama and models of its architecture", "llama", None),
    _family("llama2", "Llama 2 chat", "llama", "llama2", "llama-2-"),
    _family("llama3", "Llama 3", "llama", "llama3", "llama-3-", "llama3-"),
    _family("llama3_1", "Llama 3.1 and 3.3", "llama", "llama3_1", "llama-3.1", "llama-3.3"),
    _family("llama3_2", "Llama 3.2", "llama", "llama3_2", "llama-3.2"),
    _family("llama4", "Llama 4", "llama4 llama4_text", "llama4", media="image"),
    _family("mllama", "Llama 3.2 Vision", "mllama", "mllama", media="image", image="<|image|>"),
    _family("yi", "Yi chat", "llama", "yi", "yi-6b", "yi-9b", "yi-34b", "yi-1.5", "yi-coder"),
    _family("vicuna", "Vicuna", "llama", "vicuna", "vicuna"),
    _family("smollm", "SmolLM", "llama", "smollm", "smollm-"),
    _family("smollm2", "SmolLM2", "llama", "smollm2", "smollm2-"),
    _family("smollm3", "SmolLM3", "smollm3", "smollm3"),
    _family("tinyllama", "TinyLlama chat", "llama", "zephyr", "tinyllama"),
    _family("solar", "Solar", "llama", "solar", "solar-10.7b"),
    _family("xuanyuan", "XuanYuan", "llama", "xuanyuan", "xuanyuan"),
    _family("index", "Index", "llama index", "index", "index-1.9b"),
    _family("opencoder", "OpenCoder", "llama", "opencoder", "opencoder"),
    _family("seed_coder", "Seed-Coder", "llama", "seed_coder", "seed-coder"),
    _family("deepseek_llm", "DeepSeek LLM", "llama", "deepseek", "deepseek-llm", "deepseek-math"),
    _family("deepseek_coder", "DeepSeek Coder", "llama", "deepseekcoder", "deepseek-coder"),
    _family("deepseek_r1_distill", "DeepSeek R1 distilled", "llama qwen2", "deepseekr1", "deepseek-r1-distill"),
    _family("yuan", "Yuan 2", "yuan", "yuan"),
    _family("aeva", "AEVA", "llama qwen2 qwen3", "aeva", "aeva-"),
    _family("hermes3", "Hermes 2 Pro and 3", "llama mistral", "hermes3", "hermes-2-pro", "hermes-3"),
    _family("bielik", "Bielik 3", "llama mistral", "bielik", "bielik-11b-v3"),
    _family(
        "functionary", "Functionary 3.1", "llama", "functionary3_1", "functionary-medium-v3.1", "functionary-small-v3.1"
    ),
    _family(
        "functionary_3_2",
        "Functionary 3.2",
        "llama",
        "functionary3_2",
        "functionary-medium-v3.2",
        "functionary-small-v3.2",
    ),
    _family("firefunction", "FireFunction 2", "llama", "firefunction2", "firefunction-v2"),
    # Qwen
    _family("qwen2", "Qwen 2 and 2.5", "qwen2 qwen2_moe", "qwen"),
    _family("sailor", "Sailor", "qwen2", "sailor", "sailor"),
    _family("qwq", "QwQ", "qwen2", "qwq", "qwq-"),
    _family("qwen3", "Qwen 3", "qwen3 qwen3_moe qwen3_next", "qwen3"),
    _family("qwen3_instruct", "Qwen 3 without thinking", "qwen3 qwen3_moe qwen3_next", "qwen3_nothink", "-instruct"),
    _family("qwen3_coder", "Qwen 3 Coder", "qwen3_moe qwen3_next", "qwen3_coder", "qwen3-coder"),
    _family(
        "qwen3_5",
        "Qwen 3.5",
        "qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text",
        "qwen3_5",
        media="image video",
        image=_QWEN_IMAGE,
    ),
    _family("qwen2_vl", "Qwen 2 and 2.5 VL", "qwen2_vl qwen2_5_vl", "qwen2_vl", media="image video", image=_QWEN_IMAGE),
    _family(
        "qwen3_vl", "Qwen 3 VL", "qwen3_vl qwen3_vl_moe", "qwen3_vl_nothink", media="image video", image=_QWEN_IMAGE
    ),
    _family(
        "qwen3_vl_thinking",
        "Qwen 3 VL Thinking",
        "qwen3_vl qwen3_vl_moe",
        "qwen3_vl",
        "thinking",
        media="image video",
        image=_QWEN_IMAGE,
    ),
    _family("qwen2_audio", "Qwen 2 Audio, its text", "qwen2_audio", "qwen2_audio"),
    _family(
        "qwen2_omni",
        "Qwen 2.5 Omni, without audio",
        "qwen2_5_omni",
        "qwen2_omni",
        media="image video",
        image=_QWEN_IMAGE,
    ),
    _family(
        "qwen3_omni",
        "Qwen 3 Omni, without audio",
        "qwen3_omni_moe",
        "qwen3_omni",
        media="image video",
        image=_QWEN_IMAGE,
    ),
    # Mistral
    _family("mistral", "Mistral and Mixtral", "mistral mixtral", "mistral"),
    _family("mistral_nemo", "Mistral Nemo and Ministral", "mistral ministral", "ministral", "nemo", "ministral"),
    _family(
        "mistral_small",
        "Mistral Small",
        "mistral mistral3",
        "mistral_small",
        "mistral-small",
        media="image",
        image="[IMG]",
    ),
    _family(
        "ministral3", "Ministral 3", "ministral3 mistral3", "ministral3", "ministral-3", media="image", image="[IMG]"
    ),
    _family("pixtral", "Pixtral", "pixtral llava", "pixtral", "pixtral", media="image", image="[IMG]"),
    _family("devstral", "Devstral Small 1.1", "mistral", "devstral", "devstral-small-2507", "devstral-small-1.1"),
    _family("apriel", "Apriel 1.5", "apriel pixtral llava", "apriel", "apriel-1.5", media="image"),
    _family("apriel_1_6", "Apriel 1.6", "apriel pixtral llava", "apriel1_6", "apriel-1.6", media="image"),
    _family("zephyr", "Zephyr", "mistral", "zephyr", "zephyr"),
    _family("openchat", "OpenChat", "mistral", "openchat", "openchat"),
    _family("openchat_3_6", "OpenChat 3.6", "llama", "openchat-3.6", "openchat-3.6"),
    _family("breeze", "Breeze", "mistral", "breeze", "breeze"),
    # Google
    _family("gemma", "Gemma", "gemma", "gemma"),
    _family("gemma2", "Gemma 2", "gemma2", "gemma2"),
    _family("gemma3", "Gemma 3", "gemma3 gemma3_text", "gemma3", media="image", image="<start_of_image>"),
    _family("gemma3n", "Gemma 3n", "gemma3n gemma3n_text", "gemma3n", media="image"),
    _family("gemma4", "Gemma 4", "gemma4 gemma4_text gemma4_unified gemma4_unified_text", "gemma4", media="image"),
    _family("paligemma", "PaliGemma", "paligemma", "paligemma", media="image", image="<image>"),
    # DeepSeek, Moonshot
    _family("deepseek_v3", "DeepSeek V2 and V3", "deepseek_v2 deepseek_v3", "deepseek3"),
    _family("deepseek_v3_1", "DeepSeek V3.1", "deepseek_v3", "deepseek3_1", "deepseek-v3.1"),
    _family("deepseek_r1", "DeepSeek R1", "deepseek_v3", "deepseekr1", "deepseek-r1"),
    _family("deepseek_v3_2", "DeepSeek V3.2", "deepseek_v32", "deepseek3_2"),
    _family("deepseek_v4", "DeepSeek V4", "deepseek_v4", "deepseek4"),
    _family("moonlight", "Moonlight", "deepseek_v3", "moonlight", "moonlight"),
    _family("kimi_vl", "Kimi VL", "kimi_vl", "kimi_vl", media="image"),
    _family("kimi_k2", "Kimi K2", "kimi_k2 deepseek_v3", "kimi_k2", "kimi-k2"),
    _family("kimi_k2_thinking", "Kimi K2 Thinking", "kimi_k2 deepseek_v3", "kimi_k2_thinking", "kimi-k2-thinking"),
    _family("gigachat3", "GigaChat 3", "deepseek_v3", "gigachat3", "gigachat3-"),
    _family("gigachat3_1", "GigaChat 3.1", "deepseek_v3", "gigachat3_1", "gigachat3.1"),
    # Zhipu
    _family("chatglm", "ChatGLM 3", "chatglm", "chatglm"),
    _family("glm4", "GLM 4", "glm glm4", "glm4"),
    _family("glm_z1", "GLM Z1", "glm4", "glmz1", "glm-z1"),
    _family("glm4_moe", "GLM 4.5 and 4.6", "glm4_moe", "glm4_moe"),
    _family("glm4_7", "GLM 4.7", "glm4_moe glm4_moe_lite", "glm4_7", "glm-4.7"),
    _family("glm4v", "GLM 4.1V", "glm4v", "glm4v", media="image video", image=_GLM_IMAGE),
    _family("glm4_5v", "GLM 4.5V", "glm4v_moe", "glm4_5v", media="image video", image=_GLM_IMAGE),
    _family("glm_ocr", "GLM OCR", "glm_ocr", "glm_ocr", media="image"),
    # Others, by name
    _family("cohere", "Command R", "cohere", "cohere"),
    _family("cohere2", "Command R7B", "cohere2", "cohere2", "command-r7b"),
    _family("cohere2_moe", "Cohere's second mixture of experts", "cohere2_moe", "cohere2_moe"),
    _family("apertus", "Apertus", "apertus", "apertus"),
    _family("dbrx", "DBRX", "dbrx", "dbrx"),
    _family("dots_ocr", "dots.ocr", "dots_ocr", "dots_ocr", media="image"),
    _family("ernie", "ERNIE 4.5", "ernie4_5 ernie4_5_moe", "ernie_nothink"),
    _family("ernie_thinking", "ERNIE 4.5 Thinking", "ernie4_5 ernie4_5_moe", "ernie", "thinking"),
    _family("ernie_vl", "ERNIE 4.5 VL", "ernie4_5_vl_moe", "ernie_vl", media="image video"),
    _family("exaone", "EXAONE 3", "exaone", "exaone"),
    _family("falcon", "Falcon", "falcon", "falcon"),
    _family("falcon_h1", "Falcon H1", "falcon_h1", "falcon_h1"),
    _family("gpt_oss", "gpt-oss", "gpt_oss", "gpt_oss"),
    _family("granite3", "Granite 3", "granite granitemoe granitemoeshared", "granite3"),
    _family("granite4", "Granite 4", "granitemoehybrid", "granite4"),
    _family("hunyuan", "Hunyuan MoE", "hunyuan_v1_moe", "hunyuan"),
    _family("hunyuan_dense", "Hunyuan dense", "hunyuan_v1_dense", "hunyuan_small"),
    _family("hunyuan_dense_7b", "Hunyuan dense 7B", "hunyuan_v1_dense", "hy_dense_7b", "-7b"),
    _family("hy3", "Hunyuan 3", "hy_v3", "hy3"),
    _family("intern2", "InternLM 2 and 3", "internlm2 internlm3", "intern2"),
    _family("intern_s1", "Intern-S1", "interns1", "intern_s1", media="image video"),
    _family("intern_vl", "InternVL", "internvl internvl_chat", "intern_vl", media="image video"),
    _family("keye_vl", "Keye VL", "keye", "keye_vl", media="image video"),
    _family("laguna", "Laguna XS 2", "laguna", "laguna"),
    _family("laguna_2_1", "Laguna XS 2.1", "laguna", "laguna_2_1", "laguna-xs-2.1"),
    _family("laguna_s", "Laguna S 2.1", "laguna", "laguna_s", "laguna-s-"),
    _family("lfm2", "LFM2", "lfm2 lfm2_moe", "lfm2"),
    _family("lfm2_vl", "LFM2 VL", "lfm2_vl", "lfm2_vl", media="image"),
    _family("ling", "Ling", "bailing_moe", "bailing"),
    _family("ling_2", "Ling 2", "bailing_moe_v2", "bailing_v2"),
    _family("ling_3", "Ling 3", "bailing_hybrid", "bailing_v3"),
    _family("llava", "LLaVA 1.5", "llava", "llava", media="image", image="<image>"),
    _family("llava_next", "LLaVA NeXT", "llava_next", "llava_next", media="image"),
    _family("llava_next_llama3", "LLaVA NeXT on Llama 3", "llava_next", "llava_next_llama3", "llama3", media="image"),
    _family(
        "llava_next_mistral", "LLaVA NeXT on Mistral", "llava_next", "llava_next_mistral", "mistral", media="image"
    ),
    _family("llava_next_qwen", "LLaVA NeXT on Qwen", "llava_next", "llava_next_qwen", "-72b", "-110b", media="image"),
    _family("llava_next_yi", "LLaVA NeXT on Yi", "llava_next", "llava_next_yi", "-34b", media="image"),
    _family("llava_next_video", "LLaVA NeXT Video", "llava_next_video", "llava_next_video", media="image video"),
    _family("video_llava", "Video-LLaVA", "video_llava", "video_llava", media="image video"),
    _family("mimo", "MiMo", "mimo", "mimo"),
    _family("mimo_v2", "MiMo V2", "mimo_v2_flash", "mimo_v2"),
    _family("minicpm3", "MiniCPM 3", "minicpm minicpm3", "cpm4"),
    _family("minicpm_v", "MiniCPM V", "minicpmv", "minicpm_v", media="image video"),
    _family("minicpm_v_4_6", "MiniCPM V 4.6", "minicpmv4_6", "minicpm_v_4_6", media="image video"),
    _family("minicpm_o", "MiniCPM o, without audio", "minicpmo", "minicpm_o", media="image video"),
    _family("minicpm5", "MiniCPM 5", "llama minicpm", "minicpm5", "minicpm5-"),
    _family("minimax_m1", "MiniMax M1", "minimax", "minimax1"),
    _family("minimax_m2", "MiniMax M2", "minimax_m2", "minimax2"),
    _family("minimax_m3", "MiniMax M3", "minimax_m3_vl", "minimax3", media="image video"),
    _family("muse_glimmer", "Muse Glimmer", "muse_glimmer", "muse_glimmer", media="image video"),
    _family("nemotron_v2", "Nemotron Nano 2", "nemotron_h", "nemotron_v2", "nano-9b-v2", "nano-12b-v2"),
    _family("nemotron3", "Nemotron 3 Nano and Super", "nemotron_h", "nemotron3", "nemotron-3-nano", "nemotron-3-super"),
    _family("nemotron3_ultra", "Nemotron 3 Ultra", "nemotron_h", "nemotron3_ultra", "nemotron-3-ultra", "nemotron-3.5"),
    _family("olmo", "OLMo and OLMoE", "olmo olmoe", "olmo"),
    _family("olmo2", "OLMo 2", "olmo2", None),
    _family("phi3", "Phi 3", "phi3 phimoe", "phi"),
    _family("phi3_small", "Phi 3 small", "phi3small", "phi_small"),
    _family("phi4", "Phi 4", "phi3", "phi4", "phi-4"),
    _family("phi4_mini", "Phi 4 mini", "phi3", "phi4_mini", "phi-4-mini"),
    _family("seed_oss", "Seed OSS", "seed_oss", "seed_oss"),
    _family("step3_5", "Step 3.5", "step3p5", "step3_5"),
    _family("telechat2", "TeleChat 2", "telechat", "telechat2"),
    _family("youtu", "Youtu", "youtu", "youtu"),
)
"""Families; without a template, the tokenizer's own is used. Audio is not supported."""
