"""The inspection's page from the library's facts: what is off stands among the rest, with everything else of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import PackageLoader

from everydream.data.checking import Record
from everydream.data.drawing import longest_reading
from everydream.data.looks import Looks, Progress
from everydream.models.common.token_reader import TokenReader
from everydream.plan import Planned
from everydream.report.buckets import crop_window
from everydream.report.images import kind_of, length_warnings, most_tokens, size_warnings
from everydream.report.inspection import full_report
from everydream.report.page import page_data, render
from everydream.studio.library import Library
from everydream.types import Rejection


class Snapshot(NamedTuple):
    """The facts of the project at one moment."""

    planned: Planned
    facts: dict[str, Any]
    reader: TokenReader


def take_snapshot(library: Library, cache: Path | None, progress: Progress | None = None) -> Snapshot:
    """Return the facts of the images as the library has them."""
    planned, reader = library.plan(), TokenReader()
    with Looks(cache) as looks:
        return Snapshot(planned, full_report(planned, reader, looks, progress), reader)


def page(library: Library, snapshot: Snapshot, **more: Any) -> str:
    """Return the page of a snapshot; `more` are values of the studio's template."""
    planned, facts = snapshot.planned, snapshot.facts
    data = page_data(planned, facts)
    first = len(data["images"])
    for name in sorted(library.off):
        if isinstance(found := library.found.get(name), Record):
            data["images"].append(_row(found, state_of(library, snapshot, name), data))
    data["off"] = list(range(first, len(data["images"])))
    title = f"{planned.config.project}: studio"
    return render(title, facts, data, None, template="studio.html.jinja",
                  loaders=[PackageLoader("everydream.studio", "")], **more)  # fmt: skip


def _row(found: Record, state: Mapping[str, Any], data: dict[str, Any]) -> list[Any]:
    """Return an image that is off as a row of the page's data."""
    for kind, _ in state["warnings"]:
        if kind not in data["kinds"]:
            data["kinds"].append(kind)
    size, bucket = (found.width, found.height), tuple(state["bucket"])
    if bucket not in data["buckets"]:
        data["buckets"].append(bucket)
    warnings = [[data["kinds"].index(kind), text] for kind, text in state["warnings"]]
    return [
        found.source, found.path, state["caption"], *size, data["buckets"].index(bucket), crop_window(size, bucket), 0,
        state["tokens"], warnings, [], 0,
    ]  # fmt: skip


def states_of(library: Library, snapshot: Snapshot, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a page shows of images that changed."""
    return [state_of(library, snapshot, name) for name in names]


def state_of(library: Library, snapshot: Snapshot, name: str) -> dict[str, Any]:
    """Return an image as it is now; a reason where it is rejected now, or gone."""
    found, is_off = library.found.get(name), name in library.off
    if not isinstance(found, Record):
        reason = found.reason if isinstance(found, Rejection) else "the image is not there any more"
        return {"id": name, "off": is_off, "rejected": reason}
    planned = snapshot.planned

    def count(text: str) -> int:
        return snapshot.reader.counts([text])[0]

    captions, grammar = found.candidate.captions, found.candidate.grammar
    readings = [longest_reading(text, planned.config.captions.wildcards, grammar) for text in captions]
    bucket = _bucket(planned, found)
    warnings = [
        *found.warnings, *size_warnings((found.width, found.height), bucket),
        *length_warnings(readings, count, most_tokens(planned)),
    ]  # fmt: skip
    return {
        "id": name, "off": is_off, "caption": captions[0], "tokens": count(captions[0]), "bucket": bucket,
        "warnings": [[kind_of(text), text] for text in warnings],
    }  # fmt: skip


def _bucket(planned: Planned, found: Record) -> tuple[int, int]:
    """Return the bucket that an image would fall into; its own size where there is no bucket at all."""
    if not len(planned.buckets.sizes):
        return found.width, found.height
    number = planned.buckets.assign(np.array([found.width]), np.array([found.height]), 0)[0]
    width, height = planned.buckets.sizes[int(number)]
    return width, height
