"""A tokenizer that has every special token of the built-in templates."""

from __future__ import annotations

from typing import Any

import pytest

TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[gMASK]",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|im_end|>",
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE; ``<tool_call>`` is an added token that is not special, as in Qwen's tokenizer."""
    from ftcore.testing import tiny_tokenizer

    made = tiny_tokenizer(TOKENS)
    made.bos_token = "<|begin_of_text|>"
    made.add_tokens(["<tool_call>", "</tool_call>"])
    return made
