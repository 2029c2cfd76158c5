"""Loads the tokenised datasets of a plan; called by stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Place
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.datasets.preference_dataset import AnswerDataset, FeedbackDataset, PairDataset, answer_parts
from ftcore.data.datasets.token_dataset import TokenDataset, split_rows
from ftcore.data.pipeline.dataset_job import DatasetJob, Keep, Progress
from ftcore.data.pipeline.mix_and_pack import mix, pack, repeat, repeat_all
from ftcore.data.pipeline.streaming import Stream, StreamAccounting, hold_out
from ftcore.data.preprocessing.documents import renderer_of
from ftcore.data.preprocessing.prepare import AnyPrepared, Prepared
from ftcore.data.preprocessing.questions import NO_ANSWER, predicts
from ftcore.data.row_stats import RowCounts, RowStats, bad_rows
from ftcore.data.sources.resolve import has_split
from ftcore.data.storage.arrays import Table, TokenizedRow
from ftcore.data.storage.cache import Store
from ftcore.data.tokenization.encoder import Encoder
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan
    from ftcore.data.multimodal.images import ImageReader

D = TypeVar("D", bound=TokenDataset | AnswerDataset)


@dataclass(frozen=True)
class Datasets(Generic[D]):
    """The training and evaluation data of a run; None if the plan has no such data."""

    train: D | None
    eval: D | None
    accounting: RowStats
    pictures: ImageReader | None = None
    """The image reader, if stage and model support images."""


def chat_datasets(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, *, progress: Progress | None = None
) -> Datasets[TokenDataset]:
    """The conversations, prompts or texts of the plan, depending on its stage; see `_datasets`."""
    return _datasets(TokenDataset, _whole, plan, tokenizer, progress)


def pair_datasets(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, *, progress: Progress | None = None
) -> Datasets[PairDataset]:
    """The preferences of the plan; see `_datasets`."""
    return _datasets(PairDataset, answer_parts, _of_answers(plan), tokenizer, progress)


def feedback_datasets(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, *, progress: Progress | None = None
) -> Datasets[FeedbackDataset]:
    """The labelled answers of the plan; see `_datasets`."""
    return _datasets(FeedbackDataset, answer_parts, _of_answers(plan), tokenizer, progress)


def _whole(place: Place, row: AnyPrepared) -> Sequence[TokenizedRow]:
    assert isinstance(row, Prepared)
    return [TokenizedRow.of(place, row)]


def _of_answers(plan: Plan) -> Plan:
    """Checks that the options of the plan fit a stage that compares answers.

    Raises:
        UsageError: ``train_on_prompt`` is set.
    """
    if plan.data.train_on_prompt:
        message = f"train_on_prompt is true, and stage {plan.stage.component.name!r} compares answers"
        raise UsageError(Problem(message, plan.file, "remove train_on_prompt"))
    return plan


def _datasets(
    kind: type[D], keep: Keep, plan: Plan, tokenizer: PreTrainedTokenizerBase, progress: Progress | None
) -> Datasets[D]:
    """The tokenised datasets of the plan, with their row counts.

    Evaluation data is ``eval_dataset``, else the rows that ``val_size`` splits off. Else, if the plan evaluates, it is
    the ``validation`` split of dataset folders.

    Raises:
        UsageError: bad rows and unreadable datasets, all at once; contradictory options; no rows to train on.
    """
    renderer = renderer_of(plan, tokenizer)
    if plan.data.streaming:
        return _streamed(kind, keep, plan, renderer, progress)
    train, train_counts, problems = _load(plan.datasets, plan, renderer, keep, progress)
    held_out, eval_counts, further = _load_evaluation(plan, renderer, keep, progress)
    bad = bad_rows([*train_counts, *eval_counts], plan.data)
    problems = [*problems, *further, *(bad.problems if bad else ())]
    if problems:
        raise UsageError(problems)
    _check_kept(train_counts, eval_counts, plan)
    training: Any = kind.over(train) if plan.datasets else None
    evaluation: Any = kind.over(held_out) if any(counts.kept for counts in eval_counts) else None
    split_off = 0
    notes: list[str] = []
    if training is not None:
        rows = np.arange(len(training))
        if plan.data.val_size:
            rows, others = split_rows(len(training), plan.data.val_size, plan.training.seed)
            evaluation, split_off = training.take(others), len(others)
            if repeats := int(training.times[others].sum()) - split_off:
                notes = [f"val_size: {repeats:,} repeats of validation rows are left out of training"]
        training, lengths = repeat(plan, training, rows, [len(kind.over([table])) for table in train])
        training, more = mix(plan, training, lengths)
        notes += more
    training, more = pack(plan, training)
    evaluation, last = pack(plan, evaluation if split_off else repeat_all(evaluation), "evaluation: ")
    notes += more + last
    accounting = RowStats(tuple(train_counts), tuple(eval_counts), split_off, tuple(notes))
    return Datasets(training, evaluation, accounting, renderer.pictures)


def _streamed(kind: type[D], keep: Keep, plan: Plan, renderer: Renderer, progress: Progress | None) -> Datasets[D]:
    """Streams the training rows; evaluation data is loaded completely."""
    pictures, renderer.pictures = renderer.pictures, None  # rows with images are refused
    held_out, eval_counts, problems = _load_evaluation(plan, renderer, keep, progress)
    bad = bad_rows(eval_counts, plan.data)
    if problems := [*problems, *(bad.problems if bad else ())]:
        raise UsageError(problems)
    _check_kept([], eval_counts, plan)
    held_out = held_out if any(counts.kept for counts in eval_counts) else []
    count = int(plan.data.val_size)
    table, before = hold_out(Stream(plan, kind, keep, renderer, plain=True), count) if count else (None, 0)
    tables = [table] if table else held_out
    evaluation, notes = pack(plan, repeat_all(kind.over(tables)) if tables else None, "evaluation: ")
    training: Any = Stream(plan, kind, keep, renderer, before) if plan.datasets else None
    counts = tuple(training.counts) if training else ()
    accounting = StreamAccounting(counts, tuple(eval_counts), count, tuple(notes))
    return Datasets(training, evaluation, accounting, pictures)


def eval_specs(plan: Plan) -> Sequence[DatasetSpec]:
    """The evaluation datasets of the plan, without the rows of ``val_size``."""
    wanted = plan.training.do_eval or plan.training.do_predict or plan.training.eval_strategy != "no"
    if plan.eval_datasets or plan.data.val_size or not wanted:
        return plan.eval_datasets
    return [
        replace(spec, split="validation")
        for spec in plan.datasets
        if spec.split == "train" and has_split(spec, "validation")
    ]


def _load_evaluation(
    plan: Plan, renderer: Renderer, keep: Keep, progress: Progress | None
) -> tuple[list[Table], list[RowCounts], list[Problem]]:
    return _load(eval_specs(plan), plan, renderer, keep, progress, questions=predicts(plan))


def _load(
    specs: Sequence[DatasetSpec],
    plan: Plan,
    renderer: Renderer,
    keep: Keep,
    progress: Progress | None,
    *,
    questions: bool = False,
) -> tuple[list[Table], list[RowCounts], list[Problem]]:
    tables: list[Table] = []
    all_counts: list[RowCounts] = []
    problems: list[Problem] = []
    store, encoder = Store.of(plan), Encoder(renderer.tokenizer)
    for spec in specs:
        counts = RowCounts(name=spec.name)
        work = DatasetJob(spec, plan, renderer, encoder, keep, progress, questions)
        try:
            tables.append(work.table(store, counts))
        except UsageError as error:  # the other datasets are read as well, to report all problems at once
            problems += error.problems
        all_counts.append(counts)
    return tables, all_counts, problems


def _check_kept(train: Sequence[RowCounts], held_out: Sequence[RowCounts], plan: Plan) -> None:
    """Raises an error for datasets without usable rows; a dataset that is only predicted needs none."""
    evaluates = plan.training.do_eval or plan.training.eval_strategy != "no"
    unanswered = [counts for counts in held_out if not counts.kept and NO_ANSWER in counts.untrainable]
    problems = [_nothing_left(counts) for counts in (*train, *held_out) if not counts.kept and counts not in unanswered]
    problems += [_no_answers(counts) for counts in unanswered if evaluates]
    if problems:
        raise UsageError(problems)


def _no_answers(counts: RowCounts) -> Problem:
    message = f"dataset {counts.name!r} has no answers to evaluate on"
    hint = "remove do_eval and eval_strategy: do_predict alone accepts prompts without answers"
    return Problem(message, str(counts.untrainable[NO_ANSWER][0]), hint)


def _nothing_left(counts: RowCounts) -> Problem:
    why = [f"{_rows(len(places))}: {reason}" for reason, places in counts.untrainable.items()]
    why += [f"{_rows(len(counts.bad))} cannot be read"] if counts.bad else []
    where = [str(places[0]) for places in counts.untrainable.values()] + [problem.where for problem in counts.bad[:1]]
    return Problem(f"dataset {counts.name!r} has nothing to train on", where[0], "; ".join(why))


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
