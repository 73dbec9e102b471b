"""Model families: which networks there are, what they are called in files, what they say to the step.

family.py   the protocol                    load.py   from settings or a checkpoint to a Family
sd1/ sd2/   one folder each                 common/   what families share
"""

import sys

# diffusers and peft import bitsandbytes wherever they find it: a second at every start, and messages, for parts of
# theirs that are not used here. To them it is not there; who chose one of its optimizers looks again (`optimizers`).
if "bitsandbytes" not in sys.modules:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
