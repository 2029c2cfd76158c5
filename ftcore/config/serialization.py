"""A plan as JSON values and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftcore.api.plan import Plan

if TYPE_CHECKING:
    from ftcore.resources.coverage import Coverage


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for ``--json`` and for the manifest, without secrets."""
    return {
        "file": plan.file,
        "components": {kind: selected.full_name for kind, selected in plan.components.items()},
        "options": {
            name: {"value": None if name in SECRETS else bound.value, "owner": bound.owner, "origin": bound.origin}
            for name, bound in plan.options.items()
        },
        "datasets": [spec.name for spec in plan.datasets],
        "eval_datasets": [spec.name for spec in plan.eval_datasets],
        "precision": {"compute": plan.precision.compute, "trained": plan.precision.trained},
        "gradient_checkpointing": plan.gradient_checkpointing,
        "effective_batch_size": None if plan.training.tokens_per_batch else effective_batch(plan),
        "effective_batch_tokens": effective_tokens(plan),
        "ignored": list(plan.ignored),
        "warnings": list(plan.warnings),
        "memory": plan.memory.as_dict() if plan.memory else None,
        "unknown": list(plan.unknown),
        "coverage": coverage.as_dict() if (coverage := _coverage(plan)) else None,
    }


def _coverage(plan: Plan) -> Coverage | None:
    """The share of the weights that a training run covers."""
    return plan.method.component.planned_coverage(plan) if plan.training.do_train else None


def effective_batch(plan: Plan) -> int:
    """Rows per optimizer step on one device."""
    return plan.training.per_device_train_batch_size * plan.training.gradient_accumulation_steps


def effective_tokens(plan: Plan) -> int | None:
    """Maximum tokens per optimizer step on one device, with ``tokens_per_batch``."""
    tokens = plan.training.tokens_per_batch
    return tokens and tokens * plan.training.gradient_accumulation_steps


def batch_line(plan: Plan) -> str:
    """What an optimizer step trains on."""
    steps, tokens = plan.training.gradient_accumulation_steps, plan.training.tokens_per_batch
    if tokens is not None:
        return f"at most {tokens:,} tokens x {steps} accumulated = {tokens * steps:,}"
    return f"{plan.training.per_device_train_batch_size} rows x {steps} accumulated = {effective_batch(plan)}"


SECRETS = frozenset({"hf_hub_token", "hub_token"})
