"""Trains by TRL's own trainers; run by its Python: OPTIONS.

TRL's command line has no way to begin with a saved adapter in every stage, hence this script. Options: ``stage``,
``model``, ``adapter`` (its weights go into TRL's own fresh adapter), ``data`` and ``arguments`` of the configuration.
"""

import json
import sys
from pathlib import Path

import trl
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoTokenizer

TRAINERS = {
    "sft": ("SFTTrainer", "SFTConfig"),
    "pt": ("SFTTrainer", "SFTConfig"),
    "dpo": ("DPOTrainer", "DPOConfig"),
    "rm": ("RewardTrainer", "RewardConfig"),
    "kto": ("KTOTrainer", "KTOConfig"),
}
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def instruction(row):
    question = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def preference(row):
    def message(turn):
        return {"role": ROLES[turn["from"]], "content": turn["value"]}

    prompt = [message(turn) for turn in row["conversations"]]
    return {"prompt": prompt, "chosen": [message(row["chosen"])], "rejected": [message(row["rejected"])]}


def feedback(row):
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "label": row["label"]}


ROWS = {"sft": instruction, "pt": dict, "dpo": preference, "rm": preference, "kto": feedback}


def main():
    options = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    stage, folder = options["stage"], options["adapter"]
    rows = [ROWS[stage](row) for row in json.loads(Path(options["data"]).read_text("utf-8"))]
    trainer, config = (getattr(trl, name) for name in TRAINERS[stage])
    arguments = config(output_dir=options["output_dir"], **options["arguments"])
    adapter = LoraConfig.from_pretrained(folder) if folder else None
    if adapter:
        adapter.inference_mode = False  # peft saves it as True, and freezes a fresh adapter that has it
    trained = trainer(
        model=options["model"],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options["model"]),
        peft_config=adapter,
    )
    if folder:
        found = set_peft_model_state_dict(trained.model, load_file(Path(folder) / "adapter_model.safetensors"))
        assert not found.unexpected_keys, found.unexpected_keys
    trained.train()


main()
