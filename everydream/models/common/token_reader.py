"""Reads many captions at once as CLIP does, to count and show tokens, without the second that transformers needs.

The rules are those of CLIP's own tokenizer (openai/CLIP, clip/simple_tokenizer.py): one space for white space, lower
case, this split into words, byte-pair merges with `</w>` at a word's end. A test compares with transformers.
"""

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from everydream.models.common.tokenizer_files import PACKAGED

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TokenReader:
    """The packaged vocabulary, which every Stable Diffusion uses."""

    def __init__(self) -> None:
        vocabulary, merges = BPE.read_file(str(PACKAGED / "vocab.json"), str(PACKAGED / "merges.txt"))
        self._core = _clip(vocabulary, merges)
        self.rank_of: Mapping[str, int] = vocabulary
        """Entry of the vocabulary -> its number; common ones come first."""

    def counts(self, captions: Sequence[str]) -> list[int]:
        """Return each caption's tokens, begin and end included."""
        return [len(found.ids) for found in self._core.encode_batch(list(map(_sound, captions)))]

    def pieces(self, word: str) -> list[str]:
        """Return the entries of the vocabulary that a text is read as; `</w>` ends a word."""
        return list(self._core.encode(_sound(word), add_special_tokens=False).tokens)


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    model = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=_END, fuse_unk=False)
    core = Tokenizer(model)
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    ends = ((_END, vocabulary[_END]), (_BEGIN, vocabulary[_BEGIN]))
    core.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (_BEGIN, _END)])
    return core


def _sound(text: str) -> str:
    """Return a text without the halves of characters that file names may hold, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
