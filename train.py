"""Train: `python train.py --config project.yaml`, also under `accelerate launch` and `torchrun`.

The road from disk to gradient to file is `everydream/train.py`; this is its door in a clone.
"""

import sys

from everydream.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
