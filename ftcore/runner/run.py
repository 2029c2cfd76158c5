"""The border: a plan goes in, heavy things are loaded, and a run's files come out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ftcore.api.plan import Plan, Result, Run
from ftcore.errors import RunError
from ftcore.utils.ownership import RUN_LOG

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ftcore.runner.run_record import RunRecord


def run(plan: Plan) -> int:
    """Carries the plan out and returns the exit status.

    Raises:
        UsageError: when the data is wrong; nothing has been written then.
        RunError: when the run fails.
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
    """What is done while the folder is the run's own."""
    from ftcore.runner import artifacts
    from ftcore.runner.run_record import recorded
    from ftcore.utils.gc_tuning import relaxed_gc

    plan = state.plan
    facts = artifacts.manifest(plan, state.tokenizer, state.data.accounting.as_dict())
    with recorded(plan.output_dir, facts) as record:
        state.phase = record.during
        with relaxed_gc():
            load_model(state)
            trainer = plan.stage.component.trainer(state)
        execute(state, trainer, record)


def prepare(plan: Plan) -> Run:
    """A run with its tokenizer and its data; without the model."""
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
    """Ends what processes of one run share; left to the interpreter, gloo's threads now and then abort its exit."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def print_summary(plan: Plan) -> None:
    """What the plan decided that the file does not say."""
    from ftcore.config.serialization import batch_line

    for line in plan.ignored:
        click.secho(line, dim=True)
    for line in plan.warnings:
        warn(line)
    used = [f"{kind.replace('_', ' ')} {selected.component.name}" for kind, selected in plan.components.items()]
    click.echo(", ".join(used) + f", {plan.precision.compute}")
    click.echo(f"effective batch size: {batch_line(plan)} per device")


def warn(line: str) -> None:
    """What is worth a line, and no error."""
    click.echo(click.style("warning: ", fg="yellow") + line)


def silence_libraries() -> None:
    """Turns off what libraries print of their own accord, and puts off what they import and may not use.

    Warnings stay. transformers imports peft, which imports bitsandbytes, and that torch's compiler: 1.4 CPU seconds of
    a start of 7.5. transformers' trainer imports datasets, 0.4 seconds, to know its rows when it sees some.
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
    """Puts the run's template into the tokenizer, so that it is saved with every checkpoint."""
    from ftcore.data.chat_template.renderer import Renderer

    if state.plan.template or state.tokenizer.chat_template:
        state.tokenizer.chat_template = Renderer.from_plan(state.plan, state.tokenizer).source


def load_model(state: Run) -> None:
    """Base model, method, and what plugins do to them."""
    import torch
    from transformers import set_seed

    from ftcore.models.adapters import other_bases

    plan, hook = state.plan, state.plan.plugins.hook
    for line in other_bases(plan):
        warn(line)
    set_seed(plan.training.seed)
    method = plan.method.component
    kwargs = {"dtype": getattr(torch, plan.precision.compute)} | method.load_kwargs(plan)
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
    """Writes into the model what ends its turns, where a whole model is saved that is to generate."""
    from ftcore.data.chat_template.renderer import Renderer
    from ftcore.inference import generation_config

    plan, config = state.plan, getattr(state.model, "generation_config", None)
    texts = set(plan.stage.component.samples) == {"Text"}
    talks = bool(state.tokenizer.chat_template) and not texts and plan.stage.component.head == "causal_lm"
    if talks and config is not None and not plan.method.component.saves_adapter:
        generation_config.set_ends(config, state.tokenizer, Renderer.from_plan(plan, state.tokenizer))


def parameter_line(model: PreTrainedModel) -> str:
    """``trainable params: N || all params: N || trainable%: x``."""
    trained = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    # four bits are stored two to a byte: what is quantised knows its own shape
    states = [(tensor, getattr(tensor, "quant_state", None)) for tensor in model.parameters()]
    every = sum(tensor.numel() if state is None else math.prod(state.shape) for tensor, state in states)
    return f"trainable params: {trained:,} || all params: {every:,} || trainable%: {100 * trained / every:.4f}"


def last_evaluation(trainer: Trainer) -> dict[str, Any] | None:
    """What the weights as they are were evaluated to during training, if they were."""
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
    with ended_at_once(lambda: _measuring(plan)):
        if evaluates:
            record.enter("evaluating")
            results["eval"] = last_evaluation(trainer) or trainer.evaluate()
        if plan.training.do_predict:
            record.enter("predicting")
            results["predict"] = plan.stage.component.predict(state, trainer)
    record.enter("saving")
    with writing("the run's results", folder, 0):
        metrics = artifacts.write_results(folder, results)
        record.finish(accounting.as_dict(), metrics)  # of a stream the counts have grown
    if plan.training.plot_loss and plan.training.do_train:
        from ftcore.training.plots import plot_losses

        plot_losses(folder)
    for name, value in metrics.items():
        click.echo(f"  {name:<26} {value:,.6g}" if isinstance(value, float) else f"  {name:<26} {value}")
    click.echo(f"written to {folder}")
    result = Result(output_dir=folder, metrics=metrics, counts=accounting.as_dict())
    plan.plugins.hook.ft_run_finished(plan=plan, result=result)
    if plan.training.do_train and trainer.args.should_save and (uploads := getattr(trainer, "uploads", None)):
        uploads.finish()


def _save(state: Run, trainer: Trainer, record: RunRecord) -> None:
    """Puts what was trained into the run's folder; then an earlier run's checkpoints have served."""
    from ftcore.training.checkpointing.disk_space import save_trained
    from ftcore.training.checkpointing.resume import ResumableTrainer

    foreign = record.value["foreign_files"]
    save_trained(state.plan, state.model, state.tokenizer, state.pictures, foreign=foreign)
    if isinstance(trainer, ResumableTrainer):
        trainer.drop_replaced()


def _measuring(plan: Plan) -> str:
    """What a user is told whose run was stopped after training."""
    what = "predicting" if plan.training.do_predict else "evaluating"
    saved = f"; what was trained is in {plan.output_dir}" if plan.training.do_train else ""
    return f" while {what}{saved}; the same command does that anew"
