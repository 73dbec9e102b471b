"""Hashes of files, as other tools know models by them."""

import hashlib
import json
from pathlib import Path

from everydream.formats.files import is_safetensors

_PORTION, _SAMPLE = 1 << 20, 1 << 16
WEIGHTS = (".safetensors", ".bin", ".ckpt")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    return _sha256(path, 0)


def auto_v1(path: Path) -> str:
    """Return AUTOMATIC1111's first model hash: 8 characters over 64 kB that lie 1 MB behind the file's beginning.

    It stands in the parameters of pictures of 2022, and takes no time; different models may share one.
    """
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def auto_v3(path: Path) -> str | None:
    """Return the SHA-256 of a .safetensors file behind its header, None for other files.

    kohya calls it sshs_model_hash and AUTOMATIC1111 shows its first 12 characters for adapters (AutoV3 on Civitai):
    it stays when the metadata changes.
    """
    if not is_safetensors(path):
        return None
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return _sha256(path, 8 + header)


def weights_sha256(folder: Path) -> str:
    """Return one hash of all weight files below a folder: over their names and hashes, in the order of the names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS and path.is_file())
    listed = [[path.relative_to(folder).as_posix(), sha256_of(path)] for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _sha256(path: Path, start: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while portion := file.read(_PORTION):
            found.update(portion)
    return found.hexdigest()


def sampled_sha256(path: Path) -> str:
    """Return a hash that tells weights apart without reading them whole: over sizes and three portions of each file.

    Training moves every tensor a little, so two checkpoints of a run differ in it; it is no proof that files are equal.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in WEIGHTS and p.is_file())
    found = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        found.update(f"{'' if file == path else file.relative_to(path).as_posix()} {size} ".encode())
        with file.open("rb") as opened:
            for start in (0, size // 2, max(size - _SAMPLE, 0)):
                opened.seek(start)
                found.update(opened.read(_SAMPLE))
    return found.hexdigest()[:16]
