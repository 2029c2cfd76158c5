"""Carries out a plan: loads tokenizer, data and model, trains, evaluates, and writes the run's files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ftcore.api.plan import Plan, Result, Run
from ftcore.errors import RunError
from ftcore.utils.ownership import RUN_LOG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftcore.runner.run_record import RunRecord
    from ftcore.training.trainer import Trainer


def run(plan: Plan) -> int:
    """Carries the plan out and returns the exit status.

    Raises:
        UsageError: if the data is wrong; no file has been written then.
        RunError: if the run fails.
    """
    from ftcore.config.validation.output_folder import unwritable
    from ftcore.runner.console_log import ConsoleLog
    from ftcore.utils.file_lock import locked
    from ftcore.utils.gc_tuning import relaxed_gc

    with ConsoleLog() as console:
        print_summary(plan)
        if not (plan.training.do_train or plan.training.do_eval or plan.training.do_predict):
            return 0
        if line := unwritable(plan.output_dir):
            raise RunError(line)
        with relaxed_gc():
            state = prepare(plan)
        with locked(plan.output_dir, locking=plan.training.use_file_locking):
            console.write_to(plan.output_dir / RUN_LOG)
            _run_locked(state)
        destroy_process_group()
    return 0


def _run_locked(state: Run) -> None:
    """The part of the run that holds the folder's lock."""
    from ftcore.runner import artifacts
    from ftcore.runner.run_record import recorded
    from ftcore.utils.gc_tuning import relaxed_gc

    plan = state.plan
    facts = artifacts.manifest(plan, state.tokenizer, state.data.accounting.as_dict())
    with recorded(plan.output_dir, facts) as record:
        state.phase = record.during
        with relaxed_gc():
            load_model(state)
            trainer = new_trainer(state)
        execute(state, trainer, record)


def new_trainer(state: Run) -> Trainer:
    """The trainer of a run whose tokenizer, data and model are loaded, on the stage's objective."""
    from ftcore.training.trainer import Trainer

    objective = state.plan.stage.component.objective(state)
    return Trainer(state, objective, train=state.data.train, evaluation=state.data.eval)


def prepare(plan: Plan) -> Run:
    """A run with its tokenizer and data, without the model."""
    from ftcore.utils import gc_tuning

    silence_libraries()
    from ftcore.data.preprocessing.template_check import check_template

    state = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
    gc_tuning.freeze_gc()
    check_template(plan, state.tokenizer)
    state.data = plan.stage.component.datasets(state)
    click.echo(state.data.accounting.summary())
    use_template(state)
    return state


def destroy_process_group() -> None:
    """Destroys torch's process group; otherwise gloo's threads sometimes abort the interpreter's exit."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def print_summary(plan: Plan) -> None:
    """Prints decisions of the plan that are not in the file."""
    from ftcore.config.serialization import batch_line

    for line in plan.ignored:
        click.secho(line, dim=True)
    for line in plan.warnings:
        warn(line)
    used = [f"{kind.replace('_', ' ')} {selected.component.name}" for kind, selected in plan.components.items()]
    click.echo(", ".join(used) + f", {plan.precision.compute}")
    click.echo(f"effective batch size: {batch_line(plan)} per device")


def warn(line: str) -> None:
    """Prints a warning."""
    click.echo(click.style("warning: ", fg="yellow") + line)


def silence_libraries() -> None:
    """Turns off messages of libraries except warnings, and defers imports that may not be needed.

    transformers imports peft, which imports bitsandbytes and so torch's compiler: 1.4 of 7.5 CPU seconds of a start.
    transformers' trainer imports datasets (0.4 s) only to recognise its rows.
    """
    import os

    from ftcore.utils.lazy_imports import defer_import

    for name in ("bitsandbytes", "datasets"):
        defer_import(name)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.disable_progress_bar()


def use_template(state: Run) -> None:
    """Sets the run's template on the tokenizer, so that it is saved with every checkpoint."""
    from ftcore.data.chat_template.renderer import Renderer

    if state.plan.template or state.tokenizer.chat_template:
        state.tokenizer.chat_template = Renderer.from_plan(state.plan, state.tokenizer).source


def load_model(state: Run) -> None:
    """Loads the base model, applies the method, and calls the hooks of plugins."""
    import torch
    from transformers import set_seed

    from ftcore.models.adapters import other_bases

    plan, hook = state.plan, state.plan.plugins.hook
    for line in other_bases(plan):
        warn(line)
    set_seed(plan.training.seed)
    method = plan.method.component
    kwargs = {"dtype": getattr(torch, plan.precision.compute)} | method.load_kwargs(plan)
    state.backend = plan.backend.component.runtime(plan)
    state.model = method.apply(plan, hook.ft_load_model(plan=plan, kwargs=kwargs))
    set_ends(state)
    hook.ft_model_ready(plan=plan, model=state.model, tokenizer=state.tokenizer)
    for name in plan.model.adapter_name_or_path:
        click.echo(f"loaded adapter: {name}")
    click.echo(parameter_line(state.model))
    coverage = method.coverage(plan, state.model) if plan.training.do_train else None
    if coverage and not coverage.enough:
        click.echo(str(coverage))
    click.echo(f"trainable parameters are trained in {plan.precision.trained}")


