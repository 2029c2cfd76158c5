"""The model transforms of a run: where they come from, their order, how they are applied, reported and undone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ftcore.api.model_transform import Change, ModelTransform, Slot, TransformContext
from ftcore.api.plan import Plan
from ftcore.errors import FtError, Problem, RunError, UsageError
from ftcore.training.model_transforms.capabilities import Capabilities
from ftcore.training.model_transforms.comparing import apply_changes, undo_changes
from ftcore.training.model_transforms.frozen_layers import FrozenLayers
from ftcore.training.model_transforms.last_layer_pruning import LastLayerPruning
from ftcore.training.model_transforms.recomputation import Recomputation
from ftcore.training.model_transforms.reference_context import ReferenceContext
from ftcore.training.model_transforms.torch_compile import TorchCompile

CORE: tuple[type[ModelTransform], ...] = (Recomputation, Capabilities, LastLayerPruning, TorchCompile, FrozenLayers)
"""The core's own, for every device. Their order is that of their slots."""
_OWN = "ftcore"


@dataclass(frozen=True, slots=True)
class RegisteredTransform:
    """A transform and the distribution that brings it."""

    transform: ModelTransform
    distribution: str


@dataclass(frozen=True, slots=True)
class AppliedTransform:
    """What became of a transform.

    Args:
        registered: the transform.
        kept: its changes that the model has now.
        refused: those that were undone, each with its reason.
        skipped: why it did not apply; empty if it did.
    """

    registered: RegisteredTransform
    kept: Sequence[Change] = ()
    refused: Sequence[Change] = ()
    skipped: str = ""

    @property
    def line(self) -> str:
        """For the run's report; empty where nothing is applied."""
        text = self.registered.transform.describe(self.kept) if self.kept else ""
        return text if not text or self.registered.distribution == _OWN else f"{text} of {self.registered.distribution}"


class ModelTransforms:
    """The transforms of a run, applied slot by slot.

    Args:
        context: of the run.
        transforms: those of one slot in the order in which they are applied; see `registered_transforms`.

    Attributes:
        applied: what became of each transform so far.
    """

    def __init__(self, context: TransformContext, transforms: Iterable[RegisteredTransform]) -> None:
        self._context = context
        self._waiting = sorted(transforms, key=_slot)
        self.applied: list[AppliedTransform] = []

    def apply(self, until: Slot = Slot.CACHE) -> None:
        """Applies those that were not applied yet, up to and including a slot.

        Raises:
            UsageError: the plan demands one that does not apply.
            RunError: a plugin's transform failed.
        """
        while self._waiting and self._waiting[0].transform.slot <= until:
            registered = self._waiting.pop(0)
            try:
                self.applied.append(_apply(registered, self._context))
            except (FtError, MemoryError):
                raise
            except Exception as error:
                if registered.distribution == _OWN:
                    raise
                where = f"model transform {registered.transform.name!r} of {registered.distribution}"
                raise RunError(f"{where} failed: {type(error).__name__}: {error}") from error

    def undo(self) -> None:
        """Restores the model as it was before `apply`: the last change first."""
        while self.applied:
            undo_changes(self.applied.pop().kept)

    @property
    def line(self) -> str:
        """What was applied, such as ``packed attention, fused layers (30 gates, 61 norms), pruned last layer``."""
        return ", ".join(filter(None, (one.line for one in self.applied)))


def registered_transforms(plan: Plan, backend: Any) -> list[RegisteredTransform]:
    """All transforms of a run in their order: in each slot the core's, then the backend's, then those of plugins.

    Args:
        plan: of the run.
        backend: its `ftcore.training.backend.BackendRuntime`.

    Raises:
        RunError: a plugin's hook failed.
        UsageError: it returns something else, or two transforms have one name.
    """
    found = [RegisteredTransform(kind(), _OWN) for kind in CORE]
    own = plan.backend.full_name.partition(":")[0]
    found += [RegisteredTransform(transform, own) for transform in backend.transforms()]
    for implementation in plan.plugins.hook.ft_model_transforms.get_hookimpls():
        plugin = implementation.plugin_name
        given = {"plan": plan} if "plan" in implementation.argnames else {}
        try:
            transforms = list(implementation.function(**given))
        except Exception as error:
            reason = f"hook ft_model_transforms of plugin {plugin} failed: {type(error).__name__}: {error}"
            raise RunError(f"{reason}; disable the plugin with FT_DISABLE_PLUGINS={plugin}") from error
        found += [RegisteredTransform(transform, plugin.partition("/")[0]) for transform in transforms]
    _check(found)
    return sorted(found, key=_slot)


def transform_reference(run: TransformContext, model: Any, scorer: Any) -> ModelTransforms:
    """Applies to a reference model the transforms that decide numbers, as they were applied to the trained one.

    Args:
        run: context of the run.
        model: the reference.
        scorer: its forward pass, with the run's backend.
    """
    found = registered_transforms(run.plan, run.backend)
    transforms = ModelTransforms(
        ReferenceContext(run, model, scorer), [one for one in found if one.transform.for_references]
    )
    transforms.apply()
    return transforms


def planned_transforms(plan: Plan, backend: Any) -> list[tuple[RegisteredTransform, str]]:
    """`registered_transforms`, each with the reason for which the plan rules it out; empty where it is expected."""
    return [(one, one.transform.planned(plan)) for one in registered_transforms(plan, backend)]


def _slot(registered: RegisteredTransform) -> Slot:
    return registered.transform.slot


def _apply(registered: RegisteredTransform, context: TransformContext) -> AppliedTransform:
    transform = registered.transform
    why = transform.planned(context.plan) or transform.applies(context)
    if why:
        return AppliedTransform(registered, skipped=why)
    return AppliedTransform(registered, *apply_changes(transform.changes(context)))


def _check(found: Sequence[RegisteredTransform]) -> None:
    names: dict[str, str] = {}
    for one in found:
        if not isinstance(one.transform, ModelTransform):
            reason = f"ft_model_transforms of {one.distribution} returns {type(one.transform).__name__}"
            raise UsageError(Problem(reason, hint="return objects of ftcore.api.model_transform.ModelTransform"))
        name = one.transform.name
        if name in names:
            reason = f"two model transforms have the name {name!r}: of {names[name]} and of {one.distribution}"
            raise UsageError(Problem(reason, hint="disable one of the plugins with FT_DISABLE_PLUGINS"))
        names[name] = one.distribution
