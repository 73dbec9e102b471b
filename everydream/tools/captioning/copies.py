"""Copies of a folder of captioned images under other names, each image with what belongs to it."""

import posixpath
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from everydream.data.captions import caption_from_name, parse_json_sidecar, parse_yaml_sidecar
from everydream.data.folders import SETTING_FILES
from everydream.data.texts import decode_text, normalise
from everydream.data.walking import walk
from everydream.errors import DataError
from everydream.formats.atomic import atomic_folder
from everydream.tools.captioning.edits import Edits
from everydream.tools.captioning.items import TEXT_SUFFIXES, Item
from everydream.tools.captioning.names import safe_stem, same_file_key
from everydream.tools.files import Rejected, listing, renamed_sidecars, require_apart, require_new, writing


def names_by_captions(items: Sequence[Item]) -> dict[str, str]:
    """Return a name for each image: its caption, numbered; an image without one keeps its own."""
    counts: dict[str, int] = defaultdict(int)
    names: dict[str, str] = {}
    for picture, caption, _ in items:
        if not caption.variants:
            names[picture.path] = picture.name
            continue
        stem = safe_stem(caption.variants[0])
        key = same_file_key(posixpath.join(picture.folder, stem))
        counts[key] += 1
        names[picture.path] = f"{stem}_({counts[key]}).{picture.name.rpartition('.')[2]}"
    return names


def names_after(edits: Edits, items: Sequence[Item]) -> dict[str, str]:
    """Return each image's name after an edit: what stands before the first `_` is the caption, the rest stays.

    Raises DataError if two images would get one name.
    """
    names: dict[str, str] = {}
    sharing: dict[str, list[str]] = defaultdict(list)
    for picture, _, _ in items:
        stem, _, extension = picture.name.rpartition(".")
        new = edits.names.get(picture.path)
        new_stem = stem if new is None else safe_stem(new) + stem[len(stem.partition("_")[0]) :]
        names[picture.path] = f"{new_stem}.{extension}"
        sharing[same_file_key(posixpath.join(picture.folder, new_stem))].append(picture.path)
    stems = {path: posixpath.splitext(path)[0] for path in names}
    clashes = [
        Rejected(names[paths[0]], " and ".join(paths))
        for paths in sharing.values()
        if len({stems[path] for path in paths}) > 1 and edits.names.keys() & set(paths)
    ]
    if clashes:
        raise DataError(f"Images would get the same name, so nothing is copied:{listing(clashes)}")
    return names


def copy_as(root: Path, out: Path, items: Sequence[Item], names: Mapping[str, str], edits: Edits | None) -> None:
    """Copy images, sidecars and folder settings to a new folder, whole or not at all; sidecars as edited.

    Without edits the names are to say the captions: a text sidecar that says no more is left out. Raises ConfigError
    and DiskError.
    """
    require_apart(root, out)
    require_new(out)
    with writing(out), atomic_folder(out) as partial:
        for folder in walk(root):
            for name in folder.files:
                if name.lower() in SETTING_FILES:
                    _copy(root / folder.path / name, partial / folder.path / name)
        for item in items:
            name = names[item.picture.path]
            target = partial / item.picture.folder / name
            _copy(root / item.picture.path, target)
            for sidecar, content in _sidecars(root, item, name, edits).items():
                target.with_name(sidecar).write_bytes(content)


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _sidecars(root: Path, item: Item, name: str, edits: Edits | None) -> dict[str, bytes]:
    """Return the sidecars of one copy, so that it has its caption, edited or not."""
    texts: dict[str, bytes] = {}
    for sidecar, new_name in renamed_sidecars(item.picture, name).items():
        file = posixpath.join(item.picture.folder, sidecar)
        edited = edits.texts.get(file) if edits is not None else None
        texts[new_name] = (root / file).read_bytes() if edited is None else edited.encode("utf-8")
    if edits is None and item.origin.lower().endswith(TEXT_SUFFIXES) and _is_said_by(name, texts):
        return {sidecar: text for sidecar, text in texts.items() if not sidecar.endswith(TEXT_SUFFIXES)}
    if not item.origin and item.caption.variants:
        caption = item.caption.variants[0] if edits is None else edits.names.get(item.picture.path)
        if caption is not None and caption != caption_from_name(name):
            texts[f"{name.rpartition('.')[0]}.txt"] = f"{caption}\n".encode()
    return texts


def _is_said_by(name: str, texts: Mapping[str, bytes]) -> bool:
    """Whether a name says all that the sidecars say, line for line, so that it can take their place."""
    said = caption_from_name(name)
    for sidecar, content in texts.items():
        text = decode_text(content, sidecar)
        if sidecar.endswith(TEXT_SUFFIXES):
            lines = list(filter(None, map(normalise, text.splitlines())))
            if lines not in ([], [said]):
                return False
        elif (parse_json_sidecar if sidecar.endswith(".json") else parse_yaml_sidecar)(text, sidecar).variants:
            return False
    return True
