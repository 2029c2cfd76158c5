"""The trainer's events, state and results beside those of transformers' own Trainer, as the oracle.

Both train the same model on the same rows in the same order, with the same values of TrainingArguments. What ft does
otherwise on purpose is listed in `expected`, with the reason.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback, TrainingArguments

from ft_plugins.stages.sft.objective import NextToken
from ftcore.errors import RunError
from ftcore.training.callbacks.signals import InterruptedRunError
from ftcore.training.checkpointing import directory
from ftcore.training.trainer import Trainer

EVENTS = sorted(name for name in vars(TrainerCallback) if name.startswith("on_"))
FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
OBJECTS = ("model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")

BASE: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_steps": -1,
    "num_train_epochs": 2,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
    "seed": 7,
}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}


class Event(NamedTuple):
    """What a callback sees.

    Attributes:
        name: of the method, without ``on_``.
        at: step and epoch.
        flags: of the control that are set.
        numbers: of ``logs`` or ``metrics``.
        run: max_steps, num_train_epochs, logging_steps, eval_steps, save_steps, whether this is the first process.
        there: the objects that are not None.
    """

    name: str
    at: tuple[int, float]
    flags: frozenset[str]
    numbers: Mapping[str, Any]
    run: tuple[Any, ...]
    there: frozenset[str]


class Record(TrainerCallback):
    """Notes every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, name: str, state: Any, control: Any, more: Mapping[str, Any]) -> None:
        run = (state.max_steps, state.num_train_epochs, state.logging_steps, state.eval_steps, state.save_steps)
        self.events.append(
            Event(
                name.removeprefix("on_"),
                (state.global_step, round(state.epoch, 6)),
                frozenset(flag for flag in FLAGS if getattr(control, flag)),
                dict(more.get("logs") or more.get("metrics") or {}),
                (*run, state.is_local_process_zero, state.is_world_process_zero),
                frozenset(one for one in OBJECTS if more[one] is not None),
            )
        )


def _noting(name: str) -> Callable[..., None]:
    def event(self: Record, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.note(name, state, control, more)

    return event


for _name in EVENTS:
    setattr(Record, _name, _noting(_name))


class Act(TrainerCallback):
    """Sets flags of the control at the n-th event of a name."""

    def __init__(self, event: str, number: int, *flags: str) -> None:
        self.seen = 0

        def act(args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seen += 1
            if self.seen == number:
                for flag in flags:
                    setattr(control, f"should_{flag}", True)

        setattr(self, f"on_{event}", act)


class Run(NamedTuple):
    """A finished run."""

    trainer: Any
    events: list[Event]
    output: Any


@pytest.fixture
def rows(tokens: Any) -> Any:
    """``rows(n)``: of 8 tokens that are all trained, so that a mean over batches is one over tokens."""

    def make(count: int, seed: int = 0) -> Any:
        found = tokens([8] * count, seed=seed, untrained=())
        for weights in found.weights:
            weights[:] = 1.0
        return found

    return make


@pytest.fixture
def oracle(tiny_model_dir: Path, tmp_path: Path, rows: Any) -> Callable[..., Any]:
    """``oracle(callbacks, count, **values)``: transformers' Trainer, not yet trained, and its record."""

    def collate(batch: Sequence[Any]) -> dict[str, torch.Tensor]:
        ids = torch.stack([torch.from_numpy(row["input_ids"]).long() for row in batch])
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}

    def make(callbacks: Sequence[TrainerCallback] = (), count: int = 10, **values: Any) -> Any:
        given = {**BASE, **values}
        patience = given.pop("early_stopping_steps", None)
        record = Record()
        stopping = [] if patience is None else [EarlyStoppingCallback(patience)]
        args = TrainingArguments(
            output_dir=str(tmp_path / "theirs"),
            use_cpu=True,
            disable_tqdm=True,
            optim="adamw_torch",
            report_to=given.pop("report_to", "none"),
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            include_num_input_tokens_seen="all",
            restore_callback_states_from_checkpoint=True,
            **given,
        )
        evaluates = args.eval_strategy != "no"
        trainer = transformers.Trainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
            args=args,
            data_collator=collate,
            train_dataset=rows(count),
            eval_dataset=rows(3, 1) if evaluates else None,
            processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
            callbacks=[*stopping, *callbacks, record],
        )
        return SimpleNamespace(trainer=trainer, record=record)

    return make


