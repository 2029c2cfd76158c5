"""Generates with ``vllm.LLM``.

The code uses vLLM's documented interface: ``LLM`` and ``LLM.generate`` (docs.vllm.ai, api/vllm/entrypoints/llm),
``SamplingParams`` (api/vllm/sampling_params), ``LoRARequest`` (features/lora), adapters' ranks (api/vllm/config/lora).
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.engines.transformers.generation_settings import Settings
from ftcore.api.components import Generator
from ftcore.api.inference_types import Chunk, Prompt
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import Problem, UsageError
from ftcore.inference.row_isolation import failed_chunk, isolated
from ftcore.models.adapters import CONFIG, adapter_folder
from ftcore.models.files import source_of
from ftcore.resources import hardware

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of ``max_lora_rank`` (vllm/config/lora.py, MaxLoRARanks)."""
UNREAD = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
"""Adapter settings that vLLM refuses or ignores (vllm/lora/peft_helper.py)."""
MERGE = "merge base model and adapters with ft export, and write the merged model"


def load(plan: Plan) -> VllmGenerator:
    """Loads a generator; all checks run before vLLM is started.

    Raises:
        UsageError: vLLM is not installed, or does not support the plan.
    """
    head = plan.stage.component.head
    if head != "causal_lm":
        reason = f"stage {plan.stage.component.name} trains a reward model, which does not generate text"
        raise UsageError(Problem(reason, plan.where("stage"), "choose another run's model or adapter"))
    if problems := [*_problems(plan)]:
        raise UsageError(problems)
    adapter = _adapter(plan)
    try:
        vllm = importlib.import_module("vllm")
        request = importlib.import_module("vllm.lora.request")
    except ImportError as error:
        reason = f"vllm cannot be imported: {error}"
        raise UsageError(Problem(reason, plan.where("infer_backend"), "pip install 'ft-engine-vllm[vllm]'")) from error
    renderer = Renderer.from_plan(plan, plan.plugins.hook.ft_load_tokenizer(plan=plan))
    if new := [renderer.tokenizer.decode([token]) for token in getattr(renderer.tokenizer, "ft_new_tokens", ())]:
        reason = f"vllm loads the base model unchanged, and the adapter adds tokens: {', '.join(new[:5])}"
        raise UsageError(Problem(reason, plan.where("adapter_name_or_path"), MERGE))
    lora = request.LoRARequest("adapter", 1, str(adapter.folder)) if adapter else None
    return VllmGenerator(plan, vllm.LLM(**arguments(plan, adapter)), vllm.SamplingParams, lora, renderer)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A local adapter and its rank."""

    folder: Path
    rank: int


def _problems(plan: Plan) -> Iterator[Problem]:
    if plan.model.grows_vocabulary:
        names = ", ".join(plan.model.vocabulary)
        yield Problem(f"vllm loads the model unchanged, and {names} would change it", plan.file, MERGE)
    if len(plan.model.adapter_name_or_path) > 1:
        reason = f"vllm supports one adapter, and the plan has {len(plan.model.adapter_name_or_path)}"
        yield Problem(reason, plan.where("adapter_name_or_path"), MERGE)
    if plan.method.component.load_kwargs(plan):
        hint = "write a model that is already quantised, or infer_backend: huggingface"
        reason = (
            f"vllm loads the model unchanged, and method {plan.method.component.name} would change how it is loaded"
        )
        yield Problem(reason, plan.where("finetuning_type"), hint)


def _adapter(plan: Plan) -> Adapter | None:
    if not plan.model.adapter_name_or_path:
        return None
    name, where = plan.model.adapter_name_or_path[-1], plan.where("adapter_name_or_path")
    folder = adapter_folder(plan, name)
    config: Mapping[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    unread = [key for key in UNREAD if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if config.get("peft_type", "LORA") != "LORA" or unread:
        what = ", ".join(unread) or f"peft_type {config['peft_type']}"
        raise UsageError(Problem(f"adapter {name} has {what}, which vllm does not support", where, MERGE))
    rank, most = int(config["r"]), plan.engine.options.vllm_max_lora_rank  # type: ignore[attr-defined]
    if rank > (most or RANKS[-1]):
        reason = f"adapter {name} has rank {rank}, vllm_max_lora_rank is {most or RANKS[-1]}"
        raise UsageError(Problem(reason, where, f"raise it; vllm supports ranks up to {RANKS[-1]}"))
    return Adapter(folder, rank)


def arguments(plan: Plan, adapter: Adapter | None) -> dict[str, Any]:
    """What ``vllm.LLM`` is told."""
    options: Any = plan.engine.options
    found: dict[str, Any] = {
        "model": source_of(plan),
        "revision": plan.model.model_revision,
        "trust_remote_code": plan.model.trust_remote_code,
        "skip_tokenizer_init": True,  # prompts are tokens, made as in training, and so are answers
        "dtype": _dtype(plan),
        "max_model_len": _longest(plan),
        "gpu_memory_utilization": options.vllm_gpu_util,
        "enforce_eager": options.vllm_enforce_eager,
        "seed": plan.training.seed,
    }
    if plan.model.cache_dir:
        found["download_dir"] = plan.model.cache_dir
    if plan.model.hf_hub_token:
        found["hf_token"] = plan.model.hf_hub_token
    if adapter:
        wanted = options.vllm_max_lora_rank or adapter.rank
        found |= {"enable_lora": True, "max_lora_rank": next(rank for rank in RANKS if rank >= wanted)}
    return found | (options.vllm_config or {})


def _dtype(plan: Plan) -> str:
    if plan.model.infer_dtype != "auto":
        return plan.model.infer_dtype
    return "bfloat16" if hardware.detect().bf16 else "float32"


def _longest(plan: Plan) -> int:
    options: Any = plan.engine.options
    known = (plan.config or {}).get("max_position_embeddings")
    return min(options.vllm_maxlen, known) if known else options.vllm_maxlen


class VllmGenerator(Generator):
    """Answers until it is dropped; one call at a time, further callers wait. Answers come whole.

    Args:
        plan: generation options.
        model: a ``vllm.LLM``.
        sampling: ``vllm.SamplingParams``.
        lora: a ``LoRARequest``; None without an adapter.
        renderer: makes the prompt's tokens, the same as in training.
    """

    def __init__(self, plan: Plan, model: Any, sampling: Any, lora: Any, renderer: Renderer) -> None:
        self.plan, self.model, self.sampling, self.lora, self.renderer = plan, model, sampling, lora, renderer
        self.tokenizer, self._lock = renderer.tokenizer, threading.Lock()
        self.context = _longest(plan)

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Generates all answers in one call, which vLLM batches; if it fails, each prompt in a separate call."""
        requests = [self._request(prompt) for prompt in prompts]
        with self._lock:
            outputs = isolated(self._outputs, requests) if requests else []
        for index, ((ids, settings, _), output) in enumerate(zip(requests, outputs, strict=True)):
            if isinstance(output, Exception):
                yield failed_chunk(index, output, len(ids))
                continue
            answer = output.outputs[0]
            tokens = list(answer.token_ids)
            finish = "stop" if answer.finish_reason == "stop" else "length"
            yield Chunk(index, self._text(tokens, settings), finish, prompt_tokens=len(ids), tokens=len(tokens))

    def _outputs(self, requests: Sequence[tuple[list[int], Settings, Any]]) -> list[Any]:
        found: list[Any] = self.model.generate(
            [{"prompt_token_ids": ids} for ids, _, _ in requests],
            [params for _, _, params in requests],
            lora_request=self.lora,
            use_tqdm=False,
        )
        return found

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises UsageError with all prompts that are too long, or that template or settings refuse."""
        problems: list[Problem] = []
        for prompt in prompts:
            try:
                self._request(prompt)
            except UsageError as error:
                problems += [Problem(each.message, prompt.place or each.where, each.hint) for each in error.problems]
        if problems:
            raise UsageError(problems)

    def _request(self, prompt: Prompt) -> tuple[list[int], Settings, Any]:
        settings = Settings.of(self.plan, prompt.settings)
        options = settings.options
        if options.num_beams > 1:
            hint = "write num_beams: 1, or infer_backend: huggingface"
            raise UsageError(
                Problem(f"num_beams is {options.num_beams}, and vllm does not support beam search", hint=hint)
            )
        ids = self.renderer.prompt_ids(prompt.messages, prompt.tools) if prompt.ids is None else list(prompt.ids)
        chance: dict[str, Any] = {"temperature": 0.0}
        if settings.samples:
            chance = {"temperature": options.temperature, "top_p": options.top_p, "seed": prompt.seed}
            chance |= {"top_k": options.top_k or -1}
        params = self.sampling(
            max_tokens=settings.new_tokens(len(ids), self.context),
            repetition_penalty=options.repetition_penalty,
            stop_token_ids=list(self.renderer.stop_ids),
            detokenize=False,
            **chance,
        )
        return ids, settings, params

    def _text(self, tokens: list[int], settings: Settings) -> str:
        hidden = settings.options.skip_special_tokens
        if hidden and tokens and tokens[-1] in self.renderer.stop_ids:
            tokens = tokens[:-1]  # the stop token is not part of the text
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=hidden, clean_up_tokenization_spaces=False)
        return text
