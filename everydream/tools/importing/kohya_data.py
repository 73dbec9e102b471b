"""kohya's folders and data-set TOMLs as sources of ours.

train_data_dir, reg_data_dir      folders of folders named 40_tok class: captions: kohya
datasets, subsets                 each subset a source; num_repeats and class_tokens stand in the TOML, and the
                                  folder's name counts for nothing there
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everydream.data.captions import index_siblings
from everydream.data.kohya import parse_folder
from everydream.data.texts import normalise
from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.keys import Keys, Levels
from everydream.tools.importing.kohya_shared import (
    FOR_ALL,
    area_side,
    put_for_all,
    put_resolutions,
    repeat_for_resolutions,
    sides_of,
)
from everydream.tools.importing.kohya_tables import MISSING, NEEDLESS, NEUTRAL
from everydream.tools.importing.validating import put_kohya_validation
from pictures.decode import image_extensions

_ARGUMENTS = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
_VISITS = {
    "dropout": "caption_dropout_rate",
    "shuffle_tags": "shuffle_caption",
    "keep_tags": "keep_tokens",
    "flip_p": "flip_aug",
}
_SEPARATORS = {"keep_tokens_separator": "|||", "secondary_separator": ";;;", "caption_separator": ","}


def put_data(draft: Draft, keys: Keys, general: Keys, datasets: list[Keys], file: Path) -> None:
    """Set the sources and what holds for all images; `keys` are the run's, from which data sets inherit."""
    first = Levels([*datasets[:1], general, keys], _ARGUMENTS)
    _put_sizes(draft, first, keys)
    common = _visits(Levels([general, keys], _ARGUMENTS), draft)
    for name, value in common.items():
        draft.put(f"data.{name}" if name == "flip_p" else f"captions.{name}", value, _VISITS[name])
    kept = put_resolutions(draft, general, datasets, keys)
    subsets: list[Levels] = []
    if datasets:
        for key in ("train_data_dir", "reg_data_dir", "in_json"):
            if keys.text(key, None) is not None:
                draft.tell("idle", key)
        subsets = _add_subsets(draft, keys, general, kept, common, file)
        repeat_for_resolutions(draft, len(datasets) if len(kept) < len(datasets) else 1)
    else:
        _add_folders(draft, keys)
    tables = subsets or [Levels([general, keys], _ARGUMENTS)]
    put_for_all(draft, tables)
    put_kohya_validation(keys, draft, tables, file)
    weight = keys.number("prior_loss_weight", 1.0)
    if draft.has_class_images:
        draft.put("class_images.prior_weight", weight, "prior_loss_weight")
    elif keys.given("prior_loss_weight"):
        draft.tell("idle", "prior_loss_weight")
    if not draft.sources and not draft.problems:
        keys.problem("train_data_dir", "missing, and neither dataset_config nor in_json says of any images")
    for table in (general, *kept):
        table.tell_rest(NEEDLESS, MISSING, NEUTRAL)


def _put_sizes(draft: Draft, levels: Levels, keys: Keys) -> None:
    sides = sides_of(levels.any("resolution"), keys)
    side = area_side(sides)
    if sides[0] != sides[1]:
        draft.tell("changed", f"resolution: {sides[0]} x {sides[1]}; here buckets have the area of {side} x {side}.")
    draft.put("data.resolution", side, "resolution")
    draft.put("data.crop", "random" if levels.flag("random_crop", False) else "center", "random_crop")
    if levels.flag("enable_bucket", False):
        step = levels.whole("bucket_reso_steps", 64)
        draft.put("data.bucket_step", step, "bucket_reso_steps, with enable_bucket")
    elif sides[0] == sides[1]:
        draft.put("data.max_aspect", 1.0, "no enable_bucket: squares only; without this line images keep their shape")
    draft.put("train.batch_size", levels.whole("batch_size", 1), "train_batch_size")
    for key, built_in in _SEPARATORS.items():
        given = levels.text(key, None)
        if given not in (None, built_in):
            draft.tell("missing", f"{key}: {given!r}; here it is {built_in!r}, with captions: kohya.")


def _visits(levels: Levels, draft: Draft) -> dict[str, Any]:
    """Return what happens to each image and caption on a visit."""
    return {
        "dropout": levels.number("caption_dropout_rate", 0.0),
        "shuffle_tags": levels.flag("shuffle_caption", False),
        "keep_tags": levels.whole("keep_tokens", 0),
        "flip_p": 0.5 if levels.flag("flip_aug", False) else 0.0,
    }


def _add_folders(draft: Draft, keys: Keys) -> None:
    """Add what a run names without a data-set TOML."""
    folder, class_folder = keys.text("train_data_dir", None), keys.text("reg_data_dir", None)
    captions = keys.text("in_json", None)
    repeats = keys.whole("dataset_repeats", 1)
    if captions is not None:
        _add_metadata(draft, captions, folder, "in_json", {} if repeats == 1 else {"repeats": repeats})
    elif folder is not None:
        draft.sources.append({"path": folder, "captions": "kohya"})
    if class_folder is not None and captions is None:
        draft.sources.append({"path": class_folder, "role": "class", "captions": "kohya"})
    elif class_folder is not None:
        draft.tell("missing", f"reg_data_dir: {class_folder}; not used along with in_json, there as here.")
    _tell_extension(draft, keys.text("caption_extension", keys.text("caption_extention", None)))


def _add_metadata(draft: Draft, path: str, folder: str | None, key: str, more: dict[str, Any]) -> None:
    draft.sources.append({"path": path, "captions": "manifest", **more})
    if folder is None or Path(path).parent != Path(folder):
        draft.tell(
            "changed",
            f"{key}: its images are looked for beside {path}; put it into their folder, if its paths are not absolute.",
        )


