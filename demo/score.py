"""Sampling with diffusers, and the scoreboard: what was asked for against what the pixels show.

    sample(folder, prompts, seeds) -> images -> score(images, expected) -> Scoreboard -> write_report

The judge (`demo.shapes.classify`) has no learned part. Known shapes and the new one are counted
apart: the demo's claim is about both.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.shapes import KNOWN_SHAPES, NEW_SHAPE, SHAPES, SIZE_PX, Subject, classify, held_out, subjects
from everydream.seeding import derive, torch_generator

_BATCH = 48
_ROWS = 8
_CELL_PX = 96
_FRAME_PX = 3
_LABEL_PX = 300
_HEAD_PX = 26
_GAP_PX = 30
_RIGHT, _WRONG = (30, 140, 60), (200, 40, 40)


@dataclass(frozen=True)
class Shares:
    """Shares of pictures that are right, in [0, 1]; zero where there are none."""

    num: int
    shape: float
    colour: float
    background: float
    all_three: float


@dataclass(frozen=True)
class Scoreboard:
    """The new concept and what was known before, counted apart."""

    new: Shares
    old: Shares


def exam(seed: int = 0, num_new_each: int = 8) -> tuple[list[Subject], list[int]]:
    """Return what to ask a model and the seed of each picture: unseen rings, and all known subjects once."""
    asked = [subject for subject in held_out() for _ in range(num_new_each)] + subjects(KNOWN_SHAPES)
    return asked, [derive(seed, "sample", i) for i in range(len(asked))]


def score(images: Sequence[Image.Image], expected: Sequence[Subject]) -> Scoreboard:
    """Return how many pictures show what was asked for."""
    seen = [(classify(image), subject) for image, subject in zip(images, expected, strict=True)]
    new = [pair for pair in seen if pair[1].shape == NEW_SHAPE]
    old = [pair for pair in seen if pair[1].shape != NEW_SHAPE]
    return Scoreboard(_shares(new), _shares(old))


def by_prompts(images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, float]:
    """Return the percentages of right pictures, new and known shapes apart: for `everydream evaluate --scorer`.

    Pictures whose prompt is none of the demo's sentences are left out.
    """
    sentences = {subject.caption: subject for subject in subjects(SHAPES)}
    asked = [pair for pair in zip(images, prompts, strict=True) if pair[1] in sentences]
    board = score([image for image, _ in asked], [sentences[prompt] for _, prompt in asked])
    shares = {"new shape": board.new, "known shapes": board.old}
    return {f"{name} right %": 100.0 * one.all_three for name, one in shares.items() if one.num}


def _shares(seen: Sequence[tuple[Subject, Subject]]) -> Shares:
    num = max(1, len(seen))
    return Shares(
        num=len(seen),
        shape=sum(a.shape == b.shape for a, b in seen) / num,
        colour=sum(a.colour == b.colour for a, b in seen) / num,
        background=sum(a.background == b.background for a, b in seen) / num,
        all_three=sum(a == b for a, b in seen) / num,
    )


def describe(board: Scoreboard) -> str:
    """Return the scoreboard as lines of text."""
    lines = [f"{'':4} {'n':>4} {'shape':>7} {'colour':>7} {'backgr.':>7} {'all':>7}"]
    for name, shares in (("new", board.new), ("old", board.old)):
        if shares.num:
            values = (shares.shape, shares.colour, shares.background, shares.all_three)
            lines.append(f"{name:4} {shares.num:4} " + " ".join(f"{value:7.1%}" for value in values))
    return "\n".join(lines)


@torch.no_grad()
def sample(
    model: Path | Any, prompts: Sequence[str], seeds: Sequence[int], steps: int = 20, guidance: float = 3.0
) -> list[Image.Image]:
    """Return one picture a prompt. `model` is a diffusers folder or a pipeline that is already loaded.

    Every picture has a seed of its own, so it does not depend on the batch it is drawn in.
    """
    pipeline = load(model) if isinstance(model, str | Path) else model
    images: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        result = pipeline(
            list(prompts[part]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch_generator(seed) for seed in seeds[part]],
            height=SIZE_PX,
            width=SIZE_PX,
        )
        images.extend(result.images)
    return images


def load(folder: Path | str) -> Any:
    """Return diffusers' pipeline for a folder, in fp32 and silent."""
    import transformers  # noqa: PLC0415 (seconds to import)

    transformers.logging.set_verbosity_error()  # or it tells what it falls back to without torchvision, unused here
    from diffusers import DDIMScheduler, StableDiffusionPipeline, logging  # noqa: PLC0415

    logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()

    pipeline = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None, requires_safety_checker=False)
    pipeline.text_encoder.float()  # transformers 5 keeps the precision of the file, diffusers does not.
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_report(folder: Path, expected: Sequence[Subject], columns: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write report.md, report.json and grid.png; `columns` are the stages, such as before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    boards = {name: score(images, expected) for name, images in columns.items()}
    numbers = {name: asdict(board) for name, board in boards.items()}
    (folder / "report.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(boards), encoding="utf-8")
    picture_grid(expected, columns).save(folder / "grid.png", optimize=True)


def _markdown(boards: Mapping[str, Scoreboard]) -> str:
    rows = []
    for name, board in boards.items():
        for what, shares in ((f"new ({NEW_SHAPE})", board.new), ("known", board.old)):
            values = (shares.shape, shares.colour, shares.background, shares.all_three)
            cells = " | ".join(f"{value:.1%}" for value in values)
            rows.append(f"| {name} | {what} | {shares.num} | {cells} |")
    head = [
        "| stage | shapes | pictures | shape | colour | background | all three |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    text = "Shares of pictures that show what the prompt asked for, told by pixels (`demo/shapes.py`)."
    return "\n".join(["# Scoreboard", "", text, "", *head, *rows, "", "![pictures](grid.png)", ""])


def picture_grid(expected: Sequence[Subject], columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Return a row a prompt and a column a stage; a green frame is right, a red one wrong."""
    rows = _rows_to_show(expected)
    step_px = _CELL_PX + 2 * _FRAME_PX + _GAP_PX
    size = (_LABEL_PX + step_px * len(columns), _HEAD_PX + step_px * len(rows))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for x, (name, images) in enumerate(columns.items()):
        left = _LABEL_PX + x * step_px
        pen.text((left, 6), name, "black", font)
        for y, row in enumerate(rows):
            is_right = classify(images[row]) == expected[row]
            sheet.paste(_framed(images[row], _RIGHT if is_right else _WRONG), (left, _HEAD_PX + y * step_px))
    for y, row in enumerate(rows):
        pen.text((_GAP_PX, _HEAD_PX + y * step_px + _CELL_PX // 2 - 6), expected[row].caption, "black", font)
    return sheet


def _rows_to_show(expected: Sequence[Subject]) -> list[int]:
    """Return pictures spread evenly over the new shape and over the known ones, half of the rows each."""
    new = [i for i, subject in enumerate(expected) if subject.shape == NEW_SHAPE]
    old = [i for i, subject in enumerate(expected) if subject.shape != NEW_SHAPE]
    half = _ROWS // 2
    return [part[i * len(part) // half] for part in (new, old) for i in range(half) if i < len(part)]


def _framed(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    side_px = _CELL_PX + 2 * _FRAME_PX
    framed = Image.new("RGB", (side_px, side_px), colour)
    inner_px = _CELL_PX - 4
    # A white line between frame and picture, which may be of the frame's colour.
    framed.paste("white", (_FRAME_PX, _FRAME_PX, _FRAME_PX + _CELL_PX, _FRAME_PX + _CELL_PX))
    framed.paste(image.resize((inner_px, inner_px), Image.Resampling.BICUBIC), (_FRAME_PX + 2, _FRAME_PX + 2))
    return framed
