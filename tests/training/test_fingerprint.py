"""A resume compares every option that is not declared harmless, and what is declared harmless is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback

from ftcore.api.component import why_harmless
from ftcore.api.components import EVERY, Backend, Harmless, Optimizer, OptionGroup
from ftcore.api.option_groups import GROUPS, SCHEDULES_BY_METRIC
from ftcore.api.plan import Plan, Precision, Selected
from ftcore.api.registry import Plugins
from ftcore.config.binding import owner_of, owners
from ftcore.config.hf_training_arguments import training_fields
from ftcore.config.training_answers import PASSED_ON, RESUME_HARMLESS
from ftcore.config.validation.lr_schedulers import SCHEDULES
from ftcore.errors import UsageError
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing.directory import FINGERPRINT_FORM, Manifest, RunFingerprint, check_setting
from ftcore.training.checkpointing.fingerprint import compared_options
from ftcore.utils.ownership import seal_of

ATTRIBUTES = {"inference_engine": "engine", "model_family": "family", "chat_template": "template"}
DERIVED = {
    "torch_compile": "torch_compile",
    "torch_compile_backend": "torch_compile",
    "torch_compile_mode": "torch_compile",
    "cache_frozen_prefix": "cache_frozen_prefix",
}
"""Options that are not compared themselves, and what follows from them is."""


def other(value: Any) -> Any:
    """Another value, of the same type where that is known."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}-other"
        case tuple() | list():
            return (*value, "other")
        case dict():
            return {**value, "other": "other"}
    return 1


def selected(plan: Plan, offer: Any) -> Plan:
    """The plan with another component, at the defaults of its options."""
    component = offer.component
    chosen = Selected(
        component=component, full_name=offer.full_name, version=offer.version, options=component.Options()
    )
    return replace(plan, **{ATTRIBUTES.get(component.kind, component.kind): chosen})


def everything(plan: Plan, plugins: Plugins) -> Mapping[str, tuple[Plan, str, str]]:
    """Owner -> a plan that has its options, the attribute that holds them, and what stands before their names."""
    found = {owner: (plan, owner, "") for owner in GROUPS}
    for offer in plugins.offers:
        kind = offer.component.kind
        if offer.component.Options.model_fields:
            attribute = ATTRIBUTES.get(kind, kind)
            found[owner_of(kind, offer.component.name)] = (selected(plan, offer), attribute, f"{kind} ")
    return found


def with_option(plan: Plan, attribute: str, name: str, value: Any) -> Plan:
    held = getattr(plan, attribute)
    if isinstance(held, Selected):
        return replace(plan, **{attribute: replace(held, options=held.options.model_copy(update={name: value}))})
    return replace(plan, **{attribute: held.model_copy(update={name: value})})


def options_of(plan: Plan, attribute: str) -> OptionGroup:
    held = getattr(plan, attribute)
    options: OptionGroup = held.options if isinstance(held, Selected) else held
    return options


def setting(plan: Plan) -> RunFingerprint:
    return RunFingerprint({name: json.dumps(value, default=str) for name, value in compared_options(plan).items()})


def refusal(before: Plan, now: Plan) -> list[str]:
    """What a resume is told, one difference each; empty where it may."""
    manifest = Manifest(1, {}, setting(before), True, {})
    try:
        check_setting(Path("out/checkpoint-1"), manifest, setting(now))
    except UsageError as error:
        head, *problems = map(str, error.problems)
        assert head == (
            "this run cannot resume from out/checkpoint-1; undo the change, write another output_dir, "
            "or resume anyway with ft run --force"
        )
        return problems
    return []


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_option_is_declared_harmless_or_its_change_is_refused(
    plan_of: Callable[..., Plan], built_in: Plugins
) -> None:
    base = plan_of()
    walked = everything(base, built_in)
    assert walked.keys() == owners(built_in).keys()
    count = {"harmless": 0, "refused": 0}
    for owner, (plan, attribute, before) in walked.items():
        options = options_of(plan, attribute)
        group, held = type(options), getattr(plan, attribute)
        of_kind = held.component.resume_harmless if isinstance(held, Selected) else None
        for name in group.model_fields:
            value = getattr(options, name)
            declared = of_kind or why_harmless(group, name)
            problems = refusal(plan, with_option(plan, attribute, name, other(value)))
            if declared is None or not declared.holds(plan):
                dumped = json.dumps(options.model_dump(mode="json")[name])
                own = [line for line in problems if line.startswith(f"{before}{name} was {dumped}, now it is ")]
                assert len(own) == 1, (owner, name, problems)
                # with some, such as early_stopping_steps, options of evaluation begin to decide
                assert all("was not compared, now it is " in line for line in problems if line not in own)
                count["refused"] += 1
            elif problems:
                assert problems[0].startswith(f"{DERIVED[name]} was "), (owner, name, problems)
            else:
                assert len(declared.reason) > 8
                count["harmless"] += 1
    assert min(count.values()) > 80, count


