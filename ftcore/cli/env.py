"""``ft env``: versions and hardware, for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from ftcore.api.registry import load
from ftcore.cli.common import echo_json, json_option
from ftcore.resources import hardware

PACKAGES = (
    "ftcore", "torch", "transformers", "peft", "accelerate", "datasets", "trl", "bitsandbytes", "tokenizers",
    "safetensors", "pluggy", "click", "pydantic", "flash-attn", "vllm",
)  # fmt: skip


@click.command(name="env")
@json_option
def command(as_json: bool) -> None:
    """Shows versions, hardware and plugins."""
    facts = collect()
    if as_json:
        echo_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.secho(name, bold=True)
            for key, item in value.items():
                click.echo(f"  {key}: {item}")
        else:
            click.echo(f"{name}: {value}")


def collect() -> dict[str, Any]:
    """The facts for a bug report, without environment variables and paths of the user."""
    machine = hardware.detect()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "memory_gib": round(machine.memory / 2**30, 1),
        "cuda": ".".join(map(str, machine.cuda)) if machine.cuda else None,
        "bfloat16": machine.bf16,
        "packages": versions(),
        "plugins": {plugin.id: f"{plugin.version} {plugin.status}" for plugin in load().listed},
    }


def versions() -> dict[str, str | None]:
    """Package -> installed version, or None."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
