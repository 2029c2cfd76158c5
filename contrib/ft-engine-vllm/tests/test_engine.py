"""What vLLM is told, and what is made of its answers, on a stand-in: vLLM itself needs a GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ft_engine_vllm
import pytest

from ftcore.api.inference_types import Prompt
from ftcore.api.registry import Candidate, installed, load
from ftcore.api.samples import Message
from ftcore.errors import UsageError
from ftcore.inference.answers import collect
from ftcore.inference.target import find_target

TEXTS = ("hello world", "what is your name?", "one two three four five six seven, and the lazy dog")


@dataclass(kw_only=True)
class SamplingParams:
    """The fields of vLLM's that are used."""

    max_tokens: int
    repetition_penalty: float
    stop_token_ids: list[int]
    detokenize: bool
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class LLM:
    """Answers greedily with transformers, as vLLM's ``LLM`` would with temperature 0."""

    def __init__(self, model: str, *, max_lora_rank: int = 16, enable_lora: bool = False, **told: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.told = told | {"model": model}
        self.told |= {"max_lora_rank": max_lora_rank, "enable_lora": True} if enable_lora else {}
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=told["dtype"])
        self.asked: list[Any] = []

    def generate(self, prompts: Any, sampling_params: Any, *, lora_request: Any, use_tqdm: bool) -> list[Any]:
        import torch
        from peft import PeftModel

        self.asked = [prompts, sampling_params, lora_request, use_tqdm]
        model = PeftModel.from_pretrained(self.base, lora_request.path) if lora_request else self.base
        found = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                max_new_tokens=params.max_tokens, eos_token_id=params.stop_token_ids,
                repetition_penalty=params.repetition_penalty,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
            finish = "stop" if made[-1] in params.stop_token_ids else "length"
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(made), finish_reason=finish)]))
        return found


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    request.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def target(model: Path, *overrides: str, **more: Any) -> Any:
    own = [candidate for candidate in installed() if candidate.distribution == "ftcore"]
    plugins = load([*own, Candidate("ft-engine-vllm", "0.1.0", "engine-vllm", lambda: ft_engine_vllm)], disabled=())
    words = ["infer_dtype=float32", "do_sample=false", "max_new_tokens=24", *overrides]
    return find_target(None, model=str(model), overrides=words, plugins=plugins, **more)


def ask(*texts: str, **more: Any) -> list[Prompt]:
    return [Prompt((Message("user", text),), **more) for text in texts]


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 5 with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=5, lora_alpha=40, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor)
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks by it
@pytest.mark.parametrize("adapted", [False, True])
def test_answers_are_those_of_the_built_in_engine(adapted: bool, tiny_model_dir: Path, adapter: Path) -> None:
    adapters = [str(adapter)] if adapted else []
    prompts = [*ask(*TEXTS), *ask(TEXTS[0], settings={"max_new_tokens": 5, "skip_special_tokens": False})]
    found = {}
    for engine in ("vllm", "huggingface"):
        generator = target(tiny_model_dir, f"infer_backend={engine}", adapters=adapters).load()
        found[engine] = collect(generator.stream(prompts), len(prompts))
    assert found["vllm"] == found["huggingface"]
    assert {answer.finish for answer in found["vllm"]} >= {"length"}


def test_what_vllm_is_told(tiny_model_dir: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "model": str(tiny_model_dir),
        "revision": "main",
        "trust_remote_code": False,
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": 512,  # the model's positions
        "gpu_memory_utilization": 0.7,
        "enforce_eager": False,
        "seed": 42,
    }
    assert target(tiny_model_dir, "infer_backend=vllm").load().model.told == told
    words = ("infer_backend=vllm", "vllm_maxlen=100", "vllm_gpu_util=0.5", "vllm_enforce_eager=true", "seed=7")
    words += ("vllm_config={tensor_parallel_size: 2}", "hf_hub_token=secret", "cache_dir=/c")
    changed = {"max_model_len": 100, "gpu_memory_utilization": 0.5, "enforce_eager": True, "seed": 7}
    changed |= {"tensor_parallel_size": 2, "hf_token": "secret", "download_dir": "/c"}
    assert target(tiny_model_dir, *words).load().model.told == told | changed
    for word, rank in ((None, 8), ("vllm_max_lora_rank=20", 32)):
        words = ("infer_backend=vllm", *([word] if word else []))
        model = target(tiny_model_dir, *words, adapters=[str(adapter)]).load().model
        assert model.told == told | {"enable_lora": True, "max_lora_rank": rank}


def test_how_answers_are_asked_for(tiny_model_dir: Path) -> None:
    generator = target(
        tiny_model_dir, "infer_backend=vllm", "do_sample=true", "temperature=0.5", "top_p=0.8", "top_k=0"
    ).load()
    prompts = [*ask("hello", seed=3), *ask("hello", settings={"temperature": 0, "repetition_penalty": 1.5})]
    list(generator.stream(prompts))
    asked, params, lora, bar = generator.model.asked
    ids = generator.renderer.prompt_ids(prompts[0].messages)
    assert asked == [{"prompt_token_ids": ids}] * 2
    stop = list(generator.renderer.stop_ids)
    common: dict[str, Any] = {"max_tokens": 24, "stop_token_ids": stop, "detokenize": False}
    assert params == [
        SamplingParams(repetition_penalty=1.0, temperature=0.5, top_p=0.8, top_k=-1, seed=3, **common),
        SamplingParams(repetition_penalty=1.5, temperature=0.0, **common),
    ]
    assert (lora, bar) == (None, False)


def refusal(model: Path, *overrides: str, **more: Any) -> str:
    with pytest.raises(UsageError) as error:
        target(model, "infer_backend=vllm", *overrides, **more).load()
    return str(error.value)


def test_what_vllm_would_not_do_is_refused(
    tiny_model_dir: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = "merge base model and adapters with ft export, and write the merged model"
    assert "vllm loads the model unchanged, and add_tokens would change it" in refusal(
        tiny_model_dir, "add_tokens=<new>"
    )
    two = refusal(tiny_model_dir, adapters=[str(adapter), str(adapter)])
    assert two.endswith(f"vllm supports one adapter, and the plan has 2; {merge}")
    assert "method qlora would change how it is loaded" in refusal(tiny_model_dir, "finetuning_type=qlora")
    assert "stage rm trains a reward model" in refusal(tiny_model_dir, "stage=rm")
    rank = refusal(tiny_model_dir, "vllm_max_lora_rank=4", adapters=[str(adapter)])
    assert f"adapter {adapter} has rank 5, vllm_max_lora_rank is 4; raise it; vllm supports ranks up to 512" in rank
    config = json.loads((adapter / "adapter_config.json").read_text())
    for changes in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"rank_pattern": {"q": 3}}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        (tmp_path / "adapter_model.safetensors").touch()
        (name,) = changes
        said = refusal(tiny_model_dir, adapters=[str(tmp_path)])
        assert said.endswith(f"adapter {tmp_path} has {name}, which vllm does not support; {merge}")
    generator = target(tiny_model_dir, "infer_backend=vllm").load()
    with pytest.raises(UsageError) as error:
        generator.check([*ask("dog " * 600, place="a:1"), *ask("x", place="a:2", settings={"num_beams": 2})])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("a:1: the prompt has ")
    hint = "write num_beams: 1, or infer_backend: huggingface"
    assert lines[1] == f"a:2: num_beams is 2, and vllm does not support beam search; {hint}"
    for name in ("vllm", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, None)
    assert refusal(tiny_model_dir).endswith("pip install 'ft-engine-vllm[vllm]'")
