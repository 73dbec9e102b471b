"""`python -m demo.make_model`: train the demo's Stable Diffusion from nothing, on a CPU.

    pictures of known shapes -> VAE -> latents, cached -> denoiser + text encoder -> diffusers folder

The parts are Stable Diffusion 1's own, made tiny: 64 px pictures, 8 x 8 x 4 latents, two levels of
U-Net, one layer of CLIP with the true vocabulary. The new shape is in none of the pictures.
What made it work is said where it stands; the figures are in docs/benchmarks.md.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.score import describe, sample, score
from demo.shapes import COLOURS, KNOWN_SHAPES, SIZE_PX, Subject, blend, draw, grid, inside_polygon, subjects
from everydream.formats.atomic import atomic_folder
from everydream.models import sd1
from everydream.models.common import kinds, stable_diffusion
from everydream.models.common.tokenizer_files import PACKAGED, packaged_files
from everydream.seeding import derive, numpy_generator, torch_generator

SCALING_FACTOR = 0.18215
CAPTION_DROPOUT = 0.1
_THREADS = 2
"""Fixed, since sums round differently over another number of threads and training amplifies that."""


@dataclass(frozen=True)
class Recipe:
    """Budgets in steps, not seconds: other work on the machine must not change the result."""

    pool: int = 4096
    vae_steps: int = 1200
    vae_batch: int = 16
    vae_lr: float = 3e-3
    steps: int = 3600
    batch: int = 32
    lr: float = 3e-3


@dataclass(frozen=True)
class Parts:
    """The trainable parts and what prepares their input."""

    vae: Any
    text_encoder: Any
    unet: Any
    tokenizer: Any
    scheduler: Any


def build(seed: int) -> Parts:
    """Return all parts with random weights."""
    torch.manual_seed(derive(seed, "weights"))
    vae, unet, text_encoder = build_vae(), build_unet(), build_text_encoder()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",  # At this size epsilon learns next to nothing in the same time.
    )
    return Parts(vae, text_encoder, unet, CLIPTokenizer.from_pretrained(PACKAGED), scheduler)


def build_vae() -> Any:
    """Return Stable Diffusion's VAE, an eighth as wide and less: 64 px become 8 x 8 cells of 4 channels."""
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 16, 32, 64],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,  # Eight groups of one channel would be instance norm, which erases flat colours.
        sample_size=SIZE_PX,
        scaling_factor=SCALING_FACTOR,
    )
    open_up(vae)
    return vae


def build_unet() -> Any:
    """Return a U-Net of Stable Diffusion 1's blocks; with 8 x 8 cells two levels are enough."""
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 8,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[32, 64],
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def build_text_encoder() -> Any:
    """Return one layer of CLIP; all but 15,000 of its weights are the vocabulary's."""
    width = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    return CLIPTextModel(CLIPTextConfig(**width, **ends, hidden_act="quick_gelu", projection_dim=32))


