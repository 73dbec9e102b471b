"""The forward process of DDPM (Ho et al. 2020, arXiv 2006.11239) as Stable Diffusion uses it."""

from dataclasses import dataclass

import torch

from everydream.devices import sent


@dataclass(frozen=True)
class NoiseSchedule:
    """Cumulative signal level for each timestep 0 .. T-1."""

    alphas_cumprod_T: torch.Tensor
    """alpha-bar, float64."""

    @property
    def num_timesteps(self) -> int:
        """Number of noise levels, T."""
        return len(self.alphas_cumprod_T)

    def snr(self, t_B: torch.Tensor) -> torch.Tensor:
        """Return alpha-bar / (1 - alpha-bar) at each timestep, float64, shape (B,)."""
        alpha_bar_B = sent(self.alphas_cumprod_T, t_B.device)[t_B]
        return alpha_bar_B / (1.0 - alpha_bar_B)

    def signal_and_noise(self, t_B: torch.Tensor, like_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sqrt(alpha-bar) and sqrt(1 - alpha-bar), each (B, 1, 1, 1), with the type and device of `like`."""
        alpha_bar_B = sent(self.alphas_cumprod_T, t_B.device)[t_B]
        return per_image(alpha_bar_B.sqrt(), like_BCHW), per_image((1.0 - alpha_bar_B).sqrt(), like_BCHW)


def per_image(value_B: torch.Tensor, like_BCHW: torch.Tensor) -> torch.Tensor:
    """Return one number per image as (B, 1, 1, 1), with the type and device of `like`."""
    return value_B.view((-1,) + (1,) * (like_BCHW.ndim - 1)).to(like_BCHW)


def make_schedule(
    kind: str = "scaled_linear",
    start: float = 0.00085,
    end: float = 0.012,
    num_timesteps: int = 1000,
    zero_terminal: bool = False,
) -> NoiseSchedule:
    """Return the schedule with betas from `start` to `end`.

    `scaled_linear` is linear in sqrt(beta), as in latent diffusion (Rombach et al. 2022, arXiv
    2112.10752); `linear` is DDPM's. Computed in float64, so SNR agrees with the closed form.
    `zero_terminal`: the last timestep is pure noise, see `with_zero_terminal_snr`.
    """
    if kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float64) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, num_timesteps, dtype=torch.float64)
    else:
        raise ValueError(f"unknown beta schedule {kind!r}; known: scaled_linear, linear")
    schedule = NoiseSchedule(torch.cumprod(1.0 - betas, dim=0))
    return with_zero_terminal_snr(schedule) if zero_terminal else schedule


def with_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Return the schedule shifted and scaled so that the last timestep holds no signal and the first stays.

    Lin et al. 2023, arXiv 2305.08891, algorithm 1, on sqrt(alpha-bar). Otherwise the last timestep keeps a
    trace of the image's brightness, which sampling, started from pure noise, does not have.
    """
    signal_T = schedule.alphas_cumprod_T.sqrt()
    first, last = signal_T[0], signal_T[-1]
    return NoiseSchedule(((signal_T - last) * first / (first - last)) ** 2)
