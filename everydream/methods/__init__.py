"""The seam for methods: what trains, and what is written of it.

full, dreambooth      UNet and text encoder themselves       -> a whole model
lora                  low-rank matrices beside their layers  -> an adapter of some megabytes
textual_inversion     new words, nothing else                -> an embedding of some kilobytes
hypernetwork          small networks before keys and values  -> a file of some megabytes
"""

from collections.abc import Callable

from everydream.methods.full import Full
from everydream.methods.hypernetwork import Hypernetwork
from everydream.methods.lora import Lora
from everydream.methods.method import Method, MethodSettings
from everydream.methods.textual_inversion import TextualInversion

METHODS: dict[str, Callable[[MethodSettings], Method]] = {
    "full": Full,
    "dreambooth": Full,
    "lora": Lora,
    "textual_inversion": TextualInversion,
    "hypernetwork": Hypernetwork,
}
"""The whole registry of methods."""
