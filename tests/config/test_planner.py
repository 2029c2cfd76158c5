"""From files to plans: selection, binding, origins, and every mistake at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.components import ChatTemplate, ModelFamily, ModelSource, Optimizer, OptionGroup
from ftcore.api.plan import Plan
from ftcore.api.registry import Plugins
from ftcore.config.memory_planning import advice
from ftcore.config.planner import make_plan
from ftcore.config.serialization import batch_line, effective_tokens
from ftcore.errors import Problem, UsageError
from ftcore.resources import hardware
from ftcore.resources.hardware import Hardware

Write = Callable[..., Path]


def problems(file: Path, *overrides: str, plugins: Plugins) -> list[str]:
    with pytest.raises(UsageError) as error:
        make_plan(file, overrides, plugins=plugins)
    return str(error.value).replace(f"{file.parent}/", "").splitlines()


def test_a_whole_plan(write_config: Write, built_in: Plugins) -> None:
    plan = make_plan(write_config("lora_rank: 16\nlearning_rate: 1e-4\n"), ["seed=7"], plugins=built_in)
    assert {kind: selected.full_name for kind, selected in plan.components.items()} == {
        "stage": "ftcore:sft",
        "method": "ftcore:lora",
        "optimizer": "ftcore:adamw",
        "launcher": "ftcore:local",
        "inference_engine": "ftcore:huggingface",
        "backend": "ftcore:cpu",
        "model_family": plan.family.full_name,
        "chat_template": "ftcore:chatml",
    }
    bound = {name: (plan.options[name].value, plan.options[name].owner) for name in ("lora_rank", "seed", "cutoff_len")}
    assert bound == {"lora_rank": (16, "method lora"), "seed": (7, "training"), "cutoff_len": (2048, "data")}
    origins = [plan.options[name].origin.rpartition("/")[2] for name in ("lora_rank", "seed", "cutoff_len")]
    assert origins == ["run.yaml:6", "command line", "default"]
    assert plan.training.learning_rate == 1e-4
    assert not plan.ignored
    assert not plan.warnings


def test_every_mistake_at_once(write_config: Write, built_in: Plugins) -> None:
    file = write_config(
        "learning_rte: 1\nnum_train_epochs: many\nzzzzzz: 1\nper_device_train_batch_size: true\ncutoff_len: -1\n"
        "adam_beta1: x\nlogging_first_step: 3\n",
        template="chatlm",
        dataset="nowhere.json",
    )
    found = problems(file, "seed=1.5", plugins=built_in)
    assert (
        found[0]
        == "command line: seed: input should be a valid integer, got a number with a fractional part, found 1.5"
    )
    assert found[1].startswith("run.yaml:4: unknown chat template 'chatlm'; did you mean chatglm")
    assert found[2:] == [
        "run.yaml:6: unknown option 'learning_rte'; did you mean learning_rate?",
        "run.yaml:7: num_train_epochs: input should be a valid number, unable to parse string as a number,"
        " found 'many'",
        "run.yaml:8: unknown option 'zzzzzz'; ft options lists all options",
        "run.yaml:9: per_device_train_batch_size: expected int, found true",
        "run.yaml:10: cutoff_len: input should be greater than or equal to 2, found -1",
        "run.yaml:11: adam_beta1: input should be a valid number, unable to parse string as a number, found 'x'",
        "run.yaml:12: logging_first_step: 3 is not bool",
    ]


def test_the_beginning_of_a_name_finds_it(write_config: Any, built_in: Any) -> None:
    """By likeness alone, ``model`` is nearest to ref_model, and what was meant is not named."""
    found = problems(write_config("model: x\nlora: 8\n"), plugins=built_in)
    assert [line.partition("; ")[2] for line in found] == [
        "did you mean model_family, model_name_or_path or model_revision?",
        "did you mean lora_alpha, lora_dropout or lora_rank?",
    ]


def test_a_missing_dataset_and_a_missing_model(write_config: Write, built_in: Plugins) -> None:
    found = problems(write_config(dataset="nowhere.json"), plugins=built_in)
    assert len(found) == 1
    assert found[0].startswith("run.yaml:3: ")
    assert "nowhere.json" in found[0]
    missing = "run.yaml: model_name_or_path is missing; write a folder, a hub id, or a model that a plugin offers"
    assert problems(write_config(model_name_or_path=...), plugins=built_in) == [missing]
    found = problems(write_config(model_name_or_path="./none"), plugins=built_in)
    assert found[0].startswith("run.yaml:1: model './none' does not exist; write a folder, a hub id")


def test_an_option_of_an_unused_component_is_ignored_with_a_line(write_config: Write, built_in: Plugins) -> None:
    plan = make_plan(write_config("lora_rank: 4\nimage_max_pixels: 9\n"), ["finetuning_type=full"], plugins=built_in)
    lines = [line.rpartition("/")[2] for line in plan.ignored]
    assert lines == [
        "run.yaml:6: ignored: lora_rank is an option of method lora and method qlora, not used here",
        "run.yaml:7: ignored: image_max_pixels is an option of media, not used here",
    ]
    assert "lora_rank" not in plan.options


def test_options_of_videos_are_never_obeyed_and_said_to_be_ignored(write_config, config_dir, built_in) -> None:
    config = json.loads((config_dir / "config.json").read_text()) | {"model_type": "qwen2_vl"}
    (config_dir / "config.json").write_text(json.dumps(config))
    plan = make_plan(write_config("image_max_pixels: 9\nvideo_fps: 1.0\n"), [], plugins=built_in)
    assert plan.media.image_max_pixels == 9
    assert [line.partition(": ")[2] for line in plan.ignored] == [
        "ignored: video_fps is an option of videos, not used here"
    ]


def test_null_leaves_the_default(write_config: Write, built_in: Plugins) -> None:
    plan = make_plan(write_config("seed: null\ncutoff_len:\nadam_beta1: null\n"), plugins=built_in)
    assert (plan.training.seed, plan.data.cutoff_len, plan.options["seed"].origin) == (42, 2048, "default")


def test_fields_of_transformers_are_passed_on(write_config: Write, built_in: Plugins) -> None:
    text = "logging_first_step: true\nlr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2}\n"
    plan = make_plan(write_config(text), plugins=built_in)
    assert plan.transformers == {"logging_first_step": True, "lr_scheduler_kwargs": {"power": 2}}
    assert plan.options["logging_first_step"].owner == "transformers"


def test_old_names_and_other_tools_options(write_config: Write, built_in: Plugins) -> None:
    file = write_config(
        "evaluation_strategy: epoch\nval_size: 0.5\nflash_attn: fa2\nuse_galore: false\npref_beta: 0.2\n"
    )
    plan = make_plan(file, plugins=built_in)
    assert plan.training.eval_strategy == "epoch"
    assert [line.rpartition("ignored: ")[2] for line in plan.ignored] == [
        "flash_attn: ft chooses the attention kernel for the hardware",
        "use_galore: GaLore is an optimizer",
        "pref_beta is an option of stage dpo and stage kto, not used here",
    ]
    file = write_config(
        "evaluation_strategy: 'no'\neval_strategy: epoch\nval_size: 1\nuse_galore: true\nfsdp: full_shard\n"
    )
    assert problems(file, plugins=built_in) == [
        "run.yaml:6: evaluation_strategy is the old name of eval_strategy, which is set too; keep eval_strategy",
        "run.yaml:9: use_galore is known but not supported; GaLore is an optimizer; write optim: galore_adamw, "
        "save_only_model: true",
        "run.yaml:10: fsdp: 'full_shard' is not supported; one process trains the whole model on one device; "
        "training on several devices is not implemented yet",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eval_strategy: epoch\n", "run.yaml:6: eval_strategy needs evaluation data, and there is none"),
        ("bf16: true\nfp16: true\n", "run.yaml:7: bf16 and fp16 are both true; keep one"),
        ("val_size: 1.5\n", "run.yaml:6: val_size: 1.5 is neither a share nor a number of rows"),
        ("train_on_prompt: true\nmask_history: true\n", "run.yaml:7: train_on_prompt and mask_history contradict"),
        (
            "val_size: 1\neval_dataset: rows.json\ndataset_dir: .\n",
            "run.yaml:6: val_size and eval_dataset are both set",
        ),
        ("resume_from_checkpoint: nowhere\n", "run.yaml:6: there is no checkpoint 'nowhere'"),
        ("adapter_name_or_path: ./nowhere\n", "run.yaml:6: there is no adapter './nowhere'"),
    ],
)
def test_cross_checks(
    write_config: Write, built_in: Plugins, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(write_config(text), plugins=built_in)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_training_needs_data(write_config: Write, built_in: Plugins) -> None:
    assert problems(write_config(dataset=...), plugins=built_in) == [
        "run.yaml:2: do_train is true, but dataset is not set; write dataset: NAME or a file"
    ]


def test_files_that_are_not_ours_are_not_overwritten(write_config: Write, built_in: Plugins, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    found = problems(write_config(), plugins=built_in)
    assert found[0].startswith("run.yaml:5: output_dir out holds files that no run of ft wrote; write another folder")
    assert make_plan(write_config(), ["overwrite_output_dir=true"], plugins=built_in).training.overwrite_output_dir


@pytest.mark.parametrize(
    ("text", "machine", "expected"),
    [
        ("", Hardware(1 << 36), ("float32", "")),
        ("bf16: true\n", Hardware(1 << 36), ("float32", "float32 instead of bfloat16: this CPU only emulates")),
        ("bf16: true\n", Hardware(1 << 36, cuda=(9, 0)), ("bfloat16", "")),
        ("", Hardware(1 << 36, cuda=(9, 0)), ("bfloat16", "")),
        ("bf16: false\n", Hardware(1 << 36, cuda=(9, 0)), ("float32", "")),
        ("fp16: true\n", Hardware(1 << 36, cuda=(7, 0)), ("float16", "")),
        ("bf16: true\n", Hardware(1 << 36, cuda=(7, 0)), ("float32", "float32 instead of bfloat16: the GPU")),
        ("fp16: true\n", Hardware(1 << 36), ("float32", "float32 instead of float16: this CPU")),
    ],
)
def test_precision_follows_the_hardware(
    write_config: Write, built_in: Plugins, monkeypatch: pytest.MonkeyPatch, text: str, machine: Hardware, expected
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    plan = make_plan(write_config(text), plugins=built_in)
    assert plan.precision.compute == expected[0]
    assert plan.precision.reason.startswith(expected[1])
    assert bool(plan.precision.reason) is bool(expected[1])
    assert [line for line in plan.warnings if line == plan.precision.reason] == [plan.precision.reason] * bool(
        expected[1]
    )


def test_strict_precision_is_an_error(write_config: Write, built_in, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: Hardware(1 << 36))
    found = problems(write_config("bf16: true\nstrict_precision: true\n"), plugins=built_in)
    assert found[0].startswith("run.yaml:6: this CPU only emulates bfloat16, many times slower; remove bf16")


def test_a_family_gives_template_and_defaults(write_config: Write, with_plugins, hooks) -> None:
    family = ModelFamily(
        name="zap",
        summary="a test's family",
        model_types=("zap",),
        template="zaptalk",
        defaults={"cutoff_len": 77, "seed": 1},
    )
    template = ChatTemplate(name="zaptalk", summary="a test's template", text="{{ messages }}")
    plugins = with_plugins(acme=hooks(ft_model_families=lambda: [family], ft_chat_templates=lambda: [template]))
    file = write_config("seed: 5\n", template=...)
    config = json.loads((file.parent / "model" / "config.json").read_text()) | {"model_type": "zap"}
    (file.parent / "model" / "config.json").write_text(json.dumps(config))
    plan = make_plan(file, plugins=plugins)
    assert plan.family.full_name == "acme:zap"
    assert plan.template.full_name == "acme:zaptalk"
    origins = {
        name: (bound.value, bound.origin) for name, bound in plan.options.items() if name in ("cutoff_len", "template")
    }
    assert origins == {"cutoff_len": (77, "family"), "template": ("acme:zaptalk", "family")}
    assert plan.training.seed == 5


def test_a_model_that_a_plugin_offers(write_config: Write, with_plugins, hooks) -> None:
    source = ModelSource(name="tiny-zap", summary="x", config={"model_type": "zap"}, fetch="zap:fetch")
    family = ModelFamily(name="zap", summary="x", models=(source,))
    plugins = with_plugins(acme=hooks(ft_model_families=lambda: [family]))
    plan = make_plan(write_config(model_name_or_path="tiny-zap"), plugins=plugins)
    assert (plan.source, plan.config, plan.family.full_name) == (source, {"model_type": "zap"}, "acme:zap")
    found = problems(write_config(model_name_or_path="tiny-zup"), plugins=plugins)
    assert found == ["run.yaml:1: model 'tiny-zup' does not exist; did you mean tiny-zap?"]


def test_two_families_that_fit_alike_are_never_guessed(write_config: Write, with_plugins, hooks) -> None:
    def offer() -> list[ModelFamily]:
        return [ModelFamily(name="zap", summary="x", model_types=("zap",))]

    plugins = with_plugins(acme=hooks(ft_model_families=offer), blob=hooks(ft_model_families=offer))
    file = write_config()
    (file.parent / "model" / "config.json").write_text('{"model_type": "zap"}')
    found = problems(file, plugins=plugins)
    assert found[0].endswith("; write model_family: acme:zap or blob:zap")
    assert make_plan(file, ["model_family=blob:zap"], plugins=plugins).family.full_name == "blob:zap"


@dataclass(frozen=True, kw_only=True)
class Zap(Optimizer):
    """An optimizer with options of its own."""

    name: str = "zap"
    summary: str = "a test's optimizer"

    class Options(OptionGroup):
        """Its options."""

        zap_power: int = 3
        """How hard."""

    def create(self, plan, groups):
        raise NotImplementedError


def test_a_third_partys_options_are_bound_like_ours(write_config: Write, with_plugins, hooks) -> None:
    plugins = with_plugins(acme=hooks(ft_optimizers=lambda: [Zap()]))
    file = write_config("zap_power: 9\n")
    plan = make_plan(file, ["optim=zap"], plugins=plugins)
    assert plan.optimizer.full_name == "acme:zap"
    assert plan.optimizer.options.zap_power == 9
    assert (
        make_plan(file, plugins=plugins)
        .ignored[0]
        .endswith("ignored: zap_power is an option of optimizer zap, not used here")
    )
    assert problems(write_config("zap_powr: 9\n"), plugins=plugins) == [
        "run.yaml:6: unknown option 'zap_powr'; did you mean zap_power?"
    ]


def test_plugins_check_plans(write_config: Write, with_plugins, hooks) -> None:
    def check(plan: Plan) -> list[Problem]:
        return [Problem("seed 13 is unlucky", "here")] if plan.training.seed == 13 else []

    plugins = with_plugins(acme=hooks(ft_check_plan=check))
    assert problems(write_config("seed: 13\n"), plugins=plugins) == ["here: seed 13 is unlucky"]
    assert make_plan(write_config(), plugins=plugins).training.seed == 42


def test_an_optimizer_can_step_aside_for_another(write_config: Write, with_plugins, hooks) -> None:
    class Aside(Zap):
        def resolve(self, values) -> str:
            return "adamw" if values.get("zap_power") == 0 else self.name

    plugins = with_plugins(acme=hooks(ft_optimizers=lambda: [Aside()]))
    assert (
        make_plan(write_config(), ["optim=zap", "zap_power=0"], plugins=plugins).optimizer.full_name == "ftcore:adamw"
    )


def test_the_default_output_dir(write_config: Write, built_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_plan(write_config(output_dir=...), plugins=built_in).output_dir == Path("saves/model/lora/sft")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"streaming": True, "max_steps": 3}, "streaming reads each row only once"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha adds noise to the inputs of the first layer"),
        ({"stage": "ppo", "reward_model": "{config}"}, "stage ppo generates new sequences in each epoch"),
    ],
)
def test_keeping_frozen_layers_where_nothing_stays(
    values: dict[str, Any], message: str, write_config: Any, config_dir: Path
) -> None:
    written = {name: str(config_dir) if value == "{config}" else value for name, value in values.items()}
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(**written, cache_frozen_prefix=True))
    problems = [problem for problem in caught.value.problems if "cache_frozen_prefix" in problem.message]
    assert [(problem.message, problem.hint) for problem in problems] == [
        (f"cache_frozen_prefix is true, and {message}", "write cache_frozen_prefix: auto, or false")
    ]
    make_plan(
        write_config(**{name: value for name, value in written.items() if name != "reward_model"} | {"stage": "sft"})
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "streaming needs max_steps"),
        ({"max_steps": 3, "val_size": 0.1}, "val_size: 0.1 is a share, and the number of rows in a stream is unknown"),
        ({"max_steps": 3, "stage": "kto"}, "stage 'kto' cannot train on a stream"),
    ],
)
def test_streams_are_checked_in_the_plan(values: dict[str, Any], message: str, write_config: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(streaming=True, **values))
    assert [problem.message for problem in caught.value.problems] == [message]


def test_passes_in_the_plan(write_config: Any, built_in: Plugins) -> None:
    """The estimate is that of a pass, with gradients that pile up; of the whole where a loss compares pairs."""

    def planned(**values: Any) -> Plan:
        return make_plan(write_config(cutoff_len=512, per_device_train_batch_size=8, **values), plugins=built_in)

    whole, auto = planned(tokens_per_pass=False), planned()
    few = planned(tokens_per_pass=1)  # a row is never divided
    assert (whole.memory.note, auto.memory.note, few.memory.note) == (
        "8 rows of 512 tokens",
        "8 rows of 512 tokens, 2048 tokens at a time",
        "8 rows of 512 tokens, 512 tokens at a time",
    )
    activations = [plan.memory.terms["activations"] for plan in (few, auto, whole)]
    assert activations == [pytest.approx(activations[0] * times, abs=2) for times in (1, 4, 8)]
    assert auto.memory.total == sum(auto.memory.terms.values())
    assert "tokens_per_pass: 1024 needs" in advice(whole)
    assert "tokens_per_pass" not in advice(planned(tokens_per_pass=1024))
    assert "at a time" in planned(stage="dpo").memory.note
    assert "at a time" not in planned(stage="dpo", pref_loss="aot").memory.note


def test_batches_by_tokens_in_the_plan(write_config: Any, config_dir: Path, built_in: Plugins) -> None:
    options = {"tokens_per_batch": 4096, "gradient_accumulation_steps": 2}
    plan = make_plan(write_config(**options, tokens_per_pass=False), plugins=built_in)
    assert batch_line(plan) == "at most 4,096 tokens x 2 accumulated = 8,192"
    assert (effective_tokens(plan), plan.memory.note) == (8192, "batches of 4096 tokens")
    values = {"per_device_train_batch_size": 2, "cutoff_len": 2048, "tokens_per_pass": False}
    rows = make_plan(write_config(**values), plugins=built_in)
    assert plan.memory.terms["activations"] == rows.memory.terms["activations"]
    assert "tokens_per_batch: 2048 needs" in advice(plan)
    for values, message in (
        ({"per_device_train_batch_size": 2}, "tokens_per_batch and per_device_train_batch_size are both set"),
        (
            {"streaming": True, "max_steps": 3},
            "tokens_per_batch is set, and the number of steps per epoch of a stream is unknown",
        ),
        (
            {"stage": "ppo", "reward_model": str(config_dir)},
            "tokens_per_batch is set, and stage ppo generates new sequences in each epoch",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            make_plan(write_config(tokens_per_batch=4096, **values), plugins=built_in)


@pytest.mark.parametrize(
    ("values", "compiler"),
    [
        ({}, None),
        ({"torch_compile": True}, ("inductor", None)),
        ({"torch_compile_mode": "max-autotune"}, ("inductor", "max-autotune")),
        ({"torch_compile_backend": "eager"}, ("eager", None)),
        ({"torch_compile": False, "torch_compile_backend": "eager"}, None),
    ],
)
def test_the_compiler(values: dict[str, Any], compiler: tuple[str, str | None] | None, write_config: Any) -> None:
    """As transformers takes these: a backend or a mode ask for it, unless the option says no."""
    plan = make_plan(write_config(**values))
    assert plan.training.compiler == compiler
    assert not {"torch_compile", "torch_compile_backend", "torch_compile_mode"} & plan.transformers.keys()


def test_a_compiler_that_is_not_there(
    write_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("FT_CPU_BF16", "1")
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    hardware.detect.cache_clear()
    request.addfinalizer(hardware.detect.cache_clear)
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(torch_compile_backend="inducter", torch_compile_mode="default"))
    assert [problem.message for problem in caught.value.problems] == [
        "there is no torch_compile_backend 'inducter'",
        "torch_compile_mode works with the backend inductor only, not with inducter",
    ]
    assert "inductor" in caught.value.problems[0].hint
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(torch_compile=True))
    (problem,) = caught.value.problems
    assert problem.message == "torch_compile needs a C++ compiler, and neither g++ nor the one of CXX is installed"
    assert problem.where.partition(":")[2].isdigit()
    make_plan(write_config(torch_compile=True, bf16=False))  # compiles nothing


def test_backends_are_torchs() -> None:
    from torch._dynamo.backends.registry import list_backends

    from ftcore.resources.compilers import backends

    assert set(list_backends()) <= set(backends()) <= set(list_backends(exclude_tags=()))


def test_rows_cannot_be_drawn_of_a_stream(tmp_path: Path, write_config: Any, rows_file: Path) -> None:
    info = {"drawn": {"file_name": str(rows_file), "num_samples": 3}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    values = {"dataset": "drawn", "dataset_dir": str(tmp_path), "max_steps": 3}
    assert make_plan(write_config(**values)).datasets[0].num_samples == 3
    with pytest.raises(UsageError) as caught:
        make_plan(write_config(streaming=True, **values))
    assert [problem.message for problem in caught.value.problems] == [
        "dataset 'drawn' has num_samples, and the number of rows in a stream is unknown"
    ]
