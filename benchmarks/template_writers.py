"""What the checks on a template cost: a conversation with ChatML, written with them and without."""

from __future__ import annotations

from collections.abc import Callable

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

from ftcore.data.chat_template.jinja_env import Compiled, _faster
from ftcore.testing import CHATML


def writers(turns: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Writes a conversation of so many messages with the checks, and as the bare template does."""
    plain = _compile_jinja_template(CHATML).environment.overlay()
    _faster(plain)
    bare = jinja2.Template.from_code(plain, plain.compile(CHATML), dict(plain.globals))
    checked = Compiled(CHATML, {})
    roles = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "a b"})
    rows = [roles[number % 2] for number in range(turns)]

    def with_checks() -> None:
        checked.write(rows, prompt=True)

    def without() -> None:
        names = {"messages": [dict(row) for row in rows], "tools": None, "add_generation_prompt": True}
        "".join(bare.root_render_func(bare.new_context(names)))

    return with_checks, without
