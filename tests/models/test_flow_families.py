"""SD3 and Flux: the step of diffusers' scripts, the pictures of its pipelines, adapters that they open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import metrics_of, train_here
from diffusers import DiffusionPipeline
from parity.test_step_against_diffusers import make_batch
from safetensors.torch import load_file
from teaching import attach, make_method

from everydream.config import load_config
from everydream.diffusion.noise import gaussian
from everydream.diffusion.settings import LossSettings, TimestepSettings
from everydream.errors import ConfigError
from everydream.methods.merging import merge_adapter
from everydream.methods.settings import LoraSettings, TextEncoderSettings, UNetSettings
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.models.write import write_model
from everydream.sampling.sampler import require_sampler, sample_images
from everydream.seeding import derive, torch_generator
from everydream.step import training_step
from everydream.types import Batch

KINDS = ["sd3", "sd3 without T5", "flux", "flux without guidance"]
BOTH = ["sd3", "flux"]
CLIPS = {"sd3": ["text_encoder", "text_encoder_2"], "flux": ["text_encoder"]}


def opened(kind: str, folder: Path) -> Any:
    absent = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3 without T5" else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folders(flow_folders: dict[str, Path]) -> dict[str, Path]:
    return flow_folders


def loaded(path: Path, clip_skip: int = 0, chunks: int = 1, **settings: Any) -> Any:
    return load(ModelSettings(path=str(path), **settings), clip_skip, chunks)


def told_by(pipeline: Any, kind: str, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (tokens, pooled) as the pipeline's encode_prompt has them."""
    if kind.startswith("sd3"):
        tokens, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=256
        )
    else:
        tokens, pooled, _ = pipeline.encode_prompt(captions, None, device="cpu", max_sequence_length=512)
    return tokens, pooled


