"""Settings of the methods room; apart from the methods, so that reading a config imports neither peft nor a model."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from everydream.settings import Settings

Rate = Annotated[float, Field(ge=0.0)]
Positive = Annotated[int, Field(ge=1)]
Betas = Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=3)]
MethodName = Literal["full", "dreambooth", "lora", "textual_inversion", "hypernetwork"]


class PartOptimizerSettings(Settings):
    """What of the optimizer differs in one part; the optimizer itself is the same for all."""

    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """In place of optimizer.weight_decay; null: that."""
    betas: Betas | None = None
    """In place of optimizer.betas; null: these."""
    eps: Annotated[float, Field(gt=0.0)] | None = None
    """In place of optimizer.eps; null: that."""


class UNetSettings(Settings):
    """What happens to the denoiser (a UNet, or a transformer in its place), under full, dreambooth and lora."""

    train: bool = True
    """Train the denoiser."""
    lr: Rate | None = None
    """Peak learning rate; null: 1e-6 for the weights themselves (a few hundred images, batches of 6), 1e-4 for lora."""
    only: Annotated[list[str], Field(min_length=1)] | None = None
    """Train only modules under these names: `attention`, `cross_attention`, or patterns such as `up_blocks.*`."""
    epochs: Positive | None = None
    """Stop training it after this many epochs; null: never."""
    block_lr: dict[str, Rate] = {}
    """Factors on the rate by patterns of module names, e.g. {down_blocks.*: 0.5}; the first match counts."""
    optimizer: PartOptimizerSettings = PartOptimizerSettings()
    """What of the optimizer differs here."""


class TextEncoderSettings(Settings):
    """What happens to a text encoder, under full, dreambooth and lora; clip_skip and chunks count for every method."""

    train: bool = True
    """Train the text encoder along with the UNet."""
    lr: Rate | None = None
    """Peak learning rate; null: 5e-7 for the weights themselves, 5e-5 for lora. Words move faster than pictures."""
    train_last_layers: Positive | None = None
    """Train only this many of the last layers (and the final norm); null: all, with the embeddings."""
    train_embeddings: bool = True
    """Train the token and position embeddings too, where all layers train."""
    epochs: Positive | None = None
    """Stop training it after this many epochs; null: never."""
    optimizer: PartOptimizerSettings = PartOptimizerSettings()
    """What of the optimizer differs here."""
    clip_skip: Annotated[int, Field(ge=0, le=8)] = 0
    """Take the output this many layers before the family's usual one, of every encoder; use the base model's habit."""
    chunks: Annotated[int, Field(ge=1, le=8)] = 1
    """Read captions and prompts in so many portions of 75 tokens; 1 cuts them at 75. Each costs memory and time."""


class LoraSettings(Settings):
    """Low-rank adapters, for method: lora."""

    kind: Literal["lora", "loha", "lokr"] = "lora"
    """Low-rank product (LoRA; LoCon with convolutions), Hadamard product (LoHa) or Kronecker product (LoKr)."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the matrices: file size and capacity grow with it."""
    alpha: Annotated[float, Field(gt=0.0)] | None = None
    """The adapter's output is scaled by alpha / rank; null: the rank, so by 1."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the adapter's inputs (loha, lokr: of output rows) that a training step leaves out."""
    targets: Annotated[list[Literal["attention", "feed_forward", "convolution"]], Field(min_length=1)] = ["attention"]
    """Layers that get an adapter; convolution (LoCon) is of the UNet alone, with its resampling and shortcuts."""


class WordSettings(Settings):
    """One word that textual inversion learns."""

    token: Annotated[str, Field(pattern=r"^\S+$")]
    """The new word as captions and prompts write it, e.g. <rex>; none that the model knows already."""
    vectors: Annotated[int, Field(ge=1, le=64)] = 1
    """How many of a prompt's 75 tokens it takes; more hold more, and leave less room."""
    init: Annotated[str, Field(pattern=r"\S")]
    """Known words that it starts from, e.g. dog."""


class TextualInversionSettings(Settings):
    """New words for a frozen model, for method: textual_inversion."""

    words: list[WordSettings] = []
    """The words to learn, several at once if wanted."""
    lr: Rate = 5e-3
    """Peak learning rate."""
    limit_norm: bool = True
    """Keep the vectors no longer than the longest of the model's own, so that they leave other words a say."""

    @model_validator(mode="after")
    def _each_once(self) -> "TextualInversionSettings":
        # The model reads no case, and each word is exported as a file of its own.
        alike = "the model reads them alike"
        for same, what in ((str.casefold, alike), (_file_key, "their files would have one name")):
            seen: dict[str, WordSettings] = {}
            for word in self.words:
                first = seen.setdefault(same(word.token), word)
                if first is not word:
                    raise ValueError(f"words: {first.token!r} and {word.token!r} cannot both be learned; {what}")
        return self


def _file_key(token: str) -> str:
    return file_name_of(token).casefold()


class HypernetworkSettings(Settings):
    """Small networks before the keys and values of attention (AUTOMATIC1111's kind), for method: hypernetwork."""

    lr: Rate = 1e-4
    """Peak learning rate."""
    layer_structure: Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=2)] = [1, 2, 1]
    """Widths of the layers as multiples of the input's; the first and last are 1."""
    activation: str = "linear"
    """linear (none), relu, leakyrelu, elu, swish, tanh, sigmoid, or another of PyTorch by element, in small letters."""
    activate_output: bool = False
    """Activation after the last layer too."""
    layer_norm: bool = False
    """Layer norm after each layer."""
    dropout: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2)] | None = None
    """Dropout after each entry of layer_structure, of the same length; null: none."""
    init: Literal["normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"] = "normal"
    """How weights start; normal has a standard deviation of 0.01."""
    widths: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Widths of the attention inputs that get one; null: every width that the model has."""

    @model_validator(mode="after")
    def _whole(self) -> "HypernetworkSettings":
        if self.layer_structure[0] != 1 or self.layer_structure[-1] != 1:
            raise ValueError(f"layer_structure is {self.layer_structure}; it must begin and end with 1")
        if self.dropout is not None and len(self.dropout) != len(self.layer_structure):
            raise ValueError(f"dropout has {len(self.dropout)} entries, layer_structure {len(self.layer_structure)}")
        if self.dropout is not None and self.dropout[0]:
            raise ValueError(f"dropout begins with {self.dropout[0]:g}; the input is no layer, so it must be 0")
        return self


USUAL_RATES: dict[str, tuple[float, float]] = {
    "full": (1e-6, 5e-7),
    "dreambooth": (1e-6, 5e-7),
    "lora": (1e-4, 5e-5),
}
"""Learning rates of (UNet, text encoder) where a config gives none, for the methods that train these."""

FORMATS: dict[str, tuple[str, ...]] = {
    "full": ("safetensors", "ckpt", "diffusers"),
    "dreambooth": ("safetensors", "ckpt", "diffusers"),
    "lora": ("safetensors", "diffusers"),
    "textual_inversion": ("safetensors", "pt"),
    "hypernetwork": ("pt",),
}
"""Which formats a method can export; the first is its default."""

_INVALID_IN_NAMES = re.compile(r'[\\/:*?"<>|\s]+')


def file_name_of(token: str) -> str:
    """Return a word as part of a file name: `<rex>` is `rex`."""
    return _INVALID_IN_NAMES.sub("", token) or "word"