def set_ends(state: Run) -> None:
    """Sets the stop tokens in the generation config of a model that is saved whole and generates."""
    from ftcore.data.chat_template.renderer import Renderer
    from ftcore.inference import generation_config

    plan, config = state.plan, getattr(state.model, "generation_config", None)
    texts = set(plan.stage.component.samples) == {"Text"}
    generates = bool(state.tokenizer.chat_template) and not texts and plan.stage.component.head == "causal_lm"
    if generates and config is not None and not plan.method.component.saves_adapter:
        generation_config.set_ends(config, state.tokenizer, Renderer.from_plan(plan, state.tokenizer))


def parameter_line(model: PreTrainedModel) -> str:
    """``trainable params: N || all params: N || trainable%: x``."""
    trained = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    # a byte holds two 4-bit weights: the shape of a quantised tensor is in its state
    states = [(tensor, getattr(tensor, "quant_state", None)) for tensor in model.parameters()]
    every = sum(tensor.numel() if state is None else math.prod(state.shape) for tensor, state in states)
    return f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}"


def last_evaluation(trainer: Trainer) -> dict[str, Any] | None:
    """The last evaluation during training, if it was made with the final weights."""
    if trainer.args.load_best_model_at_end:
        return None
    for entry in reversed(trainer.state.log_history):
        if entry.get("step") == trainer.state.global_step and "eval_loss" in entry:
            return {name: value for name, value in entry.items() if name != "step"}
    return None


def execute(state: Run, trainer: Trainer, record: RunRecord) -> None:
    """Trains, evaluates, and writes the run's files."""
    from ftcore.data.pipeline.quarantine import write_quarantine
    from ftcore.runner import artifacts
    from ftcore.training.callbacks.signals import ended_at_once
    from ftcore.training.checkpointing.disk_space import writing

    plan, folder = state.plan, state.plan.output_dir
    accounting = state.data.accounting
    record.begin_changes()
    if line := write_quarantine(plan, accounting, folder):
        click.echo(line)
    train: dict[str, Any] | None = None
    if plan.training.do_train:
        record.enter("training")
        train = trainer.train().metrics
        if plan.data.streaming:
            click.echo(accounting.read_so_far())
        record.enter("saving")
        _save(state, trainer, record)
    only_predicts = plan.training.do_predict and not (plan.training.do_train or plan.training.do_eval)
    evaluates = state.data.eval is not None and not only_predicts
    results: dict[str, Mapping[str, Any] | None] = {"train": train, "eval": None, "predict": None}
    with ended_at_once(lambda: _after_training(plan)):
        if evaluates:
            record.enter("evaluating")
            results["eval"] = last_evaluation(trainer) or trainer.evaluate()
        if plan.training.do_predict:
            record.enter("predicting")
            results["predict"] = plan.stage.component.predict(state, trainer)
    record.enter("saving")
    with writing("the run's results", folder, 0):
        metrics = artifacts.write_results(folder, results)
        record.finish(accounting.as_dict(), metrics)  # the counts of a stream have grown during training
    if plan.training.plot_loss and plan.training.do_train:
        from ftcore.training.plots import plot_losses

        plot_losses(folder)
    for name, value in metrics.items():
        click.echo(f"  {name:<26} {value:,.6g}" if isinstance(value, float) else f"  {name:<26} {value}")
    click.echo(f"written to {folder}")
    result = Result(output_dir=folder, metrics=metrics, counts=accounting.as_dict())
    plan.plugins.hook.ft_run_finished(plan=plan, result=result)
    if plan.training.do_train and trainer.strategy.is_main and trainer.uploads is not None:
        trainer.uploads.finish()


def _save(state: Run, trainer: Trainer, record: RunRecord) -> None:
    """Saves the trained weights in the run's folder, then deletes an earlier run's checkpoints."""
    from ftcore.training.checkpointing.disk_space import save_trained

    foreign = record.value["foreign_files"]
    save_trained(state.plan, state.model, state.tokenizer, state.pictures, foreign=foreign)
    trainer.checkpointer.drop_replaced()


def _after_training(plan: Plan) -> str:
    """The end of the message when a run is stopped after training."""
    what = "predicting" if plan.training.do_predict else "evaluating"
    saved = f"; the trained weights are in {plan.output_dir}" if plan.training.do_train else ""
    return f" while {what}{saved}; the same command repeats this"
