"""A look at the beginning of a large file, so that what is too small or too large is not fetched to its end."""

import io

from pictures.decode import BadImage, TooLarge, opened, upright_size
from scrapers.filters import refuse_size
from scrapers.settings import FilterSettings
from scrapers.types import Reason, Verdict

_FORMATS = ("JPEG", "PNG", "GIF", "BMP")
"""Formats whose headers are read without a decoder, which has its place in another process."""


def early_look(head: bytes, filters: FilterSettings, max_megapixels: float) -> Verdict | None:
    """Judge the size that a file's first bytes claim; None where they do not hold the header."""
    try:
        with opened(io.BytesIO(head), max_megapixels, _FORMATS) as image:
            return refuse_size(*upright_size(image), filters)
    except TooLarge as error:
        return Verdict(Reason.TOO_MANY_PIXELS, str(error))
    except BadImage:
        return None
