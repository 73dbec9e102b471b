"""What would silently stay as it was first drawn, although the user asked for it to vary: refused, with a way out."""

from collections.abc import Iterator, Mapping

import numpy as np

from everydream.caches.needed import captions_of
from everydream.caches.settings import CacheSettings
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.errors import ConfigError
from everydream.methods.settings import USUAL_RATES, TextEncoderSettings
from everydream.types import Index


def cache_problems(cache: CacheSettings, data: DataSettings, captions: CaptionSettings) -> list[str]:
    """Return what the settings have against each other, a line each."""
    return [*_latent_problems(cache, data), *_text_problems(cache, captions)]


def _latent_problems(cache: CacheSettings, data: DataSettings) -> Iterator[str]:
    if not cache.latents:
        return
    if data.crop == "random" and cache.variants == 1:
        yield (
            "cache.latents: data.crop: random cuts each visit elsewhere, and of one kept crop all visits would be "
            "alike. Set cache.variants to how many crops to keep of each image (4, say), or data.crop: center."
        )
    if data.masks == "alpha":
        yield (
            "cache.latents: data.masks: alpha needs every image decoded at every visit. Write the masks beside the "
            "images as name.mask.png and use data.masks: files, or set cache.latents: false."
        )


def _text_problems(cache: CacheSettings, captions: CaptionSettings) -> Iterator[str]:
    if not cache.text:
        return
    for name in ("shuffle_tags", "tag_dropout", "wildcards"):
        if getattr(captions, name):
            yield (
                f"cache.text: captions.{name} makes another caption at each visit, too many to keep. Take it out, or "
                "set cache.text: false. (captions.dropout goes with it: it needs the empty caption alone.)"
            )


def training_text_problems(
    cache: CacheSettings, method: str, texts: Mapping[str, TextEncoderSettings | None]
) -> list[str]:
    """Return what trains of the text encoders although their outputs are to be kept."""
    if not cache.text:
        return []
    if method == "textual_inversion":
        return ["cache.text: method: textual_inversion trains what the text encoders read. Set cache.text: false."]
    return [
        f"cache.text: {name}.train: true changes at each step what would be kept. Set {name}.train: false, or "
        "cache.text: false."
        for name, section in texts.items()
        if method in USUAL_RATES and section is not None and section.train
    ]


def require_variety(index: Index, cache: CacheSettings, data: DataSettings) -> None:
    """Raise ConfigError where folders, files or sources ask for what one kept crop or caption cannot give."""
    varies_N = (index.flip_p_N > 0.0) & (index.flip_p_N < 1.0)
    if cache.latents and cache.variants == 1 and varies_N.any():
        raise ConfigError(
            f"cache.latents: {_some(index, varies_N)} flipped by chance (flip_p), and of one kept crop all visits "
            "would be alike. Set cache.variants: 2, which keeps both, or flip_p: 0."
        )
    if cache.variants > 1 and data.crop == "center" and not varies_N.any():
        raise ConfigError(
            f"cache.variants: {cache.variants} has no effect, since with data.crop: center and no flips all visits of "
            "an image are alike. Set it to 1, or data.crop: random, or data.flip_p."
        )
    if not cache.text:
        return
    varies_N = index.shuffle_tags_N | np.array([_has_choices(index, record) for record in range(len(index))], bool)
    if varies_N.any():
        raise ConfigError(
            f"cache.text: {_some(index, varies_N)} captioned anew at each visit (shuffled tags or wildcards), which "
            "cannot be kept. Take that out, or set cache.text: false."
        )


def _has_choices(index: Index, record: int) -> bool:
    if not index.grammars[int(index.source_N[record])]:
        return False
    return any("{" in caption for caption in captions_of(index, record))


def _some(index: Index, which_N: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> str:
    """Say which records these are, by the first of them and their number."""
    first, num = index.key(int(np.flatnonzero(which_N)[0])), int(which_N.sum())
    return f"{first} is" if num == 1 else f"{num} images, {first} for one, are"
