"""Every field of the installed TrainingArguments has an answer, and the answer is true."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ftcore.cli.docs_reference import built_in, field_answer
from ftcore.config.binding import foreign_options, list_options, owners, selection_options
from ftcore.config.hf_training_arguments import training_fields
from ftcore.config.planner import make_plan
from ftcore.config.training_answers import ANSWERED, PASSED_ON
from ftcore.errors import UsageError
from ftcore.resources import hardware
from ftcore.resources.hardware import Hardware

ROOT = Path(__file__).parent.parent

PASSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "accelerator_config": ({"even_batches": False}, {}),
    "bf16_full_eval": (True, {}),
    "data_seed": (7, {}),
    "dataloader_multiprocessing_context": ("spawn", {"dataloader_num_workers": 1}),
    "dataloader_persistent_workers": (True, {"dataloader_num_workers": 1}),
    "dataloader_pin_memory": (False, {}),
    "dataloader_prefetch_factor": (3, {"dataloader_num_workers": 1}),
    "ddp_backend": ("gloo", {}),
    "ddp_broadcast_buffers": (False, {}),
    "ddp_bucket_cap_mb": (9, {}),
    "ddp_find_unused_parameters": (True, {}),
    "ddp_static_graph": (True, {}),
    "debug": ("underflow_overflow", {}),
    "disable_tqdm": (True, {}),
    "eval_delay": (2, {}),
    "eval_on_start": (True, {"eval_strategy": "steps", "val_size": 1}),
    "fp16_full_eval": (True, {}),
    "full_determinism": (True, {}),
    "greater_is_better": (True, {}),
    "load_best_model_at_end": (True, {"eval_strategy": "steps", "eval_steps": 500, "val_size": 1}),
    "log_level": ("info", {}),
    "log_level_replica": ("error", {}),
    "log_on_each_node": (False, {}),
    "logging_first_step": (True, {}),
    "logging_strategy": ("epoch", {}),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "cosine"}),
    "metric_for_best_model": ("accuracy", {}),
    "neftune_noise_alpha": (5.0, {}),
    "project": ("p", {}),
    "run_name": ("r", {}),
    "skip_memory_metrics": (False, {}),
    "tf32": (False, {}),
    "torch_empty_cache_steps": (3, {}),
    "trackio_bucket_id": ("b", {}),
    "trackio_space_id": ("s", {}),
    "trackio_static_space_id": ("t", {}),
    "use_cpu": (True, {}),
}
"""Field -> a value that is not its default, and what it goes with."""

OWN = {
    "accelerator_config": "config/test_hf_training_arguments.py::test_what_accelerates_is_the_plans",
    "bf16_full_eval": "config/test_hf_training_arguments.py::test_evaluation_in_another_precision",
    "data_seed": "training/test_training_options.py::test_the_order_by_data_seed",
    "dataloader_multiprocessing_context": "training/test_training_options.py::test_the_loader",
    "dataloader_persistent_workers": "training/test_training_options.py::test_the_loader",
    "dataloader_pin_memory": "training/test_training_options.py::test_the_loader",
    "dataloader_prefetch_factor": "training/test_training_options.py::test_the_loader",
    "ddp_backend": "training/test_training_options.py::test_a_backend_is_for_several_processes",
    "disable_tqdm": "training/test_training_options.py::test_a_bar",
    "fp16_full_eval": "config/test_hf_training_arguments.py::test_evaluation_in_another_precision",
    "neftune_noise_alpha": "training/test_trainer.py::test_neftune_noise_has_each_sequences_own_size",
    "use_cpu": "config/test_hf_training_arguments.py::test_a_gpu_that_is_left_alone",
}
"""Fields that ft reads itself -> the test of their effect. All others are read by transformers' own code."""

