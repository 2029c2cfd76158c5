"""A chat template, compiled once: transformers' own environment without its work per call.

`render_jinja_template` looks for marks, copies every variable and starts a generator each time: 123 us for an alpaca
row, of which the template itself takes 70 (smollm2, transformers 5.23). What comes out is the same; a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template, _plain_template_data

from ftcore.data.chat_template.limits import Guard, LimitError, compiled, watch_calls
from ftcore.errors import Problem, RowError, UsageError
from ftcore.utils.json_files import DEEPEST, too_deep

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it


class Compiled:
    """A Jinja source with the variables that are the same for every conversation; used by one thread at a time.

    Args:
        source: Jinja.
        variables: name -> value, of JSON's kinds.
        name: of the template, for errors.
        where: the place that names it, likewise.

    Attributes:
        source: as given.
        marked: whether ``{% generation %}`` marks say what the model says.
    """

    def __init__(
        self, source: str, variables: Mapping[str, Any], name: str = "the chat template", where: str = ""
    ) -> None:
        self.source, self._name, self._where = source, name, where
        self._variables = {**_plain_template_data(dict(variables)), "documents": None}
        self._guard = Guard()
        self.marked = bool(_GENERATION.search(source))

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        prompt: bool = False,
        **more: Any,
    ) -> tuple[str, list[tuple[int, int]]]:
        """A conversation's text, and the spans inside ``{% generation %}`` that are not empty.

        Args:
            messages, tools: the conversation.
            prompt: as ``add_generation_prompt``.
            more: variables in place of the template's usual ones.

        Raises:
            RowError: the template refuses the conversation.
            UsageError: the template goes over a bound of `template_limits`, or is no template.
        """
        template, guard = self._template, self._guard
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        size = 0
        try:
            values = {
                "messages": [_plain(message) for message in messages],
                "tools": _plain_template_data(list(tools)) or None,
                "add_generation_prompt": prompt,
                **self._variables,
                **more,
            }
            guard.begin(messages, tools)
            # spans are of no use in a prompt, and to find one all text before it is joined
            tracked = nullcontext() if prompt else template.environment.activate_tracker(blocks, spans)
            with tracked:
                for block in template.root_render_func(template.new_context(values)):
                    blocks.append(block)  # one at a time: marks count what is there already
                    size += len(block)
                    if size > guard.most:
                        guard.fits(size)
        except (LimitError, OverflowError, MemoryError) as error:  # OverflowError: range, of the sandbox
            raise self._stopped(str(error) or "it needs more memory than is available") from error
        except RecursionError as error:
            if too_deep([*messages, *tools]):
                reason = f"the row is nested more than {DEEPEST} levels deep"
                raise RowError(reason, cure="change the row") from error
            raise self._stopped("it recurses endlessly") from error
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            reason = f"the chat template refuses the conversation: {error}"
            raise RowError(reason, cure="change the row, or choose another template") from error
        except (ArithmeticError, ValueError, LookupError, AttributeError) as error:
            reason = f"{self._name} fails on the conversation: {type(error).__name__}: {error}"
            raise RowError(reason, cure="change the row, or choose another template") from error
        return "".join(blocks), [span for span in spans if span[1] > span[0]]

    @cached_property
    def _template(self) -> Any:
        """With names for all templates in one dict: Jinja's `ChainMap` is walked through in Python twice a text."""
        environment: Any = _compile_jinja_template("").environment.overlay()
        for extension in environment.extensions.values():
            if hasattr(extension, "activate_tracker"):  # that of the copy
                environment.activate_tracker = extension.activate_tracker
        watch_calls(environment, self._guard)
        _faster(environment)
        names = {name: value for name, value in environment.globals.items() if name != "lipsum"}
        try:
            code = compiled(environment, self.source, self._guard)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError, OverflowError) as error:
            line = getattr(error, "lineno", None)
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
            raise self._stopped(f"line {line}: {reason}" if line else reason, "is not a valid template") from error
        return jinja2.Template.from_code(environment, code, names)

    def _stopped(self, reason: str, what: str = "was stopped") -> UsageError:
        return UsageError(Problem(f"{self._name} {what}: {reason}", self._where, "choose another template"))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _faster(environment: Any) -> None:
    """``message.role`` looks for an attribute first, and for a dict raises and catches an exception each time.

    A dict has no other attributes than its type's: for all other names its items are what is found in the end. 76 us
    for an alpaca row, 105 without (smollm2).
    """
    usual = environment.getattr

    def getattr_(owner: Any, name: str) -> Any:
        if type(owner) is dict and name not in _OF_DICTS:
            try:
                return owner[name]
            except KeyError:
                return environment.undefined(obj=owner, name=name)
        return usual(owner, name)

    environment.getattr = getattr_


_OF_DICTS = frozenset(dir(dict))


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as transformers hands it to templates: JSON's kinds, and thoughts under both of their names."""
    plain = {key: value if type(value) is str else _plain_template_data(value) for key, value in message.items()}
    if "reasoning_content" in plain:
        plain = {"thinking": plain["reasoning_content"], **plain}
    return plain
