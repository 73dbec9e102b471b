"""Captions by a model, batch after batch; what was written is kept, so a run that was killed goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from everydream.data.settings import DataSettings
from everydream.data.texts import BadText
from everydream.errors import ConfigError
from everydream.tools.captioning.items import Item, own_sidecars
from everydream.tools.captioning.model import Captioner, first_line
from everydream.tools.captioning.prompts import check_template, fill, hints_of
from everydream.tools.captioning.sidecars import why_kept
from everydream.tools.files import Rejected, write_bytes
from pictures.decode import BadImage, opened, upright_rgb

_MAX_MEGAPIXELS = DataSettings.model_fields["max_megapixels"].default


class Job(NamedTuple):
    """An image to caption."""

    path: str
    sidecar: Path
    """Where its caption goes."""
    prompt: str


@dataclass
class Captioned:
    """What became of the images."""

    captions: dict[str, str] = field(default_factory=dict)
    """Image -> caption."""
    kept: list[Rejected] = field(default_factory=list)
    """Images that have a caption, and where."""
    rejected: list[Rejected] = field(default_factory=list)


def plan_jobs(
    root: Path, items: Sequence[Item], out: Path | None, prompt: str, overwrite: bool
) -> tuple[list[Job], Captioned]:
    """Return what is to be captioned, and what is not and why. Raises ConfigError if the prompt asks for the unknown.

    With `out` the sidecars go there, in folders like those of the images, and those beside the images only give hints.
    """
    done = Captioned()
    jobs: list[Job] = []
    hints = [hints_of(root, item) for item in items]
    check_template(prompt, hints)
    own = own_sidecars([item.picture for item in items])
    for item, hint in zip(items, hints, strict=True):
        path = item.picture.path
        try:
            reason = _why_kept(root, item, own.get(path), out, overwrite)
            if reason:
                done.kept.append(Rejected(path, reason))
            else:
                jobs.append(Job(path, (out or root) / own[path], fill(prompt, hint)))
        except BadText as error:
            done.rejected.append(Rejected(path, str(error)))
    return jobs, done


def _why_kept(root: Path, item: Item, own: str | None, out: Path | None, overwrite: bool) -> str:
    if out is None or own is None:
        # A .json comes after a .txt, so what it says may be said better.
        is_hint = item.origin.lower().endswith(".json")
        return why_kept(root, item._replace(origin="") if is_hint else item, own, overwrite)
    return f"{out / own} is there already" if (out / own).exists() and not overwrite else ""


def caption_all(
    root: Path, jobs: Sequence[Job], caption: Captioner, batch_size: int, write: bool, done: Captioned
) -> Iterator[int]:
    """Caption the images, add what became of them to `done`, and yield how many are done after each batch.

    Each sidecar is written whole when its batch is done. Raises ConfigError if a batch does not fit into memory.
    """
    for start in range(0, len(jobs), batch_size):
        batch: list[Job] = []
        images: list[Image.Image] = []
        for job in jobs[start : start + batch_size]:
            try:
                with opened(root / job.path, _MAX_MEGAPIXELS) as image:
                    images.append(upright_rgb(image))
                batch.append(job)
            except BadImage as error:
                done.rejected.append(Rejected(job.path, str(error)))
        for job, text in _said(caption, images, batch, done.rejected):
            _keep(job, text, write, done)
        yield min(start + batch_size, len(jobs))


def _said(
    caption: Captioner, images: Sequence[Image.Image], batch: Sequence[Job], rejected: list[Rejected]
) -> list[tuple[Job, str]]:
    """Return what the model says of each image; images that it cannot take are rejected."""
    from torch import OutOfMemoryError  # noqa: PLC0415 - the model has loaded it

    if not batch:
        return []
    try:
        return list(zip(batch, caption(images, [job.prompt for job in batch]), strict=True))
    except OutOfMemoryError as error:
        raise ConfigError(
            f"A batch of {len(batch)} images does not fit into the device's memory. Lower --batch-size; the captions "
            "so far are kept, and the same command goes on."
        ) from error
    except Exception as error:  # whatever a model's own code raises on an image of a single pixel, say
        if len(batch) == 1:
            rejected.append(Rejected(batch[0].path, f"the model cannot take it: {first_line(error)}"))
            return []
    return [pair for image, job in zip(images, batch, strict=True) for pair in _said(caption, [image], [job], rejected)]


def _keep(job: Job, text: str, write: bool, done: Captioned) -> None:
    if not text:
        done.rejected.append(Rejected(job.path, "the model said nothing about it"))
        return
    if write:
        write_bytes(job.sidecar, f"{text}\n".encode())
    done.captions[job.path] = text
