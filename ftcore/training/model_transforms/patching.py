"""The two ways in which modules of a loaded model are changed; each returns a function that restores them.

`replace_class` is the usual one. A module that takes the place of another would change the names of tensors in
state_dict, in checkpoints and in adapters, and lose hooks and ties. An attribute ``forward`` would be copied by
``copy.deepcopy`` as a function of the original module, and checkpointed layers of transformers wrap the ``forward`` of
a class. A module of a subclass keeps names, tensors, hooks and ``isinstance`` checks of peft and transformers, and its
``super().forward`` is the former one. Such classes cannot be pickled by name; checkpoints hold tensors only.

`replace_forward` is for layers that may be compiled: the compiler checks the class of a module, and would compile it
again for another class.

docs/development/patched.md lists who uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

Undo = Callable[[], None]
_MISSING = object()


def replace_class(module: nn.Module, mixin: type, **attributes: Any) -> Undo:
    """Gives a module the methods of a class, in place.

    Args:
        module: keeps its tensors, submodules, hooks and attributes.
        mixin: its methods come before those of the module's class, which ``super()`` reaches.
        attributes: set on the module, before its class is replaced.

    Returns:
        Restores class and attributes. Changes of one module are undone in reverse order.
    """
    patched: Any = module
    former: Any = type(module)
    restore = _set_attributes(module, attributes)
    patched.__class__ = _subclass(mixin, former)

    def undo() -> None:
        patched.__class__ = former
        restore()

    return undo


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Undo:
    """Gives a module another ``forward``, which may call the former one, read before; returns what restores it."""
    return _set_attributes(module, {"forward": forward})


def record_attributes(model: nn.Module, change: Callable[[], None]) -> Undo:
    """Lets a library set attributes of modules; returns what restores those that it set.

    Args:
        model: with its submodules.
        change: calls the library.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    change()
    undone: list[Undo] = []
    for module, then in before:
        now = vars(module)
        names = [name for name, value in now.items() if then.get(name, _MISSING) is not value]
        if names:
            undone.append(_restoring(now, {name: then.get(name, _MISSING) for name in names}))

    def undo() -> None:
        for restore in undone:
            restore()

    return undo


@cache
def _subclass(mixin: Any, kind: Any) -> type:
    # one class for all modules of a class: the compiler makes code for each class
    return type(f"{mixin.__name__}_{kind.__name__}", (mixin, kind), {"__module__": kind.__module__})


def _set_attributes(module: nn.Module, attributes: dict[str, Any]) -> Undo:
    own = vars(module)
    before = {name: own.get(name, _MISSING) for name in attributes}
    own.update(attributes)
    return _restoring(own, before)


def _restoring(own: dict[str, Any], before: dict[str, Any]) -> Undo:
    def undo() -> None:
        for name, value in before.items():
            if value is _MISSING:
                own.pop(name, None)
            else:
                own[name] = value

    return undo