def prediction_of(pipeline: Any, kind: str, x: torch.Tensor, t: torch.Tensor, told: Any) -> torch.Tensor:
    """Return what train_dreambooth_lora_sd3.py and ..._flux.py ask the transformer."""
    tokens, pooled = told
    if kind.startswith("sd3"):
        out: torch.Tensor = pipeline.transformer(
            hidden_states=x, timestep=t, encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False
        )[0]
        return out
    batch, channels, height, width = x.shape
    packed = pipeline._pack_latents(x, batch, channels, height, width)
    img_ids = pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, x.device, x.dtype)
    guided = pipeline.transformer.config.guidance_embeds
    predicted = pipeline.transformer(
        hidden_states=packed, timestep=t / 1000, guidance=torch.ones(batch) if guided else None,
        pooled_projections=pooled, encoder_hidden_states=tokens, txt_ids=torch.zeros(tokens.shape[1], 3),
        img_ids=img_ids, return_dict=False,
    )[0]  # fmt: skip
    unpacked: torch.Tensor = pipeline._unpack_latents(predicted, height * 8, width * 8, 8)
    return unpacked


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_diffusers_step(folders: dict[str, Path], kind: str) -> None:
    family = loaded(folders[kind])
    frozen = family.usually_frozen
    own = {part: TextEncoderSettings(lr=1e-6) for part in frozen}
    groups = attach(family, **own)
    assert [group.part for group in groups] == ["transformer", *family.text_parts]
    batch = make_batch([0, 11, 2])
    batch = Batch(**{**vars(batch), "captions": ["a cat", "", "a photo of a red house"]})
    result = training_step(batch, family, LossSettings(), 3)
    result.loss.backward()
    ours = {name: p.grad for group in groups for name, p in zip(group.names, group.parameters, strict=True)}

    pipeline = opened(kind, folders[kind])
    pipeline.vae.requires_grad_(False)

    def draw(purpose: str, shape: Any) -> torch.Tensor:
        return torch.stack([torch.randn(*shape, generator=torch_generator(derive(s, purpose))) for s in batch.seeds])

    posterior = pipeline.vae.encode(batch.pixels_BCHW / 255.0 * 2.0 - 1.0).latent_dist
    z = posterior.mean + posterior.std * draw("posterior", posterior.mean.shape[1:])
    model_input = (z - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    noise = draw("noise", model_input.shape[1:])
    timesteps = result.t_B.float()
    sigmas = (timesteps / 1000.0).view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * model_input + sigmas * noise
    predicted = prediction_of(pipeline, kind, noisy, timesteps, told_by(pipeline, kind, batch.captions))
    loss = ((predicted.float() - (noise - model_input).float()) ** 2).reshape(3, -1).mean(1).mean()
    loss.backward()
    assert float(result.loss.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    largest = 0.0
    for part in ("transformer", *family.text_parts):
        for name, parameter in getattr(pipeline, part).named_parameters():
            mine = ours[f"{part}.{name}"]
            if parameter.grad is None:
                assert mine is None or not mine.any()
                continue
            assert mine is not None
            torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-4)
            largest = max(largest, float(mine.abs().max()))
    assert largest > 1e-3, "gradients this small would prove nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_sample_is_what_diffusers_draws(folders: dict[str, Path], kind: str, guidance: float) -> None:
    """Not square, so that the shift by tokens and the positions count; a guidance input in the place of negatives."""
    pipeline, noise = opened(kind, folders[kind]), gaussian([7, 8], "sample", (4, 8, 10))
    more: dict[str, Any] = {"max_sequence_length": 256}
    if kind.startswith("flux"):
        noise = pipeline._pack_latents(noise, 2, 4, 8, 10)
        more = {} if kind == "flux" else {"true_cfg_scale": guidance, "negative_prompt": ["", ""]}
    theirs = pipeline(
        ["a cat", "a dog"], width=80, height=64, num_inference_steps=4, guidance_scale=guidance, latents=noise,
        output_type="np", **more,
    ).images  # fmt: skip
    options: dict[str, Any] = {"width": 80, "height": 64, "steps": 4, "guidance": guidance}
    ours = sample_images(loaded(folders[kind]), ["a cat", "a dog"], [7, 8], **options)
    assert np.abs(np.stack(ours).astype(float) - theirs * 255).max() <= 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_folder_holds_the_same(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    family = loaded(folders[kind])
    out = write_model(family, tmp_path / "out", "diffusers", torch.float32)
    ours, theirs = opened(kind, out), opened(kind, folders[kind])
    for part in family.modules():
        mine, expected = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert mine.keys() == expected.keys() and all(torch.equal(mine[key], t) for key, t in expected.items())
    assert ours.scheduler.config.shift == theirs.scheduler.config.shift
    again = loaded(out)
    assert again.description() == family.description() and again.objective.prediction == "flow"
    with pytest.raises(ConfigError, match=r"is written as diffusers only, not as safetensors"):
        write_model(family, tmp_path / "single", "safetensors", torch.float32)


def test_the_shift_is_the_schedulers(folders: dict[str, Path]) -> None:
    """SD3's is one number; Flux's grows with the image: timesteps of training and of sampling agree."""
    for kind in BOTH:
        family = loaded(folders[kind])
        for latent_hw in ((8, 8), (8, 12)):
            sampled = family.sampling_scheduler("euler", 4, latent_hw, torch.device("cpu")).timesteps
            levels = torch.tensor([1.0, 0.75, 0.5, 0.25] if kind == "flux" else [1.0])
            trained = family.objective.timesteps(levels, latent_hw)
            torch.testing.assert_close(trained, sampled[: len(levels)], atol=1e-3, rtol=1e-5)
        assert float(family.objective.timesteps(torch.tensor([0.5]), (8, 8), 1.0)) == 500.0
    flux, sd3 = loaded(folders["flux"]), loaded(folders["sd3"])
    half = torch.tensor([0.5])
    assert float(sd3.objective.timesteps(half, (8, 8))) == pytest.approx(750.0)  # 3 / (1 + 2 / 2) / 2
    assert float(flux.objective.timesteps(half, (16, 16))) > float(flux.objective.timesteps(half, (8, 8)))


@pytest.mark.parametrize("kind", BOTH)
def test_a_lora_opens_in_diffusers(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    family = loaded(folders[kind])
    method = make_method("lora", lora=LoraSettings(rank=2, alpha=4.0, targets=["attention", "feed_forward"]))
    groups = method.attach(family, 0, ["a"])
    assert [group.part for group in groups] == ["transformer", *CLIPS[kind]]
    for number, parameter in enumerate(p for group in groups for p in group.parameters):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch_generator(number))
    x, t = torch.randn(2, 4, 8, 8, generator=torch_generator(4)), torch.tensor([70.0, 700.0])
    with torch.no_grad():
        trained = family.predict(x, t, family.encode_text(["a cat", "dogs"], []))
    [single] = method.export(family, tmp_path / "single", "safetensors", torch.float32)
    [folder] = method.export(family, tmp_path / "folder", "diffusers", torch.float32)
    keys = load_file(single).keys()
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in keys
    assert any(key.startswith("text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_B") for key in keys)
    pipeline = opened(kind, folders[kind])
    pipeline.load_lora_weights(folder)
    with torch.no_grad():
        theirs = prediction_of(pipeline, kind, x, t, told_by(pipeline, kind, ["a cat", "dogs"]))
        base = loaded(folders[kind])
        before = base.predict(x, t, base.encode_text(["a cat", "dogs"], []))
        merge_adapter(base, single)
        merged = base.predict(x, t, base.encode_text(["a cat", "dogs"], []))
    assert not torch.allclose(trained, before, atol=1e-3)
    torch.testing.assert_close(trained, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trained, merged, atol=1e-5, rtol=1e-4)


def test_what_does_not_go_with_a_flow_transformer(folders: dict[str, Path]) -> None:
    sd3, flux = folders["sd3"], folders["flux"]
    assert [group.part for group in attach(loaded(flux))] == ["transformer", "text_encoder"], "T5 stays frozen"
    with pytest.raises(ConfigError, match=r"text_encoder_2: no tool reads an adapter of this flux model's T5"):
        attach(loaded(flux), "lora", text_encoder_2=TextEncoderSettings())
    with pytest.raises(ConfigError, match=r"teach words to this sd3 model: .* only text_encoder, text_encoder_2 would"):
        attach(loaded(sd3), "textual_inversion")
    with pytest.raises(ConfigError, match="hypernetwork puts networks into a UNet's attention, and this flux model"):
        attach(loaded(flux), "hypernetwork")
    with pytest.raises(ConfigError, match=r"text_encoder\.clip_skip: has no effect on a flux model"):
        loaded(flux, clip_skip=1)
    with pytest.raises(ConfigError, match=r"text_encoder\.chunks: has no effect on a sd3 model"):
        loaded(sd3, chunks=2)
    with pytest.raises(ConfigError, match=r"model\.prediction, model\.zero_terminal_snr: a flux model predicts a flow"):
        loaded(flux, prediction="v")
    with pytest.raises(
        ConfigError, match=r"samples\.sampler: ddim does not fit this sd3 model.*predicts flow; use euler"
    ):
        require_sampler(loaded(sd3), "ddim", "samples.sampler")
    only = attach(loaded(flux), unet=UNetSettings(only=["attention"]), text_encoder=TextEncoderSettings(train=False))
    assert only[0].names and all(".attn." in name for name in only[0].names)


def test_a_run_resumes_to_the_bit(project: Callable[..., Path], folders: dict[str, Path], tmp_path: Path) -> None:
    kind = "flux"
    config = project(
        model={"path": str(folders[kind])}, lr_schedule={"name": "constant"},
        samples={"every_steps": 2, "steps": 1, "batch_size": 8},
        train={"epochs": 1, "max_steps": 2}, checkpoints={"formats": None},
    )  # fmt: skip
    assert load_config(config).checkpoints.formats == ["diffusers"]
    whole = train_here(config)
    half = train_here(config, "train.max_steps=1")
    last = Path("checkpoints") / "last.ckpt"
    resumed = train_here(config, resume=half / last, allow_changes=True)
    first, second = (torch.load(run / last, weights_only=True)["state_dict"] for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert [key for key, tensor in first.items() if not torch.equal(tensor, second[key])] == []
    assert metrics_of(whole) == metrics_of(resumed)
    before = loaded(folders[kind]).single_file()
    moved = {key.split(".")[0] for key, tensor in first.items() if not torch.equal(tensor, before[key])}
    assert moved == {"transformer", *CLIPS[kind]}
    [export] = [path for path in (whole / "checkpoints").iterdir() if path.is_dir()]
    assert opened(kind, export).transformer is not None
    assert loaded(whole / last).name == kind, "a last.ckpt can be started from as well"
    with pytest.raises(ConfigError, match="is written as diffusers only, not as ckpt"):
        train_here(config, "checkpoints.formats=[ckpt]")


def test_gradient_checkpointing_changes_no_number(folders: dict[str, Path]) -> None:
    for kind in BOTH:
        found = []
        for checkpointed in (False, True):
            family = loaded(folders[kind])
            groups = attach(family)
            if checkpointed:
                family.enable_gradient_checkpointing()
            training_step(make_batch([0, 1]), family, LossSettings(), 2, TimestepSettings()).loss.backward()
            found.append({n: p.grad for g in groups for n, p in zip(g.names, g.parameters, strict=True)})
        for name, gradient in found[0].items():
            if gradient is not None:
                torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)
