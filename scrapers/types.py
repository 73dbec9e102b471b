"""The values that cross the scraper's rooms."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple

Status = Literal["pending", "staged", "stored", "refused", "failed"]
"""`pending`: taken up, no result yet. `staged`: the image is ready, and waits for its turn to be published."""


class Reason(str, Enum):
    """Why a row was refused (by us, or by the site's wish) or failed (it could not be had)."""

    # Refused before fetching, by what the source says of the image.
    NO_CAPTION = "no_caption"
    WORDS = "words"
    UNWANTED_WORDS = "unwanted_words"
    AESTHETIC = "aesthetic"
    SIMILARITY = "similarity"
    UNSAFE = "unsafe"
    WATERMARK = "watermark"
    LICENCE = "licence"
    LANGUAGE = "language"
    DOMAIN = "domain"
    UNKNOWN_SCORE = "unknown_score"
    DUPLICATE_URL = "duplicate_url"
    # Refused by us or the site while fetching.
    SSRF = "ssrf"
    ROBOTS = "robots"
    OPT_OUT = "opt_out"
    REDIRECT_REFUSED = "redirect_refused"
    TOO_LARGE = "too_large"
    # Refused by what was fetched; the sizes also by what the source says.
    NOT_IMAGE = "not_image"
    TOO_SMALL = "too_small"
    ASPECT = "aspect"
    TOO_FEW_BYTES = "too_few_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    # Failed.
    BAD_URL = "bad_url"
    DNS_NXDOMAIN = "dns_nxdomain"
    DNS_TEMP = "dns_temp"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_CERT = "tls_cert"
    TLS_OTHER = "tls_other"
    RESET = "reset"
    READ_TIMEOUT = "read_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    TOO_SLOW = "too_slow"
    HTTP_403 = "http_403"
    HTTP_404 = "http_404"
    HTTP_408 = "http_408"
    HTTP_410 = "http_410"
    HTTP_429 = "http_429"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    HTTP_OTHER = "http_other"
    BAD_RESPONSE = "bad_response"
    INCOMPLETE = "incomplete"
    REDIRECT_LIMIT = "redirect_limit"
    HOST_DOWN = "host_down"
    ROBOTS_UNREACHABLE = "robots_unreachable"
    DECODE_ERROR = "decode_error"
    DECODER_CRASHED = "decoder_crashed"
    HASH_MISMATCH = "hash_mismatch"

    @property
    def status(self) -> Literal["refused", "failed"]:
        """Whose decision it was."""
        return "failed" if self in _FAILED else "refused"

    @property
    def can_still_pass(self) -> bool:
        """Whether another try, now or with `--retry-failed`, may end otherwise."""
        return self in _TRANSIENT


_FAILED = frozenset(list(Reason)[list(Reason).index(Reason.BAD_URL) :])
_TRANSIENT = frozenset({
    Reason.DNS_TEMP, Reason.CONNECT_REFUSED, Reason.CONNECT_TIMEOUT, Reason.RESET, Reason.READ_TIMEOUT,
    Reason.TOTAL_TIMEOUT, Reason.TOO_SLOW, Reason.HTTP_429, Reason.HTTP_5XX, Reason.INCOMPLETE, Reason.HOST_DOWN,
    Reason.HTTP_408, Reason.DECODER_CRASHED,
    Reason.ROBOTS_UNREACHABLE, Reason.BAD_RESPONSE,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: where an image is, and what is claimed about it. None and "": the source does not say."""

    number: int
    """Position in the whole source, from 0: the order of everything."""
    where: str
    """For people: "part-00000.parquet:12"."""
    url: str
    caption: str = ""
    """As the source has it; `scrapers.captions` cleans it."""
    width: int | None = None
    height: int | None = None
    aesthetic: float | None = None
    similarity: float | None = None
    unsafe: float | None = None
    """Probability in [0, 1] that the image is not safe for work; high is unsafe."""
    watermark: float | None = None
    """Probability in [0, 1] of a watermark."""
    nsfw: str = ""
    """LAION-400M's label: UNLIKELY, UNSURE or NSFW."""
    licence: str = ""
    licence_url: str = ""
    author: str = ""
    title: str = ""
    language: str = ""
    md5: str = ""
    """Hex digest that the file must have, lower case."""
    sha256: str = ""
    """Hex digest that the file must have, lower case."""
    file: Path | None = None
    """The image itself, where the source is a local mirror; nothing is fetched then."""
    data: bytes | None = None
    """The same, where the mirror holds it inside (Parquet, tar)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a row ends without an image."""

    reason: Reason
    detail: str = ""
    """What was seen, for people: the status line, the size, the exception."""
    retry_after_s: float | None = None
    """How long the site asked us to wait."""
    is_throttling: bool = False
    """Whether the site says that it is asked too much (429, 503)."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A checked image in the staging folder."""

    file: Path
    extension: str
    """With its dot, by content."""
    width: int
    height: int
    num_bytes: int
    sha256: str
    """Of the file as stored."""
    perceptual_hash: int | None


@dataclass(frozen=True, slots=True)
class Item:
    """A row that was taken up, as far as fetching needs it."""

    number: int
    """Its number in the ledger, which is its place in the order of the set."""
    url: str
    md5: str = ""
    """What the source says the file must be; "" says nothing."""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item ended."""

    number: int
    result: Picture | Verdict
    tries: int
    """Requests made for it in this run; 0 if its file was here already."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image on its way into the set."""

    number: int
    url: str
    caption: str
    about: dict[str, str]
    """licence, licence_url, author and title, as far as known."""
    picture: Picture


class Record(NamedTuple):
    """An item as the ledger has it."""

    number: int
    url: str
    position: int
    where: str
    caption: str
    about: dict[str, str]
    """licence, licence_url, author and title, as far as known."""
    md5: str
    sha256_wanted: str
    status: str
    reason: str | None
    detail: str | None
    tries: int
    extension: str | None
    width: int | None
    height: int | None
    num_bytes: int | None
    sha256: str | None
    perceptual_hash: int | None
    path: str | None
    time: float | None
