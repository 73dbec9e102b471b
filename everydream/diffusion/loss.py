"""Losses that keep one value per image; the step reduces them."""

import torch


def mse_per_image(prediction_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each image over channels and pixels, float32, shape (B,)."""
    return (prediction_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(1)
