"""What methods cannot do, said before anything is loaded."""

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

ROUNDED = "adapters cannot be merged into quantised weights without rounding them anew"
MERGE = "merge all but the last with ft export, and name that model"


def problems(plan: Plan) -> Iterable[Problem]:
    """Every one."""
    method, options = plan.method.component, plan.method.options
    where = plan.where("finetuning_type")
    if isinstance(method, EvalOnly) and plan.training.do_train:
        yield Problem("finetuning_type none trains nothing, and do_train is true", where, "write lora, or do_eval")
    if isinstance(method, Full):
        yield from _whole_model(plan, where)
    if isinstance(options, FreezeOptions) and not (options.freeze_trainable_layers or options.freeze_extra_modules):
        at = plan.where("freeze_trainable_layers")
        yield Problem(
            "freeze_trainable_layers: 0 leaves nothing to train", at, "write how many, or freeze_extra_modules"
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
            f"finetuning_type {name} takes no adapters",
            at,
            "write finetuning_type: lora, or merge them with ft export and train that model",
        )
    if (method := quantized_by(plan)) and plan.training.do_train:
        yield Problem(f"the model is quantised ({method}), and {name} would train its weights", where, "write lora")


def _pissa(plan: Plan, options: LoraOptions) -> Iterable[Problem]:
    fresh = options.create_new_adapter or not plan.model.adapter_name_or_path
    at = plan.where("pissa_init")
    if options.pissa_init and (isinstance(plan.method.component, Qlora) or quantized_by(plan)):
        hint = "drop it, or train with lora on a model that is not quantised"
        yield Problem("pissa_init takes weights apart, and these are quantised", at, hint)
    if options.pissa_init and not fresh:
        hint = "drop it, or write create_new_adapter: true"
        yield Problem("pissa_init begins a new adapter, and adapter_name_or_path goes on with one", at, hint)
    if options.pissa_convert and not options.pissa_init:
        yield Problem("pissa_convert without pissa_init has nothing to convert", plan.where("pissa_convert"), "drop it")


def _quantized(plan: Plan, here: bool) -> Iterable[Problem]:
    """Of adapters on a quantised base."""
    already = quantized_by(plan)
    if here and not already and find_spec("bitsandbytes") is None:
        yield Problem(
            "quantised weights need bitsandbytes", plan.where("quantization_bit"), "pip install 'ftcore[qlora]'"
        )
    if here and already:
        at = plan.where("quantization_bit")
        hint = "drop quantization_bit and write finetuning_type: lora"
        yield Problem(f"the model is quantised already ({already})", at, hint)
    if (here or already) and plan.training.do_train and plan.method.component.base_adapters(plan):
        yield Problem(ROUNDED, plan.where("adapter_name_or_path"), MERGE)
