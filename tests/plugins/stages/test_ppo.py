"""ppo: terms against float64 by hand, no divergence at the start, resumes, and a task with a known optimum."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ft_plugins.methods.adapters import adapter_tensors
from ft_plugins.stages.ppo import losses
from ft_plugins.stages.ppo.objective import VALUE_FILE
from ftcore.config import memory_planning
from ftcore.config.planner import make_plan
from ftcore.errors import RunError, UsageError
from ftcore.runner.artifacts import manifest
from ftcore.testing import tiny_model
from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing.state import run_fingerprint
from ftcore.training.numerics import evaluating
from ftcore.utils.ownership import RUN_MANIFEST as MANIFEST

PROMPTS = [{"instruction": f"question {number}"} for number in range(8)]


def test_advantages_are_the_sums_of_the_paper() -> None:
    """Equation 11 written as the double sum that it is, in float64."""
    rewards, values = (
        torch.tensor([0.3, -0.1, 2.0], dtype=torch.float64),
        torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64),
    )
    gamma, decay = 0.9, 0.8
    following = [0.2, -0.4, 0.0]
    deltas = [float(rewards[t]) + gamma * following[t] - float(values[t]) for t in range(3)]
    expected = [sum((gamma * decay) ** (later - t) * deltas[later] for later in range(t, 3)) for t in range(3)]
    found, returns = losses.advantages(rewards, values, gamma, decay)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert returns.tolist() == pytest.approx([e + float(v) for e, v in zip(expected, values, strict=True)], rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "gain", "expected"), [(1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)]
)
def test_the_surrogate_is_clipped_where_it_would_gain(ratio: float, gain: float, expected: float) -> None:
    old = torch.tensor([-1.0], dtype=torch.float64)
    loss = losses.policy_losses(old + math.log(ratio), old, torch.tensor([gain], dtype=torch.float64), 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_other_terms() -> None:
    values = [torch.tensor([value], dtype=torch.float64) for value in (1.0, 0.5, 2.0)]
    assert losses.value_losses(*values, 0.2).item() == pytest.approx(0.5 * 1.3**2, rel=1e-12)
    logps, reference = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([-1.5, -1.0], dtype=torch.float64)
    assert losses.divergences(logps, reference, "k1").tolist() == [0.5, -1.0]
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]
    assert losses.divergences(logps, reference, "k3").tolist() == pytest.approx(k3, rel=1e-12)
    rewards = losses.token_rewards(torch.tensor([0.5, -1.0], dtype=torch.float64), 3.0, 0.2)
    assert rewards.tolist() == pytest.approx([-0.1, 3.2], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "freeze", "lora", "qlora"])
def test_it_begins_at_the_reference(method: str, ppo: Any, tmp_path: Path) -> None:
    """No divergence in the first rollout, to the bit; the saved model has no value head among its weights."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    trainer = ppo(finetuning_type=method, ppo_epochs=2, max_steps=3)
    trainer.train()
    lines = [line for line in read_log(tmp_path / "out" / "trainer_log.jsonl") if "kl" in line]
    assert [line["current_steps"] for line in lines] == [1, 3]
    assert lines[0]["kl"] == 0.0
    assert lines[1]["kl"] != 0.0
    assert lines[0]["clip_fraction"] == 0.0
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / VALUE_FILE).is_file()
    assert not [name for name in trainer.model.state_dict() if "value_head" in name]


def test_scores_are_plain_transformers(ppo: Any, scorer_dir: Path) -> None:
    """Of prompt, response and the line end that the template writes behind an answer."""
    from transformers import AutoModelForSequenceClassification

    trainer = ppo(bf16=False)
    end = trainer.tokenizer.eos_token_id
    line_end = trainer.tokenizer("\n")["input_ids"]
    prompts, responses = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13, end]]
    whole = [[*prompts[0], *responses[0]], [*prompts[1], *responses[1], *line_end]]
    model = AutoModelForSequenceClassification.from_pretrained(scorer_dir).eval()
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0, 0].item() for ids in whole]
        assert trainer.objective.score(prompts, responses).tolist() == pytest.approx(expected, rel=1e-4)


