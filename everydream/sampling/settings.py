"""Settings of the sample images."""

from typing import Annotated

from pydantic import Field

from everydream.settings import Settings


class SampleSettings(Settings):
    """Pictures from fixed prompts and seeds while training."""

    every_steps: Annotated[int, Field(ge=1)] | None = 250
    """Draw samples every N optimizer steps, and before the first and after the last; null: never."""
    prompts: str | None = None
    """Text file, one prompt a line (# starts a comment), read anew each time; null: a few captions of the data set."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Steps of the sampler (DDIM)."""
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
