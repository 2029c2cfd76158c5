"""``ft export``: writes a trained model in a form that other programs load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ftcore.cli.common import echo_json, json_option
from ftcore.cli.model_arguments import ModelArguments, names_a_model
from ftcore.runner.console_log import surviving

if TYPE_CHECKING:
    from ftcore.inference.target import Target


@click.command(name="export")
@names_a_model
@json_option
def command(words: ModelArguments, as_json: bool) -> None:
    """Writes base model and adapters as one model into export_dir, with the chat template and stop tokens set.

    The result loads in transformers, vLLM and Ollama (Modelfile); export_gguf=q8_0 (or f16, f32) writes a file for
    llama.cpp as well. FILE is a training file whose run has finished, or one that names model and adapters.
    """
    from ftcore.export.model_export import check_options

    target = words.find()
    check_options(target.plan)
    _check_finished(words, target)
    with surviving():  # the exported model does not depend on the output
        _export(words, target, as_json)


def _export(words: ModelArguments, target: Target, as_json: bool) -> None:
    from ftcore.export.model_export import export
    from ftcore.runner.run import silence_libraries

    silence_libraries()
    if not as_json:
        click.echo(f"exporting {target}")
    done = export(target, force=words.force)
    if as_json:
        facts = {"folder": done.folder, "files": done.files, "dtype": done.dtype, "parameters": done.parameters}
        echo_json(facts | {"notes": done.notes})
        return
    for note in done.notes:
        click.echo(click.style("note: ", fg="yellow") + note)
    for name, size in done.files.items():
        click.echo(f"  {name:<40} {size:>15,}")
    click.echo(f"{done.parameters:,} parameters in {done.dtype}, written to {done.folder}")


def _check_finished(words: ModelArguments, target: Target) -> None:
    """Refuses a training file whose run has written nothing yet: exporting only its base model would be a mistake."""
    from ftcore.config.reader import read_settings
    from ftcore.errors import Problem, UsageError

    settings = read_settings(words.file, words.overrides)
    trained = target.trained is not None or bool(target.plan.model.adapter_name_or_path)
    if not trained and not words.model and "do_train" in settings and settings["do_train"].value is True:
        hint = "let the run finish, or name a checkpoint with --adapter or --model"
        why = f" ({target.notes[0].partition(';')[0]})" if target.notes else ""
        raise UsageError(Problem(f"the run of this file has not finished{why}", str(words.file), hint))
