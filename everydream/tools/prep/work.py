"""The table of contents of a prep: photo after photo, each whole or rejected with its reason."""

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from everydream.data.folders import FolderSettings, Value
from everydream.data.texts import BadText
from everydream.data.walking import show
from everydream.tools.files import Picture, Rejected, list_pictures, listing, require_apart
from everydream.tools.prep.boxes import read_boxes
from everydream.tools.prep.faces import find_detector
from everydream.tools.prep.naming import Names, stem_of
from everydream.tools.prep.outbox import REPORT, Outbox
from everydream.tools.prep.photos import Beside, FindFaces, Photo, open_photo, plan_photo, read_beside, sidecars
from everydream.tools.prep.pixels import encode, render
from everydream.tools.prep.settings import PrepSettings
from everydream.tools.prep.sheet import ContactSheet
from everydream.tools.progress import counting
from pictures.decode import BadImage


def prepare(source: Path, out: Path, settings: PrepSettings, boxes: Path | None = None) -> list[Photo]:
    """Make training images of the photos in `source` and return what became of each.

    `out` is replaced whole, if an earlier prep made it. Raises EveryDreamError before anything in it is touched, and
    DiskError when it cannot be written.
    """
    listed = list_pictures(source)
    require_apart(source, out)
    find_faces = _face_finder(source, listed.pictures, settings, boxes)
    work = _Work(source, Outbox(out), settings, Names(listed.folders))
    photos = [Photo(item.path, "rejected", item.reason) for item in listed.rejected]
    counts = Counter(photo.outcome for photo in photos)
    with counting("Preparing photos", len(listed.pictures)) as show_progress:
        for number, picture in enumerate(listed.pictures, 1):
            photos.append(work.photo(picture, find_faces))
            counts[photos[-1].outcome] += 1
            show_progress(number, ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items()))
    work.finish(sorted(photos, key=lambda photo: photo.path))
    return photos


def _face_finder(source: Path, pictures: list[Picture], settings: PrepSettings, boxes: Path | None) -> FindFaces | None:
    """Return how faces are found: in the user's boxes, by a detector, or not at all."""
    if boxes is not None:
        known = read_boxes(boxes, source, pictures)
        return lambda path, _: known.get(path, [])
    if not settings.person:
        return None
    detect = find_detector()
    return lambda _, image: detect(image)


class _Work:
    """What the photos of one prep have in common."""

    def __init__(self, source: Path, outbox: Outbox, settings: PrepSettings, names: Names) -> None:
        self._source = source
        self._outbox = outbox
        self._settings = settings
        self._names = names
        self._folders = FolderSettings(source)
        self._sheet = ContactSheet(outbox.write)
        self._with_settings: set[str] = set()

    def photo(self, picture: Picture, find_faces: FindFaces | None) -> Photo:
        """Make the images of one photo; whatever is wrong with it is the reason of its rejection."""
        photo = Photo(picture.path)
        try:
            beside = read_beside(self._source, picture, self._folders)
            image = open_photo(self._source / picture.path)
            plan_photo(photo, image, find_faces, self._settings)
            if photo.frames:
                self._write(photo, picture, image, beside)
        except (BadImage, BadText) as error:
            photo.left_out("rejected", show(str(error)))
        return photo

    def _write(self, photo: Photo, picture: Picture, image: Image.Image, beside: Beside) -> None:
        """Write the crops of a photo: one to its folder, several to one of their own, as a group."""
        stem = stem_of(picture.name)
        folder = picture.folder
        own: dict[str, Value] = {}
        if len(photo.frames) > 1:
            stem = self._names.take(folder, stem)
            folder = posixpath.join(folder, stem)
            own = {"group": folder}  # with its folder, so that photos of one name stay apart
        crops = [render(image, frame.box, frame.label, self._settings) for frame in photo.frames]
        # All that goes along is read before the first crop is written, so that a photo is there whole or not at all.
        names = [
            f"{self._names.take(folder, f'{stem}_{frame.label}' if frame.label else stem)}.{self._settings.format}"
            for frame in photo.frames
        ]
        along = [sidecars(self._source, picture, beside.caption, name) for name in names]
        self._write_settings(folder, {**{key: setting.value for key, setting in beside.settings.items()}, **own})
        for name, crop, texts in zip(names, crops, along, strict=True):
            for sidecar, content in texts.items():
                self._outbox.write(posixpath.join(folder, sidecar), content)
            photo.files.append(posixpath.join(folder, name))
            self._outbox.write(photo.files[-1], encode(crop, self._settings.format))
        self._sheet.add(picture.path, image, photo.frames, crops)

    def _write_settings(self, folder: str, values: Mapping[str, Value]) -> None:
        """Write what counts in an output folder, once; the folders above it have no say."""
        if values and folder not in self._with_settings:
            self._with_settings.add(folder)
            text = yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False)
            self._outbox.write(posixpath.join(folder, "local.yaml"), text.encode("utf-8"))

    def finish(self, photos: list[Photo]) -> None:
        """Write the last page of the contact sheet and the report."""
        pages = self._sheet.close()
        self._outbox.report({
            "finished": True,
            "settings": self._settings.model_dump(),
            "contact_sheet": pages,
            "photos": [_plain(photo) for photo in photos],
        })  # fmt: skip


def _plain(photo: Photo) -> dict[str, Any]:
    found = asdict(photo)
    del found["frames"], found["files"]
    found["crops"] = [
        {"file": file, "label": frame.label, "box": list(frame.box)}
        for file, frame in zip(photo.files, photo.frames, strict=True)
    ]
    return found


def describe(photos: list[Photo], out: Path) -> str:
    """Return the summary: counts by outcome, the files concerned with their reasons, and where the results are."""
    counts = Counter(photo.outcome for photo in photos)
    num_files = sum(len(photo.files) for photo in photos)
    parts = [f"{len(photos):,} photos: " + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())]
    parts[0] += f"; {num_files:,} images made"
    for outcome in sorted(counts):
        if outcome != "prepared":
            named = [Rejected(photo.path, photo.reason) for photo in photos if photo.outcome == outcome]
            parts.append(f"{outcome} ({len(named):,}):{listing(named)}")
    if noted := [Rejected(photo.path, "; ".join(photo.notes)) for photo in photos if photo.files and photo.notes]:
        parts.append(f"prepared, with a note ({len(noted):,}):{listing(noted)}")
    sheet = f"Contact sheet: {out / '.prep' / 'contact_sheet.jpg'}\n" if num_files else ""
    return "\n".join(parts) + f"\n{sheet}Every photo with its boxes: {out / REPORT}"
