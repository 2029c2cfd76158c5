"""Rows as samples: which format a dataset has, and every row read by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING

from ftcore.components import DatasetFormat
from ftcore.data.reading import Row, read_dataset
from ftcore.data.sources import DatasetSpec
from ftcore.errors import Problem, RowError, UsageError
from ftcore.samples import Place, Sample

if TYPE_CHECKING:
    from ftcore.plan import Plan
    from ftcore.plugins import Plugins


def read_samples(spec: DatasetSpec, plan: Plan) -> Iterator[tuple[Place, Sample | RowError]]:
    """Every row of a dataset as a sample, or as what is wrong with it; at most as many as the plan wants.

    Raises:
        UsageError: the dataset cannot be read as a whole, is empty, or its format is unknown.
    """
    limits = [limit for limit in (plan.data.max_samples, spec.num_samples) if limit is not None]
    rows: Iterator[tuple[Place, Row]] = islice(read_dataset(spec), min(limits) if limits else None)
    skipped: list[tuple[Place, Row]] = []
    for place, row in rows:
        if isinstance(row, RowError):
            skipped.append((place, row))
            continue
        chosen = find_format(spec, frozenset(row), plan.plugins)
        columns, tags = {**chosen.columns, **spec.columns}, {**chosen.tags, **spec.tags}
        yield from ((at, _sample(chosen, one, columns, tags)) for at, one in chain(skipped, [(place, row)], rows))
        return
    if not skipped:
        raise UsageError(Problem(f"dataset {spec.name!r} has no rows", str(spec.path or spec.hub_id)))
    yield from ((place, row) for place, row in skipped if isinstance(row, RowError))


def _sample(chosen: DatasetFormat, row: Row, columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample | RowError:
    if isinstance(row, RowError):
        return row
    try:
        return chosen.read(row, columns, tags)
    except RowError as error:
        return error


def find_format(spec: DatasetSpec, columns: frozenset[str], plugins: Plugins) -> DatasetFormat:
    """The format that the dataset's description names, or the only one that its columns fit.

    Args:
        spec: the dataset.
        columns: of its first row.
        plugins: what is installed.

    Raises:
        UsageError: no format fits, several do, or the description gives columns or tags that the format does not have.
    """
    if spec.format is not None:
        chosen = plugins.find(DatasetFormat, spec.format, spec.where).component
        if problems := _unknown_roles(spec, chosen):
            raise UsageError(problems)
        return chosen
    offers = plugins.of(DatasetFormat)
    fitting = [
        offer
        for offer in offers
        if not _unknown_roles(spec, offer.component)
        and offer.component.matches(_standard_names(spec, offer.component, columns))
    ]
    if len(fitting) == 1:
        return fitting[0].component
    place = str(spec.path or spec.hub_id)
    listed = ", ".join(sorted(columns))
    if fitting:
        names = " and ".join(sorted(offer.full_name for offer in fitting))
        message = f"dataset {spec.name!r} with the columns {listed} fits several formats: {names}"
        raise UsageError(Problem(message, place, "write formatting in dataset_info.json"))
    known = "; ".join(f"{offer.component.name} ({offer.component.summary})" for offer in offers)
    message = f"dataset {spec.name!r}: no format fits the columns {listed}"
    raise UsageError(Problem(message, place, f"formats: {known}; other names go into columns in dataset_info.json"))


def _standard_names(spec: DatasetSpec, chosen: DatasetFormat, columns: frozenset[str]) -> frozenset[str]:
    """The columns, and beside renamed ones the names that the format gives them."""
    return columns | {chosen.columns[role] for role, column in spec.columns.items() if column in columns}


def _unknown_roles(spec: DatasetSpec, chosen: DatasetFormat) -> list[Problem]:
    problems = []
    for what, given, known in (("column", spec.columns, chosen.columns), ("tag", spec.tags, chosen.tags)):
        for role in given:
            if role not in known:
                message = f"dataset {spec.name!r}: format {chosen.name!r} has no {what} {role!r}"
                problems.append(Problem(message, spec.where, f"it has {', '.join(known) or 'none'}"))
    return problems


def row_problem(place: Place, error: RowError) -> Problem:
    """What is wrong with a row, with its place, field, value and cure."""
    message = error.reason if error.field in error.reason else f"{error.field}: {error.reason}"
    if error.value is not None:
        shown = json.dumps(error.value, ensure_ascii=False, default=repr)
        short = shown if len(shown) <= 60 else f"{shown[:60]}..."
        if short not in message and repr(error.value) not in message:
            message = f"{message}: {short}"
    return Problem(message, str(place), error.cure)
