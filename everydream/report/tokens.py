"""How long captions are to the text encoder, which ones it reads to their end, and how it reads a subject's name."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from everydream.data.settings import SourceSettings
from everydream.models.common.token_reader import TokenReader
from everydream.report.images import TOKENS_OF_A_CHUNK
from everydream.report.lint import token_problem
from everydream.report.words import recurring_words

_STEP = 5
_NAMES = 0.5
_LISTED = 12


def lengths(num_tokens: Sequence[int], chunks: int) -> dict[str, Any]:
    """Return how many captions have how many tokens, begin and end included; bars are five tokens wide."""
    most = TOKENS_OF_A_CHUNK * chunks + 2
    counts_N = np.asarray(num_tokens, np.int64)
    bars = np.bincount(counts_N // _STEP) if len(counts_N) else np.zeros(0, np.int64)
    return {
        "most": most,
        "step": _STEP,
        "bars": [[nth * _STEP, int(count)] for nth, count in enumerate(bars)],
        "mean": round(float(counts_N.mean()), 1) if len(counts_N) else 0.0,
        "longest": int(counts_N.max(initial=0)),
        "cut": int((counts_N > most).sum()),
    }


def names_of_subjects(
    source: SourceSettings, captions: Sequence[str], reader: TokenReader, learned: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return the words that name a source's subject with the pieces that the text encoder reads.

    The source's `token` where it has one, else the words in at least half of its captions, without those of `learned`,
    which textual inversion makes tokens of their own. Only a `token` is told that it is an ordinary word: a caption's
    words may well be ordinary.
    """
    rows = []
    own = [(source.token, len(captions))] if source.token else []
    others = [row for row in recurring_words(captions, _NAMES) if row[0] not in learned]
    for word, count in own or others[:_LISTED]:
        pieces = reader.pieces(word)
        row: dict[str, Any] = {"word": word, "captions": count, "pieces": pieces}
        problem = token_problem(word, pieces, reader.rank_of) if own or len(pieces) > 1 else None
        rows.append(row | ({"problem": problem} if problem else {}))
    return rows
