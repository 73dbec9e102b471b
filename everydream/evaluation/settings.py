"""Settings of the preservation monitor."""

from typing import Annotated

from pydantic import Field

from everydream.settings import Settings


class PreservationSettings(Settings):
    """What is kept of the base model: its loss on ground truth that is not trained on, before and while training."""

    images: Annotated[int, Field(ge=0)] = 0
    """How many ground-truth images are held out of training and measured; 0: none, the monitor is off."""
    path: str | None = None
    """Folder of captioned images that are measured instead, so that nothing is held out; `images` of them at most."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Measure every N optimizer steps; null: after each epoch. Before the first step and after the last in any case."""
    timesteps: Annotated[int, Field(ge=1, le=100)] = 4
    """Noise levels at which each image is measured, spread evenly; always the same ones, with the same noise."""
