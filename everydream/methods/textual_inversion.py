"""Textual inversion: new words for a frozen model (Gal et al. 2022, arXiv 2208.01618).

A model with two text encoders learns each word in both; its files hold both, by ComfyUI's names.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from everydream.errors import ConfigError, FormatError
from everydream.formats.embeddings import (
    read_embedding,
    read_for_several,
    write_for_diffusers,
    write_for_several,
    write_for_webui,
)
from everydream.formats.files import StateDict
from everydream.formats.provenance import About
from everydream.methods.method import MethodSettings, ParameterGroup, freeze, group_of
from everydream.methods.settings import WordSettings, file_name_of
from everydream.models.common.words import word_pattern
from everydream.models.family import Family

_WRITERS = {"safetensors": (".safetensors", write_for_diffusers), "pt": (".pt", write_for_webui)}
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What files for models with two text encoders call the vectors of each."""


class TextualInversion:
    """`method: textual_inversion`."""

    def __init__(self, settings: MethodSettings) -> None:
        self._settings = settings.textual_inversion

    def attach(self, family: Family, seed: int, captions: Sequence[str]) -> list[ParameterGroup]:
        """Add the words; their vectors alone train. See `Method.attach`."""
        freeze(family)
        require_words(family)
        _require_sensible(family, self._settings.words, captions)
        for part in family.word_parts:
            vectors = {word.token: _first_vectors(family, part, word) for word in self._settings.words}
            family.learn_words(vectors, self._settings.limit_norm, part)
        return [group_of(family, part, self._settings.lr) for part in family.word_parts]

    def exported(self, family: Family) -> StateDict:
        """Return the vectors (V, D) by text part and word."""
        return {f"{part}.{word}": t for part in family.word_parts for word, t in family.learned_words(part).items()}

    def export(
        self, family: Family, stem: Path, format_name: str, dtype: torch.dtype, about: About | None = None
    ) -> list[Path]:
        """Write a file for each word, since that is what other tools load; of several, each ends in its word."""
        ending, write = _WRITERS[format_name]
        words = {part: family.learned_words(part) for part in family.word_parts}
        first, *others = words.values()
        paths = []
        for word, vectors_VD in first.items():
            name = stem.name if len(first) == 1 else f"{stem.name}-{file_name_of(word)}"
            path = stem.with_name(name + ending)
            if others:
                path = stem.with_name(name + ".safetensors")
                vectors = {KEYS[p]: learned[word].to(dtype).cpu() for p, learned in words.items()}
                write_for_several(path, word, vectors, about)
            else:
                write(path, word, vectors_VD.to(dtype).cpu(), about)
            paths.append(path)
        return paths


def require_words(family: Family) -> None:
    """Raise ConfigError for a family with a text encoder that cannot learn words."""
    if family.word_parts != family.text_parts:
        raise ConfigError(
            f"method: textual_inversion cannot teach words to this {family.name} model: of its text encoders only "
            f"{', '.join(family.word_parts)} would know them. Use method: lora."
        )


def learn_files(family: Family, paths: Sequence[Path]) -> None:
    """Add the words of embedding files, all at once. Raises FormatError for files that do not fit the model."""
    require_words(family)
    words: dict[str, dict[str, torch.Tensor]] = {part: {} for part in family.word_parts}
    known = words[family.word_parts[0]]
    for path in paths:
        for word, rows in _rows_by_part(family, path).items():
            if twin := next((other for other in known if other.casefold() == word.casefold()), None):
                raise ConfigError(f"{path}: {word!r} is there already as {twin!r}. Give one of the two.")
            for part, rows_VD in rows.items():
                _require_width(family, part, path, word, rows_VD)
                words[part][word] = rows_VD
    for part, vectors in words.items():
        family.learn_words(vectors, part=part)


def _rows_by_part(family: Family, path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return {word: {text part: rows (V, D)}} of a file."""
    if len(family.word_parts) == 1:
        return {word: {family.word_parts[0]: rows_VD} for word, rows_VD in read_embedding(path).items()}
    word, by_key = read_for_several(path)
    if lacking := [KEYS[part] for part in family.word_parts if KEYS[part] not in by_key]:
        raise FormatError(f"{path} holds no {lacking[0]}, which a word for this {family.name} model needs.")
    return {word: {part: by_key[KEYS[part]] for part in family.word_parts}}


def _require_width(family: Family, part: str, path: Path, word: str, rows_VD: torch.Tensor) -> None:
    width = family.word_vectors("a", part).shape[-1]
    if rows_VD.shape[-1] != width:
        raise FormatError(
            f"{path}: {word!r} has vectors of {rows_VD.shape[-1]} numbers, and the words of this {family.name} "
            f"model have {width}. It was learned on another kind of model (768: SD 1.x, 1024: SD 2.x)."
        )


def _first_vectors(family: Family, part: str, word: WordSettings) -> torch.Tensor:
    """Return the rows (V, D) that a word starts from: those of `init`, spread over its vectors."""
    rows_ID = family.word_vectors(word.init, part)
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
