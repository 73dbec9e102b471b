"""What images were, key by key: compared, named by one hash, kept in a checkpoint, and small."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import make_index

from everydream.data.digests import Digests, differences
from everydream.data.strings import Strings
from everydream.training.state import Facts, _keys_of


def digests(**images: int) -> Digests:
    return Digests(Strings.of(images), np.array(list(images.values()), np.int64))


def test_a_fingerprint_is_of_the_images_whatever_their_order() -> None:
    images = {"b": 5, "a": -7, "ä\n": 2, "Z": 1}
    listed = json.dumps(sorted(images.items()))
    assert digests(**images).fingerprint() == hashlib.sha256(listed.encode()).hexdigest()
    assert digests(**dict(reversed(images.items()))).fingerprint() == digests(**images).fingerprint()
    assert len({digests(a=1).fingerprint(), digests(a=2).fingerprint(), digests(b=1).fingerprint()}) == 3


def test_differences_are_named_by_kind_and_not_too_many_of_each() -> None:
    before = digests(a=1, b=2, c=3)
    assert list(differences(before, digests(a=1, b=2, c=3))) == []
    assert list(differences(before, digests(c=3, a=1, b=2))) == [], "the order may change"
    assert list(differences(before, digests(a=1, c=4, d=5))) == [
        "image gone: b", "image new: d", "image or caption changed: c",
    ]  # fmt: skip
    many = list(differences(before, digests(**{f"n{n}": n for n in range(30)})))
    assert len(many) == 3 + 20 + 1 and many[-1] == "... and 10 more of these"


@pytest.mark.parametrize("old", [False, True])
def test_keys_come_back_from_a_checkpoint(old: bool) -> None:
    """Line breaks, other alphabets and lone surrogates included; of older files, which had them as JSON, too."""
    keys = Strings.of(["mine/two\nlines.png", "ß/日本.png", "mine/\udcff.png", ""])
    tensors = {
        "image_keys": torch.frombuffer(bytearray(keys.data), dtype=torch.uint8),
        "image_key_offsets": torch.from_numpy(keys.offsets),
    }
    assert _keys_of({"image_keys": json.dumps(list(keys))} if old else tensors) == keys


def test_a_million_images_are_not_a_million_objects(tmp_path: Path) -> None:
    """ED2 #109: 25 GB for 125,000 images. Here a hundred bytes each, all that a run keeps of them by name."""
    index = make_index([100_000])
    tracemalloc.start()
    try:
        facts = Facts.of({}, index)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(facts.images.keys) == 100_000 and held < 100_000 * 60
