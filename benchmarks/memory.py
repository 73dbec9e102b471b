"""Peak memory of a training step at full size and every memory level: an estimate from shapes, nothing is computed.

    python benchmarks/memory.py [--model sd15|sdxl] [--text-encoder] [--batch 1] [settings ...]

Networks of the true shapes without weights go through the trainer's own preflight. See docs/benchmarks.md.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the demo is not installed

from demo.sizes import full_size  # noqa: E402
from everydream.config import resolve  # noqa: E402
from everydream.plan import plan_run  # noqa: E402
from everydream.preflight import look  # noqa: E402
from everydream.training.memory import LEVELS  # noqa: E402
from everydream.yaml_text import apply_override  # noqa: E402

SIDES = {"sd15": 512, "sdxl": 1024}


def main() -> None:
    """Print a line per level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIDES), default="sd15")
    parser.add_argument("--text-encoder", action="store_true", help="train the text encoders too")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="settings over the run's")
    options = parser.parse_args()
    side = SIDES[options.model]
    print(f"{options.model}, {side} px, batch {options.batch}, {' '.join(options.overrides)}")
    for level in LEVELS:
        with tempfile.TemporaryDirectory() as folder:
            Image.new("RGB", (side, side)).save(Path(folder) / "a photo.png")
            raw = {
                "model": {"path": "org/shape"},
                "data": {"sources": [{"path": folder}], "resolution": side},
                "train": {"epochs": 1, "batch_size": options.batch},
                "text_encoder": {"train": options.text_encoder},
                "memory": {"level": level},
            }
            for override in options.overrides:
                apply_override(raw, override)
            planned = plan_run(resolve(raw, Path("benchmark")))
        found, _ = look(replace(planned), full_size(options.model), (side, side), measured=False)
        held = {**found.footprint.held, "activations, gradients": found.footprint.working}
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in held.items() if size)
        print(f"| {level} | {found.footprint.peak / 1e9:.1f} GB | {parts} | {(found.flops or 0) / 1e12:.2f} TFLOP |")


if __name__ == "__main__":
    main()
