"""Hints lead somewhere: every problem that a plan may have is caused here, and what its hint says plans.

A check that is added without its case fails `test_every_problem_has_its_case`.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import huggingface_hub
import pytest

from ft_plugins.methods import checking
from ft_plugins.optimizers.needs import Package
from ft_plugins.stages.sft import stage
from ftcore.api.registry import Plugins
from ftcore.config.binding import foreign_options, list_options
from ftcore.config.planner import make_plan
from ftcore.config.training_answers import ANSWERED
from ftcore.config.validation import core, hub, trackers
from ftcore.errors import Problem, UsageError
from ftcore.resources import hardware
from ftcore.resources.hardware import Hardware

ROOT = Path(__file__).parents[2]
MODULES = (
    *(
        f"ftcore.config.validation.{name}"
        for name in ("core", "evaluation", "hub", "lr_schedulers", "trackers", "training")
    ),
    *(f"ft_plugins.stages.{name}" for name in ("dpo.stage", "ppo.stage", "pt", "sft.stage", "auxiliary_models")),
    "ft_plugins.methods.checking",
    "ft_plugins.optimizers.needs",
)
"""Where plans are checked."""
LATER = {"datasets", "warnings"}
"""Functions of these modules that ask more than the plan."""

GONE: Any = ...
EVALUATES = {"eval_strategy": "steps", "val_size": 1}
STREAM = {"streaming": True, "max_steps": 3}
ADAPTER, REWARD, MODEL, FILE = "<adapter>", "<reward>", "<model>", "<file>"

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # ftcore.config.validation.core
    ({"dataset": GONE}, {"dataset": FILE}),
    ({"eval_strategy": "epoch"}, {"val_size": 1}),
    ({"do_eval": True}, {"eval_dataset": FILE}),
    ({"stage": "pt", "do_predict": True, "val_size": 1}, {"do_predict": GONE, "do_eval": True}),
    ({"val_size": 1, "eval_dataset": FILE}, {"val_size": GONE}),
    ({"train_on_prompt": True, "mask_history": True}, {"mask_history": GONE}),
    ({"max_bad_rows": 3}, {"on_bad_row": "skip"}),
    ({"max_bad_rows": 3}, {"on_bad_row": "quarantine"}),
    ({"val_size": 1.5}, {"val_size": 2}),
    ({"interleave_probs": [1.0]}, {"mix_strategy": "interleave_under"}),
    ({"interleave_probs": [0.5, 0.5], "mix_strategy": "interleave_over"}, {"interleave_probs": [1.0]}),
    ({"interleave_probs": [0.5], "mix_strategy": "interleave_over"}, {"interleave_probs": [1.0]}),
    ({"packing": False, "neat_packing": True}, {"packing": GONE}),
    ({"stage": "dpo", "neat_packing": True}, {"neat_packing": GONE}),
    ({"packing_split": True}, {"packing_split": GONE}),
    ({"cache_frozen_prefix": True, **STREAM}, {"cache_frozen_prefix": "auto"}),
    ({"cache_frozen_prefix": True, "neftune_noise_alpha": 1.0}, {"cache_frozen_prefix": False}),
    ({"torch_compile_backend": "inducter"}, {"torch_compile_backend": "inductor"}),
    ({"torch_compile_backend": "eager", "torch_compile_mode": "default"}, {"torch_compile_mode": GONE}),
    ({"tokens_per_batch": 64, "per_device_train_batch_size": 2}, {"tokens_per_batch": GONE}),
    ({"tokens_per_batch": 64, **STREAM}, {"tokens_per_batch": GONE, "per_device_train_batch_size": 2}),
    (
        {"tokens_per_batch": 64, "stage": "ppo", "reward_model": REWARD, "reward_model_type": "full"},
        {"tokens_per_batch": GONE, "per_device_train_batch_size": 2},
    ),
    ({"share_prompt": True, "neftune_noise_alpha": 1.0}, {"share_prompt": "auto"}),
    ({"share_prompt": True, "neftune_noise_alpha": 1.0}, {"neftune_noise_alpha": GONE}),
    ({"stage": "kto", **STREAM}, {"streaming": GONE}),
    ({"streaming": True}, {"max_steps": 5}),
    ({"save_strategy": "epoch", **STREAM}, {"save_strategy": "steps"}),
    ({"eval_strategy": "epoch", "val_size": 1, **STREAM}, {"eval_strategy": "steps"}),
    ({"dataset": "weighted", "dataset_dir": "<described>", **STREAM}, {"dataset": FILE}),
    ({"val_size": 0.1, **STREAM}, {"val_size": 2}),
    ({"on_bad_row": "quarantine", **STREAM}, {"on_bad_row": "skip"}),
    ({"tokenized_path": "x", **STREAM}, {"tokenized_path": GONE}),
    ({"tokenized_path": "x", **STREAM}, {"streaming": GONE}),
    ({"output_dir": FILE}, {"output_dir": "another"}),
    ({"output_dir": MODEL}, {"output_dir": "another"}),
    ({"resume_from_checkpoint": "nowhere"}, {"resume_from_checkpoint": "auto"}),
    ({"resume_from_checkpoint": "nowhere"}, {"resume_from_checkpoint": "never"}),
    ({"adapter_name_or_path": "./none"}, {"adapter_name_or_path": ADAPTER}),
    ({"adapter_name_or_path": MODEL}, {"adapter_name_or_path": ADAPTER}),
    ({"adapter_name_or_path": "<broken>"}, {"adapter_name_or_path": ADAPTER}),
    ({"bf16": True, "fp16": True}, {"bf16": GONE}),
    ({"bf16": False, "pure_bf16": True}, {"bf16": GONE}),
    ({"fp16": True, "strict_precision": True}, {"fp16": GONE}),
    ({"fp16": True, "strict_precision": True}, {"strict_precision": GONE}),
    # ftcore.config.validation.training
    ({"gradient_checkpointing": True, "disable_gradient_checkpointing": True}, {"gradient_checkpointing": GONE}),
    ({"gradient_checkpointing_kwargs": {"x": 1}}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}),
    ({"gradient_checkpointing_kwargs": {"preserve_rng_state": False}}, {"gradient_checkpointing_kwargs": {}}),
    ({"auto_find_batch_size": True, "stage": "dpo", "pref_loss": "aot"}, {"auto_find_batch_size": GONE}),
    ({"dataloader_drop_last": True, "tokens_per_batch": 64}, {"dataloader_drop_last": GONE}),
    ({"dataloader_drop_last": True, "tokens_per_batch": 64}, {"tokens_per_batch": GONE}),
    (
        {"stage": "dpo", "label_smoothing_factor": 0.1},
        {"label_smoothing_factor": GONE, "dpo_label_smoothing": 0.1},
    ),
    ({"stage": "rm", "label_smoothing_factor": 0.1}, {"label_smoothing_factor": GONE}),
    ({"dataloader_prefetch_factor": 3}, {"dataloader_num_workers": 1}),
    ({"dataloader_persistent_workers": True}, {"dataloader_persistent_workers": GONE}),
    (
        {"dataloader_multiprocessing_context": "x", "dataloader_num_workers": 1},
        {"dataloader_multiprocessing_context": "spawn"},
    ),
    ({"dataloader_prefetch_factor": 0, "dataloader_num_workers": 1}, {"dataloader_prefetch_factor": 2}),
    ({"accelerator_config": "nowhere.json"}, {"accelerator_config": {}}),
    ({"accelerator_config": {"x": 1}}, {"accelerator_config": {"even_batches": True}}),
    ({"accelerator_config": {"split_batches": True}}, {"accelerator_config": GONE, "per_device_train_batch_size": 2}),
    ({"logging_steps": 2.5}, {"logging_steps": 2}),
    ({"logging_strategy": "epoch", **STREAM}, {"logging_strategy": "steps"}),
    ({"eval_delay": -1}, {"eval_delay": 0}),
    ({"eval_on_start": True, "val_size": 1}, {"eval_strategy": "steps"}),
    ({"debug": "x"}, {"debug": "underflow_overflow"}),
    ({"torch_empty_cache_steps": 0}, {"torch_empty_cache_steps": 1}),
    ({"tf32": True}, {"tf32": GONE}),
    ({"fp16_full_eval": True, "strict_precision": True}, {"fp16_full_eval": GONE}),
    ({"fp16_full_eval": True, "strict_precision": True}, {"strict_precision": GONE}),
    # ftcore.config.validation.hub
    ({"push_to_hub": True, "hub_token": "t", "hub_model_id": "a/b/c"}, {"hub_model_id": "owner/name"}),
    ({"push_to_hub": True, "hub_token": "t", "do_train": False}, {"do_train": True}),
    ({"push_to_hub": True, "hub_token": "t", "do_train": False}, {"push_to_hub": GONE}),
    ({"push_to_hub": True}, {"hub_token": "t"}),
    # ftcore.config.validation.evaluation, schedules, trackers
    ({"early_stopping_steps": 2, "val_size": 1}, {"eval_strategy": "steps"}),
    ({"load_best_model_at_end": True, "save_strategy": "epoch", **EVALUATES}, {"save_strategy": "steps"}),
    ({"load_best_model_at_end": True, "save_strategy": "epoch", **EVALUATES}, {"save_strategy": "best"}),
    ({"load_best_model_at_end": True, "save_steps": 15, **EVALUATES}, {"save_steps": 20}),
    ({"load_best_model_at_end": True, "save_steps": 15, **EVALUATES}, {"save_strategy": "best"}),
    ({"lr_scheduler_type": "cosin"}, {"lr_scheduler_type": "cosine"}),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": "x"}, {"lr_scheduler_kwargs": {"num_cycles": 1}}),
    ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"x": 1}}, {"lr_scheduler_kwargs": GONE}),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, {"lr_scheduler_kwargs": {"min_lr": 1e-6}}),
    ({"lr_scheduler_type": "reduce_lr_on_plateau", "val_size": 1}, {"eval_strategy": "epoch"}),
    ({"report_to": "excel"}, {"report_to": "none"}),
    ({"report_to": "clearml"}, {"report_to": "none"}),
    # stages
    ({"stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0.1}, {"dpo_label_smoothing": GONE}),
    ({"stage": "dpo", "pref_loss": "ipo", "dpo_label_smoothing": 0.1}, {"pref_loss": GONE}),
    ({"stage": "dpo", "pref_loss": "exo_pair"}, {"dpo_label_smoothing": 0.001}),
    ({"stage": "dpo", "ref_model": ADAPTER}, {"ref_model": GONE, "ref_model_adapters": ADAPTER}),
    ({"stage": "ppo"}, {"reward_model": REWARD, "reward_model_type": "full"}),
    ({"stage": "ppo", "reward_model": "x", "reward_model_type": "api"}, {"reward_model": "http://127.0.0.1:1/x"}),
    ({"stage": "ppo", "reward_model": "<scores>", "reward_model_type": "full"}, {"reward_model_type": "lora"}),
    ({"stage": "ppo", "reward_model": REWARD}, {"reward_model_type": "full"}),
    (
        {"stage": "ppo", "reward_model": REWARD, "reward_model_type": "full", "reward_api_retries": 1},
        {"reward_api_retries": GONE},
    ),
    (
        {"stage": "ppo", "reward_model": "<scores>", "reward_model_adapters": "<scores>"},
        {"reward_model_adapters": GONE},
    ),
    (
        {
            "stage": "ppo",
            "reward_model": REWARD,
            "reward_model_type": "full",
            "ppo_value_backbone": "separate",
            "ppo_value_coef": 0,
        },
        {"ppo_value_backbone": "shared"},
    ),
    ({"stage": "ppo", "reward_model": REWARD, "reward_model_type": "full", "top_k": 5}, {"top_k": GONE}),
    (
        {"stage": "ppo", "reward_model": REWARD, "reward_model_type": "full", "max_length": 50},
        {"max_length": GONE, "max_new_tokens": 50},
    ),
    ({"stage": "pt", "isolate_documents": False, "packing": False}, {"packing": GONE}),
    ({"stage": "pt", "isolate_documents": False, "packing": False}, {"isolate_documents": GONE}),
    ({"do_predict": True, "val_size": 1}, {"predict_with_generate": True}),
    ({"do_predict": True, "val_size": 1}, {"do_predict": GONE, "do_eval": True}),
    ({"predict_with_generate": True, "val_size": 1}, {"do_predict": True}),
    ({"predict_with_generate": True, "val_size": 1}, {"predict_with_generate": GONE}),
    # methods and optimizers
    ({"finetuning_type": "none"}, {"finetuning_type": "lora"}),
    ({"finetuning_type": "none", "val_size": 1}, {"do_train": False, "do_eval": True}),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, {"freeze_trainable_layers": 1}),
    ({"finetuning_type": "full", "adapter_name_or_path": ADAPTER}, {"finetuning_type": "lora"}),
    ({"pissa_init": True, "quantization_bit": 4}, {"pissa_init": GONE}),
    ({"pissa_init": True, "adapter_name_or_path": ADAPTER}, {"pissa_init": GONE}),
    ({"pissa_init": True, "adapter_name_or_path": ADAPTER}, {"create_new_adapter": True}),
    ({"pissa_convert": True}, {"pissa_convert": GONE}),
    ({"quantization_bit": 4, "adapter_name_or_path": f"{ADAPTER},{ADAPTER}"}, {"adapter_name_or_path": ADAPTER}),
    ({"optim": "paged_adamw_32bit"}, {"optim": "adamw"}),
    ({"optim": "galore_adamw"}, {"save_only_model": True}),
]
"""What a file holds, and what its problem's hint changes in it."""