OBEYED = {
    "activation_checkpointing": "config/test_hf_training_arguments.py::test_recomputing_by_three_names",
    "activation_checkpointing_kwargs": "training/test_training_options.py::test_arguments_of_recomputing",
    "auto_find_batch_size": "training/test_guard.py::test_the_gradient_stays_the_same",
    "dataloader_drop_last": "training/test_training_options.py::test_rows_that_fill_no_batch",
    "generation_max_length": "plugins/stages/test_predict.py::test_the_evaluations_own_generation",
    "generation_num_beams": "plugins/stages/test_predict.py::test_the_evaluations_own_generation",
    "gradient_checkpointing": "config/test_hf_training_arguments.py::test_recomputing_by_three_names",
    "gradient_checkpointing_kwargs": "training/test_training_options.py::test_arguments_of_recomputing",
    "hub_always_push": "training/test_hub_upload.py::test_a_checkpoint_waits_for_none",
    "hub_model_id": "training/test_hub_upload.py::test_the_name_is_the_folders_unless_it_is_said",
    "hub_private_repo": "training/test_hub_upload.py::test_what_is_uploaded_and_when",
    "hub_revision": "training/test_hub_upload.py::test_what_is_uploaded_and_when",
    "hub_strategy": "training/test_hub_upload.py::test_what_is_uploaded_and_when",
    "hub_token": "training/test_hub_upload.py::test_what_is_uploaded_and_when",
    "label_smoothing_factor": "training/test_label_smoothing.py::test_a_step_is_the_mean_over_the_global_batchs_labels",
    "push_to_hub": "training/test_hub_upload.py::test_what_is_uploaded_and_when",
    "train_sampling_strategy": "config/test_hf_training_arguments.py::test_a_value_that_another_option_has_a_name_for",
}
"""Fields that became options of ft's own -> the test of their effect."""

REFUSED: dict[str, Any] = {
    "average_tokens_across_devices": False,
    "dataloader_in_order": False,
    "deepspeed": "ds.json",
    "fsdp": "full_shard",
    "fsdp_config": {"x": 1},
    "generation_config": "folder",
    "label_names": ["start_positions"],
    "local_rank": 3,
    "parallelism_config": "x",
    "save_on_each_node": True,
    "train_sampling_strategy": "batch_rebalance",
}
"""Field -> a value that is refused."""


def test_every_field_has_one_answer() -> None:
    """Also those of a later transformers: a new field fails here until somebody decides."""
    transformers = pytest.importorskip("transformers")
    plugins = built_in()
    owned = {name for group in owners(plugins).values() for name in group.model_fields} | {*selection_options()}
    renamed = {name for name, option in foreign_options(plugins).items() if option.same_as}
    for field in fields(transformers.Seq2SeqTrainingArguments):
        places = {"obeyed": owned | renamed, "passed on": PASSED_ON, "answered": ANSWERED}
        answers = [name for name, place in places.items() if field.name in place]
        assert len(answers) == 1, (field.name, answers)
        assert all(field_answer(field.name, plugins))
    assert {*PASSED_ON, *ANSWERED} <= training_fields().keys()
    assert PASSED.keys() == PASSED_ON.keys()
    refusing = {name for name, option in ANSWERED.items() if option.harmless is not None}
    assert refusing == REFUSED.keys()


def test_each_effect_has_its_test() -> None:
    for name, test in (OWN | OBEYED).items():
        file, _, function = test.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text("utf-8"), name


@pytest.mark.parametrize("name", sorted(PASSED))
def test_a_field_that_is_passed_on(name: str, write_config: Any) -> None:
    """The plan holds it, and transformers' arguments have it, where its code is what reads it."""
    from transformers import training_args

    from ftcore.training.training_arguments import training_arguments

    value, others = PASSED[name]
    assert value != training_fields()[name].default
    plan = make_plan(write_config(**{name: value}, **others))
    assert plan.transformers[name] == value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_args, "enable_tf32", lambda on: None)
        made = training_arguments(plan)
    if name not in OWN:
        found = getattr(made, name)
        assert [getattr(one, "value", one) for one in (found if isinstance(found, list) else [found])] == [value]


