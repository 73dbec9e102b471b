"""The table of contents of an import: read, take over, check."""

from pathlib import Path

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.everydream2 import everydream2
from everydream.tools.importing.flags import parse_flags
from everydream.tools.importing.joepenna import joepenna
from everydream.tools.importing.kohya import kohya
from everydream.tools.importing.reading import Found, read


def import_file(file: Path) -> Draft:
    """Return the settings of a file as ours, valid but for paths. Raises ConfigError, listing every problem."""
    return _drafted(read(file), file)


def import_flags(command: str) -> Draft:
    """Return the settings of JoePenna's command line as ours. Raises ConfigError."""
    name = "--joepenna"
    return _drafted(Found("joepenna", parse_flags(command, name)), Path(name))


def _drafted(found: Found, file: Path) -> Draft:
    if found.trainer == "joepenna" and isinstance(other := found.raw.get("config_file_path"), str):
        return import_file(Path(other))  # it decides alone, as there
    if found.trainer == "joepenna":
        draft = joepenna(found.raw)
    else:
        draft = {"everydream2": everydream2, "kohya": kohya}[found.trainer](found.raw, file)
    draft.require_valid(str(file))
    return draft
