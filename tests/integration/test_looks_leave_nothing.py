"""Looks at the model during a run, samples among them, leave no tensor behind."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_here

from everydream.training import loop


def tensor_bytes() -> int:
    """Return the bytes of all storages that a tensor in Python holds."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.usefixtures("any_precision")
def test_tensors_before_are_tensors_after(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With autocast's copies of weights, an average that is swapped in, and what monitors measure."""
    seen: list[tuple[str, int, int]] = []
    look_at = loop._look

    def watched(c: Any, step: int, looks: Any) -> None:
        for look in looks:
            before = tensor_bytes()
            look_at(c, step, [look])
            seen.append((look.name, step, tensor_bytes() - before))

    monkeypatch.setattr(loop, "_look", watched)
    train_here(
        project(
            train={"precision": "bf16", "max_steps": 4, "batch_size": 2}, ema={"decay": 0.9},
            samples={"every_steps": 2, "steps": 2, "guidance": [4.0]}, control={"every_steps": 2},
            preservation={"images": 2, "every_steps": 2, "timesteps": 2},
        )
    )  # fmt: skip
    names = {name for name, step, _ in seen if step}
    assert len(names) >= 3, names
    assert [look for look in seen if look[1] and look[2]] == []
