"""From the bytes that came to the file that is stored: right pixels, upright, no metadata, nothing damaged or huge."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from servers import encoded, jpeg, pixels, png

from scrapers.images import FORMATS, make_picture
from scrapers.look import early_look
from scrapers.settings import FilterSettings, ImageSettings
from scrapers.types import Item, Picture, Reason, Verdict

QUARTERS = np.array([[(220, 30, 30), (30, 200, 30)], [(30, 30, 220), (230, 230, 40)]], np.uint8)


def make(folder: Path, content: bytes, item: Item | None = None, keep: bool = False, resize: int | None = None,
         **filters: object) -> Picture | Verdict:  # fmt: skip
    raw = folder / "000000001.raw"
    for path in folder.iterdir():
        path.unlink()
    raw.write_bytes(content)
    settings = ImageSettings(keep_original=keep, resize=resize, max_megapixels=filters.pop("max_megapixels", 64.0))  # type: ignore[arg-type]
    made = make_picture(raw, folder / "000000001", item or Item(1, ""), settings, FilterSettings(**filters))  # type: ignore[arg-type]
    left = {path.name for path in folder.iterdir()} - {raw.name}
    assert left == ({made.file.name} - {raw.name} if isinstance(made, Picture) else set())
    return made


def stored(folder: Path, content: bytes, **options: object) -> NDArray[np.uint8]:
    """Return the pixels of what is stored, as anyone would see them; check what is said of them."""
    made = make(folder, content, **options)  # type: ignore[arg-type]
    assert isinstance(made, Picture), made
    data = made.file.read_bytes()
    assert made.sha256 == hashlib.sha256(data).hexdigest() and made.num_bytes == len(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and made.extension == ".jpg" and image.mode in ("L", "RGB")
        assert image.size == (made.width, made.height)
        assert not dict(image.getexif()) and not {"exif", "xmp", "comment"} & set(image.info)
        return np.asarray(image.convert("RGB"))


def quarters(size: int = 64) -> Image.Image:
    return Image.fromarray(QUARTERS.repeat(size // 2, 0).repeat(size // 2, 1))


def corners(found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours in the middle of the four quarters."""
    height, width = found.shape[:2]
    return found[[height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]]


def near(found: NDArray[np.uint8], wanted: NDArray[np.uint8], within: int = 8) -> bool:
    return bool((np.abs(found.astype(int) - wanted.astype(int)) <= within).all())


