"""The model card of an export, in the hub's format: what it was made of, and how it is used.

The head says nothing that is not known: a base model only by its hub id, a licence never, for whoever publishes the
model decides on it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from everydream.formats.provenance import About
from everydream.models.family import Family

_TAGS = {"full": (), "dreambooth": ("dreambooth",), "lora": ("lora",), "textual_inversion": ("textual_inversion",),
         "hypernetwork": ("hypernetwork",)}  # fmt: skip
_MADE = {
    "full": "A fine-tuning of", "dreambooth": "A DreamBooth fine-tuning of", "lora": "An adapter for",
    "textual_inversion": "New words for", "hypernetwork": "A hypernetwork for",
}  # fmt: skip
_USE = {
    "full": "Web UIs: put the file into `models/Stable-diffusion` (ComfyUI: `checkpoints`).",
    "lora": "Web UIs: put the file into `models/Lora`, and `<lora:{name}:1>` into the prompt (ComfyUI: `loras`).",
    "textual_inversion": "Web UIs: put the file into `embeddings`; the word to type is the file's name.",
    "hypernetwork": "Web UIs: put the file into `models/hypernetworks`, and `<hypernet:{name}:1>` into the prompt.",
}
_FOLDER_USE = {
    "full": 'diffusers: `DiffusionPipeline.from_pretrained("{name}")`.',
    "lora": 'diffusers: `pipeline.load_lora_weights("{name}")`.',
}


def model_card(family: Family, path: Path, about: About) -> str:
    """Return the card of the export at `path`, a Markdown text with a YAML head."""
    method, base = about["method"], about["base"]
    head = ModelCardData(
        base_model=base["hub_id"],
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "everydream", family.architecture, *_TAGS[method]],
    )
    lines = [
        f"# {about['project']}",
        "",
        f"{_MADE[method]} {base['name']}, made with EveryDream {about['trainer']['everydream']}.",
        *_trained(about),
        *_prompting(path, about),
        *_licences(about["data"]["sources"]),
        *_made_with(about),
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _trained(about: About) -> Iterator[str]:
    yield from ("", "## Trained on", "", "| images | of them | draws an epoch | role |", "|---|---:|---:|---|")
    for source in about["data"]["sources"]:
        role = source["role"].replace("_", " ")
        yield f"| {_cell(source['name'])} | {source['images']} | {source['draws_per_epoch']} | {role} |"
    yield ""
    yield (
        f"At {about['resolution']} px: step {about['step']} of {about['steps_planned']} planned, "
        f"{about['images_seen']} images seen in {about['epoch']} whole epochs; the {about['weights']} weights."
    )


def _prompting(path: Path, about: About) -> Iterator[str]:
    method = "full" if about["method"] == "dreambooth" else about["method"]
    use = _FOLDER_USE if path.is_dir() else _USE
    yield from ("", "## How to use it", "", use[method].format(name=path.stem if path.is_file() else path.name))
    if words := about["words"]:
        yield from ("", f"New words: {', '.join(f'`{word}`' for word in words)}.")
    if examples := about.get("examples"):
        yield from (
            "",
            "Some of the captions that it was taught:",
            "",
            *(f"- {_cell(caption)}" for caption in examples),
        )


def _licences(sources: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("", "## Licences of the training images", "")
    for source in sources:
        known = ", ".join(f"{_cell(licence)} ({number})" for licence, number in source["licences"].items())
        yield f"- {_cell(source['name'])} ({source['role'].replace('_', ' ')}): {known or 'no images'}"
    yield from ("", "“unknown” are images whose folder says nothing of a licence. The model's own licence follows from")
    yield "the base model's, and is for whoever publishes it to say."


def _made_with(about: About) -> Iterator[str]:
    base, trainer = about["base"], about["trainer"]
    yield from ("", "## What made it", "")
    yield f"- Base model: {base['name']}, SHA-256 {base['sha256'] or 'unknown'} ({base['of']})"
    yield f"- Data set: fingerprint {about['data']['fingerprint']}"
    yield "- Versions: " + ", ".join(f"{name} {number}" for name, number in trainer.items())
    config: Mapping[str, Any] | None = about.get("config")
    if config is not None:
        yield "- Settings: in the file's own metadata; `everydream info` prints them"


def _cell(text: str) -> str:
    """Return a text that is one line, and no table's end."""
    return " ".join(str(text).split()).replace("|", "\\|")
