"""What a text encoder's output depends on, as tensors and plain data: for keys of caches."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from everydream.formats.files import StateDict
from everydream.models.common.additions import own_state
from everydream.models.common.clip import Clip
from everydream.models.common.folders import plain_config
from everydream.models.common.t5 import T5


def of_texts(texts: Mapping[str, Clip | T5], empty_prompt: str) -> tuple[StateDict, dict[str, Any]]:
    """Return the encoders' tensors, and their configurations, vocabularies and ways of reading."""
    state: StateDict = {}
    facts: dict[str, Any] = {"empty_prompt": empty_prompt}
    for part, text in texts.items():
        state |= {f"{part}.{name}": tensor for name, tensor in own_state(text.encoder).items()}
        facts[part] = {
            "config": plain_config(text.encoder.config.to_diff_dict()),
            "tokenizer": {name: hashlib.blake2b(content).hexdigest() for name, content in text.files.items()},
            "reading": asdict(text.reading) if isinstance(text, Clip) else text.length,
        }
    return state, facts
