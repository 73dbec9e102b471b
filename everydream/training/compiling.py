"""`train.compile`: PyTorch's compiler on the denoiser, for training; looks at the model in between run as ever.

regional    each of the denoiser's repeated blocks by itself; blocks that are alike share a graph
whole       the denoiser as one graph

What is compiled is a module's `forward`, in its place: modules, parameters and their names stay as they are, so
checkpoints, averages, adapters and DDP's wrappers see the same network. Sides and numbers of images are marked dynamic
from the first call on, so all buckets share a graph; a single image has one of its own, for the compiler makes a
constant of every 1. A graph break is an error and no silent loss, and so is more graphs than the compiler's limit.
"""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.utils._pytree import tree_leaves

from everydream.errors import ConfigError, TrainingError

BACKEND = "EVERYDREAM_COMPILE_BACKEND"
"""Environment variable with another of PyTorch's compilers than inductor: one of the machine, not of the run."""
_STACKS = ("transformer_blocks", "single_transformer_blocks")
_WARNINGS = ("(?s).*functools.lru_cache", "(?s)The .grad attribute of a Tensor that is not a leaf")
"""What the compiler warns of on its way through the libraries, and users can do nothing about."""
_OFF = "Set train.compile: none to go on without."


@dataclass
class Graphs:
    """The graphs that have been compiled, and what the user is told of them."""

    what: str
    """What is compiled, in words."""
    most: int
    """How many graphs there can be by what is known of the run."""
    backend: Callable[..., Any] = lambda graph, _: graph
    say: Callable[[str], None] = lambda _: None
    note: Callable[..., None] = lambda *_, **__: None
    recomputes: bool = False
    """Whether the backward pass computes blocks again."""
    count: int = 0
    stopped: bool = False
    """Whether the compiler's limit was met, and everything is computed without it since."""

    def describe(self) -> str:
        """Return the line for the plan."""
        return f"{self.what}; at most {self.most} graphs for all sizes, each made when it is first needed"

    def __call__(self, graph: Any, inputs: Any, **options: Any) -> Any:
        """Compile one graph, as PyTorch asks for it; tell."""
        began = time.monotonic()
        compiled = self.backend(graph, inputs, **options)
        self.count += 1
        seconds = round(time.monotonic() - began, 1)
        more = "" if self.count <= self.most else "; more than were foreseen: sizes or settings differ in a new way"
        self.note("compiled", graph=self.count, most=self.most, seconds=seconds)
        self.say(f"Compiled graph {self.count} of at most {self.most} in {seconds:g} s{more}.")
        return compiled

    def stop(self) -> None:
        """Tell that from now on nothing is compiled.

        Raises TrainingError where activations are recomputed: the backward pass must find what the forward pass left.
        """
        if self.recomputes:
            raise TrainingError(
                f"train.compile: PyTorch's limit of recompilations is met after {self.count} graphs, and with gradient "
                "checkpointing a step cannot go on without. Go on from last.ckpt with train.compile=none, or with "
                "train.gradient_checkpointing=false."
            )
        self.stopped = True
        self.note("compile limit", graphs=self.count)
        self.say(
            f"PyTorch's limit of recompilations is met after {self.count} graphs: from now on the denoiser is computed "
            f"without train.compile, and more slowly. {_OFF}"
        )


def compile_denoiser(denoiser: nn.Module, mode: str, batch_size: int, num_buckets: int, device: torch.device) -> Graphs:
    """Have the denoiser compiled, before it is wrapped for several processes; with mode `none` leave it as it is.

    `batch_size`: the most images that go through at a time. Raises ConfigError where it cannot be done here.
    """
    if mode == "none":
        return Graphs("nothing", 0)
    name = os.environ.get(BACKEND, "inductor")
    if name == "inductor":
        _require_compilers(device)
    modules = [denoiser] if mode == "whole" else list(_repeated(denoiser))
    if not modules:
        raise ConfigError("train.compile: regional finds no repeated blocks in this denoiser. Use whole, or none.")
    graphs = Graphs(_told(modules, mode), _most(modules, denoiser, batch_size), _backend(name))
    # DDP cuts graphs where its buckets end, which would be more graphs, and fails where gradients are checkpointed.
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * graphs.most)
    for known in _WARNINGS:
        warnings.filterwarnings("ignore", message=known)
    # Blocks that are alike stand at several depths of a UNet, so they meet several sizes even where images have one.
    sides = mode == "regional" or num_buckets > 1
    graphs.recomputes = any(getattr(module, "gradient_checkpointing", False) for module in denoiser.modules())
    for module in modules:
        module.forward = _compiled(module, graphs, sides)
    return graphs


