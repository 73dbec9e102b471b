"""Pictures, captions, the judge, and the files in the repository that came from them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.make_data import concept, pictures, prompts
from demo.shapes import (
    COLOURS,
    KNOWN_SHAPES,
    NEW_SHAPE,
    SHAPES,
    SIZE_PX,
    UNCLEAR,
    Subject,
    classify,
    draw,
    held_out,
    inside,
    parse,
    subjects,
)

DATA = Path(__file__).parents[2] / "datasets" / "demo"


@pytest.mark.parametrize("seed", range(3))
def test_judge_is_right_on_every_fresh_picture(seed: int) -> None:
    assert [s for s in subjects(SHAPES) if classify(draw(s, seed)) != s] == []


def test_judge_rejects_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    assert classify(Image.fromarray(noise)) == Subject(UNCLEAR, UNCLEAR, UNCLEAR)


@pytest.mark.parametrize("colour", COLOURS)
def test_judge_sees_only_a_background_in_a_blank(colour: str) -> None:
    blank = Image.new("RGB", (SIZE_PX, SIZE_PX), colour)
    assert classify(blank) == Subject(UNCLEAR, UNCLEAR, colour)


def test_judge_rejects_half_a_picture() -> None:
    image = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
    image.paste("red", (0, 20, SIZE_PX, 28))
    assert classify(image) == Subject(UNCLEAR, "red", "white")


def test_judge_ignores_a_stray_pixel() -> None:
    subject = Subject("circle", "red", "blue")
    image = draw(subject, 0)
    image.putpixel((0, 0), (215, 40, 40))
    assert classify(image) == subject


def test_drawing_depends_on_the_seed_alone() -> None:
    subject = Subject("ring", "red", "blue")
    assert draw(subject, 1).tobytes() == draw(subject, 1).tobytes()
    assert draw(subject, 1).tobytes() != draw(subject, 2).tobytes()


@pytest.mark.parametrize("subject", subjects(SHAPES))
def test_captions_parse_back(subject: Subject) -> None:
    assert parse(subject.caption) == subject


@pytest.mark.parametrize(
    "caption",
    [
        "a red ring",
        "a red ring on a red background",
        "a pink ring on a red background",
        "a red moon on a blue background",
        "a red ring on a pink background",
    ],
)
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match=caption):
        parse(caption)


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'moon'"):
        inside("moon", np.zeros((1, 1)), np.zeros((1, 1)))


def test_held_out_subjects_are_new_and_not_in_the_concept_set() -> None:
    assert {s.shape for s in held_out()} == {NEW_SHAPE}
    assert {s.colour for s in held_out()} == set(COLOURS) == {s.background for s in held_out()}
    assert not set(held_out()) & set(concept())
    assert len(concept()) + len(held_out()) == len(subjects((NEW_SHAPE,)))


def test_files_are_what_the_script_draws() -> None:
    """Compared by pixels: compressed bytes depend on the zlib that Pillow was built with."""
    drawn = dict(pictures())
    assert {p.relative_to(DATA).as_posix() for p in DATA.rglob("*.png")} == set(drawn)
    for path, picture in drawn.items():
        with Image.open(DATA / path) as stored:
            assert stored.mode == picture.mode == "RGB"
            assert stored.tobytes() == picture.tobytes(), path
    assert (DATA / "prompts.txt").read_text(encoding="utf-8").splitlines() == prompts()


def test_file_names_caption_what_is_shown() -> None:
    for path in sorted(DATA.rglob("*.png")):
        subject = parse(path.name.split("_")[0])
        assert (subject.shape in KNOWN_SHAPES) == ("ground_truth" in path.parts)
        with Image.open(path) as stored:
            assert classify(stored) == subject


def test_data_stays_small() -> None:
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 400_000
