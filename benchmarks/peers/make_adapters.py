"""Writes the adapters that every program begins with; run by LLaMA-Factory's Python: MODEL FOLDER.

``lora`` is of rank 8 on all linear layers, its second matrices 0, with a reward head beside it as LLaMA-Factory reads
one; ``score`` is the same for a sequence-classification model, the same head in it.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save(kind, task, model, folder):
    torch.manual_seed(0)
    loaded = kind.from_pretrained(model, **({"num_labels": 1} if task == "SEQ_CLS" else {}))
    config = LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, task_type=task)
    get_peft_model(loaded, config).save_pretrained(folder)
    return load_file(folder / "adapter_model.safetensors")


def main():
    model, folder = sys.argv[1], Path(sys.argv[2])
    adapter = save(AutoModelForCausalLM, "CAUSAL_LM", model, folder / "lora")
    scored = save(AutoModelForSequenceClassification, "SEQ_CLS", model, folder / "score")
    heads = sorted(set(scored) - set(adapter))
    assert heads == ["base_model.model.score.weight"], heads
    assert set(adapter) < set(scored)
    head = scored[heads[0]]
    save_file(adapter | {heads[0]: head}, folder / "score" / "adapter_model.safetensors", {"format": "pt"})
    values = {"v_head.summary.weight": head.clone(), "v_head.summary.bias": torch.zeros(1)}
    save_file(values, folder / "lora" / "value_head.safetensors", {"format": "pt"})


main()
