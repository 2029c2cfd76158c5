"""Limits the time and memory of chat templates, which come with third-party models and run for each row.

A template is a program. Jinja's sandbox isolates it, but does not limit loops, recursion and growing strings. Checks
are therefore added to its syntax tree: at the start of loops, macros and blocks, and around operations that build
strings and lists. Values of the conversation are not checked. Conversations of two turns take from 2 % less to 16 %
more time than without checks (8 templates, 30 to 180 us each; `python benchmarks/promises.py` measures one).
The checks use Jinja's public interface: `Environment.parse`, `NodeTransformer`, `Environment.compile`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from types import BuiltinMethodType, CodeType, FunctionType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.runtime import Macro
from jinja2.visitor import NodeTransformer

STEPS = 5_000_000
"""Limit of loop iterations and macro calls per conversation; templates need 3 per message."""
SECONDS = 20.0
"""Limit of processor time per conversation, in seconds; a thousand messages take 0.2 s."""
CHARACTERS = 4_000_000
"""Limit of characters of a string and of the output, for small conversations."""
TIMES = 64
"""Limit of characters as a multiple of the size of the conversation."""
BITS = 10_000
"""Limit of bits of an integer."""
ARGUMENT = 100_000
"""Largest integer argument of a function or filter; Jinja's sandbox has this limit for ``range``."""
_STRIDE = 1000
_WIDTH = re.compile(r"\d{6}|\*")
_GROWING = frozenset(("replace", "join", "center", "ljust", "rjust", "zfill", "expandtabs", "translate"))

_PLAIN = frozenset(
    "split rsplit splitlines strip lstrip rstrip partition rpartition startswith endswith find rfind index rindex count"
    " get items keys values upper lower title capitalize casefold swapcase removeprefix removesuffix"
    " isdigit isalpha isalnum isspace isupper islower istitle isnumeric isdecimal".split()
)
"""Methods of strings and dicts whose result is not larger than their input and that change nothing."""
_OWNERS = frozenset((str, dict))


class LimitError(jinja2.TemplateRuntimeError):
    """A template exceeded a limit."""