def _compiled(module: nn.Module, graphs: Graphs, sides: bool) -> Callable[..., Any]:
    """Return the module's forward: compiled where gradients are wanted, as it was elsewhere.

    `sides`: whether it meets more than one size.
    """
    plain = module.forward
    compiled = torch.compile(plain, backend=graphs, fullgraph=True)

    def forward(*inputs: Any, **named: Any) -> Any:
        if graphs.stopped or not torch.is_grad_enabled():
            return plain(*inputs, **named)
        _mark((inputs, named), sides)
        try:
            return compiled(*inputs, **named)
        except FailOnRecompileLimitHit:
            graphs.stop()
            return plain(*inputs, **named)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise TrainingError(f"train.compile: the denoiser cannot be compiled here ({reason}). {_OFF}") from error

    return forward


def _mark(inputs: Any, sides: bool) -> None:
    """Tell the compiler which sides of its inputs vary from call to call.

    The first one of all; of latents (B, C, H, W) height and width; of a block's or a transformer's first input
    (B, L, D) the number of tokens. Captions have always as many.
    """
    for number, tensor in enumerate(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)):
        varies = (2, 3) if tensor.dim() == 4 else (1,) if tensor.dim() == 3 and number == 0 else ()
        for side in (0, *varies) if sides else (0,):
            if tensor.dim() > side and tensor.shape[side] > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, side)


def _repeated(denoiser: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that diffusers names as repeated; where it names none, the members of stacks of blocks."""
    names = getattr(denoiser, "_repeated_blocks", None) or []
    for name, module in denoiser.named_modules():
        parts = name.split(".")
        if type(module).__name__ in names or (not names and parts[-1].isdigit() and parts[-2] in _STACKS):
            yield module


def _most(modules: list[nn.Module], denoiser: nn.Module, batch_size: int) -> int:
    """Return how many graphs there can be: one for each kind of module, and again for a single image."""
    kinds = {
        (type(module), tuple((p.shape, p.dtype, p.requires_grad) for p in module.parameters())) for module in modules
    }
    # Where only a part trains, a block's input needs no gradient before the first of it, and one behind.
    edge = int(len(modules) > 1 and not all(parameter.requires_grad for parameter in denoiser.parameters()))
    return (len(kinds) + edge) * (2 if batch_size > 1 else 1)


def _told(modules: list[nn.Module], mode: str) -> str:
    names = sorted({type(module).__name__ for module in modules})
    return f"{mode}: {len(modules)} x {', '.join(names)}" if mode == "regional" else f"{mode}: {names[0]}"


def _backend(name: str) -> Callable[..., Any]:
    try:
        backend: Callable[..., Any] = torch._dynamo.lookup_backend(name)
    except Exception as error:  # an exception class of its own for each way of not finding one
        known = ", ".join(torch._dynamo.list_backends(exclude_tags=()))
        raise ConfigError(f"{BACKEND}: PyTorch has no compiler {name!r} here; it has {known}.") from error
    return backend


def _require_compilers(device: torch.device) -> None:
    """Raise ConfigError where inductor lacks what it compiles with: for a CPU C++, for a GPU Triton and C."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 - slow, and for few

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ConfigError(
                "train.compile: on a CPU PyTorch compiles by way of C++, and there is no compiler. Install g++ "
                f"(apt-get install g++) or name one in the environment variable CXX. {_OFF}"
            ) from error
        return
    from torch.utils._triton import has_triton  # noqa: PLC0415 - slow, and for few

    if not has_triton():
        raise ConfigError(
            f"train.compile: on a {device.type} PyTorch's compiler needs Triton, which does not run here (it "
            f"comes with PyTorch for CUDA on Linux, and wants a card of 2017 or newer). {_OFF}"
        )
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        raise ConfigError(
            "train.compile: Triton needs a C compiler, and none is found. Install gcc (apt-get install gcc) or name "
            f"one in the environment variable CC. {_OFF}"
        )
