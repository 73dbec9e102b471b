"""The inspection as one HTML file: no network, opens from disk.

Everything but the images is written by the template. The images are data (`page_data`), which `page.js` sorts, filters
and shows; an image's id is its source's name and its path, so a server can speak of the same one. Pictures come apart
(`pictures`: number of an image -> where a browser gets it), so that a server can give addresses instead.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader
from markupsafe import Markup

from everydream.data.looks import Looks
from everydream.data.texts import visible
from everydream.plan import Planned
from everydream.report.buckets import crop_window
from everydream.report.findings import LEVELS
from everydream.report.images import kind_of
from everydream.report.lint import shown_pieces

PICTURE_BYTES = 3_000_000
"""What the pictures of a page may take together, as text."""
_OF_EACH_BUCKET = 6


def page_data(planned: Planned, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `page.js` shows of the images; rows of `images` follow `columns`."""
    index = planned.index
    sizes = sorted({tuple(image["bucket"]) for image in facts["images"]})
    number_of = {size: number for number, size in enumerate(sizes)}
    kinds = sorted({kind_of(text) for image in facts["images"] for text in image["warnings"]})
    clusters: dict[int, list[int]] = {}
    for number, cluster in enumerate(facts["duplicates"]):
        for member in cluster["members"]:
            if member["record"] is not None:
                clusters.setdefault(member["record"], []).append(number)
    rows = []
    for record, (image, tokens) in enumerate(zip(facts["images"], facts["tokens"]["each"], strict=True)):
        size, bucket = (int(index.width_N[record]), int(index.height_N[record])), tuple(image["bucket"])
        rows.append([
            int(index.source_N[record]), image["path"], image["caption"], *size, number_of[bucket],
            crop_window(size, bucket), image["draws"], tokens,
            [[kinds.index(kind_of(text)), text] for text in image["warnings"]], clusters.get(record, []),
            int("held_out" in image),
        ])  # fmt: skip
    record_of = {index.key(record): record for record in range(len(index))}
    return {
        "columns": ["source", "path", "caption", "width", "height", "bucket", "crop", "draws", "tokens", "warnings",
                    "clusters", "held_out"],
        "sources": list(index.names), "buckets": sizes, "kinds": kinds, "images": rows, "most": facts["tokens"]["most"],
        "findings": [[record_of[i] for i in finding["images"] if i in record_of] for finding in facts["findings"]],
        "clusters": [[m["record"] for m in c["members"] if m["record"] is not None] for c in facts["duplicates"]],
        "samples": samples(rows),
    }  # fmt: skip


def samples(rows: Sequence[Sequence[Any]]) -> dict[int, list[int]]:
    """Return a few images of each bucket, those that lose most to the crop first."""
    by_bucket: dict[int, list[int]] = {}
    for record, row in enumerate(rows):
        by_bucket.setdefault(row[5], []).append(record)
    return {
        bucket: sorted(records, key=lambda record: (rows[record][6][2] * rows[record][6][3], record))[:_OF_EACH_BUCKET]
        for bucket, records in by_bucket.items()
    }


def embedded_pictures(
    planned: Planned, data: Mapping[str, Any], looks: Looks, most_bytes: int = PICTURE_BYTES
) -> dict[int, str]:
    """Return small pictures of images as data: addresses, of as many as fit.

    First those in clusters, samples of buckets and findings, then the others, spread evenly.
    """
    first = [*(r for c in data["clusters"] for r in c), *(r for some in data["samples"].values() for r in some)]
    first += [record for finding in data["findings"] for record in finding]
    stride = max(1, len(data["images"]) // 256)
    spread = [record for start in range(stride) for record in range(start, len(data["images"]), stride)]
    found: dict[int, str] = {}
    left = most_bytes
    for record in dict.fromkeys([*first, *spread]):
        jpeg = looks.page(planned.index.file(record))
        if jpeg is None:
            continue
        found[record] = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        left -= len(found[record])
        if left <= 0:
            break
    return found


def render(
    title: str, facts: Mapping[str, Any], data: Mapping[str, Any], pictures: Mapping[int, str] | None, *,
    template: str = "page.html.jinja", loaders: Sequence[BaseLoader] = (), **more: Any,
) -> str:  # fmt: skip
    """Return the page. Whatever captions and file names hold is shown as text.

    A server has a template of its own, found by `loaders`, which extends this one, and gives `more` to it; without
    `pictures` the script asks it for them.
    """
    loader = ChoiceLoader([*loaders, PackageLoader("everydream.report", "")])
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": visible, "pieces": shown_pieces, "percent": lambda share: f"{100 * share:.1f} %",
    }  # fmt: skip
    style, script = _file("page.css"), _file("page.js")
    return environment.get_template(template).render(
        title=title, facts=facts, data=data, levels=LEVELS,
        num_pictures=len(data["images"] if pictures is None else pictures),
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script),
        content=_json({**data, "pictures": pictures}), **more,
    )  # fmt: skip


def _json(value: object) -> Markup:
    """Return JSON that can stand inside a script element, in ASCII, so that half characters survive."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _hash(text: str) -> str:
    """Return what a content security policy calls an inline element by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return files("everydream.report").joinpath(name).read_text(encoding="utf-8")
