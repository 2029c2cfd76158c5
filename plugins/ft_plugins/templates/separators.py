"""Templates that differ only in the strings around turns.

Their source is these strings followed by ``separators.jinja``, because it is saved with the tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BOS, EOS = "{{ bos_token }}", "{{ eos_token }}"
"""Placeholders in strings: the tokenizer's begin-of-sequence token, if any, and end-of-sequence token."""

_BODY = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
_TOKENS = re.compile(f"({re.escape(BOS)}|{re.escape(EOS)})")
_NEEDS_EOS = (
    "{%- if not eos_token %}\n"
    "    {{- raise_exception('it ends answers with eos_token, which the tokenizer does not have') }}\n"
    "{%- endif %}"
)
_EXPRESSIONS = {BOS: "bos_token | default('')", EOS: "eos_token"}


@dataclass(frozen=True, kw_only=True)
class Separators:
    """The strings around turns.

    Args:
        start: text at the start of the conversation.
        system: text before and after the system message.
        system_when: when ``system`` is written: ``text``: for a non-empty system message; ``given``: also for an empty
            one; ``always``: also without one.
        system_inside: whether the system message is inside the first user turn.
        user: text before and after a user message.
        answer: text before an answer, and end of a prompt.
        lead: start of an answer, such as the space of ``ASSISTANT: Hello``, which tokenizers join to the word.
        stop: end of an answer.
        earlier_stop: end of an answer that is not the last message; None for ``stop``.
        gap: text between the end of an answer and the next turn.
        trim: whether white space around contents is stripped.
        image, video: placeholder of an image or a video; a message's placeholders precede its text.
    """

    start: str = ""
    system: tuple[str, str] = ("", "")
    system_when: Literal["text", "given", "always"] = "text"
    system_inside: bool = False
    user: tuple[str, str] = ("", "")
    answer: str = ""
    lead: str = ""
    stop: str = EOS
    earlier_stop: str | None = None
    gap: str = ""
    trim: bool = False
    image: str = ""
    video: str = ""

    def source(self, default_system: str | None = None) -> str:
        """The Jinja source; ``default_system`` is the system message of conversations without one."""
        values = {
            "start": self.start,
            "before_system": self.system[0],
            "after_system": self.system[1],
            "before_user": self.user[0],
            "after_user": self.user[1],
            "before_answer": self.answer,
            "lead": self.lead,
            "stop": self.stop,
            "earlier_stop": self.stop if self.earlier_stop is None else self.earlier_stop,
            "gap": self.gap,
            "image": self.image,
            "video": self.video,
        }
        head = [f"{{%- set {name} = {_expression(value)} %}}" for name, value in values.items()]
        switches = {
            "system_given": self.system_when == "given",
            "system_always": self.system_when == "always",
            "system_inside": self.system_inside,
            "trimmed": self.trim,
        }
        head += [f"{{%- set {name} = {str(value).lower()} %}}" for name, value in switches.items()]
        if EOS in "".join(values.values()):
            head.insert(0, _NEEDS_EOS)
        if default_system is not None:
            head.insert(0, f"{{%- set default_system = default_system | default({_literal(default_system)}) %}}")
        return "\n".join([*head, _BODY])


def _expression(text: str) -> str:
    """A string with ``BOS`` and ``EOS`` as a Jinja expression."""
    pieces = [_EXPRESSIONS.get(piece) or _literal(piece) for piece in _TOKENS.split(text) if piece]
    return " + ".join(f"({piece})" if "|" in piece and len(pieces) > 1 else piece for piece in pieces) or "''"


def _literal(text: str) -> str:
    """A Jinja string literal; Jinja has Python's escapes."""
    return repr(text)
