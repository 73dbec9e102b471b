"""Hypernetworks as in AUTOMATIC1111's web UI: small residual networks before the keys and values of attention.

For each width of input that the UNet's attention has there are two, one before `to_k` and one before `to_v`
of every self- and cross-attention of that width: x becomes x + network(x) * strength.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everydream.errors import ConfigError, FormatError
from everydream.formats.files import StateDict, cast_floating
from everydream.formats.hypernetworks import HypernetworkFile, read_hypernetwork, write_hypernetwork
from everydream.formats.provenance import About
from everydream.methods.method import MethodSettings, ParameterGroup, freeze, group_of
from everydream.models.family import Family
from everydream.seeding import derive

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity, "swish": nn.Hardswish, "relu": nn.ReLU, "relu6": nn.ReLU6, "leakyrelu": nn.LeakyReLU,
    "rrelu": nn.RReLU, "elu": nn.ELU, "celu": nn.CELU, "selu": nn.SELU, "gelu": nn.GELU, "silu": nn.SiLU,
    "mish": nn.Mish, "hardswish": nn.Hardswish, "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid, "tanh": nn.Tanh, "hardtanh": nn.Hardtanh, "tanhshrink": nn.Tanhshrink,
    "softsign": nn.Softsign, "softplus": nn.Softplus, "softshrink": nn.Softshrink, "hardshrink": nn.Hardshrink,
}  # fmt: skip
"""Element by element, by the names that files give them; swish is not what PyTorch calls SiLU."""
_INIT: dict[str, Callable[[torch.Tensor, str], Any]] = {
    "normal": lambda weight, _: nn.init.normal_(weight, std=0.01),
    "xavier_uniform": lambda weight, _: nn.init.xavier_uniform_(weight),
    "xavier_normal": lambda weight, _: nn.init.xavier_normal_(weight),
    "kaiming_uniform": lambda weight, slope: nn.init.kaiming_uniform_(weight, nonlinearity=slope),  # type: ignore[arg-type]
    "kaiming_normal": lambda weight, slope: nn.init.kaiming_normal_(weight, nonlinearity=slope),  # type: ignore[arg-type]
}


class Hypernetwork:
    """`method: hypernetwork`."""

    def __init__(self, settings: MethodSettings) -> None:
        self._settings, self._name = settings.hypernetwork, settings.project

    def attach(self, family: Family, seed: int, captions: Sequence[str]) -> list[ParameterGroup]:
        """Put the networks before keys and values; they alone train. See `Method.attach`."""
        freeze(family)
        if family.denoiser != "unet":
            raise ConfigError(
                f"method: hypernetwork puts networks into a UNet's attention, and this {family.name} model has none. "
                "Use method: lora."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "hypernetwork"))
            networks = self._new(family)
        put_in(family, networks)
        return [group_of(family, family.denoiser, self._settings.lr)]

    def _new(self, family: Family) -> "Networks":
        settings = self._settings
        there = widths_of(family)
        if unknown := set(settings.widths or ()) - set(there):
            raise ConfigError(
                f"hypernetwork.widths: {', '.join(map(str, sorted(unknown)))}: this model's attention has the widths "
                f"{', '.join(map(str, there))}. Take some of these, or null for all."
            )
        _require_activation(settings.activation, ConfigError, "hypernetwork.activation")
        plan = HypernetworkFile(
            tuple(settings.layer_structure), settings.activation, settings.activate_output, settings.layer_norm,
            tuple(settings.dropout) if settings.dropout is not None else None, {},
        )  # fmt: skip
        networks = Networks(plan, settings.widths or there)
        slope = "leaky_relu" if settings.activation == "leakyrelu" else "relu"
        for module in networks.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, std=0.01)  # as in files of the web UI: it starts as nearly nothing
            elif isinstance(module, nn.Linear):
                _INIT[settings.init](module.weight, slope)
            if isinstance(module, nn.LayerNorm | nn.Linear):
                nn.init.zeros_(module.bias)
        return networks

    def exported(self, family: Family) -> StateDict:
        """Return the networks' weights."""
        return dict(_networks_in(family).state_dict())

    def export(
        self, family: Family, stem: Path, format_name: str, dtype: torch.dtype, about: About | None = None
    ) -> list[Path]:
        """Write the web UI's .pt."""
        path = stem.with_name(stem.name + ".pt")
        write_hypernetwork(path, self._name, _networks_in(family).file(dtype), about)
        return [path]


