"""The running loss of every image, corrected for its noise levels, and what it says of each.

How large a loss is depends on how noisy the image was made, far more than on the image. So losses are judged by
their distance, in logarithms, from what images of that noise level usually have: a mean over the run by band of noise
level, interpolated in between. An image that keeps above is one whose caption or pixels do not fit the others
(mislabelled, corrupt, or the only one of its kind); one that has fallen further than the others is being memorised.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BANDS = 12
_BAND_MEMORY = 400
"""Losses over which a band's mean is taken; older ones fade, for a model that learns lowers them all."""
_BAND_START = 5
"""Losses of a band that make what it had at the start."""
_VISITS = 10
"""Visits over which an image's recent mean is taken; older ones fade."""
_FIRST = 3
"""Visits that make an image's first mean."""
_DOUBT = 3.0
"""Visits' worth of doubt: a mean of n visits counts n / (n + 3), so that no image leads by one lucky draw."""
_FEW = 8
"""Images of a source from which on its own median is the measure."""
_LEAST = 1e-12


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one image."""

    key: str
    visits: int
    excess: float
    """How much its loss exceeds the others' at the same noise: 0.25 is a quarter more; shrunk where visits are few."""
    fallen: float
    """How much further it fell since its first visits than the others' did: 0.25 is a quarter less left."""


@dataclass
class Ledger:
    """Every image's running loss. All processes keep the same one, for all losses are gathered."""

    keys: Sequence[str]
    """Of the index, record by record."""
    sources: NDArray[np.int16]
    """Which source each image is of."""
    visits_N: NDArray[np.int64] = field(init=False)
    judged_N: NDArray[np.int64] = field(init=False)
    """Visits for which it was known what is usual: all but the run's first steps."""
    mean_N: Floats = field(init=False)
    """Mean distance from what is usual."""
    recent_N: Floats = field(init=False)
    """The same over the last visits."""
    first_N: Floats = field(init=False)
    """The same over the first visits."""
    usual: Floats = field(init=False)
    """(2, bands): mean log loss by noise level, and over how many losses."""
    start: Floats = field(init=False)
    """The same over the first losses only."""

    def __post_init__(self) -> None:
        num = len(self.keys)
        self.visits_N, self.judged_N = np.zeros(num, np.int64), np.zeros(num, np.int64)
        self.mean_N, self.recent_N, self.first_N = np.zeros(num), np.zeros(num), np.zeros(num)
        self.usual, self.start = np.zeros((2, _BANDS)), np.zeros((2, _BANDS))
        self._seen: Counter[int] = Counter()

    def add(self, records: Sequence[int], levels: Sequence[float], losses: Sequence[float]) -> float | None:
        """Take in a step's losses, each with its record and its noise level, 0 (clean) .. 1 (noise).

        Return the mean distance from what losses at these levels were at the start; None where that is not known yet.
        """
        since_start = []
        for row, level, loss in zip(records, levels, losses, strict=True):
            value = float(np.log(max(loss, _LEAST)))
            self.visits_N[row] += 1
            self._seen[int(self.sources[row])] += 1
            if (before := _interpolated(self.start, level, _BAND_START)) is not None:
                since_start.append(value - before)
            if (usual := _interpolated(self.usual, level, _BAND_START)) is not None:
                self._judge(row, value - usual)
            band = min(int(level * _BANDS), _BANDS - 1)
            _take(self.usual, band, value, _BAND_MEMORY)
            if self.start[1, band] < _BAND_START:
                _take(self.start, band, value, _BAND_START)
        return float(np.mean(since_start)) if since_start else None

    def _judge(self, row: int, distance: float) -> None:
        self.judged_N[row] += 1
        nth = int(self.judged_N[row])
        self.mean_N[row] += (distance - self.mean_N[row]) / nth
        self.recent_N[row] += (distance - self.recent_N[row]) / min(nth, _VISITS)
        if nth <= _FIRST:
            self.first_N[row] = self.recent_N[row]

    def seen(self, names: Sequence[str]) -> dict[str, int]:
        """Return how many images of each source have been trained on so far, visit by visit."""
        return {name: self._seen[source] for source, name in enumerate(names)}

    def standing_out(self, most: int) -> tuple[list[Entry], list[Entry]]:
        """Return, of the images that could be judged, those of the largest excess and those that fell the furthest."""
        rows = np.flatnonzero(self.judged_N)
        if not len(rows):
            return [], []
        trust = self.judged_N[rows] / (self.judged_N[rows] + _DOUBT)
        mean, fallen = self.mean_N[rows], self.first_N[rows] - self.recent_N[rows]
        excess, fallen = (self._beside_others(rows, values) * trust for values in (mean, fallen))
        by_excess = np.argsort(-excess, kind="stable")
        by_fall = by_excess[np.argsort(-fallen[by_excess], kind="stable")]
        high, far = (
            [
                Entry(
                    key=self.keys[rows[i]],
                    visits=int(self.visits_N[rows[i]]),
                    excess=float(np.expm1(excess[i])),
                    fallen=float(-np.expm1(-fallen[i])),
                )
                for i in order[:most]
            ]
            for order in (by_excess, by_fall)
        )
        return high, far

    def _beside_others(self, rows: NDArray[np.int64], values: Floats) -> Floats:
        """Return values less the median of their source.

        What is usual lags behind a loss that falls, and a new subject's is above what the model knew: for all images
        of the source alike. Of a source of few images the median of all is the measure.
        """
        beside = values - np.median(values)
        for source in np.unique(self.sources[rows]):
            mine = self.sources[rows] == source
            if mine.sum() >= _FEW:
                beside[mine] = values[mine] - np.median(values[mine])
        return beside

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a resume needs, in the order of the keys."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in _COLUMNS + _TABLES}

    def load_state_dict(self, saved: dict[str, Any], keys: Sequence[str]) -> None:
        """Take up what was saved for images of these keys; those that are new start anew."""
        for name in _TABLES:
            setattr(self, name, saved[name].numpy().copy())
        # Behind the images that were trained on then, the keys go on with those that were only measured.
        trained = keys[: len(saved["visits_N"])]
        if self.keys == trained:
            rows = old = np.arange(len(trained))
        else:
            row_of = {key: row for row, key in enumerate(self.keys)}
            pairs = [(row_of[key], old) for old, key in enumerate(trained) if key in row_of]
            rows, old = np.array(pairs, np.int64).reshape(-1, 2).T
        for name in _COLUMNS:
            getattr(self, name)[rows] = saved[name].numpy()[old]
        self._seen = Counter(dict(enumerate(np.bincount(self.sources, self.visits_N).astype(int).tolist())))


_COLUMNS, _TABLES = ("visits_N", "judged_N", "mean_N", "recent_N", "first_N"), ("usual", "start")


def _take(table: Floats, band: int, value: float, memory: int) -> None:
    """Move a band's mean towards a value: a plain mean at first, one that forgets later."""
    table[1, band] += 1
    table[0, band] += (value - table[0, band]) / min(table[1, band], memory)


def _interpolated(table: Floats, level: float, least: int) -> float | None:
    """Return the mean at a level, between the middles of its two nearest bands; None where they know too little."""
    place = min(max(level * _BANDS - 0.5, 0.0), _BANDS - 1.0)
    low = min(int(place), _BANDS - 2)
    if min(table[1, low], table[1, low + 1]) < least:
        return None
    part = place - low
    return float((1 - part) * table[0, low] + part * table[0, low + 1])
