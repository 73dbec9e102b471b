"""What the network is asked to predict. Nothing else in the project knows these formulas."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch

from everydream.diffusion.schedule import NoiseSchedule, per_image

Prediction = Literal["epsilon", "v", "flow"]


class Objective(Protocol):
    """Noising, and the target that belongs to it. x0, eps, x_t and the prediction are (B, C, H, W)."""

    prediction: Prediction

    def timesteps(self, u_B: torch.Tensor, latent_hw: tuple[int, int], shift: float | None = None) -> torch.Tensor:
        """Return t_B at noise levels u, 0 (clean) .. 1 (noise), for latents of this size; t goes up to 1000 or T-1."""

    def snr(self, t_B: torch.Tensor) -> torch.Tensor:
        """Return (signal / noise) squared at each timestep, float64, shape (B,)."""

    def noise(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return x_t."""

    def target(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return what the network should say for x_t."""

    def to_x0(self, x_t: torch.Tensor, t_B: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Return the clean latent that a prediction implies."""


class Epsilon:
    """Predicts the noise (Ho et al. 2020): Stable Diffusion 1.x and 2.x base, SDXL."""

    prediction: Prediction = "epsilon"

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def timesteps(self, u_B: torch.Tensor, latent_hw: tuple[int, int], shift: float | None = None) -> torch.Tensor:
        """Return floor(u T), int64; these schedules know no shift."""
        num = self.schedule.num_timesteps
        return (u_B * num).long().clamp(max=num - 1)

    def snr(self, t_B: torch.Tensor) -> torch.Tensor:
        """Return alpha-bar / (1 - alpha-bar)."""
        return self.schedule.snr(t_B)

    def noise(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return x_t = sqrt(alpha-bar) x0 + sqrt(1 - alpha-bar) eps."""
        signal, noise = self.schedule.signal_and_noise(t_B, x0)
        return signal * x0 + noise * eps

    def target(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return eps."""
        return eps

    def to_x0(self, x_t: torch.Tensor, t_B: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Solve x_t for x0, with the predicted eps."""
        signal, noise = self.schedule.signal_and_noise(t_B, x_t)
        return (x_t - noise * prediction) / signal


class VPrediction(Epsilon):
    """Predicts the velocity (Salimans and Ho 2022, arXiv 2202.00512): Stable Diffusion 2.x at 768 px."""

    prediction: Prediction = "v"

    def target(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return v = sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x0."""
        signal, noise = self.schedule.signal_and_noise(t_B, x0)
        return signal * eps - noise * x0

    def to_x0(self, x_t: torch.Tensor, t_B: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Return sqrt(alpha-bar) x_t - sqrt(1 - alpha-bar) v."""
        signal, noise = self.schedule.signal_and_noise(t_B, x_t)
        return signal * x_t - noise * prediction


class Flow:
    """Predicts the straight path from image to noise (rectified flow, Liu et al. 2022, arXiv 2209.03003): SD3, Flux.

    t is 1000 sigma, float: x_t = (1 - sigma) x0 + sigma eps.
    """

    prediction: Prediction = "flow"

    def __init__(self, shift: Callable[[tuple[int, int]], float]) -> None:
        self._shift = shift

    def timesteps(self, u_B: torch.Tensor, latent_hw: tuple[int, int], shift: float | None = None) -> torch.Tensor:
        """Return 1000 s u / (1 + (s - 1) u): larger images need more noise (arXiv 2403.03206, section 5.3.2)."""
        s = shift if shift is not None else self._shift(latent_hw)
        return 1000.0 * s * u_B / (1.0 + (s - 1.0) * u_B)

    def snr(self, t_B: torch.Tensor) -> torch.Tensor:
        """Return ((1 - sigma) / sigma) squared."""
        sigma_B = t_B.double() / 1000.0
        return ((1.0 - sigma_B) / sigma_B) ** 2

    def noise(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return x_t = (1 - sigma) x0 + sigma eps."""
        sigma = per_image(t_B / 1000.0, x0)
        return (1.0 - sigma) * x0 + sigma * eps

    def target(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return eps - x0."""
        return eps - x0

    def to_x0(self, x_t: torch.Tensor, t_B: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Return x_t - sigma times the predicted direction."""
        return x_t - per_image(t_B / 1000.0, x_t) * prediction


OBJECTIVES: dict[Prediction, type[Epsilon]] = {"epsilon": Epsilon, "v": VPrediction}
"""The objectives over a noise schedule."""
