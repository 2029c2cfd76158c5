"""Templates that differ only in the strings between which turns stand.

Their source is ``separators.jinja`` with these strings in front of it: what is saved with a tokenizer must stand alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BOS, EOS = "{{ bos_token }}", "{{ eos_token }}"
"""In a string: the tokenizer's own begin-of-sequence token, if it has one, and its end-of-sequence token."""

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
        start: before everything.
        system: before and after the system message.
        system_when: when these two are written: ``text``, around some text; ``given``, also around an empty system
            message; ``always``, also where there is none.
        system_inside: the system message stands inside the first user turn.
        user: before and after what the user says.
        answer: before what the model says; a prompt ends with it.
        lead: what the model says first, such as the blank of ``ASSISTANT: Hello``: tokenizers join it to the word.
        stop: what the model says last.
        earlier_stop: the same for answers that are not the last message; None for ``stop``.
        gap: what stands between the end of an answer and the next turn.
        trim: whether blanks around contents are cut off.
        image, video: what stands for an image or a video; all of a message's stand before its text.
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
        """The Jinja source; ``default_system`` is the system message of conversations that have none."""
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
    """A string as Jinja writes it: its escapes are Python's."""
    return repr(text)