def where(call: ast.Call) -> range:
    return range(call.lineno, (call.end_lineno or call.lineno) + 1)


def sites() -> dict[tuple[str, int], range]:
    """Of each problem that these modules may make: file and line -> the lines of the call."""
    found = {}
    for name in MODULES:
        file = str(importlib.import_module(name).__file__)
        tree = ast.parse(Path(file).read_text("utf-8"))
        later = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in LATER]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "Problem":
                continue
            if not any(one.lineno <= node.lineno <= (one.end_lineno or 0) for one in later):
                found[file, node.lineno] = where(node)
    return found


@pytest.fixture
def filled(tmp_path: Path, config_dir: Path, rows_file: Path, reward_dir: Path) -> Any:
    """Puts real paths into a case."""

    def adapter(name: str, task: str) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": task, "r": 8}))
        return str(folder)

    (Path(adapter("broken", "")) / "adapter_config.json").write_text("{")
    described = {"weighted": {"file_name": rows_file.name, "num_samples": 2}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    names = {"<broken>": str(tmp_path / "broken"), "<described>": str(tmp_path)}
    names |= {ADAPTER: adapter("adapter", "CAUSAL_LM"), "<scores>": adapter("scores", "SEQ_CLS")}
    names |= {REWARD: str(reward_dir), MODEL: str(config_dir), FILE: str(rows_file)}

    def fill(values: Mapping[str, Any]) -> dict[str, Any]:
        filled_ = dict(values)
        for name, value in values.items():
            for mark, path in names.items():
                if isinstance(filled_[name], str):
                    filled_[name] = filled_[name].replace(mark, path)
            if name == "output_dir" and value == "another":
                filled_[name] = str(tmp_path / "another")
        return filled_

    return fill


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every package were there that an optimizer or a measure needs, and no token of the hub."""
    monkeypatch.setattr(Package, "missing", False)
    monkeypatch.setattr(stage, "missing_packages", list)
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def problems(file: Path, plugins: Plugins) -> list[Problem]:
    try:
        make_plan(file, plugins=plugins)
    except UsageError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(("values", "cure"), CASES, ids=lambda case: ",".join(case) if isinstance(case, dict) else "")
def test_what_a_hint_says_plans(
    values: dict[str, Any], cure: dict[str, Any], filled: Any, installed: Any, write_config: Any, built_in: Plugins
) -> None:
    found = problems(write_config(**filled(values)), built_in)
    assert len(found) == 1, found
    told = f"{found[0].message}; {found[0].hint}"
    for name, value in filled(cure).items():
        if value is not GONE and value != cure[name]:
            assert found[0].hint, name  # a path of this test
            continue
        assert name in told or re.search(rf"\b{re.escape(str(value).lower())}\b", told.lower()), (name, told)
    assert problems(write_config(**filled(values | cure)), built_in) == []


def test_every_problem_has_its_case(
    filled: Any, installed: Any, write_config: Any, built_in: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place in the code that makes a problem of a plan is reached by the cases, or by what stands here."""
    reached: set[tuple[str, int]] = set()
    places = sites()

    def noted(frame: FrameType) -> None:
        for (file, line), lines in places.items():
            if frame.f_code.co_filename == file and frame.f_lineno in lines:
                reached.add((file, line))

    class Noted(Problem):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            noted(sys._getframe(1))
            super().__init__(*args, **kwargs)

    for name in MODULES:
        if hasattr(module := importlib.import_module(name), "Problem"):
            monkeypatch.setattr(module, "Problem", Noted)
    for values, _ in CASES:
        problems(write_config(**filled(values)), built_in)
    for cause in further(monkeypatch):
        problems(write_config(**filled(cause)), built_in)
    missing = {f"{Path(file).name}:{line}" for file, line in places.keys() - reached}
    assert missing == set()


def further(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Files whose problem is one of the machine, or that a hint cures by a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Package, "missing", True)
        yield {"optim": "lion_32bit"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "missing_packages", lambda: ["nltk"])
        yield {"do_predict": True, "predict_with_generate": True, "val_size": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "offline", lambda: True)
        yield {"push_to_hub": True, "hub_token": "t"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        yield {"auto_find_batch_size": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "detect", lambda: Hardware(1 << 36, cuda=(9, 0)))
        patch.setattr(core, "cpp_compiler", lambda: None)
        yield {"bf16_full_eval": True, "bf16": False}
        yield {"torch_compile": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "find_spec", lambda name: None)
        yield {"quantization_bit": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "quantized_by", lambda plan: "gptq")
        yield {"finetuning_type": "full"}
        yield {"quantization_bit": 4}
        yield {"finetuning_type": "none", "do_train": False, "adapter_name_or_path": f"{ADAPTER},{ADAPTER}"}
        yield {"adapter_name_or_path": f"{ADAPTER},{ADAPTER}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers, "_unsupported_version", lambda requirement: "0.9")
        yield {"report_to": "tensorboard"}
    with pytest.MonkeyPatch.context() as patch:
        from ft_plugins.engines.transformers.engine import HuggingFace
        from ftcore.api.components import InferenceEngine

        patch.setattr(HuggingFace, "over", InferenceEngine.over)
        yield {"do_predict": True, "predict_with_generate": True, "val_size": 1}


# ---- options of other tools ----


def test_answers_name_options_that_exist(built_in: Plugins) -> None:
    """No name that an option has already, and no advice to write an option that nothing here has."""
    known = {option.name for option in list_options(built_in)}
    answers = foreign_options(built_in)
    assert not {name for name in answers if name in known} - ANSWERED.keys()
    for name, option in (answers | ANSWERED).items():
        assert {*option.instead, *(target for target, _ in option.means.values())} <= known, name
        assert not option.same_as or option.same_as in known, name
        words = {*re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b(?!\.)", option.advice)}
        assert words <= known, (name, words - known)
        if not option.instead:
            assert not re.search(r"\b(use|write)\b [a-z_]+$", option.advice), name


def test_what_an_answer_says_plans(
    built_in: Plugins, write_config: Any, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option of another tool: at a value that is refused, and then with what its answer says in its place."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(trackers, "_unsupported_version", lambda requirement: "")
    assert not any(option.instead for option in ANSWERED.values())
    for name, option in foreign_options(built_in).items():
        if option.same_as or option.harmless is None or name in ANSWERED:
            continue
        harmless = next(iter(option.harmless), None)
        refused = next(
            value for value in (True, 3, "something") if not option.takes(value) and value not in option.means
        )
        (problem,) = problems(write_config(**{name: refused}), built_in)
        assert (problem.message, problem.hint) == (f"{name} is known but not supported", option.hint)
        assert problem.hint
        base = {"stage": "dpo"} if "pref_loss" in option.instead else {}
        assert problems(write_config(**base, **option.instead), built_in) == [], name
        if harmless is not None:
            assert problems(write_config(**{name: harmless}), built_in) == []
        for value, (target, other) in option.means.items():
            plan = make_plan(write_config(**{name: value}), plugins=built_in)
            assert plan.options[target].value in (other, f"ftcore:{other}")
