"""A draft in words: the YAML, and the report of what was not taken over as it is."""

import json
import math
from collections.abc import Iterator
from typing import Any

import yaml

from everydream.config import RunConfig
from everydream.tools.importing.draft import Draft, Entry, Kind
from everydream.yaml_text import parse_yaml

_COMMENTS_AT = 44
_HEADINGS: dict[Kind, str] = {
    "changed": "Taken over otherwise than it stands there:",
    "missing": "Not taken over, there is no counterpart:",
    "unknown": "Not taken over, unknown (misspelt, or newer than this command); look up what each should do:",
    "needless": "Not taken over, not needed here:",
    "idle": "Not taken over, asking for nothing that a run here would not do: ",
}


def yaml_of(draft: Draft, name: str) -> str:
    """Return the draft as YAML, in the order of the settings' own sections."""
    lines = [f"# Settings of {draft.trainer}, imported from {json.dumps(name, ensure_ascii=False)[1:-1]}."]
    lines.append("# See first what a run would do: everydream inspect --config THIS_FILE")
    for section in RunConfig.model_fields:
        if section in draft.entries:
            lines.append(_line(section, draft.entries[section], ""))
        inner = {key: entry for key, entry in draft.entries.items() if key.startswith(f"{section}.")}
        if inner or section == "data":
            lines.append(f"{section}:")
        lines += [_line(key.partition(".")[2], entry, "  ") for key, entry in inner.items()]
        if section == "data":
            lines += ["  sources:", *(f"    - {_value(source)}" for source in draft.sources)]
    return "\n".join(lines) + "\n"


def report_of(draft: Draft, name: str) -> Iterator[str]:
    """Yield the lines of the report, the most important first."""
    yield f"{name}: settings of {draft.trainer}."
    for kind, heading in _HEADINGS.items():
        notes = draft.notes.get(kind, [])
        if kind == "idle" and notes:
            yield heading + ", ".join(notes)
        elif notes:
            yield heading
            yield from (f"  {note}" for note in notes)


def _line(key: str, entry: Entry, indent: str) -> str:
    line = f"{indent}{key}: {_value(entry.value)}"
    return f"{line:<{_COMMENTS_AT}}  # {entry.comment}".replace("\n", " ") if entry.comment else line


def _value(value: Any) -> str:
    """Return a value as YAML on one line, read back as what it is also by our idea of numbers (`1e5` is one)."""
    # In a list, so that a text is quoted wherever a flow mapping would cut it.
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False)
    text = text.strip()[1:-1]
    whole = "\n" not in text and parse_yaml(text, "import") == value
    return text if whole else json.dumps(value, ensure_ascii=False)
