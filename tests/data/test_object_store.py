"""An S3-compatible server on this machine: a folder of it is a source. Skipped without s3fs and moto."""

import io
from pathlib import Path

import pytest
from tars import png, write_shard

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_a_bucket_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    from everydream.data import fetched
    from everydream.data.scan import scan
    from everydream.data.settings import CaptionSettings, DataSettings
    from everydream.data.shards import picture_at
    from pictures.decode import decode

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(fetched.LIMIT, "0")
    for name, value in (
        ("ACCESS_KEY_ID", "testing"),
        ("SECRET_ACCESS_KEY", "testing"),
        ("DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        client = boto3.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="images")
        shard = write_shard(tmp_path / "0.tar", {"a.png": png(1), "a.txt": "in a shard"})
        objects = {
            "set/0.tar": shard.read_bytes(), "set/dogs/b.png": png(2), "set/dogs/b.txt": b"beside it",
            "set/dogs/multiply.txt": b"3",
        }  # fmt: skip
        for key, content in objects.items():
            client.put_object(Bucket="images", Key=key, Body=io.BytesIO(content))
        index = scan(DataSettings(sources=[{"path": "s3://images/set"}]), CaptionSettings())  # type: ignore[list-item]
        assert list(index.paths) == ["0.tar/a.png", "dogs/b.png"]
        assert list(index.captions) == ["in a shard", "beside it"] and index.repeats_N.tolist() == [1.0, 3.0]
        for record, seed in ((0, 1), (1, 2)):
            path = Path(index.roots[0]) / index.paths[record]
            assert (decode(picture_at(path, index.span(record))) == decode(io.BytesIO(png(seed)))).all()
        assert not index.rejected
    finally:
        server.stop()
