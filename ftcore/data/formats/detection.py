"""Turns rows into samples: detects the format of a dataset and what the stage reads of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ftcore.api.components import DatasetFormat, Stage
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Place, Sample
from ftcore.data.formats.sample_kinds import NAMES, QUESTIONS, Reading, as_text, only_prompts, readings
from ftcore.data.multimodal.media_files import MediaFolders
from ftcore.data.pipeline.row_sampling import Sampling, sampling_of
from ftcore.data.sources.readers import Row, read_dataset
from ftcore.errors import Problem, RowError, UsageError, listed, quoted, short

if TYPE_CHECKING:
    from ftcore.api.plan import Plan, RegisteredComponent, Registry

_LOOKED_AT = 100
"""Rows that are examined to detect the format: the first ones may be damaged."""

_MOST = 500
"""Length limit of a format's message, in characters: it may quote the row."""

Samples = Iterator[tuple[Place, Sample | RowError]]


def read_samples(
    spec: DatasetSpec, plan: Plan, sampling: Sampling | None = None, *, questions: bool = False
) -> Samples:
    """Every row of a dataset as a sample for the plan's stage, or as its `RowError`.

    Args:
        spec: the dataset.
        plan: the run's.
        sampling: the sampling of the dataset, if known; see `limited_rows`.
        questions: whether the last answer of a conversation is optional; see `ftcore.data.preprocessing.questions`.

    Raises:
        UsageError: see `open_rows`.
    """
    rows, read = open_rows(spec, plan, sampling, questions=questions)
    yield from ((place, read(row)) for place, row in rows)


def open_rows(
    spec: DatasetSpec, plan: Plan, sampling: Sampling | None = None, *, questions: bool = False
) -> tuple[Iterator[tuple[Place, Row]], Callable[[Row], Sample | RowError]]:
    """The rows of a dataset, limited as the plan says, and the function that turns a row into a sample.

    Args:
        spec: the dataset.
        plan: the run's.
        sampling: the sampling of the dataset, if known; see `limited_rows`.
        questions: whether the last answer of a conversation is optional; see `ftcore.data.preprocessing.questions`.

    Raises:
        UsageError: the dataset is unreadable or empty, its format is unknown, or it has no samples for the stage.
            The iterator of the rows raises errors of later rows.
    """
    rows = limited_rows(spec, plan, sampling)
    first: list[tuple[Place, Row]] = []
    reading: Reading | None = None
    refusal: UsageError | None = None
    for place, row in islice(rows, _LOOKED_AT):
        first.append((place, row))
        if isinstance(row, RowError):
            continue
        try:
            found = find_reading(spec, row, plan.plugins, plan.stage.component, questions=questions)
        except UsageError as error:
            refusal = refusal or error
            continue
        if _reads(found, row):  # a row with a missing column may match another format
            reading = found
            break
        reading = reading or found
    if not first:
        where = str(spec.path or spec.hub_id)
        raise UsageError(
            Problem(f"dataset {quoted(spec.name)} has no rows", where, "add rows to it, or remove it from the run")
        )
    if reading is None:
        if refusal is not None:
            raise refusal
        return ((place, row) for place, row in chain(first, rows) if isinstance(row, RowError)), _unread
    return chain(first, rows), partial(_sample, reading, MediaFolders.of(plan, spec.columns))


def _unread(row: Row) -> RowError:
    assert isinstance(row, RowError)  # the caller passes no other rows
    return row


def limited_rows(spec: DatasetSpec, plan: Plan, sampling: Sampling | None = None) -> Iterator[tuple[Place, Row]]:
    """The rows of a dataset, limited as the plan says: the first ones, or with ``num_samples`` random ones.

    Rows keep the order of the dataset. A row that is drawn several times is repeated directly (see
    `ftcore.data.pipeline.row_sampling.counted`). Without ``sampling`` the function computes it, which reads the dataset
    once more.
    """
    rows = read_dataset(spec, streaming=plan.data.streaming, max_row_bytes=plan.data.max_row_bytes)
    sampling = sampling or sampling_of(spec, plan)
    return sampling.rows(rows) if sampling else islice(rows, plan.data.max_samples)


def _sample(reading: Reading, folders: MediaFolders, row: Row) -> Sample | RowError:
    if isinstance(row, RowError):
        return row
    try:
        return folders.resolved(reading.read(row))
    except RowError as error:
        return error


def find_reading(
    spec: DatasetSpec, row: Mapping[str, Any], plugins: Registry, stage: Stage, *, questions: bool = False
) -> Reading:
    """How a stage reads the dataset: with the format of its description, otherwise with the format that fits.

    Args:
        spec: the dataset.
        row: a row of the dataset, whose columns are examined.
        plugins: the installed plugins.
        stage: its ``samples`` are the wanted kinds, by priority; an empty list accepts any kind.
        questions: whether the last answer of a conversation is optional.

    Raises:
        UsageError: no format or several formats fit, the description has columns or tags that the format lacks,
            or the dataset has no samples for the stage.
    """
    offers = _candidates(spec, frozenset(row), plugins)
    wanted = ("Question",) if questions else stage.samples or tuple(NAMES)
    for_prediction = any(kind in QUESTIONS for kind in wanted)
    found = [(offer, list(readings(spec, offer.component, row, questions=for_prediction))) for offer in offers]
    for kind in wanted:
        fitting = [(offer, reading) for offer, ways in found for reading in ways if reading.kind == kind]
        if not fitting and kind == "Text":
            fitting = [(offer, as_text(ways[0])) for offer, ways in found if only_prompts(ways)]
        if fitting:
            return _only_one(spec, row, fitting)
    kinds = {reading.kind for _, ways in found for reading in ways} - QUESTIONS.keys()
    raise UsageError(_wrong_kind(spec, row, kinds, plugins, stage))