def swapped(folder: Path) -> None:
    """Two words of the tokenizer change numbers."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


def test_a_reward_model_that_reads_other_tokens_is_refused(ppo: Any, scorer_dir: Path) -> None:
    template = scorer_dir / "chat_template.jinja"
    before = template.read_text()
    template.write_text("{{ 'Hi' }}" + before)
    with pytest.raises(UsageError, match="different tokenizer or chat template: tokens of the same conversation"):
        ppo()
    template.write_text(before)
    swapped(scorer_dir)
    with pytest.raises(UsageError, match="different tokenizer: 2 tokens have other ids"):
        ppo()


def test_memory_counts_what_ppo_keeps(ppo: Any) -> None:
    """By config.json: two layers of keys and values for eight conversations, and three times their logits."""
    trainer = ppo(cutoff_len=30, max_new_tokens=10, per_device_eval_batch_size=8)
    config, terms = trainer.model.config, memory_planning.estimate_plan(trainer.plan).terms
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    rollout = 8 * 40 * config.num_hidden_layers * 2 * keys * 4 + 8 * config.vocab_size * 4 * 3
    assert terms["rollout"] == rollout
    assert terms["value head"] == (config.hidden_size + 1) * 16
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    base = sum(each.numel() for name, each in model.named_parameters() if "lora" not in name and "value" not in name)
    assert terms["reward model"] == pytest.approx(base * 4, rel=0.01)


@pytest.mark.slow
def test_the_best_checkpoint_has_its_value_head(ppo: Any, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "val_size": 3}
    trainer = ppo(max_steps=4, load_best_model_at_end=True, **options)
    trainer.objective.eval_loss = lambda dataset: float(trainer.state.global_step)  # the first is the best
    trainer.train()
    first, last = (load_file(tmp_path / "out" / f"checkpoint-{step}" / VALUE_FILE) for step in (2, 4))
    assert not torch.equal(first["weight"], last["weight"])
    assert torch.equal(trainer.objective.value_head.weight, first["weight"])


@pytest.fixture
def server() -> Iterator[Any]:
    """Answers each request with the next of ``replies``: a status and a body made of the texts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body)
            status, reply = found.replies.pop(0) if found.replies else (200, None)
            content = json.dumps({"scores": [float(len(text)) for text in body["texts"]]}) if reply is None else reply
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    found: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.replies = [], []
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def test_scores_by_http(ppo: Any, server: Any) -> None:
    """A failing server is asked again; what it is sent is prompt and answer with the control tokens."""
    server.replies = [(503, "busy")]
    address = f"http://127.0.0.1:{server.server_port}/score"
    trainer = ppo(reward_model=address, reward_model_type="api", max_steps=1)
    prompts, responses = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13, trainer.tokenizer.eos_token_id]]
    texts = [trainer.tokenizer.decode([*each[0], *each[1]]) for each in zip(prompts, responses, strict=True)]
    assert trainer.objective.score(prompts, responses).tolist() == [float(len(text)) for text in texts]
    assert server.asked == [{"texts": texts}] * 2
    assert texts[1].endswith(trainer.tokenizer.eos_token)
    trainer.train()
    assert trainer.state.log_history[0]["reward"] > 0
    for reply, said in ((400, "no such"), "HTTP 400 no such"), ((200, '{"scores": [1]}'), "2 numbers"):
        server.replies = [reply]
        with pytest.raises(RunError, match=said):
            trainer.objective.score(prompts, responses)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_chain_of_adapters(trainer_of: Any, moved: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The policy begins at stage sft's adapter; the reward model is the base with stage rm's, and nothing of sft's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folders = {stage: str(tmp_path / stage) for stage in ("sft", "rm")}
    for stage, rows in (("sft", [{"instruction": "a", "output": "b"}] * 8), ("rm", 8)):
        trainer = trainer_of(stage, rows, finetuning_type="lora")
        moved(trainer.model)
        trainer.save_model(folders[stage])
    options = {"adapter_name_or_path": folders["sft"], "reward_model": folders["rm"], "finetuning_type": "lora"}
    trainer = trainer_of("ppo", PROMPTS, **options, max_new_tokens=6, bf16=False)
    prompt, response = [5, 6, 7, 8], [11, 12]
    ids = torch.tensor([[*prompt, *response]])
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        score = PeftModel.from_pretrained(judge, folders["rm"]).eval()(ids).logits[0, 0].item()
        logits = PeftModel.from_pretrained(policy, folders["sft"]).eval()(ids).logits[0, 3:5].log_softmax(-1)
    assert trainer.objective.score([prompt], [response]).tolist() == pytest.approx([score], rel=1e-4)
    with evaluating(trainer.model):
        (row,) = trainer.objective._measured([prompt], [response], [0])
    expected = logits.gather(1, ids[0, 4:, None])[:, 0].tolist()
    assert row["old_logps"].tolist() == pytest.approx(expected, rel=1e-4)
    assert row["reference"].tolist() == row["old_logps"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "freeze", "lora", "qlora"])
