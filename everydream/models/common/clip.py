"""One CLIP text encoder with its tokenizer: captions to tokens, tokens to vectors, new words beside the known ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from everydream.devices import sent
from everydream.errors import ConfigError
from everydream.models.common import tokenizer_files
from everydream.models.common.words import WordEmbedding, Words


@dataclass(frozen=True)
class Reading:
    """Which of its layers a family takes from a text encoder, and how much of a caption it reads."""

    skip: int = 0
    """Layers left out before the last."""
    normed: bool = True
    """Whether the final norm follows the layer that is taken."""
    chunks: int = 1
    """Portions of 75 tokens that are read, each between a begin and an end of its own."""


class Clip:
    """A CLIP text encoder as the families use it."""

    def __init__(self, encoder: Any, files: tokenizer_files.Files, reading: Reading) -> None:
        self.encoder, self.reading = encoder, reading
        self.files = files
        self.tokenizer = tokenizer_files.load_tokenizer(files)
        self.length = int(encoder.config.max_position_embeddings)
        self.has_projection = hasattr(encoder, "text_projection")
        self._words: Words | None = None
        self._call: nn.Module = encoder

    @property
    def max_tokens(self) -> int:
        """Tokens of a caption that are read, one begin and one end included."""
        return (self.length - 2) * self.reading.chunks + 2

    @property
    def core(self) -> Any:
        """The module with embeddings, encoder and final_layer_norm; some classes have it one level down."""
        return getattr(self.encoder, "text_model", self.encoder)

    def layers(self) -> Sequence[nn.Module]:
        """Return the layers that reach the output, first to last; a projection is made from the last."""
        layers: list[nn.Module] = list(self.core.encoder.layers)
        return layers if self.has_projection else layers[: max(len(layers) - self.reading.skip, 0)]

    def final_norm(self) -> nn.Module:
        """Return the norm behind the last layer."""
        norm: nn.Module = self.core.final_layer_norm
        return norm

    def unused(self) -> Sequence[nn.Module]:
        """Return the modules that do not reach the output."""
        left_out = list(self.core.encoder.layers)[len(self.layers()) :]
        return left_out if self.reading.normed or self.has_projection else [*left_out, self.final_norm()]

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls through `wrapper(network)` if the network trains."""
        if any(p.requires_grad for p in self.encoder.parameters()):
            self._call = wrapper(self.encoder)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass if the network trains."""
        if any(p.requires_grad for p in self.encoder.parameters()):
            # transformers renamed it in 5.x; both take torch.utils.checkpoint's arguments first.
            renamed = getattr(self.encoder, "activation_checkpointing_enable", None)
            (renamed or self.encoder.gradient_checkpointing_enable)({"use_reentrant": False})

    def encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (tokens (B, chunks * L, D), the end of the first chunk (B, P), projected if there is a projection).

        A skip of n takes the output of the n-th layer from the end, as NovelAI and the tools that followed it do.
        """
        ids_BL = sent(self.tokenize(captions), next(self.encoder.parameters()).device)
        # Without gradients there is nothing to exchange: one process may sample while the others wait.
        encoder = self._call if torch.is_grad_enabled() else self.encoder
        skip, normed = self.reading.skip, self.reading.normed
        with self._output_of(skip) as taken:
            output = encoder(ids_BL)
        tokens_BLD: torch.Tensor = output.last_hidden_state if normed and not skip else taken[0]
        if normed and skip:
            tokens_BLD = self.final_norm()(tokens_BLD)
        pooled_BP: torch.Tensor = output.text_embeds if self.has_projection else output.pooler_output
        tokens_BLD = tokens_BLD.reshape(len(captions), -1, tokens_BLD.shape[-1])
        return tokens_BLD, pooled_BP[:: self.reading.chunks]

    @contextmanager
    def _output_of(self, skip: int) -> Iterator[list[torch.Tensor]]:
        """Keep, first in the list, what the layer `skip` before the last gives inside the block.

        Before all layers are the embeddings. transformers would keep it as a hidden state, by the name of the
        network's class, which FSDP changes.
        """
        taken: list[torch.Tensor] = []

        def keep(layer: nn.Module, arguments: object, output: Any) -> None:
            taken.append(output[0] if isinstance(output, tuple) else output)

        modules = [self.core.embeddings, *self.core.encoder.layers]
        if skip >= len(modules):
            raise ConfigError(
                f"text_encoder.clip_skip leaves out {skip} layers, and a text encoder of this model has "
                f"{len(modules) - 1}. Use what the base model was trained with, mostly 0."
            )
        hook = modules[-1 - skip].register_forward_hook(keep)
        try:
            yield taken
        finally:
            hook.remove()

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """Return ids (B * chunks, L): each chunk of a caption between its own begin and end, padded.

        As AUTOMATIC1111's web UI and ComfyUI read long prompts, but that they look for a word's end or a comma to
        cut at. There are always as many chunks as are read at most, so that an image's loss does not depend on its
        neighbours' captions.
        """
        if self._words is not None:
            captions = [self._words.spell_out(caption) for caption in captions]
        tokenizer, room = self.tokenizer, self.length - 2
        rows: list[list[int]] = []
        for ids in tokenizer(list(captions), add_special_tokens=False, truncation=False, verbose=False).input_ids:
            for chunk in range(self.reading.chunks):
                part = ids[chunk * room : (chunk + 1) * room]
                row = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
                rows.append(row + [tokenizer.pad_token_id] * (self.length - len(row)))
        return torch.tensor(rows, dtype=torch.long)

    def word_vectors(self, text: str) -> torch.Tensor:
        """Return the vocabulary's rows (V, D) of a text, begin and end left out."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        weight: torch.Tensor = self.encoder.get_input_embeddings().weight
        return weight[torch.tensor(ids, dtype=torch.long, device=weight.device)].detach()

    def learn_words(self, vectors: Mapping[str, torch.Tensor], limit_norm: bool = False) -> None:
        """Add words, each with its rows (V, D), to tokenizer and embedding; once in an encoder's life."""
        assert self._words is None, "words were added already"
        embedding = self.encoder.get_input_embeddings()
        longest = float(embedding.weight.detach().norm(dim=-1).max()) if limit_norm else None
        self._words = Words(self.tokenizer, {word: len(rows_VD) for word, rows_VD in vectors.items()})
        self.core.embeddings.token_embedding = WordEmbedding(
            embedding, torch.cat(list(vectors.values())), self._words.first_id, longest
        )
        # Old configurations make transformers take the largest id for the end, and a new word's is larger.
        self.core.eos_token_id = self.tokenizer.eos_token_id

    def learned_words(self) -> dict[str, torch.Tensor]:
        """Return the rows (V, D) of each added word, as they are used."""
        embedding = self.core.embeddings.token_embedding
        return self._words.split(embedding.rows().detach()) if self._words is not None else {}
