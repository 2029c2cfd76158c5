"""The core's checks of a bound plan, and the decisions that depend on the hardware."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ftcore.api.plan import Plan, Precision
from ftcore.config.validation import output_folder
from ftcore.errors import Problem
from ftcore.models.resolve import cached_file
from ftcore.resources.compilers import INDUCTOR, backends, cpp_compiler
from ftcore.utils.json_files import read_object

MEMORY_SHARE = 0.9
"""Share of the memory above which activations are recomputed instead of kept."""


def precision(plan: Plan) -> tuple[Precision, list[Problem]]:
    """The dtypes of the run: those of the file if they are fast on the device, else float32.

    Trainable parameters are float32 unless ``pure_bf16`` is true.
    """
    training, traits = plan.training, plan.traits
    option = "fp16" if training.fp16 else "pure_bf16" if training.pure_bf16 else "bf16"
    if training.fp16 and (training.bf16 or training.pure_bf16):
        other = "bf16" if training.bf16 else "pure_bf16"
        return Precision(), [Problem(f"{other} and fp16 are both true", plan.where("fp16"), "keep one")]
    if training.pure_bf16 and training.bf16 is False:
        return Precision(), [Problem("pure_bf16 is true and bf16 false", plan.where("pure_bf16"), "keep one")]
    if training.fp16:
        dtype = "float16"
    elif training.bf16 or training.pure_bf16 or (training.bf16 is None and "bfloat16" in traits.fast_dtypes):
        dtype = "bfloat16"
    else:
        return Precision(), []
    if dtype in traits.fast_dtypes:
        return Precision(compute=dtype, trained=dtype if training.pure_bf16 else "float32"), []
    reason = f"{traits.name} only emulates {dtype}, many times slower"
    if training.strict_precision:
        hint = f"remove {option}, or remove strict_precision to train in float32"
        return Precision(), [Problem(reason, plan.where(option), hint)]
    return Precision(reason=f"float32 instead of {dtype}: {reason}"), []


def check(plan: Plan) -> list[Problem]:
    """Problems that involve several options."""
    return [
        *_check_data(plan),
        *_check_mixing(plan),
        *_check_packing(plan),
        *_check_streaming(plan),
        *_check_prefix(plan),
        *_check_compiler(plan),
        *_check_tokens_per_batch(plan),
        *_check_sharing(plan),
        *output_folder.problems(plan, plan.where("output_dir")),
        *_check_resume(plan),
        *_check_adapters(plan),
    ]


def _check_data(plan: Plan) -> Iterable[Problem]:
    training, data = plan.training, plan.data
    if training.do_train and not data.dataset:
        yield Problem(
            "do_train is true, but dataset is not set", plan.where("do_train"), "write dataset: NAME or a file"
        )
    evaluating = {"eval_strategy": training.eval_strategy != "no", "do_eval": training.do_eval}
    evaluating |= {"do_predict": training.do_predict}
    option = next((option for option, is_set in evaluating.items() if is_set), "")
    folders = any(spec.path and spec.path.is_dir() for spec in plan.datasets)
    if option and not (data.eval_dataset or data.val_size or folders or any(spec.hub_id for spec in plan.datasets)):
        yield Problem(
            f"{option} needs evaluation data, and there is none",
            plan.where(option),
            "write val_size or eval_dataset",
        )
    if training.do_predict and not plan.stage.component.supports_prediction:
        hint = "remove do_predict; do_eval evaluates"
        yield Problem(f"stage {plan.stage.component.name!r} cannot predict", plan.where("do_predict"), hint)
    if data.val_size and data.eval_dataset:
        yield Problem("val_size and eval_dataset are both set", plan.where("val_size"), "keep one")
    if data.train_on_prompt and data.mask_history:
        yield Problem("train_on_prompt and mask_history contradict each other", plan.where("mask_history"), "keep one")
    if data.max_bad_rows is not None and data.on_bad_row == "fail":
        message = "max_bad_rows is set, and on_bad_row: fail accepts no bad row"
        yield Problem(message, plan.where("max_bad_rows"), "write on_bad_row: skip or quarantine")
    if data.val_size > 1 and data.val_size != int(data.val_size):
        yield Problem(f"val_size: {data.val_size} is neither a share nor a number of rows", plan.where("val_size"))


def _check_mixing(plan: Plan) -> Iterable[Problem]:
    probabilities, where = plan.data.interleave_probs, plan.where("interleave_probs")
    if probabilities is None:
        return
    if plan.data.mix_strategy == "concat":
        hint = "write mix_strategy: interleave_under, interleave_over or interleave_once"
        yield Problem("interleave_probs is set, but mix_strategy is concat", where, hint)
    elif len(probabilities) != len(plan.data.dataset):
        count = len(plan.data.dataset)
        yield Problem(f"interleave_probs has {len(probabilities)} numbers for {count} datasets", where)
    elif abs(sum(probabilities) - 1) > 1e-6:
        yield Problem(f"interleave_probs sum to {sum(probabilities):g}, not 1", where)


def _check_packing(plan: Plan) -> Iterable[Problem]:
    data, stage = plan.data, plan.stage.component
    option = "packing" if data.packing else "neat_packing"
    if data.packing is False and data.neat_packing:
        yield Problem("packing is false and neat_packing is true", plan.where("neat_packing"), "keep one")
    elif (data.packing or data.neat_packing) and stage.packs_by_default is None:
        hint = f"remove {option}; rows are never padded, so packing would save nothing"
        yield Problem(f"{option}: stage {stage.name!r} cannot train on packed rows", plan.where(option), hint)
    if data.packing_split and stage.samples != ("Text",):
        hint = "remove packing_split: conversations are never split"
        yield Problem(
            f"packing_split is for raw texts, not for stage {stage.name!r}", plan.where("packing_split"), hint
        )


def _check_prefix(plan: Plan) -> Iterable[Problem]:
    """Options that rule out a cache for frozen layers; other reasons show on the loaded model."""
    if plan.training.cache_frozen_prefix is not True:
        return
    reasons = {
        "streaming reads each row only once": plan.data.streaming,
        f"stage {plan.stage.component.name} generates new sequences in each epoch": (
            not plan.stage.component.deterministic_rows
        ),
        "neftune_noise_alpha adds noise to the inputs of the first layer": plan.transformers.get("neftune_noise_alpha"),
    }
    for reason, applies in reasons.items():
        if applies:
            message = f"cache_frozen_prefix is true, and {reason}"
            yield Problem(message, plan.where("cache_frozen_prefix"), "write cache_frozen_prefix: auto, or false")


def _check_compiler(plan: Plan) -> Iterable[Problem]:
    """Whether the compiler for layers is installed; layers in float32 on a CPU are not compiled."""
    if plan.training.compiler is None:
        return
    backend, mode = plan.training.compiler
    if backend not in backends():
        message = f"there is no torch_compile_backend {backend!r}"
        yield Problem(message, plan.where("torch_compile_backend"), f"write one of {', '.join(backends())}")
    if mode is not None and backend != INDUCTOR:
        message = f"torch_compile_mode works with the backend inductor only, not with {backend}"
        yield Problem(message, plan.where("torch_compile_mode"), "remove one of the two")
    if backend == INDUCTOR and plan.precision.compute != "float32" and cpp_compiler() is None:
        options = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
        where = next((found for option in options if (found := plan.where(option)) != plan.file), plan.file)
        message = "torch_compile needs a C++ compiler, and neither g++ nor the one of CXX is installed"
        yield Problem(message, where, "install g++, set CXX, or remove torch_compile")


def _check_tokens_per_batch(plan: Plan) -> Iterable[Problem]:
    where = plan.where("tokens_per_batch")
    if plan.training.tokens_per_batch is None:
        return
    if plan.options["per_device_train_batch_size"].origin not in ("default", "family"):
        yield Problem("tokens_per_batch and per_device_train_batch_size are both set", where, "keep one")
    if plan.data.streaming:
        message = "tokens_per_batch is set, and the number of steps per epoch of a stream is unknown"
        yield Problem(message, where, "write per_device_train_batch_size")
    if not plan.stage.component.deterministic_rows:
        message = (
            f"tokens_per_batch is set, and stage {plan.stage.component.name} generates new sequences in each epoch"
        )
        yield Problem(message, where, "write per_device_train_batch_size")


def _check_sharing(plan: Plan) -> Iterable[Problem]:
    """A shared prefix is impossible with noise that differs between sequences."""
    if plan.training.share_prompt is True and plan.transformers.get("neftune_noise_alpha"):
        message = "share_prompt is true, and neftune_noise_alpha adds different noise to each sequence"
        yield Problem(message, plan.where("share_prompt"), "write share_prompt: auto, or remove neftune_noise_alpha")


def _check_streaming(plan: Plan) -> Iterable[Problem]:
    data, training, stage = plan.data, plan.training, plan.stage.component
    if not data.streaming:
        return
    if not stage.supports_streaming:
        hint = "remove streaming; tokens are stored on disk, not in memory"
        yield Problem(f"stage {stage.name!r} cannot train on a stream", plan.where("streaming"), hint)
    if training.do_train and training.max_steps <= 0:
        hint = "write max_steps: the length of an epoch is unknown"
        yield Problem("streaming needs max_steps", plan.where("streaming"), hint)
    for option in ("save_strategy", "eval_strategy"):
        if getattr(training, option) == "epoch":
            message = f"{option} is epoch, and the end of an epoch is unknown in a stream"
            yield Problem(message, plan.where(option), f"write {option}: steps")
    for spec in plan.datasets:
        if spec.num_samples:
            message = f"dataset {spec.name!r} has num_samples, and the number of rows in a stream is unknown"
            hint = "remove num_samples; max_samples takes the first rows, interleave_probs weights datasets"
            yield Problem(message, plan.where("streaming"), hint)
    if 0 < data.val_size < 1:
        message = f"val_size: {data.val_size:g} is a share, and the number of rows in a stream is unknown"
        yield Problem(message, plan.where("val_size"), "write a number of rows")
    if data.on_bad_row == "quarantine":
        message = "on_bad_row is quarantine, and a stream cannot be read a second time to collect bad rows"
        yield Problem(message, plan.where("on_bad_row"), "write on_bad_row: skip, which counts and lists bad rows too")
    if data.tokenized_path:
        message = "tokenized_path is set, and the tokens of a stream are not stored"
        yield Problem(message, plan.where("tokenized_path"), "remove tokenized_path or streaming")


def _check_resume(plan: Plan) -> Iterable[Problem]:
    resume = plan.training.resume_from_checkpoint
    if isinstance(resume, str) and resume not in ("auto", "never") and not Path(resume).is_dir():
        yield Problem(
            f"there is no checkpoint {resume!r}",
            plan.where("resume_from_checkpoint"),
            "write auto, never, or a checkpoint's folder",
        )


def _check_adapters(plan: Plan) -> Iterable[Problem]:
    for name in plan.model.adapter_name_or_path:
        yield from adapter_problems(plan, "adapter_name_or_path", name)


def adapter_problems(plan: Plan, option: str, name: str) -> Iterable[Problem]:
    """An option that names an adapter which does not exist, or a folder that is not an adapter."""
    folder = Path(name).expanduser()
    config = folder / "adapter_config.json"
    if folder.is_dir() and not config.is_file():
        hint = "write the output folder of a run that trained an adapter"
        yield Problem(f"{name} is not an adapter: it has no adapter_config.json", plan.where(option), hint)
    elif folder.is_dir():
        try:
            read_object(config)
        except ValueError as error:
            yield Problem(f"{config} {error}", plan.where(option), "write an adapter's folder")
    elif not folder.is_dir() and (folder.is_absolute() or name.startswith(".") or name.count("/") != 1):
        yield Problem(f"there is no adapter {name!r}", plan.where(option), "write a folder or a hub id")


def warnings(plan: Plan) -> Iterable[str]:
    """Warnings of the plan."""
    if plan.precision.reason:
        yield plan.precision.reason
    if plan.data.streaming and plan.training.dataloader_num_workers:
        yield "dataloader_num_workers has no effect: the run's own process reads a stream"
    for plugin in plan.plugins.broken:
        yield f"plugin {plugin.id} is broken: {plugin.status}"
    yield from output_folder.notices(plan)
    if not (plan.training.do_train or plan.training.do_eval or plan.training.do_predict):
        yield "do_train, do_eval and do_predict are all false: ft run will do nothing"


def unknown(plan: Plan) -> Iterable[str]:
    """What a plan cannot know, since it does not use the network: models and adapters that are not on this machine."""
    name = plan.model.model_name_or_path
    if plan.config is None:
        decided = ["model family"] * (plan.family is None) + ["chat template"] * (plan.template is None)
        decided += ["settings for images", "memory"]
        listed = ", ".join(decided[:-1]) + f" and {decided[-1]}"
        yield f"{name} is not in the hub's cache, so its config.json is unknown; ft run determines {listed}"
    elif plan.memory is None:
        yield f"memory is not estimated: the architecture of model_type {plan.config.get('model_type')!r} is unknown"
    for option, other in {"adapter_name_or_path": plan, **plan.stage.component.auxiliary_models(plan)}.items():
        if other is not plan and other.config is None:
            yield f"{option}: {other.model.model_name_or_path} is not in the hub's cache and was not checked"
        for adapter in other.model.adapter_name_or_path:
            cache = plan.model.cache_dir
            if not Path(adapter).expanduser().is_dir() and cached_file(adapter, "adapter_config.json", cache) is None:
                yield f"{option}: adapter {adapter} is not in the hub's cache and was not checked"
    for spec in (*plan.datasets, *plan.eval_datasets):
        if spec.hub_id:
            yield f"dataset {spec.name} is on the hub; whether it exists was not checked"


def with_memory(plan: Plan) -> Plan:
    """The plan with its memory estimate; activations are recomputed if they would not fit."""
    from ftcore.config.memory_planning import estimate_plan

    recomputes = plan.training.recomputes
    plan = replace(plan, gradient_checkpointing=recomputes is True)
    plan = replace(plan, memory=estimate_plan(plan))
    if not plan.training.do_train:
        return plan
    if recomputes is None and plan.memory and plan.memory.total > MEMORY_SHARE * plan.traits.memory:
        plan = replace(plan, gradient_checkpointing=True)
        plan = replace(plan, memory=estimate_plan(plan))
    return plan
