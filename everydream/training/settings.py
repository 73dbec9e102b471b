"""Settings of the training room."""

from typing import Annotated, Literal

from pydantic import Field

from everydream.methods.settings import Betas
from everydream.settings import Settings

Positive = Annotated[int, Field(ge=1)]


class TrainSettings(Settings):
    """How long, in what portions, in which precision."""

    epochs: Positive = 2
    """Times through the plan; an epoch is every source's repeats, choose or share, once."""
    max_steps: Positive | None = None
    """Stop after this many optimizer steps even if epochs are left; the learning rate decays over what really runs."""
    batch_size: Positive = 6
    """Images per micro-batch, all processes together."""
    gradient_accumulation: Positive = 1
    """Micro-batches per optimizer step: batch_size * gradient_accumulation images, on any number of processes."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of the computation; weights, optimizer and loss stay in fp32. fp16 scales the loss and needs a GPU."""
    gradient_checkpointing: Literal[True, False, "selective"] | None = None
    """Recompute activations in the backward pass, all or only the largest: slower, smaller. Null: by memory.level."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Clip the norm of all gradients together to this; null: never."""
    compile: Literal["none", "regional", "whole"] = "none"
    """PyTorch's compiler on the denoiser's repeated blocks, or on all of it; costs minutes at the start."""
    channels_last: bool = False
    """Lay out a UNet's kernels and activations as NHWC. Off: GroupNorm on GPUs goes back to NCHW each time."""
    deterministic: bool = False
    """Refuse GPU kernels whose sums depend on timing, so that resume is exact to the bit there too; slower."""


class MemorySettings(Settings):
    """What is given up for room on the device. Levels and figures: docs/memory.md."""

    level: Literal["max_speed", "balanced", "low", "minimal"] = "balanced"
    """Sets all that is null below, and train.gradient_checkpointing."""
    weights: Literal["fp32", "bf16"] | None = None
    """Of what trains, between steps. Updates are computed in fp32."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """To bf16: up or down by chance, right on average; nearest loses the small updates, and learns little."""
    optimizer_state: Literal["fp32", "bf16"] | None = None
    """Of the optimizer's moments, between steps."""
    offload_optimizer: bool | None = None
    """Keep the optimizer's state in CPU memory; each parameter's comes to the device for its step."""
    frozen: Literal["fp32", "bf16"] | None = None
    """Of what does not train. Exports hold the rounded weights, unless offload_frozen keeps the whole ones."""
    offload_frozen: bool | None = None
    """Keep VAE and frozen text encoders in CPU memory; each module comes to the device for its call."""
    fused_backward: bool | None = None
    """Step inside the backward pass and free each gradient at once; with train.max_grad_norm in two passes."""
    sliced_vae: bool | None = None
    """Encode and decode the images of a batch one by one."""
    attention: Literal["auto", "sdpa", "flash", "xformers", "sliced"] = "auto"
    """How attention is computed; auto is sdpa, PyTorch's best for the device. flash refuses where it cannot run."""


class OptimizerSettings(Settings):
    """The optimizer. What each takes and costs: docs/memory.md."""

    name: str = "adamw"
    """adamw, adam, sgd, adafactor, adamw_8bit, paged_adamw_8bit, lion, prodigy, came, schedule_free_adamw, torch.X."""
    lr: Annotated[float, Field(ge=0.0)] | None = None
    """One peak learning rate for all that trains, over the rates of its parts; null: each part's own, 1 for prodigy."""
    betas: Betas | None = None
    """Decay of the moments; sgd uses the first as momentum, came takes three; null: as the optimizer's authors say."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """L2 for adam and sgd, decoupled for the others; null: 0.01, for classes of torch.optim their own."""
    eps: Annotated[float, Field(gt=0.0)] | None = None
    """Added to the denominator, by those that have one; null: 1e-8, for classes of torch.optim their own."""
    args: dict[str, bool | int | float | str | list[float]] = {}
    """Further arguments of the optimizer's class by its own names, e.g. {d_coef: 0.8} for prodigy."""


ShapeName = Literal["constant", "linear", "cosine", "polynomial", "one_cycle", "rex"]


class LrScheduleSettings(Settings):
    """How the learning rates move over the run."""

    name: ShapeName | None = None
    """Shape after the warm-up; all but constant end at min_factor. Null: cosine, constant for schedule_free_adamw."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises from 0; under one_cycle from 1/25 of the peak."""
    warmup_share: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """The same as a share of the run, in place of steps; null: by steps, for one_cycle without any 0.3."""
    cycles: Positive = 1
    """Times that cosine starts again at the peak and falls."""
    power: Annotated[float, Field(gt=0.0)] = 2.0
    """Exponent of `polynomial`."""
    min_factor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Where the rate ends, as a part of its peak; the shape is squeezed in between."""


class EmaSettings(Settings):
    """A moving average of the trained weights, beside them."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Largest decay, e.g. 0.9999; null: no average is kept."""
    update_after: Annotated[int, Field(ge=0)] = 0
    """Steps before the average starts."""


class CheckpointSettings(Settings):
    """What is written, and when. Each time something is due, last.ckpt is written too; at the end always."""

    every_steps: Positive | None = None
    """Write after every N optimizer steps; null: not by steps."""
    every_epochs: Positive | None = 1
    """Write after every N epochs; null: not by epochs."""
    from_epoch: Annotated[int, Field(ge=0)] = 0
    """No exports by epoch before this many epochs are done; last.ckpt is written all the same."""
    every_minutes: Annotated[float, Field(gt=0.0)] | None = 20.0
    """Write after this many minutes; null: not by time."""
    keep: Positive | None = 3
    """Keep this many of the newest exports of this run; null: all."""
    keep_best: bool = False
    """Export whenever the monitors find the best so far, and keep that one too. How: docs/monitoring.md."""
    formats: list[Literal["safetensors", "ckpt", "diffusers", "pt"]] | None = None
    """Formats of the exports; null: the method's usual one; an empty list: last.ckpt only. See docs/methods.md."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Of the exports' floating tensors; integer tensors stay as they are."""
    use_ema: bool = True
    """Export and sample the moving average where one is kept."""
    provenance: Literal["full", "short", "none"] = "full"
    """What exports and a model card beside them say of their making; short: no settings, no captions. Never a path."""