def _candidates(
    spec: DatasetSpec, columns: frozenset[str], plugins: Registry
) -> Sequence[RegisteredComponent[DatasetFormat]]:
    if spec.format is not None:
        offer = plugins.find(DatasetFormat, spec.format, spec.where)
        if problems := _unknown_roles(spec, offer.component):
            raise UsageError(problems)
        return [offer]
    offers = plugins.of(DatasetFormat)
    fitting = [
        offer
        for offer in offers
        if not _unknown_roles(spec, offer.component)
        and offer.component.matches(_standard_names(spec, offer.component, columns))
    ]
    if fitting:
        return fitting
    known = "; ".join(f"{offer.component.name} ({offer.component.summary})" for offer in offers)
    message = f"dataset {quoted(spec.name)}: no format fits the columns {listed(sorted(columns))}"
    hint = f"formats: {known}; map other column names with columns in dataset_info.json"
    raise UsageError(Problem(message, str(spec.path or spec.hub_id), hint))


def _only_one(
    spec: DatasetSpec, row: Mapping[str, Any], fitting: Sequence[tuple[RegisteredComponent[DatasetFormat], Reading]]
) -> Reading:
    """Of several formats the one that can read the row; of several such, the default one."""
    if len(fitting) > 1:
        fitting = [(offer, reading) for offer, reading in fitting if _reads(reading, row)] or fitting
    if len(fitting) > 1:
        fitting = [(offer, reading) for offer, reading in fitting if offer.component.default] or fitting
    if len(fitting) > 1:
        raise UsageError(_several(spec, frozenset(row), [offer for offer, _ in fitting]))
    return fitting[0][1]


def _reads(reading: Reading, row: Mapping[str, Any]) -> bool:
    try:
        reading.read(row)
    except RowError:
        return False
    return True


def _several(
    spec: DatasetSpec, columns: frozenset[str], offers: Sequence[RegisteredComponent[DatasetFormat]]
) -> Problem:
    names = " and ".join(sorted(offer.full_name for offer in offers))
    message = f"dataset {quoted(spec.name)} with the columns {listed(sorted(columns))} fits several formats: {names}"
    return Problem(message, str(spec.path or spec.hub_id), "write formatting in dataset_info.json")


def _wrong_kind(spec: DatasetSpec, row: Mapping[str, Any], kinds: set[str], plugins: Registry, stage: Stage) -> Problem:
    kinds_found = [kind for kind in NAMES if kind in kinds and (kind != "Prompt" or len(kinds) == 1)]
    holds = " and ".join(NAMES[kind] for kind in kinds_found) + (
        " without answers" if kinds_found == ["Prompt"] else ""
    )
    needs = " or ".join((NAMES | QUESTIONS)[kind] for kind in stage.samples)
    message = f"dataset {quoted(spec.name)} (columns {listed(row)}) holds {holds}; stage {stage.name!r} needs {needs}"
    others = [offer.component.name for offer in plugins.of(Stage) if set(offer.component.samples) & set(kinds_found)]
    known = f": {', '.join(sorted(others))}" if others else ""
    advice = [f"choose another dataset or a stage that reads it{known}"]
    if "Feedback" in kinds_found and "Chat" in stage.samples:
        advice.append('to train on all answers alike, ignore the labels: "columns": {"kto_tag": ""}')
    if kinds_found == ["Prompt"]:
        advice.append('if a column has the answers, name it in dataset_info.json: "columns": {"response": ...}')
    return Problem(message, str(spec.path or spec.hub_id), "; ".join(advice))


def _standard_names(spec: DatasetSpec, chosen: DatasetFormat, columns: frozenset[str]) -> frozenset[str]:
    """The columns; a column assigned to a role has the name that the format uses for it."""
    assigned = {chosen.columns[role] for role, column in spec.columns.items() if column in columns}
    return (columns - set(spec.columns.values())) | assigned


def _unknown_roles(spec: DatasetSpec, chosen: DatasetFormat) -> list[Problem]:
    problems = []
    for what, given, known in (("column", spec.columns, chosen.columns), ("tag", spec.tags, chosen.tags)):
        for role, name in given.items():
            if name and role not in known:
                message = f"dataset {quoted(spec.name)}: format {chosen.name!r} has no {what} {quoted(role)}"
                problems.append(Problem(message, spec.where, f"it has {', '.join(known) or 'none'}"))
    return problems


def row_problem(place: Place, error: RowError) -> Problem:
    """The problem of a row with place, field, value and fix, each shortened to a readable length."""
    reason = short(error.reason, _MOST)
    message = reason if error.field in error.reason else f"{short(error.field, 200)}: {reason}"
    if error.value is not None:
        shown = short(json.dumps(error.value, ensure_ascii=False, default=repr))
        if shown not in message and quoted(error.value) not in message:
            message = f"{message}: {shown}"
    return Problem(message, str(place), short(error.cure, _MOST))