def test_stopped_it_goes_on_to_the_same_bytes(method: str, ppo: Any, whole_and_parts: Any) -> None:
    """Within a block of steps on one rollout, and at a block's end; adaptive coefficient and normed scores too."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = {"finetuning_type": method, "max_steps": 7, "ppo_epochs": 2, "ppo_buffer_size": 2}
    options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "disable_shuffling": False}
    options |= {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "eval_strategy": "steps"}
    options |= {"eval_steps": 2, "val_size": 3, "ppo_score_norm": True, "ppo_whiten_rewards": True}
    options |= {"ppo_missing_eos_penalty": 1.0, "ppo_score_clip": 2.0, "ppo_kl_estimator": "k3"}
    found, parts = whole_and_parts(partial(ppo, **options), (3, 5))
    assert {VALUE_FILE, "progress.safetensors", "optimizer.safetensors"} <= found.keys()
    assert [line["current_steps"] for line in found["lines"] if "eval_reward" in line] == [2, 4, 6, 7]
    assert parts == found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("new", [False, True])
def test_a_reward_model_that_goes_on_from_answers(
    new: bool, trainer_of: Any, moved: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Stage rm trains sft's adapter further, or a new one on top; ppo scores by both together, as peft does."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    sft, rm = str(tmp_path / "sft"), tmp_path / "rm"
    trainer = trainer_of("sft", [{"instruction": "a", "output": "b"}] * 8, finetuning_type="lora")
    moved(trainer.model)
    trainer.save_model(sft)
    answers = load_file(Path(sft) / "adapter_model.safetensors")
    options = {"adapter_name_or_path": sft, "create_new_adapter": new, "finetuning_type": "lora", "bf16": False}
    trainer = trainer_of("rm", 8, **options)
    if not new:
        started = adapter_tensors(trainer.model)
        assert all(torch.equal(started[name], tensor) for name, tensor in answers.items())
    moved(trainer.model)
    trainer.save_model(str(rm))
    (rm / MANIFEST).write_text(json.dumps(manifest(trainer.plan, trainer.tokenizer, {})))
    torch.manual_seed(5)
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    if new:
        with torch.no_grad():
            for name in {name.rsplit(".lora_", 1)[0] for name in answers}:
                down, up = (answers[f"{name}.lora_{side}.weight"] for side in "AB")
                judge.get_submodule(name.removeprefix("base_model.model.")).weight += 2 * up @ down
    judge = PeftModel.from_pretrained(judge, rm).eval()
    ppo = trainer_of("ppo", PROMPTS, reward_model=str(rm), finetuning_type="lora", max_new_tokens=6, bf16=False)
    with torch.no_grad():
        expected = judge(torch.tensor([[5, 6, 7, 8, 11, 12]])).logits[0, 0].item()
    assert ppo.objective.score([[5, 6, 7, 8]], [[11, 12]]).tolist() == pytest.approx([expected], rel=1e-4)


def test_a_reward_model_without_a_head_is_refused(trainer_of: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    """It would score by random numbers."""
    trainer = trainer_of("sft", [{"instruction": "a", "output": "b"}] * 8, finetuning_type="lora")
    trainer.save_model(str(tmp_path / "sft"))
    values = {"model_name_or_path": str(tiny_model_dir), "stage": "ppo", "output_dir": str(tmp_path / "out")}
    found = []
    for more in (
        {"reward_model": str(tmp_path / "sft")},
        {"reward_model": "nowhere"},
        {"reward_model": str(tiny_model_dir), "reward_model_type": "full"},
        {"reward_model": str(tiny_model_dir), "reward_model_type": "full", "reward_model_adapters": "a"},
    ):
        with pytest.raises(UsageError) as caught:
            make_plan(None, values=values | more)
        found.append(str(caught.value))
    hint = "write the output_dir of an rm run: an adapter, or a whole model with reward_model_type: full"
    assert f"adapter {tmp_path / 'sft'} has no reward head: its task_type is CAUSAL_LM; {hint}" in found[0]
    assert "there is no adapter 'nowhere'; write a folder or a hub id" in found[1]
    assert f"reward_model {tiny_model_dir} has no reward head: its class is LlamaForCausalLM; {hint}" in found[2]
    assert "there is no adapter 'a'; write a folder or a hub id" in found[3]


def judged(trainer_of: Any, folder: Path, **options: Any) -> None:
    """What stage rm leaves: an adapter, and the manifest of its run."""
    trainer = trainer_of("rm", 8, finetuning_type="lora", **options)
    trainer.save_model(str(folder))
    noted = manifest(trainer.plan, trainer.tokenizer, {})
    (folder / MANIFEST).write_text(json.dumps(noted))


@pytest.mark.slow
def test_a_reward_adapter_of_another_base_is_refused(
    trainer_of: Any, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same shape: by content where its run's manifest has it, else by name, which may mislead."""
    other, rm = tiny_model(tmp_path / "other", seed=5), tmp_path / "rm"
    judged(trainer_of, rm)
    options: dict[str, Any] = {"reward_model": str(rm), "finetuning_type": "lora", "max_new_tokens": 6}
    reason = f"reward_model {rm} was trained on {tiny_model_dir}, whose weights differ from those of {other}"
    with pytest.raises(UsageError, match=reason):
        trainer_of("ppo", PROMPTS, **options, model_name_or_path=str(other))
    same = shutil.copytree(tiny_model_dir, tmp_path / "same")
    trainer_of("ppo", PROMPTS, **options, model_name_or_path=str(same))
    assert "base" not in caplog.text
    (rm / MANIFEST).unlink()
    trainer_of("ppo", PROMPTS, **options, model_name_or_path=str(other))
    assert f"reward_model {rm} names {tiny_model_dir} as its base model, and is loaded on {other}" in caplog.text


