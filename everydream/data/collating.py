"""From samples of one bucket to a batch, in one copy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from everydream.types import Batch, Crop, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one bucket."""
    return Batch(
        pixels_BCHW=stacked([sample.pixels_CHW for sample in samples]),
        captions=[sample.caption for sample in samples],
        crops=[sample.crop for sample in samples],
        loss_scale_B=torch.tensor([sample.loss_scale for sample in samples], dtype=torch.float32),
        seeds=[sample.seed for sample in samples],
        keys=[sample.key for sample in samples],
        num_real=len(samples),
        places=[sample.place for sample in samples],
        mask_B1HW=_masks(samples),
    )


def stacked(images_CHW: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Return images, which may be views, as one tensor; in a worker it lies where its parent reads it: one copy."""
    tensors = [torch.from_numpy(image_CHW) for image_CHW in images_CHW]
    if not tensors[0].numel():
        return torch.stack(tensors)  # there is no shared memory of 0 bytes
    batch: torch.Tensor = default_collate(tensors)
    return batch


def _masks(samples: Sequence[Sample]) -> torch.Tensor | None:
    """Stack the masks, all of those that have none; None where no image has one."""
    if all(sample.mask_HW is None for sample in samples):
        return None
    masks = [
        np.full(sample.crop.target_size, 255, np.uint8) if sample.mask_HW is None else sample.mask_HW
        for sample in samples
    ]
    return torch.from_numpy(np.stack(masks)).unsqueeze(1).float() / 255.0


def filler(bucket: tuple[int, int]) -> Batch:
    """Return one grey image of loss scale 0: a process with nothing to do must still take part in the step."""
    width, height = bucket
    return Batch(
        pixels_BCHW=torch.full((1, 3, height, width), 127, dtype=torch.uint8),
        captions=[""],
        crops=[Crop((height, width), 0, 0, (height, width), False)],
        loss_scale_B=torch.zeros(1),
        seeds=[0],
        keys=[""],
        num_real=0,
        places=[(0, 1)],
    )
