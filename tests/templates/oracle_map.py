"""What each template is held against, and where it is right to differ: data, one file per group of templates.

``maps/<group>.py`` holds ``ORACLES``, template name -> entry. An entry's keys, all optional:

``oracles``
    oracle -> differences. An oracle is ``<kind>/<name>``: ``shared/`` and ``trl/`` are Jinja files, the other kinds are
    the functions of ``READERS`` in oracles.py. Differences: case (or a pattern such as ``tool*``; ``<case>.prompt`` for
    the generation prompt alone) -> the reason why ours is right. Every one must be there: a stale one is an error.
``layout``
    what the template was written after, where there is no oracle.
``tokens``
    special tokens that the template reads, such as ``bos_token``.
``stops``
    which answers end with a stop token, which is ``eos_token`` where the template names none: ``every`` (unset),
    ``last`` (a layout in which earlier answers just end) or ``none``.
``vision``
    True where the published template takes images as parts of a message.
``prompts``
    case -> why the generation prompt, the answer and blanks do not make up the text (the makers' templates do not let
    the prompt be a prefix of the text, say).
``families``
    models that use it, for the documentation, where no model family of ours names it.
"""

from __future__ import annotations

import runpy
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

GROUPS = ("chatml_like", "own_tokens", "vendors", "makers", "plain")

LEFT_OUT = {
    "shared/CohereForAI-c4ai-command-r-plus-tool_use.jinja": "an instruction to call tools is the end of its "
    "text, also after an answer, so no answer follows the prompt",
    "shared/google-gemma-4-31B-it-interleaved.jinja": "it expects tool results inside the answer that called, and "
    "writes result messages as turns; the template that gemma4 is compared with does not",
    "shared/llama-cpp-deepseek-r1.jinja": "llama.cpp's own: it ends questions with an end-of-sentence token; the "
    "authors' templates, with which deepseekr1 is compared, do not",
    "shared/upstage-Solar-Open-100B.jinja": "thoughts and answers end with the same token, so the end of the model's "
    "turn cannot be found",
}
"""Published templates that no template of ours follows, and why. With such a model the tokenizer's own is used."""

_FOLDER = Path(__file__).parent / "maps"
ENTRIES: dict[str, dict[str, Any]] = {}
for _group in GROUPS:
    ENTRIES |= runpy.run_path(str(_FOLDER / f"{_group}.py"))["ORACLES"]


def reason(differences: dict[str, str], case: str) -> str | None:
    """The reason listed for a case."""
    found = [why for pattern, why in differences.items() if fnmatch(case, pattern)]
    return found[0] if found else None
