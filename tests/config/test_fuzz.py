"""R13: whatever a configuration holds, the answer is a plan or a list of problems, and no code is run.

R13 asks for 5,000 examples (145 s) and nightly 50,000: ``FT_FUZZ=500 pytest tests/config/test_fuzz.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore.api.registry import Plugins
from ftcore.config.binding import list_options, selection_options
from ftcore.config.planner import make_plan
from ftcore.errors import Problem, UsageError

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["auto", "no", "steps", "all", "sft"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
snippets = st.sampled_from(
    ["a: !!python/object/apply:os.system ['touch {canary}']", "x: &x [*x]", "<<: *nothing", "? {a: b}\n: c", "- 1",
     "a: b: c", "\t- x", "seed: 1\nseed: 2", "k: !!binary aGk=", "t: 2026-01-01", "s: !!set {a}",
     "%YAML 9.9\n---\na: 1", "a: |\n  x", "---\na: 1\n---\nb: 2",
     "a: 'unclosed", "[", "{", "a: \x00", "a: \ud800", "\ufeffseed: 1", "a: !!js/function 'x'", "&a b: *a"]
)  # fmt: skip


def answer(file: Path, overrides: list[str], plugins: Plugins) -> None:
    """A plan, or problems of which each says something."""
    problems: Sequence[Problem] = ()
    try:
        make_plan(file, overrides, plugins=plugins)
    except UsageError as error:
        problems = error.problems or [Problem("")]
    assert all(problem.message for problem in problems)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@settings(max_examples=10 * settings.default.max_examples)
@given(data=st.data())
def test_any_value_of_any_option(
    data: st.DataObject, built_in: Plugins, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = [*selection_options(), *(option.name for option in list_options(built_in)), "unknown_thing", "packing"]
    chosen = data.draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=12), values, max_size=6))
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_text(json.dumps({"model_name_or_path": "org/name"} | chosen), encoding="utf-8")
    words = data.draw(
        st.lists(
            st.text(max_size=16) | st.builds("{}={}".format, st.sampled_from(names), st.text(max_size=12)), max_size=3
        )
    )
    answer(file, words, built_in)


@pytest.mark.slow
@given(text=st.lists(st.text(max_size=40) | snippets, max_size=4).map("\n".join))
def test_any_text(text: str, built_in: Plugins, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    canary = folder / "canary"
    (folder / "fuzz.yaml").write_bytes(text.replace("{canary}", str(canary)).encode("utf-8", "surrogatepass"))
    answer(folder / "fuzz.yaml", [], built_in)
    assert not canary.exists()


@pytest.mark.slow
def test_memory_stays_below_200_mb(tmp_path: Path) -> None:
    """A plan over the nastiest file, in a process of its own."""
    import subprocess
    import sys

    file = tmp_path / "laughs.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)
    ]
    file.write_text("\n".join(lines))
    code = (
        "import sys\nfrom ftcore.cli import main\n"
        f"try: main(['plan', {str(file)!r}])\nexcept SystemExit as end: assert end.code == 2\n"
        # ru_maxrss would count what the parent had when it forked
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 200 << 20
