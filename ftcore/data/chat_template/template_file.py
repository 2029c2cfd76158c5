"""A chat template that the user brings as a Jinja file: ``template: path/to/file.jinja``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.api.components import ChatTemplate
from ftcore.api.plan import RegisteredComponent
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from jinja2 import Environment

SUFFIXES = (".jinja", ".jinja2", ".j2")


def is_template_file(name: Any) -> bool:
    """Whether a value of ``template`` is a path and not a name."""
    return isinstance(name, str) and (name.endswith(SUFFIXES) or "/" in name or "\\" in name)


def read_template_file(name: str, where: str) -> RegisteredComponent[ChatTemplate]:
    """Registers the file as the component ``file:<name>``; its stop tokens are detected.

    Args:
        name: the path as written, relative to the working directory.
        where: the place of the option, for errors.

    Raises:
        UsageError: the file does not exist, or is not a Jinja template.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        what = f"{name} is a folder" if path.is_dir() else f"there is no template file {name!r}"
        raise UsageError(Problem(what, where, "write a Jinja file, or the name of a template (ft plugins list)"))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(Problem(f"{name} is not UTF-8", where, "save it as UTF-8")) from error
    except OSError as error:
        raise UsageError(Problem(f"{name} cannot be read: {error.strerror}", where)) from error
    _check_syntax(text, name, where)
    template = ChatTemplate(name=name, summary="template file", text=text)
    return RegisteredComponent(template, "file", "", "file")


def _check_syntax(text: str, name: str, where: str) -> None:
    from jinja2 import TemplateError, TemplateSyntaxError

    from ftcore.data.chat_template.limits import Guard, compiled

    if not text.strip():
        raise UsageError(Problem(f"{name} is empty", where, "write a Jinja template into it"))
    try:
        # with the checks: Jinja evaluates constants such as 'a' * 10**10 when it compiles
        compiled(_environment(), text, Guard())
    except TemplateSyntaxError as error:
        message = (error.message or "syntax error").rstrip(".")
        reason = f"the template has a syntax error: {message[:1].lower()}{message[1:]}"
        raise UsageError(Problem(reason, f"{name}:{error.lineno}")) from error
    except (TemplateError, RecursionError, SyntaxError, MemoryError, OverflowError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise UsageError(Problem(f"the template is invalid: {reason or type(error).__name__}", name)) from error


def _environment() -> Environment:
    """An environment with the tags of transformers' environment, which takes seconds to import."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
