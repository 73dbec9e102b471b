"""What shows the same picture is found; what only looks like it to a hash is not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageEnhance

from everydream.data.likeness import Cluster, clusters, components, links, twins
from everydream.data.looking import Look, look_at
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings

SHARED = ROOT.parent / "shared" / "data"


def picture(seed: int, size: tuple[int, int] = (384, 256)) -> Image.Image:
    """Return something like a photo: colours that vary over several scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((*size[::-1], 3), np.float32)
    for side, weight in ((3, 0.5), (7, 0.3), (19, 0.2)):
        layer = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += weight * np.asarray(layer.resize(size, Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(total.astype(np.uint8))


def seen(folder: Path) -> tuple[list[str], list[Look | None]]:
    paths = sorted(folder.iterdir())
    return [path.stem for path in paths], [(look_at(path) or (None,))[0] for path in paths]


def named(folder: Path) -> list[tuple[str, list[str]]]:
    names, looks = seen(folder)
    return [(cluster.kind, [names[member] for member in cluster.members]) for cluster in clusters(looks)]


def save_versions(folder: Path, seed: int) -> None:
    image = picture(seed)
    width, height = image.size
    image.save(folder / f"{seed} original.png")
    image.save(folder / f"{seed} encoded.jpg", quality=35)
    image.resize((width // 2, height // 2)).save(folder / f"{seed} half.png")
    ImageEnhance.Brightness(image).enhance(0.75).save(folder / f"{seed} dark.png")


def test_versions_of_a_picture_are_twins_and_other_pictures_are_not(tmp_path: Path) -> None:
    for seed in range(12):
        picture(seed).save(tmp_path / f"{seed} original.png")
    save_versions(tmp_path, 3)
    assert named(tmp_path) == [("near", ["3 dark", "3 encoded", "3 half", "3 original"])]


def test_kinds(tmp_path: Path) -> None:
    image = picture(1)
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert named(tmp_path) == [("same", ["a", "b"])]
    image.crop((24, 14, 362, 240)).save(tmp_path / "c.png")
    assert named(tmp_path) == [("alike", ["a", "b", "c"])]
    picture(2).save(tmp_path / "d.png")
    picture(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "e.png")
    assert named(tmp_path) == [("alike", ["a", "b", "c"]), ("mirrored", ["d", "e"])]


def test_what_is_symmetric_is_not_its_own_mirror_image(tmp_path: Path) -> None:
    half = picture(5, (128, 128))
    whole = Image.new("RGB", (256, 128))
    whole.paste(half, (0, 0))
    whole.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (128, 0))
    whole.save(tmp_path / "a.png")
    whole.save(tmp_path / "b.jpg", quality=80)
    assert named(tmp_path) == [("near", ["a", "b"])]


def test_likeness_is_not_handed_on(tmp_path: Path) -> None:
    """A long pan: each picture is much like the next one, and the first is nothing like the last."""
    wide = picture(7, (1600, 256))
    for step in range(24):
        wide.crop((step * 20, 0, step * 20 + 384, 256)).save(tmp_path / f"{step:02}.png")
    _, looks = seen(tmp_path)
    found = [cluster.members for cluster in clusters(looks)]
    assert found and all(cluster[-1] - cluster[0] <= 4 for cluster in found)
    assert len({member for cluster in found for member in cluster}) == sum(map(len, found))


def test_drawings_that_differ_in_colour_and_place_are_no_twins() -> None:
    """228 shapes of 64 pixels; of two that are a pixel apart nobody can tell."""
    paths = sorted((ROOT / "datasets" / "demo").rglob("*.png"))
    looks = [(look_at(path) or (None,))[0] for path in paths]
    found = [[paths[member].name for member in cluster.members] for cluster in clusters(looks)]
    assert len(looks) == 228
    assert found == [[f"a yellow square on a red background_({n}).png" for n in (1, 2)]]


def test_plain_pictures_are_twins_by_their_bytes_alone(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue"), ("d", "#fe0000")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    assert named(tmp_path) == [("same", ["a", "b"])]


def indexed(folders: Sequence[Path]) -> DataSettings:
    return DataSettings(sources=[SourceSettings(path=str(folder)) for folder in folders])


def test_twins_of_an_index_are_its_records(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_versions(tmp_path / name, 4)
        picture(9 if name == "one" else 10).save(tmp_path / name / "other.png")
    index = scan(indexed([tmp_path / "one", tmp_path / "two"]), CaptionSettings())
    calls: list[tuple[int, int]] = []
    found = twins(index, range(len(index)), lambda *done: calls.append(done))
    assert found == [[0, 1, 2, 3, 5, 6, 7, 8]] and calls[-1] == (10, 10)
    assert twins(index, np.array([8, 4, 9])) == []
    assert twins(index, [8, 1, 9]) == [[1, 8]]
    assert clusters([]) == [] and clusters([None, None]) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photographs are not beside this checkout")
def test_frames_of_one_scene_in_a_real_users_folder() -> None:
    paths = sorted((SHARED / "captionsets" / "mickey1928").rglob("*.png"))
    looks = [(look_at(path) or (None,))[0] for path in paths]
    found = [(cluster.kind, [paths[member].stem for member in cluster.members]) for cluster in clusters(looks)]
    assert found == [
        ("alike", ["Mickey and Minnie (7)", "Mickey and Minnie (8)"]),
        ("alike", ["Mickey with a hat (2)", "Mickey with a hat (3)"]),
    ]
    assert isinstance(clusters(looks)[0], Cluster)


def test_twins_hold_together_through_others() -> None:
    """What a is like to b and b to c: a set that is cut in two must keep all three on one side."""
    assert list(components(6, [[0, 1], [1, 4], [3, 2]])) == [[0, 1, 4], [2, 3], [5]]
    assert list(components(2, [])) == [[0], [1]]


def test_no_picture_outside_a_group_is_like_one_inside(tmp_path: Path) -> None:
    """A chain of crops, of which the ends are less alike than neighbours are."""
    image = picture(5)
    for number in range(6):
        image.crop((6 * number, 4 * number, image.width, image.height)).save(tmp_path / f"{number}.png")
    _, looks = seen(tmp_path)
    groups = [set(group) for group in components(len(looks), links(looks))]
    linked = {(link[0], other) for link in links(looks) for other in link[1:]}
    assert len(linked) >= 4 and all(any({a, b} <= group for group in groups) for a, b in linked)
    assert any(not {(0, 5), (5, 0)} & linked and {0, 5} <= group for group in groups), "or it shows nothing"
