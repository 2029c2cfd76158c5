"""ft generate: prompts from everywhere, answers to everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ftcore.api.inference_types import Prompt
from ftcore.api.samples import Message
from ftcore.cli.generate import command
from ftcore.errors import UsageError
from ftcore.inference.answers import Answer, collect
from ftcore.inference.target import find_target

GREEDY = ("do_sample=false", "max_new_tokens=8")


@pytest.fixture
def generate(tiny_model_dir: Path) -> Callable[..., Result]:
    """``generate("--prompt", "hello", ...)``, with the tiny model."""

    def run(*words: Any, text: str = "") -> Result:
        arguments = ["--model", str(tiny_model_dir), *map(str, words)]
        result = CliRunner().invoke(command, arguments, input=text)
        if result.exception is not None:
            raise result.exception
        assert result.exit_code == 0
        return result

    return run


@pytest.fixture(scope="module")
def answer(tiny_model_dir: Path) -> Callable[..., Answer]:
    """``answer("user's text")``."""
    generator = find_target(None, model=str(tiny_model_dir), overrides=GREEDY).load()

    def run(text: str, system: str | None = None, **settings: Any) -> Answer:
        head = (Message("system", system),) if system is not None else ()
        return collect(generator.stream([Prompt((*head, Message("user", text)), settings=settings)]), 1)[0]

    return run


def line(found: Answer, **row: Any) -> dict[str, Any]:
    tokens = {"finish": found.finish, "prompt_tokens": found.prompt_tokens, "tokens": found.tokens}
    return {**row, "answer": found.text, **tokens}


def test_one_prompt_is_its_answer_alone(generate: Any, answer: Any) -> None:
    assert generate("--prompt", "hello", *GREEDY).stdout == answer("hello").text + "\n"
    assert generate(*GREEDY, text="hello\n").stdout == answer("hello").text + "\n"
    brief = answer("hello", system="be brief").text
    assert generate("--prompt", "hello", "--system", "be brief", *GREEDY).stdout == brief + "\n"


def test_several_prompts_are_numbered(generate: Any, answer: Any) -> None:
    result = generate("--prompt", "hello", "--prompt", "one two", *GREEDY)
    assert result.stdout == f"── 1\n{answer('hello').text}\n── 2\n{answer('one two').text}\n"


def test_json_lines(generate: Any, answer: Any) -> None:
    lines = generate("--prompt", "hello", "--prompt", "one two", "--json", *GREEDY).stdout.splitlines()
    assert [json.loads(text) for text in lines] == [
        line(answer("hello"), prompt="hello"),
        line(answer("one two"), prompt="one two"),
    ]


def test_a_file_of_prompts_in_a_file_of_answers(generate: Any, answer: Any, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "dog " * 40, "id": 7},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]},
        {"prompt": "hello", "settings": {"max_new_tokens": 3}},
        {"prompt": "hello", "system": "be brief"},
    ]
    source.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    result = generate("--input", source, "--output", output, *GREEDY)
    assert (result.stdout, result.stderr) == ("", f"4 answers written to {output}\n")
    expected = [
        answer("dog " * 40),
        answer("hello", system="x"),
        answer("hello", max_new_tokens=3),
        answer("hello", system="be brief"),
    ]
    written = [json.loads(text) for text in output.read_text(encoding="utf-8").splitlines()]
    assert written == [line(found, **row) for found, row in zip(expected, rows, strict=True)]

    with pytest.raises(UsageError) as error:
        generate("--input", source, "--output", output, *GREEDY)
    assert str(error.value) == f"--output: {output} exists already; write another name, or --overwrite"
    assert not (tmp_path / "out.jsonl.partial").exists()
    generate("--prompt", "hello", "--output", output, "--overwrite", *GREEDY)
    assert json.loads(output.read_text(encoding="utf-8")) == line(answer("hello"), prompt="hello")


def test_sampling_repeats(generate: Any) -> None:
    words = ("--prompt", "hello", "--prompt", "hello", "temperature=1.5", "max_new_tokens=12")
    once = generate(*words).stdout
    assert generate(*words).stdout == once
    assert generate(*words, "--seed", 43).stdout != once
    assert generate(*words, "seed=43").stdout == generate(*words, "--seed", 43).stdout


BAD = [
    ("{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ("[]", 'a line must be an object, such as {"prompt": "..."}'),
    ("{}", "a row needs either prompt or messages"),
    ('{"prompt": 3}', "prompt must be str, not 3"),
    ('{"prompt": "a", "seed": true}', "seed must be int, not True"),
    ('{"prompt": "a", "settings": []}', "settings must be dict, not []"),
    (
        '{"prompt": "a", "settings": {"top_p": 2, "x": 1, "y": null}}',
        "settings: unknown generation setting 'x'; known: do_sample, temperature, top_p, top_k, num_beams, "
        "max_length, max_new_tokens, repetition_penalty, length_penalty, skip_special_tokens; "
        "top_p: input should be less than or equal to 1, found 2",
    ),
    ('{"prompt": "a", "tools": {}}', "tools must be a list of objects"),
    ('{"messages": []}', "messages must be a list of turns"),
    ('{"messages": [{"role": "human"}]}', "messages[0].role must be one of system, user, assistant, tool"),
    ('{"messages": [{"role": "user", "content": 3}]}', "messages[0].content must be str, not 3"),
    (
        '{"messages": [{"role": "assistant", "tool_calls": {}}]}',
        "messages[0].tool_calls must be a list of objects",
    ),
    (
        '{"messages": [{"role": "assistant", "content": "x"}]}',
        "the last turn is the assistant's: there is nothing to answer",
    ),
]


def test_every_bad_line_is_told(generate: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(text for text, _ in BAD))
    with pytest.raises(UsageError) as error:
        generate("--input", source)
    expected = [f"{source}:{number}: {message}" for number, (_, message) in enumerate(BAD, start=1)]
    assert str(error.value).splitlines() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n", "{}: the file has no rows"), (b"\xff", "{}: byte 0 is not UTF-8; save the file as UTF-8")],
)
def test_no_prompts(generate: Any, tmp_path: Path, content: bytes, message: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with pytest.raises(UsageError) as error:
        generate("--input", source)
    assert str(error.value) == message.format(source)


def test_what_cannot_be(generate: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        generate(text="")
    assert str(error.value) == "there is no prompt; write --prompt, --input, --dataset, or pipe one in"
    with pytest.raises(UsageError) as error:
        generate("--input", tmp_path / "none")
    assert str(error.value) == f"--input: {tmp_path}/none cannot be read: No such file or directory"
    with pytest.raises(UsageError) as error:
        generate("--prompt", "x", "--output", tmp_path / "no" / "out")
    assert str(error.value) == f"--output: the folder {tmp_path}/no does not exist"
    with pytest.raises(UsageError) as error:
        generate("--prompt", "x", "top_p=2", "do_sampel=1")
    assert len(str(error.value).splitlines()) == 2


def test_every_prompt_that_is_too_long_is_told_before_the_first_answer(generate: Any, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = ["hello", *["dog " * 600] * 2]
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with pytest.raises(UsageError) as error:
        generate("--input", source, "--output", output, "per_device_eval_batch_size=1")
    found = str(error.value).splitlines()
    assert [line.partition(": the prompt has ")[0] for line in found] == [f"{source}:2", f"{source}:3"]
    assert list(tmp_path.iterdir()) == [source]


DATASETS: dict[str, list[dict[str, Any]]] = {
    "instructions": [
        {"instruction": "hello", "output": "world", "system": "be brief"},
        {"instruction": "and?", "input": "this", "output": "that", "history": [["one", "two"]]},
    ],
    "talks": [
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "world"}]},
        {"conversations": [{"from": "human", "value": "one two"}]},
    ],
    "pairs": [{"instruction": "hello", "chosen": "good", "rejected": "bad"}],
    "marks": [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "x"}], "label": True}
    ],
}
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "instructions": [
        {"messages": [("system", "be brief"), ("user", "hello")], "label": "world"},
        {"messages": [("user", "one"), ("assistant", "two"), ("user", "and?\nthis")], "label": "that"},
    ],
    "talks": [{"messages": [("user", "hello")], "label": "world"}, {"messages": [("user", "one two")]}],
    "pairs": [{"messages": [("user", "hello")], "label": "good"}],
    "marks": [{"messages": [("user", "hello")], "label": "x"}],
}


@pytest.mark.parametrize("name", DATASETS)
def test_the_last_answers_of_a_dataset_anew(name: str, generate: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Every kind of row by its description, the prompts that the loaders make of it, and the answers to these."""
    lines = "".join(json.dumps(row) + "\n" for row in DATASETS[name])
    (tmp_path / f"{name}.jsonl").write_text(lines)
    info = {"file_name": f"{name}.jsonl"} | ({"formatting": "sharegpt"} if name == "talks" else {})
    (tmp_path / "dataset_info.json").write_text(json.dumps({name: info | {"ranking": name == "pairs"}}))
    output = tmp_path / "out.jsonl"
    words = (f"dataset_dir={tmp_path}", "on_bad_row=skip", "template=chatml", *GREEDY)
    result = generate("--dataset", name, "--output", output, *words)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    generator = find_target(None, model=str(tiny_model_dir), overrides=("template=chatml", *GREEDY)).load()
    for number, (row, expected) in enumerate(zip(found, QUESTIONS[name], strict=True), start=1):
        messages = tuple(Message(role, content) for role, content in expected["messages"])
        said = collect(generator.stream([Prompt(messages)]), 1)[0]
        head = {"place": f"{tmp_path}/{name}.jsonl:{number}", "messages": [each.as_dict() for each in messages]}
        assert row == line(said, **head, **{key: expected[key] for key in expected if key == "label"})
    left_out = [each for each in result.stderr.splitlines() if "left out" in each]
    assert left_out == []


