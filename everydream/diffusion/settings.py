"""Settings of the diffusion room: how the loss is made, and at which noise levels."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from everydream.settings import Settings

Weighting = Literal["none", "min_snr", "soft_min_snr", "debiased", "p2"]
LossKind = Literal["mse", "huber", "smooth_l1"]
USUAL_GAMMA: dict[Weighting, float] = {"min_snr": 5.0, "soft_min_snr": 5.0, "p2": 1.0}
"""The gamma of each weighting that has one; of their papers."""


class LossSettings(Settings):
    """How the loss is made."""

    kind: LossKind = "mse"
    """Squared error; huber and smooth_l1 (pseudo-Huber, times 2c and times 2) forgive outliers beyond huber_c."""
    huber_c: Annotated[float, Field(gt=0.0)] = 0.1
    """Where huber and smooth_l1 turn from squared to absolute error; with a schedule, its value at most noise."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How huber_c moves: from 1 without noise to huber_c, by timestep (exponential) or noise level (snr); or not."""
    weighting: Weighting = "none"
    """Weight by noise level: min_snr, soft_min_snr, debiased or p2, each in the form that fits what is predicted."""
    gamma: Annotated[float, Field(gt=0.0)] | None = None
    """Of the weighting; null: 5 for min_snr and soft_min_snr, 1 for p2. debiased has none."""
    normalize_weights: bool = True
    """Divide the weights by their mean over the timesteps, so that they move the emphasis and not the loss's size."""
    unmasked_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Weight of what lies outside an image's mask (see data.masks), where 1 is that of what lies inside."""
    offset_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Strength of noise on whole channels, so that very dark and bright images can be learned (0.05 to 0.1)."""
    offset_noise_random: bool = False
    """Draw the strength anew for each image, between 0 and offset_noise."""
    pyramid_noise: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Add noise of ever coarser grain, each level times this (0.4 is usual); null: none."""
    input_perturbation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Noise on the input alone, not on the target (0.1 in the paper): training sees inputs as imperfect as sampling."""

    @model_validator(mode="before")
    @classmethod
    def _from_one_key(cls, raw: Any) -> Any:
        """Read `min_snr_gamma: 5`, as other trainers and earlier versions say it: min-SNR, not normalised."""
        if not isinstance(raw, dict) or "min_snr_gamma" not in raw:
            return raw
        rest = {key: value for key, value in raw.items() if key != "min_snr_gamma"}
        gamma = raw["min_snr_gamma"]
        return rest if gamma is None else {"weighting": "min_snr", "gamma": gamma, "normalize_weights": False, **rest}

    @model_validator(mode="after")
    def _nothing_idle(self) -> "LossSettings":
        given = self.model_fields_set
        idle = {
            "huber_c": self.kind == "mse",
            "huber_schedule": self.kind == "mse",
            "gamma": self.gamma is not None and self.weighting not in USUAL_GAMMA,
            "normalize_weights": self.weighting == "none",
            "offset_noise_random": self.offset_noise_random and not self.offset_noise,
        }
        defaults = type(self).model_fields
        problems = [
            f"{name} has no effect with {'kind: mse' if 'huber' in name else _without(name, self.weighting)}"
            for name, is_idle in idle.items()
            if is_idle and name in given and getattr(self, name) != defaults[name].default
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _without(name: str, weighting: str) -> str:
    return "offset_noise: 0" if name == "offset_noise_random" else f"weighting: {weighting}"


class TimestepSettings(Settings):
    """At which noise levels images are trained."""

    law: Literal["uniform", "logit_normal"] = "uniform"
    """Uniform, or logit-normal around `mean` (SD3's; more of the middle, where pictures take shape)."""
    mean: float = 0.0
    """Of logit_normal; above 0 is more noise, as in SD3's paper."""
    std: Annotated[float, Field(gt=0.0)] = 1.0
    """Of logit_normal."""
    min: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Least noise trained at, as a part of the schedule: 0 is a clean image."""
    max: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Most noise trained at: 1 is nothing but noise."""
    stratified: bool = False
    """Spread the images of a step evenly over the law, one in each equal part: the loss varies less between steps."""
    shift: Annotated[float, Field(gt=0.0)] | None = None
    """Shift of flow models towards noise (3 for SD3); null: the model's own. Other models have none."""

    @model_validator(mode="after")
    def _consistent(self) -> "TimestepSettings":
        if self.min >= self.max:
            raise ValueError(f"min is {self.min:g} and max {self.max:g}; min must be the smaller one")
        if self.law == "uniform" and (self.mean != 0.0 or self.std != 1.0):
            raise ValueError("mean and std have no effect with law: uniform")
        return self
