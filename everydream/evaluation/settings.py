"""Settings of the monitors: what is measured and looked at while a run goes on, and what follows from it."""

from typing import Annotated, Literal

from pydantic import Field

from everydream.settings import Settings

Positive = Annotated[int, Field(ge=1)]


class PreservationSettings(Settings):
    """What is kept of the base model: its loss on ground truth that is not trained on, before and while training."""

    images: Annotated[int, Field(ge=0)] = 0
    """How many ground-truth images are held out of training and measured; 0: none, the monitor is off."""
    path: str | None = None
    """Folder of captioned images that are measured instead, so that nothing is held out; `images` of them at most."""
    every_steps: Positive | None = None
    """Measure every N optimizer steps, and before the first and after the last in any case."""
    every_epochs: Positive | None = None
    """Measure after every N epochs; both null: as often as all measuring takes 5 % of the time at most."""
    timesteps: Annotated[int, Field(ge=1, le=100)] = 4
    """Noise levels at which each image is measured, spread evenly; always the same ones, with the same noise."""


class ValidationSettings(Settings):
    """What is learned beyond the training images: the loss on images of the subject that are not trained on.

    As many training images are measured beside them, so that what is only learned by heart shows as a gap.
    """

    images: Annotated[int, Field(ge=0)] = 0
    """How many images of training sources are held out and measured, near duplicates together; 0: none."""
    path: str | None = None
    """Folder of captioned images that are measured instead, so that nothing is held out; `images` of them at most."""
    every_steps: Positive | None = None
    """Measure every N optimizer steps, and before the first and after the last in any case."""
    every_epochs: Positive | None = None
    """Measure after every N epochs; both null: as often as all measuring takes 5 % of the time at most."""
    timesteps: Annotated[int, Field(ge=1, le=100)] = 4
    """Noise levels at which each image is measured, spread evenly; always the same ones, with the same noise."""


class ControlSettings(Settings):
    """Pictures at fixed seeds from three sets of prompts, against the base model's: bleeding and copying in numbers."""

    every_steps: Positive | None = None
    """Draw them every N optimizer steps, and before the first and after the last; null: never."""
    concept: list[str] | None = None
    """Prompts that name the subject; null: from tokens and labels, none if there are none."""
    control: list[str] | None = None
    """Prompts that do not; null: the empty one, class words and labels, captions of ground truth."""
    captions: Annotated[int, Field(ge=0)] = 4
    """How many captions of training images are prompts too."""
    compared: Positive = 64
    """Training images that pictures are compared with, at most."""
    features: str | None = None
    """Folder of a CLIP or DINO model on disk that compares pictures; null: the model's own latents."""


class StopSettings(Settings):
    """When a run ends before its last step."""

    when: Literal["overfit"] | None = None
    """overfit: when what keep_best goes by has not been better for `patience` measurements; null: never."""
    patience: Positive = 5
    """Measurements without a new best before the run ends."""
