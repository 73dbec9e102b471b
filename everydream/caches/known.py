"""What the loader asks of the caches while training; see `data.loader.Known`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from everydream.caches.contents import UNKNOWN
from everydream.caches.keys import latent_key, text_key
from everydream.caches.store import Keys, Store
from everydream.types import Conditioning, Crop

TOKENS, POOLED = "tokens", "pooled"


@dataclass(frozen=True)
class Known:
    """What a run has in its caches; where it has not all of a batch, the batch is decoded and encoded as ever."""

    store: Store
    contents_N: Keys
    """The hash of each record's file."""
    background: str
    dtype: str
    image_encoder: str | None
    """Its hash; None where latents are not kept."""
    text_encoders: str | None
    has_pooled: bool

    def moments(self, records: Sequence[int], crops: Sequence[Crop]) -> torch.Tensor | None:
        """Return the moments (B, 2C, h, w), float32, of these crops; None unless all are there and sound."""
        if self.image_encoder is None:
            return None
        rows = []
        for record, crop in zip(records, crops, strict=True):
            content = self.contents_N[record : record + 1].tobytes()
            key = latent_key(content, crop, self.background, self.image_encoder, self.dtype)
            entry = self.store.read(key) if content != UNKNOWN else None
            if entry is None:
                return None
            rows.append(entry.float())
        return torch.stack(rows)

    def read(self, captions: Sequence[str]) -> Conditioning | None:
        """Return what the text encoders make of the captions; None unless all are there and sound."""
        if self.text_encoders is None or (tokens_BLD := self._outputs(captions, TOKENS)) is None:
            return None
        pooled_BD = self._outputs(captions, POOLED) if self.has_pooled else None
        return None if self.has_pooled and pooled_BD is None else Conditioning(tokens_BLD, pooled_BD)

    def _outputs(self, captions: Sequence[str], output: str) -> torch.Tensor | None:
        assert self.text_encoders is not None
        rows = []
        for caption in captions:
            entry = self.store.read(text_key(caption, output, self.text_encoders, self.dtype))
            if entry is None:
                return None
            rows.append(entry.float())
        return torch.stack(rows)

    def take_notes(self) -> list[str]:
        """Return what was found damaged since the last call, and what happens instead."""
        return [f"{note}. Its images are encoded anew, and kept when the run is next started." for note in
                self.store.take_notes()]  # fmt: skip
