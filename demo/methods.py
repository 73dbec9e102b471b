"""`python -m demo.methods`: every method teaches the demo's model the ring; scored, and written into the docs.

    configs/demo*.yaml + overrides -> a killed and resumed trial -> training -> the export, opened -> the exam

An export is opened as a user would: whole models by themselves, the others on top of the base model. What diffusers
can open is opened there too, and both have to predict the same and to draw the same pictures from the same noise.
"""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from demo import sizes
from demo.board import QUIET, train, with_table
from demo.run import ROOT
from demo.score import exam, load, picture_grid
from demo.shapes import KNOWN_SHAPES, NEW_SHAPE, SIZE_PX, Subject, classify
from everydream.config import load_config
from everydream.diffusion.noise import gaussian
from everydream.models.family import Family
from everydream.sampling.sampler import looking_only, sample_images
from everydream.tools.models.sample import prepared
from everydream.verify import verify

MODEL = "demo/model"
PAGE, GRID = Path("docs/methods.md"), Path("docs/methods.png")
START, END = "<!-- scores: written by `make methods` -->", "<!-- end of scores -->"
SIZES_START, SIZES_END = "<!-- sizes: written by `make methods` -->", "<!-- end of sizes -->"
_WHOLE = ("full", "dreambooth")
_ALL_TARGETS = "lora.targets=[attention, feed_forward, convolution]"
_LORA = "configs/demo_lora.yaml"
_WORDS = "configs/demo_textual_inversion.yaml"
_TRIAL_STEPS = 6
_BATCH = 46
_COMPARED = 12


@dataclass(frozen=True)
class Way:
    """A method, or a variety of one."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    shape: str = NEW_SHAPE
    """What it is taught."""
    is_for_diffusers: bool = True
    """Whether diffusers can open its file."""

    @property
    def method(self) -> str:
        """What its config calls it."""
        return load_config(ROOT / self.config, list(self.overrides)).method

    @property
    def word(self) -> str:
        """What captions call the shape; textual inversion's word must not be in the vocabulary, as the shapes' are."""
        return f"<{self.shape}>" if self.method == "textual_inversion" else self.shape


WAYS = (
    Way("full", "configs/demo.yaml", ("checkpoints.every_steps=null",)),
    Way("full: attention", "configs/demo.yaml", ("checkpoints.every_steps=null", "unet.only=[attention]")),
    Way("dreambooth", "configs/demo_dreambooth.yaml"),
    Way("lora", _LORA),
    Way("lora: LoCon", _LORA, (_ALL_TARGETS, "unet.lr=3e-3", "text_encoder.lr=3e-3")),
    Way("lora: LoHa", _LORA, (_ALL_TARGETS, "lora.kind=loha", "lora.rank=8"), is_for_diffusers=False),
    Way("lora: LoKr", _LORA, (_ALL_TARGETS, "lora.kind=lokr", "lora.rank=8"), is_for_diffusers=False),
    Way("textual inversion", _WORDS),
    Way(
        "a word for triangles",
        _WORDS,
        ("data.sources.0.path=datasets/demo/new_word_triangle.csv", "textual_inversion.words.0.token=<triangle>"),
        shape="triangle",
    ),
    Way("hypernetwork", "configs/demo_hypernetwork.yaml", is_for_diffusers=False),
)


@dataclass(frozen=True)
class Result:
    """What one way gave; shares of pictures are in [0, 1]."""

    learned: float
    """Of the shape that was taught."""
    kept: float
    """Of the other shapes that the model knew."""
    seconds: float
    """Of the whole process that trained."""
    file_bytes: int
    in_diffusers: tuple[float, int] | None
    """Largest differences of a prediction and of a pixel (of 255) from diffusers; None: it cannot open the file."""


def export_of(run: Path) -> Path:
    """Return a run's only export."""
    (export,) = (path for path in (run / "checkpoints").iterdir() if path.name != "last.ckpt")
    return export


def bytes_of(export: Path) -> int:
    """Return the size of an export: a file, or of a model's folder the weights."""
    files = export.rglob("*.safetensors") if export.is_dir() else [export]
    return sum(path.stat().st_size for path in files)


def opened(method: str, export: Path) -> Family:
    """Return the taught model: the export itself, or the base with it."""
    return prepared(
        str(export) if method in _WHOLE else MODEL,
        [str(export)] if method == "lora" else [],
        [export] if method == "textual_inversion" else [],
        str(export) if method == "hypernetwork" else None,
        0,
    )


def opened_by_diffusers(way: Way, export: Path) -> Any:
    """Return diffusers' pipeline of the taught model."""
    pipeline = load(export if way.method in _WHOLE else MODEL)
    if way.method == "lora":
        pipeline.load_lora_weights(export.parent, weight_name=export.name)
    if way.method == "textual_inversion":
        pipeline.load_textual_inversion(export.parent, weight_name=export.name, token=way.word)
    return pipeline


