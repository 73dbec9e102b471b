"""A local server with distinct JPEGs, over http and https, with a delay before each answer if one is wanted.

    python benchmarks/scrape/server.py --work DIR --images 2000 [--latency 0.2]

Writes DIR/http.parquet and DIR/https.parquet (LAION's columns) and DIR/ca.pem, says "ready" and serves until killed.
"""

import argparse
import asyncio
import io
import ssl
from pathlib import Path

import certifi
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import trustme
from aiohttp import web
from PIL import Image

SIZES = ((1024, 768), (768, 1024), (1200, 800), (900, 900))
QUALITY = 75


def jpeg(seed: int) -> bytes:
    """Return a picture with the smooth parts, edges and grain of a photograph; about 130 kB."""
    rng = np.random.default_rng(seed)
    width, height = SIZES[seed % len(SIZES)]
    coarse = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    texture = np.asarray(fine.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)[:, :, None] - 128
    grain = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    pixels = np.clip(smooth + texture // 5 + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def images(work: Path, number: int) -> list[bytes]:
    """Return the pictures, made once."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(number):
        path = folder / f"{seed}.jpg"
        if not path.exists():
            path.write_bytes(jpeg(seed))
    return [(folder / f"{seed}.jpg").read_bytes() for seed in range(number)]


def write_list(path: Path, origin: str, rows: int, num_images: int) -> None:
    """Write a LAION-shaped list; rows beyond the images repeat them under other addresses."""
    numbers = np.arange(rows)
    urls = [f"{origin}/{n % num_images}.jpg?row={n}" for n in numbers]
    texts = [f"a photograph, number {n} of the list" for n in numbers]
    columns = {"SAMPLE_ID": numbers, "URL": urls, "TEXT": texts, "WIDTH": np.full(rows, 1024, np.int32),
               "HEIGHT": np.full(rows, 768, np.int32), "similarity": np.full(rows, 0.31)}  # fmt: skip
    pq.write_table(pa.table(columns), path, row_group_size=100_000)


async def serve(work: Path, contents: list[bytes], latency_s: float, rows: int) -> None:
    """Serve until cancelled."""

    async def picture(request: web.Request) -> web.Response:
        if latency_s:
            await asyncio.sleep(latency_s)
        return web.Response(body=contents[int(request.match_info["number"])], content_type="image/jpeg")

    app = web.Application()
    app.router.add_get("/{number:\\d+}.jpg", picture)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    authority = trustme.CA()
    # Beside the usual hundred and more, as everywhere: loading them is a good part of what https costs.
    (work / "ca.pem").write_bytes(Path(certifi.where()).read_bytes() + b"\n" + authority.cert_pem.bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    for scheme, tls in (("http", None), ("https", context)):
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, backlog=1024)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        port = server.sockets[0].getsockname()[1]
        write_list(work / f"{scheme}.parquet", f"{scheme}://127.0.0.1:{port}", rows, len(contents))
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rows", type=int, help="rows of the lists; default: one per image")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    contents = images(arguments.work, arguments.images)
    asyncio.run(serve(arguments.work, contents, arguments.latency, arguments.rows or arguments.images))


if __name__ == "__main__":
    main()
