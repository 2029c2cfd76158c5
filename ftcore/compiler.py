"""torch's compiler, which is read when something is compiled: 0.7 of the 8 CPU seconds of a run's start.

transformers and torch import it to mark functions for it, and accelerate to ask whether a model is a compiled one. As
long as it has not been read nothing has been compiled, so that this can be answered without it; everything else that
is asked of it reads it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from ftcore.lazily import PutOff, put_off

NAME = "torch._dynamo"
_NEEDED = "_trace_wrapped_higher_order_op"
"""A part of it that transformers' masks are made with, and that needs nothing of the rest."""


def put_off_compiler() -> None:
    """From now on importing torch's compiler costs nothing until something is compiled."""
    import torch

    module = put_off(NAME, _Unread)
    if module is None or module.__spec__ is None:
        return
    module.__path__ = module.__spec__.submodule_search_locations or []  # reads parts without the whole
    try:
        importlib.import_module(f"{NAME}.{_NEEDED}")
    except (ImportError, AttributeError):  # of another torch
        del sys.modules[NAME]
        return
    del module.__path__
    torch._dynamo = module


class CompilesLater(PutOff):
    """A package whose functions are compiled when they are called: bitsandbytes has four, for CPUs, and ours are used.

    Of the 10.8 CPU seconds to the first step of qlora, 2 were the compiler's.
    """

    @classmethod
    @contextmanager
    def reading(cls) -> Iterator[None]:
        import torch

        own = torch.compile

        def compile_later(fn: Any = None, **options: Any) -> Any:
            if fn is None:
                return functools.partial(compile_later, **options)
            if not isinstance(fn, FunctionType):
                return own(fn, **options)
            compiled = functools.cache(lambda: own(fn, **options))
            return functools.wraps(fn)(lambda *given, **named: compiled()(*given, **named))

        torch.compile = compile_later
        try:
            yield
        finally:
            torch.compile = own


class _Unread(PutOff):
    """Stands for it."""

    def __getattr__(self, name: str) -> Any:
        if isinstance(self, _Unread) and name in _ANSWERS:
            return _ANSWERS[name]
        return _read(self, name)


def _read(module: Any, name: str) -> Any:
    """What it has under a name, which reads it."""
    found = PutOff.__getattr__(module, name)
    while _allowed:
        module.allow_in_graph(_allowed.pop())
    return found


def _unread() -> bool:
    return isinstance(sys.modules.get(NAME), _Unread)


def _own(name: str) -> Any:
    """The same of the module as it is now."""
    module = importlib.import_module(NAME)
    return _read(module, name) if isinstance(module, _Unread) else getattr(module, name)


def _disable(fn: Any = None, *args: Any, **options: Any) -> Any:
    """``torch._dynamo.disable``: the function is not compiled, which matters from when something is."""
    if fn is None:
        return functools.partial(_disable, **options)
    if not isinstance(fn, FunctionType):
        return _own("disable")(fn, *args, **options)
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def later(*given: Any, **named: Any) -> Any:
        if _unread():
            return fn(*given, **named)
        if not disabled:
            disabled.append(_own("disable")(fn, *args, **options))
        return disabled[0](*given, **named)

    return later


def _assume_constant_result(fn: Any) -> Any:
    """As ``torch._dynamo`` has it, and transformers, too (``is_tracing``): a mark on the function."""
    fn._dynamo_marked_constant = True
    return fn


_allowed: list[Any] = []


def _allow_in_graph(fn: Any) -> Any:
    """Told to it when it is read."""
    _allowed.append(fn)
    return fn


def _graph_break(msg: str = "") -> None:
    """Something to it while it compiles; every step of an optimizer calls it."""


class _Compiled(type):
    def __instancecheck__(cls, module: Any) -> bool:
        return not _unread() and isinstance(module, _own("eval_frame").OptimizedModule)


class OptimizedModule(metaclass=_Compiled):
    """``torch._dynamo.eval_frame.OptimizedModule``: as long as it is unread, nothing is one."""


class _EvalFrame:
    def __getattr__(self, name: str) -> Any:
        return getattr(_own("eval_frame"), name)


_eval_frame: Any = _EvalFrame()
_eval_frame.OptimizedModule = OptimizedModule

_ANSWERS: dict[str, Any] = {
    "disable": _disable,
    "assume_constant_result": _assume_constant_result,
    "allow_in_graph": _allow_in_graph,
    "graph_break": _graph_break,
    "eval_frame": _eval_frame,
}
