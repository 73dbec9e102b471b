"""The facts about a file, for people to read."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from everydream.data.texts import visible
from everydream.formats.atomic import format_bytes

_LONGEST = 160
_HASHES = {
    "sha256": "SHA-256", "short_hash": "AUTOMATIC1111's short hash", "auto_v1": "AutoV1", "auto_v2": "AutoV2",
    "auto_v3": "AutoV3 (without the header)",
}  # fmt: skip


def show(facts: Mapping[str, Any], console: Console) -> None:
    """Print the facts of `read.info`."""
    console.print(Group(*_sections(facts)))


def _sections(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    family = f" for {facts['family']}" if facts.get("family") else ""
    yield Text(visible(facts["path"]), style="bold", overflow="fold")
    yield _table({"what": f"{facts['kind']}{family}, {format_bytes(facts['bytes'])}", **_amounts(facts)})
    if facts["kind"] == "picture":
        yield from _picture(facts)
    for title, rows in (
        ("Hashes", {said: facts[name] for name, said in _HASHES.items() if facts.get(name)}),
        ("Made by EveryDream", _made(facts.get("provenance") or {})),
        ("What other tools say in it", facts.get("metadata") or {}),
        ("Held beside the weights", dict.fromkeys(facts.get("beside") or (), "")),
        ("It names code, none of which was run", dict.fromkeys(facts.get("code") or (), "")),
    ):
        if rows:
            yield Text(f"\n{title}", style="bold")
            yield _table(rows)
    if config := (facts.get("provenance") or {}).get("config"):
        yield Text("\nSettings", style="bold")
        yield Text(visible(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()))


def _amounts(facts: Mapping[str, Any]) -> dict[str, str]:
    rows = {name: _amount(part) for name, part in (facts.get("parts") or {}).items()}
    if "tensors" in facts:
        rows["weights"] = _amount(facts)
        rows |= {f"  {part}": f"{number:,} parameters" for part, number in facts["keys"]["parts"].items()}
        rows["names such as"] = ", ".join(facts["keys"]["examples"][:3])
    return rows


def _amount(facts: Mapping[str, Any]) -> str:
    whole = facts["parameters"] or 1
    shares = [f"{name} {100 * n / whole:.1f} %" for name, n in facts["precision"].items()]
    precision = next(iter(facts["precision"])) if len(shares) == 1 else ", ".join(shares)
    return f"{facts['tensors']:,} tensors, {facts['parameters']:,} parameters, {precision}"


def _picture(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    if "parameters" in facts:
        yield Text(f"\n{visible(facts['parameters'])}")
    if "settings" in facts:
        yield Text("\nDrawn by EveryDream with", style="bold")
        yield _table(facts["settings"])
    if facts["other"]:
        yield Text("\nOther texts", style="bold")
        yield _table(facts["other"])


def _made(made: Mapping[str, Any]) -> dict[str, Any]:
    if not made:
        return {}
    base, data = made["base"], made["data"]
    rows: dict[str, Any] = {
        "project": f"{made['project']}, method {made['method']}, the {made['weights']} weights",
        "progress": f"step {made['step']} of {made['steps_planned']} planned, epoch {made['epoch']}, "
        f"{made['images_seen']} images seen",
        "base model": f"{base['name']}, SHA-256 {base['sha256'] or 'unknown'} ({base['of']})",
        "data set": f"{data['images']} images, fingerprint {data['fingerprint']}",
    }
    for source in data["sources"]:
        licences = ", ".join(f"{name} {number}" for name, number in source["licences"].items())
        rows[f"  {source['name']}"] = (
            f"{source['role'].replace('_', ' ')}, {source['images']} images, "
            f"{source['draws_per_epoch']} draws an epoch, licences: {licences}"
        )
    rows["versions"] = ", ".join(f"{name} {number}" for name, number in made["trainer"].items())
    return rows


def _table(rows: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        table.add_row(Text(visible(name)), Text(text if len(text) <= _LONGEST * 2 else f"{text[: _LONGEST * 2]} …"))
    return table
