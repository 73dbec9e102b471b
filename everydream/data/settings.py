"""Settings of the data room: where images come from, what they are called, how they are cut."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from everydream.settings import Settings

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
CaptionRule = Literal["everydream", "label", "manifest", "joepenna", "kohya"]


class SourceSettings(Settings):
    """One folder (or manifest) of captioned images."""

    path: str | None = None
    """Folder, tar shards (`{000..009}.tar`), or the manifest of `captions: manifest`; also a URL (docs/scaling.md)."""
    name: Annotated[str, Field(pattern=r"^[^/\\]+$")] | None = None
    """Name in reports and seeds; default: the last part of the path."""
    role: Literal["training", "ground_truth", "class"] = "training"
    """`ground_truth`: real images that keep the model from forgetting; `class`: DreamBooth's class images."""
    pairs_with: list[str] | None = None
    """Names of the training sources that class images belong to and are drawn as often as; null: all of them."""
    generate: Annotated[int, Field(ge=1)] | None = None
    """Class images wanted in all; what `path` lacks is made from the model, with `label` as the prompt."""
    repeats: Annotated[float, Field(ge=0.0)] | None = None
    """Draws per image and epoch, fractions allowed. One of repeats, share, choose; default: 1, or as its pairs."""
    share: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of all draws of an epoch, e.g. 0.25 for a quarter; 0 for none."""
    choose: Annotated[int, Field(ge=1)] | None = None
    """Draws per epoch from this source in all; rotates through its images over the epochs."""
    captions: CaptionRule | None = None
    """Where captions come from; see docs/captions.md. Default: `label` if one is given, else `everydream`."""
    label: str | None = None
    """The caption of every image, for `captions: label`; also the prompt of class images that are made."""
    token: str | None = None
    """The subject's name, for `captions: joepenna`: what `S` stands for, unless a folder says otherwise."""
    class_word: str | None = None
    """The subject's class, for `captions: joepenna`: what `C` stands for, unless a folder says otherwise."""
    token_only: bool = False
    """For `captions: joepenna`: leave the class out where no template asks for it (`effy`, not `effy person`)."""
    default_caption: str | None = None
    """Caption of an image that has none; without it such an image is rejected."""
    path_column: str | None = None
    """Manifest column with the image's path; default: detected."""
    caption_column: str | None = None
    """Manifest column with the caption; default: detected."""
    lines: Literal["join", "choose"] = "join"
    """What several lines of a text sidecar mean: one caption, or variants, one a visit (with kohya always)."""
    dropout: Probability | None = None
    """Probability of an empty caption, for this source; default: captions.dropout."""
    shuffle_tags: bool | None = None
    """Default: captions.shuffle_tags."""
    keep_tags: Annotated[int, Field(ge=0)] | None = None
    """Default: captions.keep_tags."""
    flip_p: Probability | None = None
    """Probability of a mirrored image, for this source; default: data.flip_p."""
    loss_scale: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of this source's images in the loss; null: 1, for `role: class` that of prior preservation."""

    @model_validator(mode="after")
    def _consistent(self) -> "SourceSettings":
        if problems := [*self._amount_problems(), *self._caption_problems(), *self._class_problems()]:
            raise ValueError("; ".join(problems))
        return self

    def _amount_problems(self) -> Iterator[str]:
        given = [name for name in ("repeats", "share", "choose") if getattr(self, name) is not None]
        if len(given) > 1:
            yield f"give one of repeats, share and choose, not {' and '.join(given)}"

    def _caption_problems(self) -> Iterator[str]:
        if self.captions == "label" and not _says(self.label):
            yield "captions: label needs a text in `label`"
        if self.label is not None and self.captions not in (None, "label") and self.generate is None:
            yield f"`label` is only used with captions: label, not with captions: {self.captions}"
        if self.captions == "joepenna":
            if self.role != "class" and not _says(self.token):
                yield "captions: joepenna needs the subject's name in `token`, which S stands for"
            if (self.role == "class" or not self.token_only) and not _says(self.class_word):
                unless = "" if self.role == "class" else "; or set token_only: true to leave the class out"
                yield f"captions: joepenna needs the subject's class in `class_word`, which C stands for{unless}"
            return
        for name in ("token", "class_word", "token_only"):
            if getattr(self, name):
                yield f"`{name}` is only used with captions: joepenna, not with captions: {self.caption_rule}"

    def _class_problems(self) -> Iterator[str]:
        for name in ("pairs_with", "generate"):
            if self.role != "class" and getattr(self, name) is not None:
                yield f"`{name}` is only used with role: class, not with role: {self.role}"
        if self.pairs_with == []:
            yield "`pairs_with` names no source; leave it out to pair with all training sources"
        if self.generate is not None and not _says(self.label):
            yield "`generate` needs a `label`: the prompt that class images are made from, and their caption"

    @property
    def caption_rule(self) -> CaptionRule:
        """The rule that counts, after the default."""
        return self.captions or ("label" if self.label is not None else "everydream")

    @property
    def follows(self) -> bool:
        """Whether its draws are as many as those of the sources that it pairs with."""
        return self.role == "class" and self.repeats is None and self.share is None and self.choose is None