class Residual(nn.Module):
    """x + linear(x) * strength; full strength while training."""

    def __init__(self, width: int, plan: HypernetworkFile) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        num = len(plan.layer_structure) - 1
        for i, (before, after) in enumerate(pairwise(plan.layer_structure)):
            layers.append(nn.Linear(int(width * before), int(width * after)))
            if plan.activation != "linear" and (i < num - 1 or plan.activate_output):
                layers.append(_ACTIVATIONS[plan.activation]())
            if plan.layer_norm:
                layers.append(nn.LayerNorm(int(width * after)))
            if plan.dropout is not None and plan.dropout[i + 1] > 0:
                layers.append(nn.Dropout(plan.dropout[i + 1]))
        self.linear = nn.Sequential(*layers)
        self.strength = 1.0

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Return what goes to keys or values in the place of x."""
        changed: torch.Tensor = x_BLD + self.linear(x_BLD) * (1.0 if self.training else self.strength)
        return changed


class Networks(nn.Module):
    """The networks of all widths, as a part of the UNet; see `models.common.additions`."""

    adapter_layer_names = ("keys", "values")

    def __init__(self, plan: HypernetworkFile, widths: Sequence[int]) -> None:
        super().__init__()
        self.plan = plan
        self.keys = nn.ModuleDict({str(width): Residual(width, plan) for width in widths})
        self.values = nn.ModuleDict({str(width): Residual(width, plan) for width in widths})

    def file(self, dtype: torch.dtype) -> HypernetworkFile:
        """Return the networks as a file holds them."""
        weights = {
            int(width): (_state(keys, dtype), _state(self.values[width], dtype)) for width, keys in self.keys.items()
        }
        plan = self.plan
        return HypernetworkFile(
            plan.layer_structure, plan.activation, plan.activate_output, plan.layer_norm, plan.dropout, weights
        )


def _state(network: nn.Module, dtype: torch.dtype) -> StateDict:
    return cast_floating(network.state_dict(), dtype)


def widths_of(family: Family) -> list[int]:
    """Return the widths of input that the UNet's attention has."""
    return sorted({int(module.in_features) for _, module in _inputs(family)})


def _inputs(family: Family) -> list[tuple[str, Any]]:
    """Return (`keys` or `values`, projection) of every attention of the UNet."""
    kinds = {"to_k": "keys", "to_v": "values"}
    named = family.modules()[family.denoiser].named_modules()
    return [(kinds[end], module) for name, module in named if (end := name.rpartition(".")[2]) in kinds]


def put_in(family: Family, networks: Networks) -> None:
    """Make the networks a part of the UNet and put them before its keys and values."""
    unet = family.modules()[family.denoiser]
    networks.to(next(unet.parameters()).device)
    unet.add_module("hypernetwork", networks)
    for kind, projection in _inputs(family):
        found = getattr(networks, kind)
        if str(projection.in_features) in found:
            residual = found[str(projection.in_features)]
            projection.register_forward_pre_hook(lambda _, inputs, residual=residual: (residual(inputs[0]),))


def _networks_in(family: Family) -> Networks:
    networks = family.modules()[family.denoiser].get_submodule("hypernetwork")
    assert isinstance(networks, Networks)
    return networks


def load_into(family: Family, path: Path, strength: float) -> None:
    """Put a file's networks into a model, for sampling. Raises FormatError if they do not fit."""
    file = read_hypernetwork(path)
    _require_activation(file.activation, FormatError, str(path))
    there = widths_of(family)
    if not set(file.weights) & set(there):
        raise FormatError(
            f"{path} is for another architecture: its networks have the widths {sorted(file.weights)}, this model's "
            f"attention has {there}. Take the base model that it was trained on."
        )
    networks = Networks(file, sorted(file.weights))
    try:
        for width, (keys, values) in file.weights.items():
            networks.keys[str(width)].load_state_dict(cast_floating(keys, torch.float32))
            networks.values[str(width)].load_state_dict(cast_floating(values, torch.float32))
    except RuntimeError as error:
        raise FormatError(f"{path}: its weights do not fit the structure that it gives: {error}") from error
    for module in networks.modules():
        if isinstance(module, Residual):
            module.strength = strength
    networks.requires_grad_(False).eval()
    put_in(family, networks)


def _require_activation(name: str, error: type[ConfigError] | type[FormatError], where: str) -> None:
    if name not in _ACTIVATIONS:
        raise error(f"{where}: the activation {name!r} is not known; known are {', '.join(sorted(_ACTIVATIONS))}.")
