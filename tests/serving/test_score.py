"""Scores over HTTP against transformers' own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from ftcore.cli.model_arguments import ModelArguments
from ftcore.cli.serve import find_targets
from ftcore.inference.reward_models import scoring_stage
from ftcore.testing import tiny_tokenizer

from .conftest import running

TEXTS = (("hello", "world"), ("what is your name?", "my name is a tiny model."), ("你好", "一"))


def conversations() -> list[dict[str, Any]]:
    pairs = [({"role": "user", "content": asked}, {"role": "assistant", "content": said}) for asked, said in TEXTS]
    return [{"messages": list(pair)} for pair in pairs]


@pytest.fixture(scope="module")
def reward(reward_dir: Path, targets: Any, built_in: Any) -> Any:
    """A server of it."""
    words = (f"stage={scoring_stage(built_in)}", "cutoff_len=64")
    with running(targets(*words, model=reward_dir)) as found:
        yield found


def test_scores_are_transformers_own(reward: Any, reward_dir: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    asked = {"model": "tiny", "conversations": conversations()}
    found = httpx.post(f"{reward.url}/v1/score", json=asked, timeout=60).json()
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(reward_dir).eval(), tiny_tokenizer()
    lengths = []
    for index, (one, given) in enumerate(zip(found["data"], conversations(), strict=True)):
        ids = tokenizer.apply_chat_template(given["messages"], return_dict=False)
        own = model(torch.tensor([ids])).logits.item()
        assert one == {"object": "score", "index": index, "score": pytest.approx(own, abs=1e-5), "tokens": len(ids)}
        lengths.append(len(ids))
    assert (found["object"], found["model"]) == ("list", "tiny")
    assert found["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}
    assert reward.settled() == 0


def test_what_cannot_be_scored_is_refused(reward: Any, tiny: Any) -> None:
    long = {"messages": [{"role": "user", "content": "dog " * 100}, {"role": "assistant", "content": "x"}]}
    unanswered = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    asked = {"model": "tiny", "conversations": [conversations()[0], long, unanswered]}
    found = httpx.post(f"{reward.url}/v1/score", json=asked, timeout=60)
    assert found.status_code == 400
    first, second = found.json()["error"]["message"].split("; conversations")
    assert first.startswith("conversations.1: ")
    assert "cutoff_len is 64" in first
    assert second == ".2: the last turn is not the assistant's: there is nothing to score"
    assert reward.settled() == 0


def test_the_command_finds_the_stage_that_scores(reward_dir: Path) -> None:
    words = ModelArguments(
        file=None, overrides=["infer_dtype=float32"], model=str(reward_dir), adapters=(), force=False
    )
    (target,) = find_targets(words, {}, score=True).values()
    assert target.plan.stage.component.head == "sequence_classification"


def test_each_model_says_what_it_does(reward: Any, tiny: Any) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    found = httpx.post(f"{reward.url}/v1/chat/completions", json=chat)
    assert (found.status_code, found.json()["error"]["message"]) == (
        400,
        "model tiny is a reward model; use /v1/score",
    )
    found = httpx.post(f"{tiny.url}/v1/score", json={"model": "tiny", "conversations": conversations()})
    assert found.json()["error"]["message"] == "model tiny is not a reward model; use /v1/chat/completions"
