"""Holds the run's template against the tokenizer before anything is trained: a wrong one hides under a healthy loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ftcore.checks import place
from ftcore.data.rendering import Renderer
from ftcore.data.tokenizing import encode
from ftcore.errors import Problem, RowError, UsageError
from ftcore.samples import Chat, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.plan import Plan

PROBES: Sequence[Chat] = (
    Chat((Message("user", "Hi"), Message("assistant", "Hello."))),
    Chat((Message("user", "1+1?"), Message("assistant", "2"), Message("user", "2+2?"), Message("assistant", "4"))),
    Chat((Message("system", "Be brief."), Message("user", "你好 🙂"), Message("assistant", "你好。"))),
)
"""What the template is tried on."""

_CONTROL = re.compile(
    r"<\|[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|<(?:start_of_turn|end_of_turn|s|/s|bos|eos)>|\[/?(?:INST|gMASK)\]"
)
"""What looks like a control token; templates of plain words have none."""


def check_template(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warns, or stops, as ``template_check`` says. The tokenizer must still have its own template.

    Raises:
        UsageError: with every finding, where ``template_check`` is ``error``.
    """
    if plan.data.template_check == "off" or set(plan.stage.component.samples) == {"Text"}:
        return
    findings = list(examine(plan, tokenizer))
    if findings and plan.data.template_check == "error":
        raise UsageError(findings)
    for finding in findings:
        click.echo(click.style("warning: ", fg="yellow") + str(finding), err=True)


def examine(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
    """What is wrong, or merely different, with the run's template."""
    if plan.template is None and not tokenizer.chat_template:
        return
    used = Renderer.from_plan(plan, tokenizer)
    name = plan.template.component.name if plan.template else "the tokenizer's own"
    where = place(plan, "template")
    yield from _missing_tokens(used, name, where)
    yield from _ends(used, name, where)
    if plan.template is not None and tokenizer.chat_template:
        yield from _against_own(used, tokenizer, name, where)


def _missing_tokens(used: Renderer, name: str, where: str) -> Iterator[Problem]:
    """Control tokens that this vocabulary does not have as one token."""
    found: dict[str, int] = {}
    for probe in PROBES:
        try:
            text = used.render(probe).text
        except RowError:
            continue
        for control in _CONTROL.findall(text):
            found.setdefault(control, len(used.tokenizer(control, add_special_tokens=False)["input_ids"]))
    for control, count in found.items():
        if count != 1:
            hint = "is it the template that the model was made with?"
            yield Problem(f"template {name}: {control!r} is {count} tokens in this vocabulary", where, hint)


def _ends(used: Renderer, name: str, where: str) -> Iterator[Problem]:
    """That the model learns to stop, and that it is asked in the way in which it was taught."""
    probe = PROBES[0]
    try:
        rendered, prompt = used.render(probe), used.prompt(probe.messages[:-1])
    except RowError as error:
        yield Problem(f"template {name} refuses a conversation of one turn: {error.reason}", where)
        return
    tokens = encode(used.tokenizer, [rendered])[0]
    last = rendered.said[-1]
    trained = tokens.ids[(tokens.starts >= last.start) & (tokens.ends <= last.end)]
    if used.stop_ids and (not len(trained) or trained[-1] not in used.stop_ids):
        hint = "answers will run on until max_new_tokens"
        yield Problem(f"template {name}: no stop token is trained at the end of an answer", where, hint)
    if not rendered.text.startswith(prompt.text):
        hint = "the model would be asked in another way than it was taught"
        yield Problem(f"template {name}: the generation prompt is not how the training text goes on", where, hint)


def _against_own(used: Renderer, tokenizer: PreTrainedTokenizerBase, name: str, where: str) -> Iterator[Problem]:
    """The first token that differs from the tokenizer's own template, of all probes that both can render."""
    own = Renderer(tokenizer, tokenizer.get_chat_template(), default_system=used.default_system)
    for probe in PROBES:
        try:
            ours, theirs = (encode(tokenizer, [side.render(probe)])[0].ids.tolist() for side in (used, own))
        except RowError:
            continue
        if ours != theirs:
            difference = _difference(tokenizer, ours, theirs)
            hint = "leave template out to use the tokenizer's own, or set template_check: off"
            yield Problem(f"template {name} differs from the tokenizer's own: {difference}", where, hint)
            return


def _difference(tokenizer: PreTrainedTokenizerBase, ours: Sequence[int], theirs: Sequence[int]) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))

    def shown(ids: Sequence[int]) -> str:
        return repr(tokenizer.decode(ids[at : at + 6])) if at < len(ids) else "the end"

    before = tokenizer.decode(ours[max(at - 6, 0) : at])
    return f"at token {at + 1}, after {before!r}, it writes {shown(ours)}, the own {shown(theirs)}"
