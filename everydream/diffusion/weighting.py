"""Loss weights by noise level, one value per image.

Papers state weights for one kind of prediction; a model that predicts something else needs the same emphasis in its
own terms. One number carries it over: the squared error of the image a prediction implies is the squared error of the
prediction divided by

    g = SNR (epsilon),  SNR + 1 (v),  (1 + sqrt(SNR))^2 (flow).

With S for the SNR:
    min_snr       min(S, gamma) / g             Hang et al. 2023, arXiv 2303.09556
    soft_min_snr  S gamma / (S + gamma) / g     Crowson et al. 2024, arXiv 2401.11605
    debiased      1 / sqrt(g), S at most 1000   Yu et al. 2023, arXiv 2310.08442
    p2            (1 + g)^-gamma                Choi et al. 2022, arXiv 2204.00227

Other trainers agree on min-SNR, but for ai-toolkit, which uses the epsilon form for v. Debiased for v is 1 / (S + 1) in
kohya's scripts and 1 / sqrt(S + 1) in OneTrainer; the latter is what the derivation gives and what matches both tools'
1 / sqrt(S) for epsilon. P2 is OneTrainer's.
"""

from collections.abc import Callable

import torch

from everydream.diffusion.objective import Objective, Prediction
from everydream.diffusion.settings import USUAL_GAMMA, LossSettings, TimestepSettings, Weighting
from everydream.diffusion.timesteps import noise_levels

_LEAST, _MOST = 1e-12, 1e12
"""SNR within which the weights' limits are reached: at 0 (zero-terminal schedules) and at infinity nothing is 0/0."""
_GAIN: dict[Prediction, Callable[[torch.Tensor], torch.Tensor]] = {
    "epsilon": lambda snr: snr,
    "v": lambda snr: snr + 1.0,
    "flow": lambda snr: (1.0 + snr.sqrt()) ** 2,
}
_WEIGHT: dict[Weighting, Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor], float], torch.Tensor]] = {
    "min_snr": lambda snr, gain, gamma: snr.clamp(max=gamma) / gain(snr),
    "soft_min_snr": lambda snr, gain, gamma: snr * gamma / (snr + gamma) / gain(snr),
    "debiased": lambda snr, gain, gamma: gain(snr.clamp(max=1000.0)).rsqrt(),
    "p2": lambda snr, gain, gamma: (1.0 + gain(snr)) ** -gamma,
}
_QUANTILES = 1000


def snr_weights(snr_B: torch.Tensor, prediction: Prediction, settings: LossSettings) -> torch.Tensor:
    """Return the weights of `settings.weighting` at these SNRs, as the papers have them, float64, shape (B,)."""
    snr_B = snr_B.double().clamp(_LEAST, _MOST)
    if settings.weighting == "none":
        return torch.ones_like(snr_B)
    gamma = settings.gamma if settings.gamma is not None else USUAL_GAMMA.get(settings.weighting, 0.0)
    return _WEIGHT[settings.weighting](snr_B, _GAIN[prediction], gamma)


def mean_weight(
    objective: Objective, loss: LossSettings, timesteps: TimestepSettings, latent_hw: tuple[int, int]
) -> float:
    """Return the mean weight over the timesteps as they are drawn: the midpoints of a thousand equal parts of the law.

    With a thousand timesteps and the uniform law this is each timestep once.
    """
    v = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    t = objective.timesteps(noise_levels(v, timesteps), latent_hw, timesteps.shift)
    return float(snr_weights(objective.snr(t), objective.prediction, loss).mean())


def loss_weights(
    t_B: torch.Tensor,
    objective: Objective,
    loss: LossSettings,
    timesteps: TimestepSettings,
    latent_hw: tuple[int, int],
) -> torch.Tensor:
    """Return what each image's loss is multiplied by, float64, shape (B,); of mean 1 if they are normalised."""
    weight_B = snr_weights(objective.snr(t_B), objective.prediction, loss)
    if loss.weighting == "none" or not loss.normalize_weights:
        return weight_B
    return weight_B / mean_weight(objective, loss, timesteps, latent_hw)
