"""A T5 text encoder with its tokenizer, as SD3 and Flux use it: every token of a caption, padded to one length."""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import T5TokenizerFast

from everydream.devices import sent

Files = dict[str, bytes]
_ENDINGS = (".json", ".txt", ".model")


def folder_files(folder: Path) -> Files:
    """Return the files of a tokenizer folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in _ENDINGS}


def as_text(files: Files) -> dict[str, str]:
    """Return the files as plain data, for `last.ckpt`."""
    return {name: b64encode(content).decode() for name, content in files.items()}


def from_text(files: dict[str, str]) -> Files:
    """Return the files that `as_text` gave. Raises ValueError for a name that leads elsewhere."""
    if odd := [name for name in files if Path(name).name != name or not name.endswith(_ENDINGS)]:
        raise ValueError(f"{odd[0]!r} is not the name of a tokenizer file")
    return {name: b64decode(content) for name, content in files.items()}


def write_files(folder: Path, files: Files) -> None:
    """Write the files into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


class T5:
    """A T5 encoder."""

    has_words = False

    def __init__(self, encoder: Any, files: Files, length: int) -> None:
        self.encoder, self.files, self.length = encoder, files, length
        with TemporaryDirectory() as temporary:
            write_files(Path(temporary) / "tokenizer", files)
            self.tokenizer: Any = T5TokenizerFast.from_pretrained(Path(temporary) / "tokenizer", local_files_only=True)
        self._call: nn.Module = encoder

    def layers(self) -> Sequence[nn.Module]:
        """Return the layers, first to last."""
        return list(self.encoder.encoder.block)

    def final_norm(self) -> nn.Module:
        """Return the norm behind the last layer."""
        norm: nn.Module = self.encoder.encoder.final_layer_norm
        return norm

    def unused(self) -> Sequence[nn.Module]:
        """Return nothing: every layer reaches the output."""
        return ()

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls through `wrapper(network)` if the network trains."""
        if any(p.requires_grad for p in self.encoder.parameters()):
            self._call = wrapper(self.encoder)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass if the network trains."""
        if any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.gradient_checkpointing_enable({"use_reentrant": False})

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """Return tokens (B, L, D); padding is attended to, as the reference library does."""
        ids_BL = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        encoder = self._call if torch.is_grad_enabled() else self.encoder
        tokens_BLD: torch.Tensor = encoder(sent(ids_BL, next(self.encoder.parameters()).device))[0]
        return tokens_BLD
