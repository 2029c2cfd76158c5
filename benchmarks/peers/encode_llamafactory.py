"""Prints each row's tokens as LLaMA-Factory makes them, as JSON lines; run by its Python: OPTIONS."""

import json
import sys

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

SIDES = {"sft": ("",), "rm": ("chosen_", "rejected_"), "dpo": ("chosen_", "rejected_"), "kto": ("",)}


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:  # noqa: PTH123
        options = json.load(stream)
    stage = options["stage"]
    model, data, training, _, _ = get_train_args(options)
    module = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data)
    rows = get_dataset(template, model, data, training, stage="rm" if stage == "dpo" else stage, **module)
    with open(sys.argv[2], "w", encoding="utf-8") as stream:  # noqa: PTH123
        for number, row in enumerate(rows["train_dataset"]):
            sides = []
            for side in SIDES[stage]:
                ids, labels = row[side + "input_ids"], row[side + "labels"]
                sides.append([ids, [int(label != -100) for label in labels]])
            stream.write(json.dumps([number, sides]) + "\n")


main()
