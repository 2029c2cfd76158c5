"""What is measured: one `Work` for each set of rows that are trained in one way, with the peers that do the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SHARED: Mapping[str, Any] = {
    "do_train": True,
    "dataset": "rows",
    "cutoff_len": 1024,
    "disable_shuffling": True,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "overwrite_output_dir": True,
    "bf16": False,
}
"""Options of ft and LLaMA-Factory."""
LORA = {"finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_target": "all"}
CHECKPOINTED, FASTEST = 1.15, 0.6
"""What ft's peak memory may be of a peer's that recomputes activations, and of one that keeps them."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a work is held against.

    Args:
        name: for the table.
        program: ``llamafactory`` or ``trl``.
        targets: for each span of the work the ratio that is aimed at.
        memory: the most that ft's peak memory may be of this peer's.
        options: beside the work's; for TRL the fields of its configuration.
        scale: by what its loss and gradient norm are multiplied before they are compared, where its mean is another.
    """

    name: str
    program: str
    targets: Mapping[str, float]
    memory: float
    options: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows that ft and its peers train on, by turns.

    Args:
        name: what ``WORK=`` selects.
        title: for the table.
        stage: of both programs.
        data: which of the data folder's datasets the rows are drawn from.
        batch: rows in an optimizer step; with ``texts`` packs of 1,024 tokens.
        peers: in the order of their turns; ft comes last.
        options: of ft and LLaMA-Factory.
        kind: ``steps``; or what `special` measures: ``start``, ``preprocessing``, ``utilisation``.
        batches: different batches in an epoch.
        steps: optimizer steps: one epoch or more.
        spans: names and numbers of epochs, counted from when the trainer exists, with all that comes before the first
            step; empty for each step after the first, which warms up.
        start: the adapter to begin with, ``lora`` or ``score``; None for none.
        packs: the rows are chosen so that they fill so many packs; None for any rows.
        texts: the rows are texts, which are packed in their order.
        turns: how often, unless ``--turns`` says it.
        seconds: what a turn takes on two quiet cores, for the time left.
    """

    name: str
    title: str
    stage: str
    data: str
    batch: int
    peers: tuple[Peer, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "steps"
    batches: int = 1
    steps: int = 3
    spans: Mapping[str, int] = field(default_factory=dict)
    start: str | None = None
    packs: int | None = None
    texts: bool = False
    turns: int = 2
    seconds: int = 200


def _llamafactory(memory: float = CHECKPOINTED, note: str = "as its examples set it", **targets: float) -> Peer:
    options = {} if memory == CHECKPOINTED else {"disable_gradient_checkpointing": True}
    named = {name.replace("_", " "): ratio for name, ratio in targets.items()}
    return Peer(
        name=f"LLaMA-Factory 0.9.5, {note}", program="llamafactory", targets=named, memory=memory, options=options
    )


def _trl(note: str, memory: float = CHECKPOINTED, options: Mapping[str, Any] | None = None, **targets: float) -> Peer:
    kept = {} if memory == CHECKPOINTED else {"gradient_checkpointing": False}
    named = {name.replace("_", " "): ratio for name, ratio in targets.items()}
    return Peer(
        name=f"TRL 1.16, {note}", program="trl", targets=named, memory=memory, options={**kept, **(options or {})}
    )


OFF = "gradient checkpointing off"
DEFAULTS = "defaults but float32"
EPOCHS = {"one epoch": 1, "three epochs": 3}
SFT = Work(
    name="sft",
    title="sft lora, batch 8",
    stage="sft",
    data="alpaca_en_demo",
    batch=8,
    options=LORA,
    start="lora",
    steps=4,
    seconds=615,
    peers=(
        _llamafactory(step=4.0),
        _llamafactory(FASTEST, OFF, step=2.8),
        _trl(DEFAULTS, step=4.2),
    ),
)
PACKED = replace(
    SFT,
    name="packed",
    title="sft lora, 10 rows that fill two packs",
    batch=10,
    packs=2,
    steps=3,
    seconds=150,
    peers=(
        _trl(
            "bfd packing, gradient checkpointing off",
            FASTEST,
            {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
            step=1.3,
        ),
    ),
)
DPO = Work(
    name="dpo",
    title="dpo lora, batch 2",
    stage="dpo",
    data="dpo_en_demo",
    batch=2,
    options={**LORA, "pref_beta": 0.1, "pref_loss": "sigmoid"},
    start="lora",
    batches=4,
    steps=4,
    spans=EPOCHS,
    seconds=380,
    peers=(
        _llamafactory(one_epoch=3.0, three_epochs=4.0),
        _trl(
            "float32, precompute_ref_log_probs, gradient checkpointing off",
            FASTEST,
            {"precompute_ref_log_probs": True},
            one_epoch=2.0,
            three_epochs=2.0,
        ),
    ),
)
WORKS = (
    SFT,
    PACKED,
    DPO,
    replace(
        DPO,
        name="rm",
        title="rm lora, batch 2",
        stage="rm",
        options=LORA,
        start="score",
        batches=1,
        steps=3,
        spans={},
        seconds=220,
        peers=(_llamafactory(step=3.0), _trl(DEFAULTS, step=3.0)),
    ),
    replace(
        DPO,
        name="kto",
        title="kto lora, batch 4",
        stage="kto",
        data="kto_en_demo",
        batch=4,
        batches=1,  # the programs pair answers with other prompts' by rules of their own, which agree within one batch
        steps=1,
        options={**LORA, "pref_beta": 0.1},
        seconds=200,
        peers=(
            _llamafactory(one_epoch=2.5, three_epochs=2.5),
            _trl(DEFAULTS, one_epoch=2.5, three_epochs=2.5),
        ),
    ),
    replace(
        SFT,
        name="freeze",
        title="sft freeze, last 2 layers, batch 8",
        options={"finetuning_type": "freeze", "freeze_trainable_layers": 2},
        start=None,
        batches=2,
        steps=4,
        spans={"three epochs": 3, "ten epochs": 10},
        seconds=110,
        peers=(_llamafactory(three_epochs=4.0, ten_epochs=6.0),),
    ),
    replace(
        SFT,
        name="full",
        title="sft full, batch 8",
        options={"finetuning_type": "full"},
        start=None,
        steps=2,
        seconds=210,
        peers=(_llamafactory(step=2.5), _trl(DEFAULTS, step=2.5)),
    ),
    replace(
        SFT,
        name="pt",
        title="pt lora, packs of 1,024",
        stage="pt",
        data="c4_demo",
        batch=1,
        options={**LORA, "packing": True},
        texts=True,
        steps=3,
        seconds=140,
        peers=(
            # it takes one off when it packs; and its mean counts the pack's first token, which nothing predicts
            replace(_llamafactory(step=1.4), options={"cutoff_len": 1025}, scale=1024 / 1023),
            _trl(
                "packed, gradient checkpointing off",
                FASTEST,
                {"packing": True, "packing_strategy": "wrapped"},
                step=1.15,
            ),
        ),
    ),
    replace(
        SFT,
        name="qlora",
        title="sft qlora, 4 bits, batch 8",
        options={**LORA, "quantization_bit": 4},
        steps=2,
        seconds=110,
        peers=(_llamafactory(step=5.0),),
    ),
    replace(
        SFT,
        name="start",
        title="from the shell to the first step, data cached",
        kind="start",
        batch=1,
        steps=1,
        turns=3,
        seconds=45,
        peers=(_llamafactory(start=1 / 0.7),),
    ),
    replace(
        SFT,
        name="preprocessing",
        title="preprocessing, 20,000 rows, 2 workers",
        kind="preprocessing",
        batch=1,
        steps=1,
        options={**LORA, "preprocessing_num_workers": 2},
        seconds=120,
        peers=(_llamafactory(rows=3.0),),
    ),
    replace(
        PACKED,
        name="utilisation",
        title="utilisation, sft lora, rows of two packs",
        kind="utilisation",
        seconds=60,
        peers=(),
    ),
)
"""Most important first."""
OWN: Mapping[str, Mapping[str, Any]] = {"pt": {"isolate_documents": False}}
"""Options of ft alone: the peers' texts see those before them in a pack."""
