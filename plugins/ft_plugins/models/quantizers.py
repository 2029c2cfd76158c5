"""Quantised models: the packages that loading them requires, and whether adapters can be trained on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

NEEDS: Mapping[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto_round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "eetq": ("kernels",),
    "gptq": ("gptqmodel", "optimum"),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
    "quark": ("quark",),
    "spqr": ("spqr_quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""``quant_method`` of config.json -> modules that transformers 5.23 imports for it (quantizers/quantizer_*.py)."""
PACKAGES = {"quark": "amd-quark", "bitsandbytes": "'ftcore[qlora]'"}
"""Module -> package to install, if it differs from the module's name with dashes."""
ON_GPU = ("eetq", "fbgemm_fp8", "spqr", "vptq")
"""Methods that transformers loads only on a GPU."""


def quantized_by(plan: Plan) -> str:
    """The quantisation method of the saved model; empty if not quantised or unknown."""
    found = (plan.config or {}).get("quantization_config") or {}
    return str(found.get("quant_method", "unknown")) if found else ""


def problems(plan: Plan) -> Iterable[Problem]:
    """Reports a missing package or GPU."""
    method, where = quantized_by(plan), plan.where("model_name_or_path")
    modules = NEEDS.get(method, ())
    if missing := [module for module in modules if not _installed(module)]:
        names = " ".join(PACKAGES.get(module, module.replace(".", "-").replace("_", "-")) for module in modules)
        reason = f"the model is quantised ({method}), and loading it requires {' and '.join(missing)}"
        yield Problem(reason, where, f"pip install {names}")
    if method in ON_GPU and plan.device == "cpu":
        reason = f"the model is quantised ({method}), and transformers loads such models on a GPU only"
        yield Problem(reason, where, "use the unquantised model, with quantization_bit: 4 or 8 if it is too large")


def _installed(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _installed(parent)) and find_spec(module) is not None


@contextmanager
def reading(method: str) -> Iterator[dict[str, Any]]:
    """Arguments of ``from_pretrained`` for a model of this quantisation method.

    Layers of compressed-tensors create their weight in the first forward pass, but adapters read it. The argument
    creates it while loading.
    """
    if method != "compressed-tensors":
        yield {}
        return
    from transformers import CompressedTensorsConfig

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config`")  # the argument is intended
        yield {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def check_trainable(plan: Plan, model: Any) -> None:
    """Checks that transformers supports training on the model's quantised layers.

    Raises:
        UsageError: it does not.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and plan.training.do_train and not quantizer.is_trainable:
        method = quantized_by(plan) or type(quantizer).__name__.removesuffix("HfQuantizer")
        reason = f"the model is quantised ({method}), and transformers cannot train adapters on such layers"
        hint = "use the unquantised model, with quantization_bit: 4 or 8 if it is too large"
        raise UsageError(Problem(reason, plan.where("model_name_or_path"), hint))
