"""Settings of the caches."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from everydream.settings import Settings


class CacheSettings(Settings):
    """Keep what frozen networks make of images and captions, so that it is computed once. See docs/caching.md."""

    latents: bool = False
    """Keep each image's posterior, from which every visit still draws its own latents; the VAE leaves the device."""
    text: bool = False
    """Keep what the text encoders make of the captions, where none of them trains; they leave the device."""
    variants: Annotated[int, Field(ge=1)] = 1
    """Crops and mirrorings kept of each image, which visits take in turn; 1 where nothing about them is random."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How the numbers are kept: fp32 changes nothing, the others halve the size and round."""
    folder: str | None = None
    """Where they are kept, for any number of runs; null: `runs_dir/cache`. Never beside the images."""
    max_gb: Annotated[float, Field(gt=0.0)] = 100.0
    """Gigabytes that the folder may hold; what was longest unused goes first, then nothing more is kept."""

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self.latents or self.text

    @model_validator(mode="after")
    def _has_effect(self) -> "CacheSettings":
        changed = [name for name in ("variants", "dtype", "folder", "max_gb") if self._differs(name)]
        if changed and not self.is_on:
            raise ValueError(f"{', '.join(changed)}: no effect, since neither latents nor text is true")
        if self.variants > 1 and not self.latents:
            raise ValueError("variants: no effect without latents: true; captions have no crops")
        return self

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)
