"""`everydream grid`."""

from pathlib import Path
from typing import Annotated

import typer

from everydream.errors import ConfigError
from everydream.told import told

_STOPPED = "Stopped; what is drawn stays, and the same command goes on there."
_AXIS = "NAME: VALUES. checkpoint, ema, lora, lora strength, prompt, seed, guidance, sampler, steps, size."


def grid(
    model: Annotated[str | None, typer.Argument(help="The model: folder, file or hub id.")] = None,
    run: Annotated[str | None, typer.Option(help="A run's folder, for its exports, base and last.ckpt.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to draw.")] = None,
    x: Annotated[str | None, typer.Option("-x", help=f"Across. {_AXIS}")] = None,
    y: Annotated[str | None, typer.Option("-y", help="Down. Ranges: 1-10, 1-10 (+2), 0-1 [5].")] = None,
    z: Annotated[str | None, typer.Option("-z", help="A sheet for each.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for sheet, page and cells. Default: grid.")] = None,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Where no axis varies it.")] = 555,
    guidance: Annotated[float, typer.Option(help="Where no axis varies it.")] = 7.0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Where no axis varies it.")] = 30,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m or unipc.")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="FILE or FILE:STRENGTH; may be repeated.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the model's own size.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the model's own size.")] = None,
    clip_skip: Annotated[int, typer.Option(min=0, max=8, help="As MODEL was trained; runs know it.")] = 0,
    again: Annotated[Path | None, typer.Option(help="Make the grid of this sheet.png again, in its folder.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw pictures over up to three axes: checkpoints, prompts, seeds, guidance, samplers, adapters and more."""
    with told(debug, _STOPPED):
        from everydream.sampling.settings import SamplerName  # noqa: PLC0415
        from everydream.tools.grid.make import Request, describe, make, request_in  # noqa: PLC0415
        from everydream.tools.grid.values import known  # noqa: PLC0415

        if again is not None:
            if prompt or x or y or z or run or model:
                raise ConfigError("--again takes everything from the sheet; give it alone, or with --out.")
            request, folder = request_in(again), out or again.parent
        else:
            if prompt is None:
                raise ConfigError('Say what to draw: --prompt "a photo of sks dog", or --again sheet.png.')
            if not (x or y or z):
                raise ConfigError('Say what varies, as in -x "checkpoint: all" -y "seed: 1-3". Axes: ' + _AXIS)
            from typing import get_args  # noqa: PLC0415

            named = known("--sampler", sampler, get_args(SamplerName)) if sampler is not None else None
            request = Request(
                prompt, tuple(axis for axis in (x, y, z) if axis), model, run, negative, seed, guidance, steps, named,
                tuple(lora or ()), width, height, clip_skip,
            )  # fmt: skip
            folder = out or Path("grid")
        drawn = make(request, folder)
        print("\n".join(describe(drawn, folder)))
    if drawn.failed:
        raise typer.Exit(1)
