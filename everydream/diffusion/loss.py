"""Losses that keep one value per image; the step reduces them."""

from collections.abc import Callable

import torch

from everydream.diffusion.objective import Objective
from everydream.diffusion.schedule import per_image
from everydream.diffusion.settings import LossKind, LossSettings

_HUBER_SCALE: dict[LossKind, Callable[[torch.Tensor], torch.Tensor]] = {
    "huber": lambda c: 2.0 * c,
    "smooth_l1": lambda c: torch.full_like(c, 2.0),
}


def image_losses(
    prediction_BCHW: torch.Tensor,
    target_BCHW: torch.Tensor,
    t_B: torch.Tensor,
    objective: Objective,
    settings: LossSettings,
    mask_B1HW: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of each image, float32, shape (B,), in or around its mask as `settings` say.

    Pseudo-Huber (kohya's forms): 2c (sqrt(d^2 + c^2) - c) for huber, 2 (sqrt(d^2 + c^2) - c) for smooth_l1.
    """
    difference = prediction_BCHW.float() - target_BCHW.float()
    if settings.kind == "mse":
        error_BCHW = difference.square()
    else:
        c = per_image(huber_c(t_B, objective, settings), difference)
        squared = difference.square()
        # sqrt(d^2 + c^2) - c, written without the difference of two numbers that are nearly equal.
        error_BCHW = _HUBER_SCALE[settings.kind](c) * squared / ((squared + c.square()).sqrt() + c)
    return mean_per_image(error_BCHW, mask_B1HW, settings.unmasked_weight)


def huber_c(t_B: torch.Tensor, objective: Objective, settings: LossSettings) -> torch.Tensor:
    """Return c at each timestep, float64, shape (B,).

    constant: c. exponential: c^(t / 1000), which falls from 1 to c. snr: (1 - c) / (1 + sigma)^2 + c, with
    sigma = 1 / sqrt(SNR), which does so by noise level. Both as in kohya's scripts.
    """
    c = torch.full(t_B.shape, settings.huber_c, dtype=torch.float64, device=t_B.device)
    if settings.huber_schedule == "exponential":
        return c ** (t_B.double() / 1000.0)
    if settings.huber_schedule == "snr":
        return (1.0 - c) / (1.0 + objective.snr(t_B).rsqrt()) ** 2 + c
    return c


def mean_per_image(
    error_BCHW: torch.Tensor, mask_B1HW: torch.Tensor | None = None, unmasked_weight: float = 0.0
) -> torch.Tensor:
    """Return the mean over channels and pixels, shape (B,).

    With masks (0 .. 1) it is the mean over their area, so an image weighs the same however small its mask is; what
    lies outside counts `unmasked_weight` as much. Where nothing counts at all the loss is 0.
    """
    if mask_B1HW is None:
        return error_BCHW.flatten(1).mean(1)
    weight_B1HW = unmasked_weight + (1.0 - unmasked_weight) * mask_B1HW.to(error_BCHW)
    total_B = weight_B1HW.flatten(1).sum(1) * error_BCHW.shape[1]
    weighted_B = (error_BCHW * weight_B1HW).flatten(1).sum(1)
    return torch.where(total_B > 0, weighted_B / total_B.clamp_min(1e-12), torch.zeros_like(weighted_B))
