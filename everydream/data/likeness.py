"""Which images show the same picture.

    perceptual hash (64 bits) -> candidates -> edges of a coarse and of a small colour picture -> confirmed

A hash alone takes drawings on flat backgrounds for one another and misses the frames of one film shot. So candidates
are taken from far (Hamming distance) and confirmed by the cosine between the differences of neighbouring pixels of
their small pictures (`edges`), which do not change with brightness. Measured on 144 photos: encoded anew or halved, all
are found; 30 % brighter or darker, 92 % and more; 3 % cropped from each side, 92 %; 5 %, 55 %; in grey, 97 %; of the
10,296 pairs of unlike photos none.

Each image of a cluster is like its first one: likeness is not handed on from image to image, or a film would be one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from everydream.data.looking import SIDE, Look
from everydream.data.looks import Looks
from everydream.types import Index

Kind = Literal["same", "near", "alike", "mirrored"]
"""Equal bytes; encoded, scaled or lit otherwise; slightly cropped, or frames of one scene; mirror images."""

_FAR_BITS, _NEAR_BITS = 22, 12
_NEAR, _ALIKE = 0.85, 0.45
_NEAR_ON_FLAT = 0.975
"""On flat backgrounds only what lies at the same place in the same colours: else two drawings would be one."""
_SAME_COLOUR_LEVELS = 12
_COARSE_SIDE = 12
_COARSE = 0.25
_FLAT_SHARE, _FLAT_LEVELS = 0.9, 16
_FAINT_LEVELS = 2.0
"""Differences of neighbouring pixels below this, in 0 .. 255, say nothing about a picture."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cluster:
    """Images that show the same picture, each like the first."""

    kind: Kind
    """The loosest of its likenesses."""
    members: list[int]
    """Two or more places in what was compared, sorted."""


