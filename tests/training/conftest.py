"""Runs in memory, over rows of random tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ftcore.api.plan import Plan
from ftcore.api.registry import Plugins
from ftcore.api.samples import Place
from ftcore.config.planner import make_plan


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models of 100,000 parameters lose to thread switching, 20-fold where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tokens:
    """Rows of tokens as `ftcore.data.datasets.token_dataset.TokenDataset` has them, from lists."""

    def __init__(self, rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]) -> None:
        self.rows = [np.array(row, dtype=np.int32) for row in rows]
        self.weights = [np.array(row, dtype=np.float32) for row in weights]
        self.places = [Place("rows.jsonl", number + 1, number + 1) for number in range(len(rows))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"input_ids": self.rows[index], "weights": self.weights[index], "index": index}


@pytest.fixture
def tokens() -> Callable[..., Tokens]:
    """``tokens(lengths, vocabulary=...)``: random rows; every third token or so is not trained, row 2 not at all."""

    def make(lengths: Sequence[int], vocabulary: int = 400, seed: int = 0, untrained: Sequence[int] = (2,)) -> Tokens:
        random = np.random.default_rng(seed)
        rows = [random.integers(3, vocabulary, length).tolist() for length in lengths]
        weights = [(random.random(length) < 0.7).astype(float).tolist() for length in lengths]
        for row in untrained:
            if row < len(weights):
                weights[row] = [0.0] * lengths[row]
        return Tokens(rows, weights)

    return make


@pytest.fixture
def plan_of(tiny_model_dir: Path, tmp_path: Path, built_in: Plugins) -> Callable[..., Plan]:
    """``plan_of(finetuning_type="full", ...)``: a plan over the tiny model."""

    def make(**values: Any) -> Plan:
        base = {"model_name_or_path": str(tiny_model_dir), "output_dir": str(tmp_path / "out"), "save_strategy": "no"}
        base |= {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 1, "max_steps": 3}
        return make_plan(None, plugins=built_in, values=base | values)

    return make


@pytest.fixture
def run_of(plan_of: Callable[..., Plan]) -> Callable[..., Any]:
    """``run_of(dtype=..., **options)``: a run whose model is loaded and has its method applied."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftcore.api.plan import Run

    def make(dtype: torch.dtype = torch.float32, **values: Any) -> Run:
        plan = plan_of(**values)
        model = AutoModelForCausalLM.from_pretrained(plan.model.model_name_or_path, dtype=dtype)
        model = plan.method.component.apply(plan, model).to(dtype)
        tokenizer = AutoTokenizer.from_pretrained(plan.model.model_name_or_path)
        return Run(plan=plan, tokenizer=tokenizer, model=model, data=None)

    return make


@pytest.fixture
def trainer_of(run_of: Callable[..., Any]) -> Callable[..., Any]:
    """``trainer_of(train, evaluation=None, **options)``."""
    from ft_plugins.stages.sft.objective import NextToken
    from ftcore.training.trainer import Trainer

    def make(train: Any, evaluation: Any = None, **values: Any) -> Trainer:
        return Trainer(run_of(**values), NextToken(), train=train, evaluation=evaluation)

    return make


@pytest.fixture
def stops_after() -> Callable[[int], Any]:
    """``stops_after(step)``: a callback that saves and ends a run there."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == self.step:
                control.should_save = control.should_training_stop = True

    return Stop


@pytest.fixture
def plain_loss() -> Callable[..., torch.Tensor]:
    """``plain_loss(model, rows)``: the weighted mean loss by padding, full logits and a Python loop; with gradients."""

    def loss(model: Any, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        longest = max(len(row["input_ids"]) for row in rows)
        ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row["input_ids"])] = torch.from_numpy(row["input_ids"].astype(np.int64))
            mask[number, : len(row["input_ids"])] = 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        total, weight = logits.new_zeros(()), 0.0
        for number, row in enumerate(rows):
            for place in range(1, len(row["input_ids"])):
                share = float(row["weights"][place])
                total = total - share * logits[number, place - 1].log_softmax(-1)[int(row["input_ids"][place])]
                weight += share
        return total / weight if weight else total

    return loss


@pytest.fixture
def small_models() -> Mapping[str, SimpleNamespace]:
    """Name -> (make, window): tiny models of several families, with weights large enough for their caps to bite."""
    import transformers as t

    shape = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.3}
    shape |= {"eos_token_id": 1, "bos_token_id": 2, "sliding_window": 5}
    caps = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    families: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llama": (t.LlamaConfig, t.LlamaForCausalLM, {}),
        "llama_tied": (t.LlamaConfig, t.LlamaForCausalLM, {"tie_word_embeddings": True}),
        "qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM, {"use_sliding_window": True, "layer_types": layers}),
        "qwen3": (t.Qwen3Config, t.Qwen3ForCausalLM, {}),
        "gemma2": (t.Gemma2Config, t.Gemma2ForCausalLM, caps | {"layer_types": layers}),
        "gemma3": (t.Gemma3TextConfig, t.Gemma3ForCausalLM, caps | {"layer_types": layers}),
        "mistral": (t.MistralConfig, t.MistralForCausalLM, {}),
        "gpt_oss": (t.GptOssConfig, t.GptOssForCausalLM, {"num_local_experts": 4, "layer_types": layers}),
        "cohere2": (t.Cohere2Config, t.Cohere2ForCausalLM, {"logit_scale": 0.3, "layer_types": layers}),
        "granite": (t.GraniteConfig, t.GraniteForCausalLM, {"logits_scaling": 4.0}),
        "bloom": (t.BloomConfig, t.BloomForCausalLM, {"n_head": 4, "n_layer": 2}),
    }

    def maker(config: Any, model: Any, extra: Mapping[str, Any]) -> Callable[..., Any]:
        def make(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return model(config(**(shape | extra))).to(dtype)

        return make

    return {name: SimpleNamespace(make=maker(*parts)) for name, parts in families.items()}


@pytest.fixture
def gradient_norm() -> Callable[[Any], float]:
    """``gradient_norm(model)``: over all parameters that have a gradient."""

    def norm(model: Any) -> float:
        squares = (
            tensor.grad.double().square().sum().item() for tensor in model.parameters() if tensor.grad is not None
        )
        return math.sqrt(sum(squares))

    return norm
