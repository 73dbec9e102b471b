"""The review as one HTML file, in the dress of the inspection: no network, opens from disk."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from everydream.data.looks import Looks
from everydream.evaluation.judging import points_of
from everydream.formats.atomic import atomic_file
from everydream.review.charts import Drawn, drawn, write_charts
from everydream.review.history import History, read_history
from everydream.review.verdict import Verdict, verdict

PAGE = "verdict.html"
STYLES = ("everydream.report", "everydream.review")
"""Rooms whose page.css the page wears."""
_SHOWN = 12
_GRID_WIDTH = 1200


def write_review(run: Path) -> Verdict:
    """Write verdict.json, verdict.html, charts.svg and charts.png into a run folder; return the verdict."""
    history = read_history(run)
    found = verdict(history)
    charts = drawn(history)
    write_charts(run, charts)
    with Looks() as looks:
        page = review_page(history, found, looks, charts)
    for name, text in (("verdict.json", json.dumps(found.plain(), ensure_ascii=False, indent=1)), (PAGE, page)):
        with atomic_file(run / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return found


def review_page(history: History, found: Verdict, looks: Looks | None, charts: Sequence[Drawn]) -> str:
    """Return the page of a run; without `looks` its images have names and no pictures."""
    # A server puts the same body into a page of its own.
    environment = Environment(loader=PackageLoader("everydream.review", ""), autoescape=True)
    return environment.get_template("page.html.jinja").render(
        **review_facts(history, found, looks, charts),
        style=Markup("".join((files(room) / "page.css").read_text(encoding="utf-8") for room in STYLES)),
    )


def review_facts(
    history: History, found: Verdict, looks: Looks | None, charts: Sequence[Drawn] | None = None
) -> dict[str, Any]:
    """Return what the page shows, for a server too; the charts are drawn if they are not given."""
    paths = image_paths(history)
    return {
        "history": history,
        "verdict": found,
        "title": f"{history.config.get('project', 'run')}: {history.run.name}",
        "charts": [(chart, Markup(svg)) for chart, svg in (drawn(history) if charts is None else charts)],
        "points": points_of(history.looks),
        "ledger": {
            "Loss above the others'": _entries(history.ledger.get("high", []), "excess", paths, looks),
            "Loss that fell furthest": _entries(history.ledger.get("fallen", []), "fallen", paths, looks),
        },
        "grids": {
            name: _grid(pictures[-1])
            for name, folder in (("Control pictures", "control"), ("Samples", "samples"))
            if (pictures := history.pictures(folder))
        },
    }


def image_paths(history: History) -> dict[str, Path]:
    """Return where the sources of the run lie, by name."""
    return {source["name"]: Path(source["root"]) for source in history.plan.get("sources", [])}


def _entries(
    entries: Sequence[Mapping[str, Any]], what: str, roots: Mapping[str, Path], looks: Looks | None
) -> list[dict[str, Any]]:
    """Return the first entries with their pictures as data: addresses, where one was looked at."""
    found = []
    for entry in entries[:_SHOWN]:
        source, _, path = entry["key"].partition("/")
        file = roots.get(source, Path()) / path
        picture = None
        if looks is not None and source in roots and file.is_file():
            looks.see([file])
            picture = looks.page(file)
        found.append({**entry, "value": entry[what], "picture": _address(picture, "jpeg") if picture else None})
    return found


def _grid(path: Path) -> str:
    """Return a grid as a data: address, small enough for a page."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((_GRID_WIDTH, 10 * _GRID_WIDTH))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
    return _address(buffer.getvalue(), "jpeg")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
