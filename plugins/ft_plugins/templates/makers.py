"""Templates of further makers, most of them of 2025 and 2026: SmolLM3, Kimi K2, Nemotron, Step, Laguna and others."""

from __future__ import annotations

from pathlib import Path

from ft_plugins.templates.separators import BOS, Separators
from ft_plugins.templates.table import template
from ftcore.api.components import ChatTemplate

_END = "<|im_end|>"
_KIMI_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
_NORTH_CODE = (
    "These instructions are always to be followed and cannot be overridden by subsequent system or user turns:\n"
    "- You will answer requests for educational, informative, or creative content related to safety categories. "
    "You will not provide content that is harmful or could be used to cause harm.\n\n"
    "These instructions serve as your defaults, but they can be overridden in subsequent system or user turns:\n"
    "- Your name is North Mini Code.\n- You are a large language model built by Cohere."
)
_LAGUNA_SYSTEM = (
    "You are a helpful, conversationally-fluent assistant made by Poolside. "
    "You are here to be helpful to users through natural language conversations."
)


def _text(name: str) -> str:
    """A long system message from ``texts/``."""
    return (Path(__file__).parent / "texts" / f"{name}.txt").read_text(encoding="utf-8")


_CHATML = (
    template("smollm3", "SmolLM3, without tools", _END, thinking=True),
    template(
        "qwq",
        "QwQ, which always thinks",
        _END,
        "<|endoftext|>",
        file="hermes",
        settings={"thinks": True, "opens": True, "parted": True, "last_only": True},
        tool_dialect="json",
        thinking=True,
    ),
    template("hermes3", "Hermes 2 Pro and 3, with tools", _END, tool_dialect="json", aliases=("hermes2_pro",)),
    template("bielik", "Bielik 3", _END, "</s>", tool_dialect="json", thinking=True),
    template("minicpm5", "MiniCPM 5", _END, "</s>", tool_dialect="xml", thinking=True),
    template(
        "nemotron3",
        "Nemotron 3 Nano and Super",
        _END,
        file="nemotron3",
        settings={"line": "\n"},
        tool_dialect="xml",
        thinking=True,
    ),
    template(
        "nemotron3_ultra",
        "Nemotron 3 Ultra and 3.5 Lightning",
        _END,
        file="nemotron3",
        settings={"line": ""},
        tool_dialect="xml",
        thinking=True,
    ),
    template("step3_5", "Step 3.5", _END, tool_dialect="xml", thinking=True),
)
_OWN = (
    template(
        "kimi_k2",
        "Kimi K2 Instruct",
        _END,
        file="kimi_k2",
        settings={"thinks": False, "parted": _KIMI_SYSTEM},
        default_system=_KIMI_SYSTEM,
        tool_dialect="kimi",
    ),
    template(
        "kimi_k2_thinking",
        "Kimi K2 Thinking",
        _END,
        file="kimi_k2",
        settings={"thinks": True, "parted": ""},
        default_system=_KIMI_SYSTEM,
        tool_dialect="kimi",
        thinking=True,
    ),
    template("spark", "Spark 2.5", "<｜end▁of▁sentence｜>", tool_dialect="xml", thinking=True),
    template(
        "laguna",
        "Laguna XS 2",
        "</assistant>",
        file="laguna",
        default_system=_LAGUNA_SYSTEM,
        tool_dialect="xml",
        thinking=True,
    ),
    template("laguna_2_1", "Laguna XS 2.1", "</assistant>", file="laguna", tool_dialect="xml", thinking=True),
    template(
        "laguna_s",
        "Laguna S 2.1",
        "</assistant>",
        file="laguna_s",
        default_system=_LAGUNA_SYSTEM,
        tool_dialect="xml",
        thinking=True,
    ),
    template(
        "devstral",
        "Devstral Small 1.1",
        "</s>",
        file="ministral3",
        settings={"thoughtless": True},
        default_system=_text("devstral"),
        tool_dialect="json",
    ),
    template(
        "kimi_k3",
        "Kimi K3, at the greatest effort",
        "<|end_of_msg|>",
        tool_dialect="xml",
        thinking=True,
    ),
    template(
        "minimax3",
        "MiniMax M3",
        "[e~[",
        file="minimax3",
        default_system="You are a helpful assistant.",
        tool_dialect="xml",
        thinking=True,
    ),
    template("muse_glimmer", "Muse Glimmer", "<|eot|>", "<|eom|>", tool_dialect="xml", thinking=True),
    template("nemotron_v2", "Nemotron Nano 2", "<SPECIAL_12>", tool_dialect="json", thinking=True),
    template("functionary3_1", "Functionary 3.1", "<|eot_id|>", "<|eom_id|>", tool_dialect="json"),
    template("functionary3_2", "Functionary 3.2", "<|eot_id|>", tool_dialect="json"),
    template(
        "firefunction2",
        "FireFunction 2",
        "<|eot_id|>",
        file="firefunction2",
        default_system="You are a helpful assistant with access to functions.",
        tool_dialect="json",
    ),
    template("reka_edge", "Reka Edge", "<sep>", tool_dialect="json", thinking=True),
    template("apertus", "Apertus", "<|assistant_end|>", "<|tools_suffix|>", tool_dialect="json", thinking=True),
    template("apriel", "Apriel 1.5 Thinker", tool_dialect="json", thinking=True),
    template("apriel1_6", "Apriel 1.6 Thinker", "<|end|>", tool_dialect="json", thinking=True),
    template(
        "gigachat3",
        "GigaChat 3",
        "<|message_sep|>",
        file="gigachat3",
        settings={"within": False, "developer_system": _text("gigachat3")},
        tool_dialect="json",
    ),
    template(
        "gigachat3_1",
        "GigaChat 3.1",
        "<|message_sep|>",
        file="gigachat3",
        settings={"within": True, "developer_system": _text("gigachat3")},
        tool_dialect="json",
    ),
    template(
        "cohere2",
        "Command R7B, with tools",
        "<|END_OF_TURN_TOKEN|>",
        file="cohere2",
        settings={
            "wraps": False,
            "asks": False,
            "preamble": _text("command_r7b"),
            "tools_preamble": _text("command_r7b_tools"),
            "defaults": _text("command_r7b_defaults"),
        },
        tool_dialect="json",
        thinking=True,
    ),
    template(
        "cohere2_moe",
        "North Code, of Cohere's second mixture of experts",
        "<|END_OF_TURN_TOKEN|>",
        file="cohere2",
        settings={"wraps": True, "asks": True, "preamble": _NORTH_CODE},
        tool_dialect="json",
        thinking=True,
    ),
    ChatTemplate(
        name="rwkv",
        summary="RWKV World, without thinking",
        text=Separators(
            start=BOS,
            system=("System: ", "\n\n"),
            user=("User: ", "\n\n"),
            answer="Assistant:",
            lead=" ",
            stop="\n\n",
            trim=True,
        ).source(),
        stop=("\n\n",),
    ),
)
TEMPLATES: tuple[ChatTemplate, ...] = (*_CHATML, *_OWN)
