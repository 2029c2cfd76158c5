"""Scores of a reward model against transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ftcore.api.samples import Chat, Message
from ftcore.cli.generate import command
from ftcore.errors import UsageError
from ftcore.inference.reward_models import scoring_stage
from ftcore.inference.target import find_target
from ftcore.testing import tiny_tokenizer

CHATS = [
    Chat((Message("user", question), Message("assistant", answer)))
    for question, answer in (("hello", "world"), ("what is your name?", "my name is a tiny model."), ("你好", "一"))
]


def target(folder: Path, plugins: Any, *overrides: str) -> Any:
    words = [f"stage={scoring_stage(plugins)}", "infer_dtype=float32", *overrides]
    return find_target(None, model=str(folder), overrides=words, plugins=plugins)


def judge(folder: Path, plugins: Any, *overrides: str) -> Any:
    return target(folder, plugins, *overrides).judge()


@pytest.mark.parametrize("size", [1, 8])
def test_scores_are_transformers_own(reward_dir: Path, built_in: Any, size: int) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    ours = judge(reward_dir, built_in, f"per_device_eval_batch_size={size}")
    read = ours.read(CHATS)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(reward_dir).eval(), tiny_tokenizer()
    expected = [tokenizer.apply_chat_template([m.as_dict() for m in c.messages], return_dict=False) for c in CHATS]
    assert read == expected
    own = [model(torch.tensor([ids])).logits.item() for ids in expected]
    assert len({round(score, 3) for score in own}) == 3
    assert ours.score(read) == pytest.approx(own, abs=1e-5)


def test_what_cannot_be_scored_is_refused(reward_dir: Path, tiny_model_dir: Path, built_in: Any) -> None:
    ours = judge(reward_dir, built_in, "cutoff_len=16")
    with pytest.raises(UsageError) as error:
        ours.read([*CHATS[:2], Chat((Message("user", "hello"),))], ["a:1", "a:2", "b:1"])
    assert str(error.value).splitlines() == [
        f"a:2: {len(judge(reward_dir, built_in).read(CHATS)[1])} tokens, cutoff_len is 16; "
        "raise cutoff_len, or shorten it",
        "b:1: the last turn is not the assistant's: there is nothing to score",
    ]
    with pytest.raises(UsageError, match="conversation 1: the last turn"):
        ours.read([Chat((Message("user", "hello"),))])


def test_a_model_without_a_trained_head_is_refused_before_anything_loads(
    tiny_model_dir: Path, built_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ft_plugins.engines.transformers import engine

    monkeypatch.setattr(engine, "load_adapted", None)
    with pytest.raises(UsageError) as error:
        judge(tiny_model_dir, built_in)
    assert str(error.value) == (
        f"command line: {tiny_model_dir} has no reward head: its class is LlamaForCausalLM; "
        f"write the output folder of stage rm"
    )
    (tmp_path / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    with pytest.raises(UsageError, match="has no reward head: its task_type is CAUSAL_LM"):
        judge(tiny_model_dir, built_in, f"adapter_name_or_path={tmp_path}")
    answering = find_target(None, model=str(tiny_model_dir), overrides=["stage=sft"], plugins=built_in)
    with pytest.raises(UsageError, match="stage sft does not train a reward model"):
        answering.judge()


def test_the_command_writes_what_the_judge_says(reward_dir: Path, built_in: Any, tmp_path: Path) -> None:
    rows = [{"id": n, "messages": [turn.as_dict() for turn in chat.messages]} for n, chat in enumerate(CHATS)]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", str(reward_dir), "infer_dtype=float32", "--score", "--input", str(source)]
    ours = judge(reward_dir, built_in)
    read = ours.read(CHATS)
    scores = ours.score(read)
    lines = [
        json.dumps({**row, "score": score, "tokens": len(ids)}, ensure_ascii=False)
        for row, ids, score in zip(rows, read, scores, strict=True)
    ]

    def run(*more: str) -> Any:
        result = CliRunner().invoke(command, [*words, *more], catch_exceptions=False)
        assert result.exit_code == 0
        return result

    result = run("--output", str(output))
    assert (result.stdout, result.stderr) == ("", f"3 scores written to {output}\n")
    assert output.read_text(encoding="utf-8").splitlines() == lines
    assert run("--json").stdout.splitlines() == lines
    assert run().stdout == "".join(f"{n}  {score:.6f}\n" for n, score in enumerate(scores, start=1))


def test_the_command_refuses(reward_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    words = ["--model", str(reward_dir), "--score"]
    for more in (
        [],
        ["--input", str(source), "--prompt", "x"],
        ["--input", str(source), "--seed", "1"],
        ["--input", str(source), "--dataset", "x"],
    ):
        with pytest.raises(UsageError, match="--score cannot be combined with --prompt, --dataset, --system or --seed"):
            CliRunner().invoke(command, [*words, *more], catch_exceptions=False)
    source.write_text("\n" + json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    with pytest.raises(UsageError, match=r"in\.jsonl:2: the last turn is not the assistant's"):
        CliRunner().invoke(command, [*words, "--input", str(source)], catch_exceptions=False)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_scores_are_those_of_the_stages_own_evaluation(
    method: str, tiny_model_dir: Path, built_in: Any, tmp_path: Path
) -> None:
    """From rows to ``eval_rewards/chosen`` and ``rejected`` by a run of stage rm, and by what it left."""
    from ftcore.config.planner import make_plan
    from ftcore.runner.run import run

    words = "the quick brown fox jumps over the lazy dog".split()
    pairs = [
        {"instruction": f"{n} what?", "chosen": " ".join(words[: 2 + n]), "rejected": " ".join(words[n:])}
        for n in range(6)
    ]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({name: {"file_name": f"{name}.json", "ranking": True} for name in ("train", "eval")})
    )
    values = {"model_name_or_path": str(tiny_model_dir), "stage": "rm", "finetuning_type": method, "bf16": False}
    values |= {"dataset": "train", "eval_dataset": "eval", "dataset_dir": str(tmp_path), "do_train": True}
    values |= {"output_dir": str(tmp_path / "rm"), "max_steps": 3, "learning_rate": 1e-2, "template": "chatml"}
    values |= {"do_eval": True, "save_strategy": "no", "plot_loss": False}
    assert run(make_plan(None, values=values, plugins=built_in)) == 0
    metrics = json.loads((tmp_path / "rm" / "all_results.json").read_text())
    named = {"adapters": [str(tmp_path / "rm")]} if method == "lora" else {"model": str(tmp_path / "rm")}
    stage = f"stage={scoring_stage(built_in)}"
    ours = find_target(None, overrides=[stage, "infer_dtype=float32"], plugins=built_in, **named).judge()
    for side in ("chosen", "rejected"):
        chats = [Chat((Message("user", row["instruction"]), Message("assistant", row[side]))) for row in pairs]
        scores = ours.score(ours.read(chats))
        assert sum(scores) / 6 == pytest.approx(metrics[f"eval_rewards/{side}"], abs=1e-5)
    assert metrics["eval_rewards/chosen"] != pytest.approx(metrics["eval_rewards/rejected"], abs=1e-3)
