"""The scoreboard on known pictures, its report, and the shipped model's folder."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from demo.make_data import concept
from demo.score import describe, exam, load, picture_grid, sample, score, write_report
from demo.shapes import NEW_SHAPE, SIZE_PX, Subject, draw, held_out, parse, subjects

MODEL = Path(__file__).parents[2] / "demo" / "model"
RING, CIRCLE = Subject("ring", "red", "blue"), Subject("circle", "red", "blue")


@pytest.fixture(scope="module")
def pipeline() -> object:
    return load(MODEL)


def test_shares_count_each_word_and_keep_new_and_old_apart() -> None:
    asked = [RING, RING, CIRCLE, CIRCLE]
    shown = [RING, CIRCLE, CIRCLE, Subject("circle", "green", "white")]
    board = score([draw(subject, 0) for subject in shown], asked)
    assert (board.new.num, board.new.shape, board.new.colour, board.new.all_three) == (2, 0.5, 1.0, 0.5)
    assert (board.old.num, board.old.shape, board.old.colour, board.old.background) == (2, 1.0, 0.5, 0.5)


def test_empty_side_scores_zero_and_is_not_printed() -> None:
    board = score([draw(RING, 0)], [RING])
    assert (board.old.num, board.old.all_three) == (0, 0.0)
    assert "old" not in describe(board)


def test_as_many_pictures_as_prompts_are_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        score([draw(RING, 0)], [RING, CIRCLE])


def test_exam_asks_for_unseen_rings_and_every_known_subject() -> None:
    asked, seeds = exam()
    new = [subject for subject in asked if subject.shape == NEW_SHAPE]
    assert len(new) == 48
    assert not set(new) & set(concept())
    assert len(asked) == len(seeds) == len(set(seeds)) == 48 + 90


def test_report_has_numbers_table_and_grid(tmp_path: Path) -> None:
    asked = [*held_out(), *subjects(("circle",))]
    right, wrong = [draw(s, 0) for s in asked], [draw(RING, i) for i in range(len(asked))]
    write_report(tmp_path, asked, {"before": wrong, "after": right})
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["after"]["new"]["all_three"] == 1.0
    assert numbers["before"]["old"]["all_three"] == 0.0
    assert "| after | known | 30 | 100.0% | 100.0% | 100.0% | 100.0% |" in (tmp_path / "report.md").read_text()
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == picture_grid(asked, {"before": wrong, "after": right}).size


def test_grid_frames_wrong_pictures_red_and_right_ones_green() -> None:
    grid = picture_grid([RING], {"wrong": [draw(CIRCLE, 0)], "right": [draw(RING, 0)]})
    colours = {pixel for _, pixel in grid.getcolors(1 << 20) or []}
    assert {(200, 40, 40), (30, 140, 60)} <= colours


def test_model_is_small_and_complete() -> None:
    assert sum(p.stat().st_size for p in MODEL.rglob("*") if p.is_file()) <= 10_000_000
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        assert (MODEL / "tokenizer" / name).is_file()


def test_text_encoder_keeps_the_prefix_older_readers_need() -> None:
    with safe_open(MODEL / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118 (not a dict)


def test_tokens_are_clips(pipeline: object) -> None:
    ids = pipeline.tokenizer("a photo of a cat").input_ids  # type: ignore[attr-defined]
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_model_draws_what_it_knows_and_not_the_new_shape(pipeline: object) -> None:
    asked = [*subjects(("circle", "square", "triangle"))[::15], held_out()[0]]
    torch.manual_seed(0)
    images = sample(pipeline, [s.caption for s in asked], list(range(len(asked))))
    assert images[0].size == (SIZE_PX, SIZE_PX)
    board = score(images, asked)
    assert board.old.all_three >= 0.6
    assert board.new.shape == 0.0


def test_a_picture_does_not_depend_on_its_batch(pipeline: object) -> None:
    prompts = [CIRCLE.caption, parse("a green square on a white background").caption]
    together, alone = sample(pipeline, prompts, [1, 2], steps=2), sample(pipeline, prompts[1:], [2], steps=2)
    difference = [abs(a - b) for a, b in zip(together[1].tobytes(), alone[0].tobytes(), strict=True)]
    assert max(difference) <= 2
