"""The prompts of the sample images."""

from collections.abc import Sequence
from pathlib import Path

from everydream.errors import ConfigError


def read_prompts(path: Path, key: str = "samples.prompts") -> list[str]:
    """Return the prompts of a text file: one a line, blank lines and lines starting with # left out.

    `key` is what messages call it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({error.strerror}). Make the file, or leave the key out."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not UTF-8 text. Save it as UTF-8.") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ConfigError(f"{key}: {path} holds no prompt. Write one a line.")
    return prompts


def prompts_from_captions(captions: Sequence[str], count: int = 4) -> list[str]:
    """Return up to `count` different captions, spread over the data set."""
    different = sorted({caption for caption in captions if caption})
    return [different[len(different) * i // count] for i in range(count)] if len(different) > count else different