class Guard:
    """Counts the steps and characters of a template for one conversation."""

    def __init__(self) -> None:
        self.begin((), ())

    def begin(self, messages: Iterable[Any], tools: Iterable[Any]) -> None:
        """Resets the counters for a conversation."""
        self._given = messages, tools
        self.left, self.written, self.most = _STRIDE, 0, CHARACTERS
        self._steps, self._start = 0, 0.0

    def stride(self) -> None:
        """Checks steps and time; called when `left`, which each step decrements, is used up."""
        self.left, self._steps = _STRIDE, self._steps + _STRIDE
        now = time.thread_time()
        self._start = self._start or now
        if self._steps > STEPS:
            raise LimitError(f"it takes more than {STEPS:,} steps for one conversation")
        if now - self._start > SECONDS:
            raise LimitError(f"it takes more than {SECONDS:g} seconds for one conversation")

    def wrote(self, size: int) -> None:
        """Counts characters written to the output or to a buffer."""
        self.written += size
        if self.written > self.most:
            self.fits(self.written)

    def fits(self, size: int) -> None:
        """Checks the size of a string."""
        if size > self.most:
            self.most = max(CHARACTERS, TIMES * weight(self._given, 1 << 62))
            if size > self.most:
                raise LimitError(f"it writes more than {self.most:,} characters for one conversation")

    def sized(self, value: Any) -> Any:
        """Checks the size of a new value, and returns it."""
        kind = type(value)
        if kind is str:
            self.fits(len(value))
        elif kind is list or kind is dict or kind is tuple:
            self.fits(weight(value, self.most))
        return value

    def multiplied(self, left: Any, right: Any) -> Any:
        """The product, after a check of its size."""
        if isinstance(left, int) and isinstance(right, int):
            _number(left.bit_length() + right.bit_length())
        elif isinstance(left, int) or isinstance(right, int):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(value, str | list | tuple):
                self.fits(max(times, 0) * weight(value, self.most))
        return left * right

    def raised(self, left: Any, right: Any) -> Any:
        """The power, after a check of its size."""
        if isinstance(left, int) and isinstance(right, int):
            _number(left.bit_length() * max(right, 0))
        return left**right

    def remainder(self, left: Any, right: Any) -> Any:
        """``left % right``, after a check of a format string."""
        if isinstance(left, str):
            _format(left)
        return self.sized(left % right)

    def call(self, function: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Checks the arguments of a function or macro before its call."""
        for argument in (*arguments, *named.values()) if named else arguments:
            if type(argument) is int and argument > ARGUMENT:
                raise LimitError(f"it calls a function with {argument:,}; the limit is {ARGUMENT:,}")
        kind = type(function)
        if kind is BuiltinMethodType:
            if function.__name__ in _GROWING and type(function.__self__) is str:
                self._grows(function.__name__, function.__self__, arguments)
        elif kind is FunctionType and function.__name__ in ("format", "format_map"):  # the sandbox's, around Python's
            _format(getattr(getattr(function, "__wrapped__", function), "__self__", ""))

    def _grows(self, name: str, text: str, arguments: Sequence[Any]) -> None:
        if name == "replace" and len(arguments) > 1:
            old, new = str(arguments[0]), str(arguments[1])
            self.fits(len(text) + text.count(old) * len(new))
        elif name == "join" and arguments:
            parts = arguments[0] if isinstance(arguments[0], list | tuple | dict | str) else ()
            self.fits(weight(parts, self.most) + len(text) * len(parts))
        elif name == "expandtabs":
            self.fits(len(text) + text.count("\t") * int(arguments[0] if arguments else 8))

    def filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Adds checks to a filter that builds strings."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # Jinja's own first argument

        @wraps(function)
        def guarded(*arguments: Any, **named: Any) -> Any:
            value, *rest = arguments[first:]
            self.call(None, rest, named)
            if name == "replace" and len(rest) > 1:
                self._grows("replace", str(value), rest)
            elif name == "join" and isinstance(value, list | tuple):
                separator = str(rest[0] if rest else named.get("d", ""))
                self.fits(weight(value, self.most) + len(separator) * len(value))
            elif name == "indent":
                width = rest[0] if rest else named.get("width", 4)
                self.fits(str(value).count("\n") * (width if isinstance(width, int) else len(str(width))))
            elif name == "tojson":
                levels = rest[1] if len(rest) > 1 else named.get("indent")
                if levels is not None:
                    self.fits(weight(value, self.most) * (levels if isinstance(levels, int) else len(str(levels))))
            elif name == "format":
                _format(str(value))
            return self.sized(function(*arguments, **named))

        return guarded

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Adds a check of each result to the filter ``map``."""

        @wraps(function)
        def guarded(*arguments: Any, **named: Any) -> Any:
            for value in function(*arguments, **named):
                self.wrote(weight(value, self.most))
                yield value

        return guarded


FILTERS = (
    *("center", "indent", "wordwrap", "format", "replace", "join", "tojson", "string", "pprint", "batch", "slice"),
    *("escape", "e", "forceescape", "urlencode", "xmlattr", "urlize", "sum"),
)
"""Filters whose output may be larger than their input."""


def weight(value: Any, limit: int) -> int:
    """The characters of all strings in a value, plus one per value; counted up to the limit."""
    if type(value) is str:
        return len(value)
    size, left = 0, [value]
    while left and size <= limit:
        one = left.pop()
        size += 1
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, Mapping):
            size += sum(map(len, filter(lambda key: isinstance(key, str), one)))
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
    return size


def _number(bits: int) -> None:
    if bits > BITS:
        raise LimitError(f"it computes a number of more than {BITS:,} bits")


def _format(text: Any) -> None:
    if isinstance(text, str) and _WIDTH.search(text):
        raise LimitError("it formats text to a width of six digits or more, or to a computed width")


def compiled(environment: jinja2.Environment, source: str, guard: Guard) -> CodeType:
    """Compiles a template with checks.

    Args:
        environment: receives the filters of the guard.
        source: source of the template.
        guard: counts steps and characters.

    Raises:
        jinja2.TemplateSyntaxError: the source is not a template.
    """
    environment.filters = {**environment.filters, **_checks(guard)}
    for name in FILTERS:
        if name in environment.filters:
            environment.filters[name] = guard.filter(name, environment.filters[name])
    environment.filters["map"] = guard.each(environment.filters["map"])
    tree = environment.parse(source)
    _Checked().visit(tree)
    tree.set_environment(environment)
    tree.set_lineno(1)
    return environment.compile(tree)


