"""What SDXL has and its predecessors have not: two encoders, sizes and crops, zeros for no prompt, markers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import metrics_of, train_here
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from parity.test_step_against_diffusers import make_batch
from PIL import Image
from safetensors.torch import load_file, save_file
from teaching import attach, make_method

from everydream.config import load_config
from everydream.data.loader import PieceDataset
from everydream.data.plan import pieces_for_rank
from everydream.diffusion.noise import gaussian
from everydream.diffusion.schedule import make_schedule
from everydream.diffusion.settings import LossSettings
from everydream.errors import ConfigError, FormatError
from everydream.formats.files import write_safetensors
from everydream.methods.merging import merge_adapter
from everydream.methods.settings import LoraSettings, TextEncoderSettings, TextualInversionSettings, WordSettings
from everydream.methods.textual_inversion import learn_files
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.models.write import write_model
from everydream.plan import plan_run
from everydream.sampling.sampler import require_sampler, sample_images
from everydream.seeding import derive, torch_generator
from everydream.step import training_step
from everydream.types import Batch, Crop

CAPTIONS = ["a cat", "", "a photo of a red house", "a cat"]
PARTS = ["unet", "text_encoder", "text_encoder_2", "vae"]


def loaded(path: Path, clip_skip: int = 0, chunks: int = 1, **settings: Any) -> Any:
    return load(ModelSettings(path=str(path), **settings), clip_skip, chunks)


def cropped_batch(numbers: list[int]) -> Batch:
    """Return images of which each was cut from another place of another file."""
    batch = make_batch(numbers)
    crops = [Crop((500 + n, 700 + 2 * n), 3 * n, 5 * n + 1, (32, 48), n % 2 == 0) for n in numbers]
    return Batch(**{**vars(batch), "crops": crops, "captions": [CAPTIONS[n % len(CAPTIONS)] for n in numbers]})


@pytest.fixture(scope="module")
def pipeline(sdxl_folder: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.requires_grad_(False)
    return pipeline


def encoded_by_diffusers(pipeline: Any, captions: list[str], clip_skip: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what train_text_to_image_sdxl.py's encode_prompt does, its tokenizers and encoders in turn."""
    tokens, pooled = [], torch.empty(0)
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):  # fmt: skip
        ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        out = encoder(ids, output_hidden_states=True, return_dict=False)
        pooled = out[0]
        tokens.append(out[-1][-2 - clip_skip])
    return torch.cat(tokens, dim=-1), pooled


