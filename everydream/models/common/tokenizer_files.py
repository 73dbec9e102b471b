"""CLIP's tokenizer files: packaged ones for single-file models, the folder's own where it has some.

The byte-pair vocabulary is OpenAI's, MIT-licensed (see tokenizer/NOTICE). Kept as bytes, so that
`last.ckpt` can carry a vocabulary that differs from the packaged one.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PACKAGED = Path(__file__).parent / "tokenizer"
NAMES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
Files = dict[str, bytes]


def packaged_files(pad_token: str) -> Files:
    """Return the packaged files with this padding token: <|endoftext|> for SD1, ! for SD2."""
    files = {name: (PACKAGED / name).read_bytes() for name in NAMES}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads(files[name])
        content["pad_token"] = pad_token
        files[name] = _dump(content)
    return files


def folder_files(folder: Path) -> Files:
    """Return a tokenizer folder's files, with vocab.json and merges.txt made from tokenizer.json where they lack.

    transformers 5 writes tokenizer.json only, which older tools cannot read.
    """
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".json", ".txt")}
    if "tokenizer.json" in files and not {"vocab.json", "merges.txt"} <= files.keys():
        files["vocab.json"], files["merges.txt"] = _vocabulary_and_merges(files["tokenizer.json"])
    return files


@lru_cache(maxsize=4)  # models with several encoders have the same vocabulary in each, at half a second
def _vocabulary_and_merges(whole: bytes) -> tuple[bytes, bytes]:
    model = _parsed(whole)["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return _dump(model["vocab"]), ("#version: 0.2\n" + "\n".join(merges) + "\n").encode()


@lru_cache(maxsize=16)
def _parsed(content: bytes) -> Any:
    return json.loads(content)


def packaged_if_same(files: Files, pad_token: str) -> Files:
    """Return the packaged files if these say the same, so that checkpoints need not carry a megabyte of them.

    The same vocabulary has been saved with other white space, escapes and side files over the years.
    """
    packaged = packaged_files(pad_token)
    usual = files.keys() >= {"vocab.json", "merges.txt"} and not _added_tokens(files)
    return packaged if usual and _essence(files) == _essence(packaged) else files


def _added_tokens(files: Files) -> set[str]:
    """Return the tokens that were added to CLIP's own, in whichever of three places they were noted."""
    config, whole = (_parsed(files.get(name, b"{}")) for name in ("tokenizer_config.json", "tokenizer.json"))
    noted = [*config.get("added_tokens_decoder", {}).values(), *whole.get("added_tokens", [])]
    added = {token["content"] for token in noted} | set(json.loads(files.get("added_tokens.json", b"{}")))
    return added - {"<|startoftext|>", "<|endoftext|>", "!"}


def _essence(files: Files) -> tuple[Any, list[str], Any]:
    """Return (vocabulary, merges, padding token) of tokenizer files."""
    merges = [line.rstrip() for line in files["merges.txt"].decode().splitlines() if not line.startswith("#version")]
    special: dict[str, Any] = json.loads(files.get("tokenizer_config.json", b"{}"))
    special |= json.loads(files.get("special_tokens_map.json", b"{}"))
    pad = special.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return _parsed(files["vocab.json"]), [line for line in merges if line], pad


def token_counter() -> Callable[[str], int]:
    """Return a function that counts a caption's tokens, begin and end included, with the packaged vocabulary.

    Every Stable Diffusion uses this vocabulary, so captions can be measured without a model.
    """
    from transformers import CLIPTokenizer  # noqa: PLC0415  (seconds to import)

    tokenizer = CLIPTokenizer.from_pretrained(PACKAGED, local_files_only=True)
    return lambda caption: len(tokenizer(caption, truncation=False, verbose=False).input_ids)


def load_tokenizer(files: Files) -> Any:
    """Return the transformers tokenizer that these files describe."""
    from transformers import CLIPTokenizer  # noqa: PLC0415  (seconds to import)

    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tokenizer"
        write_files(folder, files)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def write_files(folder: Path, files: Files) -> None:
    """Write the files into a new folder. Raises ValueError for a name that leads elsewhere: they come from models."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        if not re.fullmatch(r"[^/\\:]+\.(json|txt)", name):
            raise ValueError(f"{name!r} is not the name of a tokenizer file")
        (folder / name).write_bytes(content)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
