"""`memory:` levels and what they come to: pure functions of the settings, and the checks that go with them.

A level is a row of `LEVELS`; each setting can be given by itself over it. docs/memory.md has the same in words.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from everydream.training.settings import MemorySettings, OptimizerSettings, TrainSettings

_LOW: dict[str, Any] = {
    "weights": "bf16", "optimizer_state": "bf16", "offload_optimizer": True, "frozen": "bf16", "offload_frozen": True,
}  # fmt: skip
LEVELS: dict[str, dict[str, Any]] = {
    "max_speed": {"gradient_checkpointing": False},
    "balanced": {},
    "low": _LOW,
    "minimal": {**_LOW, "fused_backward": True, "sliced_vae": True},
}
"""What each level has other than `balanced`, which is `_BALANCED`."""
_BALANCED: dict[str, Any] = {
    "gradient_checkpointing": True, "weights": "fp32", "optimizer_state": "fp32", "offload_optimizer": False,
    "frozen": "fp32", "offload_frozen": False, "fused_backward": False, "sliced_vae": False,
}  # fmt: skip
COSTS = {
    "max_speed": "activations of every layer are kept; 1.25 times balanced's speed",
    "balanced": "the forward pass is computed twice, a quarter more work",
    "low": "as balanced, and optimizer state and frozen networks travel to the device and back each step",
    "minimal": "as low, and with train.max_grad_norm each step is computed twice",
}
_BITS_8 = ("adamw_8bit", "paged_adamw_8bit")
_ACROSS = {
    "prodigy": "estimates one d over all parameters",
    "schedule_free_adamw": "averages over the steps of all parameters together",
    "paged_adamw_8bit": "pages its state by itself",
    "Adagrad": "makes its state before the first step",
}
"""Optimizers that cannot step parameter by parameter, and why."""


@dataclass(frozen=True)
class Memory:
    """The memory settings with nothing left open."""

    gradient_checkpointing: bool | Literal["selective"]
    weights: str
    rounding: str
    optimizer_state: str
    offload_optimizer: bool
    frozen: str
    offload_frozen: bool
    fused_backward: bool
    sliced_vae: bool
    attention: str

    @property
    def is_lean(self) -> bool:
        """Whether parameters step one by one, see `lean`."""
        in_bf16 = "bf16" in (self.weights, self.optimizer_state)
        return in_bf16 or self.offload_optimizer or self.fused_backward


def resolved(memory: MemorySettings, train: TrainSettings, optimizer: OptimizerSettings) -> Memory:
    """Return what the settings come to: each as given, else as the level says."""
    values = _BALANCED | LEVELS[memory.level]
    if optimizer.name in _BITS_8:
        values |= {"optimizer_state": "fp32"}  # its moments are smaller than bf16 already
    given = {**memory.model_dump(exclude={"level"}), "gradient_checkpointing": train.gradient_checkpointing}
    return Memory(**(values | {key: value for key, value in given.items() if value is not None}))


def memory_problems(memory: MemorySettings, train: TrainSettings, optimizer: OptimizerSettings) -> list[str]:
    """Return what the settings have against each other, a line each."""
    use = resolved(memory, train, optimizer)

    def said(*keys: str) -> str:
        """Name what asks for something: the settings themselves, or their level."""
        values = asdict(use)
        own = [f"memory.{key}: {_word(values[key])}" for key in keys if getattr(memory, key, None) == values[key]]
        return ", ".join(own) or f"memory.level: {memory.level}"

    problems = []
    halves = [key for key in ("weights", "frozen") if getattr(use, key) == "bf16"]
    if halves and train.precision != "bf16":
        problems.append(
            f"{said(*halves)} keeps weights in bf16, and train.precision: {train.precision} cannot compute with them. "
            "Use train.precision: bf16."
        )
    stepwise = [key for key in ("weights", "optimizer_state") if getattr(use, key) == "bf16"]
    stepwise += [key for key in ("offload_optimizer", "fused_backward") if getattr(use, key)]
    name = optimizer.name.rpartition(".")[2]
    if stepwise and name in _ACROSS:
        problems.append(
            f"{said(*stepwise)} steps parameter by parameter, and optimizer.name: {optimizer.name} {_ACROSS[name]}. "
            "Take another optimizer, or memory.level: balanced, where memory.frozen and memory.offload_frozen work too."
        )
    if stepwise and train.precision == "fp16":
        problems.append(f"{said(*stepwise)} does not go with fp16's loss scaler. Use train.precision: bf16.")
    if use.fused_backward and train.gradient_accumulation > 1:
        problems.append(
            f"{said('fused_backward')} frees each gradient at once, and train.gradient_accumulation: "
            f"{train.gradient_accumulation} adds them up. Set it to 1, or memory.fused_backward: false."
        )
    if memory.rounding != "stochastic" and "bf16" not in (use.weights, use.optimizer_state):
        problems.append(f"memory.rounding: {memory.rounding} has no effect, since nothing that changes is in bf16.")
    if memory.optimizer_state == "bf16" and optimizer.name in _BITS_8:
        problems.append(f"memory.optimizer_state: has no effect, since {optimizer.name} keeps it in 8 bits.")
    if use.attention == "flash" and train.precision == "fp32":
        problems.append("memory.attention: flash computes in 16 bits, and train.precision is fp32. Use bf16, or sdpa.")
    return problems


def static_bytes(counts: Mapping[str, int], use: Memory, state_bytes: int = 8) -> dict[str, int]:
    """Return the bytes held on the device between steps at most, by what they are for.

    `counts` are numbers of parameters: `trained`, `frozen`, and `largest` of the trained tensors. `state_bytes` is
    what the optimizer keeps a parameter in fp32: 8 for Adam's two moments. `update` is the room for the one parameter
    that steps (fp32 weight, gradient and state, and the bits that it is rounded by); it is not there in the forward
    pass. Activations and averages are not among these.
    """
    weight = 2 if use.weights == "bf16" else 4
    state = state_bytes if use.optimizer_state == "fp32" else state_bytes // 2
    copies = (4 if use.weights == "bf16" else 0) + 4 + (4 if "bf16" in (use.weights, use.optimizer_state) else 0)
    return {
        "weights": weight * counts["trained"],
        "gradients": 0 if use.fused_backward else weight * counts["trained"],
        "state": 0 if use.offload_optimizer else state * counts["trained"],
        "frozen": 0 if use.offload_frozen else (2 if use.frozen == "bf16" else 4) * counts["frozen"],
        "update": (copies + state_bytes) * counts["largest"] if use.is_lean else 0,
    }


def describe_memory(settings: MemorySettings, use: Memory) -> list[str]:
    """Return the lines for the plan: what is switched on, and what the level costs."""
    rounds = "bf16" in (use.weights, use.optimizer_state)
    told = [f"{key} {_word(value)}" for key, value in asdict(use).items() if key != "rounding" or rounds]
    level = _BALANCED | LEVELS[settings.level]
    own = [f"{key} {_word(value)}" for key, value in asdict(use).items() if key in level and value != level[key]]
    but = f"; other than the level: {', '.join(own)}" if own else ""
    return [f"level {settings.level}: {COSTS[settings.level]}{but}", ", ".join(told)]


def _word(value: object) -> str:
    return str(value).lower()
