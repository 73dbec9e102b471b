"""What stands behind an axis's name, and in which order cells are drawn."""

from pathlib import Path

import pytest

from everydream.errors import ConfigError
from everydream.tools.grid.axes import Cell, cells_of, drawing_order, read_axis
from everydream.tools.grid.sources import Source, Sources
from everydream.tools.grid.values import items, known, numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 5,10-13", [1, 5, 10, 11, 12, 13]),
        ("3-9 (+2)", [3, 5, 7, 9]),
        ("9-3 (-3)", [9, 6, 3]),
        ("3-1", [3, 2, 1]),
        ("0-1 [5]", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0.1-0.4 (+0.1)", [0.1, 0.2, 0.3, 0.4]),
        ("-1-1 (+0.5)", [-1.0, -0.5, 0.0, 0.5, 1.0]),
        ("7 - 7", [7]),
        ("2-9 [1], 2", [2]),
    ],
)
def test_ranges(text: str, expected: list[float]) -> None:
    assert numbers("guidance", text, whole=False) == expected


def test_whole_numbers_are_whole() -> None:
    assert numbers("steps", "10-20 [3]", whole=True) == [10, 15, 20]
    assert all(isinstance(number, int) for number in numbers("steps", "1-3", whole=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1..5", r"'1\.\.5' is neither a number nor a range\. Ranges are 1-10, 1-10 \(\+2\)"),
        ("1-5 (-1)", r"never gets from 1 to 5 in steps of -1; try \(\+1\)"),
        ("1-5 (0)", "never gets from"),
        ("0-1 [0]", "asks for 0 values"),
        ("1-9999999", "more than 1000 values"),
        ("2.5", "2.5 is not a whole number; nearest is 2"),
    ],
)
def test_what_is_no_range_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbers("steps", text, whole=True)


def test_lists_are_quoted_as_in_csv() -> None:
    assert items('dog, "a cat, sleeping" , "said ""no""",') == ["dog", "a cat, sleeping", 'said "no"']
    with pytest.raises(ConfigError, match=r"there is no 'eulr'\. Did you mean euler\? Known are ddim, euler"):
        known("sampler", "eulr", ["ddim", "euler"])


CELL = Cell("m", "a photo of a dog by a dog house")


def test_axes_change_what_they_are_called_after() -> None:
    sources = Sources()
    prompt = read_axis('prompt: a dog, "a cat, a rat"', CELL, sources)
    assert [prompt.put(CELL, value).prompt for value in prompt.values] == [
        CELL.prompt, "a photo of a cat, a rat by a cat, a rat house"
    ]  # fmt: skip
    size = read_axis("Size: 64, 64x48", CELL, sources)
    assert [(c.width, c.height) for c in (size.put(CELL, v) for v in size.values)] == [(64, 64), (64, 48)]
    assert size.labels == ["64x64", "64x48"]
    strength = read_axis("lora strength: 0-1 [3]", CELL, sources)
    assert [strength.put(CELL, value).lora_strength for value in strength.values] == [0.0, 0.5, 1.0]
    ema = read_axis("ema: on, OFF", CELL, sources)
    assert (ema.values, ema.labels) == ([True, False], ["averaged", "trained"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1-3", "axis: there is no 'sed'. Did you mean seed?"),
        ("seed", "An axis is a name and values"),
        ("seed: -1", "seed: -1 is below 0"),
        ("prompt: bird, cat", "'bird' is what the others stand for, and the prompt"),
        ("sampler: dmpp_2m", "Did you mean dpmpp_2m?"),
        ("size: large", "'large' is no size in pixels"),
        ("checkpoint: nowhere.ckpt", "there is nothing at"),
        ("lora: nowhere.safetensors", "There is no adapter at"),
        ("seed: ,", "names no value"),
    ],
)
def test_axes_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_axis(text, CELL, Sources())
    assert message in str(error.value)


def test_the_costly_axis_is_outermost_whatever_its_letter(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    sources = Sources()
    texts = [f"checkpoint: {tmp_path / 'a'}, {tmp_path / 'b'}", "seed: 1-2", "lora strength: 0, 1"]
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]):
        axes = [read_axis(texts[n], CELL, sources) for n in order]
        cells = cells_of(CELL, axes)
        drawn = [(cell.checkpoint, cell.lora_strength, cell.seed) for cell in cells.values()]
        assert drawn == sorted(drawn) and len(drawn) == 8
        assert [axes[n].name for n in drawing_order(axes)] == ["checkpoint", "lora strength", "seed"]
        for place, cell in cells.items():
            assert all(axis.put(cell, axis.values[n]) == cell for axis, n in zip(axes, place, strict=True))
    assert list(sources.found) == ["a", "b"] and isinstance(sources.found["a"], Source)
    with pytest.raises(ConfigError, match="Two axes vary the seed"):
        cells_of(CELL, [read_axis("seed: 1-2", CELL, sources)] * 2)
