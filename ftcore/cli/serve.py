"""``ft serve``: an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ftcore.cli.model_arguments import ModelArguments, names_a_model
from ftcore.errors import Problem, UsageError
from ftcore.runner.console_log import surviving

if TYPE_CHECKING:
    from ftcore.inference.target import Target


@click.command(name="serve")
@names_a_model
@click.option("--host", metavar="H", help="Address to listen on; sets serve_host.")
@click.option("--port", metavar="P", type=click.IntRange(0, 65535), help="Port to listen on; sets serve_port.")
@click.option("--score", is_flag=True, help="The model is a reward model; serve scores at /v1/score.")
def command(words: ModelArguments, host: str | None, port: int | None, score: bool) -> None:
    """Serves a model to OpenAI clients, until SIGTERM or Ctrl-C.

    FILE is a training file: its trained model is served if the run has one, else its base model. --adapter NAME=A also
    serves an adapter, under NAME. The environment variable FT_API_KEY holds the API key.
    """
    words, adapters = _split_adapters(words, host, port)
    if score and adapters:
        raise UsageError(Problem("a reward model is served alone, without named adapters", "--score"))
    targets = find_targets(words, adapters, score=score)
    with surviving():  # a server runs without a reader of its output
        _serve(targets, force=words.force)


def find_targets(words: ModelArguments, adapters: Mapping[str, str], *, score: bool = False) -> dict[str, Target]:
    """Name -> served model: first the model of the command line, then its adapters.

    Raises:
        UsageError: as `find_target`; and for a repeated name.
    """
    from ftcore.inference.target import find_target
    from ftcore.serving.naming import distinct, name_of

    if words.file is None and not words.model and not words.adapters and adapters:
        first = find_target(None, adapters=[next(iter(adapters.values()))], overrides=words.overrides)
        words = replace(words, model=first.plan.model.model_name_or_path)
    main = words.find(score=score)
    named = {**main.plan.serving.serve_adapters, **adapters}
    found = [(name_of(main), main)]
    for name, path in named.items():
        adapter = replace(words, adapters=[path], model=str(main.plan.model.model_name_or_path))
        found.append((name, adapter.find()))
    distinct([name for name, _ in found])
    return dict(found)


def _split_adapters(words: ModelArguments, host: str | None, port: int | None) -> tuple[ModelArguments, dict[str, str]]:
    """Separates adapters with a name from the others, and turns ``--host`` and ``--port`` into options."""
    named: dict[str, str] = {}
    plain = []
    for word in words.adapters:
        name, equals, path = word.partition("=")
        if not equals:
            plain.append(word)
        elif not name or not path or name in named:
            raise UsageError(Problem(f"--adapter {word}: write NAME=FOLDER, each name once"))
        else:
            named[name] = path
    given = {"serve_host": host, "serve_port": port}
    more = [f"{name}={value}" for name, value in given.items() if value is not None]
    return replace(words, adapters=plain, overrides=[*words.overrides, *more]), named


def _serve(targets: Mapping[str, Target], *, force: bool) -> None:
    from ftcore.runner.run import silence_libraries

    options = next(iter(targets.values())).plan.serving
    try:
        from ftcore.serving.server import api_key, listen, server, url
    except ModuleNotFoundError as error:
        reason = f"ft serve needs {error.name}, which is not installed"
        raise UsageError(Problem(reason, hint="pip install 'ftcore[serve]'")) from error
    key = api_key(options)
    taken = listen(options)
    silence_libraries()
    from ftcore.serving.app import create_app
    from ftcore.serving.served_models import load

    served = load(targets, force=force)
    for name, target in targets.items():
        click.echo(f"{name}: {target}", err=True)
    program = server(create_app(served, key=key), options)
    click.echo(f"listening on {url(taken)}; Ctrl-C ends", err=True)
    program.run(sockets=[taken])
