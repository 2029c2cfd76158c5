"""Turns datasets into prompts: the model regenerates the last answer of each conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ftcore.api.components import Stage
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.inference_types import Prompt
from ftcore.api.plan import Plan
from ftcore.api.samples import Chat, Feedback, Message, Place, Preference, Sample
from ftcore.data.formats.detection import read_samples, row_problem
from ftcore.data.multimodal.media_files import holds_media
from ftcore.data.pipeline.row_sampling import counted
from ftcore.data.row_stats import RowCounts, bad_rows
from ftcore.data.sources.resolve import resolve
from ftcore.errors import RowError, UsageError


@dataclass(frozen=True, kw_only=True)
class _PromptStage(Stage):
    """A stage for the loaders that accepts every kind of sample with a prompt."""

    samples: ClassVar[tuple[str, ...]] = ("AnyQuestion",)

    def trainer(self, run: Any) -> Any:
        raise NotImplementedError

    def datasets(self, run: Any) -> Any:
        raise NotImplementedError


def dataset_prompts(
    names: str, plan: Plan, system: str | None
) -> tuple[list[Mapping[str, Any]], list[Prompt], list[str]]:
    """Rows, prompts, and lines about skipped rows.

    A row has ``messages`` (the prompt), ``place``, optional ``tools``, and ``label``, the answer in the dataset; for a
    preference, the chosen answer.

    Args:
        names: value of the option ``dataset``.
        plan: supplies ``dataset_dir``, ``max_samples``, ``on_bad_row``, ``max_bad_rows`` and ``media_dir``.
        system: system message of conversations without one.

    Raises:
        UsageError: with all problems of names and rows.
    """
    listed = [name for part in names.split(",") if (name := part.strip())]
    specs, problems = resolve(listed, dataset_dir=plan.data.dataset_dir, where="--dataset")
    if problems:
        raise UsageError(problems)
    prompt_plan = replace(plan, stage=replace(plan.stage, component=_PromptStage(name="ft generate", summary="")))
    rows: list[Mapping[str, Any]] = []
    prompts: list[Prompt] = []
    counts = [_read(spec, prompt_plan, system, rows, prompts) for spec in specs]
    if refused := bad_rows(counts, plan.data):
        raise refused
    return rows, prompts, [line for one in counts if one.bad for line in _skipped(one)]


def _read(
    spec: DatasetSpec, plan: Plan, system: str | None, rows: list[Mapping[str, Any]], prompts: list[Prompt]
) -> RowCounts:
    counts = RowCounts(name=spec.name)
    for place, sample, _ in counted(read_samples(spec, plan)):  # one answer per row, also for repeated rows
        try:
            row, prompt = _row_and_prompt(place, sample, system)
        except RowError as error:
            counts.add_bad(row_problem(place, error))
            continue
        counts.rows += 1
        rows.append(row)
        prompts.append(prompt)
    return counts


def _row_and_prompt(place: Place, sample: Sample | RowError, system: str | None) -> tuple[Mapping[str, Any], Prompt]:
    if isinstance(sample, RowError):
        raise sample
    if media := holds_media(sample):
        raise RowError(f"the row has {media}, and inference supports text only", cure="remove such rows")
    chat, label = _split(sample)
    messages = chat.messages
    if system is not None and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    row: dict[str, Any] = {"place": str(place), "messages": [message.as_dict() for message in messages]}
    if chat.tools:
        row["tools"] = [dict(tool) for tool in chat.tools]
    if label is not None:
        row["label"] = label.content
        if label.tool_calls:
            row["label_tool_calls"] = [dict(call) for call in label.tool_calls]
    return row, Prompt(messages, chat.tools, place=str(place))


def _split(sample: Sample) -> tuple[Chat, Message | None]:
    """The prompt, and the answer if there is one."""
    if isinstance(sample, Preference):
        return sample.prompt, sample.chosen
    chat = sample.chat if isinstance(sample, Feedback) else sample
    assert isinstance(chat, Chat)  # the loaders return no other kind
    if chat.messages[-1].role != "assistant":
        return chat, None
    if len(chat.messages) == 1:
        raise RowError("the conversation has no turn before the answer", cure="remove the row")
    return replace(chat, messages=chat.messages[:-1]), chat.messages[-1]


def _skipped(counts: RowCounts) -> list[str]:
    return [f"{counts.name}: {len(counts.bad):,} of {counts.rows:,} rows skipped", *map(str, counts.bad[:5])]