def twins(
    index: Index, records: Sequence[int] | NDArray[np.int64], progress: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """Return the groups of two or more of these records that show the same picture, each record in one at most.

    Equal files; the same picture encoded, scaled or lit otherwise; slightly cropped; frames of one scene. Mirror images
    are no twins (`clusters` reports them as a kind of their own), nor is an image that cannot be decoded. What is seen
    of the files is kept in the user's cache (`data.looks`); `progress` is called with (done, total) while looking.
    """
    numbers = [int(record) for record in records]
    with Looks() as looks:
        seen = looks.see([index.file(number) for number in numbers], progress=progress)
        of = [b"" if look is None else look.digest + look.small for look in seen]
        found: list[list[int]] = looks.remembered("links 1", of, lambda: links(seen))
    # Through others too: where a is like b and b like c, none of the three may be on another side than the others.
    return [sorted(numbers[member] for member in group) for group in components(len(numbers), found) if len(group) > 1]


def components(num: int, linked: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the sets of 0 .. num - 1 that are linked, directly or through others; those without links alone."""
    from scipy.sparse import coo_array  # noqa: PLC0415 - half a second to import
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    pairs = np.array([(unit[0], other) for unit in linked for other in unit[1:]], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), np.bool_), pairs.T), shape=(num, num))
    _, label_N = connected_components(graph, directed=False)
    order = np.argsort(label_N, kind="stable")
    ends = np.flatnonzero(np.diff(label_N[order])) + 1
    yield from (part.tolist() for part in np.split(order, ends))


def known_clusters(looks: Looks, seen: Sequence[Look | None]) -> list[Cluster]:
    """Return `clusters` of what was seen, from the cache where they were found before."""
    of = [b"" if look is None else look.digest + look.small for look in seen]
    rows: list[Any] = looks.remembered("clusters 1", of, lambda: [[each.kind, each.members] for each in clusters(seen)])
    return [Cluster(kind, members) for kind, members in rows]


def clusters(looks: Sequence[Look | None]) -> list[Cluster]:
    """Return the clusters among what was seen of images; memory grows with their number, not with its square.

    An image is in one cluster of twins at most, and in one of mirror images besides.
    """
    order = _one_of_each_content(looks)
    same = {places[0]: places for places in order.values()}
    firsts = sorted(same)
    if not firsts:
        return []
    pictures = _Pictures([look for look in (looks[place] for place in firsts) if look is not None])
    found, taken = [], np.zeros(len(firsts), np.bool_)
    mirrors = []
    for nth, place in enumerate(firsts):
        if not taken[nth]:
            like, loosest = pictures.like(nth, taken)
            taken[[nth, *like]] = True
            members = sorted(member for other in (nth, *like) for member in same[firsts[other]])
            if len(members) > 1:
                found.append(Cluster(loosest, members))
        mirrors += [Cluster("mirrored", sorted([place, firsts[other]])) for other in pictures.mirrored(nth)]
    return found + _apart(mirrors)


def links(looks: Sequence[Look | None]) -> list[list[int]]:
    """Return for each picture its places and those of the later pictures that are its twins, where there are some."""
    order = _one_of_each_content(looks)
    firsts = [places[0] for places in order.values()]
    if not firsts:
        return []
    pictures = _Pictures([look for look in (looks[place] for place in firsts) if look is not None])
    same, none = list(order.values()), np.zeros(len(firsts), np.bool_)
    found = [[*same[nth], *(firsts[other] for other in pictures.like(nth, none)[0])] for nth in range(len(firsts))]
    return [group for group in found if len(group) > 1]


def _one_of_each_content(looks: Sequence[Look | None]) -> dict[bytes, list[int]]:
    by_digest: dict[bytes, list[int]] = {}
    for place, look in enumerate(looks):
        if look is not None:
            by_digest.setdefault(look.digest, []).append(place)
    return by_digest


def _apart(found: Sequence[Cluster]) -> list[Cluster]:
    """Return the pairs that come first, each image in one of them."""
    used: set[int] = set()
    kept = []
    for cluster in found:
        if used.isdisjoint(cluster.members):
            used |= set(cluster.members)
            kept.append(cluster)
    return kept


class _Pictures:
    """The looks as arrays, and what of them is like one of them."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.hash_N = np.array([look.hash for look in looks], np.uint64)
        self.mirrored_N = np.array([look.mirrored for look in looks], np.uint64)
        content = np.frombuffer(b"".join(look.small for look in looks), np.uint8)
        self.small_NHWC = content.reshape(len(looks), SIDE, SIDE, 3)
        self.flat_N = _on_flat_background(self.small_NHWC)
        self.mean_NC = self.small_NHWC.mean((1, 2), np.float32)
        self.coarse_ND = np.concatenate([_coarse(part) for part in _parts(self.small_NHWC)])

    def like(self, nth: int, taken: NDArray[np.bool_]) -> tuple[list[int], Kind]:
        """Return which later pictures, not taken yet, show what the nth shows, and the loosest likeness among them."""
        bits_M = np.bitwise_count(self.hash_N[nth + 1 :] ^ self.hash_N[nth])
        others = nth + 1 + np.flatnonzero((bits_M <= _FAR_BITS) & ~taken[nth + 1 :])
        others = others[self.coarse_ND[others] @ self.coarse_ND[nth] >= _COARSE]
        if not len(others):
            return [], "same"
        cosine_M = edges(self.small_NHWC[others]) @ edges(self.small_NHWC[nth : nth + 1])[0]
        like_M = (cosine_M >= np.where(self._flat(nth, others), _NEAR_ON_FLAT, _ALIKE)) & self._lit_alike(nth, others)
        alike = bool((cosine_M[like_M] < _NEAR).any())
        return others[like_M].tolist(), "alike" if alike else "near" if like_M.any() else "same"

    def mirrored(self, nth: int) -> list[int]:
        """Return which later pictures show the mirror image of the nth, and not the nth itself."""
        bits_M = np.bitwise_count(self.hash_N[nth + 1 :] ^ self.mirrored_N[nth])
        others = nth + 1 + np.flatnonzero(bits_M <= _NEAR_BITS)
        if not len(others):
            return []
        edges_MD, own = edges(self.small_NHWC[others]), self.small_NHWC[nth : nth + 1]
        turned_M, straight_M = edges_MD @ edges(own[:, :, ::-1])[0], edges_MD @ edges(own)[0]
        least_M = np.where(self._flat(nth, others), _NEAR_ON_FLAT, _NEAR)
        # What is symmetric is its own mirror image, which tells nobody anything.
        mirrored_M = (turned_M >= least_M) & (straight_M < _ALIKE) & self._lit_alike(nth, others)
        found: list[int] = others[mirrored_M].tolist()
        return found

    def _flat(self, nth: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self.flat_N[others] | self.flat_N[nth])

    def _lit_alike(self, nth: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which have colours like the nth; of photos any, for they may be lit otherwise."""
        off_M = np.abs(self.mean_NC[others] - self.mean_NC[nth]).max(1)
        return np.asarray(~self._flat(nth, others) | (off_M <= _SAME_COLOUR_LEVELS))


def edges(pictures_NHWC: NDArray[np.uint8]) -> Floats:
    """Return the differences of neighbouring pixels of each picture as vectors of length 1, or 0 where all is flat."""
    values = pictures_NHWC.astype(np.float32)
    corner = values[:, :-1, :-1]
    parts = [values[:, 1:, :-1] - corner, values[:, :-1, 1:] - corner]
    vectors_ND = np.concatenate([part.reshape(len(values), -1) for part in parts], axis=1)
    length_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    faint = _FAINT_LEVELS * np.sqrt(vectors_ND.shape[1])
    return np.where(length_N < faint, 0, vectors_ND / np.maximum(length_N, 1e-6)).astype(np.float32)


def _coarse(small_NHWC: NDArray[np.uint8]) -> Floats:
    block = SIDE // _COARSE_SIDE
    shape = (len(small_NHWC), _COARSE_SIDE, block, _COARSE_SIDE, block, 3)
    return edges(small_NHWC.reshape(shape).mean((2, 4, 5), np.float32)[..., None].astype(np.uint8))


def _parts(small_NHWC: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    yield from (small_NHWC[start : start + 1024] for start in range(0, len(small_NHWC), 1024))


def _on_flat_background(small_NHWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell of which pictures nearly all of the border has one colour."""
    border_NPC = border_of(small_NHWC).astype(np.int16)
    off_NP = np.abs(border_NPC - np.median(border_NPC, axis=1, keepdims=True)).max(2)
    return np.asarray((off_NP < _FLAT_LEVELS).mean(1) >= _FLAT_SHARE)


def border_of(small_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the outermost pixels of small pictures, as N x pixels x RGB."""
    rows = [small_NHWC[:, 0], small_NHWC[:, -1], small_NHWC[:, 1:-1, 0], small_NHWC[:, 1:-1, -1]]
    return np.concatenate(rows, axis=1)
