"""What kohya's data sets have each by itself and all images alike here: resolutions, and what is for all."""

from typing import Any

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.keys import Keys, Levels

FOR_ALL = {
    "captions.tag_dropout": "caption_tag_dropout_rate",
    "captions.wildcards": "enable_wildcard",
    "data.masks": "alpha_mask",
}
"""What subsets can have each by itself there, and all images alike here."""
_SIZES = ("batch_size", "enable_bucket", "bucket_reso_steps")


def put_for_all(draft: Draft, subsets: list[Levels]) -> None:
    """Set what holds for all images, and say where subsets differ in it."""
    found: dict[str, list[Any]] = {
        "captions.tag_dropout": [levels.number("caption_tag_dropout_rate", 0.0) for levels in subsets],
        "captions.wildcards": [levels.flag("enable_wildcard", False) for levels in subsets],
        "data.masks": ["alpha" if levels.flag("alpha_mask", False) else "none" for levels in subsets],
    }
    for ours, values in found.items():
        wanted = max(values) if ours != "data.masks" else min(values)  # "alpha" comes before "none"
        if wanted in (0.0, False, "none"):
            continue
        draft.put(ours, wanted, FOR_ALL[ours])
        if len(set(values)) > 1:
            draft.tell("changed", f"{FOR_ALL[ours]}: not in all subsets there; here {ours} is for all images.")
    if draft.settings_at("data.masks") == "alpha":
        draft.tell(
            "changed",
            "alpha_mask: here the loss is the mean over the mask's area, there over the whole picture, so that small "
            "masks count little; what lies under full transparency is data.background here.",
        )


def put_resolutions(draft: Draft, general: Keys, datasets: list[Keys], keys: Keys) -> list[Keys]:
    """Set data.also_at where data sets hold the same subsets at different resolutions; return those to add.

    Each resolution then has the same part of an epoch, there and here. Other data sets are added as they are.
    """
    sizes = [area_side(sides_of(Levels([dataset, general, keys], {}).any("resolution"), keys)) for dataset in datasets]
    alike = all(dataset.equals(datasets[0], ("resolution", *_SIZES)) for dataset in datasets)
    if len(datasets) < 2 or len(set(sizes)) < len(sizes) or not alike:
        return datasets
    others = [{"resolution": size, "share": 1 / len(sizes)} for size in sizes[1:]]
    draft.put("data.also_at", others, "data sets of the same subsets")
    draft.tell(
        "changed",
        "datasets: of the same subsets, so they are one with data.also_at. Each resolution has the same part of every "
        "epoch, there and here; an image meets each as often in every epoch there, over several epochs here.",
    )
    for dataset in datasets[1:]:
        for key in _SIZES:
            if dataset.any(key) != datasets[0].any(key):
                draft.tell("missing", f"{dataset.name(key)}: {dataset.any(key)!r}; that of the first data set counts.")
    return datasets[:1]


def repeat_for_resolutions(draft: Draft, resolutions: int) -> None:
    """Let each image be drawn as often in all as its data sets do together; class images follow."""
    for source in draft.training_sources():
        if resolutions > 1:
            source["repeats"] = source.get("repeats", 1) * resolutions


def area_side(sides: tuple[int, int]) -> int:
    """Return the side of the square of an area, in eights."""
    return sides[0] if sides[0] == sides[1] else round((sides[0] * sides[1]) ** 0.5 / 8) * 8


def sides_of(value: Any, keys: Keys) -> tuple[int, int]:
    """Return width and height of `512`, `"512,768"` or `[512, 768]`; 512 if none is given."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value or 512]
    try:
        sides = [int(part) for part in parts]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2) or min(sides, default=0) < 1:
        keys.problem("resolution", f"should be one or two whole numbers (it is {value!r})")
        return 512, 512
    return sides[0], sides[-1]