def open_up(vae: Any) -> None:
    """Start the VAE as a resizing of its input, so that the signal reaches the other end.

    With the usual start a dozen convolutions of gain 0.58 stand in a row without a skip, and after
    400 steps pictures are still grey. Residual branches start at zero, resampling at identity, and
    the rest at gain 1.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
        if name.endswith((".conv2", "to_out.0")):
            torch.nn.init.zeros_(module.weight)
        elif isinstance(module, torch.nn.Conv2d) and "samplers" in name:
            torch.nn.init.dirac_(module.weight)
        else:
            module.weight.data.mul_(math.sqrt(3))


def to_tensor(pictures: list[Any]) -> Tensor:
    """Return pictures as the VAE takes them: B x 3 x H x W in [-1, 1]."""
    pixels_BHWC = np.stack([np.asarray(picture, np.float32) for picture in pictures])
    return torch.from_numpy(pixels_BHWC / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def known_pictures(num: int, seed: int) -> tuple[Tensor, list[str]]:
    """Return pictures of the known shapes and their captions, every subject equally often."""
    choices = subjects(KNOWN_SHAPES)
    chosen = [choices[i % len(choices)] for i in range(num)]
    return to_tensor([draw(s, derive(seed, "known", i)) for i, s in enumerate(chosen)]), [s.caption for s in chosen]


def scribbles(num: int, seed: int) -> Tensor:
    """Return random polygons without captions: a VAE should draw any outline, as a real one does."""
    x, y = grid(SIZE_PX * 2)
    pictures = []
    for i in range(num):
        random = numpy_generator(derive(seed, "scribble", i))
        angle_N = np.sort(random.uniform(0, 2 * np.pi, int(random.integers(3, 12))))
        radius_N = random.uniform(0.12, 0.45, len(angle_N))
        vertices = 0.5 + np.stack([radius_N * np.sin(angle_N), radius_N * np.cos(angle_N)], axis=1)
        colour, background = random.permutation(COLOURS)[:2]
        pictures.append(blend(inside_polygon(vertices, x, y), str(colour), str(background)))
    return to_tensor(pictures)


def fit(
    parameters: list[Tensor], loss_of: Callable[[int], Tensor], num_steps: int, lr: float, label: str
) -> Iterator[int]:
    """Take `num_steps` AdamW steps of a one-cycle schedule; yield after each, for averaging."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=num_steps, pct_start=0.1)
    start_s, running = time.monotonic(), 0.0
    for step in range(num_steps):
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running += (loss.item() - running) * max(0.02, 1 / (step + 1))
        if (step + 1) % 100 == 0:
            left_s = (time.monotonic() - start_s) / (step + 1) * (num_steps - step - 1)
            print(f"{label} {step + 1}/{num_steps}  loss {running:.4f}  {left_s:.0f} s left", flush=True)
        yield step


def train_vae(vae: Any, pixels_NCHW: Tensor, recipe: Recipe, seed: int) -> None:
    """Train the VAE to give its input back; the weak KL only keeps the posterior narrow and finite."""
    random = torch_generator(derive(seed, "vae"))

    def loss_of(_step: int) -> Tensor:
        x_BCHW = pixels_NCHW[torch.randint(len(pixels_NCHW), (recipe.vae_batch,), generator=random)]
        posterior = vae.encode(x_BCHW).latent_dist
        restored_BCHW = vae.decode(posterior.sample(generator=random)).sample
        kl = posterior.kl().mean() / x_BCHW[0].numel()
        loss: Tensor = (
            functional.l1_loss(restored_BCHW, x_BCHW) + functional.mse_loss(restored_BCHW, x_BCHW) + 1e-4 * kl
        )
        return loss

    vae.train()
    for _ in fit(list(vae.parameters()), loss_of, recipe.vae_steps, recipe.vae_lr, "vae"):
        pass
    vae.eval().requires_grad_(False)


