"""Settings of the data room: where images come from, what they are called, how they are cut."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from everydream.settings import Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class SourceSettings(Settings):
    """One folder (or manifest) of captioned images."""

    path: str
    """Folder, searched recursively; for `captions: manifest` the manifest file."""
    name: Annotated[str, Field(pattern=r"^[^/\\]+$")] | None = None
    """Name in reports and seeds; default: the last part of the path."""
    role: Literal["training", "ground_truth"] = "training"
    """`ground_truth` marks real images that keep the model from forgetting; it is shown apart in the plan."""
    repeats: Annotated[float, Field(ge=0.0)] | None = None
    """Draws per image and epoch, fractions allowed. Exactly one of repeats, share, choose; default: repeats 1."""
    share: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of all draws of an epoch, e.g. 0.25 for a quarter; 0 for none."""
    choose: Annotated[int, Field(ge=1)] | None = None
    """Draws per epoch from this source in all; rotates through its images over the epochs."""
    captions: Literal["everydream", "label", "manifest"] | None = None
    """Where captions come from; see docs/captions.md. Default: `label` if one is given, else `everydream`."""
    label: str | None = None
    """The caption of every image, for `captions: label`."""
    default_caption: str | None = None
    """Caption of an image that has none; without it such an image is rejected."""
    path_column: str | None = None
    """Manifest column with the image's path; default: detected."""
    caption_column: str | None = None
    """Manifest column with the caption; default: detected."""
    lines: Literal["join", "choose"] = "join"
    """What several lines of a text sidecar mean: one caption, or variants of which each visit takes one."""
    dropout: Probability | None = None
    """Probability of an empty caption, for this source; default: captions.dropout."""
    shuffle_tags: bool | None = None
    """Default: captions.shuffle_tags."""
    keep_tags: Annotated[int, Field(ge=0)] | None = None
    """Default: captions.keep_tags."""
    flip_p: Probability | None = None
    """Probability of a mirrored image, for this source; default: data.flip_p."""
    loss_scale: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of this source's images in the loss (the prior weight of ground truth)."""

    @model_validator(mode="after")
    def _one_amount(self) -> "SourceSettings":
        given = [name for name in ("repeats", "share", "choose") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of repeats, share and choose, not {' and '.join(given)}")
        if self.captions == "label" and not (self.label or "").strip():
            raise ValueError("captions: label needs a text in `label`")
        if self.label is not None and self.captions not in (None, "label"):
            raise ValueError(f"`label` is only used with captions: label, not with captions: {self.captions}")
        return self

    @property
    def caption_rule(self) -> Literal["everydream", "label", "manifest"]:
        """The rule that counts, after the default."""
        return self.captions or ("label" if self.label is not None else "everydream")


class CaptionSettings(Settings):
    """What happens to captions on each visit."""

    dropout: Probability = 0.04
    """Probability of an empty caption, drawn per visit; teaches the unconditional model that guidance needs."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption on each visit."""
    keep_tags: Annotated[int, Field(ge=0)] = 0
    """How many leading tags stay in place when shuffling."""


class DataSettings(Settings):
    """The images."""

    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """Folders or manifests; each with its own repeats, share or choose."""
    resolution: Annotated[int, Field(ge=16, le=4096)] = 512
    """Side in pixels of the square bucket; every bucket has about this side squared as its area."""
    bucket_step: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    """Bucket sides are multiples of this many pixels; null: an eighth of the resolution in eights, at most 64."""
    max_aspect: Annotated[float, Field(ge=1.0)] = 4.0
    """Longest side over shortest of any bucket; longer images are cropped, and inspect says so."""
    crop: Literal["random", "center"] = "random"
    """Which part is kept where an image is larger than its bucket; random is drawn per visit."""
    flip_p: Probability = 0.0
    """Probability of a mirrored image, drawn per visit."""
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    """Colour under transparent images."""
    max_megapixels: Annotated[float, Field(gt=0.0)] = 150.0
    """Larger images are rejected before they are decoded (decompression bombs)."""
    check: Literal["auto", "headers", "full"] = "auto"
    """How images are checked before training: headers only, or decoded once; auto decodes up to 2,000 images."""
    strict: bool = False
    """Refuse to start when any image is rejected."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode images; default: from the number of cores."""

    @property
    def step(self) -> int:
        """The bucket step that counts, after the default: 64 from 512 pixels on."""
        return self.bucket_step or max(8, min(64, self.resolution // 64 * 8))
