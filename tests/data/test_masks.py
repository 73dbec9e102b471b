"""Masks: which files are, what they must be, and that they follow the crop to the pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everydream.data.buckets import Buckets
from everydream.data.loader import PieceDataset
from everydream.data.plan import Piece
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.types import EpochPlan, Index
from pictures.decode import decode_for


def data_of(folder: Path, **settings: object) -> DataSettings:
    return DataSettings(sources=[SourceSettings(path=str(folder), name="mine")], resolution=64, **settings)


def look(folder: Path, **settings: object) -> Index:
    return scan(data_of(folder, **settings), CaptionSettings())


def coordinates(width: int, height: int) -> np.ndarray:
    """Red is x, green is y."""
    y_HW, x_HW = np.mgrid[:height, :width].astype(np.uint8)
    return np.dstack([x_HW, y_HW, np.zeros_like(x_HW)])


def batch_of(index: Index, data: DataSettings, records: list[int], size: tuple[int, int], epoch: int = 0):
    plan = EpochPlan(
        epoch,
        np.array(records),
        np.zeros(len(records), np.int32),
        np.array([0, len(records)]),
        np.zeros(1, np.int32),
        1,
    )
    dataset = PieceDataset([Piece(0, 0, 0, len(records), True)], plan, index, Buckets((size,)), data, 5)
    return dataset[0]


def test_a_mask_beside_its_image_is_no_image(tmp_path: Path) -> None:
    for name in ("dog.jpg", "dog.mask.png", "cat.PNG", "cat.Mask.PNG", "alone.mask.png"):
        Image.new("RGB", (80, 64), "white").save(tmp_path / name)
    index = look(tmp_path)
    assert list(index.paths) == ["cat.PNG", "dog.jpg"]
    assert index.masks == {0: "cat.Mask.PNG", 1: "dog.mask.png"}
    reason = "named as a mask is, and there is no image that it belongs to"
    assert [(item.path, item.reason) for item in index.rejected] == [("alone.mask.png", reason)]
    off = look(tmp_path, masks="none")
    assert list(off.paths) == list(index.paths) and off.masks == {}
    assert (off.digest_N == index.digest_N).tolist() == [False, False]


@pytest.mark.parametrize(("mask", "reason"), [
    (Image.new("L", (64, 64), 255), "its mask a.mask.png has another shape: 64 x 64, the image 80 x 64"),
    (Image.new("L", (40, 32), 0), "its mask a.mask.png is black all over, so nothing of it would train"),
    (None, "its mask a.mask.png is no use: "),
])  # fmt: skip
def test_an_unsound_mask_rejects_its_image(tmp_path: Path, mask: Image.Image | None, reason: str) -> None:
    Image.new("RGB", (80, 64)).save(tmp_path / "a.jpg")
    if mask is None:
        (tmp_path / "a.mask.png").write_bytes(b"no picture at all")
    else:
        mask.save(tmp_path / "a.mask.png")
    rejected = look(tmp_path).rejected
    assert len(rejected) == 1 and rejected[0].path == "a.jpg" and rejected[0].reason.startswith(reason)


@pytest.mark.parametrize("flip_p", [0.0, 1.0])
@pytest.mark.parametrize("source", ["file", "smaller file", "alpha"])
def test_the_mask_follows_the_crop_and_the_flip(tmp_path: Path, flip_p: float, source: str) -> None:
    """The mask covers x < 100 of 200: where it is white the pixels say so themselves."""
    pixels = coordinates(200, 64)
    mask = np.where(np.arange(200) < 100, 255, 0).astype(np.uint8)[None].repeat(64, 0)
    if source == "alpha":
        Image.fromarray(np.dstack([pixels, np.where(mask > 0, 255, 254).astype(np.uint8)])).save(tmp_path / "a.png")
    else:
        Image.fromarray(pixels).save(tmp_path / "a.png")
        size = (100, 32) if source == "smaller file" else (200, 64)
        Image.fromarray(mask).resize(size, Image.Resampling.NEAREST).save(tmp_path / "a.mask.png")
    data = data_of(tmp_path, flip_p=flip_p, masks="alpha" if source == "alpha" else "files")
    index = scan(data, CaptionSettings())
    for epoch in range(12):
        batch = batch_of(index, data, [0], (64, 64), epoch).batch
        assert batch.mask_B1HW is not None and batch.mask_B1HW.shape == (1, 1, 64, 64)
        covered = batch.mask_B1HW[0, 0] > (0.998 if source == "alpha" else 0.5)
        expected = batch.pixels_BCHW[0, 0] < 100
        wrong = int((covered != expected).sum())
        assert wrong <= (64 if source == "smaller file" else 0), "a column at the edge, where the mask was scaled"


@pytest.mark.parametrize("how", [1, 6])
def test_the_mask_fits_a_jpeg_that_is_decoded_at_reduced_size(tmp_path: Path, how: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = how
    white = np.zeros((512, 1024), np.uint8)
    white[:, :300], white[:200] = 255, 255
    Image.fromarray(white).convert("RGB").save(tmp_path / "a.jpg", quality=95, exif=exif)
    upright = white if how == 1 else np.rot90(white, -1)
    Image.fromarray(upright).save(tmp_path / "a.mask.png")
    data = data_of(tmp_path, flip_p=0.5)
    for epoch in range(6):
        batch = batch_of(scan(data, CaptionSettings()), data, [0], (64, 64), epoch).batch
        assert (batch.mask_B1HW[0, 0] * 255 - batch.pixels_BCHW[0, 0]).abs().max() < 12


def test_images_without_masks_train_whole_beside_those_with(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    data = data_of(tmp_path)
    assert batch_of(look(tmp_path), data, [0, 1], (64, 64)).batch.mask_B1HW is None
    Image.fromarray(np.triu(np.full((64, 64), 255, np.uint8))).save(tmp_path / "b.mask.png")
    batch = batch_of(look(tmp_path), data, [0, 1], (64, 64)).batch
    assert torch.equal(batch.mask_B1HW[0], torch.ones(1, 64, 64))
    assert batch.mask_for((8, 8))[1, 0, 0].tolist() == pytest.approx([36 / 64] + [1.0] * 7)


def test_a_mask_that_is_gone_in_mid_run_leaves_its_image_out(tmp_path: Path) -> None:
    for name in ("a.png", "a.mask.png", "b.png"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / name)
    index = look(tmp_path)
    (tmp_path / "a.mask.png").unlink()
    loaded = batch_of(index, data_of(tmp_path), [0, 1], (64, 64))
    assert loaded.batch.keys == ["mine/b.png"]
    assert [(item.path, item.reason[:22]) for item in loaded.failed] == [("a.png", "its mask a.mask.png is")]


def test_an_image_that_is_transparent_all_over(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / "a.png")
    assert len(look(tmp_path)) == 1
    (rejected,) = look(tmp_path, masks="alpha").rejected
    assert rejected.reason == "transparent all over, so with data.masks: alpha nothing of it would train"


def test_opacity_comes_upright_as_the_pixels_do(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned right by a quarter
    pixels = np.dstack([coordinates(80, 64), coordinates(80, 64)[..., 0]])
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    rgb_HWC, _, alpha_HW = decode_for(tmp_path / "a.png", "#000000", with_alpha=True)
    assert rgb_HWC.shape == (80, 64, 3) and alpha_HW is not None
    assert (alpha_HW == np.rot90(pixels[..., 3], -1)).all()
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert decode_for(tmp_path / "b.png", with_alpha=True).alpha_HW is None


def test_masks_are_found_through_a_manifest(tmp_path: Path) -> None:
    Image.new("RGB", (80, 64)).save(tmp_path / "a.jpg")
    Image.new("L", (80, 64), 255).save(tmp_path / "a.mask.png")
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.jpg", "text": "a dog"}\n')
    source = SourceSettings(path=str(tmp_path / "list.jsonl"), captions="manifest")
    index = scan(DataSettings(sources=[source], resolution=64), CaptionSettings())
    assert index.masks == {0: "a.mask.png"}
