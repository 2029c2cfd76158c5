"""The JSON schema of a training file, for completion and checks in editors."""

from __future__ import annotations

from typing import Any

from ftcore.api.components import KINDS
from ftcore.api.registry import Plugins
from ftcore.config.binding import owners, selection_options
from ftcore.config.hf_training_arguments import training_fields
from ftcore.config.training_answers import PASSED_ON

_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array", "dict": "object"}


def json_schema(plugins: Plugins) -> dict[str, Any]:
    """All options of all installed owners with their help, as a schema of draft 2020-12."""
    properties: dict[str, Any] = {}
    for name, known in training_fields().items():
        if name in PASSED_ON:
            properties[name] = _field(known.types, known.choices, known.help, known.default)
    definitions: dict[str, Any] = {}
    for owner, group in owners(plugins).items():
        schema = group.model_json_schema()
        definitions |= schema.get("$defs", {})
        for name, details in schema.get("properties", {}).items():
            properties[name] = _loose(details) | {"description": f"{details.get('description', '')} ({owner})".strip()}
    kinds = {kind.kind: kind for kind in KINDS}
    for option, kind in selection_options().items():
        names = sorted(
            {
                name
                for o in plugins.of(kinds[kind])
                for name in (o.component.name, o.component.aliases, o.full_name)
                if isinstance(name, str)
            }
        )
        properties[option] = {
            "anyOf": [{"enum": names}, {"type": ["string", "null"]}],
            "description": f"Which {kind.replace('_', ' ')}.",
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ft run",
        "type": "object",
        "properties": properties,
        "required": ["model_name_or_path"],
        "$defs": definitions,
    }


def _field(types: tuple[str, ...], choices: tuple[str, ...], help_text: str, default: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": [*(_TYPES[name] for name in types if name in _TYPES), "null"],
        "description": help_text,
    }
    if choices:
        schema["enum"] = [*choices, None]
    return schema | {"default": default}


def _loose(details: dict[str, Any]) -> dict[str, Any]:
    """Allows null, which keeps the default, and for lists a text with commas."""
    details = {key: value for key, value in details.items() if key != "title"}
    alternatives = details.pop("anyOf", None) or [
        {k: details.pop(k) for k in [*details] if k not in ("description", "default")}
    ]
    if any(part.get("type") == "array" for part in alternatives):
        alternatives = [*alternatives, {"type": "string"}]
    if {"type": "null"} not in alternatives:
        alternatives = [*alternatives, {"type": "null"}]
    return details | {"anyOf": alternatives}
