"""What the network is asked to predict. Nothing else in the project knows these formulas."""

from typing import Literal, Protocol

import torch

from everydream.diffusion.schedule import NoiseSchedule

Prediction = Literal["epsilon", "v"]


class Objective(Protocol):
    """Noising, and the target that belongs to it. x0, eps, x_t and the prediction are (B, C, H, W)."""

    prediction: Prediction
    schedule: NoiseSchedule

    def noise(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return x_t."""

    def target(self, x0: torch.Tensor, t_B: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return what the network should say for x_t."""

    def to_x0(self, x_t: torch.Tensor, t_B: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Return the clean latent that a prediction implies."""


class Epsilon:
    """Predicts the noise (Ho et al. 2020): Stable Diffusion 1.x and 2.x base."""

    prediction: Prediction = "epsilon"

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

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


OBJECTIVES: dict[Prediction, type[Epsilon]] = {"epsilon": Epsilon, "v": VPrediction}