def share_right(pictures: Sequence[Image.Image], asked: Sequence[Subject], shapes: Collection[str]) -> float:
    """Return the share of pictures with shape, colour and background all right, among those of `shapes`."""
    judged = [classify(picture) == subject for picture, subject in zip(pictures, asked, strict=True)
              if subject.shape in shapes]  # fmt: skip
    return sum(judged) / len(judged)


def draw(family: Family, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """Return one picture a prompt, drawn as the exam asks."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        drawn = sample_images(family, prompts[part], seeds[part], width=SIZE_PX, height=SIZE_PX, steps=20, guidance=3.0)
        pictures += [Image.fromarray(pixels) for pixels in drawn]
    return pictures


@torch.no_grad()
def differences(family: Family, pipeline: Any, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[float, int]:
    """Return the largest differences between ours and diffusers' model: of a prediction, and of a picture's values."""
    noise = gaussian(seeds, "sample", (4, SIZE_PX // family.spatial_factor, SIZE_PX // family.spatial_factor))
    t = torch.linspace(1, 999, len(prompts)).long()
    told = pipeline.encode_prompt(list(prompts), "cpu", 1, False)[0]
    with looking_only(family):
        ours = family.predict(noise, t, family.encode_text(prompts, []))
    prediction = float((ours - pipeline.unet(noise, t, told).sample).abs().max())
    size = {"width": SIZE_PX, "height": SIZE_PX}
    drawn = pipeline(list(prompts), latents=noise, num_inference_steps=20, guidance_scale=3.0, **size).images
    pixels = [
        np.stack([np.asarray(p, np.int16) for p in pictures]) for pictures in (draw(family, prompts, seeds), drawn)
    ]
    return prediction, int(np.abs(pixels[0] - pixels[1]).max())


def measure(way: Way, runs_dir: Path) -> tuple[Result, list[Image.Image]]:
    """Prove the resume, train, open the export and let it draw the exam; return the pictures too."""
    print(f"\n{way.name}: {verify(Path(way.config), list(way.overrides), _TRIAL_STEPS)}\n", flush=True)
    started = time.monotonic()
    run = train(way.config, [f"runs_dir={runs_dir}", *way.overrides, *QUIET], runs_dir)
    seconds = time.monotonic() - started
    export, (asked, seeds) = export_of(run), exam()
    prompts = [subject.caption.replace(way.shape, way.word) for subject in asked]
    family = opened(way.method, export)
    pictures = draw(family, prompts, seeds)
    compared = None
    if way.is_for_diffusers:
        some = slice(None, None, len(asked) // _COMPARED)
        compared = differences(family, opened_by_diffusers(way, export), prompts[some], seeds[some])
    learned = share_right(pictures, asked, {way.shape})
    kept = share_right(pictures, asked, {*KNOWN_SHAPES} - {way.shape})
    return Result(learned, kept, seconds, bytes_of(export), compared), pictures


def table(before: tuple[float, float], results: Mapping[str, Result]) -> str:
    """Return the table of the page; `before` is what the untrained model draws right."""
    head = [
        "| method | learned | known shapes kept | seconds | file | in diffusers: prediction, pixels |",
        "|---|---:|---:|---:|---:|---:|",
        f"| before training | {100 * before[0]:.0f} % | {100 * before[1]:.0f} % | | | |",
    ]
    rows = [
        f"| {name} | {100 * r.learned:.0f} % | {100 * r.kept:.0f} % | {r.seconds:.0f} | {sizes.told(r.file_bytes)} | "
        + (f"{r.in_diffusers[0]:.1g}, {r.in_diffusers[1]} of 255 |" if r.in_diffusers else "not opened there |")
        for name, r in results.items()
    ]
    return "\n".join([*head, *rows])


def main() -> None:
    """Measure every method from the repository's root and write the page's tables and picture."""
    os.chdir(ROOT)
    started = time.monotonic()
    folder = Path("runs") / f"methods-{time.strftime('%Y%m%d-%H%M%S')}"
    asked, seeds = exam()
    columns = {"before": draw(prepared(MODEL, [], [], None, 0), [subject.caption for subject in asked], seeds)}
    before = share_right(columns["before"], asked, {NEW_SHAPE}), share_right(columns["before"], asked, KNOWN_SHAPES)
    results = {}
    for number, way in enumerate(WAYS):
        results[way.name], columns[way.name] = measure(way, folder / str(number))
    scores = table(before, results)
    page = with_table(PAGE.read_text(encoding="utf-8"), scores, START, END)
    text = sizes.table({name: sizes.size_of(sections) for name, sections in sizes.DEFAULTS.items()})
    PAGE.write_text(with_table(page, text, SIZES_START, SIZES_END), encoding="utf-8")
    # In 256 colours, half the bytes, and no difference to the eye.
    picture_grid(asked, columns).quantize(256, dither=Image.Dither.NONE).save(GRID, optimize=True)
    print(f"\n{scores}\n\nWritten to {PAGE} and {GRID} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
