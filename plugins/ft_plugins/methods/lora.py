"""Low-rank adapters, through peft, so that what is saved loads there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ft_plugins.methods.full import check_names
from ftcore.components import Method, OptionGroup
from ftcore.errors import Problem, UsageError
from ftcore.groups import Names

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ftcore.memory import Architecture
    from ftcore.plan import Plan

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoraOptions(OptionGroup):
    """Adapters' shape and place."""

    lora_rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the two matrices that stand in for a change of weight."""
    lora_alpha: Annotated[int, Field(ge=1)] | None = None
    """The change is scaled by ``lora_alpha / lora_rank``; unset, alpha is twice the rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input. Above 0 the adapter is computed apart from the layer, which costs time."""
    lora_target: Names = ("all",)
    """Modules that get an adapter, by name or end of name; ``all`` for every linear layer but the head."""
    additional_target: Names = ()
    """Modules that are trained in full and saved with the adapter, such as ``embed_tokens,lm_head``."""
    use_rslora: bool = False
    """Scale by ``lora_alpha / sqrt(lora_rank)`` (https://arxiv.org/abs/2312.03732)."""
    create_new_adapter: bool = False
    """Merge all of ``adapter_name_or_path`` into the model and start a fresh adapter on top."""


class Lora(Method):
    """Freezes the model and trains adapters beside its linear layers, in float32."""

    Options = LoraOptions
    saves_adapter: ClassVar[bool] = True

    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model in a PeftModel: earlier adapters merged in order, the last one or a new one trainable."""
        import torch
        from transformers import set_seed

        options = plan.method.options
        assert isinstance(options, LoraOptions)
        folders = [adapter_folder(plan, name) for name in plan.model.adapter_name_or_path]
        last = None if options.create_new_adapter or not folders else folders.pop()
        model.requires_grad_(False)
        for folder in folders:
            model = _with_adapter(model, folder).merge_and_unload()
        set_seed(plan.training.seed)  # the new adapter's first values
        adapted = _with_adapter(model, last or self.config(plan, model))
        adapted.peft_config["default"].base_model_name_or_path = _base_name(plan)
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor.data = tensor.data.to(getattr(torch, plan.precision.trained))
        return adapted

    def config(self, plan: Plan, model: PreTrainedModel) -> Any:
        """peft's configuration of a new adapter."""
        from peft import LoraConfig

        options = plan.method.options
        assert isinstance(options, LoraOptions)
        heads = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}
        return LoraConfig(
            task_type=heads[plan.stage.component.head],
            r=options.lora_rank,
            lora_alpha=options.lora_alpha or 2 * options.lora_rank,
            lora_dropout=options.lora_dropout,
            target_modules=self._targets(plan, options, model),
            modules_to_save=list(options.additional_target) or None,
            use_rslora=options.use_rslora,
        )

    def _targets(self, plan: Plan, options: LoraOptions, model: PreTrainedModel) -> list[str]:
        if options.lora_target != ("all",):
            return list(options.lora_target)
        return list(plan.family.component.lora_targets if plan.family else ()) or linear_names(model)

    def beneath(self, plan: Plan) -> tuple[str, ...]:
        """All of them where a new adapter is begun; else the last one is trained further and saved again."""
        options = plan.method.options
        assert isinstance(options, LoraOptions)
        earlier = plan.model.adapter_name_or_path
        return earlier if options.create_new_adapter else earlier[:-1]

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """``adapter_model.safetensors`` and ``adapter_config.json``, the same bytes each time."""
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in adapter_tensors(model).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = model.peft_config["default"].to_dict() | {"inference_mode": True}
        # peft writes its sets of names in the order of their hashes, another one in each process
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """In place and exactly; another adapter's shapes or names are refused."""
        import torch
        from safetensors.torch import load_file

        own, saved = adapter_tensors(model), load_file(folder / WEIGHTS)
        check_names(own, saved, folder)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """All base weights, and ``rank * (in + out)`` parameters for each adapted layer."""
        assert isinstance(options, LoraOptions)
        targets = options.lora_target
        trained = sum(
            options.lora_rank * (inputs + outputs) * count
            for name, inputs, outputs, count in architecture.linears
            if targets == ("all",) or name.rsplit(".", 1)[-1] in targets
        )
        trained += len(options.additional_target) * architecture.vocab_size * architecture.hidden_size
        return architecture.bytes_per_weight * architecture.parameters, trained


def linear_names(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers but the heads, without the path to them.

    peft's ``all-linear`` writes every layer's whole path into the adapter, 224 for Llama 3 8B where seven names do.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    linears = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D) and layer not in heads
    ]
    ends = {name: name.rsplit(".", 1)[-1] for name in linears}
    return sorted({name if end.isdigit() else end for name, end in ends.items()})


def adapter_tensors(model: PeftModel) -> dict[str, Any]:
    """The trained adapter's tensors by the names that peft saves, sharing memory with the model."""
    from peft import get_peft_model_state_dict

    # "auto" would ask the hub whether the vocabulary has grown
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def adapter_folder(plan: Plan, name: str) -> Path:
    """The local folder of an adapter, fetched from the hub where it is not a folder.

    Raises:
        UsageError: when it holds no safetensors; a pickled adapter is not read.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        token = plan.model.hf_hub_token
        folder = Path(
            snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG], cache_dir=plan.model.cache_dir, token=token)
        )
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        hint = "pickled weights (.bin) are not read: convert them with peft's save_pretrained"
        raise UsageError(Problem(f"adapter_name_or_path: {name} has no {' and no '.join(missing)}", hint=hint))
    return folder


def _with_adapter(model: PreTrainedModel, adapter: Any) -> PeftModel:
    """The model with an adapter from a folder, or a fresh one of a configuration, trainable."""
    import warnings

    from peft import PeftModel, get_peft_model

    with warnings.catch_warnings():
        # peft 0.21 asks by a name that transformers 5.23 calls deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        if isinstance(adapter, Path):
            return PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
        return get_peft_model(model, adapter)


def _base_name(plan: Plan) -> str | None:
    """What the adapter names as its base: the hub id where there is one."""
    return (plan.source.hub_id if plan.source else "") or plan.model.model_name_or_path