def _add_subsets(
    draft: Draft, keys: Keys, general: Keys, datasets: list[Keys], common: dict[str, Any], file: Path
) -> list[Levels]:
    """Add the subsets' sources, and return the tables that count for each."""
    counting: list[Levels] = []
    for number, dataset in enumerate(datasets):
        subsets = dataset.tables("subsets")
        before = len(draft.sources)
        for subset in subsets:
            levels = Levels([subset, dataset, general, keys], _ARGUMENTS)
            source = _subset(draft, subset, levels, file)
            own = {name: value for name, value in _visits(levels, draft).items() if value != common[name]}
            draft.sources += [{**source, **own}] if source else []
            for key in (*FOR_ALL.values(), "validation_split"):
                levels.any(key)  # set for all images together
            counting.append(levels)
            subset.tell_rest(NEEDLESS, MISSING, NEUTRAL)
        if not subsets:
            dataset.problem("subsets", "missing, so this data set has no images")
        if len(datasets) > 1:
            _pair(draft, before, number)
            _tell_other_sizes(draft, dataset, datasets[0])
    return counting


def _pair(draft: Draft, before: int, number: int) -> None:
    """Let the class images of one data set follow its own training images only, as there."""
    added = draft.sources[before:]
    for place, source in enumerate(added):
        source["name"] = f"{number + 1}.{place + 1} {Path(source['path']).name}".strip()
    names = [source["name"] for source in added if source.get("role") != "class"]
    for source in added:
        if source.get("role") == "class" and names:
            source["pairs_with"] = names


def _tell_other_sizes(draft: Draft, dataset: Keys, first: Keys) -> None:
    for key in ("resolution", "batch_size", "enable_bucket", "bucket_reso_steps"):
        if dataset.any(key) not in (None, first.any(key)):
            draft.tell(
                "missing", f"{dataset.name(key)}: {dataset.any(key)!r}; all images have that of the first data set."
            )


def _subset(draft: Draft, subset: Keys, levels: Levels, file: Path) -> dict[str, Any]:
    """Return the source of one subset, or nothing where it names no folder."""
    folder, metadata = subset.text("image_dir", None), subset.text("metadata_file", None)
    is_class, tokens = subset.flag("is_reg", False), subset.text("class_tokens", None)
    repeats = levels.whole("num_repeats", 1)
    _tell_extension(draft, levels.text("caption_extension", None))
    if metadata is not None:
        _add_metadata(
            draft, metadata, folder, subset.name("metadata_file"), {} if repeats == 1 else {"repeats": repeats}
        )
        return {}
    if folder is None:
        subset.problem("image_dir", "missing; say which folder holds the images")
        return {}
    rule = _caption_rule(draft, subset.name("image_dir"), folder, tokens, find(folder, file))
    named = parse_folder(_name_of(folder)) if rule.get("captions") == "kohya" else None
    source: dict[str, Any] = {"path": folder}
    if rule.get("captions") == "everydream" and levels.flag("enable_wildcard", False):
        source["lines"] = "choose"
    if is_class:
        # Class images are drawn as often as training images, there as here, whatever their repeats are.
        source["role"] = "class"
        if repeats != 1:
            draft.tell("needless", f"{subset.name('num_repeats')}: class images are drawn as often as training images.")
    elif repeats != (named.repeats if named else 1):
        source["repeats"] = repeats / named.repeats if named else repeats
    return {**source, **rule}


def _caption_rule(draft: Draft, key: str, folder: str, tokens: str | None, found: Path | None) -> dict[str, Any]:
    """Return the rule that gives the captions of a subset: a sidecar's, else class_tokens.

    Our own rules take the folder's or the file's name where a sidecar is missing, so it depends on what is there.
    """
    named = parse_folder(_name_of(folder))
    if named is not None and named.repeats > 0 and (tokens is None or normalise(tokens) == named.caption):
        return {"captions": "kohya"}
    bare, captioned = _captioned(found)
    if tokens is not None and not captioned:
        return {"label": tokens}
    if tokens is not None and bare:
        draft.tell(
            "changed",
            f"{key}: {folder}: {bare} of {bare + captioned} images have no caption file; there they are "
            f"captioned {tokens!r}, here by their names. Give them caption files.",
        )
    elif bare:
        draft.tell(
            "changed",
            f"{key}: {folder}: {bare} images have neither caption file nor class_tokens; there their "
            "captions are empty, here their names.",
        )
    elif found is None:
        draft.tell("changed", f"{key}: {folder}: not there, so taken to hold a caption file for every image.")
    return {"captions": "everydream"}


def _captioned(folder: Path | None) -> tuple[int, int]:
    """Return how many images right in a folder have no caption file, and how many have one."""
    names = [path.name for path in _files(folder)]
    siblings = index_siblings(names)
    images = [name.rpartition(".") for name in names if Path(name).suffix.lower() in image_extensions()]
    captioned = sum((stem, "caption") in siblings or (stem, "txt") in siblings for stem, _, _ in images)
    return len(images) - captioned, captioned


def _files(folder: Path | None) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file()) if folder and folder.is_dir() else iter(())


def _tell_extension(draft: Draft, extension: str | None) -> None:
    if extension is not None and extension.lower() not in (".txt", ".caption", "txt", "caption"):
        draft.tell(
            "missing", f"caption_extension: {extension}; caption files end in .caption or .txt here, so rename them."
        )


def _name_of(folder: str) -> str:
    return folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
