"""``ft run``: trains and evaluates as the file says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from ftcore.cli.common import file_and_overrides
from ftcore.runner.console_log import surviving


@click.command(name="run")
@file_and_overrides
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@click.option("--force", is_flag=True, help="Resume from a checkpoint although data, template or options differ.")
def command(file: Path, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Trains and evaluates as FILE says; key=value replaces an option of the file."""
    from ftcore.config.planner import make_plan
    from ftcore.models import hub_access
    from ftcore.resources.hardware import share_heap

    share_heap()
    if dry_run:
        from ftcore.cli.plan import print_plan

        print_plan(make_plan(file, overrides))
        return
    plan = replace(hub_access.planned(lambda: make_plan(file, overrides)), force=force)
    hub_access.check(plan)
    from ftcore.runner.run import run

    launcher = plan.launcher.component
    try:
        status = launcher.launch(plan, run)
    except KeyboardInterrupt:  # during training the signal handler writes a checkpoint instead
        with surviving():
            click.echo("stopped by Ctrl-C outside of training", err=True)
        status = 130
    sys.exit(status)
