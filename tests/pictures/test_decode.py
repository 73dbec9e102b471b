import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from pictures.decode import BadImage, decode, image_extensions, probe

UPRIGHT_HWC = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
RNG = np.random.default_rng(0)
NOISE_HWC = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)


def saved(tmp_path, image, name="x.png", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(tmp_path / name, **options)
    return tmp_path / name


def row(pixels_HWC):
    return [tuple(pixel) for pixel in pixels_HWC[0].tolist()]


# Colour and depth


@pytest.mark.parametrize(("image", "pixels"), [
    (Image.new("RGB", (1, 1), (1, 2, 3)), [(1, 2, 3)]),
    (Image.new("L", (1, 1), 7), [(7, 7, 7)]),
    (Image.new("1", (1, 1), 1), [(255, 255, 255)]),
    (Image.new("RGB", (1, 1), (9, 8, 7)).quantize(2), [(9, 8, 7)]),
    (np.array([[0, 128, 129, 257, 128 * 257, 65535]], np.uint16),
     [(0,) * 3, (0,) * 3, (1,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
    (Image.new("LA", (1, 1), (10, 0)), [(255, 255, 255)]),
    (Image.new("RGBA", (1, 1), (255, 0, 0, 128)), [(255, 127, 127)]),
    (Image.new("RGBA", (1, 1), (12, 34, 56, 255)), [(12, 34, 56)]),
])  # fmt: skip
def test_modes(image, pixels, tmp_path):
    assert row(decode(saved(tmp_path, image))) == pixels


def test_what_lies_under_transparency_is_never_seen(tmp_path):
    rgba_HWC = np.dstack([NOISE_HWC, np.zeros(NOISE_HWC.shape[:2], np.uint8)])
    for name in ("x.png", "x.webp", "x.tif"):
        path = saved(tmp_path, rgba_HWC, name, **({"lossless": True, "exact": True} if name == "x.webp" else {}))
        assert (decode(path, "#102030") == (16, 32, 48)).all()


@pytest.mark.parametrize(("mode", "colours", "transparency"), [
    ("L", [5, 9], 5), ("RGB", [(1, 2, 3), (4, 5, 6)], (1, 2, 3)), ("1", [0, 255], 0),
    ("P", [0, 1], 0), ("P", [0, 1], b"\0\xff"),
])  # fmt: skip
def test_transparent_colours(mode, colours, transparency, tmp_path):
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([7, 7, 7, 8, 9, 10])
    image.putdata(colours)
    shown = {"L": (9, 9, 9), "RGB": (4, 5, 6), "1": (255, 255, 255), "P": (8, 9, 10)}[mode]
    path = saved(tmp_path, image, transparency=transparency)
    assert row(decode(path, "#ff0000")) == [(255, 0, 0), shown]


def test_transparent_grey_of_16_bits(tmp_path):
    path = saved(tmp_path, np.array([[300, 65535]], np.uint16), transparency=300)
    assert row(decode(path, "#ff0000")) == [(255, 0, 0), (255, 255, 255)]


def test_transparent_gif(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([7, 7, 7, 8, 9, 10])
    image.putdata([0, 1])
    assert row(decode(saved(tmp_path, image, "x.gif", transparency=0), "#00ff00")) == [(0, 255, 0), (8, 9, 10)]


@pytest.mark.parametrize(("values", "greys"), [
    (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
    (np.array([[-5, 257, 65535]], np.int32), [0, 1, 255]),
    (np.array([[0, 500_000, 1_000_000]], np.int32), [0, 128, 255]),
    (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
    (np.array([[-3, 100, np.nan]], np.float32), [0, 100, 0]),
    (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
    (np.array([[0, 1e6, 2e6]], np.float32), [0, 128, 255]),
    (np.array([[0, 0, 0]], np.float32), [0, 0, 0]),
])  # fmt: skip
def test_deep_tiffs_are_scaled_not_clipped(values, greys, tmp_path):
    assert decode(saved(tmp_path, values, "x.tif"))[0, :, 0].tolist() == greys


def test_big_endian_16_bits(tmp_path):
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 257, 65535], ">u2").tobytes())
    assert decode(saved(tmp_path, image, "x.tif"))[0, :, 0].tolist() == [0, 1, 255]


def test_cmyk_without_a_profile(tmp_path):
    image = Image.new("CMYK", (2, 1))
    image.putdata([(0, 255, 255, 0), (0, 0, 0, 255)])
    assert row(decode(saved(tmp_path, image, "x.tif"))) == [(255, 0, 0), (0, 0, 0)]


def test_lab(tmp_path):
    colours = np.array([[[200, 100, 90], [100, 120, 150], [128, 128, 128], [255, 255, 255]]], np.uint8)
    lab = ImageCms.profileToProfile(Image.fromarray(colours), ImageCms.createProfile("sRGB"),
                                    ImageCms.createProfile("LAB"), outputMode="LAB")  # fmt: skip
    found = decode(saved(tmp_path, lab, "x.tif")).astype(int)
    assert np.abs(found - colours).max() <= 2


def black_only_profile():
    """Return a CMYK profile in which only black has a colour, so that using it cannot be overlooked."""
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    table += ramp * 4 + bytes([255, 128, 128, 0, 128, 128]) * 8 + ramp * 3
    desc = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", 156, len(table), b"desc", 156 + len(table), len(desc))
    head = struct.pack(
        ">I4sI4s4s4s12x4s", 156 + len(table) + len(desc), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ", b"acsp"
    )
    head += bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + tags + table + desc


def test_cmyk_with_a_profile(tmp_path):
    for name in ("x.tif", "x.jpg"):
        red, black = (decode(saved(tmp_path, Image.new("CMYK", (1, 1), inks), name, icc_profile=black_only_profile()))
                      for inks in ((0, 255, 255, 0), (0, 0, 0, 255)))  # fmt: skip
        assert red.min() >= 253 and black.max() <= 2


def swapped_profile():
    """Return sRGB with red and blue exchanged, under another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"!XYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"!XYZ", b"bXYZ", 1)
    return data.replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_embedded_profile_is_applied(mode, tmp_path):
    image = Image.new("RGB", (1, 1), (250, 0, 0)).convert(mode)
    pixels = decode(saved(tmp_path, image, icc_profile=swapped_profile()))
    assert pixels[0, 0, 2] >= 245 and pixels[0, 0, :2].max() <= 10


@pytest.mark.parametrize("profile", [
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),  # of another space than the pixels
    b"garbage",
    swapped_profile()[:400],
])  # fmt: skip
def test_srgb_foreign_and_broken_profiles_change_nothing(profile, tmp_path):
    assert (decode(saved(tmp_path, NOISE_HWC, icc_profile=profile)) == NOISE_HWC).all()


# Orientation

STORED = {
    0: UPRIGHT_HWC, 1: UPRIGHT_HWC, 2: UPRIGHT_HWC[:, ::-1], 3: UPRIGHT_HWC[::-1, ::-1], 4: UPRIGHT_HWC[::-1],
    5: UPRIGHT_HWC.swapaxes(0, 1), 6: np.rot90(UPRIGHT_HWC), 7: np.rot90(UPRIGHT_HWC.swapaxes(0, 1), 2),
    8: np.rot90(UPRIGHT_HWC, -1), 9: UPRIGHT_HWC,
}  # fmt: skip
"""Orientation -> how a camera that was held so stores the picture; 0 and 9 are invalid and mean nothing."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_exif_orientation(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "x.webp" else {}
    path = saved(tmp_path, np.ascontiguousarray(STORED[orientation]), name, exif=exif, **options)
    assert (decode(path) == UPRIGHT_HWC).all()
    assert probe(path)[:2] == (3, 2)


def test_orientation_in_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.new("RGB", (30, 20)), "x.jpg", exif=exif)
    assert (probe(path)[:2], decode(path).shape) == ((20, 30), (30, 20, 3))


def test_orientation_in_xmp(tmp_path):
    path = saved(tmp_path, np.ascontiguousarray(STORED[6]), "x.webp", lossless=True, xmp=b'<x tiff:Orientation="6"/>')
    assert probe(path)[:2] == (3, 2) and (decode(path) == UPRIGHT_HWC).all()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_corrupt_exif_is_no_reason_to_lose_an_image(exif, tmp_path):
    path = saved(tmp_path, NOISE_HWC, exif=exif)
    assert probe(path)[:2] == (64, 48) and (decode(path) == NOISE_HWC).all()


# Contents and names


def jpeg_bytes(**options):
    buffer = io.BytesIO()
    Image.fromarray(NOISE_HWC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "options"), [
    ("x.gif", {}), ("x.webp", {"lossless": True}), ("x.png", {}), ("x.tif", {}),
])  # fmt: skip
def test_first_frame_of_several(name, options, tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert probe(path).has_more_frames
    assert (decode(path) == (255, 0, 0)).all()


def test_mpo_named_jpg(tmp_path):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ((255, 255, 255), (0, 0, 0))]
    path = saved(tmp_path, frames[0], "x.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert probe(path) == (16, 8, "MPO", False)
    assert (decode(path) == 255).all()


def test_jpeg_named_png(tmp_path):
    (tmp_path / "x.png").write_bytes(jpeg_bytes())
    assert probe(tmp_path / "x.png") == (64, 48, "JPEG", False)


def test_broken_second_frame(tmp_path):
    frames = [Image.fromarray(NOISE_HWC), Image.fromarray(NOISE_HWC[::-1])]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    whole = decode(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert (decode(path) == whole).all()


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(64))
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def gif(canvas, frame):
    size = struct.pack("<HH", *frame)
    head = b"GIF89a" + struct.pack("<HH", *canvas) + b"\x80\0\0" + bytes(6)
    return head + b",\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0;"


def test_the_bomb_is_tiny():
    assert len(gif((65535, 65535), (65535, 65535))) <= 44


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "not an image: an empty file (0 bytes)"),
    (bytes(2000), "not an image: a file of zeros"),
    (LFS, "not an image: a Git LFS pointer (fetch the real file with `git lfs pull`)"),
    (b"\r\n<!DOCTYPE html><html>404", "not an image: an HTML page"),
    (b"\xef\xbb\xbf<HTML>", "not an image: an HTML page"),
    (b'<?xml version="1.0"?><svg xmlns="x"/>', "not an image: an SVG drawing"),
    ("keine Datei, nur Text ü".encode(), "not an image: a text file"),
    (("x" * 511 + "ü" * 9).encode(), "not an image: a text file"),  # the peek ends inside a character
    (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "not an image: an AppleDouble file (metadata of macOS)"),
    (b"PK\x03\x04rest", "not an image: a ZIP archive"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "content is PostScript"),
    (b"%PDF-1.4", "content is PDF"),
    (b"\0\0\0 ftypheic\0\0", "content is HEIC (install the plug-in: pip install pillow-heif)"),
    (b"\0\0\0 ftypisom\0\0", "not an image: a video (MP4)"),
    (b"\x93\x01\xfe\x80 noise", "content is of no known format"),
    (b"\x89PNG\r\n\x1a\n", "damaged: the header of the PNG cannot be read"),
    (b"GIF89a\x01\0\x01\0\0\0\0;", "damaged: the header of the GIF cannot be read"),
    (jpeg_bytes()[:900], "truncated: the JPEG ends before its pixels do"),
    (jpeg_bytes()[:-100], "truncated: the JPEG ends before its pixels do"),
    (png_header(60000, 60000), "too large: 60000 x 60000 = 3,600 megapixels, the limit is 150 (max_megapixels)"),
    (gif((65535, 65535), (65535, 65535)),
     "too large: 65535 x 65535 = 4,295 megapixels, the limit is 150 (max_megapixels)"),
    (gif((1, 1), (65535, 65535)),
     "too large: 65535 x 65535 = 4,295 megapixels, the limit is 150 (max_megapixels)"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_reasons(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage) as caught:
        decode(tmp_path / name, max_megapixels=150)
    assert str(caught.value) == reason


@pytest.mark.parametrize("kind", ["ICO", "PPM", "JPEG2000", "TGA"])
def test_formats_we_do_not_name_are_not_opened(kind, tmp_path):
    with pytest.raises(BadImage, match=r"^(not an image: an icon|content is )"):
        decode(saved(tmp_path, NOISE_HWC, format=kind))


def test_damage_is_told_without_the_path(tmp_path):
    data = bytearray(saved(tmp_path, NOISE_HWC).read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(BadImage, match=r"^damaged PNG: ") as caught:
        decode(tmp_path / "x.png")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "error", [SyntaxError, NotImplementedError, TypeError, IndexError, struct.error, KeyError, EOFError]
)
def test_whatever_pillow_raises_is_a_bad_image(error, tmp_path, monkeypatch):
    def load(self):
        raise error("boom")

    path = saved(tmp_path, NOISE_HWC)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
    with pytest.raises(BadImage, match=r"^(damaged PNG: .?boom.?|truncated: the PNG ends before its pixels do)$"):
        decode(path)


def test_out_of_memory_is_a_bad_image(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError

    path = saved(tmp_path, NOISE_HWC)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
    with pytest.raises(BadImage, match=r"^cannot be read: not enough memory to decode it"):
        decode(path)


def test_missing_file(tmp_path):
    with pytest.raises(BadImage, match=r"^cannot be read: No such file or directory$"):
        probe(tmp_path / "x.png")


def test_header_sees_the_size_only(tmp_path):
    (tmp_path / "x.jpg").write_bytes(jpeg_bytes()[:-100])
    assert probe(tmp_path / "x.jpg")[:2] == (64, 48)


def test_our_limit_replaces_pillows(tmp_path):
    (tmp_path / "x.png").write_bytes(png_header(20000, 10000))
    assert probe(tmp_path / "x.png", max_megapixels=200)[:2] == (20000, 10000)
    with pytest.raises(BadImage, match=r"^too large"):
        probe(tmp_path / "x.png", max_megapixels=199)


def test_process_wide_state_is_restored_even_by_threads(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    paths = [saved(tmp_path, NOISE_HWC), tmp_path / "bad.png"] * 50
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))

    def work(path):
        try:
            return decode(path).shape
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(work, paths))
    assert found == {(48, 64, 3), "not an image: an empty file (0 bytes)"}
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jfif", ".gif", ".tif", ".tiff", ".avif"} <= image_extensions()