def test_every_field_of_training_arguments_is_declared_harmless_or_its_change_is_refused(
    plan_of: Callable[..., Plan],
) -> None:
    plan = plan_of()
    assert set(RESUME_HARMLESS) < set(PASSED_ON)
    for name in PASSED_ON:
        default = training_fields()[name].default
        assert refusal(plan, replace(plan, transformers={name: default})) == []  # written, or left out
        changed = replace(plan, transformers={name: other(default)})
        # best checkpoints: what else decides with them is compared there too
        problems = [problem for problem in refusal(plan, changed) if problem.startswith(f"{name} was ")]
        assert len(problems) == (name not in RESUME_HARMLESS), name


def test_options_are_compared_where_they_decide_after_all(plan_of: Callable[..., Plan], built_in: Plugins) -> None:
    """Where evaluations decide the weights; where answers are trained on."""
    plan = plan_of()
    best = replace(plan, transformers={"load_best_model_at_end": True})
    patient = with_option(plan, "training", "early_stopping_steps", 3)
    plateau = with_option(plan, "training", "lr_scheduler_type", "reduce_lr_on_plateau")
    (ppo,) = (selected(plan, offer) for offer in built_in.offers if offer.component.name == "ppo")
    evaluations = {"eval_strategy", "eval_steps", "eval_dataset", "logging_steps", "per_device_eval_batch_size"}
    evaluations |= {"eval_delay", "eval_on_start", "greater_is_better", "metric_for_best_model"}
    evaluations |= {"stage compute_accuracy"}
    answers = {"per_device_eval_batch_size", "infer_dtype", "inference_engine", *GROUPS["generation"].model_fields}
    usual = set(compared_options(plan))
    assert set(compared_options(patient)) - usual == evaluations
    assert set(compared_options(plateau)) - usual == evaluations
    assert set(compared_options(best)) - usual == evaluations | {"save_strategy", "save_steps"}
    added = set(compared_options(ppo)) - usual
    assert {name for name in added if not name.startswith("stage ")} == answers
    assert not (evaluations | answers | {"save_steps"}) & usual


def test_schedules_that_follow_evaluations_are_those() -> None:
    assert {name for name, schedule in SCHEDULES.items() if schedule.evaluates} == SCHEDULES_BY_METRIC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch_compile_mode": "default"}, 'torch_compile was null, now it is ["inductor", "default"]'),
        ({"cache_frozen_prefix": False}, "cache_frozen_prefix was true, now it is false"),
        ({"disable_shuffling": True}, "disable_shuffling was false, now it is true"),
        ({"max_steps": 9}, "max_steps was 3, now it is 9"),
        ({"num_train_epochs": 9.0}, "num_train_epochs was 3.0, now it is 9.0"),
        ({"data_seed": 3}, "data_seed was null, now it is 3"),
        ({"eos_token": "<|x|>"}, 'eos_token was null, now it is "<|x|>"'),
    ],
)
def test_what_is_said(plan_of: Callable[..., Plan], change: dict[str, Any], message: str) -> None:
    assert refusal(plan_of(), plan_of(**change)) == [message]


