"""Processes, devices, precision and trackers: all that accelerate does for us, and the only file that knows it."""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    set_seed,
)
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from everydream.data.cores import usable_cores
from everydream.errors import ConfigError
from everydream.methods.method import ParameterGroup
from everydream.models.family import Family
from everydream.training import sharding
from everydream.training.settings import TrainSettings

T = TypeVar("T")
# Gradients lie where they are exchanged from, and are not held twice. Buffers are constants, so nobody needs those of
# the first process at each pass. Not static_graph: the first step would have to exchange in every micro-batch, and what
# it is for (blocks that are recomputed by reentrant checkpoints) is not there.
_DATA_PARALLEL = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)


class Launch:
    """This process among its peers."""

    def __init__(self, settings: TrainSettings, trackers: Sequence[str], seed: int) -> None:
        if settings.precision == "fp16" and not torch.cuda.is_available():
            raise ConfigError(
                "train.precision: fp16 needs a GPU, and none is visible. Use bf16 or fp32 on this machine."
            )
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.accelerator = Accelerator(
            # The loop accumulates by itself; left to the environment, accelerate would divide by a number of its own.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[_DATA_PARALLEL],
            # Said outright, or accelerate does not look for other processes on a machine without an accelerator.
            cpu=not torch.accelerator.is_available(),
            mixed_precision="no" if settings.precision == "fp32" else settings.precision,
            log_with=list(trackers) or None,
            project_dir=".",
        )
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ConfigError(
                "This was launched with DeepSpeed, which keeps one model a run, in pickled checkpoints of its own; it "
                "is not used here. FSDP2 cuts the same: `accelerate launch --use_fsdp --fsdp_version 2`, which with "
                "FSDP_RESHARD_AFTER_FORWARD=false in the environment is ZeRO-2; without it ZeRO-3."
            )
        self.shards = self.world > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")
        """Whether what trains is cut over the processes."""
        self._reshards = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0")
        if self.shards and settings.precision == "fp16":
            raise ConfigError("train.precision: fp16 does not go with FSDP here; use bf16, which needs no loss scaler.")
        # Nothing of ours draws from the global generators; a library that does shall at least repeat itself.
        set_seed(seed % 2**32)
        self._wrapped: list[nn.Module] = []
        # What hosts tell each other goes past the devices, or it would wait for all that these have to do; and it waits
        # for a scan, a filling or a sampling of hours. A process that ends is noticed at once, its connections end too.
        self._hosts = torch.distributed.new_group(timeout=timedelta(days=1), backend="gloo") if self.world > 1 else None

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def describe(self, images_per_step: int) -> str:
        """Return who computes, for the plan."""
        threads = f", {torch.get_num_threads()} threads each" if self.device.type == "cpu" else ""
        cut = "; weights, gradients and state cut over them (FSDP)" if self.shards else ""
        return f"{self.world} ({self.device.type}{threads}), together {images_per_step} images a step{cut}{_advice()}"

    def machine(self) -> dict[str, int]:
        """Return what makes the same run round otherwise."""
        return {"processes": self.world, "threads": torch.get_num_threads()}

    def default_workers(self) -> int:
        """Return how many processes decode for this one: its share of the cores we may use, less its own, at most 8."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        return max(1, min(8, usable_cores() // here - 1))

    def place(self, family: Family) -> None:
        """Move the networks to the device."""
        for module in family.modules().values():
            module.to(self.device)

    def shard(self, family: Family, groups: Sequence[ParameterGroup], optimizer: str) -> list[ParameterGroup]:
        """Cut what trains over the processes, if that is wanted; return the groups with the parameters as they are."""
        if not self.shards:
            return list(groups)
        sharding.require_shardable(optimizer)
        return sharding.shard(family, groups, self.device, self._reshards)

    def whole(self, family: Family) -> AbstractContextManager[None]:
        """Return a block, entered by all processes together, in which each can use all weights by itself."""
        return sharding.whole(family, self._reshards) if self.shards else nullcontext()

    def prepare(self, family: Family, optimizer: Any) -> Any:
        """Wrap what trains for several processes and return the optimizer to step."""
        self.wait()  # here devices meet for the first time, and wait for each other for minutes only
        if not self.shards:
            family.wrap(self._wrap)
        return self.accelerator.prepare_optimizer(optimizer) if isinstance(optimizer, Optimizer) else optimizer

    def _wrap(self, network: nn.Module) -> nn.Module:
        wrapped: nn.Module = self.accelerator.prepare_model(network)
        self._wrapped.append(wrapped)
        return wrapped

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the configured precision inside the block."""
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    @contextmanager
    def micro_batch(self, is_last_of_step: bool) -> Iterator[None]:
        """Exchange gradients between the processes in the last micro-batch of a step only."""
        with ExitStack() as stack:
            if not is_last_of_step:
                for network in self._wrapped:
                    stack.enter_context(self.accelerator.no_sync(network))
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients; DDP averages over processes, and we want the sum."""
        self.accelerator.backward(loss * self.world)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> torch.Tensor:
        """Clip all gradients together and return their norm before, on their device."""
        largest = float("inf") if max_norm is None else max_norm
        if self.shards:
            return sharding.clip(parameters, largest)
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(parameters, largest)
        return norm

    def scaler_state(self) -> dict[str, Any]:
        """Return the fp16 loss scaler's state, empty in other precisions."""
        scaler = self.accelerator.scaler
        return dict(scaler.state_dict()) if scaler is not None else {}

    def load_scaler_state(self, saved: dict[str, Any]) -> None:
        """Put the fp16 loss scaler's state back."""
        if self.accelerator.scaler is not None and saved:
            self.accelerator.scaler.load_state_dict(saved)

    @property
    def scales_loss(self) -> bool:
        """Whether a non-finite gradient is the loss scaler's business."""
        return self.accelerator.scaler is not None

    def step(self, optimizer: Any) -> bool:
        """Let the optimizer step; return whether the loss scaler made nothing of it.

        Told by the scale, which goes down then: accelerate's own flag does not see it with fused optimizers.
        """
        scaler = self.accelerator.scaler
        before = scaler.get_scale() if scaler is not None else 0.0
        optimizer.step()
        return scaler is not None and scaler.get_scale() < before

    def main_first(self) -> AbstractContextManager[None]:
        """Let the main process go through the block before the others."""
        return self._before_others(self.is_main)

    def first_of_each_machine(self) -> AbstractContextManager[None]:
        """Let one process of each machine go through the block first; the others find what it leaves in caches."""
        return self._before_others(bool(self.accelerator.is_local_main_process))

    @contextmanager
    def _before_others(self, goes_first: bool) -> Iterator[None]:
        if not goes_first:
            self.wait()
        try:
            yield
        finally:
            if goes_first:  # also where it fails: the others then say so for themselves
                self.wait()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes, on their device."""
        total: torch.Tensor = self.accelerator.reduce(values, "sum") if self.world > 1 else values
        return total

    def gather(self, item: T) -> list[T]:
        """Return every process's item, in the order of the processes."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(items, item, self._hosts)
        return items

    def from_main(self, item: T) -> T:
        """Return the main process's item."""
        if self.world == 1:
            return item
        holder = [item]
        torch.distributed.broadcast_object_list(holder, 0, self._hosts)
        return holder[0]

    def require_same(self, what: str, item: object) -> None:
        """Raise ConfigError where the processes do not agree."""
        if len(found := set(map(repr, self.gather(item)))) > 1:
            raise ConfigError(
                f"The processes do not agree on {what}: {', '.join(sorted(found))}. Do all machines see runs_dir as "
                "it is now? Network file systems show new files late; start the same line again."
            )

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            torch.distributed.barrier(self._hosts)

    def start_trackers(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        """Open the trackers; their files go below `folder`."""
        if not self.accelerator.log_with:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.project_configuration.logging_dir = str(folder)
        # Trackers take numbers and text as settings, nothing else.
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()}
        self.accelerator.init_trackers(project, config=plain, init_kwargs={"wandb": {"dir": str(folder)}})

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers to the trackers."""
        self.accelerator.log(dict(values), step=step)

    def track_images(self, images: Mapping[str, NDArray[np.uint8]], step: int) -> None:
        """Send pictures, (H, W, 3) each, to the trackers."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                values = {name: image[None] for name, image in images.items()}
                tracker.log_images(values, step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))

    def close(self, family: Family) -> None:
        """Close the trackers and the process group.

        DDP's wrappers go first: where one of them is the last to hold the group, its end waits, with the interpreter's
        lock, for threads that want the lock.
        """
        family.wrap(lambda network: network)
        self._wrapped.clear()
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()


def _advice() -> str:
    """Return what is to be said of how this was launched.

    Since PyTorch 2.13 torchrun's restarts share one store, so that processes can find the addresses of dead ones there
    and wait for them.
    """
    at_risk = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not at_risk or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return ""
    return (
        ". A restart by torchrun may hang on addresses of the processes before it: launch with --standalone or "
        "--rdzv-backend c10d, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment"
    )
