"""Checks the template of a run against the tokenizer before training: the loss does not show a wrong template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.tokenization.encoder import encode
from ftcore.errors import Problem, RowError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan

PROBES: Sequence[Chat] = (
    Chat((Message("user", "Hi"), Message("assistant", "Hello."))),
    Chat((Message("user", "1+1?"), Message("assistant", "2"), Message("user", "2+2?"), Message("assistant", "4"))),
    Chat((Message("system", "Be brief."), Message("user", "你好 🙂"), Message("assistant", "你好。"))),
)
"""Conversations that test the template."""

THOUGHT_PROBE = Chat((Message("user", "Hi"), Message("assistant", "Hello.", "A greeting.")))
"""Tests whether a template that refuses answers without reasoning accepts one with it."""

_CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    },
}
TOOL_PROBE = Chat(
    (
        Message("user", "What time is it?"),
        Message("assistant", "", tool_calls=(_CALL,)),
        Message("tool", "12:00"),
        Message("assistant", "Noon."),
    ),
    (_TOOL,),
)
"""Tests a template that supports tools."""

_CONTROL = re.compile(
    r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|〈\|[^〉\s]+\|〉|\[\|[^\]|\s]+\|\]|<_\w+>|<seed:\w+>|<SPECIAL_\d+>"
    r"|<(?:[a-z]+_of_[a-z]+|s|/s|bos|eos|unk|sep|sop|BOS_TOKEN)>|\]~!?b[\[\]]"
    r"|\[/?(?:INST|gMASK|IMG|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS|THINK)\]"
)
"""Matches control tokens in a template's text. `Renderer` checks that the stop token is one token."""


def check_template(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warns or raises an error, as ``template_check`` says. The tokenizer must still have its own template.

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
    """The problems and differences of the run's template."""
    if plan.template is None and not tokenizer.chat_template:
        return
    used = Renderer.from_plan(plan, tokenizer)
    name = plan.template.component.name if plan.template else "the tokenizer's own"
    where = plan.where("template")
    yield from _missing_tokens(used, name, where)
    yield from _ends(used, name, where)
    if plan.template is not None and tokenizer.chat_template:
        tools = (TOOL_PROBE,) if plan.template.component.tool_dialect else ()
        yield from _against_own(used, tokenizer, (*PROBES, *tools), name, where)


def _missing_tokens(used: Renderer, name: str, where: str) -> Iterator[Problem]:
    """Control tokens of the template that are not one token in this vocabulary."""
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
            hint = "choose the template that the model was trained with"
            yield Problem(f"template {name}: {control!r} is {count} tokens in this vocabulary", where, hint)


def _ends(used: Renderer, name: str, where: str) -> Iterator[Problem]:
    """Checks that the stop token is trained and that the generation prompt is a prefix of the training text."""
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
        hint = "generation will only end at max_new_tokens"
        yield Problem(f"template {name}: no stop token is trained at the end of an answer", where, hint)
    if rendered.text.startswith(prompt.text):
        shown = used.prompt_ids(probe.messages[:-1])
        if tokens.ids[: len(shown)].tolist() != shown:
            hint = "answers would start with other tokens than in training; end the prompt before the space"
            yield Problem(
                f"template {name}: the generation prompt ends inside a token of the training text", where, hint
            )
        return
    if _is_asked(used, THOUGHT_PROBE):
        finding = (
            f"template {name}: the generation prompt opens a reasoning block, which answers without reasoning lack"
        )
        yield Problem(
            finding, where, "add reasoning to the answers, or set enable_thinking: false if the template supports it"
        )
    else:
        hint = "prompts at inference would differ from those in training"
        yield Problem(f"template {name}: the generation prompt is not a prefix of the training text", where, hint)


def _is_asked(used: Renderer, chat: Chat) -> bool:
    """Whether the text starts with the generation prompt of its last answer."""
    try:
        return used.render(chat).text.startswith(used.prompt(chat.messages[:-1]).text)
    except RowError:
        return False


def _against_own(
    used: Renderer, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Chat], name: str, where: str
) -> Iterator[Problem]:
    """The first token that differs from the tokenizer's own template, over all probes that both render."""
    own = Renderer(tokenizer, tokenizer.get_chat_template(), default_system=used.default_system)
    for probe in probes:
        try:
            ours, theirs = (encode(tokenizer, [side.render(probe)])[0].ids.tolist() for side in (used, own))
        except RowError:
            continue
        if ours != theirs:
            difference = _difference(tokenizer, ours, theirs)
            hint = "leave template out to use the tokenizer's own, or set template_check: off"
            tools = " for a tool call" if probe.tools else ""
            yield Problem(f"template {name} differs from the tokenizer's own{tools}: {difference}", where, hint)
            return


def _difference(tokenizer: PreTrainedTokenizerBase, ours: Sequence[int], theirs: Sequence[int]) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))

    def shown(ids: Sequence[int]) -> str:
        return repr(tokenizer.decode(ids[at : at + 6])) if at < len(ids) else "the end"

    before = tokenizer.decode(ours[max(at - 6, 0) : at])
    return f"at token {at + 1}, after {before!r}, it renders {shown(ours)}, the tokenizer's own {shown(theirs)}"
