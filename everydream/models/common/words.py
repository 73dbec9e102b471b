"""New words of a frozen text encoder: rows beside its vocabulary, and tokens that lead to them.

The vocabulary's matrix stays as it is; only the rows beside it can train. A word of several vectors is a
token for each, which the tokenizer is handed in the place of the word.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class WordEmbedding(nn.Module):
    """A token embedding with further rows; ids from `first_id` on are theirs."""

    adapter_layer_names = ("learned_VD",)

    def __init__(
        self, base_layer: nn.Embedding, learned_VD: torch.Tensor, first_id: int, max_norm: float | None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.first_id = first_id
        self.learned_VD = nn.Parameter(learned_VD.detach().clone().to(base_layer.weight))
        self.max_norm = max_norm

    def rows(self) -> torch.Tensor:
        """Return the new rows (V, D) as they are used: none is longer than `max_norm`."""
        if self.max_norm is None:
            return self.learned_VD
        norms_V = self.learned_VD.norm(dim=-1, keepdim=True)
        limited_VD: torch.Tensor = self.learned_VD * (self.max_norm / norms_V.clamp_min(self.max_norm))
        return limited_VD

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Return the rows of the ids, (B, L, D)."""
        vocabulary_BLD: torch.Tensor = self.base_layer(ids_BL.clamp_max(self.first_id - 1))
        learned_BLD = functional.embedding((ids_BL - self.first_id).clamp_min(0), self.rows()).to(vocabulary_BLD)
        return torch.where((ids_BL >= self.first_id).unsqueeze(-1), learned_BLD, vocabulary_BLD)


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the words in a caption, a group each: in any case, as CLIP reads, never inside other words."""
    return re.compile("|".join(rf"(?<!\w)({re.escape(word)})(?!\w)" for word in words), re.IGNORECASE)


class Words:
    """The learned words of one tokenizer and one embedding."""

    def __init__(self, tokenizer: Any, vectors: Mapping[str, int]) -> None:
        # Names that no caption holds: the tokenizer would find a token `rex` in `rexford` too.
        self._tokens = {w: [f"<|{number}-{i}|>" for i in range(num)] for number, (w, num) in enumerate(vectors.items())}
        self.first_id = len(tokenizer)
        tokenizer.add_tokens([token for tokens in self._tokens.values() for token in tokens])
        self._longest_first = sorted(vectors, key=len, reverse=True)
        self._pattern = word_pattern(self._longest_first)

    def spell_out(self, caption: str) -> str:
        """Put a token for each of its vectors in the place of each word."""
        return self._pattern.sub(self._tokens_of, caption)

    def _tokens_of(self, found: re.Match[str]) -> str:
        assert found.lastindex is not None, "every word is a group of the pattern"
        return f" {' '.join(self._tokens[self._longest_first[found.lastindex - 1]])} "

    def split(self, rows_VD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the rows (V, D) by word."""
        sizes = [len(tokens) for tokens in self._tokens.values()]
        return dict(zip(self._tokens, torch.split(rows_VD, sizes), strict=True))
