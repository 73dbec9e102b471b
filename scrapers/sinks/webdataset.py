"""WebDataset shards: `00000.tar` with `000000000.jpg`, `.txt` (caption) and `.json`; `index.parquet` beside them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrapers.ledger import Ledger
from scrapers.report import INDEX
from scrapers.settings import SinkSettings
from scrapers.types import Entry
from scrapers.whole import whole_file


class WebDatasetSink:
    """A set as tar shards, each written whole."""

    def __init__(self, folder: Path, ledger: Ledger, settings: SinkSettings) -> None:
        self._folder, self._ledger = folder, ledger
        self.portion: int | None = settings.shard_size

    def write(self, entries: Sequence[Entry]) -> list[str]:
        """Write one shard. Its bytes depend on the entries alone: no times, no owners."""
        shard = int(self._ledger.get("shards", "0"))
        partial = self._folder / f".{shard:05d}.tar.part"
        members = []
        try:
            with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
                for offset, entry in enumerate(entries):
                    key = f"{self._ledger.num_stored + offset:09d}"
                    _add(tar, key + entry.picture.extension, entry.picture.file.read_bytes())
                    _add(tar, key + ".txt", entry.caption.encode("utf-8"))
                    _add(tar, key + ".json", json.dumps(_about(entry), ensure_ascii=False).encode("utf-8"))
                    members.append(key + entry.picture.extension)
            target = self._target(shard)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        self._ledger.put("shards", str(int(target.stem) + 1))
        return [f"{target.name}/{member}" for member in members]

    def _target(self, shard: int) -> Path:
        """Return the file of the next shard: one that is not there, or that a killed run wrote and did not count."""
        written = self._ledger.get("shard_being_written", "")
        while (target := self._folder / f"{shard:05d}.tar").exists() and target.name != written:
            shard += 1
        self._ledger.put("shard_being_written", target.name)
        self._ledger.commit()
        return target

    def close(self) -> None:
        """Write the index: a row per image, with the place of its bytes in the shards."""
        import pyarrow as pa  # noqa: PLC0415 - takes a quarter of a second to import
        import pyarrow.parquet as pq  # noqa: PLC0415

        rows: dict[str, list[Any]] = {name: [] for name in _INDEX_SCHEMA}
        places: dict[str, dict[str, tuple[int, int]]] = {}
        for record in self._ledger.records("stored"):
            shard, _, member = (record.path or "").partition("/")
            if shard not in places:
                places = {shard: _members(self._folder / shard)}
            offset, size = places[shard][member]
            values = (member.partition(".")[0], record.path, shard, offset, size, record.caption, record.url,
                      record.width, record.height, record.sha256)  # fmt: skip
            for name, value in zip(_INDEX_SCHEMA, values, strict=True):
                rows[name].append(value)
        kinds = {"text": pa.string(), "int": pa.int64()}
        schema = pa.schema([(name, kinds[kind]) for name, kind in _INDEX_SCHEMA.items()])
        with whole_file(self._folder / INDEX) as partial:
            pq.write_table(pa.table(rows, schema=schema), partial)


_INDEX_SCHEMA = {"key": "text", "path": "text", "shard": "text", "offset": "int", "size": "int", "caption": "text",
                 "url": "text", "width": "int", "height": "int", "sha256": "text"}  # fmt: skip


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _about(entry: Entry) -> dict[str, Any]:
    picture = entry.picture
    return {
        "caption": entry.caption, "url": entry.url, "sha256": picture.sha256, "width": picture.width,
        "height": picture.height, **entry.about,
    }  # fmt: skip


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Return where each member's bytes lie in a shard: name -> (offset, size)."""
    with tarfile.open(path) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}
