"""``ft plan``: what a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from ftcore.api.plan import Plan
from ftcore.cli.common import echo_json, file_and_overrides, json_option
from ftcore.cli.options import show
from ftcore.config.serialization import SECRETS, _coverage, as_dict, batch_line


@click.command(name="plan")
@file_and_overrides
@click.option("--all", "everything", is_flag=True, help="Show options at their defaults too.")
@click.option("--verbose", is_flag=True, help="Show the transforms of the model too. Imports torch.")
@json_option
def command(file: Path, overrides: tuple[str, ...], everything: bool, verbose: bool, as_json: bool) -> None:
    """Shows what a run would do: components, options with their origins, precision, memory. Does not import torch."""
    from ftcore.config.planner import make_plan

    plan = make_plan(file, overrides)
    transforms = model_transforms(plan) if verbose else None
    if as_json:
        echo_json(as_dict(plan) | ({} if transforms is None else {"model_transforms": transforms}))
        return
    print_plan(plan, everything)
    if transforms is not None:
        print_transforms(transforms)


def model_transforms(plan: Plan) -> list[dict[str, str]]:
    """The transforms of the run's model in their order; ``ruled_out`` is why one will not be applied, or empty.

    Imports torch, to ask the backend.
    """
    from ftcore.runner.run import silence_libraries

    silence_libraries()
    from ftcore.training.model_transforms.apply import planned_transforms

    return [
        {
            "name": one.transform.name,
            "distribution": one.distribution,
            "summary": one.transform.summary,
            "ruled_out": reason,
        }
        for one, reason in planned_transforms(plan, plan.backend.component.runtime(plan))
    ]


def print_transforms(transforms: Sequence[Mapping[str, str]]) -> None:
    """Prints a line for each transform; the loaded model has the last word on those that are not ruled out."""
    click.secho("model transforms", bold=True)
    for one in transforms:
        text = f"not applied: {one['ruled_out']}" if one["ruled_out"] else one["summary"]
        source = "" if one["distribution"] == "ftcore" else click.style(f" ({one['distribution']})", dim=True)
        click.echo(f"  {one['name']:<23} {text}{source}")
    if not transforms:
        click.echo("  none")


def print_plan(plan: Plan, everything: bool = False) -> None:
    """Prints the plan as text."""
    click.secho("components", bold=True)
    for kind, selected in plan.components.items():
        click.echo(
            f"  {kind.replace('_', ' '):<17} {selected.full_name} {selected.version}  {selected.component.summary}"
        )
    if plan.template is None:
        own = "the tokenizer's own" if plan.config or plan.source else "not known before the model is downloaded"
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