@pytest.fixture
def ours(run_of: Any, tmp_path: Path, rows: Any) -> Callable[..., Any]:
    """``ours(callbacks, count, **values)``: ft's, and its record."""

    def make(callbacks: Sequence[TrainerCallback] = (), count: int = 10, **values: Any) -> Any:
        given = {**BASE, **values, "output_dir": str(tmp_path / "ours"), "optim": "adamw_torch"}
        evaluates = given.get("eval_strategy", "no") != "no"
        given |= {"val_size": 3} if evaluates else {}
        record = Record()
        run = run_of(**{"finetuning_type": "full", "disable_shuffling": True, **given})
        trainer = Trainer(
            run,
            NextToken(),
            train=rows(count),
            evaluation=rows(3, 1) if evaluates else None,
            callbacks=[*callbacks, record],
        )
        return SimpleNamespace(trainer=trainer, record=record)

    return make


OURS = {"throughput", "num_input_tokens_seen"}
"""In ft's training lines; the line of the run's end and evaluations do not repeat the number of tokens."""
THEIRS = {"train_runtime", "train_tokens_per_second", "num_input_tokens_seen"}
"""In transformers' training lines: ft's ``throughput`` is ``train_tokens_per_second``."""
CLOCK = ("_runtime", "_per_second")


def expected(events: Sequence[Event]) -> list[Event]:
    """transformers' events as ft's: what differs on purpose.

    - A save that is due at the last step of an epoch or of the run follows the evaluation at the epoch's end, so that
      a kill between them loses no evaluation. A second save of that step is the same checkpoint, and is left out.
    - The flag of a waiting save is not shown to ``on_epoch_end``.
    """
    found: list[Event] = []
    waiting: Event | None = None
    for place, event in enumerate(events):
        begun = event.name in ("epoch_begin", "train_end") or (
            "train_runtime" in event.numbers and "loss" not in event.numbers
        )
        if waiting is not None and (event.name == "save" or begun):
            found.append(waiting._replace(flags=event.flags, there=event.there))
            waiting = None
            if event.name == "save":
                continue
        later = events[place + 1].name if place + 1 < len(events) else ""
        stops = "should_epoch_stop" in events[place - 1].flags
        ends = event.at[1] == int(event.at[1]) or event.at[0] == event.run[0] or stops
        if event.name == "save" and later == "epoch_end" and ends:
            waiting = event
        else:
            found.append(event)
    return found


