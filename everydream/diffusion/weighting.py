"""Loss weights by noise level, one value per image."""

import torch

from everydream.diffusion.objective import Prediction


def min_snr_weights(snr_B: torch.Tensor, gamma: float, prediction: Prediction) -> torch.Tensor:
    """Return the min-SNR-gamma weights (Hang et al. 2023, arXiv 2303.09556), shape (B,).

    The paper weighs the loss on x0 by min(SNR, gamma). Expressed as a loss on epsilon that is
    min(SNR, gamma) / SNR, on v min(SNR, gamma) / (SNR + 1). Written without dividing by SNR, so that
    zero-terminal schedules (SNR = 0) give the limit, 1, instead of 0/0.
    """
    if prediction == "v":
        return snr_B.clamp(max=gamma) / (snr_B + 1.0)
    return gamma / snr_B.clamp(min=gamma)
