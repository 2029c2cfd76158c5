"""Writes what is generated: docs/options.md, docs/cli.md and ftcore/config/hf_training_arguments.json. ``--check`` only
compares.

python docs/generate.py [--check]
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLAIN = {int: "int", float: "float", str: "str", bool: "bool", list: "list", dict: "dict", type(None): "none"}


def type_names(annotation: Any) -> tuple[list[str], list[str]]:
    """Names of the plain types in an annotation, and the choices when it is an enumeration."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [type_names(part) for part in typing.get_args(annotation)]
        choices = [choice for _, found in parts for choice in found]
        return sorted({name for names, _ in parts for name in names}), choices
    if origin in (list, dict):
        return [PLAIN[origin]], []
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ["str"], [member.value for member in annotation]
    return [PLAIN.get(annotation, "str")], []


def training_table() -> str:
    """The fields of Seq2SeqTrainingArguments as JSON."""
    from transformers import Seq2SeqTrainingArguments

    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    rows = []
    for field in dataclasses.fields(Seq2SeqTrainingArguments):
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if isinstance(default, enum.Enum):
            default = default.value
        names, choices = type_names(hints[field.name])
        help_text = " ".join(str(field.metadata.get("help", "")).split())
        rows.append({"name": field.name, "types": names, "choices": choices, "default": default, "help": help_text})
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def generated() -> dict[Path, str]:
    """Path -> text of everything that is generated."""
    from ftcore.cli.docs_reference import cli_reference, options_reference

    return {
        ROOT / "ftcore/config/hf_training_arguments.json": training_table(),
        ROOT / "docs/options.md": options_reference(),
        ROOT / "docs/cli.md": cli_reference(),
    }


def main() -> int:
    """Writes or compares; 1 when something is out of step."""
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if "--check" in sys.argv:
            sys.stderr.write(f"{path.relative_to(ROOT)} is out of step; run make docs\n")
        else:
            path.write_text(text, encoding="utf-8")
            sys.stderr.write(f"wrote {path.relative_to(ROOT)}\n")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
