"""Options of LLaMA-Factory's files (0.9.6 development line) and of older transformers that nothing here owns.

Each is answered: passed on under its new name, harmless at some values, or refused with what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftcore import hookimpl
from ftcore.components import ForeignOption

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
"""Old name -> present name."""

NOT_YET = "it comes in a later version"

SWITCHES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    # data
    "eval_on_each_dataset": (NOT_YET, (False,)),
    "tool_format": ("the template decides how tools are called", ()),
    "ignore_pad_token_for_loss": ("sequences are never padded", (True, False)),
    "data_shared_file_system": ("tokens that are kept are locked, also on shared file systems", (True, False)),
    "media_dir": (NOT_YET, ()),
    "formatting": ("write it in dataset_info.json; unset, the columns tell", ()),
    # model
    "split_special_tokens": ("control tokens inside users' text are always text", (True, False)),
    "new_special_tokens_config": ("write the tokens in add_special_tokens", ()),
    "init_special_tokens": ("new tokens begin with the mean of all and a little noise", ("noise_init",)),
    "rope_scaling": (NOT_YET, ()),
    "flash_attn": ("attention is chosen by the hardware", ("auto", "disabled", "sdpa", "fa2", "fa3")),
    "shift_attn": ("", (False,)),
    "mixture_of_depths": ("", ()),
    "use_unsloth": ("the engine's own kernels serve every model", (False,)),
    "use_unsloth_gc": ("use disable_gradient_checkpointing", (False,)),
    "enable_liger_kernel": ("logits are never made in full", (True, False)),
    "moe_aux_loss_coef": (NOT_YET, (0, 0.0)),
    "use_reentrant_gc": ("recomputing is never reentrant here, with the same result", (True, False)),
    "upcast_layernorm": (NOT_YET, (False,)),
    "upcast_lmhead_output": ("the loss is always summed in float32", (True, False)),
    "train_from_scratch": ("", (False,)),
    "use_kv_cache": ("generation always keeps keys and values", (True,)),
    "use_v1_kernels": ("", (False,)),
    "print_param_status": ("", (False,)),
    "ms_hub_token": ("download the model first", ()),
    "om_hub_token": ("download the model first", ()),
    "adapter_folder": ("write the folder in adapter_name_or_path", ()),
    "use_audio_in_video": ("", (False,)),
    "image_do_pan_and_scan": ("", (False,)),
    "crop_to_patches": ("", (False,)),
    # export
    "export_quantization_bit": ("write export_gguf: q8_0, or load the exported model with quantization_bit", ()),
    "export_hub_model_id": ("export, look at the result, and upload the folder", ()),
    # method and optimizer
    "use_galore": ("lora saves as much memory", (False,)),
    "use_apollo": ("lora saves as much memory", (False,)),
    "use_badam": ("lora saves as much memory", (False,)),
    "use_adam_mini": ("use optim", (False,)),
    "use_muon": ("use optim", (False,)),
    "use_llama_pro": ("", (False,)),
    "use_mca": ("", (False,)),
    "use_megatron_bridge": ("", (False,)),
    "use_hyper_parallel": ("", (False,)),
    "use_kt": ("", (False,)),
    "use_dft_loss": ("", (False,)),
    "use_asft_loss": ("", (False,)),
    "use_eaft_loss": ("", (False,)),
    "include_effective_tokens_per_second": ("throughput is always logged", (True, False)),
    "pref_bco_weight": ("pref_loss bco_pair is that loss alone", (0, 0.0)),
    "ref_model_quantization_bit": ("the reference is loaded in the way of the trained model, and only once", ()),
    "reward_model_quantization_bit": ("the reward model is loaded in the way of the trained model", ()),
    # training
    "use_swanlab": ("use report_to: swanlab", (False,)),
    "ray_num_workers": ("", (0, 1)),
    "ray_init_kwargs": ("", ()),
    "use_ray": ("", (False,)),
    "enable_torch_profiler": ("", (False,)),
    "fp8": ("", (False,)),
    "save_safetensors": ("files are always safetensors", (True,)),
    "group_by_length": ("sequences are never padded, so that there is nothing to gain", (True, False)),
    "overwrite_hub": ("", (False,)),
    "half_precision_backend": ("bf16 and fp16 decide", ("auto",)),
    "dispatch_batches": ("", ()),
    "torchdynamo": ("", ()),
    "tpu_num_cores": ("", ()),
    "fp16_opt_level": ("use fp16 or bf16", ("O1",)),
}
"""Option -> (what to do instead, values under which nothing is lost). Anything else is refused."""

PARAMETERS = (
    "buffer_size offload_folder quantization_device_map "
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
"""Options that mean something only beside a switch, a stage or a method that this version does not have."""

MEGATRON = (
    "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size context_parallel_size "
    "virtual_pipeline_model_parallel_size sequence_parallel recompute_granularity recompute_method "
    "recompute_num_layers account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split "
    "bias_activation_fusion apply_rope_fusion masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm "
    "moe_token_dispatcher_type calculate_per_token_loss use_distributed_optimizer overlap_param_gather "
    "overlap_grad_reduce use_packed_sequences mixed_precision megatron_pretrained_checkpoint export_hf_on_finish "
    "extra_config"
).split()
"""Options of Megatron-Bridge, which is not supported here at all."""


@hookimpl
def ft_foreign_options() -> Mapping[str, ForeignOption]:
    """Every answer."""
    answers = {name: ForeignOption(same_as=present) for name, present in RENAMED.items()}
    for name, (advice, harmless) in SWITCHES.items():
        answers[name] = ForeignOption(advice, harmless=harmless)
    for name in PARAMETERS:
        answers[name] = ForeignOption("it belongs to a part that this run does not use", harmless=None)
    for name in MEGATRON:
        answers[name] = ForeignOption("Megatron is not supported here", harmless=(1, False))
    return answers
