"""The short way to a JPEG's pixels: Pillow's to the bit, or Pillow itself; reduced only where that is close."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_decode import black_only_profile, swapped_profile

from everydream.data.fitting import choose_crop, read_cut
from pictures import decode as room
from pictures.decode import BadImage, decode, decode_for, opened, upright_rgb
from pictures.turbo import decode_plain

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise of all scales, the coarse stronger than the fine."""
    rng, total = np.random.default_rng(seed), np.full((height, width, 3), 128.0)
    for octave in range(7):
        grain = rng.integers(0, 256, (max(height >> octave, 1), max(width >> octave, 1), 3), dtype=np.uint8)
        total += (np.asarray(Image.fromarray(grain).resize((width, height), 3), float) - 128) * 0.12 * 1.35**octave
    return total.clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turn(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def by_pillow(source: io.BytesIO | Path) -> np.ndarray | str:
    try:
        with opened(source, 150) as image:
            return np.array(upright_rgb(image))
    except BadImage as error:
        return str(error)


def ours(source: io.BytesIO | Path) -> np.ndarray | str:
    try:
        return decode(source, max_megapixels=150)
    except BadImage as error:
        return str(error)


def is_short(content: bytes) -> bool:
    with opened(io.BytesIO(content)) as image:
        return decode_plain(image) is not None


PICTURE = photo(61, 47)
MPO = io.BytesIO()
Image.fromarray(PICTURE).save(MPO, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
PLAIN = {
    **{f"subsampling {ways}": jpeg(PICTURE, subsampling=ways) for ways in ("4:4:4", "4:2:2", "4:2:0")},
    **{f"turned {how}": jpeg(PICTURE, exif=turn(how)) for how in (0, *range(1, 10))},
    **{f"{width} x {height}": jpeg(photo(width, height)) for width, height in ((1, 1), (1, 33), (17, 1), (16, 16))},
    "quality 100": jpeg(PICTURE, quality=100),
    "quality 5": jpeg(PICTURE, quality=5),
    "progressive": jpeg(PICTURE, progressive=True),
    "optimized": jpeg(PICTURE, optimize=True),
    "grey": jpeg(PICTURE, "L"),
    "grey, turned": jpeg(PICTURE, "L", exif=turn(6)),
    "colours kept as RGB": jpeg(PICTURE, keep_rgb=True),
    "restart markers": jpeg(PICTURE, restart_marker_blocks=2),
    "sRGB profile": jpeg(PICTURE, icc_profile=SRGB),
    "garbage after the end": jpeg(PICTURE) + b"\0 garbage \xff\xd8\xff\xe0 and more" * 40,
    "MPO": MPO.getvalue(),
}
LEFT_TO_PILLOW = {
    "CMYK": jpeg(PICTURE, "CMYK"),
    "CMYK with a profile": jpeg(PICTURE, "CMYK", icc_profile=black_only_profile()),
    "another profile": jpeg(PICTURE, icc_profile=swapped_profile()),
    "bytes between segments": jpeg(PICTURE).replace(b"\xff\xdb", b"\0\0\0\xff\xdb", 1),
    "cut short": jpeg(PICTURE)[:-200],
    "without its end": jpeg(PICTURE)[:-2],
}


@pytest.mark.parametrize("name", [*PLAIN, *LEFT_TO_PILLOW])
def test_pixels_and_reasons_are_pillows(name: str, tmp_path: Path) -> None:
    content = PLAIN.get(name) or LEFT_TO_PILLOW[name]
    assert is_short(content) == (name in PLAIN)
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (tmp_path / "a.jpg", io.BytesIO(content)):
        expected, found = by_pillow(source), ours(source)
        assert type(found) is type(expected) and np.array_equal(found, expected)
    assert isinstance(expected, str) == (name in ("cut short", "without its end"))


def test_damage_anywhere_has_pillows_verdict() -> None:
    rng, verdicts = np.random.default_rng(1), []
    for options in ({}, {"progressive": True}, {"subsampling": "4:4:4", "restart_marker_blocks": 3}):
        whole = jpeg(photo(40, 24), **options)
        for _ in range(250):
            content = bytearray(whole)
            for place in rng.integers(2, len(whole), rng.integers(1, 4)).tolist():
                content[place] = int(rng.integers(0, 256))
            expected, found = by_pillow(io.BytesIO(content)), ours(io.BytesIO(content))
            assert type(found) is type(expected) and np.array_equal(found, expected)
            verdicts.append(isinstance(found, str))
    assert 40 < sum(verdicts) < 700, "some are whole enough, some are not"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photographs are not there")
def test_real_files_have_pillows_pixels_and_reasons() -> None:
    files = [*sorted(SHARED.glob("dreambooth/*/0[01].jpg")), *sorted((SHARED / "badimages").rglob("*.jp*g"))]
    num_short = 0
    for file in files:
        expected, found = by_pillow(file), ours(file)
        assert type(found) is type(expected) and np.array_equal(found, expected), file
        num_short += not isinstance(expected, str) and is_short(file.read_bytes())
    assert len(files) > 80 and num_short > 60


# Reduced


def cuts(content: bytes, bucket: int, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, int]:
    """Return what a bucket gets of a JPEG, by full and by reduced decoding, and by how much that was reduced."""

    def read() -> np.ndarray:
        crops.append(None)
        pixels_CHW, crop, _ = read_cut(
            io.BytesIO(content), lambda size: choose_crop(size, (bucket, bucket), 3, "random", 0.5), "#ffffff", 150
        )
        crops[-1] = crop
        return pixels_CHW.astype(int)

    crops: list[object] = []
    seen = []
    plain = room.decode_plain
    with monkeypatch.context() as patched:
        patched.setattr(room, "decode_plain", lambda image, by: seen.append(by) or plain(image, by))
        reduced = read()
        patched.setattr(room, "REDUCTIONS", ())
        full = read()
    assert crops[0] == crops[1] and seen[1] == 1
    return full, reduced, seen[0]


Y, X = np.mgrid[:1024, :1024]
HARD = {
    "stripes": X // 3 % 2, "checkers": (X // 5 + Y // 5) % 2, "large checkers": (X // 16 + Y // 16) % 2,
    "rings": 0.5 + 0.5 * np.cos(((X - 512.0) ** 2 + (Y - 512.0) ** 2) * np.pi / 2048),
    "noise": np.random.default_rng(0).integers(0, 2, (1024, 1024)),
}  # fmt: skip


@pytest.mark.parametrize(("bucket", "by"), [(256, 2), (200, 2), (128, 4), (500, 1)])
def test_reduced_decoding_is_close_to_full(bucket: int, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps of 255. On photographs far less than another filter would change; on the hardest patterns up to 25."""
    full, reduced, found = cuts(jpeg(photo(1120, 1024), quality=90), bucket, monkeypatch)
    difference = np.abs(full - reduced)
    assert found == by and (by > 1) == bool(difference.any())
    assert difference.mean() < 1.5 and np.percentile(difference, 99.9) <= 7 and difference.max() <= 12
    for name, pattern in HARD.items():
        grey = (pattern * 255).astype(np.uint8)[:, :, None].repeat(3, 2)
        full, reduced, _ = cuts(jpeg(grey, quality=90), bucket, monkeypatch)
        difference = np.abs(full - reduced)
        assert difference.mean() < 7.5 and np.percentile(difference, 99.9) <= 27, name


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photographs are not there")
def test_reduced_decoding_of_real_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in sorted(SHARED.glob("dreambooth/*/02.jpg")):
        for bucket in (128, 256):
            full, reduced, by = cuts(file.read_bytes(), bucket, monkeypatch)
            difference = np.abs(full - reduced)
            assert difference.mean() < 1.5 and np.percentile(difference, 99.9) <= 10 and difference.max() <= 25, file
            assert by >= 2 or min(full.shape[1:]) * 4 > 512


@pytest.mark.parametrize(("size", "least", "by"), [
    ((512, 256), (256, 128), 2), ((512, 256), (128, 64), 4), ((512, 256), (257, 64), 1), ((510, 256), (100, 60), 2),
    ((511, 256), (16, 16), 1), ((512, 255), (16, 16), 1), ((512, 256), (16, 16), 4),
])  # fmt: skip
def test_only_what_can_be_divided_and_leaves_enough_is_reduced(
    size: tuple[int, int], least: tuple[int, int], by: int
) -> None:
    for how in (1, 6):
        pixels = photo(*(size if how == 1 else size[::-1]))
        found = decode_for(io.BytesIO(jpeg(pixels, exif=turn(how))), enough=lambda _: least)
        assert found.size == size and found.pixels_HWC.shape == (size[1] // by, size[0] // by, 3)
    assert (
        decode_for(io.BytesIO(jpeg(pixels, "CMYK")), enough=lambda _: (1, 1)).pixels_HWC.shape[:2] == pixels.shape[:2]
    )


@pytest.mark.parametrize("how", range(1, 9))
def test_a_reduced_picture_is_turned_as_the_full_one(how: int) -> None:
    content = jpeg(photo(128, 96), exif=turn(how))
    full = decode(io.BytesIO(content)).astype(int)
    small = decode_for(io.BytesIO(content), enough=lambda _: (1, 1)).pixels_HWC
    means = full.reshape(full.shape[0] // 4, 4, full.shape[1] // 4, 4, 3).mean((1, 3))
    assert small.shape == means.shape and np.abs(small - means).mean() < 6
