"""Options of LLaMA-Factory (0.9.6 development line) and of older transformers that no component owns.

Each is renamed, accepted at some values, or refused with what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftcore import hookimpl
from ftcore.api.components import ForeignOption

RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "eval_batch_size": "per_device_eval_batch_size",
    "eval_num_beams": "generation_num_beams",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}
"""Old name -> name here."""

NOT_YET = "not supported in this version"


def _option(
    advice: str = "", *harmless: Any, means: Mapping[Any, tuple[str, Any]] | None = None, **instead: Any
) -> Any:
    """A `ForeignOption`: what ft does instead, the accepted values, and the options to write."""
    return ForeignOption(advice, harmless=harmless, means=means or {}, instead=instead)


SWITCHES: Mapping[str, ForeignOption] = {
    # data
    "eval_on_each_dataset": _option(NOT_YET, False),
    "tool_format": _option("the template decides the format of tool calls"),
    "ignore_pad_token_for_loss": _option("sequences are never padded", True, False),
    "data_shared_file_system": _option("ft locks its token cache, on shared file systems too", True, False),
    "formatting": _option("write it in dataset_info.json; unset, ft detects the format from the columns"),
    # model
    "split_special_tokens": _option("control tokens in user text are always plain text", True, False),
    "new_special_tokens_config": _option("add_special_tokens takes the tokens themselves, without descriptions"),
    "init_special_tokens": _option("new tokens start at the mean embedding plus noise", "noise_init"),
    "rope_scaling": _option(NOT_YET),
    "flash_attn": _option("ft chooses the attention kernel for the hardware", "auto", "disabled", "sdpa", "fa2", "fa3"),
    "shift_attn": _option("attention always follows the model's configuration", False),
    "mixture_of_depths": _option("mixture of depths is not supported: every token passes through every layer"),
    "use_unsloth": _option("ft uses its own kernels", False),
    "use_unsloth_gc": _option("", False, means={True: ("disable_gradient_checkpointing", False)}),
    "enable_liger_kernel": _option(
        "ft does not load Liger's kernels; its own cross-entropy never stores full logits either", True, False
    ),
    "moe_aux_loss_coef": _option(NOT_YET, 0, 0.0),
    "use_reentrant_gc": _option("gradient checkpointing is never reentrant here; results are the same", True, False),
    "upcast_layernorm": _option(NOT_YET, False),
    "upcast_lmhead_output": _option("losses are always computed in float32", True, False),
    "train_from_scratch": _option("training starts from the weights of model_name_or_path", False),
    "use_kv_cache": _option("generation always uses a KV cache", True),
    "use_v1_kernels": _option("ft chooses its kernels itself", False),
    "print_param_status": _option("ft always prints the numbers of trained and of all parameters", False),
    "ms_hub_token": _option("ft does not download from ModelScope: model_name_or_path takes a folder"),
    "om_hub_token": _option("ft does not download from Modelers: model_name_or_path takes a folder"),
    "adapter_folder": _option("adapter_name_or_path takes whole paths"),
    "use_audio_in_video": _option(NOT_YET, False),
    "image_do_pan_and_scan": _option("the model's own processor decides how images are read", False),
    "crop_to_patches": _option("the model's own processor decides how images are read", False),
    # export
    "export_quantization_bit": _option("export quantises weights for llama.cpp and Ollama only", export_gguf="q8_0"),
    "export_hub_model_id": _option("ft export writes a folder, and `hf upload NAME FOLDER` uploads it"),
    # method and optimizer
    "use_galore": _option("GaLore is an optimizer", False, optim="galore_adamw", save_only_model=True),
    "use_apollo": _option("APOLLO is an optimizer", False, optim="apollo_adamw", save_only_model=True),
    "use_badam": _option("BAdam is not supported; an adapter needs as little memory", False, finetuning_type="lora"),
    "use_adam_mini": _option("Adam-mini is not supported; 8-bit states are smaller", False, optim="adamw_8bit"),
    "use_muon": _option("Muon is not supported; ft plugins list --kind optimizer lists the optimizers", False),
    "use_llama_pro": _option(NOT_YET, False),
    "use_mca": _option("Megatron is not supported here", False),
    "use_megatron_bridge": _option("Megatron is not supported here", False),
    "use_hyper_parallel": _option("HyperParallel is not supported here", False),
    "use_kt": _option("KTransformers is not supported here", False),
    "use_dft_loss": _option(NOT_YET, False),
    "use_asft_loss": _option(NOT_YET, False),
    "use_eaft_loss": _option(NOT_YET, False),
    "include_effective_tokens_per_second": _option("throughput is always logged", True, False),
    "pref_bco_weight": _option("the BCO loss cannot be mixed with another", 0, 0.0, pref_loss="bco_pair"),
    "ref_model_quantization_bit": _option("the reference is loaded once, and quantised like the trained model"),
    "reward_model_quantization_bit": _option("the reward model is quantised like the trained model"),
    # training
    "use_swanlab": _option("report_to names the trackers", False, report_to="swanlab"),
    "ray_num_workers": _option("Ray is not supported here", 0, 1),
    "ray_init_kwargs": _option("Ray is not supported here"),
    "use_ray": _option("Ray is not supported here", False),
    "enable_torch_profiler": _option("torch's profiler is not supported here", False),
    "fp8": _option(NOT_YET, False),
    "save_safetensors": _option("files are always safetensors", True),
    "group_by_length": _option("sequences are never padded, so grouping has no effect", True, False),
    # of earlier versions of transformers
    "overwrite_hub": _option("", False),
    "half_precision_backend": _option("bf16 and fp16 decide", "auto"),
    "fp16_backend": _option("bf16 and fp16 decide", "auto"),
    "fp16_opt_level": _option("float16 training is mixed precision, as in O1", "O1"),
    "dispatch_batches": _option("each process reads its own share of every batch", True, False),
    "split_batches": _option("per_device_train_batch_size counts the rows of one device", False),
    "torchdynamo": _option("torch_compile_backend selects the compiler"),
    "tpu_num_cores": _option("TPUs are not supported here"),
    "tpu_metrics_debug": _option("TPUs are not supported here", False),
    "adafactor": _option("", False, means={True: ("optim", "adafactor")}),
    "include_tokens_per_second": _option("throughput is always logged", True, False),
    "include_inputs_for_metrics": _option("evaluations do not store predictions", True, False),
    "past_index": _option("training uses no KV cache", -1),
    "use_ipex": _option("ft chooses its kernels itself", False),
    "jit_mode_eval": _option("ft chooses its kernels itself", False),
    "use_mps_device": _option("ft detects the device", False),
    "use_legacy_prediction_loop": _option("evaluations do not store predictions", True, False),
    "ray_scope": _option("Ray is not supported here", "last"),
    "mp_parameters": _option("SageMaker's model parallelism is not supported here", ""),
    "sharded_ddp": _option("one process trains the whole model on one device", "", False),
    "fsdp_min_num_params": _option("FSDP is not supported here", 0),
    "fsdp_transformer_layer_cls_to_wrap": _option("FSDP is not supported here"),
}
"""Option -> its answer. Values that are not listed as harmless are refused."""

PARAMETERS = (
    "offload_folder quantization_device_map "
    "export_quantization_dataset export_quantization_nsamples export_quantization_maxlen "
    "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen "
    "sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend kt_cpu_activation kt_weight_path "
    "kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num "
    "kt_lora_expert_intermediate_size "
    "module_dropout oft_rank oft_block_size oft_target "
    "galore_target "
    "galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise apollo_target apollo_rank "
    "apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise "
    "apollo_scale_front badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio "
    "badam_mask_mode badam_verbose swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key "
    "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret hyper_parallel_args hyper_parallel_cp_size "
    "asft_alpha eaft_alpha master_addr master_port "
    "profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat "
    "profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules fp8_backend "
    "fp8_enable_fsdp_float8_all_gather audio_sampling_rate task task_dir batch_size lang n_shot save_dir download_mode"
).split()
"""Options that belong to a switch, a stage or a method that this version does not have."""

MEGATRON = (
    "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size context_parallel_size "
    "virtual_pipeline_model_parallel_size sequence_parallel recompute_granularity recompute_method "
    "recompute_num_layers account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split "
    "bias_activation_fusion apply_rope_fusion masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm "
    "moe_token_dispatcher_type calculate_per_token_loss use_distributed_optimizer overlap_param_gather "
    "overlap_grad_reduce use_packed_sequences mixed_precision megatron_pretrained_checkpoint export_hf_on_finish "
    "extra_config"
).split()
"""Options of Megatron-Bridge, which is not supported."""


@hookimpl
def ft_foreign_options() -> Mapping[str, ForeignOption]:
    """All answers of this file."""
    answers = {name: ForeignOption(same_as=present) for name, present in RENAMED.items()}
    answers |= SWITCHES
    for name in PARAMETERS:
        answers[name] = ForeignOption("it belongs to a feature that this run does not use", harmless=None)
    for name in MEGATRON:
        answers[name] = ForeignOption("Megatron is not supported here", harmless=(1, False))
    return answers
