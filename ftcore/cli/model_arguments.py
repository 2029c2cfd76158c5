"""What ``ft chat``, ``ft generate``, ``ft serve`` and ``ft export`` share: naming and loading a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftcore.api.components import Judge
    from ftcore.inference.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArguments:
    """The part of the command line that names a model.

    Args:
        file: the training file, if there is one.
        overrides: ``key=value`` words.
        model: of ``--model``.
        adapters: of ``--adapter``.
        force: whether a template other than the trained one is accepted.
    """

    file: str | None
    overrides: Sequence[str]
    model: str | None
    adapters: Sequence[str]
    force: bool

    def find(self, *, score: bool = False) -> Target:
        """The model to generate or score with; does not import torch."""
        from ftcore.api.registry import load
        from ftcore.inference.reward_models import to_score
        from ftcore.inference.target import find_target
        from ftcore.models.hub_access import fetch_config

        plugins = load()
        overrides = to_score(self.file, self.overrides, plugins) if score else self.overrides
        named: Any = {"model": self.model, "adapters": self.adapters, "overrides": overrides, "plugins": plugins}
        target = find_target(self.file, **named)
        return find_target(self.file, **named) if fetch_config(target.plan) else target

    def load(self, target: Target) -> Any:
        """The generator. Libraries print only warnings."""
        from ftcore.runner.run import silence_libraries

        silence_libraries()
        return target.load(force=self.force)

    def judge(self, target: Target) -> Judge:
        """The reward model. Libraries print only warnings."""
        from ftcore.runner.run import silence_libraries

        silence_libraries()
        return target.judge(force=self.force)


def names_a_model(command: Callable[..., Any]) -> Callable[..., Any]:
    """``[FILE] [key=value ...] --model --adapter --force``, passed on as ``words``."""

    @click.argument("words", nargs=-1, metavar="[FILE] [key=value]...")
    @click.option("--model", metavar="M", help="Folder, hub id or a plugin's model, instead of FILE's.")
    @click.option(
        "--adapter", "adapters", metavar="A", multiple=True, help="Folder or hub id of an adapter; repeatable."
    )
    @click.option("--force", is_flag=True, help="Accept a template other than the one trained with.")
    @wraps(command)
    def wrapped(words: tuple[str, ...], model: str | None, adapters: tuple[str, ...], force: bool, **more: Any) -> Any:
        has_file = bool(words) and "=" not in words[0]
        file, overrides = (words[0], words[1:]) if has_file else (None, words)
        parsed = ModelArguments(file=file, overrides=overrides, model=model, adapters=adapters, force=force)
        return command(words=parsed, **more)

    return wrapped


def system_messages(system: str | None) -> tuple[Any, ...]:
    """The system message as the first turn, if there is one."""
    from ftcore.api.samples import Message

    return (Message("system", system),) if system is not None else ()