def test_a_step_is_diffusers_step(sdxl_folder: Path, pipeline: Any) -> None:
    """Defects 11 and 12: as train_text_to_image_sdxl.py computes it, with each image's own crop, height first."""
    family = loaded(sdxl_folder, empty_prompt="encode")
    groups = attach(family)
    batch = cropped_batch([0, 11, 2, 13])
    result = training_step(batch, family, LossSettings(), 4)
    result.loss.backward()
    ours = {name: p.grad for group in groups for name, p in zip(group.names, group.parameters, strict=True)}

    def draw(purpose: str, shape: Any) -> torch.Tensor:
        return torch.stack([torch.randn(*shape, generator=torch_generator(derive(s, purpose))) for s in batch.seeds])

    posterior = pipeline.vae.encode(batch.pixels_BCHW / 255.0 * 2.0 - 1.0).latent_dist
    latents = posterior.mean + posterior.std * draw("posterior", posterior.mean.shape[1:])
    latents = latents * 0.13025
    noise = draw("noise", latents.shape[1:])
    time_ids = torch.tensor([[*c.original_size, c.top, c.left, *c.target_size] for c in batch.crops])
    prompt_embeds, pooled = encoded_by_diffusers(pipeline, batch.captions)
    noisy = DDIMScheduler.from_config(pipeline.scheduler.config).add_noise(latents, noise, result.t_B)
    added = {"time_ids": time_ids, "text_embeds": pooled}
    predicted = pipeline.unet(noisy, result.t_B, prompt_embeds, added_cond_kwargs=added, return_dict=False)[0]
    expected = torch.nn.functional.mse_loss(predicted, noise)
    expected.backward()
    assert float(result.loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    for part in PARTS[:3]:
        theirs = dict(getattr(pipeline, part).named_parameters())
        trained = {n.removeprefix(f"{part}."): g for n, g in ours.items() if n.startswith(f"{part}.")}
        # Neither the last layer nor the final norm of the first encoder reaches the output.
        assert theirs.keys() - trained.keys() == {n for n, p in theirs.items() if p.grad is None}
        assert bool(theirs.keys() - trained.keys()) == (part == "text_encoder")
        for name, gradient in trained.items():
            torch.testing.assert_close(gradient, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m)
    for part in PARTS[:3]:
        getattr(pipeline, part).zero_grad(set_to_none=True)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_sample_is_what_diffusers_draws(sdxl_folder: Path, pipeline: Any, guidance: float) -> None:
    """No negative prompt is zeros, as the folder says; sizes are the picture's own."""
    noise = gaussian([7, 8], "sample", (4, 8, 10))
    ours = sample_images(
        loaded(sdxl_folder), ["a cat", "a dog"], [7, 8], width=80, height=64, steps=4, guidance=guidance
    )
    theirs = pipeline(
        ["a cat", "a dog"], width=80, height=64, num_inference_steps=4, guidance_scale=guidance, latents=noise,
        output_type="np",
    ).images  # fmt: skip
    assert np.abs(np.stack(ours).astype(float) - theirs * 255).max() <= 1.0


@torch.no_grad()
def test_what_an_empty_prompt_is(sdxl_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    crops = [Crop((8, 8), 0, 0, (8, 8), False)] * 2
    zeros, encoded = (loaded(sdxl_folder, empty_prompt=said) for said in ("auto", "encode"))
    there, here = encoded.encode_text(["", "a"], crops), zeros.encode_text(["", "a"], crops)
    assert not here.tokens_BLD[0].any() and not here.pooled_BD[0].any()
    assert there.tokens_BLD[0].any() and torch.equal(here.tokens_BLD[1], there.tokens_BLD[1])
    assert torch.equal(here.pooled_BD[1], there.pooled_BD[1])
    options: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance": 5.0}
    first, second = (sample_images(family, ["a"], [1], **options)[0] for family in (zeros, encoded))
    assert not np.array_equal(first, second)
    for stem, form in (("folder", "diffusers"), ("file", "safetensors")):
        path = write_model(encoded, tmp_path / stem, form, torch.float32)
        assert loaded(path).empty_prompt == "encode" and loaded(path, empty_prompt="zeros").empty_prompt == "zeros"
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline" and index["force_zeros_for_empty_prompt"] is False
    old = loaded(model_folder, empty_prompt="zeros").encode_text(["", "a"], crops).tokens_BLD
    assert not old[0].any() and torch.equal(old[1], loaded(model_folder).encode_text(["a"], crops).tokens_BLD[0])
    assert loaded(model_folder).empty_prompt == "encode"


@torch.no_grad()
def test_clip_skip_counts_from_the_layer_that_is_usual(sdxl_folder: Path, pipeline: Any) -> None:
    family = loaded(sdxl_folder, clip_skip=1)
    tokens, pooled = encoded_by_diffusers(pipeline, ["a cat"], clip_skip=1)
    found = family.encode_text(["a cat"], [])
    torch.testing.assert_close(found.tokens_BLD, tokens, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.pooled_BD, pooled, atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"text_encoder\.clip_skip is 1, which leaves out every layer"):
        attach(family, text_encoder=TextEncoderSettings(clip_skip=1))
    with pytest.raises(ConfigError, match=r"clip_skip leaves out 3 layers, and a text encoder of this model has 2\."):
        loaded(sdxl_folder, clip_skip=2).encode_text(["a cat"], [])


@torch.no_grad()
@pytest.mark.parametrize("folder", ["model_folder", "sdxl_folder"])
def test_long_captions_are_read_in_chunks(folder: str, request: pytest.FixtureRequest) -> None:
    """Each chunk of 75 tokens between its own begin and end; the pooled vector is the first's."""
    path = request.getfixturevalue(folder)
    one, three = loaded(path), loaded(path, chunks=3)
    assert (one.max_tokens, three.max_tokens) == (77, 227)
    words = [f"{['cat', 'dog', 'red', 'big'][n % 4]}" for n in range(180)]
    caption = " ".join(words)
    parts = [" ".join(words[start : start + 75]) for start in (0, 75, 150)]
    crop = [Crop((8, 8), 0, 0, (8, 8), False)]
    found, expected = three.encode_text([caption], crop), [one.encode_text([part], crop) for part in parts]
    assert found.tokens_BLD.shape[1] == 3 * 77
    together = torch.cat([part.tokens_BLD for part in expected], dim=1)
    torch.testing.assert_close(found.tokens_BLD, together, atol=1e-6, rtol=1e-5)
    if found.pooled_BD is not None:
        torch.testing.assert_close(found.pooled_BD, expected[0].pooled_BD, atol=1e-6, rtol=1e-5)
    # A short caption has as many, whatever stands beside it.
    both = three.encode_text(["cat", caption], crop * 2)
    torch.testing.assert_close(both.tokens_BLD[:1], three.encode_text(["cat"], crop).tokens_BLD, atol=1e-6, rtol=1e-5)
    pictures = [sample_images(f, [caption], [1], width=64, height=64, steps=1, guidance=2.0)[0] for f in (one, three)]
    assert not np.array_equal(*pictures)


def test_which_parts_train_and_how_fast(sdxl_folder: Path) -> None:
    own = TextEncoderSettings(lr=3e-6, epochs=2)
    groups = {group.part: group for group in attach(loaded(sdxl_folder), text_encoder_2=own)}
    assert {part: group.lr for part, group in groups.items()} == {
        "unet": 1e-6, "text_encoder": 5e-7, "text_encoder_2": 3e-6,
    }  # fmt: skip
    assert groups["text_encoder_2"].epochs == 2
    frozen = attach(loaded(sdxl_folder), text_encoder_2=TextEncoderSettings(train=False))
    assert [group.part for group in frozen] == ["unet", "text_encoder"]
    only = attach(loaded(sdxl_folder), text_encoder=TextEncoderSettings(train=False), text_encoder_2=own)
    assert [group.part for group in only] == ["unet", "text_encoder_2"]
    with pytest.raises(ConfigError, match=r"text_encoder_3: this sdxl model has no such part; .*text_encoder_2\. Take"):
        attach(loaded(sdxl_folder), text_encoder_3=own)


# --- files


def test_the_released_shapes_are_named_and_recognised() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from everydream.models import sd1, sd2, sdxl
    from everydream.models.common import building, infer

    wide = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        networks = {
            "unet": unet,
            "text_encoder": CLIPTextModel(CLIPTextConfig(**small, projection_dim=768)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**wide, hidden_act="gelu", projection_dim=1280)
            ),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            ),
        }  # fmt: skip
        single = building.single_tensors(sdxl.KIND, networks)
    counts = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    assert counts["unet"] == 2_567_463_684 and counts["text_encoder_2"] == 694_659_840
    known = {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.label_emb.0.2.bias": (1280,),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280),
        "model.diffusion_model.output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight": (768, 768),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.positional_embedding": (77, 1280),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    }
    assert {key: tuple(single[key].shape) for key in known} == known
    assert len(single) == 1680 + 196 + 389 + 248
    assert [module.matches(single) for module in (sd1, sd2, sdxl)] == [False, False, True]
    config = infer.unet_config(single, sdxl.KIND.sample_size)
    assert config["transformer_layers_per_block"] == [1, 2, 10] and config["attention_head_dim"] == [5, 10, 20]
    with torch.device("meta"):
        again = {
            "unet": UNet2DConditionModel(**config),
            **{t.part: t.network(CLIPTextConfig(**t.config_of(single))) for t in sdxl.KIND.texts},
            "vae": AutoencoderKL(**infer.vae_config(single, sdxl.KIND.scaling_factor)),
        }
    for part, network in again.items():
        expected = {key: t.shape for key, t in networks[part].state_dict().items()}
        assert {key: t.shape for key, t in network.state_dict().items()} == expected


def test_a_plain_single_file_says_all(sdxl_folder: Path, tmp_path: Path) -> None:
    family = loaded(sdxl_folder)
    extras = {"conditioner.embedders.1.model.logit_scale": torch.tensor(4.6)}
    write_safetensors(tmp_path / "m.safetensors", {**family.single_file(), **extras})
    again = loaded(tmp_path / "m.safetensors")
    assert again.empty_prompt == "zeros" and again.extras.keys() == extras.keys()
    for part in PARTS:
        ours, theirs = again.description()[part], family.description()[part]
        differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        assert differing <= {"sample_size"}
    state = load_file(tmp_path / "m.safetensors")
    first = "conditioner.embedders.0.transformer.text_model."
    refiner = {key.replace("embedders.1.", "embedders.0."): t for key, t in state.items() if not key.startswith(first)}
    save_file(refiner, tmp_path / "refiner.safetensors")
    with pytest.raises(FormatError, match=r"refiner\.safetensors is SDXL's refiner"):
        loaded(tmp_path / "refiner.safetensors")


def test_a_refiner_folder(sdxl_folder: Path, tmp_path: Path) -> None:
    index = json.loads((sdxl_folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    with pytest.raises(FormatError, match="is SDXL's refiner, which has one text encoder"):
        loaded(tmp_path)


@pytest.mark.parametrize("zero", [False, True])
def test_the_markers_of_v_prediction_files(sdxl_folder: Path, tmp_path: Path, zero: bool) -> None:
    """ComfyUI goes by tensors called v_pred and ztsnr."""
    family = loaded(sdxl_folder, prediction="v", zero_terminal_snr=zero)
    state = family.single_file()
    assert ("v_pred" in state, "ztsnr" in state) == (True, zero) and state["v_pred"].shape == (0,)
    write_safetensors(tmp_path / "m.safetensors", state)
    again = loaded(tmp_path / "m.safetensors")
    assert again.objective.prediction == "v" and again.single_file().keys() == state.keys()
    assert torch.equal(again.objective.schedule.alphas_cumprod_T, make_schedule(zero_terminal=zero).alphas_cumprod_T)
    other = loaded(tmp_path / "m.safetensors", prediction="epsilon", zero_terminal_snr=False)
    assert not {"v_pred", "ztsnr"} & other.single_file().keys()
    assert not {"v_pred", "ztsnr"} & loaded(sdxl_folder).single_file().keys()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # how diffusers makes arrays of tensors
@pytest.mark.parametrize("folder", ["sd2_folder", "sdxl_folder"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_zero_terminal_snr_reaches_samplers_and_exports(
    folder: str, sampler: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(folder)
    family = loaded(path, prediction="v", zero_terminal_snr=True)
    assert float(family.objective.schedule.alphas_cumprod_T[-1]) == 0.0
    scheduler = family.sampling_scheduler(sampler, 4, (8, 8), torch.device("cpu"))
    assert int(scheduler.timesteps[0]) == 999 and scheduler.config.rescale_betas_zero_snr
    options: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance": 2.0, "sampler": sampler}
    [picture] = sample_images(family, ["a"], [1], **options)
    assert not np.array_equal(picture, sample_images(loaded(path, prediction="v"), ["a"], [1], **options)[0])
    if sampler == "ddim":
        out = write_model(family, tmp_path / "out", "diffusers", torch.float32)
        saved = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
        assert saved["rescale_betas_zero_snr"] is True and saved["timestep_spacing"] == "trailing"
        assert saved["prediction_type"] == "v_prediction"
        assert float(loaded(out).objective.schedule.alphas_cumprod_T[-1]) == 0.0
        assert float(loaded(out, zero_terminal_snr=False).objective.schedule.alphas_cumprod_T[-1]) > 0.0


def test_zero_terminal_snr_wants_v(sdxl_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.zero_terminal_snr: .*an epsilon model has nothing to tell"):
        loaded(sdxl_folder, zero_terminal_snr=True)


def test_a_sampler_that_does_not_fit(sdxl_folder: Path) -> None:
    family = loaded(sdxl_folder)
    family.samplers = ("euler",)
    with pytest.raises(
        ConfigError, match=r"samples\.sampler: ddim does not fit this sdxl model.*; use euler, or leave"
    ):
        require_sampler(family, "ddim", "samples.sampler")
    require_sampler(family, None, "samples.sampler")


def test_images_are_encoded_in_more_than_fp16(sdxl_folder: Path) -> None:
    """SDXL's VAE has activations beyond what fp16 holds."""
    family = loaded(sdxl_folder)
    pixels = make_batch([1]).pixels_BCHW
    expected = family.encode_images(pixels, [1])
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(family.encode_images(pixels, [1]), expected)
        narrow = torch.ones(2, 2) @ torch.ones(2, 2)
    assert narrow.dtype == torch.float16


# --- methods


@torch.no_grad()
def told(family: Any) -> torch.Tensor:
    crops = [Crop((64, 64), 0, 0, (64, 64), False)] * 2
    x = torch.randn(2, 4, 8, 8, generator=torch_generator(4))
    prediction: torch.Tensor = family.predict(x, torch.tensor([7, 700]), family.encode_text(["a cat", "dogs"], crops))
    return prediction


@pytest.mark.parametrize(("form", "targets"), [
    ("safetensors", ["attention", "feed_forward", "convolution"]), ("diffusers", ["attention"]),
])  # fmt: skip
def test_a_lora_opens_in_diffusers(sdxl_folder: Path, tmp_path: Path, targets: list[str], form: str) -> None:
    family = loaded(sdxl_folder)
    base = told(family)
    method = make_method("lora", lora=LoraSettings(rank=4, alpha=2.0, targets=targets))
    groups = method.attach(family, 0, ["a"])
    assert [group.part for group in groups] == PARTS[:3] and torch.equal(told(family), base)
    for number, parameter in enumerate(p for group in groups for p in group.parameters):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch_generator(number))
    trained = told(family)
    [path] = method.export(family, tmp_path / "adapter", form, torch.float32)
    if form == "safetensors":
        keys = load_file(path).keys()
        assert (
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight" not in keys
        )  # one level less
        assert "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_q.lora_down.weight" in keys
        assert "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight" in keys
        assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha" in keys
        assert "lora_te2_text_model_encoder_layers_1_self_attn_v_proj.lora_up.weight" in keys
        assert ("lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight" in keys) == (len(targets) == 3)
    merged = loaded(sdxl_folder)
    merge_adapter(merged, path if path.is_file() else path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(told(merged), trained, atol=1e-5, rtol=1e-4)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True)
    name = path.name if path.is_file() else "pytorch_lora_weights.safetensors"
    pipeline.load_lora_weights(path.parent if path.is_file() else path, weight_name=name)
    with torch.no_grad():
        tokens, pooled = encoded_by_diffusers(pipeline, ["a cat", "dogs"])
        x = torch.randn(2, 4, 8, 8, generator=torch_generator(4))
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
        theirs = pipeline.unet(x, torch.tensor([7, 700]), tokens, added_cond_kwargs=added).sample
    assert not torch.allclose(trained, base, atol=1e-3)
    torch.testing.assert_close(trained, theirs, atol=1e-5, rtol=1e-4)


def test_a_word_is_learned_by_both_encoders(sdxl_folder: Path, tmp_path: Path) -> None:
    family = loaded(sdxl_folder)
    words = TextualInversionSettings(words=[WordSettings(token="<rex>", vectors=2, init="small dog")])
    method = make_method("textual_inversion", textual_inversion=words)
    groups = method.attach(family, 0, ["a <rex>"])
    assert [[p.shape for p in group.parameters] for group in groups] == [[(2, 32)], [(2, 64)]]
    for number, group in enumerate(groups):
        group.parameters[0].data += 0.02 * torch.randn(2, (32, 64)[number], generator=torch_generator(number))
    batch = cropped_batch([0, 1])
    batch.captions[:] = ["a <rex>", "<rex>"]
    training_step(batch, family, LossSettings(), 2).loss.backward()
    assert all(float(group.parameters[0].grad.abs().sum()) > 0 for group in groups)
    [path] = method.export(family, tmp_path / "rex", "safetensors", torch.float32)
    tensors = load_file(path)
    assert tensors.keys() == {"clip_l", "clip_g"}
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True)
    for key, tokenizer, encoder in (
        ("clip_l", "tokenizer", "text_encoder"),
        ("clip_g", "tokenizer_2", "text_encoder_2"),
    ):
        pipeline.load_textual_inversion(
            tensors[key], token="<rex>", text_encoder=getattr(pipeline, encoder), tokenizer=getattr(pipeline, tokenizer)
        )
    again = loaded(sdxl_folder)
    learn_files(again, [path])
    crop = [Crop((64, 64), 0, 0, (64, 64), False)]
    with torch.no_grad():
        theirs = pipeline.encode_prompt("a <rex> in snow", device="cpu", num_images_per_prompt=1)
        for ours in (family, again):
            found = ours.encode_text(["a <rex> in snow"], crop)
            torch.testing.assert_close(found.tokens_BLD, theirs[0], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(found.pooled_BD, theirs[2], atol=1e-6, rtol=1e-6)
    save_file({"clip_l": tensors["clip_l"]}, tmp_path / "half.safetensors")
    with pytest.raises(FormatError, match="holds no clip_g, which a word for this sdxl model needs"):
        learn_files(loaded(sdxl_folder), [tmp_path / "half.safetensors"])
    save_file({"<rex>": torch.zeros(1, 32)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="is no embedding for a model with two text encoders"):
        learn_files(loaded(sdxl_folder), [tmp_path / "other.safetensors"])


# --- runs


def test_a_run_resumes_to_the_bit_and_the_tools_take_its_files(
    project: Callable[..., Path], sdxl_folder: Path, tmp_path: Path
) -> None:
    """Trained with samples, stopped, resumed; then pruned, converted, merged and sampled."""
    from everydream.tools.models.convert import convert
    from everydream.tools.models.merge import merge
    from everydream.tools.models.prune import prune

    sections: dict[str, Any] = {
        "model": {"path": str(sdxl_folder)}, "samples": {"every_steps": 2, "steps": 1, "prompts": None},
        "text_encoder_2": {"lr": 5e-5}, "train": {"epochs": 1, "max_steps": 2}, "lr_schedule": {"name": "constant"},
    }  # fmt: skip
    config = project(**sections)
    whole = train_here(config)
    assert (whole / "samples" / "s000002-grid.png").exists()
    rates = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert {key: rates[key] for key in rates if key.startswith("lr/")} == {
        "lr/unet": 1e-3, "lr/text_encoder": 1e-4, "lr/text_encoder_2": 5e-5,
    }  # fmt: skip
    half = train_here(config, "train.max_steps=1")
    last = Path("checkpoints") / "last.ckpt"
    resumed = train_here(config, resume=half / last, allow_changes=True)
    first, second = (torch.load(run / last, weights_only=True) for run in (whole, resumed))
    for section in ("state_dict", "optimizer"):
        assert first[section].keys() == second[section].keys()
    assert [k for k, t in first["state_dict"].items() if not torch.equal(t, second["state_dict"][k])] == []
    assert metrics_of(whole) == metrics_of(resumed)
    trained = loaded(whole / last)
    before = loaded(sdxl_folder).single_file()
    changed = {k.split(".")[0] for k, t in trained.single_file().items() if not torch.equal(t, before[k])}
    assert changed == {"model", "conditioner"}

    prune(whole / last, tmp_path / "pruned.safetensors", "drop", half=True, overwrite=False)
    convert(tmp_path / "pruned.safetensors", tmp_path / "folder", None, None, overwrite=False)
    assert StableDiffusionXLPipeline.from_pretrained(tmp_path / "folder").text_encoder_2 is not None
    again = loaded(tmp_path / "folder").single_file()
    assert [k for k, t in trained.single_file().items() if not torch.equal(again[k], t.half().float())] == []
    family = loaded(sdxl_folder)
    method = make_method("lora", lora=LoraSettings(rank=2))
    method.attach(family, 0, ["a"])
    [adapter] = method.export(family, tmp_path / "adapter", "safetensors", torch.float32)
    merge(str(sdxl_folder), [str(adapter)], tmp_path / "merged.safetensors", "fp32", overwrite=False)
    assert loaded(tmp_path / "merged.safetensors").name == "sdxl"


def coordinates(width: int, height: int) -> Image.Image:
    """Return a picture whose red says x and whose green says y, in pixels."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("flip_p", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["random", "center"])
def test_sizes_and_crops_are_those_of_the_pixels(
    project: Callable[..., Path], sdxl_folder: Path, tmp_path: Path, flip_p: float, mode: str
) -> None:
    """Defects 11 and 12: the pixels say where they come from, and the conditioning says the same."""
    folder = tmp_path / "coordinates"
    folder.mkdir()
    sizes = [(200, 120), (90, 230), (128, 128), (64, 100), (250, 250)]
    for number, size in enumerate(sizes):
        coordinates(*size).save(folder / f"picture {number}.png")
    (folder / "local.yaml").write_text(f"flip_p: {flip_p}\n")
    data = {
        "resolution": 64, "bucket_step": 16, "workers": 0, "crop": mode, "sources": [{"path": str(folder)}],
    }  # fmt: skip
    planned = plan_run(load_config(project(data=data, model={"path": str(sdxl_folder)})))
    family, seen = loaded(sdxl_folder), 0
    for epoch in range(3):
        plan = planned.epoch(epoch)
        pieces = list(pieces_for_rank(plan, 0, 1))
        dataset = PieceDataset(pieces, plan, planned.index, planned.buckets, planned.config.data, 5)
        for number in range(len(pieces)):
            batch = dataset[number].batch
            with torch.no_grad():
                told_B6 = family.encode_text(batch.captions, batch.crops).sizes_B6
            for pixels_CHW, crop, told_6 in zip(batch.pixels_BCHW, batch.crops, told_B6, strict=True):
                height, width, top, left, out_height, out_width = told_6.int().tolist()
                assert (width, height) in sizes and crop.flipped == bool(flip_p)
                assert pixels_CHW.shape[1:] == (out_height, out_width)
                scale = max(out_width / width, out_height / height)
                x, y = pixels_CHW[0].float().numpy(), pixels_CHW[1].float().numpy()
                middle = (out_height // 2, out_width // 2)
                # Where that pixel is in the file: out of the crop, out of the mirror, out of the resize.
                across, down = (left + middle[1] + 0.5) / scale - 0.5, (top + middle[0] + 0.5) / scale - 0.5
                across = width - 1 - across if crop.flipped else across
                assert abs(x[middle] - across) < 1.6 and abs(y[middle] - down) < 1.6
                seen += 1
    assert seen == 3 * len(sizes)
