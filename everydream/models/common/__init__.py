"""What the families share: layouts of files, configurations, text encoders, the networks themselves."""

import sys

# diffusers and peft import bitsandbytes wherever they find it: a second at every start, and messages, for parts of
# theirs that are not used here. To them it is not there; who chose one of its optimizers looks again (`optimizers`).
if "bitsandbytes" not in sys.modules:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