def test_a_head_that_was_not_in_the_files_is_refused(ppo: Any, scorer_dir: Path) -> None:
    """Its config.json says that it scores, or is not known before it is loaded."""
    file = scorer_dir / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != "score.weight"}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=f"reward_model {scorer_dir} has no reward head: its files lack score.weight"):
        ppo()


def test_another_reward_model_under_the_same_path_is_another_setting(ppo: Any, scorer_dir: Path) -> None:
    trainer = ppo()
    settings = [run_fingerprint(trainer.plan, trainer.tokenizer, trainer.train_dataset, 1)]
    file = scorer_dir / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    settings.append(run_fingerprint(trainer.plan, trainer.tokenizer, trainer.train_dataset, 1))
    (difference,) = settings[0].differences(settings[1])
    assert str(difference).startswith("reward_model files was ")
    assert "model.safetensors was" in str(difference)


def test_what_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    values = {"model_name_or_path": str(tiny_model_dir), "stage": "ppo", "output_dir": str(tmp_path / "out")}
    with pytest.raises(UsageError) as caught:
        make_plan(None, values=values | {"top_p": 0.9, "reward_model_adapters": "a", "max_length": 9})
    text = str(caught.value)
    for part in (
        "reward_model is missing",
        "top_p is 0.9",
        "reward_model_adapters applies",
        "max_length has no effect",
    ):
        assert part in text


@pytest.mark.slow
def test_it_reaches_a_known_optimum(ppo: Any) -> None:
    """The score is the share of tokens with even ids: 1 at best."""
    options = {"ppo_kl_coef": 0.0, "ppo_adaptive_kl": False, "max_steps": 240, "per_device_train_batch_size": 32}
    trainer = ppo(PROMPTS * 4, **options, finetuning_type="full", learning_rate=2e-3)
    trainer.objective.score = lambda prompts, responses: torch.tensor(
        [sum(token % 2 == 0 for token in response) / len(response) for response in responses], dtype=torch.float64
    )
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert rewards[0] < 0.7
    assert sum(rewards[-5:]) / 5 > 0.95
