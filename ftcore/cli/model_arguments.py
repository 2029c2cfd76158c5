"""What ``ft chat`` and ``ft generate`` share: how a model is named, and how it is loaded."""

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
    """The command line as far as it names a model.

    Args:
        file: the training file, if there is one.
        overrides: ``key=value`` words.
        model: of ``--model``.
        adapters: of ``--adapter``.
        force: whether another template than the trained one is taken.
    """

    file: str | None
    overrides: Sequence[str]
    model: str | None
    adapters: Sequence[str]
    force: bool

    def find(self, *, score: bool = False) -> Target:
        """What to talk to, or what scores; nothing heavy is imported."""
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
        """The generator, without what libraries print of their own accord."""
        from ftcore.runner.run import silence_libraries

        silence_libraries()
        return target.load(force=self.force)

    def judge(self, target: Target) -> Judge:
        """The same with a reward model, which scores."""
        from ftcore.runner.run import silence_libraries

        silence_libraries()
        return target.judge(force=self.force)


def names_a_model(command: Callable[..., Any]) -> Callable[..., Any]:
    """``[FILE] [key=value ...] --model --adapter --force``, handed over as ``words``."""

    @click.argument("words", nargs=-1, metavar="[FILE] [key=value]...")
    @click.option("--model", metavar="M", help="Folder, hub id or a plugin's model, instead of a file's.")
    @click.option("--adapter", "adapters", metavar="A", multiple=True, help="Adapter's folder or hub id; repeatable.")
    @click.option("--force", is_flag=True, help="Take a template that is not the one trained with.")
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
