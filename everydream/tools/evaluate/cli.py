"""`everydream evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from everydream.told import told

_STOPPED = "Stopped; what is drawn stays, and the same command goes on there."


def evaluate(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of pictures, each judged by itself.")] = None,
    run: Annotated[Path | None, typer.Option(help="A run's folder: its checkpoints draw, then are judged.")] = None,
    checkpoints: Annotated[str, typer.Option(help="Of the run: all, base, last, steps, ranges.")] = "base, all",
    model: Annotated[list[str] | None, typer.Option(help="A model that draws; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="What they draw: a text file, one prompt a line.")] = None,
    seeds: Annotated[str, typer.Option(help="Each prompt with each: 1,5,10-13.")] = "555",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of the sampler.")] = 30,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.0,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m or unipc.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the model's own size.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the model's own size.")] = None,
    clip_skip: Annotated[int, typer.Option(min=0, max=8, help="As --model was trained; runs know it.")] = 0,
    features: Annotated[Path | None, typer.Option(help="Folder of a CLIP or DINO on disk.")] = None,
    real: Annotated[list[Path] | None, typer.Option(help="Real pictures, for FID and KID; may be repeated.")] = None,
    training: Annotated[
        list[Path] | None, typer.Option(help="What was trained on, for copying; default: the run's own folders.")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of yours, such as demo.score:by_prompts.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is drawn.")] = Path("evaluation"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Judge pictures or checkpoints: FID, KID, CLIP score, copies of training images, a scorer of your own."""
    with told(debug, _STOPPED):
        import json  # noqa: PLC0415
        from typing import get_args  # noqa: PLC0415

        from rich.console import Console  # noqa: PLC0415

        from everydream.sampling.settings import SamplerName  # noqa: PLC0415
        from everydream.tools.evaluate.run import Wanted  # noqa: PLC0415
        from everydream.tools.evaluate.run import evaluate as judged_by  # noqa: PLC0415
        from everydream.tools.evaluate.show import plain, show  # noqa: PLC0415
        from everydream.tools.grid.values import known  # noqa: PLC0415
        from everydream.tools.models.cli import read_seeds  # noqa: PLC0415

        named = known("--sampler", sampler, get_args(SamplerName)) if sampler is not None else None
        judged, by = judged_by(
            Wanted(
                folders or (), run, model or (), checkpoints, prompts, read_seeds(seeds), steps, guidance, named, width,
                height, clip_skip, features, real or (), training or (), scorer, out,
            )
        )  # fmt: skip
        show(judged, Console())
        if json_file is not None:
            text = json.dumps(plain(judged, by), indent=1, ensure_ascii=False)
            json_file.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
            print(f"Numbers written to {json_file}")
