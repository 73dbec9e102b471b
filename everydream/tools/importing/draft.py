"""What an import makes: our settings, and what its user is told of everything else."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from everydream.config import RunConfig
from everydream.errors import ConfigError
from everydream.problems import validate

Kind = Literal["changed", "missing", "needless", "idle", "unknown"]
MODEL = "models/v1-5-pruned.safetensors"
"""What stands for a model that the file does not name; the recipes' name."""


class Entry(NamedTuple):
    """A value of ours, and the comment beside it."""

    value: Any
    comment: str


@dataclass
class Draft:
    """Our settings by dotted key, and the notes on keys that were not taken over as they are."""

    trainer: str
    """Whose settings these were."""
    entries: dict[str, Entry] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[Kind, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What is wrong with the file; any of these ends the import."""

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Set one of ours; the comment names the key that it comes from, or says why."""
        self.entries[key] = Entry(value, comment)

    def tell(self, kind: Kind, text: str) -> None:
        """Add a line to the report."""
        self.notes.setdefault(kind, []).append(text)

    def put_model(self, path: str | None, key: str) -> None:
        """Set the model, or a name to be replaced where the file has none under `key`."""
        if path is None:
            self.tell(
                "missing", f"{key}: names no model, so model.path is a stand-in; say there which one to start from."
            )
        self.put("model.path", path or MODEL, key if path else "the file names none: say which one")

    def put_project(self, name: str | None, key: str) -> None:
        """Set the project's name, without the characters that a folder cannot have."""
        kept = "".join("_" if char in '/\\:*?"<>|' else char for char in name or "").strip().lstrip(".")
        if name and kept != name:
            self.tell("changed", f"{key}: {name!r} is {kept or 'imported'!r} here, as it names the run's folder.")
        self.put("project", kept or "imported", key if name else "")

    def settings_at(self, key: str) -> Any:
        """Return the value of one of ours; None if it is not set."""
        entry = self.entries.get(key)
        return entry.value if entry is not None else None

    def settings(self) -> dict[str, Any]:
        """Return our settings as a YAML file would hold them."""
        raw: dict[str, Any] = {}
        for key, entry in self.entries.items():
            section, _, name = key.rpartition(".")
            (raw.setdefault(section, {}) if section else raw)[name] = entry.value
        raw.setdefault("data", {})["sources"] = self.sources
        return raw

    def require_valid(self, file: str) -> None:
        """Raise ConfigError listing what is wrong with the file, or with what its values would be here."""
        problems = list(self.problems)
        if not problems:
            problems += [f"{self._origin(line)}{line}" for line in validate(RunConfig, self.settings())[1]]
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise ConfigError(f"{file} ({self.trainer}) cannot be imported; nothing was written:\n{lines}")

    def _origin(self, line: str) -> str:
        entry = self.entries.get(line.partition(":")[0])
        return f"{entry.comment}: " if entry is not None and entry.comment else ""

    def training_sources(self) -> Iterator[dict[str, Any]]:
        """Yield the sources that are not class images."""
        return (source for source in self.sources if source.get("role") != "class")

    @property
    def has_class_images(self) -> bool:
        """Whether one of the sources holds class images."""
        return any(source.get("role") == "class" for source in self.sources)


def find(path: str, beside: Path) -> Path | None:
    """Return where a file or folder that a setting names is: as it stands, else beside the file; None if nowhere."""
    places = (Path(path).expanduser(), beside.parent / path)
    return next((place for place in places if place.exists()), None)