@pytest.mark.parametrize("name", sorted(ANSWERED))
def test_a_field_that_is_answered(name: str, write_config: Any) -> None:
    option, known = ANSWERED[name], training_fields()[name]
    any_value: dict[str, Any] = {"bool": not known.default, "int": 7, "str": "x", "list": ["x"], "dict": {"a": True}}
    kind = next(kind for kind in ("bool", "int", "dict", "list", "str") if kind in known.types)
    values = [any_value[kind]] if option.harmless is None else [v for v in option.harmless if v != known.default]
    for value in values:
        if known.check(value):
            continue  # of another type in this transformers
        lines = [line for line in make_plan(write_config(**{name: value})).ignored if f" {name}: " in line]
        assert [line.rpartition(f"{name}: ")[2] for line in lines] == [option.advice]
    assert f"ignored: {name} has its default" in " ".join(make_plan(write_config(**{name: known.default})).ignored)
    if name in REFUSED:
        with pytest.raises(UsageError) as caught:
            make_plan(write_config(**{name: REFUSED[name]}))
        (problem,) = caught.value.problems
        assert problem.message.startswith(f"{name}: ")
        assert problem.where.partition(":")[2].isdigit()
        assert option.advice
        assert problem.hint.startswith(option.advice)


@pytest.mark.parametrize("name", sorted(ANSWERED))
def test_a_field_of_the_wrong_type(name: str, write_config: Any) -> None:
    wrong = 1.5 if "int" not in training_fields()[name].types else [1]
    with pytest.raises(UsageError, match=rf"{name}: "):
        make_plan(write_config(**{name: wrong}))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"gradient_checkpointing": True}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": True}, True),
        ({"disable_gradient_checkpointing": False}, True),
        ({"disable_gradient_checkpointing": True}, False),
        ({"disable_gradient_checkpointing": True, "gradient_checkpointing": False}, False),
        ({"disable_gradient_checkpointing": False, "gradient_checkpointing": True}, True),
    ],
)
def test_recomputing_by_three_names(values: dict[str, bool], expected: bool | None, write_config: Any) -> None:
    plan = make_plan(write_config(**values))
    assert plan.training.recomputes is expected
    assert plan.gradient_checkpointing is bool(expected)


@pytest.mark.parametrize("value", [True, False])
def test_recomputing_that_contradicts_itself(value: bool, write_config: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(gradient_checkpointing=value, disable_gradient_checkpointing=value))
    told = str(value).lower()
    assert [(problem.message, problem.hint) for problem in caught.value.problems] == [
        (
            f"gradient_checkpointing and disable_gradient_checkpointing are both {told}, which is a contradiction",
            "remove one of them",
        )
    ]


def test_a_value_that_another_option_has_a_name_for(write_config: Any) -> None:
    plan = make_plan(write_config(train_sampling_strategy="sequential"))
    assert plan.data.disable_shuffling is True
    assert "run.yaml:" in plan.options["disable_shuffling"].origin
    assert make_plan(write_config(train_sampling_strategy="sequential", disable_shuffling=True)).data.disable_shuffling
    with pytest.raises(UsageError, match="keep one, train_sampling_strategy or disable_shuffling"):
        make_plan(write_config(train_sampling_strategy="sequential", disable_shuffling=False))


