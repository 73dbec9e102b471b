"""Why keys of kohya's scripts are not taken over."""


def _by_key(keys_of: dict[str, str]) -> dict[str, str]:
    """Return {key: reason} of {reason: keys, parted by blanks}."""
    return {key: reason for reason, keys in keys_of.items() for key in keys.split()}


NEEDLESS = _by_key({
    "images are decoded and encoded anew in every step, so nothing old is ever trained on.":
        "cache_latents cache_latents_to_disk vae_batch_size skip_cache_check cache_info",
    "PyTorch's attention needs as little memory.": "mem_eff_attn",
    "room is saved by memory.level, see docs/memory.md.":
        "lowram highvram lowvram cpu_offload_checkpointing fp8_base fp8_base_unet blocks_to_swap",
    "frozen text encoders can stay in CPU memory: memory.offload_frozen.":
        "cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size "
        "disable_mmap_load_safetensors",
    "a diffusers folder has them all.": "clip_l clip_g t5xxl ae sdxl",
    "T5 reads as many tokens as the model was trained with.": "t5xxl_max_token_length",
    "it is about speed alone.": "torch_compile dynamo_backend persistent_data_loader_workers deepspeed",
    "logs are in the run's own folder.":
        "logging_dir log_prefix log_config log_tracker_name log_tracker_config wandb_run_name console_log_level "
        "console_log_file console_log_simple output_config",
    "accelerate's own are used.": "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph",
    "files carry our own.": "no_metadata training_comment metadata_title metadata_author metadata_description "
        "metadata_license metadata_tags",
    "last.ckpt always holds all that a resume needs.":
        "save_state save_state_on_train_end save_last_n_epochs_state save_last_n_steps_state",
    "log in with the service's own command.": "wandb_api_key huggingface_token",
    "buckets keep the area of the resolution; data.max_aspect bounds their shape.": "min_bucket_reso max_bucket_reso",
    "everydream inspect shows what is trained.": "debug_dataset",
    "the VAE computes in the precision that it needs.": "no_half_vae",
    "set OMP_NUM_THREADS.": "num_cpu_threads_per_process",
    "captions are padded as the model was trained.": "no_token_padding",
    "the tokenizer is the model's own.": "tokenizer_cache_dir",
    "the family is read off the model.": "v2",
    "save_model_as decides, else the model's own format.": "use_safetensors",
    "images are scaled by one fixed rule.": "resize_interpolation",
    "inspect lists images that are enlarged.": "bucket_no_upscale",
    "the name of this file.": "config_file",
    "which images are held out follows from seed.": "validation_seed",
    "samples are always drawn before the first step too.": "sample_at_first",
})  # fmt: skip
MISSING = _by_key({
    "the offset's strength does not follow the image.": "adaptive_noise_scale",
    "noise levels are uniform or logit-normal over the model's schedule, and these belong to other scripts.":
        "min_timestep max_timestep weighting_scheme logit_mean logit_std mode_scale",
    "set validation.images to the number of images to hold out.": "validation_split",
    "no images are held out, so nothing is validated; see the section validation.":
        "validate_every_n_steps validate_every_n_epochs max_validation_steps",
    "nothing is uploaded.":
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_repo_visibility "
        "save_state_to_huggingface resume_from_huggingface async_upload",
    "each part has one rate: unet.lr, text_encoder.lr, text_encoder_2.lr; T5 stays frozen.":
        "learning_rate_te1 learning_rate_te2 learning_rate_te3 block_lr train_t5xxl",
    "attention masks and dropped encoders are not there.":
        "apply_t5_attn_mask apply_lg_attn_mask clip_l_dropout_rate clip_g_dropout_rate t5_dropout_rate",
    "fp16 cannot hold weights that train; memory.weights: bf16 can, see docs/memory.md.": "full_fp16",
    "masks are files beside the images, photo.mask.png for photo.jpg (see data.masks); copy them there.":
        "masked_loss conditioning_data_dir",
    "adapters start anew; to build on one, merge it into the model first: everydream merge.":
        "network_weights base_weights base_weights_multiplier dim_from_weights weights",
    "a run of another trainer cannot be gone on with; its model can be trained further.":
        "resume initial_epoch initial_step skip_until_initial_step",
    "captions are whole from the first step on.": "token_warmup_min token_warmup_step",
    "the rate falls to 0 over the run, in the shape of lr_schedule.name.":
        "lr_scheduler_timescale lr_decay_steps",
    "brackets and weights in captions are words.": "weighted_captions",
    "weightings are those of loss.weighting.": "scale_v_pred_loss_like_noise_pred v_pred_like_loss",
    "captions are dropped by chance and as a whole (captions.dropout).": "caption_dropout_every_n_epochs",
    "write it into the captions: everydream caption.": "caption_prefix caption_suffix",
    "colours stay as they are.": "color_aug",
    "no code of others is run.": "dataset_class custom_attributes",
    "prepare crops of faces: everydream prep.": "face_crop_aug_range",
    "adapters train at full strength.": "network_multiplier",
    "weights are not bounded.": "scale_weight_norms",
    "belongs to another script of kohya's than these settings are for.":
        "unet_lr text_encoder_lr learning_rate_te train_text_encoder network_dim network_alpha network_dropout "
        "network_args network_train_unet_only network_train_text_encoder_only init_word num_vectors_per_token "
        "use_object_template use_style_template reg_data_dir train_data_dir",
    "the VAE is the model's own.": "vae",
})  # fmt: skip
NEUTRAL = {"max_timestep": 1000, "token_warmup_min": 1, "network_multiplier": 1.0}
"""Values that ask for nothing."""
