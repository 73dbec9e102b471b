"""Textual inversion: new words for a frozen model (Gal et al. 2022, arXiv 2208.01618)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from everydream.errors import ConfigError
from everydream.formats.embeddings import write_for_diffusers, write_for_webui
from everydream.formats.files import StateDict
from everydream.methods.method import MethodSettings, ParameterGroup, freeze, group_of
from everydream.methods.settings import WordSettings, file_name_of
from everydream.models.common.words import word_pattern
from everydream.models.family import Family

_WRITERS = {"safetensors": (".safetensors", write_for_diffusers), "pt": (".pt", write_for_webui)}


class TextualInversion:
    """`method: textual_inversion`."""

    def __init__(self, settings: MethodSettings) -> None:
        self._settings = settings.textual_inversion

    def attach(self, family: Family, seed: int, captions: Sequence[str]) -> list[ParameterGroup]:
        """Add the words; their vectors alone train. See `Method.attach`."""
        freeze(family)
        _require_sensible(family, self._settings.words, captions)
        vectors = {word.token: _first_vectors(family, word) for word in self._settings.words}
        family.learn_words(vectors, self._settings.limit_norm)
        return [group_of(family, family.text_parts[0], self._settings.lr)]

    def exported(self, family: Family) -> StateDict:
        """Return {word: vectors (V, D)}."""
        return family.learned_words()

    def export(self, family: Family, stem: Path, format_name: str, dtype: torch.dtype) -> list[Path]:
        """Write a file for each word, since that is what other tools load; of several, each ends in its word."""
        ending, write = _WRITERS[format_name]
        words = family.learned_words()
        paths = []
        for word, vectors_VD in words.items():
            name = stem.name if len(words) == 1 else f"{stem.name}-{file_name_of(word)}"
            paths.append(stem.with_name(name + ending))
            write(paths[-1], word, vectors_VD.to(dtype).cpu())
        return paths


def _first_vectors(family: Family, word: WordSettings) -> torch.Tensor:
    """Return the rows (V, D) that a word starts from: those of `init`, spread over its vectors."""
    rows_ID = family.word_vectors(word.init)
    return rows_ID[[i * len(rows_ID) // word.vectors for i in range(word.vectors)]]


def _require_sensible(family: Family, words: Sequence[WordSettings], captions: Sequence[str]) -> None:
    """Raise ConfigError for words that the model has already, or that no caption uses."""
    problems = []
    for i, word in enumerate(words):
        key = f"textual_inversion.words.{i}.token"
        if len(family.word_vectors(word.token)) == 1:
            problems.append(
                f"{key}: {word.token!r} is in the model's vocabulary already, and what it means there would be in the "
                f"way. Take one that is not, e.g. <{file_name_of(word.token)}>."
            )
    if problems := [*problems, *unused_words(words, captions)]:
        raise ConfigError("\n".join(problems))


def unused_words(words: Sequence[WordSettings], captions: Sequence[str]) -> list[str]:
    """Return a line for each word that no caption holds."""
    shown = f"; the first caption is {captions[0]!r}" if captions else ""
    patterns = [word_pattern([word.token]) for word in words]
    return [
        f"textual_inversion.words.{i}.token: none of the {len(captions)} captions holds {word.token!r}, so it would "
        f"learn nothing{shown}. Write it into them, or give the source a label such as 'a photo of {word.token}'."
        for i, (word, pattern) in enumerate(zip(words, patterns, strict=True))
        if not any(map(pattern.search, captions))
    ]
