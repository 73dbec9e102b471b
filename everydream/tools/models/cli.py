"""The commands on model files."""

from pathlib import Path
from typing import Annotated

import typer

from everydream.errors import ConfigError
from everydream.told import told

_STOPPED = "Stopped; nothing half-written was left."
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the result of an earlier run.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, fp16 or bf16; default: as the model has it.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Out = Annotated[Path, typer.Argument(help="NAME.safetensors, NAME.ckpt, or a name without ending: a diffusers folder.")]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A diffusers folder, .safetensors, .ckpt, or an FSDP run's last.ckpt.")
    ],
    out: Out,
    dtype: Dtype = None,
    config: Annotated[
        str | None, typer.Option(help="Diffusers folder with the configuration of an unusual single file.")
    ] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a model in another format."""
    with told(debug, _STOPPED):
        from everydream.tools.models.convert import convert as run  # noqa: PLC0415

        print("\n".join(run(source, out, _known(dtype), config, overwrite)))


def prune(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint of any trainer, or a last.ckpt.")],
    out: Annotated[Path, typer.Argument(help="NAME.ckpt or NAME.safetensors.")],
    ema: Annotated[str, typer.Option(help="The average of the weights: keep, use in their place, or drop.")] = "drop",
    half: Annotated[bool, typer.Option("--half", help="Floating tensors in half precision.")] = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint's weights without optimizer and other state."""
    with told(debug, _STOPPED):
        from everydream.tools.models.prune import prune as run  # noqa: PLC0415

        if ema not in ("keep", "use", "drop"):
            raise ConfigError(f"--ema is {ema!r}; say keep, use or drop.")
        print("\n".join(run(source, out, ema, half, overwrite)))  # type: ignore[arg-type]


def merge(
    base: Annotated[str, typer.Argument(help="The model: folder, file or hub id.")],
    adapters_and_out: Annotated[
        list[str], typer.Argument(metavar="ADAPTER[:STRENGTH]... OUT", help="Adapters to add, and the result.")
    ],
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Bake LoRA, LoCon, LoHa or LoKr files into a model."""
    with told(debug, _STOPPED):
        from everydream.tools.models.merge import merge as run  # noqa: PLC0415

        *adapters, out = adapters_and_out
        if not adapters:
            raise ConfigError("Say which adapters to add, then the result: everydream merge BASE ADAPTER... OUT")
        print("\n".join(run(base, adapters, Path(out), _known(dtype), overwrite)))


def sample(
    model: Annotated[str, typer.Argument(help="The model: folder, file or hub id.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw.")] = None,
    prompts_file: Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and their grid.")] = Path("samples"),
    seeds: Annotated[str, typer.Option(help="Numbers and ranges: 1,5,10-13.")] = "555",
    guidance: Annotated[list[float] | None, typer.Option(help="Guidance scale; may be repeated. Default: 7.")] = None,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    lora: Annotated[list[str] | None, typer.Option(help="FILE or FILE:STRENGTH; may be repeated.")] = None,
    embedding: Annotated[list[Path] | None, typer.Option(help="Textual-inversion file; may be repeated.")] = None,
    hypernetwork: Annotated[str | None, typer.Option(help="FILE or FILE:STRENGTH.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the model's own size.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the model's own size.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of the sampler.")] = 30,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, euler, dpmpp_2m or unipc; default: the model's usual.")
    ] = None,
    clip_skip: Annotated[int, typer.Option(min=0, max=8, help="As the model was trained.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 4,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Draw pictures: every prompt with every seed at every guidance scale."""
    with told(debug, "Stopped; no picture was written."):
        from typing import get_args  # noqa: PLC0415

        from everydream.sampling.prompts import read_prompts  # noqa: PLC0415
        from everydream.sampling.settings import SamplerName  # noqa: PLC0415

        wanted_prompts = [
            *(prompts or []),
            *(read_prompts(prompts_file, "--prompts") if prompts_file is not None else []),
        ]
        if not wanted_prompts:
            raise ConfigError("Say what to draw: everydream sample MODEL 'a photo of a cat', or --prompts FILE.")
        if sampler is not None and sampler not in get_args(SamplerName):
            raise ConfigError(f"--sampler is {sampler!r}; known are {', '.join(get_args(SamplerName))}.")
        from everydream.tools.models.sample import Wanted  # noqa: PLC0415
        from everydream.tools.models.sample import sample as run  # noqa: PLC0415
        from everydream.tools.progress import counting  # noqa: PLC0415

        wanted = Wanted(
            wanted_prompts, read_seeds(seeds), guidance or [7.0], negative, width, height, steps, sampler, batch_size
        )
        total = len(wanted_prompts) * len(wanted.cells())
        with counting("Drawing", total) as show:
            grid = run(
                model, out, wanted, loras=lora or (), embeddings=embedding or (), hypernetwork=hypernetwork,
                clip_skip=clip_skip, overwrite=overwrite, progress=lambda done, _: show(done, ""),
            )  # fmt: skip
        print(f"{total} pictures in {out}; all together in {grid}")


def read_seeds(text: str) -> list[int]:
    """Return the seeds of `1,5,10-13`. Raises ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or "-" not in part)):
            raise ConfigError(f"--seeds: {part.strip()!r} is neither a number nor a range such as 10-13.")
        if last and int(last) < int(first):
            raise ConfigError(f"--seeds: {part.strip()!r} counts downwards; write the smaller number first.")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


def _known(dtype: str | None) -> str | None:
    if dtype not in (None, "fp32", "fp16", "bf16"):
        raise ConfigError(f"--dtype is {dtype!r}; say fp32, fp16 or bf16.")
    return dtype
