"""The memory estimate of a plan."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ftcore.resources import hardware
from ftcore.resources.memory_model import BYTES, Architecture, Depth, Estimate, Need, estimate
from ftcore.utils.units import in_units

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def estimate_plan(plan: Plan) -> Estimate | None:
    """The estimate, or None if the model's config.json is missing or its architecture unknown.

    Every row is assumed to have ``cutoff_len`` tokens, since such rows must fit.
    """
    architecture = Architecture.from_config(plan.config) if plan.config else None
    if architecture is None:
        return None
    method, training = plan.method.component, plan.training
    if not training.do_train:
        return _without_training(plan, architecture)
    options = method.effective(plan)
    weights, trainable = method.count(architecture, options, BYTES[plan.precision.compute])
    stage, traits = plan.stage.component, plan.traits
    splits = stage.loss_is_additive(plan) and int(os.environ.get("WORLD_SIZE") or 1) == 1
    parameters = weights / BYTES[plan.precision.compute]
    together = traits.concurrent(threads=hardware.threads(), trained=trainable, parameters=parameters)
    found = estimate(
        architecture,
        Need(
            weight_bytes=weights,
            trainable=trainable,
            adapter=method.saves_adapter,
            depth=method.depth(architecture, options),
            state_bytes=plan.optimizer.component.state_bytes,
            compute=plan.precision.compute,
            trained=plan.precision.trained,
            rows=training.per_device_train_batch_size,
            batch_tokens=training.tokens_per_batch,
            device=traits,
            pass_tokens=training.pass_tokens(traits.pass_tokens) if splits else None,
            together=together if splits else 1,
            cutoff_len=stage.max_seq_len(plan),
            sequences_per_row=stage.planned_sequences(plan),
            gradient_checkpointing=plan.gradient_checkpointing,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            adapter_dropout=method.drops_inputs(options),
        ),
    )
    auxiliary = stage.memory(plan)
    return replace(found, terms={**found.terms, **auxiliary}, total=found.total + sum(auxiliary.values()))


def _without_training(plan: Plan, architecture: Architecture) -> Estimate:
    """The estimate of a plan that evaluates, predicts or generates: of these, what needs most memory."""
    training = plan.training
    generates = training.do_predict or not (training.do_eval or training.eval_strategy != "no")
    evaluates = training.do_eval or training.eval_strategy != "no"
    found = [
        _forward(plan, architecture, answers=answers)
        for answers, does in ((False, evaluates), (True, generates))
        if does
    ]
    return max(found, key=lambda estimate: estimate.total)


def _forward(plan: Plan, architecture: Architecture, *, answers: bool) -> Estimate:
    """The estimate of forward passes over a batch; generating answers adds the key-value cache of the batch."""
    method, training = plan.method.component, plan.training
    compute = plan.precision.compute
    if answers and not training.do_predict and plan.model.infer_dtype != "auto":
        compute = plan.model.infer_dtype
    rows, longest, new = training.per_device_eval_batch_size, plan.data.cutoff_len, plan.generation.max_new_tokens
    weights, trainable = method.count(architecture, method.effective(plan), BYTES[compute])
    runs = training.do_predict or not answers  # a run always applies the method to the model
    adapters = trainable if method.saves_adapter and (plan.model.adapter_name_or_path or runs) else 0
    found = estimate(
        architecture,
        Need(
            weight_bytes=weights,
            trainable=adapters,
            adapter=True,  # nothing is trained
            depth=Depth(layers=0, head=False),
            state_bytes=0,
            device=plan.traits,
            compute=compute,
            rows=rows,
            cutoff_len=longest,
            sequences_per_row=1 if answers else plan.stage.component.planned_sequences(plan),
        ),
    )
    left_out = ("trained parameters", "gradients", "optimizer state")
    terms = {name: size for name, size in found.terms.items() if name not in left_out}
    terms |= {"adapters": found.terms["trained parameters"], **plan.stage.component.memory(plan)}
    # measured: 135 M parameters and 4 rows of 1024 tokens in float32 peaked at 1.36 GB, of which 1.23 GB were live
    terms["heap holes"] = terms["activations"] if plan.traits.heap else 0
    note = f"evaluating {found.note}"
    if answers:
        terms["keys and values"] = (
            rows * (longest + new) * architecture.layers * 2 * architecture.key_size * BYTES[compute]
        )
        # 3 copies in float32: the logits and what sampling computes from them
        terms["logits chunk"] = max(terms["logits chunk"], 3 * 4 * rows * architecture.vocab_size)
        note = f"generating at most {new} tokens for {rows} prompt{'s' * (rows != 1)} of {longest} tokens"
    return Estimate(terms, sum(terms.values()), note)


def advice(plan: Plan) -> str:
    """Options to change when memory does not suffice, each with the estimate after the change."""
    now = plan.memory or estimate_plan(plan)
    if now is None:
        return "lower cutoff_len, write disable_gradient_checkpointing: false, or use a smaller model"
    shorter = plan.data.model_copy(update={"cutoff_len": max(2, plan.data.cutoff_len // 2)})
    one = plan.training.model_copy(update={"per_device_train_batch_size": 1})
    half = plan.training.model_copy(update={"tokens_per_batch": (plan.training.tokens_per_batch or 0) // 2 or 1})
    fewer = f"tokens_per_batch: {half.tokens_per_batch}" if plan.training.tokens_per_batch else ""
    passes = plan.training.model_copy(update={"tokens_per_pass": 1024})
    changes = {
        "disable_gradient_checkpointing: false": replace(plan, gradient_checkpointing=True),
        "tokens_per_pass: 1024": replace(plan, training=passes),
        fewer or "per_device_train_batch_size: 1": replace(plan, training=half if fewer else one),
        f"cutoff_len: {shorter.cutoff_len}": replace(plan, data=shorter),
    }
    found = {change: estimate_plan(changed) for change, changed in changes.items()}
    helpful = [
        f"{change} needs {in_units(less.total)}" for change, less in found.items() if less and less.total < now.total
    ]
    text = f"the run needs {now}"
    return f"{text}; {', '.join(helpful)}" if helpful else f"{text}; use a smaller model or train an adapter"
