"""What is unusual about each image of a run: what the scan said, enlargement, heavy crops, captions cut short."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from everydream.data.buckets import kept_fraction
from everydream.data.drawing import longest_reading
from everydream.plan import Planned

TOKENS_OF_A_CHUNK = 75
"""What a CLIP text encoder reads, begin and end included."""

KINDS = {
    "enlarged": "enlarged", "loses": "cropped", "caption has": "caption cut", "content is": "misnamed",
    "two captions": "two captions", "holds control": "invisible characters", "holds what": "hash in caption",
    "holds a lone": "lone S or C", "tags that": "tags twice", "the caption comes": "camera name",
    "the file name looks": "copy's name", "the caption is only": "number as caption", '" (': "copy's name",
    "has several": "several frames",
}  # fmt: skip
"""How a warning begins -> its kind, by which a page filters and findings count."""


def kind_of(warning: str) -> str:
    """Return the kind of a warning of `image_warnings`."""
    return next((kind for beginning, kind in KINDS.items() if warning.startswith(beginning)), "other")


def image_warnings(planned: Planned, count_tokens: Callable[[str], int]) -> dict[int, list[str]]:
    """Return what is unusual about each image: what the scan said, lost caption tails, enlargement, heavy crops."""
    # The largest resolution is where an image is enlarged first; what the crop takes hardly differs between them.
    resolutions = [resolution for resolution, _ in planned.config.data.resolutions]
    index, sizes = planned.index, planned.bucket_of_each(resolutions.index(max(resolutions)))
    most = most_tokens(planned)
    warnings = {record: list(lines) for record, lines in index.warnings.items()}
    counted = cache(count_tokens)
    for i in range(len(index)):
        written = index.captions[int(index.caption_offsets[i]) : int(index.caption_offsets[i + 1])]
        readings = [longest_reading(text, index.wildcards, index.grammars[int(index.source_N[i])]) for text in written]
        size = (int(index.width_N[i]), int(index.height_N[i]))
        if lines := [*size_warnings(size, sizes[i]), *length_warnings(readings, counted, most)]:
            warnings.setdefault(i, []).extend(lines)
    return warnings


def most_tokens(planned: Planned) -> int:
    """Return how many tokens of a caption are read, begin and end included."""
    return TOKENS_OF_A_CHUNK * planned.config.text_encoder.chunks + 2


def size_warnings(size: tuple[int, int], bucket: tuple[int, int]) -> Iterator[str]:
    """Yield what is unusual about an image's (width, height) in its bucket: enlargement, a heavy crop."""
    (width, height), scale = size, max(bucket[0] / size[0], bucket[1] / size[1])
    if scale > 1:
        yield f"enlarged {scale:.2f} times: {width}x{height} for the bucket {bucket[0]}x{bucket[1]}"
    lost = 1 - kept_fraction(width, height, bucket)
    if lost > 1 / 3:
        yield f"loses {100 * lost:.0f} % to the crop: {width}x{height} for the bucket {bucket[0]}x{bucket[1]}"


def length_warnings(captions: Iterable[str], count_tokens: Callable[[str], int], most: int) -> Iterator[str]:
    """Yield the tail that is lost of each caption of more tokens than `most`."""
    for caption in captions:
        # A token is at least a byte, and begin and end take two: most captions need not be counted.
        if len(caption.encode("utf-8", "replace")) + 2 <= most:
            continue
        tokens = count_tokens(caption)
        if tokens > most:
            tail = _lost_tail(caption, count_tokens, most)
            yield f"caption has {tokens} tokens of {most}; this tail is lost: {tail!r}"


def _lost_tail(caption: str, count_tokens: Callable[[str], int], most: int) -> str:
    """Return the end of a caption that does not fit, from the start of the word that is cut; found by bisection."""
    low, high = 0, len(caption)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(caption[:middle]) <= most:
            low = middle
        else:
            high = middle - 1
    # Without spaces (Chinese, Japanese) there is no word to go back to.
    start = caption.rfind(" ", 0, low + 1) + 1 if " " in caption[max(0, low - 30) : low + 1] else low
    return caption[start:]
