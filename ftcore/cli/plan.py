"""``ft plan``: the run, decided, without carrying it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftcore.api.plan import Plan
from ftcore.cli.common import echo_json, file_and_overrides, json_option
from ftcore.cli.options import show

if TYPE_CHECKING:
    from ftcore.resources.coverage import Coverage


@click.command(name="plan")
@file_and_overrides
@click.option("--all", "everything", is_flag=True, help="Options at their defaults too.")
@json_option
def command(file: Path, overrides: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """What a run would do: components, options with their origins, precision, memory. Imports no torch."""
    from ftcore.config.planner import make_plan

    plan = make_plan(file, overrides)
    if as_json:
        echo_json(as_dict(plan))
    else:
        print_plan(plan, everything)


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for ``--json`` and for the manifest; secrets are left out."""
    return {
        "file": plan.file,
        "components": {kind: selected.full_name for kind, selected in plan.components.items()},
        "options": {
            name: {"value": None if name in SECRETS else bound.value, "owner": bound.owner, "origin": bound.origin}
            for name, bound in plan.options.items()
        },
        "datasets": [spec.name for spec in plan.datasets],
        "eval_datasets": [spec.name for spec in plan.eval_datasets],
        "precision": {"compute": plan.precision.compute, "trained": plan.precision.trained},
        "gradient_checkpointing": plan.gradient_checkpointing,
        "effective_batch_size": None if plan.training.tokens_per_batch else effective_batch(plan),
        "effective_batch_tokens": effective_tokens(plan),
        "ignored": list(plan.ignored),
        "warnings": list(plan.warnings),
        "memory": plan.memory.as_dict() if plan.memory else None,
        "unknown": list(plan.unknown),
        "coverage": coverage.as_dict() if (coverage := _coverage(plan)) else None,
    }


def _coverage(plan: Plan) -> Coverage | None:
    """What part of the weights a training run would reach."""
    return plan.method.component.planned_coverage(plan) if plan.training.do_train else None


SECRETS = frozenset({"hf_hub_token", "hub_token"})


def effective_batch(plan: Plan) -> int:
    """Rows per optimizer step on one device."""
    return plan.training.per_device_train_batch_size * plan.training.gradient_accumulation_steps


def effective_tokens(plan: Plan) -> int | None:
    """Tokens per optimizer step on one device, at most, where batches are made by them."""
    tokens = plan.training.tokens_per_batch
    return tokens and tokens * plan.training.gradient_accumulation_steps


def batch_line(plan: Plan) -> str:
    """What an optimizer step trains on."""
    steps, tokens = plan.training.gradient_accumulation_steps, plan.training.tokens_per_batch
    if tokens is not None:
        return f"at most {tokens:,} tokens x {steps} accumulated = {tokens * steps:,}"
    return f"{plan.training.per_device_train_batch_size} rows x {steps} accumulated = {effective_batch(plan)}"


def print_plan(plan: Plan, everything: bool = False) -> None:
    """The plan for people."""
    click.secho("components", bold=True)
    for kind, selected in plan.components.items():
        click.echo(
            f"  {kind.replace('_', ' '):<17} {selected.full_name} {selected.version}  {selected.component.summary}"
        )
    if plan.template is None:
        own = "the tokenizer's own" if plan.config or plan.source else "not known before the model is here"
        click.echo(f"  {'chat template':<17} {own}")
    click.secho("options", bold=True)
    for name, bound in plan.options.items():
        if (everything or bound.origin != "default") and name not in SECRETS and bound.owner != "selection":
            click.echo(f"  {name} = {show(bound.value)}  {click.style(bound.origin, dim=True)}")
    precision = plan.precision
    click.echo(f"precision: {precision.compute}, trained parameters in {precision.trained}")
    click.echo(f"effective batch size: {batch_line(plan)} per device")
    if plan.memory:
        click.echo(str(plan.memory))
    for line in plan.unknown:
        click.echo(click.style("not known: ", fg="yellow") + line)
    if (coverage := _coverage(plan)) and not coverage.enough:
        click.echo(str(coverage))
    for line in plan.ignored:
        click.secho(line, dim=True)
    for line in plan.warnings:
        click.echo(click.style("warning: ", fg="yellow") + line)
