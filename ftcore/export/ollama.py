"""Writes a Modelfile for Ollama, with the chat template converted to Go's template language.

The conversion supports templates that only write fixed texts around turns. The result is compared with the chat
template on several conversations. For other templates, the Modelfile has no TEMPLATE but a comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftcore.api.samples import Chat, Message, Role
from ftcore.errors import RowError
from ftcore.inference.generation_config import written_generation

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.data.chat_template.renderer import Renderer

_PARAMETERS = ("temperature", "top_p", "top_k", "repeat_penalty")


@dataclass(frozen=True, slots=True)
class Layout:
    """The fixed texts around turns.

    Args:
        system: text before and after a system message, at the start.
        bare: text at the start without a system message.
        user: text before a user message.
        answer: text between a user message and the answer.
        turn: text between an answer and the next ``user``.
    """

    system: tuple[str, str]
    bare: str
    user: str
    answer: str
    turn: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, as Ollama renders `go`."""
        text, rest = self.bare, list(messages)
        if rest[0].role == "system":
            text = rest.pop(0).content.join(self.system)
        for message in rest:
            if message.role == "user":
                text += self.user + message.content + self.answer
            else:
                text += message.content + self.turn
        return text

    def go(self) -> str:
        """The layout as a Go template."""
        before, after = map(_literal, self.system)
        bare, user, answer, turn = map(_literal, (self.bare, self.user, self.answer, self.turn))
        otherwise = f"{{{{ else }}}}{bare}" if bare else ""
        return (
            f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{otherwise}{{{{ end }}}}"
            f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{answer}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{turn}{{{{ end }}}}{{{{ end }}}}'
        )


def modelfile(plan: Plan, renderer: Renderer | None, source: str) -> tuple[str, str]:
    """The text of the file, and a note for the user, which may be empty.

    Args:
        plan: plan of the exported model.
        renderer: chat template; None for plain text.
        source: path of the weights, relative to the file.
    """
    lines, note = [f"FROM {source}", ""], ""
    if renderer is None:
        lines += ['TEMPLATE """{{ .Prompt }}"""', ""]
    elif layout := find_layout(renderer):
        lines += [f'TEMPLATE """{layout.go()}"""', ""]
    else:
        note = "the chat template cannot be written as a Modelfile TEMPLATE: Ollama uses the model's own template"
        lines += [f"# {note}", ""]
    if renderer is not None:
        decoded = (renderer.tokenizer.convert_ids_to_tokens(token) for token in renderer.stop_ids)
        lines += [f"PARAMETER stop {_quoted(token)}" for token in dict.fromkeys((*renderer.stop, *decoded))]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(plan).items()]
    return "\n".join(lines) + "\n", note


def _parameters(plan: Plan) -> dict[str, object]:
    written = written_generation(plan)
    values = {"repeat_penalty" if name == "repetition_penalty" else name: value for name, value in written.items()}
    if values.pop("do_sample", None) is False:
        values["temperature"] = 0
    return {name: values[name] for name in _PARAMETERS if name in values}


def find_layout(renderer: Renderer) -> Layout | None:
    """The layout of the turns, verified on several conversations; None if the template has no fixed layout."""
    try:
        layout = _guess(renderer)
        holds = layout is not None and all(
            layout.prompt(messages) == _without_bos(renderer, renderer.prompt(messages).text) for messages in _probes()
        )
    except RowError:
        return None
    return layout if holds else None


def _guess(renderer: Renderer) -> Layout | None:
    words = ("S0", "U1", "A2", "U3", "A4")
    with_system = _between(_without_bos(renderer, renderer.render(_chat(words)).text), words)
    without = _between(_without_bos(renderer, renderer.prompt(_chat(("U1",)).messages).text), ("U1",))
    if with_system is None or without is None:
        return None
    start, after_system, answer, after_answer, _, _ = with_system
    user = _common_end(without[0], after_system, after_answer)
    length = len(user)
    return Layout(
        system=(start, after_system[: len(after_system) - length]),
        bare=without[0][: len(without[0]) - length],
        user=user,
        answer=answer,
        turn=after_answer[: len(after_answer) - length],
    )


def _probes() -> list[tuple[Message, ...]]:
    texts = ["Be brief.", "What is 1 + 1?", "It is two.\nThat is all.", "And {{ 2 }}?", "Four.", "你好"]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    whole = tuple(Message(_role(role), text) for role, text in zip(roles, texts, strict=True))
    return [whole, whole[:4], whole[:2], whole[1:], whole[1:4], whole[1:2]]


def _chat(words: Sequence[str]) -> Chat:
    roles = {"S": "system", "U": "user", "A": "assistant"}
    return Chat(tuple(Message(_role(roles[word[0]]), _mark(word)) for word in words))


def _role(name: str) -> Role:
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    return roles[name]


def _mark(word: str) -> str:
    return f"<<{word}>>"


def _between(text: str, words: Sequence[str]) -> list[str] | None:
    """The texts around the marks of ``words``; None unless each occurs once and in order."""
    pieces = []
    for word in words:
        if text.count(_mark(word)) != 1:
            return None
        piece, text = text.split(_mark(word))
        pieces.append(piece)
    return [*pieces, text]


def _common_end(*texts: str) -> str:
    """The longest common suffix."""
    first = texts[0]
    return next(first[start:] for start in range(len(first) + 1) if all(text.endswith(first[start:]) for text in texts))


def _without_bos(renderer: Renderer, text: str) -> str:
    """The text without the begin-of-sequence token, which Ollama and llama.cpp add."""
    return text.removeprefix(renderer.borders[0])


def _literal(text: str) -> str:
    """Escapes text for a Go template inside triple quotes."""
    return text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
