"""Why keys of EveryDream2trainer are not taken over."""

NEEDLESS = {
    "amp": "disable_amp decides.",
    "config": "the name of this file.",
    "gpuid": "choose a GPU with the environment variable CUDA_VISIBLE_DEVICES.",
    "notebook": "only changes the progress bar.",
    "doc": "explains the file.",
    "log_step": "every step is logged, in metrics.jsonl.",
    "logdir": "logs are in the run's own folder, see runs_dir.",
    "save_ckpt_dir": "checkpoints are in the run's own folder, see runs_dir.",
    "save_optimizer": "last.ckpt always holds the optimizer; `everydream train --resume` goes on exactly.",
    "no_prepend_last": "names of checkpoints hold epoch and step.",
    "run_name": "a run's folder is named after the project and the time.",
    "write_schedule": "everydream inspect --json lists every image with its draws.",
    "train_sampler": "the noise schedule is the model's own.",
    "apply_grad_scaler_step_tweaks": "fp16 is scaled by PyTorch's rule.",
    "log_grad_norm": "the norm is always in metrics.jsonl.",
    "ema_device": "the average is on the CPU or the GPU as the run is.",
    "ema_sample_ema_model": "samples are of the average where one is kept, see checkpoints.use_ema.",
    "ema_sample_nonema_model": "samples are of the average, or with checkpoints.use_ema: false of the model.",
    "scale_lr": "learning rates are used as they are.",
    "lowvram": "room is saved by memory.level, see docs/memory.md.",
}
MISSING = {
    "embedding_perturbation": "text embeddings are not disturbed.",
    "ema_decay_rate": "ema_strength_target goes before it.",
    "ema_update_interval": "no average is asked for, or by another key; here it moves with every step.",
    "ema_strength_target": "set ema.decay, e.g. 0.9999.",
    "ema_resume_model": "the average starts from the model itself.",
    "load_settings_every_epoch": "settings stay as they are during a run.",
    "plugins": "there are none.",
    "rated_dataset": "images are not thinned out over the epochs.",
    "rated_dataset_target_dropout_percent": "images are not thinned out over the epochs.",
    "wandb": "with wandb installed set trackers: [wandb]; until then TensorBoard is used.",
}
NEUTRAL = {"ema_update_interval": 500, "rated_dataset_target_dropout_percent": 50}
"""Values that ask for nothing."""
_ONE = "both have the optimizer and schedule of base; only rates, betas, epsilon and decay can differ."
OPTIMIZER_MISSING = {
    **dict.fromkeys(("optimizer", "lr_scheduler", "lr_warmup_steps", "lr_decay_steps"), _ONE),
    **dict.fromkeys(
        ("no_prox",),
        "belongs to an optimizer that is not here.",
    ),
    "freeze_final_layer_norm": "the final layer norm trains with the last layers.",
}