@torch.no_grad()
def moments(vae: Any, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every picture's latents, unscaled."""
    posteriors = [vae.encode(part).latent_dist for part in torch.split(pixels_NCHW, 64)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


@torch.no_grad()
def fold_scale(vae: Any, pixels_NCHW: Tensor) -> None:
    """Make 0.18215 the right factor, by moving the latents' own scale into the 1 x 1 convolutions.

    Single-file checkpoints cannot carry a factor; every reader of them takes Stable Diffusion's.
    Each channel also gets mean 0, which the noise schedule assumes.
    """
    mean_NCHW, std_NCHW = moments(vae, pixels_NCHW)
    shift_C = mean_NCHW.mean(dim=(0, 2, 3))
    variance_C = mean_NCHW.var(dim=(0, 2, 3)) + (std_NCHW**2).mean(dim=(0, 2, 3))
    gain_C = 1 / (SCALING_FACTOR * variance_C.sqrt())
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= gain_C[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - shift_C) * gain_C
    into.bias[4:] += 2 * gain_C.log()
    out.bias += (out.weight[:, :, 0, 0] * shift_C).sum(dim=1)
    out.weight /= gain_C[None, :, None, None]


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Return 77 tokens a caption."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def train_denoiser(parts: Parts, pixels_NCHW: Tensor, captions: list[str], recipe: Recipe, seed: int) -> None:
    """Train U-Net and text encoder together on cached latents; the weights' average is kept."""
    mean_NCHW, std_NCHW = moments(parts.vae, pixels_NCHW)
    words = sorted({*captions, ""})
    ids_WL = tokenize(parts.tokenizer, words)
    word_N = torch.tensor([words.index(caption) for caption in captions])
    random = torch_generator(derive(seed, "denoiser"))
    modules = torch.nn.ModuleDict({"unet": parts.unet, "text": parts.text_encoder}).train()
    average = copy.deepcopy(modules)

    def loss_of(_step: int) -> Tensor:
        pick_B = torch.randint(len(captions), (recipe.batch,), generator=random)
        sampled_BCHW = torch.randn(mean_NCHW[pick_B].shape, generator=random) * std_NCHW[pick_B]
        latents_BCHW = (mean_NCHW[pick_B] + sampled_BCHW) * SCALING_FACTOR
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=random)
        t_B = torch.randint(1000, (recipe.batch,), generator=random)
        drop_B = torch.rand(recipe.batch, generator=random) < CAPTION_DROPOUT
        tokens_BLD = parts.text_encoder(ids_WL[word_N[pick_B].masked_fill(drop_B, words.index(""))])[0]
        noisy_BCHW = parts.scheduler.add_noise(latents_BCHW, noise_BCHW, t_B)
        target_BCHW = parts.scheduler.get_velocity(latents_BCHW, noise_BCHW, t_B)
        return functional.mse_loss(parts.unet(noisy_BCHW, t_B, tokens_BLD).sample, target_BCHW)

    for step in fit(list(modules.parameters()), loss_of, recipe.steps, recipe.lr, "denoiser"):
        with torch.no_grad():
            keep = min(0.99, step / (step + 10))
            for mine, theirs in zip(average.parameters(), modules.parameters(), strict=True):
                mine.lerp_(theirs, 1 - keep)
    modules.load_state_dict(average.state_dict())
    modules.eval()


def save(parts: Parts, out: Path) -> None:
    """Write the diffusers folder in fp16, as the trainer writes its own."""
    schedule = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    tiny = kinds.Parts(
        {"unet": parts.unet, "text_encoder": parts.text_encoder, "vae": parts.vae},
        {text.part: packaged_files(text.pad_token) for text in sd1.KIND.texts},
        {name: parts.scheduler.config[name] for name in schedule},
    )
    with atomic_folder(out) as folder:
        stable_diffusion.StableDiffusion(sd1.KIND, tiny).write_folder(folder, torch.float16)


def report(folder: Path, seed: int) -> None:
    """Print what the saved folder draws for every known caption."""
    expected: list[Subject] = subjects(KNOWN_SHAPES)
    seeds = [derive(seed, "sample", i) for i in range(len(expected))]
    images = sample(folder, [s.caption for s in expected], seeds)
    print(describe(score(images, expected)))


def main() -> None:
    """Train, save, sample and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/model"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(_THREADS)
    recipe, seed = Recipe(), arguments.seed
    parts = build(seed)
    pixels_NCHW, captions = known_pictures(recipe.pool, seed)
    train_vae(parts.vae, torch.cat([pixels_NCHW, scribbles(recipe.pool, seed)]), recipe, seed)
    fold_scale(parts.vae, pixels_NCHW)
    train_denoiser(parts, pixels_NCHW, captions, recipe, seed)
    save(parts, arguments.out)
    report(arguments.out, seed)


if __name__ == "__main__":
    main()
