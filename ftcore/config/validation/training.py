"""Checks of options that TrainingArguments has too: values that it would refuse, and contradictions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ftcore.api.plan import Plan
from ftcore.errors import Problem

_OF_CHECKPOINTS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
_OF_ACCELERATE: Mapping[str, tuple[Any, ...]] = {
    "split_batches": (False,),
    "dispatch_batches": (None, False, True),
    "even_batches": (False, True),
    "use_seedable_sampler": (False, True),
    "non_blocking": (False, True),
    "gradient_accumulation_kwargs": (None, {}),
    "use_configured_state": (None, False),
}
"""Key of ``accelerator_config`` -> values that do not change the run."""


def problems(plan: Plan) -> Iterable[Problem]:
    """All problems with these options."""
    yield from _checkpointing(plan)
    yield from _batches(plan)
    yield from _smoothing(plan)
    yield from _loader(plan)
    yield from _accelerate(plan)
    yield from _logs(plan)
    yield from _device(plan)


def notes(plan: Plan) -> Iterable[str]:
    """Options that ft carries out in another way with the same result."""
    training = plan.training
    if training.auto_find_batch_size:
        text = (
            "when memory runs out, the batch is split into passes of half as many rows; optimizer steps stay the same"
        )
        yield f"{plan.where('auto_find_batch_size')}: auto_find_batch_size: {text}"
    if training.logging_dir is not None and not {"tensorboard", "all"} & set(training.report_to):
        text = "it is the folder for tensorboard, which report_to does not name"
        yield f"{plan.where('logging_dir')}: ignored: logging_dir: {text}"
    if training.gradient_checkpointing_kwargs and training.recomputes is False:
        text = "activations are kept, not recomputed"
        option = "gradient_checkpointing_kwargs"
        yield f"{plan.where(option)}: ignored: {option}: {text}"
    if plan.transformers.get("accelerator_config"):
        text = "each process reads an equal share of every batch, in the order that seed and epoch determine"
        yield f"{plan.where('accelerator_config')}: accelerator_config: {text}"


def _checkpointing(plan: Plan) -> Iterable[Problem]:
    training = plan.training
    enabled, disabled = training.gradient_checkpointing, training.disable_gradient_checkpointing
    if enabled is not None and enabled is disabled:
        value = str(enabled).lower()
        message = (
            f"gradient_checkpointing and disable_gradient_checkpointing are both {value}, which is a contradiction"
        )
        yield Problem(message, plan.where("gradient_checkpointing"), "remove one of them")
    given, where = training.gradient_checkpointing_kwargs or {}, plan.where("gradient_checkpointing_kwargs")
    if unknown := [name for name in given if name not in _OF_CHECKPOINTS]:
        message = f"gradient_checkpointing_kwargs: torch.utils.checkpoint does not take {', '.join(unknown)}"
        yield Problem(message, where, f"it takes {', '.join(_OF_CHECKPOINTS)}")
    if given.get("preserve_rng_state") is False:
        message = "gradient_checkpointing_kwargs: without preserve_rng_state recomputed dropout masks differ"
        yield Problem(message, where, "remove preserve_rng_state")


def _batches(plan: Plan) -> Iterable[Problem]:
    training, stage = plan.training, plan.stage.component
    where = plan.where("auto_find_batch_size")
    if training.auto_find_batch_size and not stage.loss_is_additive(plan):
        message = "auto_find_batch_size is true, and this loss compares the rows of a batch, so that it cannot be split"
        yield Problem(
            message, where, "remove auto_find_batch_size, and lower per_device_train_batch_size if memory runs out"
        )
    elif training.auto_find_batch_size and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        message = "auto_find_batch_size is true, and several processes cannot split a step differently"
        yield Problem(
            message, where, "remove auto_find_batch_size, and lower per_device_train_batch_size if memory runs out"
        )
    if training.dataloader_drop_last and training.tokens_per_batch is not None:
        message = "dataloader_drop_last is true, and with tokens_per_batch no batch is incomplete"
        yield Problem(message, plan.where("dataloader_drop_last"), "remove dataloader_drop_last or tokens_per_batch")


def _smoothing(plan: Plan) -> Iterable[Problem]:
    stage = plan.stage.component
    if plan.training.label_smoothing_factor and not stage.supports_label_smoothing:
        message = f"label_smoothing_factor applies to labels, and stage {stage.name!r} has none"
        yield Problem(message, plan.where("label_smoothing_factor"), stage.label_smoothing_hint)


def _loader(plan: Plan) -> Iterable[Problem]:
    given, workers = plan.transformers, plan.training.dataloader_num_workers
    for option in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if given.get(option) and not workers:
            message = f"{option} applies to loader processes, and dataloader_num_workers is 0"
            yield Problem(message, plan.where(option), f"write dataloader_num_workers: 1 or more, or remove {option}")
    context = given.get("dataloader_multiprocessing_context")
    if context not in (None, "fork", "spawn", "forkserver"):
        message = f"unknown dataloader_multiprocessing_context {context!r}"
        yield Problem(message, plan.where("dataloader_multiprocessing_context"), "write fork, spawn or forkserver")
    factor = given.get("dataloader_prefetch_factor")
    if factor is not None and factor < 1:
        message = f"dataloader_prefetch_factor: {factor} is less than one batch"
        yield Problem(message, plan.where("dataloader_prefetch_factor"), "write dataloader_prefetch_factor: 2 or more")


def _accelerate(plan: Plan) -> Iterable[Problem]:
    where = plan.where("accelerator_config")
    given = _read(plan.transformers.get("accelerator_config"))
    if isinstance(given, str):
        yield Problem(f"accelerator_config: {given}", where, "write a mapping, or the path of a JSON file with one")
        return
    for name, value in given.items():
        if name not in _OF_ACCELERATE:
            yield Problem(
                f"accelerator_config: unknown key {name!r}", where, f"known keys are {', '.join(_OF_ACCELERATE)}"
            )
        elif value not in _OF_ACCELERATE[name]:
            yield Problem(f"accelerator_config: {name}: {value} is not supported", where, _INSTEAD[name])


_INSTEAD = {
    "split_batches": "per_device_train_batch_size counts the rows of one device: divide by the number of devices",
    "dispatch_batches": "remove dispatch_batches",
    "even_batches": "remove even_batches",
    "use_seedable_sampler": "remove use_seedable_sampler",
    "non_blocking": "remove non_blocking",
    "gradient_accumulation_kwargs": "write gradient_accumulation_steps",
    "use_configured_state": "remove use_configured_state: the run configures its devices itself",
}


def _read(given: Any) -> Mapping[str, Any] | str:
    """The mapping, or an error message."""
    if isinstance(given, str):
        try:
            text = given if given.lstrip().startswith("{") else Path(given).expanduser().read_text(encoding="utf-8")
            given = json.loads(text)
        except OSError:
            return f"the file {given} does not exist"
        except ValueError:
            return "it is not valid JSON"
    return given if isinstance(given, Mapping) else {} if given is None else "it is not a mapping of names to values"


def _logs(plan: Plan) -> Iterable[Problem]:
    given, training = plan.transformers, plan.training
    for option in ("logging_steps", "save_steps", "eval_steps"):
        value = getattr(training, option)
        if value is not None and value > 1 and value != int(value):
            message = f"{option}: {value:g} is neither a number of steps nor a share below 1"
            yield Problem(message, plan.where(option), f"write {option}: {int(value)}")
    if given.get("logging_strategy") == "epoch" and plan.data.streaming:
        message = "logging_strategy is epoch, and the end of an epoch is unknown in a stream"
        yield Problem(message, plan.where("logging_strategy"), "write logging_strategy: steps")
    if given.get("eval_delay", 0) < 0:
        yield Problem("eval_delay is less than 0", plan.where("eval_delay"), "write eval_delay: 0")
    if given.get("eval_on_start") and training.eval_strategy == "no":
        message = "eval_on_start is true, and eval_strategy is no"
        yield Problem(message, plan.where("eval_on_start"), "write eval_strategy: steps or epoch")
    debug = given.get("debug") or ()
    for word in debug.split() if isinstance(debug, str) else debug:
        if word != "underflow_overflow":
            message = f"debug: {word!r} is not supported"
            yield Problem(message, plan.where("debug"), "write debug: underflow_overflow, or remove debug")


def _device(plan: Plan) -> Iterable[Problem]:
    given = plan.transformers
    if given.get("torch_empty_cache_steps", 1) < 1:
        message = f"torch_empty_cache_steps: {given['torch_empty_cache_steps']} is not a positive number of steps"
        yield Problem(message, plan.where("torch_empty_cache_steps"), "write torch_empty_cache_steps: 1 or more")
    traits = plan.traits
    if given.get("tf32") and "tf32" not in traits.fast_dtypes:
        yield Problem(f"tf32 is true, and {traits.name} does not support TF32", plan.where("tf32"), "remove tf32")
    for option, dtype, short in (
        ("bf16_full_eval", "bfloat16", "bf16"),
        ("fp16_full_eval", "float16", "fp16"),
    ):
        supported = dtype in traits.fast_dtypes
        if given.get(option) and supported and plan.precision.compute != dtype:
            message = (
                f"{option} is true, and an evaluation uses the precision of training, here {plan.precision.compute}"
            )
            yield Problem(message, plan.where(option), f"write {short}: true, or remove {option}")
        elif given.get(option) and not supported and plan.training.strict_precision:
            message = f"{option} is true, and {traits.name} does not support {dtype}"
            yield Problem(message, plan.where(option), f"remove {option} or strict_precision")
