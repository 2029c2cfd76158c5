"""Rows of Parquet, Arrow and saved datasets are those of JSON lines: keys that a table gave them are left out."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_plugins.formats import FORMATS
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.data.formats.detection import read_samples, row_problem
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.sources.columnar import hub_row
from ftcore.data.sources.readers import read_dataset, read_rows
from ftcore.data.sources.resolve import resolve
from ftcore.errors import RowError, UsageError
from ftcore.models import hub_access

pa = pytest.importorskip("pyarrow")
from pyarrow import ipc, parquet  # noqa: E402


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "parameters": {"type": "object", "properties": properties}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def chat(tools: Sequence[Any], *calls: Any, **more: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "", "tool_calls": list(calls)} if calls else None
    turns = [{"role": "user", "content": "q"}, answer or {"role": "assistant", "content": "r"}]
    return {"messages": turns, "tools": list(tools), **more}


ROWS = [
    chat([tool("f", a={"type": "string", "enum": ["x", None]})], call("f", a="x")),
    chat(
        [tool("g", b={"type": "integer", "items": {"type": "null"}})],
        call("g", b=2),
        call("h", c=[{"d": 1}, {"e": "z"}]),
    ),
    chat([]),
    chat([{"type": "function", "function": tool("k", a={"description": "q"})}], call("k")),
]


def write(folder: Path, rows: Sequence[Mapping[str, Any]], schema: Any = None) -> list[str]:
    """The rows in every kind of file; the names, JSON lines first."""
    table = pa.Table.from_pylist(rows, schema=schema)
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "a.json").write_text(json.dumps(rows))
    parquet.write_table(table, folder / "a.parquet", row_group_size=2)
    (folder / "b.parquet.gz").write_bytes(gzip.compress((folder / "a.parquet").read_bytes()))
    for name, opener in (("file.arrow", ipc.new_file), ("stream.arrow", ipc.new_stream), ("a.feather", ipc.new_file)):
        with opener(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return ["a.jsonl", "a.json", "a.parquet", "b.parquet.gz", "file.arrow", "stream.arrow", "a.feather"]


def samples(name: str, make_plan: Any) -> list[Any]:
    plan = make_plan(name)
    return [sample for _, sample in read_samples(plan.datasets[0], plan)]


def test_equal_tokens(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    first, *others = (
        chat_datasets(make_plan(name, template="hermes2_pro", overwrite_cache=True), tokenizer).train
        for name in write(tmp_path, ROWS)
    )
    text = tokenizer.decode(first.ids)
    assert "null" in text.replace('["x", null]', "null", 1)
    assert text.count("null") == 2  # of the enum and of the type that is called so
    for other in others:
        assert other.ids.tolist() == first.ids.tolist()
        assert other.weights.tolist() == first.weights.tolist()


def test_saved_datasets(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """A folder of `Dataset.save_to_disk`, one of `DatasetDict.save_to_disk` with splits, `Json` too."""
    datasets = pytest.importorskip("datasets")
    write(tmp_path, ROWS)
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": made, "validation": made.select([1])}).save_to_disk(tmp_path / "two")
    features = datasets.Features({**made.features, "tools": datasets.List(datasets.Json())})
    typed = datasets.Dataset.from_list(
        [{**row, "tools": [{**one, "x": None} for one in row["tools"]]} for row in ROWS], features
    )
    typed.save_to_disk(tmp_path / "typed")
    typed.to_parquet(tmp_path / "typed.parquet")
    first, one, two = (samples(name, make_plan) for name in ("a.jsonl", "one", "two"))
    assert one == two == first
    plan = make_plan("two", eval_dataset="two", template="hermes2_pro")
    held_out = chat_datasets(plan, tokenizer).eval
    assert held_out is not None
    assert len(held_out) == 1
    for name in ("typed", "typed.parquet"):
        found = samples(name, make_plan)
        assert [row.messages for row in found] == [row.messages for row in first]
        assert json.dumps(found[0].tools) == (
            '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": '
            '{"a": {"type": "string", "enum": ["x", null]}}}, "x": null}}]'
        )  # its nulls are the user's
    hub = [hub_row(row, made.features) for row in made]
    assert hub == list(map(dict, (row for _, row in read_rows(tmp_path / "a.parquet"))))
    assert [row["tools"] for row in typed] == [hub_row(row, typed.features)["tools"] for row in typed]
    assert hub_row(made[1], None) == hub[1]


def test_a_folder_with_rows_about_states(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state.json").write_text('[{"text": "Ohio"}]')
    (spec,), problems = resolve([str(tmp_path / "d")], dataset_dir=tmp_path)
    assert problems == []
    assert [row for _, row in read_dataset(spec)] == [{"text": "Ohio"}]


def test_csv_holds_tools_as_text(tmp_path: Path, make_plan: Any) -> None:
    rows = [{"instruction": "q", "output": "r", "tools": row["tools"]} for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    as_text = [row | {"tools": json.dumps(row["tools"])} for row in rows]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(as_text)
    parquet.write_table(pa.Table.from_pylist(as_text), tmp_path / "a.parquet")
    assert samples("a.csv", make_plan) == samples("a.parquet", make_plan) == samples("a.jsonl", make_plan)


# Arrow wants one type a key: here the key's first letter says it.
def schemas(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    plain = {"s1": st.text(max_size=3), "s2": st.text(max_size=3), "n1": st.integers(0, 9), "b1": st.booleans()}
    lists = {"t1": st.lists(st.none() | st.text(max_size=3), max_size=3), "t2": st.lists(st.integers(0, 3), max_size=2)}
    optional: dict[str, Any] = {**plain, **lists}
    if depth:
        optional |= {"o1": schemas(depth - 1), "o2": schemas(depth - 1), "p1": st.lists(schemas(depth - 1), max_size=2)}
    return st.fixed_dictionaries({"type": st.just("object")}, optional=optional)


@pytest.mark.slow
@given(st.lists(st.tuples(st.lists(schemas(), max_size=2), st.lists(schemas(), max_size=2)), min_size=2, max_size=4))
def test_any_schemas(found: Any) -> None:
    rows = [
        chat([{"name": "f", "parameters": one} for one in tools], *(call("f", **one) for one in calls))
        for tools, calls in found
    ]
    with TemporaryDirectory() as name:
        folder, table = Path(name), pa.Table.from_pylist(rows)
        parquet.write_table(table, folder / "a.parquet")
        with ipc.new_stream(folder / "a.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
        for file in ("a.parquet", "a.arrow"):
            assert [sample_of(row) for _, row in read_rows(folder / file)] == list(map(sample_of, rows))


def sample_of(row: Any) -> Any:
    format_ = next(one for one in FORMATS if one.name == "messages")
    names = {role: name for role, name in format_.columns.items() if role in ("messages", "tools")}
    return format_.read(row, dict.fromkeys(("system", "images", "videos", "audios"), "") | names, format_.tags)


def test_maps_keep_their_nulls(tmp_path: Path, make_plan: Any) -> None:
    arguments = pa.map_(pa.string(), pa.string())
    function = pa.struct({"name": pa.string(), "arguments": arguments})
    turn = pa.struct(
        {"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(pa.struct({"function": function}))}
    )
    calls = [{"function": {"name": "f", "arguments": [("a", None), ("b", "x")]}}]
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": calls}]}
    parquet.write_table(
        pa.Table.from_pylist([row], schema=pa.schema({"messages": pa.list_(turn)})), tmp_path / "a.parquet"
    )
    (sample,) = samples("a.parquet", make_plan)
    assert sample.messages[1].tool_calls == (call("f", a=None, b="x"),)
    calls[0]["function"]["arguments"] = [("a", "1"), ("a", "2")]  # type: ignore[index]
    parquet.write_table(
        pa.Table.from_pylist([row], schema=pa.schema({"messages": pa.list_(turn)})), tmp_path / "b.parquet"
    )
    ((place, wrong),) = read_rows(tmp_path / "b.parquet")
    assert isinstance(wrong, RowError)
    assert row_problem(place, wrong).message.startswith("messages: 'a' appears twice in one map")


@pytest.mark.parametrize("kind", ["list_", "large_list", "list_view", "large_list_view", "fixed"])
def test_every_kind_of_list(tmp_path: Path, kind: str) -> None:
    inner = pa.struct({"a": pa.int64(), "b": pa.int64()})
    made = pa.list_(inner, 2) if kind == "fixed" else getattr(pa, kind)(inner)
    values = [[{"a": 1}, None], [{"b": 2}, {"a": 3, "b": 4}], None]
    table = pa.table({"x": pa.array(values, type=made), "y": pa.array([None, {"a": 1}, {}], type=inner)})
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert [row for _, row in read_rows(tmp_path / "a.arrow")] == [
        {"x": x, "y": y} for x, y in zip(values, (None, {"a": 1}, {}), strict=True)
    ]


def test_a_name_twice(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    for name, table, said in (
        ("a.parquet", pa.table([[1], [2]], names=["a", "a"]), "column 'a' appears twice; rename one of them"),
        (
            "a.arrow",
            pa.table({"b": pa.array([[{"c": 1}]]), "d": struct}),
            "key 'a' of 'd' appears twice; rename one of them",
        ),
    ):
        if name.endswith("parquet"):
            parquet.write_table(table, tmp_path / name)
        else:
            with ipc.new_file(tmp_path / name, table.schema) as writer:
                writer.write_table(table)
        with pytest.raises(UsageError) as caught:
            list(read_rows(tmp_path / name))
        assert str(caught.value) == f"{tmp_path / name}: {said}"


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    class Rows(list[Any]):
        features = None

    filled = Rows([{"tools": [{"name": "f", "x": None, "enum": [None]}], "system": None}])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: filled))
    monkeypatch.setattr(hub_access.HubName, "problem", lambda self, where="": None)
    spec = DatasetSpec(name="o/n", path=None, hub_id="o/n")
    assert [row for _, row in read_dataset(spec, streaming=streaming)] == [
        {"tools": [{"name": "f", "enum": [None]}], "system": None}
    ]
