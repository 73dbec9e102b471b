"""The settings of a scrape: a recipe (`datasets/*.yaml`), or the command's options."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """A section: strict types, no unknown keys, frozen once read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SourceSettings(Settings):
    """Where rows come from."""

    kind: Literal["laion", "ffhq", "urls"]
    """laion: Parquet with URL and caption columns (LAION, COYO, DataComp); ffhq: its JSON, or a local mirror;
    urls: txt, csv, tsv, jsonl, Parquet or a WebDataset index."""
    files: Annotated[list[str], Field(min_length=1)]
    """Files, folders or globs, local, or by fsspec: hf, s3, gs, https."""
    columns: dict[str, str] = {}
    """Which column holds what, where the usual names do not fit: {url: link, caption: alt_text}."""
    part: Literal["image", "thumbnail", "in_the_wild"] = "image"
    """Which of FFHQ's three versions of each picture."""


class FilterSettings(Settings):
    """Which rows are taken up, and which images are kept."""

    with_any: list[str] = []
    """At least one of these words or phrases stands in the caption; whole words, any case."""
    with_all: list[str] = []
    """All of these stand in the caption."""
    without: list[str] = []
    """None of these stands in the caption."""
    min_width: Annotated[int, Field(ge=1)] = 1
    """Pixels, as claimed and then as fetched."""
    min_height: Annotated[int, Field(ge=1)] = 1
    """Pixels, as claimed and then as fetched."""
    max_aspect: Annotated[float, Field(ge=1.0)] | None = None
    """Longer side over shorter, as claimed and then as fetched."""
    min_aesthetic: float | None = None
    """Aesthetic score, about 1 to 10; above 6 is good."""
    min_similarity: float | None = None
    """CLIP similarity of image and caption; 0.3 is usual for LAION."""
    max_unsafe: Share | None = None
    """Highest acceptable probability of being unsafe (punsafe); 0.1 is strict. Labels: UNLIKELY passes."""
    max_watermark: Share | None = None
    """Highest acceptable probability of a watermark (pwatermark)."""
    unknown_scores: Literal["refuse", "keep"] = "refuse"
    """What to do with a row that lacks a score which a filter needs."""
    licences: list[str] = []
    """Only these licences, by their names or the beginnings of them: "CC BY", "Public Domain"."""
    languages: list[str] = []
    """Only these languages, as the source names them: en."""
    domains: list[str] = []
    """Only these domains and what is below them."""
    without_domains: list[str] = []
    """Not these domains, nor what is below them."""
    min_bytes: Annotated[int, Field(ge=0)] = 0
    """Smaller files are refused."""
    duplicates: Literal["none", "exact", "perceptual"] = "exact"
    """none: all are kept; exact: not the same file twice; perceptual: nor two that look the same."""
    perceptual_distance: Annotated[int, Field(ge=0, le=16)] = 4
    """How many of the 64 bits of two perceptual hashes may differ for the images to look the same."""


class CaptionSettings(Settings):
    """What the images are called."""

    text: str = "{caption}"
    """The caption; {caption} stands for the source's. "close up photo of a person" for a set without captions."""


class ImageSettings(Settings):
    """What is written."""

    resize: Annotated[int, Field(ge=16)] | None = None
    """The shorter side is brought down to this many pixels; smaller images stay as they are."""
    keep_original: bool = False
    """Store the bytes as they came, metadata and all, once they have been decoded without error."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality."""
    max_megapixels: Positive = 64.0
    """Larger images are refused before they are decoded (decompression bombs)."""


class FetchSettings(Settings):
    """How sites are asked."""

    concurrency: Annotated[int, Field(ge=1)] = 100
    """Requests in flight."""
    per_host: Annotated[int, Field(ge=1)] | None = None
    """Requests in flight to one host; default: 4, and no limit of its own for addresses opened by allow_private."""
    delay_s: Annotated[float, Field(ge=0.0)] = 0.0
    """Seconds between the starts of two requests to one host; a robots.txt's Crawl-delay counts if it is longer."""
    connect_timeout_s: Positive = 5.0
    """Seconds for a connection, TLS included."""
    read_timeout_s: Positive = 8.0
    """Seconds without a byte; and bodies slower than min_bytes_per_s over this long are given up."""
    total_timeout_s: Positive = 30.0
    """Seconds for one request in all."""
    min_bytes_per_s: Annotated[int, Field(ge=0)] = 1000
    """Slower bodies are given up."""
    max_megabytes: Positive = 20.0
    """Larger bodies are refused, at the latest when they have come this far."""
    max_redirects: Annotated[int, Field(ge=0)] = 5
    """Redirects followed for one image."""
    tries: Annotated[int, Field(ge=1)] = 3
    """Requests for one image where the failure can pass."""
    backoff_s: Positive = 1.0
    """Scale of the random wait before another try: up to 1, 4, 16 times this."""
    max_retry_after_s: Annotated[float, Field(ge=0.0)] = 120.0
    """Longest wait that a site may ask for within a run; beyond it the image is left to --retry-failed."""
    robots: bool = True
    """Honour robots.txt."""
    opt_out: bool = True
    """Honour X-Robots-Tag (noai, noimageai, noindex, ...), TDM-Reservation and Content-Usage headers."""
    contact: str = ""
    """Where site owners can reach you: a mail address or a page. It is sent with every request."""
    allow_private: list[str] = []
    """Private addresses or networks that may be fetched from, for tests and intranets: 127.0.0.1, 10.1.0.0/16."""


class SinkSettings(Settings):
    """How the set is laid out."""

    kind: Literal["folder", "webdataset"] = "folder"
    """folder: images named by their captions; webdataset: tar shards with an index."""
    shard_size: Annotated[int, Field(ge=1)] = 1000
    """Images per tar shard."""


class ScrapeSettings(Settings):
    """One scrape."""

    source: SourceSettings
    filters: FilterSettings = FilterSettings()
    captions: CaptionSettings = CaptionSettings()
    images: ImageSettings = ImageSettings()
    fetch: FetchSettings = FetchSettings()
    sink: SinkSettings = SinkSettings()
    limit: Annotated[int, Field(ge=1)] | None = None
    """Images to store at most."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that decode images; default: one per core."""

    @model_validator(mode="after")
    def _one_way(self) -> "ScrapeSettings":
        if self.images.keep_original and self.images.resize is not None:
            raise ValueError("give one of images.resize and images.keep_original")
        return self