def test_dtypes_are_compared_rather_than_their_options(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    assert refusal(plan, plan_of(bf16=False)) == []
    assert refusal(plan, replace(plan, precision=Precision("bfloat16", "float32"))) == [
        'compute dtype was "float32", now it is "bfloat16"'
    ]
    assert refusal(plan, replace(plan, precision=Precision("bfloat16", "bfloat16"))) == [
        'compute dtype was "float32", now it is "bfloat16"',
        'trained dtype was "float32", now it is "bfloat16"',
    ]


def test_another_device_may_resume_and_another_backend_may_not(plan_of: Callable[..., Plan], built_in: Plugins) -> None:
    """The device's own backend is not compared, as ``use_cpu`` is not; what the file names instead of it is."""
    plan, offers = plan_of(), {offer.component.name: offer for offer in built_in.of(Backend)}
    assert plan.backend.component.name == plan.device == "cpu"
    cuda = replace(selected(plan, offers["cuda"]), device="cuda")
    reference = selected(plan, offers["reference"])
    version = reference.backend.version
    assert refusal(plan, cuda) == []
    assert refusal(plan, reference) == [f'backend was not compared, now it is "ftcore:reference {version}"']
    assert refusal(reference, replace(reference, device="cuda")) == []
    assert refusal(plan, selected(plan, offers["cuda"])) == [
        f'backend was not compared, now it is "ftcore:cuda {version}"'
    ]


def test_no_credential_is_compared_or_written(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(hf_hub_token="hf_secret", push_to_hub=False, hub_token="hf_secret")
    assert "hf_secret" not in json.dumps(compared_options(plan), default=str)
    assert refusal(plan_of(), plan) == []


class Own(OptionGroup):
    """Options of a stranger."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {"verbose": Harmless("it prints more")}

    decay: float = 0.0
    verbose: bool = False
    key: str | None = None


class More(Own):
    """Further options."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {"colour": Harmless("it prints in colour")}

    colour: bool = False
    momentum: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Strange(Optimizer):
    """Of a stranger."""

    Options: ClassVar[type[OptionGroup]] = More

    def create(self, plan: Plan, groups: Any) -> Any:
        raise NotImplementedError


def test_a_strangers_options_are_compared_unless_declared(plan_of: Callable[..., Plan]) -> None:
    def chosen(version: str = "1.0", **values: Any) -> Plan:
        component = Strange(name="strange", summary="s")
        return replace(
            plan_of(),
            optimizer=Selected(component=component, full_name="acme:strange", version=version, options=More(**values)),
        )

    assert refusal(chosen(), chosen(verbose=True, colour=True)) == []
    assert refusal(chosen(), chosen("1.1", decay=0.5, momentum=0.25, key="k")) == [
        'optimizer was "acme:strange 1.0", now it is "acme:strange 1.1"',
        "optimizer decay was 0.0, now it is 0.5",
        'optimizer key was null, now it is "k"',
        "optimizer momentum was 0.5, now it is 0.25",
    ]


def test_a_declaration_names_an_option() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.resume_harmless names options that it does not have: decoy"):
        type("Wrong", (Own,), {"resume_harmless": {"decoy": Harmless("it is none"), EVERY: Harmless("all are")}})


# ---- checkpoints of the version before ----

OLD = Path(__file__).with_name("manifests") / "form_1.json"
"""Written by commit 42ad59d, the last one whose checkpoints list their options in form 1."""
FORM = (
    "the checkpoint lists its options in form 1, this version of ft in form 2: options that only one of them lists "
    "cannot be compared"
)


def test_an_old_manifest_is_read_as_what_it_is(tmp_path: Path) -> None:
    shutil.copy(OLD, tmp_path / "MANIFEST.json")
    old = Manifest.read(tmp_path)
    assert (old.setting.form, FINGERPRINT_FORM) == (1, 2)
    assert (old.setting.values["learning_rate"], old.setting.values["method lora_dropout"]) == ("0.01", "0.3")
    values = {**old.setting.values, "learning_rate": "0.02", "save_steps": "3"}
    del values["stage predict_with_generate"]  # is harmless now
    now = RunFingerprint(values)
    assert list(map(str, old.setting.differences(now))) == [FORM, "learning_rate was 0.01, now it is 0.02"]
    assert str(RunFingerprint(old.setting.values).differences(old.setting)[0]).startswith(
        "the checkpoint lists its options"
    )


# ---- real runs ----

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 1, 16, 5, 28, 11, 8]
OPTIONS: dict[str, Any] = {
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.3,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "val_size": 2,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
}
MORE: dict[str, Any] = {
    "logging_steps": 1,
    "logging_first_step": True,
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_steps": 3,
    "eval_delay": 1,
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 1,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 3,
    "on_nonfinite": "skip",
    "max_skipped_steps": 2,
    "torch_empty_cache_steps": 1,
    "frozen_prefix_size": 1.0,
    "infer_dtype": "bfloat16",
    "temperature": 0.1,
    "bf16": False,
    "cache_dir": "elsewhere",
    "disable_tqdm": True,
    "ddp_timeout": 99,
    "run_name": "another",
    "plot_loss": True,
    "template_check": "off",
    "auto_find_batch_size": True,
    "metric_for_best_model": "loss",
    "use_file_locking": False,
    "serve_port": 1,
    "export_size": 1.0,
}
HARMLESS: dict[str, dict[str, Any]] = {
    "much else": MORE,
    "fewer of all": {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 100},
    "recomputed": {"gradient_checkpointing": True},
}


class Stop(TrainerCallback):
    """Saves and ends the run at a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            control.should_save = control.should_training_stop = True


@pytest.fixture
def run(trainer_of: Any, tokens: Any, tmp_path: Path) -> Callable[..., bytes]:
    """``run(name, *callbacks, **options)``: trains in a folder of that name; the weights' file."""

    def train(name: str, *callbacks: TrainerCallback, **options: Any) -> bytes:
        values = OPTIONS | options | {"output_dir": str(tmp_path / name)}
        trainer = trainer_of(tokens(LENGTHS), tokens([7, 9, 4]), **values)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        trainer.save_model()
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    return train


@pytest.mark.slow
def test_what_is_harmless_changes_no_bit(run: Callable[..., bytes], tmp_path: Path) -> None:
    expected = run("whole")
    assert run("stopped", Stop()) != expected
    for name, changes in HARMLESS.items():
        shutil.copytree(tmp_path / "stopped", tmp_path / name)
        assert run(name, **changes) == expected, name
        assert directory.checkpoints(tmp_path / name) != [], name


@pytest.mark.slow
def test_a_checkpoint_of_the_version_before_is_refused_and_forced(
    trainer_of: Any, tokens: Any, run: Callable[..., bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("old", Stop())
    folder = tmp_path / "old" / "checkpoint-3"
    content = json.loads((folder / "MANIFEST.json").read_text())
    del content["seal"], content["setting_form"]
    listed = json.loads(OLD.read_text())["setting"]
    changed = {"stage": json.dumps("ftcore:sft 0.1.0"), "method lora_dropout": "0.2"}
    content["setting"] = {name: content["setting"].get(name, listed[name]) for name in listed} | changed
    (folder / "MANIFEST.json").write_text(json.dumps({**content, "seal": seal_of(content)}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as caught:
        run("old")
    head, form, *differences = map(str, caught.value.problems)
    assert head.startswith(f"this run cannot resume from {folder}; undo the change, write another")
    assert form == FORM
    assert differences[0] == "method lora_dropout was 0.2, now it is 0.3"
    assert all(line.startswith('stage was "ftcore:sft 0.1.0", now it is "ftcore:sft ') for line in differences[1:])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    trainer = trainer_of(tokens(LENGTHS), tokens([7, 9, 4]), **OPTIONS | {"output_dir": str(tmp_path / "old")})
    trainer.plan = replace(trainer.plan, force=True)
    trainer.train()
    assert trainer.checkpointer.resumed == folder
    assert f"resuming from {folder} because of --force: {FORM}" in caplog.text
