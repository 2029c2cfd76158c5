"""Holds the run's template against the tokenizer before anything is trained: a wrong one hides under a healthy loss."""

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
"""What the template is tried on."""

THOUGHT_PROBE = Chat((Message("user", "Hi"), Message("assistant", "Hello.", "A greeting.")))
"""What the template is asked for once it has not taken an answer without a thought."""

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
"""The same, of a template that has tools."""

_CONTROL = re.compile(
    r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|<｜[^<>｜\s]+｜>|〈\|[^〉\s]+\|〉|\[\|[^\]|\s]+\|\]|<_\w+>|<seed:\w+>|<SPECIAL_\d+>"
    r"|<(?:[a-z]+_of_[a-z]+|s|/s|bos|eos|unk|sep|sop|BOS_TOKEN)>|\]~!?b[\[\]]"
    r"|\[/?(?:INST|gMASK|IMG|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS|THINK)\]"
)
"""What looks like a control token; templates of plain words have none. That the stop is a token, `Renderer` sees to."""


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
    where = plan.where("template")
    yield from _missing_tokens(used, name, where)
    yield from _ends(used, name, where)
    if plan.template is not None and tokenizer.chat_template:
        tools = (TOOL_PROBE,) if plan.template.component.tool_dialect else ()
        yield from _against_own(used, tokenizer, (*PROBES, *tools), name, where)


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
    if rendered.text.startswith(prompt.text):
        shown = used.prompt_ids(probe.messages[:-1])
        if tokens.ids[: len(shown)].tolist() != shown:
            hint = "the model would begin answers otherwise than it was taught; let the prompt end before the blank"
            yield Problem(
                f"template {name}: the generation prompt ends inside a token of the training text", where, hint
            )
        return
    if _is_asked(used, THOUGHT_PROBE):
        finding = f"template {name}: the generation prompt begins a thought, which an answer without one does not"
        yield Problem(
            finding, where, "give the answers thoughts, or set enable_thinking: false if the template knows it"
        )
    else:
        hint = "the model would be asked in another way than it was taught"
        yield Problem(f"template {name}: the generation prompt is not how the training text goes on", where, hint)


def _is_asked(used: Renderer, chat: Chat) -> bool:
    """Whether the last answer follows what the model would be shown."""
    try:
        return used.render(chat).text.startswith(used.prompt(chat.messages[:-1]).text)
    except RowError:
        return False


def _against_own(
    used: Renderer, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Chat], name: str, where: str
) -> Iterator[Problem]:
    """The first token that differs from the tokenizer's own template, of all probes that both can render."""
    own = Renderer(tokenizer, tokenizer.get_chat_template(), default_system=used.default_system)
    for probe in probes:
        try:
            ours, theirs = (encode(tokenizer, [side.render(probe)])[0].ids.tolist() for side in (used, own))
        except RowError:
            continue
        if ours != theirs:
            difference = _difference(tokenizer, ours, theirs)
            hint = "leave template out to use the tokenizer's own, or set template_check: off"
            tools = " where a tool is called" if probe.tools else ""
            yield Problem(f"template {name} differs from the tokenizer's own{tools}: {difference}", where, hint)
            return


def _difference(tokenizer: PreTrainedTokenizerBase, ours: Sequence[int], theirs: Sequence[int]) -> str:
    pairs = zip(ours, theirs, strict=False)
    at = next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))

    def shown(ids: Sequence[int]) -> str:
        return repr(tokenizer.decode(ids[at : at + 6])) if at < len(ids) else "the end"

    before = tokenizer.decode(ours[max(at - 6, 0) : at])
    return f"at token {at + 1}, after {before!r}, it writes {shown(ours)}, the own {shown(theirs)}"