def shown(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """The events without what depends on the clock, with the keys of the numbers."""
    lines = []
    ended = False
    for event in events:
        keys, flags = set(event.numbers), event.flags
        if "loss" in keys:
            keys -= OURS | THEIRS
        keys = {key for key in keys - {"num_input_tokens_seen"} if not key.endswith("_model_preparation_time")}
        ended = event.name == "epoch_end" or (ended and event.name not in ("epoch_begin", "step_begin"))
        if not event.at[0]:
            keys.discard("train_loss")  # the mean over no step: transformers has 0.0, ft none
        if ended or event.name == "save":
            flags -= {"should_save", "should_epoch_stop"}
        lines.append((event.name, event.at, flags, frozenset(keys), event.run, event.there))
    return lines


def same_numbers(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Losses, norms and rates agree, as far as float32 does after a few steps."""
    for name in {*found} & {*wanted}:
        if not name.endswith(CLOCK):
            assert found[name] == pytest.approx(wanted[name], rel=1e-3), name


def compare(found: Sequence[Event], wanted: Sequence[Event], *, numbers: bool = True) -> None:
    """Raises at the first event that differs, and where ``numbers`` do."""
    wanted = expected(wanted)
    ours, theirs = shown(found), shown(wanted)
    for place, pair in enumerate(zip(ours, theirs, strict=False)):
        names = [one.name for one in found[max(0, place - 4) : place + 3]]
        others = [one.name for one in wanted[max(0, place - 4) : place + 3]]
        assert pair[0] == pair[1], (place, names, others)
    assert len(ours) == len(theirs), (ours[len(theirs) :], theirs[len(ours) :])
    for one, other in zip(found, wanted, strict=True) if numbers else ():
        same_numbers(one.numbers, other.numbers)


SAVES = {"save_strategy": "steps", "save_steps": 2}
BEST = {"load_best_model_at_end": True, **EVALUATES, **SAVES}
CASES: dict[str, dict[str, Any]] = {
    "epochs": {},
    "half an epoch": {"num_train_epochs": 1.5},
    "max_steps in an epoch": {"max_steps": 7, **EVALUATES, **SAVES},
    "max_steps at an epoch's end": {"max_steps": 5, **EVALUATES, **SAVES},
    "uneven accumulation": {"gradient_accumulation_steps": 2, **EVALUATES, **SAVES},
    "accumulation beyond an epoch": {"gradient_accumulation_steps": 8, **EVALUATES, **SAVES},
    "a batch that is not full": {"count": 9, "max_grad_norm": 0.5},
    "dropped rows": {"count": 9, "dataloader_drop_last": True},
    "no clipping": {"max_grad_norm": 0},
    "logging no": {"logging_strategy": "no", **EVALUATES},
    "logging by epoch": {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"},
    "logging by steps": {"logging_steps": 3, "logging_first_step": True, **EVALUATES, **SAVES},
    "shares of the run": {"logging_steps": 0.3, "eval_strategy": "steps", "eval_steps": 0.4, "save_steps": 0.5}
    | {"save_strategy": "steps"},
    "epochs saved, steps evaluated": {**EVALUATES, "save_strategy": "epoch"},
    "steps saved, epochs evaluated": {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 5},
    "best by steps": {**EVALUATES, "save_strategy": "best", "metric_for_best_model": "loss"},
    "best by epochs": {"eval_strategy": "epoch", "save_strategy": "best", "metric_for_best_model": "eval_loss"},
    "the largest is the best": {**BEST, "metric_for_best_model": "loss", "greater_is_better": True},
    "eval_on_start": {"eval_on_start": True, **EVALUATES},
    "eval_delay": {"eval_delay": 3, **EVALUATES},
    "eval_delay in epochs": {"eval_delay": 2, "eval_strategy": "epoch"},
    "load_best_model_at_end": BEST,
    "one checkpoint": {**BEST, "save_only_model": True},
    "early stopping": {**BEST, "early_stopping_steps": 1, "num_train_epochs": 4},
    "early stopping by epochs": {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    | {"early_stopping_steps": 1, "num_train_epochs": 6},
    "cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", **EVALUATES, "num_train_epochs": 3}
    | {"lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}},
    "greedy": {"lr_scheduler_type": "greedy", **EVALUATES, "num_train_epochs": 3, "eval_on_start": True},
}


@pytest.mark.parametrize("name", CASES)
def test_events(name: str, oracle: Any, ours: Any) -> None:
    """All events, and what callbacks see in them."""
    theirs, own = oracle(**CASES[name]), ours(**CASES[name])
    wanted, found = theirs.trainer.train(), own.trainer.train()
    compare(own.record.events, theirs.record.events)
    assert found.global_step == wanted.global_step
    # transformers' PrinterCallback takes total_flos out of the metrics, where there is no progress bar
    assert {*found.metrics} == {*wanted.metrics} - {"num_input_tokens_seen"} | {"total_flos"}
    same_numbers(found.metrics, wanted.metrics)
    assert found.training_loss == pytest.approx(wanted.training_loss, rel=1e-4)


ASKED = ("step_begin", "substep_end", "step_end", "epoch_end", "evaluate", "log", "save", "prediction_step")
WITHIN = {(event, flag) for event in ("step_begin", "substep_end") for flag in ("training_stop", "epoch_stop")}
"""These stop between two micro-batches. transformers keeps the gradients and the loss of the first; ft drops both."""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["training_stop", "epoch_stop", "save", "evaluate", "log"])
@pytest.mark.parametrize("event", ASKED)
@pytest.mark.parametrize("number", [1, 2])
def test_what_callbacks_ask(event: str, flag: str, number: int, oracle: Any, ours: Any) -> None:
    """A flag that is set in an event has the effect that it has in transformers."""
    values = {"gradient_accumulation_steps": 2, "logging_steps": 4, "num_train_epochs": 3, "count": 14}
    values |= {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 3}
    theirs, own = oracle([Act(event, number, flag)], **values), ours([Act(event, number, flag)], **values)
    wanted, found = theirs.trainer.train(), own.trainer.train()
    compare(own.record.events, theirs.record.events, numbers=(event, flag) not in WITHIN)
    assert found.global_step == wanted.global_step


@pytest.mark.parametrize(("event", "flag"), [("substep_end", "epoch_stop"), ("save", "epoch_stop")])
def test_what_callbacks_ask_for_an_epoch(event: str, flag: str, oracle: Any, ours: Any) -> None:
    """Two of the cases above, in each run of the tests: the next epoch begins with its first row."""
    test_what_callbacks_ask(event, flag, 1, oracle, ours)


def test_a_step_that_is_abandoned_leaves_nothing(ours: Any) -> None:
    """Stopped between two micro-batches, a run is that of the steps before: weights, losses and counts."""
    values = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
    stopped = ours([Act("substep_end", 2, "training_stop")], **values).trainer
    short = ours(max_steps=1, **values | {"overwrite_output_dir": True}).trainer
    outputs = stopped.train(), short.train()
    assert stopped.state.global_step == short.state.global_step == 1
    weights = stopped.model.state_dict(), short.model.state_dict()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert all(tensor.grad is None for tensor in stopped.model.parameters())
    assert outputs[0].training_loss == outputs[1].training_loss
    assert stopped.guard.rows_seen == short.guard.rows_seen == 4


@pytest.mark.parametrize("event", ["train_begin", "epoch_begin"])
def test_a_run_that_is_stopped_before_its_first_step_takes_none(event: str, ours: Any) -> None:
    """transformers takes one step and then stops: a run that has stopped early would take one at each resume."""
    own = ours([Act(event, 1, "training_stop")])
    assert own.trainer.train().global_step == 0
    names = ["init_end", "train_begin", *(["epoch_begin"] if event == "epoch_begin" else []), "log", "train_end"]
    assert [one.name for one in own.record.events] == names


RESUMED: dict[str, tuple[int, dict[str, Any]]] = {
    "in an epoch": (2, {**EVALUATES, **SAVES}),
    "at an epoch's end": (5, {**EVALUATES, **SAVES}),
    "accumulating": (4, {"gradient_accumulation_steps": 2, "logging_steps": 2, **EVALUATES, **SAVES}),
    "by epochs": (5, {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}),
    "best": (4, {**BEST, "early_stopping_steps": 5}),
    "plateau": (4, {"lr_scheduler_type": "reduce_lr_on_plateau", **EVALUATES, **SAVES}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_events_of_a_resume(name: str, oracle: Any, ours: Any, stops_after: Any) -> None:
    """Each goes on from its own checkpoint of the same step, with the same events and numbers.

    Each checkpoint has a log line of its step: the next line of ft covers the steps since the line before, that of
    transformers only those since the checkpoint.
    """
    step, values = RESUMED[name]
    runs = []
    for make in (oracle, ours):
        make([stops_after(step)], **values).trainer.train()
        again = make(**values)
        again.output = again.trainer.train(resume_from_checkpoint=True) if make is oracle else again.trainer.train()
        runs.append(again)
    wanted, found = runs
    compare(found.record.events, wanted.record.events)
    assert found.output.training_loss == pytest.approx(wanted.output.training_loss, rel=1e-3)
    if wanted.trainer.state.best_metric is not None:
        assert found.trainer.state.best_metric == pytest.approx(wanted.trainer.state.best_metric, rel=1e-3)
    assert found.trainer.state.best_global_step == wanted.trainer.state.best_global_step


def test_the_state_in_checkpoints(oracle: Any, ours: Any, tmp_path: Path) -> None:
    """trainer_state.json has the same names and the same values, but for the names in log lines."""
    theirs, own = oracle(**BEST), ours(**BEST)
    theirs.trainer.train()
    own.trainer.train()
    for step in (2, 4, 6, 8, 10):
        wanted, found = (
            json.loads((tmp_path / name / f"checkpoint-{step}" / "trainer_state.json").read_text())
            for name in ("theirs", "ours")
        )
        lines = wanted.pop("log_history"), found.pop("log_history")
        assert [(line["step"], {*line} & {"loss", "eval_loss"}) for line in lines[0]] == [
            (line["step"], {*line} & {"loss", "eval_loss"}) for line in lines[1]
        ]
        best = [Path(state.pop("best_model_checkpoint")).name for state in (wanted, found)]
        assert best[0] == best[1]
        assert found.pop("best_metric") == pytest.approx(wanted.pop("best_metric"), rel=1e-3)
        assert found == wanted


def test_an_evaluation_by_itself(oracle: Any, ours: Any) -> None:
    """``evaluate()`` before and after ``train()``: the same names, events and numbers."""
    theirs, own = oracle(**EVALUATES), ours(**EVALUATES)
    wanted = [theirs.trainer.evaluate(), theirs.trainer.train().metrics]
    wanted.append(theirs.trainer.evaluate(metric_key_prefix="test"))
    found = [own.trainer.evaluate(), own.trainer.train().metrics, own.trainer.evaluate(prefix="test")]
    compare(own.record.events, theirs.record.events)
    for ours_, theirs_ in zip(found, wanted, strict=True):
        names = {name for name in theirs_ if not name.endswith("_model_preparation_time")}
        assert {*ours_} - {"total_flos"} == names - {"num_input_tokens_seen"}
        same_numbers(ours_, theirs_)


def test_nothing_to_evaluate_is_named(ours: Any) -> None:
    with pytest.raises(RunError, match="there is no data to evaluate"):
        ours([Act("step_end", 1, "evaluate")]).trainer.train()


@pytest.mark.parametrize("strategy", ["best", "steps"])
def test_a_save_that_waits_for_the_interrupted_evaluation(strategy: str, ours: Any, tmp_path: Path) -> None:
    """Stopped in the evaluation of the last step, which is the best one: the resume evaluates, saves, and loads it."""
    values = {**BEST, "save_strategy": strategy, "max_steps": 4, "eval_steps": 2, "greater_is_better": True}

    def stop(args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            signal.raise_signal(signal.SIGTERM)

    stopper = TrainerCallback()
    stopper.on_prediction_step = stop
    first = ours([stopper], **values).trainer
    with pytest.raises(InterruptedRunError):
        first.train()
    again = ours(**values)
    again.trainer.train()
    whole = ours(**values, overwrite_output_dir=True)
    saved = [one.at[0] for one in again.record.events if one.name == "save"]
    assert saved == [4]
    state = again.trainer.state
    assert state.best_global_step == 4
    assert state.best_model_checkpoint == str(tmp_path / "ours" / "checkpoint-4")
    written = json.loads((tmp_path / "ours" / "checkpoint-4" / "trainer_state.json").read_text())
    assert written["best_global_step"] == 4
    assert [line["step"] for line in written["log_history"] if "eval_loss" in line] == [2, 4]
    whole.trainer.train()
    assert whole.trainer.state.best_metric == state.best_metric


def test_a_resume_after_an_epoch_that_ended_early(ours: Any, tmp_path: Path) -> None:
    """It goes on at the row where the run stopped, in the epoch after the one that ended early; to the same bits."""
    values = {
        "num_train_epochs": 3,
        "disable_shuffling": False,
        **SAVES,
        "save_steps": 1,
        "lr_scheduler_type": "constant",
    }
    whole = ours([Act("step_end", 2, "epoch_stop")], **values)
    whole.trainer.train()
    assert whole.trainer.state.global_step == 12
    for stopped in (2, 4):
        for folder in directory.checkpoints(tmp_path / "ours"):
            if int(folder.name.rpartition("-")[2]) > stopped:
                shutil.rmtree(folder)
        again = ours(**values)
        again.trainer.train()
        assert again.trainer.state.global_step == 12
        weights = whole.trainer.model.state_dict(), again.trainer.model.state_dict()
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
        later = [one.at for one in whole.record.events if one.name == "step_end" and one.at[0] > stopped]
        assert [one.at for one in again.record.events if one.name == "step_end"] == later
