"""A tokenizer that has every special token of the built-in templates, and plans made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ft_plugins.formats
import ft_plugins.templates
from ftcore.api.components import ChatTemplate
from ftcore.api.option_groups import DataOptions, TrainingOptions
from ftcore.api.plan import Plan
from ftcore.api.registry import Candidate, load
from ftcore.data.sources.resolve import resolve
from ftcore.testing import tiny_tokenizer

TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[gMASK]",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|im_end|>",
)


class HandMadePlan(SimpleNamespace):
    """What the data layer reads of a plan."""

    where = Plan.where


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE; ``<tool_call>`` is an added token that is not special, as in Qwen's tokenizer."""
    made = tiny_tokenizer(TOKENS)
    made.bos_token = "<|begin_of_text|>"
    made.add_tokens(["<tool_call>", "</tool_call>"])
    return made


@pytest.fixture
def make_plan(tmp_path: Path) -> Any:
    """``make_plan(datasets, template="chatml", samples="Chat", **options)``: what the data layer reads of a plan."""

    def make(
        dataset: str,
        *,
        eval_dataset: str = "",
        template: str | None = "chatml",
        samples: str = "Chat",
        stage: str = "train",
        packs: bool | None = False,
        **options: Any,
    ) -> Any:
        options = {"dataset_dir": str(tmp_path)} | options
        modules = {"formats": ft_plugins.formats, "templates": ft_plugins.templates}
        plugins = load([Candidate("ftcore", "0", name, lambda m=module: m) for name, module in modules.items()])
        data = DataOptions.model_validate({k: v for k, v in options.items() if k in DataOptions.model_fields})
        training = TrainingOptions.model_validate(
            {k: v for k, v in options.items() if k in TrainingOptions.model_fields}
        )
        train, problems = resolve(_names(dataset), dataset_dir=tmp_path)
        held_out, more = resolve(_names(eval_dataset), dataset_dir=tmp_path, evaluation=True)
        assert problems == more == []
        chosen = SimpleNamespace(component=plugins.find(ChatTemplate, template).component) if template else None
        return HandMadePlan(
            file="run.yaml",
            data=data,
            training=training,
            template=chosen,
            stage=SimpleNamespace(
                component=SimpleNamespace(
                    name=stage,
                    samples=(samples,),
                    packs_by_default=packs,
                    supports_streaming=True,
                    supports_images=False,
                )
            ),
            options={},
            source=None,
            config={},
            model=SimpleNamespace(model_name_or_path="none", model_revision="main", cache_dir=None),
            plugins=plugins,
            datasets=train,
            eval_datasets=held_out,
        )

    return make


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
