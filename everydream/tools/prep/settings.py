"""What `prep` is asked to make."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from everydream.errors import ConfigError
from everydream.settings import Settings


class PrepSettings(Settings):
    """The settings of one prep; the same settings and photos give the same files."""

    size: Annotated[int, Field(ge=16, le=8192)] = 512
    """Side of the square in pixels; of the shorter side where nothing is cropped."""
    crop: Literal["subject", "center", "none"] | None = None
    """Which square is kept of a photo; `none` keeps all of it, scaled down only. Default: subject."""
    pad: Annotated[str, Field(pattern=r"^(#[0-9a-fA-F]{6}|edge)$")] | None = None
    """Fill up to a square in place of cropping: a colour, or `edge` to draw out the border."""
    upscale: bool = False
    """Enlarge what is smaller than `size`; without it such a crop is left out."""
    person: bool = False
    """Crop around faces."""
    ladder: Annotated[list[Annotated[float, Field(ge=1.0, le=100.0)]], Field(min_length=1)] = [1.1, 1.6, 2.0, 2.64]
    """Sides of the squares around a face, in longer sides of its box."""
    faces: Literal["skip", "largest", "all"] = "largest"
    """Photos with several faces: leave out, take the largest, or a ladder of each. With none: leave out, or crop."""
    format: Literal["png", "jpg"] = "png"
    """PNG loses nothing, and a prepared image is decoded, cropped and encoded for the last time before training."""

    @model_validator(mode="after")
    def _one_way_to_square(self) -> "PrepSettings":
        if self.pad is not None and self.crop is not None:
            raise ValueError(f"pad fills up in place of cropping: give --pad {self.pad} or --crop {self.crop}")
        if len(set(self.ladder)) < len(self.ladder):
            raise ValueError("ladder gives a factor twice")
        return self


def check_settings(**values: object) -> PrepSettings:
    """Return the settings, or raise ConfigError with all that is wrong with them."""
    try:
        return PrepSettings.model_validate(values)
    except ValidationError as error:
        lines = [
            f"--{problem['loc'][0]} {problem['input']!r}: {problem['msg']}" if problem["loc"] else problem["msg"]
            for problem in error.errors()
        ]
        raise ConfigError("The options do not make sense:\n  " + "\n  ".join(lines)) from error
