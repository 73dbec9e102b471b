"""Why keys of kohya's scripts are not taken over."""


def _by_key(keys_of: dict[str, str]) -> dict[str, str]:
    """Return {key: reason} of {reason: keys, parted by blanks}."""
    return {key: reason for reason, keys in keys_of.items() for key in keys.split()}


NEEDLESS = _by_key({
    "images are decoded and encoded anew in every step, so nothing old is ever trained on.":
        "cache_latents cache_latents_to_disk vae_batch_size skip_cache_check cache_info",
    "PyTorch's own attention is always used.": "xformers sdpa mem_eff_attn diffusers_xformers",
    "memory is saved by train.gradient_checkpointing, train.batch_size and method: lora.":
        "lowram highvram cpu_offload_checkpointing fp8_base fp8_base_unet blocks_to_swap fused_backward_pass",
    "it is about speed alone.": "torch_compile dynamo_backend persistent_data_loader_workers deepspeed",
    "logs are in the run's own folder.":
        "logging_dir log_prefix log_config log_tracker_name log_tracker_config wandb_run_name console_log_level "
        "console_log_file console_log_simple output_config",
    "accelerate's own are used.": "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph",
    "files carry our own.": "no_metadata training_comment metadata_title metadata_author metadata_description "
        "metadata_license metadata_tags",
    "last.ckpt always holds all that a resume needs.":
        "save_state save_state_on_train_end save_last_n_epochs_state save_last_n_steps_state",
    "belongs to another loss.": "huber_c huber_schedule huber_scale",
    "log in with the service's own command.": "wandb_api_key huggingface_token",
    "buckets keep the area of the resolution; data.max_aspect bounds their shape.": "min_bucket_reso max_bucket_reso",
    "everydream inspect shows what is trained.": "debug_dataset",
    "the VAE computes in the precision that it needs.": "no_half_vae",
    "set OMP_NUM_THREADS.": "num_cpu_threads_per_process",
    "captions are padded as the model was trained.": "no_token_padding",
    "the tokenizer is the model's own.": "tokenizer_cache_dir",
    "the family is read off the model.": "v2",
    "save_model_as decides, else the model's own format.": "use_safetensors",
    "with captions: kohya, wildcards and several lines are always read.": "enable_wildcard",
    "images are scaled by one fixed rule.": "resize_interpolation",
    "inspect lists images that are enlarged.": "bucket_no_upscale",
    "the name of this file.": "config_file",
    "samples are always drawn before the first step too.": "sample_at_first",
})  # fmt: skip
MISSING = _by_key({
    "noise is plain, or with an offset (loss.offset_noise).":
        "noise_offset_random_strength multires_noise_iterations multires_noise_discount adaptive_noise_scale "
        "ip_noise_gamma ip_noise_gamma_random_strength",
    "timesteps are drawn evenly from the whole range.":
        "min_timestep max_timestep weighting_scheme logit_mean logit_std mode_scale",
    "see the section preservation, which measures images that are held out.":
        "validation_split validation_seed validate_every_n_steps validate_every_n_epochs max_validation_steps",
    "nothing is uploaded.":
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_repo_visibility "
        "save_state_to_huggingface resume_from_huggingface async_upload",
    "SDXL cannot be trained yet, only Stable Diffusion 1.x and 2.x.":
        "learning_rate_te1 learning_rate_te2 cache_text_encoder_outputs cache_text_encoder_outputs_to_disk block_lr "
        "fused_optimizer_groups sdxl",
    "weights stay in fp32; train.precision is of the computation.": "full_fp16 full_bf16",
    "the loss is of whole images.": "masked_loss alpha_mask conditioning_data_dir",
    "adapters start anew; to build on one, merge it into the model first: everydream merge.":
        "network_weights base_weights base_weights_multiplier dim_from_weights weights",
    "a run of another trainer cannot be gone on with; its model can be trained further.":
        "resume initial_epoch initial_step skip_until_initial_step",
    "captions are whole from the first step on.": "token_warmup_min token_warmup_step",
    "the rate falls to 0 over the run, in the shape of lr_schedule.name.":
        "lr_scheduler_type lr_scheduler_args lr_scheduler_timescale lr_scheduler_min_lr_ratio lr_decay_steps",
    "brackets and weights in captions are words.": "weighted_captions",
    "the loss is weighed by min-SNR (loss.min_snr_gamma) or not at all.":
        "debiased_estimation_loss scale_v_pred_loss_like_noise_pred v_pred_like_loss",
    "captions are dropped by chance and as a whole (captions.dropout).":
        "caption_dropout_every_n_epochs caption_tag_dropout_rate",
    "write it into the captions: everydream caption.": "caption_prefix caption_suffix",
    "colours stay as they are.": "color_aug",
    "no code of others is run.": "dataset_class custom_attributes",
    "prepare crops of faces: everydream prep.": "face_crop_aug_range",
    "the loss is the mean squared error.": "loss_type",
    "captions end after 75 tokens; inspect shows what is lost.": "max_token_length",
    "adapters train at full strength.": "network_multiplier",
    "weights are not bounded.": "scale_weight_norms",
    "belongs to another script of kohya's than these settings are for.":
        "unet_lr text_encoder_lr learning_rate_te train_text_encoder network_dim network_alpha network_dropout "
        "network_args network_train_unet_only network_train_text_encoder_only init_word num_vectors_per_token "
        "use_object_template use_style_template reg_data_dir train_data_dir",
    "the VAE is the model's own.": "vae",
    "the noise schedule is the model's own.": "zero_terminal_snr",
})  # fmt: skip
NEUTRAL = {
    "loss_type": "l2", "max_timestep": 1000, "token_warmup_min": 1, "multires_noise_discount": 0.3,
    "max_token_length": 75, "network_multiplier": 1.0,
}  # fmt: skip
"""Values that ask for nothing."""
OTHER_FAMILIES = (
    (
        "SDXL models",
        "learning_rate_te1 learning_rate_te2 cache_text_encoder_outputs block_lr sdxl",
        "xl",
    ),
    ("Stable Diffusion 3, FLUX and later models", "clip_l clip_g t5xxl ae qwen3 gemma2", "flux|sd3|stable-diffusion-3"),
)
"""Models that cannot be trained yet: their name, keys that only their trainers have, what files are called."""