def _says(text: str | None) -> bool:
    return bool((text or "").strip())


class CaptionSettings(Settings):
    """What happens to captions on each visit."""

    dropout: Probability = 0.04
    """Probability of an empty caption, drawn per visit; teaches the unconditional model that guidance needs."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption on each visit."""
    keep_tags: Annotated[int, Field(ge=0)] = 0
    """How many leading tags stay: in place when shuffling, and in the caption whatever tag_dropout does."""
    tag_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a comma-separated part is left out, drawn per visit and part; the last one left always stays."""
    tag_dropout_warmup: Probability = 0.0
    """Part of the run over which tag_dropout rises from 0, so that whole captions are learned first."""
    wildcards: bool = False
    """Read `{red|blue}` in captions as one of its choices, drawn per visit; doubled braces are braces."""

    @model_validator(mode="after")
    def _warms_up_something(self) -> "CaptionSettings":
        if self.tag_dropout_warmup and not self.tag_dropout:
            raise ValueError("tag_dropout_warmup has no effect with tag_dropout: 0")
        return self


class ResolutionSettings(Settings):
    """A further resolution."""

    resolution: Annotated[int, Field(ge=16, le=4096)]
    """Side in pixels of its square bucket."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Its part of all draws."""


class DataSettings(Settings):
    """The images."""

    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """Folders or manifests; each with its own repeats, share or choose."""
    resolution: Annotated[int, Field(ge=16, le=4096)] = 512
    """Side in pixels of the square bucket; every bucket has about this side squared as its area."""
    also_at: list[ResolutionSettings] = []
    """Further resolutions, each with its share of the draws; what is left is trained at `resolution`."""
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
    masks: Literal["files", "alpha", "none"] = "files"
    """What trains of an image: `name.mask.png` beside it, white all, black nothing; alpha: else its own opacity."""
    index: str | None = None
    """Parquet file of `everydream index`; its images are taken as they stand there, without a look at each."""
    exclude: str | None = None
    """Text file of images switched off, one `source/path` a line; null: `<config>.excluded.txt` beside it, if there."""
    max_megapixels: Annotated[float, Field(gt=0.0)] = 150.0
    """Larger images are rejected before they are decoded (decompression bombs)."""
    twins: Literal["auto", "together", "ignore"] = "auto"
    """Whether near duplicates are held out together, so that none trains; auto: in sets of up to 20,000 images."""
    check: Literal["auto", "headers", "full"] = "auto"
    """How images are checked before training: headers only, or decoded once; auto decodes up to 2,000 images."""
    strict: bool = False
    """Refuse to start when any image is rejected."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode images; default: the cores that each process may use, less one, and 1 to 8."""

    @property
    def step(self) -> int:
        """The bucket step that counts at `resolution`."""
        return self.step_at(self.resolution)

    def step_at(self, resolution: int) -> int:
        """Return the bucket step that counts at a resolution, after the default: 64 from 512 pixels on."""
        return self.bucket_step or max(8, min(64, resolution // 64 * 8))

    @property
    def resolutions(self) -> list[tuple[int, float]]:
        """Every resolution with its share of the draws; `resolution` first, with what the others leave."""
        others = [(other.resolution, other.share) for other in self.also_at]
        return [(self.resolution, 1.0 - sum(share for _, share in others)), *others]

    @model_validator(mode="after")
    def _index_of_what_there_is(self) -> "DataSettings":
        if self.index is not None and any(source.generate is not None for source in self.sources):
            raise ValueError("index: class images that are made (`generate`) come after it; give them as a folder")
        return self

    @model_validator(mode="after")
    def _resolutions_apart(self) -> "DataSettings":
        sides, shares = zip(*self.resolutions, strict=True)
        if shares[0] <= 0.0:
            raise ValueError(f"also_at: the shares sum to {1 - shares[0]:g}, so nothing is left for `resolution`")
        if len(set(sides)) < len(sides):
            raise ValueError(f"also_at: {', '.join(map(str, sides))} are not all different")
        return self
