"""The only source of randomness: every random choice is a pure function of named parts.

    derive(run_seed, "noise", epoch, record_key, nth) -> 64-bit integer -> a generator of its own

Nothing here has state, so there is no RNG state to save, data order does not depend on workers or
processes, and a resumed run draws what the uninterrupted run would have drawn.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, *keys: int | str) -> int:
    """Return an integer in [0, 2**63) that depends on every part and on their order.

    Parts are length-prefixed before hashing, so ("ab", "c") and ("a", "bc") differ, and typed, so
    1 and "1" differ. BLAKE2b, not `hash()`: the value must be the same in every process.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, purpose, *keys):
        text = f"{type(part).__name__}:{part}".encode("utf-8", "surrogateescape")
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def numpy_generator(seed: int) -> np.random.Generator:
    """Return a counter-based generator; Philox gives the same stream on every platform."""
    return np.random.Generator(np.random.Philox(seed))


def torch_generator(seed: int) -> torch.Generator:
    """Return a CPU generator. Noise is drawn on the CPU so that it does not depend on the device."""
    generator = torch.Generator("cpu")
    generator.manual_seed(seed)
    return generator
