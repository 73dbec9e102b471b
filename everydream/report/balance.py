"""How often each subject is drawn, and which repeats would draw them alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.data.settings import SourceSettings
from everydream.types import Index

UNEVEN = 1.5
"""From this ratio on between the most and the least drawn subject, repeats are suggested."""


def subjects(
    index: Index, sources: Sequence[SourceSettings], counts_N: NDArray[np.int64], skip_N: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return the subjects: sources to train, or their first folders where they have several; images and draws."""
    found = []
    for number, source in enumerate(sources):
        if source.role != "training":
            continue
        folders: dict[str, list[int]] = {}
        for record in np.flatnonzero((index.source_N == number) & ~skip_N).tolist():
            head, slash, _ = index.paths[record].partition("/")
            folders.setdefault(head if slash else "", []).append(record)
        parts = folders if len(folders) > 1 else {"": [record for rows in folders.values() for record in rows]}
        for folder, records in sorted(parts.items()):
            fact = {"source": index.names[number], "folder": folder, "images": len(records),
                    "draws": int(counts_N[records].sum())}  # fmt: skip
            fact["by_folder"] = len(parts) > 1
            found.append(fact)
    return found


def suggested(facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to subjects that are drawn unevenly `multiply`: by how much to multiply their repeats.

    All come to the draws of the middle one, so an epoch stays about as long as it is.
    """
    drawn = sorted(fact["draws"] for fact in facts if fact["draws"])
    if len(drawn) < 2 or drawn[-1] < UNEVEN * drawn[0]:
        return [dict(fact) for fact in facts]
    middle = drawn[len(drawn) // 2]
    return [fact | ({"multiply": _rounded(middle / fact["draws"])} if fact["draws"] else {}) for fact in facts]


def _rounded(factor: float) -> float:
    return float(f"{factor:.2g}")
