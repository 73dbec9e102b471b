"""An index as Parquet: what is read is what was written, and only for the settings that it was made with."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import metrics_of, run_cli, train_here
from synthetic import make_index
from tars import png, write_shard

from everydream.data import tables
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.errors import ConfigError, DataError
from everydream.types import Index

Project = Callable[..., Path]


def same(one: Index, other: Index) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Index))


def rich_set(root: Path) -> Path:
    """Two folders with all that an index has columns for, and one bad image."""
    write_shard(root / "0.tar", {"a.png": png(1), "a.txt": "in a shard, é"})
    for name in ("b/1", "b/2", "c_d"):
        (root / f"{name}.png").parent.mkdir(exist_ok=True)
        (root / f"{name}.png").write_bytes(png(ord(name[-1]), (24, 16)))
    (root / "b" / "1.mask.png").write_bytes(png(3, (24, 16)))
    (root / "b" / "local.yaml").write_text("group: one\nmultiply: 2\nbatch_id: own\nkeep_tags: 2")
    (root / "b" / "2.txt").write_text("first\nsecond")
    (root / "b" / "1.yaml").write_text("main_prompt: one\nmultiply: 3")
    (root / "bad.png").write_bytes(b"no image")
    return root


def settings(root: Path, **data: object) -> DataSettings:
    return DataSettings(sources=[{"path": str(root), "lines": "choose"}], **data)  # type: ignore[arg-type]


def test_what_is_read_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS", 2)
    data = settings(rich_set(tmp_path / "set"))
    index = scan(data, CaptionSettings())
    assert index.masks and index.groups and index.warnings and index.rejected and index.span_N2 is not None
    tables.write_table(index, tmp_path / "i.parquet", data, CaptionSettings())
    again = scan(settings(tmp_path / "set", index=str(tmp_path / "i.parquet")), CaptionSettings())
    assert same(index, again) and [again.span(n) for n in range(2)] == [index.span(n) for n in range(2)]


def test_an_index_without_images_of_shards_and_an_empty_one(tmp_path: Path) -> None:
    data = DataSettings(sources=[{"path": "s0"}])  # type: ignore[list-item]
    for count in (3, 0):
        plain = replace(make_index([count]), batch_ids=[""], roots=[str(Path("s0").absolute())])
        tables.write_table(plain, tmp_path / "i.parquet", data, CaptionSettings())
        assert same(tables.read_table(tmp_path / "i.parquet", data, CaptionSettings()), plain)


@pytest.mark.parametrize(
    ("data", "captions", "message"),
    [
        ({"flip_p": 0.5}, CaptionSettings(), r"data\.flip_p was 0\.0, is 0\.5\. Make it again: everydream index"),
        ({}, CaptionSettings(dropout=0.5), r"captions\.dropout was 0\.04, is 0\.5"),
        ({"check": "full", "masks": "none"}, CaptionSettings(), r"data\.masks was 'files', is 'none', and 1 more"),
    ],
)
def test_an_index_of_other_settings_is_refused(data, captions, message, tmp_path: Path) -> None:
    made_with = settings(rich_set(tmp_path / "set"))
    index = scan(made_with, CaptionSettings())
    tables.write_table(index, tmp_path / "i.parquet", made_with, CaptionSettings())
    with pytest.raises(DataError, match=f"was made with other settings: {message}"):
        tables.read_table(tmp_path / "i.parquet", settings(tmp_path / "set", **data), captions)


def test_files_that_are_no_index(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = settings(tmp_path)
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "another.parquet")
    with pytest.raises(DataError, match="is no index of this version"):
        tables.read_table(tmp_path / "another.parquet", data, CaptionSettings())
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "another.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="cut.parquet cannot be read"):
        tables.read_table(tmp_path / "cut.parquet", data, CaptionSettings())


def test_class_images_that_are_made_have_no_index_yet() -> None:
    sources = [{"path": "a"}, {"role": "class", "generate": 5, "label": "a dog"}]
    with pytest.raises(ValueError, match="come after it; give them as a folder"):
        DataSettings(sources=sources, index="i.parquet")  # type: ignore[arg-type]


def test_the_command_writes_what_runs_train_on(project: Project, tmp_path: Path) -> None:
    """Bit for bit the run that looks at its images; and no image is looked at before training."""
    straight = train_here(project())
    said = run_cli("index", "--config", project()).stdout
    file = tmp_path / "project.index.parquet"
    assert f"data.index: {file}" in said and "11 images in 2 sources, 0 rejected" in said
    indexed = train_here(project(data={"index": str(file)}))
    assert [line["loss"] for line in metrics_of(straight)] == [line["loss"] for line in metrics_of(indexed)]
    resumed = train_here(project(), resume=indexed / "checkpoints" / "last.ckpt")
    assert resumed == indexed, "an index may come and go"
    assert json.loads((indexed / "plan.json").read_text()) == json.loads((straight / "plan.json").read_text())


def test_an_engine_that_is_none(project: Project) -> None:
    assert (
        "--engine dask: there are local and ray"
        in run_cli("index", "-c", project(), "--engine", "dask", check=2).stderr
    )
    with pytest.raises(ConfigError, match="there is nothing at"):
        train_here(project(data={"index": "no/such.parquet"}))