def test_evaluation_in_another_precision(write_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for training: where the hardware has it, the file must ask for it there; where not, it is float32."""
    for option, short, machine in (
        ("bf16_full_eval", "bf16", Hardware(1 << 36, cuda=(9, 0))),
        ("fp16_full_eval", "fp16", Hardware(1 << 36, cuda=(7, 0))),
    ):
        monkeypatch.setattr(hardware, "detect", lambda machine=machine: machine)
        assert make_plan(write_config(**{option: True, short: True})).precision.compute != "float32"
        with pytest.raises(UsageError, match=f"{option} is true, and .* here float32; write {short}: true"):
            make_plan(write_config(**{option: True, "bf16": False}))
        monkeypatch.setattr(hardware, "detect", lambda: Hardware(1 << 36))
        assert make_plan(write_config(**{option: True})).precision.compute == "float32"
        with pytest.raises(UsageError, match=f"{option} is true, and this CPU does not support"):
            make_plan(write_config(**{option: True, "strict_precision": True}))


def test_a_gpu_that_is_left_alone(write_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: Hardware(1 << 30, cuda=(9, 0)))
    assert make_plan(write_config()).precision.compute == "bfloat16"
    plan = make_plan(write_config(use_cpu=True))
    assert plan.precision.compute == "float32"
    assert plan.memory.note == make_plan(write_config(no_cuda=True)).memory.note
    assert "2048 tokens at a time" in make_plan(write_config(use_cpu=True, cutoff_len=512)).memory.note


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split_batches": True}, "accelerator_config: split_batches: True is not supported"),
        ({"gradient_accumulation_kwargs": {"num_steps": 2}}, "accelerator_config: gradient_accumulation_kwargs: "),
        ({"no_such": 1}, "accelerator_config: unknown key 'no_such'"),
        ("[1]", "accelerator_config: the file [1] does not exist"),
        ("{1", "accelerator_config: it is not valid JSON"),
    ],
)
def test_what_accelerates_is_the_plans(given: Any, message: str, write_config: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(accelerator_config=given))
    (problem,) = caught.value.problems
    assert problem.message.startswith(message)
    assert problem.hint
    told = make_plan(write_config(accelerator_config=json.dumps({"dispatch_batches": True}))).ignored
    assert re.search(r"run.yaml:\d+: accelerator_config: each process reads an equal", told[0])


def test_the_accelerators_keys_are_the_librarys() -> None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    from ftcore.config.validation.training import _OF_ACCELERATE

    assert {field.name for field in fields(AcceleratorConfig)} == _OF_ACCELERATE.keys()


def test_levels_and_strategies_are_transformers() -> None:
    import inspect

    import transformers.trainer
    from transformers.training_args import trainer_log_levels

    known = training_fields()
    assert {*known["log_level"].choices} == {*trainer_log_levels}
    sources = inspect.getsource(transformers.trainer)
    written = {*re.findall(r'train_sampling_strategy (?:==|in) \(?"(\w+)"', sources)}
    assert written <= {*known["train_sampling_strategy"].choices}


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"dataloader_persistent_workers": True}, "write dataloader_num_workers: 1 or more"),
        ({"dataloader_prefetch_factor": 2}, "write dataloader_num_workers: 1 or more"),
        ({"torch_empty_cache_steps": 0}, "write torch_empty_cache_steps: 1 or more"),
        ({"log_level": "loud"}, ""),
        ({"logging_steps": 2.5}, "write logging_steps: 2"),
        ({"debug": "tpu_metrics_debug"}, "write debug: underflow_overflow, or remove debug"),
        ({"tf32": True}, "remove tf32"),
        ({"eval_on_start": True}, "write eval_strategy: steps or epoch"),
        ({"gradient_checkpointing_kwargs": {"x": 1}}, "it takes use_reentrant"),
        ({"gradient_checkpointing_kwargs": {"preserve_rng_state": False}}, "remove preserve_rng_state"),
        ({"dataloader_drop_last": True, "tokens_per_batch": 64}, "remove dataloader_drop_last or tokens_per_batch"),
        ({"stage": "dpo", "label_smoothing_factor": 0.1}, "write dpo_label_smoothing"),
        ({"stage": "kto", "label_smoothing_factor": 0.1}, "remove label_smoothing_factor"),
        ({"stage": "rm", "label_smoothing_factor": 0.1}, "remove label_smoothing_factor"),
        ({"stage": "dpo", "pref_loss": "aot", "auto_find_batch_size": True}, "remove auto_find_batch_size"),
    ],
)
def test_values_that_would_end_a_run_are_told_by_the_plan(values: dict[str, Any], hint: str, write_config: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(**values))
    (problem,) = caught.value.problems
    assert problem.hint.startswith(hint)


def test_options_that_are_listed_are_those_that_are_read() -> None:
    listed = {option.name for option in list_options(built_in()) if option.owner == "transformers"}
    assert listed == PASSED_ON.keys()
