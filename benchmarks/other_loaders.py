"""Other trainers' loaders, for `loading.py`: their own dataset classes, or what their script does, on given photos.

A tokenizer is left out, and what their packages import without need for a data set.
"""

import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

SIDE, BATCH = 512, 8
Way = Callable[[], Iterable[Any]]
"""Yields batches of one pass over the photos."""
OPERATORS = torch.library.Library("torchvision", "DEF")


@cache
def transforms() -> Any:
    """Return torchvision's transforms, None without it. Its usual build wants two operators that a CPU build lacks."""
    try:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import transforms as found  # noqa: PLC0415
    except (ImportError, RuntimeError):
        return None
    return found


class Files(Dataset[torch.Tensor]):
    """The photos through the transform of diffusers' train_text_to_image.py, with its defaults."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, found = paths, transforms()
        self.how = found and found.Compose([
            found.Resize(SIDE, interpolation=found.InterpolationMode.LANCZOS), found.RandomCrop(SIDE),
            found.RandomHorizontalFlip(), found.ToTensor(), found.Normalize([0.5], [0.5]),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        image = Image.open(self.paths[number]).convert("RGB")
        if self.how is not None:
            return self.how(image)  # type: ignore[no-any-return]
        shorter = min(image.size)
        image = image.resize((image.width * SIDE // shorter, image.height * SIDE // shorter), Image.Resampling.LANCZOS)
        pixels = np.asarray(image.crop((0, 0, SIDE, SIDE)), np.float32).transpose(2, 0, 1)
        return torch.from_numpy((pixels / 255 - 0.5) / 0.5)


def stack(images: list[torch.Tensor]) -> torch.Tensor:
    """Collate as diffusers' script does."""
    return torch.stack(images).to(memory_format=torch.contiguous_format).float()


def diffusers_way(paths: list[Path], workers: int) -> Way:
    """Return the script's loader."""
    return lambda: DataLoader(Files(paths), BATCH, collate_fn=stack, num_workers=workers)


def everydream2_way(clone: Path, paths: list[Path], workers: int) -> Way:
    """Return EveryDream2's loader: its buckets, transforms and collating."""
    sys.path.insert(0, str(clone))
    assert transforms() is not None, "EveryDream2 needs torchvision"
    from data import aspects, data_loader, every_dream, image_train_item  # noqa: PLC0415
    from plugins.plugins import PluginRunner  # noqa: PLC0415

    def tokens(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0] * 77)

    tokens.model_max_length = 77  # type: ignore[attr-defined]
    sizes = aspects.get_aspect_buckets(SIDE)
    items = [
        image_train_item.ImageTrainItem(
            None, image_train_item.ImageCaption("a picture", 1.0, [], [], 2048, False), sizes, str(path), flip_p=0.5
        )
        for path in paths
    ]
    dataset = every_dream.EveryDreamBatch(
        data_loader.DataLoaderMultiAspect(items, batch_size=BATCH), tokenizer=tokens, plugin_runner=PluginRunner()
    )
    return lambda: DataLoader(dataset, BATCH, collate_fn=every_dream.collate_fn, num_workers=workers)


def kohya_way(clone: Path, photos: Path, workers: int) -> Way:
    """Return kohya's loader: a DreamBooth data set with buckets, flips and uncached images."""
    sys.path.insert(0, str(clone))
    assert transforms() is not None, "kohya's scripts need torchvision"
    # Their sampling pipelines want an older transformers; the data set has no use for them.
    for name, missing in (
        ("lpw_stable_diffusion", "StableDiffusionLongPromptWeightingPipeline"),
        ("sdxl_lpw_stable_diffusion", "SdxlStableDiffusionLongPromptWeightingPipeline"),
    ):
        sys.modules[f"library.{name}"] = SimpleNamespace(**{missing: None})  # type: ignore[assignment]
    from library import strategy_base, train_util  # noqa: PLC0415

    class Tokens(strategy_base.TokenizeStrategy):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[torch.Tensor]:
            return [torch.zeros(1, 1, 77, dtype=torch.long)]

    strategy_base.TokenizeStrategy._strategy = None
    strategy_base.TokenizeStrategy.set_strategy(Tokens())
    subset = train_util.DreamBoothSubset(
        str(photos), False, "a picture", ".caption", False, False, 1, False, ",", 0, "", None, False, False, True, None,
        False, 0.0, 0, 0.0, None, None, 1, 0,
    )  # fmt: skip
    dataset = train_util.DreamBoothDataset(
        [subset], True, BATCH, (SIDE, SIDE), 1.0, True, 256, 2048, 64, False, 1.0, False, 0.0, None, None
    )
    dataset.set_current_strategies()
    dataset.make_buckets()
    return lambda: DataLoader(dataset, batch_size=1, collate_fn=lambda one: one[0], num_workers=workers)