def test_what_was_begun_with_another_model_or_otherwise_is_not_gone_on_with(
    generate: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A folder of the same name whose weights have changed, another option, another prompt."""
    import shutil

    from safetensors.torch import load_file, save_file

    from ftcore.inference.fingerprint import facts
    from ftcore.inference.resumable_output import open_partial, partial_of

    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    output = tmp_path / "out.jsonl"
    plan = find_target(None, model=str(model), overrides=["per_device_eval_batch_size=1", *GREEDY]).plan
    with open_partial(output, facts(plan, [1, 2]), 2, 1) as partial:
        partial.write(["{}"])
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError) as error:
        generate("--model", model, "--prompt", "a", "--prompt", "b", "--output", output, "do_sample=true")
    said = [line.partition(" was ")[0] for line in str(error.value).splitlines()]
    assert said[0].startswith(f"{partial_of(output)} cannot be resumed; undo the change, or remove")
    assert set(said[1:]) >= {"sha256 of the inputs", "sha256 of model.safetensors", "do_sample", "max_new_tokens"}
    assert {"sha256 of config.json", "temperature", "version of torch"}.isdisjoint(said)


def test_a_dataset_of_texts_has_no_prompts(generate: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("hello\n")
    with pytest.raises(UsageError, match=r"holds texts; stage 'ft generate' needs prompts, with or without an answer"):
        generate("--dataset", str(tmp_path / "texts.txt"))
    with pytest.raises(UsageError, match=r"--dataset: no dataset 'nowhere'"):
        generate("--dataset", "nowhere", f"dataset_dir={tmp_path}")


@pytest.mark.parametrize("row", [{"prompt": "{}q"}, {"messages": [{"role": "user", "content": "{}q"}]}])
@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_what_is_not_seen_is_refused(generate: Any, tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    source = tmp_path / "in.jsonl"
    asked = json.dumps(row).replace("{}", f"<{kind}>")
    files = [json.dumps(row | {key: "a"}) for key in (kind, f"{kind}s")]
    source.write_text("\n".join([json.dumps(row), asked, *files, json.dumps(row | {kind: None, f"{kind}s": []})]))
    with pytest.raises(UsageError) as error:
        generate("--input", source, *GREEDY)
    text = f"the text has <{kind}>, and the row has no {kind}s; remove the row or the placeholder; "
    assert [str(problem).replace(f"{source}:", "") for problem in error.value.problems] == [
        f'2: {text}if it is ordinary text, use --dataset with "columns": {{"{kind}s": ""}}',
        *(
            f'{line}: the row has {key}, and inference supports text only: "a"; remove such rows'
            for line, key in ((3, kind), (4, f"{kind}s"))
        ),
    ]


def test_a_tag_in_a_typed_prompt_is_text(generate: Any, answer: Any) -> None:
    assert generate("--prompt", "what does <video> do?", *GREEDY).stdout == answer("what does <video> do?").text + "\n"
