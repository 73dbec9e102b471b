"""Settings of the sample images."""

from typing import Annotated, Literal

from pydantic import Field

from everydream.settings import Settings

SamplerName = Literal["ddim", "euler", "dpmpp_2m", "unipc"]


class SampleSettings(Settings):
    """Pictures from fixed prompts and seeds while training."""

    every_steps: Annotated[int, Field(ge=1)] | None = 250
    """Draw samples every N optimizer steps, and before the first and after the last; null: never."""
    prompts: str | None = None
    """Text file, one prompt a line (# starts a comment), read anew each time; null: a few captions of the data set."""
    sampler: SamplerName | None = None
    """Way from noise to picture, none of which draws noise; null: the family's usual: ddim; flow models euler."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Steps of the sampler."""
    guidance: Annotated[list[Annotated[float, Field(ge=0.0)]], Field(min_length=1)] = [7.0]
    """Guidance scales; each gives a column of the grid."""
    seed: int = 555
    """Seed of the first prompt; each further prompt takes the next."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    width: Annotated[int, Field(ge=8)] | None = None
    """Pixels; null: data.resolution."""
    height: Annotated[int, Field(ge=8)] | None = None
    """Pixels; null: data.resolution."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Prompts sampled at a time; lower it if sampling runs out of memory."""


class ClassImageSettings(Settings):
    """Class images of prior preservation (DreamBooth): their weight, and how missing ones are made.

    Missing ones are made by the model that is about to be trained, for sources with `role: class` and `generate`.
    """

    prior_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of each class image in the loss, where its source gives no loss_scale of its own."""
    folder: str | None = None
    """Where they are kept, one folder for each model, prompt and way of making; null: runs_dir/class_images."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    sampler: SamplerName | None = None
    """Way from noise to picture; null: the family's usual."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Steps of the sampler."""
    guidance: Annotated[float, Field(ge=0.0)] = 7.0
    """Guidance scale."""
    seed: int = 0
    """Seed of the first picture; each further one takes the next."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Pictures made at a time."""