def watch_calls(environment: Any, guard: Guard) -> None:
    """Checks the calls of a sandboxed environment and their results."""
    usual = environment.call

    def call(context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        kind = type(function)
        if kind is Macro:  # the sandbox allows macros, and they contain checks
            value = context.call(function, *arguments, **named)
        elif kind is BuiltinMethodType and function.__name__ in _PLAIN and type(function.__self__) in _OWNERS:
            # Jinja's own path does the same, 2 us slower
            named.pop("_loop_vars", None)
            named.pop("_block_vars", None)
            return function(*arguments, **named)
        else:
            guard.call(function, arguments, named)
            value = usual(context, function, *arguments, **named)
        if type(value) is str and len(value) <= guard.most:
            return value
        return guard.sized(value)

    environment.call = call


_TICK, _SIZED, _WROTE, _MUL, _POW, _MOD = "ft_tick", "ft_sized", "ft_wrote", "ft_mul", "ft_pow", "ft_mod"


def _checks(guard: Guard) -> dict[str, Callable[..., Any]]:
    """The filters of the checks. They take a context, so that Jinja does not evaluate them at compile time."""

    @pass_context
    def ticked(context: Any, value: Any = None) -> Any:
        guard.left -= 1
        if guard.left < 0:
            guard.stride()
        return value

    @pass_context
    def checked(context: Any, value: Any) -> Any:
        if type(value) is str and len(value) <= guard.most:
            return value
        return guard.sized(value)

    @pass_context
    def written(context: Any, value: Any) -> Any:
        guard.written += len(value) if type(value) is str else weight(value, CHARACTERS)
        if guard.written > guard.most:
            guard.fits(guard.written)
        return value

    @pass_context
    def product(context: Any, left: Any, right: Any) -> Any:
        return guard.multiplied(left, right)

    @pass_context
    def power(context: Any, left: Any, right: Any) -> Any:
        return guard.raised(left, right)

    @pass_context
    def modulo(context: Any, left: Any, right: Any) -> Any:
        return guard.remainder(left, right)

    return {_TICK: ticked, _SIZED: checked, _WROTE: written, _MUL: product, _POW: power, _MOD: modulo}


class _Checked(NodeTransformer):
    """Inserts the checks into a template's syntax tree."""

    def __init__(self) -> None:
        self._buffers = 0  # enclosing bodies whose text is buffered
        self._loops = 0  # enclosing loops inside the innermost buffer
        self._inside = 0  # whether an enclosing expression is checked as a whole

    def _loop(self, node: nodes.For) -> nodes.Node:
        self._loops += 1
        self.generic_visit(node)
        self._loops -= 1
        node.body.insert(0, _statement())
        if node.test is not None:
            node.test = _filter(node.test, _TICK)
        return node

    visit_For = _loop  # noqa: N815 - NodeVisitor's names

    def _buffer(self, node: Any) -> Any:
        loops, self._loops = self._loops, 0
        self._buffers += 1
        self.generic_visit(node)
        self._buffers -= 1
        self._loops = loops
        node.body.insert(0, _statement())
        return node

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_Block = _buffer  # noqa: N815

    def _assign_block(self, node: nodes.AssignBlock) -> nodes.Node:
        self._buffer(node)
        node.filter = _filter(node.filter, _SIZED)
        return node

    visit_AssignBlock = _assign_block  # noqa: N815

    def _output(self, node: nodes.Output) -> nodes.Node:
        """Counts buffered output; the caller of the template counts other output block by block."""
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1
        if self._buffers:
            node.nodes = [self._written(one) for one in node.nodes]
        return node

    def _written(self, node: Any) -> Any:
        if not isinstance(node, nodes.TemplateData):
            return _filter(node, _WROTE)
        return _filter(nodes.Const(node.data), _WROTE) if self._loops else node

    visit_Output = _output  # noqa: N815

    def _made(self, node: nodes.Node) -> nodes.Node:
        """Checks a concatenation; of a chain only the whole result is checked."""
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1
        return node if self._inside else _filter(node, _SIZED)

    visit_Add = visit_Concat = _made  # noqa: N815

    def _literal(self, node: Any) -> nodes.Node:
        inside, self._inside = self._inside, 0
        self.generic_visit(node)
        self._inside = inside
        plain = not node.items or getattr(node, "ctx", "load") != "load" or all(map(_is_plain, node.items))
        return node if plain else _filter(node, _SIZED)

    visit_List = visit_Tuple = visit_Dict = _literal  # noqa: N815

    def _call(self, node: nodes.Node) -> nodes.Node:
        inside, self._inside = self._inside, 0
        self.generic_visit(node)
        self._inside = inside
        return node

    visit_Call = visit_Filter = visit_Test = visit_Getitem = visit_Compare = visit_CondExpr = _call  # noqa: N815

    def _operator(self, node: nodes.BinExpr) -> nodes.Node:
        self._call(node)
        left = node.left
        if isinstance(node, nodes.Mod) and isinstance(left, nodes.Getattr) and _is_loop(left.node):
            return node
        name = {nodes.Mul: _MUL, nodes.Pow: _POW, nodes.Mod: _MOD}[type(node)]
        return nodes.Filter(left, name, [node.right], [], None, None)

    visit_Mul = visit_Pow = visit_Mod = _operator  # noqa: N815


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _is_plain(item: nodes.Node) -> bool:
    """Whether an item of a literal is a constant."""
    return isinstance(item.value if isinstance(item, nodes.Pair) else item, nodes.Const)


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _statement() -> nodes.Node:
    return nodes.ExprStmt(_filter(nodes.Const(None), _TICK))
