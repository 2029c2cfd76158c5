"""``do_predict``: generates answers to the evaluation data and compares them with the data's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from ft_plugins.stages.sft.options import SupervisedOptions
from ftcore.api.inference_types import Prompt
from ftcore.api.samples import Chat, Place
from ftcore.data.chat_template.reasoning import with_reasoning
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.formats.detection import read_samples
from ftcore.data.pipeline.loading import eval_specs
from ftcore.data.pipeline.row_sampling import counted
from ftcore.data.preprocessing.questions import NO_ANSWER
from ftcore.inference.answers import check_answered, collect
from ftcore.utils.files import write_whole

if TYPE_CHECKING:
    from ftcore.api.plan import Plan, Run

if TYPE_CHECKING:
    from ftcore.api.plan import Run

FILE = "generated_predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation whose last answer the model generates.

    Args:
        prompt: the messages before that answer.
        text: the same after the chat template.
        label: the data's answer, as the model would decode it; None where the data has none.
    """

    prompt: Prompt
    text: str
    label: str | None


def predict(run: Run, trainer: Any) -> dict[str, float]:
    """Answers all rows of the evaluation data, writes `FILE`, and returns ``predict_*`` metrics.

    Metrics cover the rows with an answer in the data.
    """
    import time

    from transformers.trainer_utils import speed_metrics

    start = time.time()
    plan, strategy = run.plan, trainer.strategy
    questions = list(_questions(run))
    mine = questions[strategy.rank :: strategy.world_size]
    generator = plan.engine.component.over(predicting(plan), run.model, run.tokenizer)
    with strategy.autocast():
        answers = collect(generator.stream([question.prompt for question in mine]), len(mine))
    check_answered(answers, [question.prompt for question in mine])
    texts = [answer.text for answer in answers]
    places = [strategy.rank + number * strategy.world_size for number in range(len(mine))]
    every = strategy.gather_object(list(zip(places, texts, strict=True)))
    texts = [text for _, text in sorted(part for some in every for part in some)]
    if strategy.is_main:
        _write(run, questions, texts)
    metrics = _measured(texts, [question.label for question in questions])
    return metrics | speed_metrics("predict", start, num_samples=len(questions))


def _measured(texts: Sequence[str], labels: Sequence[str | None]) -> dict[str, float]:
    """Metrics over the rows with a label, and the number of rows without one."""
    from ft_plugins.stages.sft.text_metrics import scores

    pairs = [(text, label) for text, label in zip(texts, labels, strict=True) if label is not None]
    without = len(texts) - len(pairs)
    if without:
        what = "they are not in the metrics" if pairs else "no metrics are computed"
        click.echo(f"predictions: {without:,} of {len(texts):,} rows have no answer to compare with: {what}")
    found = scores([text for text, _ in pairs], [label for _, label in pairs]) if pairs else {}
    told = {"predict_without_label": without} if without else {}
    return {f"predict_{name}": value for name, value in found.items()} | told


def _questions(run: Run) -> Iterator[Question]:
    renderer = Renderer.from_plan(run.plan, run.tokenizer)
    seed, hidden = run.plan.training.seed, run.plan.generation.skip_special_tokens
    for chat in _chats(run):
        messages, label = with_reasoning(chat.messages) if renderer.thinks else chat.messages, None
        if messages[-1].role == "assistant":
            whole = renderer.render(replace(chat, messages=messages))
            last, messages = whole.said[-1], messages[:-1]
            ids = run.tokenizer(whole.text[last.start : last.end], add_special_tokens=False).input_ids
            label = run.tokenizer.decode(ids, skip_special_tokens=hidden, clean_up_tokenization_spaces=False)
        text = renderer.prompt(messages, chat.tools).text
        yield Question(Prompt(messages, chat.tools, seed=seed), text, label)


def _chats(run: Run) -> Iterator[Chat]:
    """The conversations of the evaluation data, in order. Rows that the evaluation excludes have been reported."""
    if run.plan.data.val_size:
        yield from _split_off(run)
        return
    for spec, counts in zip(eval_specs(run.plan), run.data.accounting.eval, strict=True):
        left_out = {place for why, places in counts.untrainable.items() if why != NO_ANSWER for place in places}
        for place, sample, _ in counted(
            read_samples(spec, run.plan, questions=True)
        ):  # one answer, however often drawn
            if place not in left_out and isinstance(sample, Chat):
                yield sample


def _split_off(run: Run) -> Iterator[Chat]:
    """Those that ``val_size`` takes from training, where every row has an answer."""
    places: list[Place] = list(run.data.eval.places)
    wanted, found = set(places), dict[Place, Chat]()
    for spec in run.plan.datasets:
        for place, sample in read_samples(spec, run.plan):
            if place in wanted and isinstance(sample, Chat):
                found.setdefault(place, sample)
    yield from (found[place] for place in places)


def _write(run: Run, questions: Sequence[Question], texts: Sequence[str]) -> None:
    """One JSON object per row, with LLaMA-Factory's names; ``label`` is null where the data has no answer."""
    rows = [
        {"prompt": question.text, "predict": text, "label": question.label}
        for question, text in zip(questions, texts, strict=True)
    ]
    write_whole(run.plan.output_dir / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def predicting(plan: Plan) -> Plan:
    """The plan with the stage's ``generation_*`` options as its generation options."""
    options = plan.stage.options
    assert isinstance(options, SupervisedOptions)
    own = {"max_length": options.generation_max_length, "num_beams": options.generation_num_beams}
    update = {name: value for name, value in own.items() if value is not None}
    return replace(plan, generation=plan.generation.model_copy(update=update))
