"""Low-rank adapters through peft; saved adapters load there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from ft_plugins.methods.adapters import (
    adapter_tensors,
    base_name,
    linear_names,
    linear_paths,
    vocabulary_names,
    warn_of_new_rows,
    with_adapter,
)
from ft_plugins.methods.full import check_names
from ft_plugins.methods.multimodal_freezing import MultimodalFreezing
from ft_plugins.methods.reach import counted, planned, saved_targets, taken_names
from ft_plugins.models.quantizers import check_trainable
from ftcore.api.components import Method, OptionGroup
from ftcore.api.option_groups import Names
from ftcore.errors import Problem, UsageError
from ftcore.models.adapters import CONFIG, WEIGHTS, adapter_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftcore.api.plan import Plan
    from ftcore.resources.coverage import Coverage
    from ftcore.resources.memory_model import Architecture, Depth

VOCABULARY = ("embed_tokens", "lm_head")
"""Names of embedding and head in every architecture whose memory is estimated."""


class LoraOptions(OptionGroup):
    """Shape and placement of the adapters."""

    lora_rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the two adapter matrices."""
    lora_alpha: Annotated[int, Field(ge=1)] | None = None
    """The adapter's output is scaled by ``lora_alpha / lora_rank``; unset, alpha is twice the rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input. Above 0 each adapter is computed separately, which takes more time."""
    lora_target: Names = ("all",)
    """Modules that get an adapter, by name or end of name; ``all``: every linear layer except the head. Experts that
    transformers stores as three-dimensional tensors are not linear layers. ``ft plan`` and ``ft run`` report the share
    of adapted weights where it is below 90%."""
    additional_target: Names = ()
    """Modules that are trained in full and saved with the adapter, such as ``embed_tokens,lm_head``; unset, these two
    where the vocabulary grows. Tied embedding and head stay tied."""
    use_rslora: bool = False
    """Scale by ``lora_alpha / sqrt(lora_rank)`` (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction of each row of a weight separately (https://arxiv.org/abs/2402.09353)."""
    pissa_init: bool = False
    """Initialise the adapter with the largest singular values of each weight; the frozen weight keeps the rest
    (https://arxiv.org/abs/2404.02948)."""
    pissa_iter: Annotated[int, Field(ge=-1)] = 16
    """Iterations of the approximate singular value decomposition; -1 decomposes exactly, which takes longer."""
    pissa_convert: bool = False
    """Save an ordinary adapter of twice the rank that fits the original model. Unless ``pissa_iter`` is -1 this is
    always done: an unconverted adapter decomposes the weights again when it is loaded, which only an exact
    decomposition reproduces."""
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+: learning rate of the B matrices and of vectors, as a multiple of that of the A matrices
    (https://arxiv.org/abs/2402.12354)."""
    loraplus_lr_embedding: Annotated[float, Field(gt=0)] = 1e-6
    """With ``loraplus_lr_ratio``: learning rate of an embedding's adapter."""
    fused_lora: bool = True
    """Compute a layer and its adapter in one autograd function, and layers that share an input together. false uses
    peft's layers, as do DoRA, several active adapters and other kinds of layers in any case."""
    create_new_adapter: bool = False
    """Merge all adapters of ``adapter_name_or_path`` into the model and train a new one."""


class Lora(Method):
    """Freezes the model and trains adapters beside its linear layers, in float32."""

    Options = LoraOptions
    saves_adapter: ClassVar[bool] = True
    quantizes: ClassVar[bool] = False
    """Whether it quantises the linear layers of the base model."""

    def resolve(self, values: Mapping[str, Any]) -> str:
        """qlora where ``quantization_bit`` is set, else this method."""
        return self.name if values.get("quantization_bit") is None else "qlora"

    def apply(self, plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
        """The model as a PeftModel: earlier adapters are merged in order, the last one or a new one is trainable."""
        import torch
        from transformers import set_seed

        from ft_plugins.methods import pissa

        check_trainable(plan, model)
        options = self._options(plan)
        folders = [adapter_folder(plan, name) for name in plan.model.adapter_name_or_path]
        last = None if options.create_new_adapter or not folders else folders.pop()
        model.requires_grad_(False)
        for folder in folders:
            model = with_adapter(model, folder).merge_and_unload()
        set_seed(plan.training.seed)  # decides the initial values of a new adapter
        try:
            adapted = with_adapter(model, last or self.config(plan, model))
        except ValueError as error:  # names that no layer has; experts with dropout
            reason = " ".join(str(error).split())
            raise UsageError(Problem(f"peft refuses the adapter: {reason}", plan.where("lora_target"))) from error
        adapted.peft_config["default"].base_model_name_or_path = base_name(plan)
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor.data = tensor.data.to(getattr(torch, plan.precision.trained))
        if last is None and options.pissa_init and (options.pissa_convert or options.pissa_iter != -1):
            pissa.keep_start(adapted)
        return adapted

    def config(self, plan: Plan, model: PreTrainedModel) -> Any:
        """peft's configuration of a new adapter."""
        from peft import LoraConfig

        options = self._options(plan)
        heads = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}
        whole = self._whole(plan, options, model)
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        exactly = "pissa" if options.pissa_iter == -1 else f"pissa_niter_{options.pissa_iter}"
        return LoraConfig(
            task_type=heads[plan.stage.component.head],
            r=options.lora_rank,
            lora_alpha=options.lora_alpha or 2 * options.lora_rank,
            lora_dropout=options.lora_dropout,
            target_modules=self._targets(plan, options, model),
            modules_to_save=whole or None,
            ensure_weight_tying=bool(tied and set(whole) & set(vocabulary_names(model))),
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            init_lora_weights=exactly if options.pissa_init else True,
        )

    def _options(self, plan: Plan) -> LoraOptions:
        assert isinstance(plan.method.options, LoraOptions)
        return plan.method.options

    def _targets(self, plan: Plan, options: LoraOptions, model: PreTrainedModel) -> list[str]:
        named = options.lora_target != ("all",)
        targets = options.lora_target if named else plan.family.component.lora_targets if plan.family else ()
        sight = MultimodalFreezing(plan, model)
        if sight:
            found = [name for name in linear_paths(model) if not sight.frozen(name)]
            found = [name for name in found if not targets or name.endswith(tuple(f".{target}" for target in targets))]
        else:
            found = list(targets or linear_names(model))
        taken = () if named else taken_names(model, found)
        return [name for name in found if name.rsplit(".", 1)[-1] not in taken]

    def coverage(self, plan: Plan, model: PreTrainedModel) -> Coverage:
        """The share of linear layers and experts with an adapter, without those that options freeze."""
        sight = MultimodalFreezing(plan, cast("Any", model).get_base_model())
        fresh = self._options(plan).lora_target == ("all",) and self._begins(plan)
        return counted(model, quantizes=self.quantizes, fresh=fresh, frozen=sight.frozen)

    def planned_coverage(self, plan: Plan) -> Coverage | None:
        """The same from config.json. An adapter that is trained further lists its layers itself."""
        options = self.effective(plan)
        assert isinstance(options, LoraOptions)
        family = plan.family.component.lora_targets if plan.family else ()
        targets: tuple[str, ...] | None = options.lora_target
        if not self._begins(plan):
            targets = saved_targets(Path(plan.model.adapter_name_or_path[-1]).expanduser())
        elif targets == ("all",) and family:
            targets = tuple(family)
        return planned(plan, targets, options.additional_target, quantizes=self.quantizes)

    def _begins(self, plan: Plan) -> bool:
        """Whether a new adapter is created."""
        return self._options(plan).create_new_adapter or not plan.model.adapter_name_or_path

    def _whole(self, plan: Plan, options: LoraOptions, model: PreTrainedModel) -> list[str]:
        """Names of modules that are trained in full."""
        if not options.additional_target and plan.model.grows_vocabulary:
            return vocabulary_names(model)
        names = [name.rsplit(".", 1)[-1] for name in options.additional_target]
        warn_of_new_rows(plan, model, lambda end: end in names)
        return list(options.additional_target)

    def effective(self, plan: Plan) -> LoraOptions:
        """The options, with embedding and head in ``additional_target`` where the vocabulary grows."""
        options = self._options(plan)
        if options.additional_target or not plan.model.grows_vocabulary:
            return options
        return options.model_copy(update={"additional_target": VOCABULARY})

    def base_adapters(self, plan: Plan) -> tuple[str, ...]:
        """All adapters where a new one is created; else all but the last, which is trained further."""
        earlier = plan.model.adapter_name_or_path
        return earlier if self._options(plan).create_new_adapter else earlier[:-1]

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes ``adapter_model.safetensors`` and ``adapter_config.json``; equal adapters give equal bytes."""
        from safetensors.torch import save_file

        from ft_plugins.methods import pissa

        # cloned: safetensors refuses tensors that share memory, such as tied embedding and head
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in adapter_tensors(model).items()}
        config = model.peft_config["default"].to_dict() | {"inference_mode": True}
        if start := pissa.start_of(model):
            tensors, config = pissa.converted(tensors, config, start)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # sorted: peft's sets of names have another order in each process
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Copies the adapter in place; raises for other shapes or names."""
        import torch
        from safetensors.torch import load_file

        from ft_plugins.methods import pissa

        own, saved = adapter_tensors(model), load_file(folder / WEIGHTS)
        if start := pissa.start_of(model):
            saved = pissa.restored(saved, start, folder)
        check_names(own, saved, folder)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def learning_rate(self, options: OptionGroup, name: str, tensor: torch.Tensor, rate: float) -> float:
        """LoRA+, as peft's ``create_loraplus_optimizer`` groups parameters."""
        assert isinstance(options, LoraOptions)
        if options.loraplus_lr_ratio is None:
            return rate
        if "lora_embedding_" in name:
            return options.loraplus_lr_embedding
        return rate * options.loraplus_lr_ratio if "lora_B" in name or tensor.ndim == 1 else rate

    def reference(self, plan: Plan, model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]] | None:
        """The base model with its merged adapters; a snapshot where the adapter already changes the model."""
        options = self._options(plan)
        fresh = options.create_new_adapter or not plan.model.adapter_name_or_path
        if not fresh or options.pissa_init:
            return super().reference(plan, model)
        from ft_plugins.methods.adapters import without_adapter

        return lambda: without_adapter(model)

    def count(self, architecture: Architecture, options: OptionGroup, width: int = 4) -> tuple[float, int]:
        """All base weights, and per adapted layer ``rank * (in + out)`` parameters; with DoRA ``out`` magnitudes
        too."""
        assert isinstance(options, LoraOptions)
        each = [(inputs + outputs, outputs, count) for _, inputs, outputs, count in _adapted(architecture, options)]
        trained = sum((options.lora_rank * both + options.use_dora * rows) * count for both, rows, count in each)
        return float(width) * architecture.parameters, trained + _whole_size(architecture, options.additional_target)

    def depth(self, architecture: Architecture, options: OptionGroup) -> Depth:
        """Through every layer; the head's weights get gradients only where ``additional_target`` names it."""
        from ftcore.resources.memory_model import Depth

        assert isinstance(options, LoraOptions)
        every = sum((inputs + outputs) * count for _, inputs, outputs, count in architecture.linears)
        adapted = sum((inputs + outputs) * count for _, inputs, outputs, count in _adapted(architecture, options))
        head = bool({*VOCABULARY[not architecture.tied :]} & set(options.additional_target))
        return Depth(
            layers=architecture.layers,
            head=head,
            rank=options.lora_rank * adapted / every,
            results=2.0 * adapted / every if options.use_dora else 0.0,
        )

    def drops_inputs(self, options: OptionGroup) -> bool:
        """With ``lora_dropout``."""
        assert isinstance(options, LoraOptions)
        return options.lora_dropout > 0


def _adapted(architecture: Architecture, options: LoraOptions) -> list[tuple[str, int, int, int]]:
    """The linear layers that get an adapter."""
    names = options.lora_target
    return [linear for linear in architecture.linears if names == ("all",) or linear[0] in _ends(names)]


def _ends(names: tuple[str, ...]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def _whole_size(architecture: Architecture, names: tuple[str, ...]) -> int:
    """Parameters of modules that are trained in full; tied embedding and head are one."""
    ends = _ends(names)
    linears = sum(size_in * size_out * count for name, size_in, size_out, count in architecture.linears if name in ends)
    matrices = len(ends & set(VOCABULARY))
    matrices = min(matrices, 1) if architecture.tied else matrices
    return linears + matrices * architecture.vocab_size * architecture.hidden_size
