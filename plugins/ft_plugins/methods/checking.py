"""Checks of the methods' options before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ft_plugins.methods.eval_only import EvalOnly
from ft_plugins.methods.freeze import FreezeOptions
from ft_plugins.methods.full import Full
from ft_plugins.methods.lora import Lora, LoraOptions
from ft_plugins.methods.qlora import Qlora
from ft_plugins.models.quantizers import quantized_by
from ftcore.errors import Problem

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

ROUNDED = "adapters cannot be merged into quantised weights without rounding the weights again"
MERGE = "merge all adapters but the last with ft export, and write that model as model_name_or_path"


def problems(plan: Plan) -> Iterable[Problem]:
    """Problems of the plan's method."""
    method, options = plan.method.component, plan.method.options
    where = plan.where("finetuning_type")
    if isinstance(method, EvalOnly) and plan.training.do_train:
        hint = "write finetuning_type: lora, or do_eval: true instead of do_train"
        yield Problem("finetuning_type none trains nothing, and do_train is true", where, hint)
    if isinstance(method, Full):
        yield from _whole_model(plan, where)
    if isinstance(options, FreezeOptions) and not (options.freeze_trainable_layers or options.freeze_extra_modules):
        at = plan.where("freeze_trainable_layers")
        yield Problem(
            "freeze_trainable_layers: 0 leaves nothing to train", at, "write a number, or freeze_extra_modules"
        )
    if isinstance(options, LoraOptions):
        yield from _pissa(plan, options)
    if isinstance(method, EvalOnly) and quantized_by(plan) and len(plan.model.adapter_name_or_path) > 1:
        yield Problem(ROUNDED, plan.where("adapter_name_or_path"), MERGE)
    if isinstance(method, Lora):
        yield from _quantized(plan, isinstance(method, Qlora))


def _whole_model(plan: Plan, where: str) -> Iterable[Problem]:
    name = plan.method.component.name
    if plan.model.adapter_name_or_path and plan.training.do_train:
        at = plan.where("adapter_name_or_path")
        yield Problem(
            f"finetuning_type {name} does not support adapter_name_or_path",
            at,
            "write finetuning_type: lora, or merge them with ft export and train that model",
        )
    if (method := quantized_by(plan)) and plan.training.do_train:
        reason = f"the model is quantised ({method}), and finetuning_type {name} would train its weights"
        yield Problem(reason, where, "write finetuning_type: lora")


def _pissa(plan: Plan, options: LoraOptions) -> Iterable[Problem]:
    fresh = options.create_new_adapter or not plan.model.adapter_name_or_path
    at = plan.where("pissa_init")
    if options.pissa_init and (isinstance(plan.method.component, Qlora) or quantized_by(plan)):
        hint = "remove it, or train with lora on a model that is not quantised"
        yield Problem("pissa_init decomposes the weights, and these are quantised", at, hint)
    if options.pissa_init and not fresh:
        hint = "remove it, or write create_new_adapter: true"
        reason = "pissa_init initialises a new adapter, and adapter_name_or_path names one to train further"
        yield Problem(reason, at, hint)
    if options.pissa_convert and not options.pissa_init:
        where = plan.where("pissa_convert")
        yield Problem("pissa_convert has no effect without pissa_init", where, "remove it")


def _quantized(plan: Plan, here: bool) -> Iterable[Problem]:
    """Problems of adapters on a quantised base."""
    already = quantized_by(plan)
    if here and not already and find_spec("bitsandbytes") is None:
        yield Problem(
            "quantization_bit needs bitsandbytes, which is not installed",
            plan.where("quantization_bit"),
            "pip install 'ftcore[qlora]'",
        )
    if here and already:
        at = plan.where("quantization_bit")
        hint = "remove quantization_bit and write finetuning_type: lora"
        yield Problem(f"the model is quantised already ({already})", at, hint)
    if (here or already) and plan.training.do_train and plan.method.component.base_adapters(plan):
        yield Problem(ROUNDED, plan.where("adapter_name_or_path"), MERGE)