def with_exif(turn: int, **options: object) -> bytes:
    """A wide JPEG that says how it is to be turned, where it was taken, and a word of its own."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    exif[ExifTags.Base.Make] = "SECRET-CAMERA"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 51.0, 30.0)
    image = quarters().resize((96, 64), Image.Resampling.NEAREST)
    return encoded(image, "JPEG", quality=95, exif=exif, comment=b"SECRET-WORD", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", [None, 32])
@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_upright_and_without_a_trace_of_the_place(tmp_path: Path, turn: int, resize: int | None) -> None:
    source = with_exif(turn)
    found = stored(tmp_path, source, resize=resize)
    with Image.open(io.BytesIO(source)) as image:
        from PIL import ImageOps

        upright = np.asarray(ImageOps.exif_transpose(image))
    scale = 2 if resize else 1
    assert found.shape[:2] == (upright.shape[0] // scale, upright.shape[1] // scale)
    assert near(corners(found), corners(upright))
    data = next(tmp_path.glob("*.jpg")).read_bytes()
    assert b"Exif" not in data and b"SECRET" not in data


@pytest.mark.parametrize("turn", [0, 9, 65535])
def test_an_orientation_that_does_not_exist(tmp_path: Path, turn: int) -> None:
    assert near(corners(stored(tmp_path, with_exif(turn))), QUARTERS)


def test_the_original_is_kept_to_the_byte(tmp_path: Path) -> None:
    for content, extension in ((with_exif(6), ".jpg"), (png(1), ".png"), (encoded(pixels(1), "WEBP"), ".webp"),
                               (encoded(pixels(1), "GIF"), ".gif"), (encoded(pixels(1), "BMP"), ".bmp")):  # fmt: skip
        made = make(tmp_path, content, keep=True, duplicates="perceptual")
        assert isinstance(made, Picture)
        assert made.file.read_bytes() == content and made.extension == extension and made.perceptual_hash is not None
        assert made.sha256 == hashlib.sha256(content).hexdigest()
    made = make(tmp_path, with_exif(6), keep=True)
    assert isinstance(made, Picture) and (made.width, made.height) == (64, 96)  # as it is to be seen


def test_a_plain_jpeg_is_not_encoded_again(tmp_path: Path) -> None:
    plain = jpeg(1)
    found = stored(tmp_path, with_exif(1))
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(with_exif(1)))))
    stored(tmp_path, plain + b"\0" * 500)
    assert next(tmp_path.glob("*.jpg")).read_bytes() == plain
    progressive = jpeg(1, progressive=True)
    assert np.array_equal(stored(tmp_path, progressive), np.asarray(Image.open(io.BytesIO(progressive))))
    second = encoded(quarters(), "JPEG")
    mpo = io.BytesIO()
    quarters().save(mpo, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(second))])
    assert near(corners(stored(tmp_path, mpo.getvalue())), QUARTERS)
    data = next(tmp_path.glob("*.jpg")).read_bytes()
    assert data.count(b"\xff\xd8\xff") == 1 and len(data) < len(mpo.getvalue())


@pytest.mark.parametrize("resize", [None, 16])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, resize: int | None) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = stored(tmp_path, encoded(Image.fromarray(values), "PNG"), resize=resize)
    grey = np.asarray(Image.fromarray((values / 257).astype(np.uint8)).resize(found.shape[1::-1]))
    assert near(found, grey[..., None].repeat(3, 2), 6)


def test_transparency_is_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    rgba.paste((0, 0, 255, 255), (0, 0, 32, 64))
    palette = quarters().quantize(8)
    index = int(np.asarray(palette)[0, 0])
    for content, left, right in (
        (encoded(rgba, "PNG"), (0, 0, 255), (255, 255, 255)),
        (encoded(rgba, "WEBP", lossless=True), (0, 0, 255), (255, 255, 255)),
        (encoded(palette, "PNG", transparency=index), (255, 255, 255), (30, 200, 30)),
        (encoded(palette, "GIF", transparency=index), (255, 255, 255), (30, 200, 30)),
    ):
        found = corners(stored(tmp_path, content))
        assert near(found[0, 0], np.array(left, np.uint8), 12) and near(found[0, 1], np.array(right, np.uint8), 12)


def test_of_an_animation_the_first_picture(tmp_path: Path) -> None:
    for kind in ("GIF", "WEBP"):
        more = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
        content = encoded(quarters(), kind, save_all=True, append_images=more, duration=50)
        assert near(corners(stored(tmp_path, content)), QUARTERS, 14)


def profile(red: tuple[float, float] = (0.64, 0.33)) -> bytes:
    """A display profile whose first two channels are swapped, so that ignoring it cannot go unseen."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = {bytes(data[128 + 4 + 12 * n : 136 + 12 * n])[:4]: 132 + 12 * n
             for n in range(struct.unpack(">I", data[128:132])[0])}  # fmt: skip
    data[table[b"rXYZ"] : table[b"rXYZ"] + 4], data[table[b"gXYZ"] : table[b"gXYZ"] + 4] = b"gXYZ", b"rXYZ"
    return bytes(data).replace(b"sRGB", b"swap").replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def test_colour_profiles_are_applied(tmp_path: Path) -> None:
    swapped = QUARTERS[..., [1, 0, 2]]
    for kind in ("PNG", "JPEG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        found = stored(tmp_path, encoded(quarters(), kind, icc_profile=profile(), **options))
        assert near(corners(found), swapped, 14), kind
        plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        assert near(corners(stored(tmp_path, encoded(quarters(), kind, icc_profile=plain, **options))), QUARTERS, 14)
        broken = encoded(quarters(), kind, icc_profile=b"rubbish" * 40, **options)
        assert near(corners(stored(tmp_path, broken)), QUARTERS, 14)


def test_other_kinds_of_pixels(tmp_path: Path) -> None:
    grey = quarters().convert("L")
    wanted = np.asarray(grey.convert("RGB"))
    for content in (
        encoded(grey, "JPEG"),
        encoded(grey, "PNG"),
        encoded(grey, "BMP"),
        encoded(grey.convert("LA"), "PNG"),
    ):
        assert near(stored(tmp_path, content), wanted, 12)
    cmyk = encoded(quarters().convert("CMYK"), "JPEG", quality=95)
    assert near(corners(stored(tmp_path, cmyk)), QUARTERS, 12)
    avif = encoded(quarters(), "AVIF", quality=95)
    assert near(corners(stored(tmp_path, avif)), QUARTERS, 14)
    one_bit = encoded(Image.new("1", (20, 30), 1), "PNG")
    assert (stored(tmp_path, one_bit) == 255).all()


# Sizes


@pytest.mark.parametrize(
    ("size", "resize", "wanted"),
    [((640, 480), 128, (171, 128)), ((480, 640), 128, (128, 171)), ((100, 90), 128, (100, 90)), ((128, 300), 128,
    (128, 300)),
     ((999, 333), 100, (300, 100)), ((129, 4000), 128, (128, 3969)), ((300, 300), 299, (299, 299))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_shorter_side_is_brought_down(
    tmp_path: Path, size: tuple[int, int], resize: int, wanted: tuple[int, int], kind: str
) -> None:
    image = quarters().resize(size, Image.Resampling.NEAREST)
    found = stored(tmp_path, encoded(image, kind), resize=resize)
    assert found.shape[1::-1] == wanted
    assert near(corners(found), QUARTERS, 12)


def test_the_filters_see_the_picture_as_it_is(tmp_path: Path) -> None:
    reasons = [
        make(tmp_path, jpeg(1, (64, 48)), min_width=65),
        make(tmp_path, jpeg(1, (64, 48)), min_height=49),
        make(tmp_path, with_exif(6), min_width=65),  # 96 x 64, and turned 64 x 96
        make(tmp_path, with_exif(1), min_height=65),
        make(tmp_path, jpeg(1, (90, 30)), max_aspect=2.9),
        make(tmp_path, jpeg(1), min_bytes=100_000),
        make(tmp_path, jpeg(1, (200, 100)), max_megapixels=0.0199),
    ]
    assert [verdict.reason.value for verdict in reasons if isinstance(verdict, Verdict)] == [
        "too_small", "too_small", "too_small", "too_small", "aspect", "too_few_bytes", "too_many_pixels"]  # fmt: skip
    assert isinstance(make(tmp_path, jpeg(1, (64, 48)), min_width=64, min_height=48, max_aspect=1.34), Picture)
    assert isinstance(make(tmp_path, with_exif(6), min_height=96, min_width=64), Picture)
    assert isinstance(make(tmp_path, jpeg(1, (200, 100)), max_megapixels=0.02), Picture)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and has few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


BOMBS = {
    "png": bomb(60_000, 60_000),
    "gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "gif-frame": b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "jpeg": jpeg(1).replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_000, 65_000), 1),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0,
    0) + bytes(99),
    "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\x3f\0" * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, name: str) -> None:
    wanted = {Reason.TOO_MANY_PIXELS} | ({Reason.DECODE_ERROR} if name == "webp" else set())
    for keep in (False, True):
        verdict = make(tmp_path, BOMBS[name], keep=keep)
        assert isinstance(verdict, Verdict) and verdict.reason in wanted, verdict


def test_an_early_look_at_a_large_file() -> None:
    """The first bytes tell the size, also of a turned picture; what they do not tell passes."""
    head = with_exif(6) + bytes(300_000)
    assert early_look(head, FilterSettings(min_width=64, min_height=96), 64.0) is None
    for filters, limit, reason in ((FilterSettings(min_width=65), 64.0, Reason.TOO_SMALL),
                                   (FilterSettings(max_aspect=1.2), 64.0, Reason.ASPECT),
                                   (FilterSettings(), 0.006, Reason.TOO_MANY_PIXELS)):  # fmt: skip
        verdict = early_look(head[:20_000], filters, limit)
        assert verdict is not None and verdict.reason is reason
    assert early_look(with_exif(6)[:100], FilterSettings(min_width=9999), 64.0) is None
    assert early_look(b"\xff\xd8\xff" + bytes(9999), FilterSettings(min_width=9999), 64.0) is None


# Damage


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("keep", [False, True])
def test_files_that_end_too_early(tmp_path: Path, kind: str, keep: bool) -> None:
    content = encoded(pixels(3, (160, 120)), kind)
    for share in (0.02, 0.3, 0.6, 0.9):
        verdict = make(tmp_path, content[: int(share * len(content))], keep=keep)
        assert isinstance(verdict, Verdict) and verdict.reason is Reason.DECODE_ERROR, (share, verdict)
    assert isinstance(make(tmp_path, content, keep=keep), Picture)


def test_pngs_with_a_flipped_byte(tmp_path: Path) -> None:
    """What is stored nevertheless has the right pixels."""
    image = pixels(3, (160, 120))
    content = encoded(image, "PNG")
    refused = 0
    for at in np.random.default_rng(1).integers(len(content) // 4, len(content) - 20, 60):
        damaged = bytearray(content)
        damaged[at] ^= 0x5A
        made = make(tmp_path, bytes(damaged))
        if isinstance(made, Picture):
            assert np.abs(np.asarray(Image.open(made.file)).astype(int) - np.asarray(image)).mean() < 3
        else:
            refused += made.reason is Reason.DECODE_ERROR
    assert refused >= 50


def padded(content: bytes, before: bytes, number: int) -> bytes:
    at = content.index(before)
    return content[:at] + b"\0" * number + content[at:]


@pytest.mark.parametrize("resize", [None, 16])
def test_a_little_padding_is_no_damage(tmp_path: Path, resize: int | None) -> None:
    plain = encoded(quarters(), "JPEG", quality=95)
    for content in (padded(plain, b"\xff\xd9", 12), padded(plain, b"\xff\xdb", 4), padded(plain, b"\xff\xc4", 16),
                    padded(with_exif(1), b"\xff\xdb", 1), plain + b"\0" * 9, plain + b"<!-- and more -->",
                    plain.replace(b"\xff\xdb", b"\xff" * 5 + b"\xdb")):  # fmt: skip
        found = stored(tmp_path, content, resize=resize)
        assert near(corners(found), QUARTERS)
        assert isinstance(make(tmp_path, content, keep=True), Picture)
    truncated = padded(plain, b"\xff\xdb", 3)[:-400]
    overwritten = bytearray(padded(plain, b"\xff\xdb", 1))
    overwritten[-300:-2] = bytes(range(1, 255)) + bytes(range(1, 45))
    for content in (truncated, bytes(overwritten), plain[:-300] + b"\0" * 298 + plain[-2:]):
        assert isinstance(make(tmp_path, content, resize=resize), Verdict)


def test_rubbish(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM",
    b"RIFF\0\0\0\0WEBP",
                    bytes(5000), b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n",
                    encoded(pixels(1), "TIFF"), encoded(pixels(1), "PPM"), encoded(pixels(1), "ICO")):  # fmt: skip
        verdict = make(tmp_path, content)
        assert isinstance(verdict, Verdict) and verdict.reason is Reason.DECODE_ERROR, content[:20]
    assert "TIFF" not in FORMATS


def test_digests_are_checked(tmp_path: Path) -> None:
    content = png(1)
    md5, sha256 = hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
    assert isinstance(make(tmp_path, content, Item(1, "", md5=md5.upper(), sha256=sha256)), Picture)
    for item in (Item(1, "", md5="0" * 32), Item(1, "", md5=md5, sha256="0" * 64)):
        verdict = make(tmp_path, content, item)
        assert isinstance(verdict, Verdict) and verdict.reason is Reason.HASH_MISMATCH


def test_looks(tmp_path: Path) -> None:
    """The same picture has nearly the same hash, however it is stored; another one another; blank ones none."""

    def hash_of(content: bytes, **options: object) -> int | None:
        made = make(tmp_path, content, duplicates="perceptual", **options)
        assert isinstance(made, Picture)
        return made.perceptual_hash

    image = pixels(5, (320, 240))
    first = hash_of(encoded(image, "PNG"))
    same = [hash_of(encoded(image, "JPEG", quality=60)), hash_of(encoded(image.resize((200, 150)), "WEBP")),
            hash_of(encoded(image, "JPEG"), resize=64), hash_of(encoded(image, "JPEG"), keep=True)]  # fmt: skip
    assert first is not None and all(value is not None and (value ^ first).bit_count() <= 4 for value in same)
    other = hash_of(jpeg(6, (320, 240)))
    assert other is not None and (other ^ first).bit_count() > 10
    assert hash_of(encoded(Image.new("RGB", (99, 99), "white"), "PNG")) is None
    made = make(tmp_path, jpeg(1))
    assert isinstance(made, Picture) and made.perceptual_hash is None
