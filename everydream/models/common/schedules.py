"""Training schedules of diffusers folders: the objective for training, the schedulers for sampling."""

from collections.abc import Callable
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from everydream.diffusion.objective import OBJECTIVES, Objective, Prediction
from everydream.diffusion.schedule import make_schedule
from everydream.errors import ConfigError
from everydream.models.common.kinds import Config
from everydream.models.settings import ModelSettings

PREDICTION_TYPE = {"epsilon": "epsilon", "v": "v_prediction"}
ZERO_SNR = "rescale_betas_zero_snr"
DEFAULT: Config = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip

SAMPLERS: dict[str, Callable[[Config], Any]] = {
    "ddim": lambda config: DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False),
    "euler": lambda config: EulerDiscreteScheduler(**config),
    "dpmpp_2m": lambda config: DPMSolverMultistepScheduler(**config),
    "unipc": lambda config: UniPCMultistepScheduler(**config),
}
"""Ways from noise to a picture that draw no noise of their own, so that a picture is its seed's; see SampleSettings."""


_MOST_LEADING = 100


def sampling_scheduler(name: str, scheduler: Config, steps: int = 1) -> Any:
    """Return one of `SAMPLERS` for a training schedule, its timesteps not yet set.

    Where the last timestep is pure noise, sampling has to start there: trailing spacing (arXiv 2305.08891, 3.3). So it
    has with many steps: leading spacing rounds the stride down, and 501 steps would start from half of the noise. The
    library's DDIM steps by that rounded stride under either; Euler's method is the same (arXiv 2206.00364, C) and does
    not.
    """
    if steps > _MOST_LEADING:
        return SAMPLERS["euler" if name == "ddim" else name]({**scheduler, "timestep_spacing": "trailing"})
    if scheduler.get(ZERO_SNR):
        return SAMPLERS[name]({**scheduler, "timestep_spacing": "trailing"})
    return SAMPLERS[name]({**scheduler, "timestep_spacing": "leading", "steps_offset": 1})


def objective_of(scheduler: Config) -> Objective:
    """Return the objective of a training schedule. Raises ConfigError for zero-terminal SNR with epsilon."""
    prediction: Prediction = "v" if scheduler["prediction_type"] == "v_prediction" else "epsilon"
    zero = bool(scheduler.get(ZERO_SNR))
    if zero and prediction == "epsilon":
        raise ConfigError(
            "model.zero_terminal_snr: the last timestep holds no signal then, and an epsilon model has nothing to "
            "tell there. Use it with a model that predicts v, or set it to false."
        )
    return OBJECTIVES[prediction](
        make_schedule(
            scheduler["beta_schedule"],
            scheduler["beta_start"],
            scheduler["beta_end"],
            scheduler["num_train_timesteps"],
            zero_terminal=zero,
        )
    )


def with_settings(scheduler: Config, settings: ModelSettings) -> Config:
    """Return the schedule with what the settings say outright."""
    changed = {key: value for key, value in scheduler.items() if key != ZERO_SNR}
    zero = scheduler.get(ZERO_SNR) if settings.zero_terminal_snr is None else settings.zero_terminal_snr
    if zero:
        changed[ZERO_SNR] = True
    if settings.prediction != "auto":
        changed["prediction_type"] = PREDICTION_TYPE[settings.prediction]
    return changed
