"""``infer_backend: vllm``: answers by vLLM's offline engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftcore import hookimpl
from ftcore.api.components import Generator, InferenceEngine, OptionGroup

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


class VllmOptions(OptionGroup):
    """Options of vLLM."""

    vllm_maxlen: Annotated[int, Field(ge=1)] = 4096
    """Limit of prompt and answer together, in tokens; at most the model's context length."""
    vllm_gpu_util: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the GPU memory that vLLM allocates."""
    vllm_enforce_eager: bool = False
    """Whether to disable CUDA graphs."""
    vllm_max_lora_rank: Annotated[int, Field(ge=1)] | None = None
    """Largest rank of an adapter. Default: the rank of the adapter."""
    vllm_config: dict[str, Any] | None = None
    """Further arguments of ``vllm.LLM``, such as ``{tensor_parallel_size: 2}``."""


class Vllm(InferenceEngine):
    """The inference engine of vLLM."""

    Options = VllmOptions

    def load(self, plan: Plan) -> Generator:
        """Loads the model and at most one adapter."""
        from ft_engine_vllm.generating import load

        return load(plan)


@hookimpl
def ft_inference_engines() -> list[InferenceEngine]:
    """The engine of this package."""
    return [Vllm(name="vllm", summary="vLLM's offline engine: paged attention, continuous batching, on a GPU")]
