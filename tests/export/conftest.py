"""A tiny model and an adapter whose change is large enough to be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def adapter_of(tmp_path: Path) -> Callable[..., Path]:
    """``adapter_of(base, name="adapter", **config)``: saves a random peft adapter and returns its folder."""

    def make(base: Path, name: str = "adapter", seed: int = 1, **config: Any) -> Path:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        fields = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(fields | config)))
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.requires_grad:
                    tensor.add_(torch.randn_like(tensor) * 0.1)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def logits_of() -> Callable[..., torch.Tensor]:
    """``logits_of(model)``: on fixed tokens."""

    def compute(model: Any) -> torch.Tensor:
        ids = torch.arange(3, 43)[None]
        with torch.no_grad():
            return model.eval()(input_ids=ids.to(model.device)).logits.float()

    return compute
