"""A tokenizer for GGUF: tokens with types, merges, and llama.cpp's name of the pre-tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.data.chat_template.renderer import Renderer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's ``llama_token_type``."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[tuple[str, ...], str] = {
    ("byte-level words",): "gpt-2",
    ("digits", "byte-level words"): "smollm",
    (_WORDS % "{1,3}" + _BLANKS, "byte level"): "llama-bpe",
    (_WORDS % "" + _BLANKS, "byte level"): "qwen2",
}
"""Pre-tokenizer -> ``tokenizer.ggml.pre`` (llama.cpp, llama-vocab.cpp)."""
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary to write.

    Args:
        tokenizer: supplies the special tokens.
        model: ``gpt2`` for byte-level BPE, ``llama`` for SentencePiece.
        pre: name of the pre-tokenizer; empty for SentencePiece.
        tokens: tokens with types, by id; None for ids without a token.
        merges: ``left right``, in order.
        prefix: whether a space is added before a text.
    """

    tokenizer: Any
    model: str
    pre: str
    tokens: Sequence[tuple[str, int] | None]
    merges: Sequence[str]
    prefix: bool = False

    def write(self, writer: Any, size: int, renderer: Renderer | None) -> None:
        """Writes the vocabulary with ``size`` tokens, as in the model, and the chat template."""
        found = [*self.tokens, *[None] * max(0, size - len(self.tokens))][:size]
        entries = [entry or (f"[PAD{number}]", _UNUSED) for number, entry in enumerate(found)]
        writer.add_tokenizer_model(self.model)
        writer.add_token_list([token for token, _ in entries])
        writer.add_token_types([kind for _, kind in entries])
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
            writer.add_token_merges(list(self.merges))
        else:
            writer.add_token_scores(self._scores([token for token, _ in entries]))
            writer.add_add_space_prefix(self.prefix)
        self._write_specials(writer, renderer)
        if renderer is not None:
            # llama.cpp's Jinja has no generation marks; `if true` keeps the white space control
            template = _GENERATION.sub(lambda mark: _plain_block(*mark.groups()), renderer.source)
            writer.add_chat_template(template)

    def _scores(self, tokens: Sequence[str]) -> list[float]:
        """Scores for SentencePiece, which merges the highest score first: the negative rank of the merge."""
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(self.merges):
            ranks.setdefault(merge.replace(" ", "", 1), rank)
        lowest = len(self.merges)
        return [-float(ranks.get(token, lowest)) for token in tokens]

    def _write_specials(self, writer: Any, renderer: Renderer | None) -> None:
        tokenizer = self.tokenizer
        stops = [token for token in (renderer.stop_ids if renderer else ()) if token != tokenizer.eos_token_id]
        pairs = [
            (writer.add_bos_token_id, tokenizer.bos_token_id),
            (writer.add_eos_token_id, tokenizer.eos_token_id),
            (writer.add_eot_token_id, stops[0] if stops else None),
            (writer.add_unk_token_id, tokenizer.unk_token_id),
            (writer.add_pad_token_id, tokenizer.pad_token_id),
        ]
        for write, token in pairs:
            if token is not None:
                write(token)
        starts = tokenizer("a")["input_ids"][:1]
        writer.add_add_bos_token(tokenizer.bos_token_id is not None and starts == [tokenizer.bos_token_id])
        writer.add_add_eos_token(False)


def read_vocabulary(tokenizer: Any) -> tuple[Vocabulary | None, str]:
    """The vocabulary of a fast tokenizer, or the reason why llama.cpp does not support it."""
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    model = found["model"]
    if model["type"] != "BPE":
        return None, f"tokenizer type {model['type']} is not supported, only BPE"
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        prefix = "Prepend" in json.dumps(found.get("normalizer")) or '"first"' in json.dumps(found["pre_tokenizer"])
        return Vocabulary(tokenizer, "llama", "", _tokens(tokenizer, model), merges, prefix), ""
    if (pre := SPLITS.get(_splits(found["pre_tokenizer"]))) is None:
        return None, "the pre-tokenizer is not supported"
    return Vocabulary(tokenizer, "gpt2", pre, _tokens(tokenizer, model), merges), ""


def _splits(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The steps of a pre-tokenizer as short names; unknown steps as JSON."""
    steps = pre_tokenizer or {}
    parts = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    names = []
    for part in parts:
        if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
            names.append("byte-level words" if part.get("use_regex", True) else "byte level")
        elif part.get("type") == "Digits" and part.get("individual_digits"):
            names.append("digits")
        elif part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            names.append(part["pattern"].get("Regex", json.dumps(part["pattern"])))
        else:
            names.append(json.dumps(part))
    return tuple(names)


def _tokens(tokenizer: Any, model: Mapping[str, Any]) -> list[tuple[str, int] | None]:
    added = tokenizer.added_tokens_decoder
    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    return [_entry(by_id.get(number), added.get(number), model) for number in range(max(by_id) + 1)]


def _entry(text: str | None, added: Any, model: Mapping[str, Any]) -> tuple[str, int] | None:
    if text is None:
        return None
    if text == model.get("unk_token"):
        return text, _UNKNOWN
    if added is not None:
        return text, _CONTROL if added.special else _USER
    if model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return text, _BYTE
    return text, _NORMAL


def _plain_block(before: str, end: str | None, after: str) -> str:
    return f"{{%{before} {'endif' if end else 'if true'} {after}%}}"
