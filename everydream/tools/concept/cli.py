"""`everydream concept`: photos of something new, one command, a file that draws it."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from everydream.errors import ConfigError
from everydream.told import told
from everydream.tools.prep.cli import Faces

_STOPPED = "Stopped. The same command goes on where this one was."


def concept(
    concept_label: Annotated[str, typer.Option(help="What the photos show: 'photo of billhamilton man'.")],
    concept_images_dir: Annotated[Path, typer.Option(help="The photos. Nothing in this folder is touched.")],
    class_label: Annotated[str, typer.Option(help="What it is one of: 'photo of a man'.")],
    class_images_dir: Annotated[
        Path | None, typer.Option(help="Class images of yours, or where made ones are kept; default: in the folder.")
    ] = None,
    class_images: Annotated[int, typer.Option(min=1, help="Class images wanted; missing ones are made.")] = 200,
    person: Annotated[bool, typer.Option("--person", help="Crop around faces first, in growing context.")] = False,
    faces: Annotated[
        Faces, typer.Option(help="With --person: photos that do not show exactly one face, as for prep.")
    ] = Faces.SKIP,
    method: Annotated[
        str, typer.Option(help="full, dreambooth, lora, textual_inversion or hypernetwork; see docs/methods.md.")
    ] = "dreambooth",
    model: Annotated[str, typer.Option(help="Folder, file or hub id.")] = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    out: Annotated[Path | None, typer.Option(help="Folder for everything; default: concepts/<concept label>.")] = None,
    resolution: Annotated[int, typer.Option(min=16, max=4096, help="Side of the square in pixels.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 4,
    skip: Annotated[
        list[str] | None, typer.Option(help="Step to leave out: prepare, class, train, pick or prune; may be repeated.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train anew instead of going on with the last run.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the project's: train.epochs=3 optimizer.lr=2e-6")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Teach a model something new from a few photos: prepare, make class images, train, pick, say how to use it."""
    with told(debug, _STOPPED):
        from everydream.methods.settings import MethodName  # noqa: PLC0415
        from everydream.tools.concept.project import Concept, name_of  # noqa: PLC0415
        from everydream.tools.concept.steps import STEPS, how_to_prompt, teach  # noqa: PLC0415

        skipped = skip or []
        if unknown := [step for step in skipped if step not in STEPS]:
            raise ConfigError(f"--skip {unknown[0]}: no such step; there are {', '.join(STEPS)}.")
        if method not in get_args(MethodName):
            raise ConfigError(f"--method is {method!r}; known are {', '.join(get_args(MethodName))}.")
        if method == "dreambooth" and "class" in skipped:
            raise ConfigError("--skip class: method dreambooth is training with class images. Say --method full.")
        wanted = Concept(
            label=concept_label, photos=concept_images_dir, class_label=class_label, class_photos=class_images_dir,
            num_class=class_images, model=model, method=method, folder=out or Path("concepts") / name_of(concept_label),
            resolution=resolution, batch_size=batch_size, faces=faces.value,
            # A new word changes nothing that the model knows, so there is nothing to preserve.
            class_images="class" not in skipped and method != "textual_inversion",
            overrides=overrides or [],
        )  # fmt: skip
        file = teach(wanted, person, skipped, fresh)
        if file is not None:
            print(how_to_prompt(wanted, file))
