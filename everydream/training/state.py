"""`last.ckpt`: one self-contained file that is both a model for other tools and the whole state of a run.

    state_dict    the model under single-file names, in the precision it trains in: what other tools read
    added         what trains beside the model's own tensors, by parameter name: adapters, words, networks
    optimizer     state by parameter name
    optimizer_groups    what some optimizers keep besides, by group (estimates, counts)
    ema           averaged weights by parameter name
    everydream    version, progress, model description, the facts that must match on resume, what made it (see
                  `everydream.provenance`), the base's losses that the monitors measure by, what else these remember

All plain containers and tensors: it opens with `torch.load(weights_only=True)`. It holds no time, no
path of the run and no RNG state, so a resumed run writes the same bytes as the uninterrupted one.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from everydream.data.digests import Digests, differences
from everydream.data.strings import Strings
from everydream.errors import FormatError, ResumeError
from everydream.evaluation.measuring import Loss
from everydream.formats.files import METADATA_KEY, StateDict, is_safetensors, read_contents, total_bytes
from everydream.formats.provenance import PROVENANCE, provenance_in
from everydream.formats.sharded import RUN_FILE, is_sharded
from everydream.methods.method import ParameterGroup
from everydream.models.common.additions import added_names
from everydream.models.family import Family
from everydream.types import Index, Progress

VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What a run was made of; a resume compares them item by item."""

    config: dict[str, Any]
    """The resolved settings."""
    images: Digests

    @staticmethod
    def of(config: dict[str, Any], *indexes: Index) -> "Facts":
        """Return the facts of a run."""
        return Facts(config, Digests.of(*indexes))


@dataclass(frozen=True)
class Checkpoint:
    """A last.ckpt in memory."""

    path: Path
    tensors: StateDict
    model: dict[str, Any]
    added: StateDict
    optimizer: dict[str, Any]
    optimizer_groups: dict[str, Any]
    ema: StateDict
    scaler: dict[str, Any]
    progress: Progress
    facts: Facts
    machine: dict[str, int]
    """Numbers of processes and threads; with others the same run rounds otherwise."""
    base: dict[int, Loss]
    """Losses of the model before training, by what was measured; empty if nothing was."""
    watch: dict[str, Any]
    """What the monitors remember, by monitor: plain containers and tensors."""
    provenance: dict[str, Any]
    """What made it; empty in older files."""


def checkpoint_contents(
    family: Family,
    *,
    groups: Sequence[ParameterGroup],
    optimizer: Mapping[str, Any],
    optimizer_groups: Mapping[str, Any],
    ema: StateDict,
    scaler: Mapping[str, Any],
    progress: Progress,
    facts: Facts,
    machine: Mapping[str, int],
    base: Mapping[int, Loss],
    watch: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a last.ckpt holds."""
    ours = {
        "version": VERSION,
        "model": family.description(),
        "progress": asdict(progress),
        "machine": dict(machine),
        "scaler": dict(scaler),
        "config": json.dumps(facts.config, sort_keys=True),
        PROVENANCE: json.dumps(provenance, sort_keys=True),
        "image_keys": torch.frombuffer(bytearray(facts.images.keys.data), dtype=torch.uint8),
        "image_key_offsets": torch.from_numpy(facts.images.keys.offsets),
        "image_digests": torch.from_numpy(facts.images.digest_N),
        "base_identities": torch.tensor(list(base), dtype=torch.int64),
        "base_losses": torch.tensor([loss.all for loss in base.values()], dtype=torch.float64),
        "base_coarse": torch.tensor([loss.coarse for loss in base.values()], dtype=torch.float64),
        "watch": dict(watch),
    }
    return {
        "state_dict": family.single_file(),
        "added": added_tensors(family, groups),
        "optimizer": optimizer,
        "optimizer_groups": optimizer_groups,
        "ema": ema,
        METADATA_KEY: ours,
    }


def added_tensors(family: Family, groups: Sequence[ParameterGroup]) -> StateDict:
    """Return the trained tensors that are not the model's own, by parameter name."""
    added = {f"{part}.{name}" for part, network in family.modules().items() for name in added_names(network)}
    named = [pair for group in groups for pair in zip(group.names, group.parameters, strict=True)]
    return {name: parameter.detach() for name, parameter in named if name in added}


def without_misfits(checkpoint: Checkpoint, family: Family, groups: Sequence[ParameterGroup]) -> Checkpoint:
    """Return the checkpoint without what was added and fits nothing that is added now, its state included."""
    now = added_tensors(family, groups)
    unfit = {name for name, t in checkpoint.added.items() if name not in now or now[name].shape != t.shape}

    def fitting(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in tensors.items() if name not in unfit}

    added, optimizer, ema = map(fitting, (checkpoint.added, checkpoint.optimizer, checkpoint.ema))
    return replace(checkpoint, added=added, optimizer=optimizer, ema=ema)


def load_added(groups: Sequence[ParameterGroup], saved: StateDict) -> None:
    """Put saved tensors back into what a method has added."""
    for group in groups:
        for name, parameter in zip(group.names, group.parameters, strict=True):
            if name in saved:
                parameter.data.copy_(saved[name])


def checkpoint_bytes(family: Family, groups: Sequence[ParameterGroup], with_ema: bool, moment_bytes: int = 4) -> int:
    """Return about how large a last.ckpt will be: the model, what was added, two moments, the average in float32."""
    trained = sum(parameter.numel() for group in groups for parameter in group.parameters)
    model = total_bytes(family.single_file()) + total_bytes(added_tensors(family, groups))
    return model + trained * (2 * moment_bytes + 4 * with_ema)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a last.ckpt. Raises ResumeError for a file that is whole but holds no training state."""
    if is_safetensors(path):
        raise ResumeError(
            f"{path} is an export, which holds weights and no training state. Resume from the last.ckpt beside it, or "
            "name it under model.path to start from it."
        )
    try:
        contents, _ = read_contents(path)
    except FormatError as error:
        raise ResumeError(f"{error} Resume from another checkpoint of the run if there is one.") from error
    ours = contents.get(METADATA_KEY) if isinstance(contents, dict) else None
    if not isinstance(ours, dict) or "progress" not in ours:
        raise ResumeError(
            f"{path} holds no training state, so there is nothing to resume. If it is a model to start from, "
            "name it under model.path and leave --resume out."
        )
    if ours["version"] != VERSION:
        raise ResumeError(
            f"{path} was written by another version of EveryDream (state {ours['version']}, this one reads {VERSION})."
        )
    return Checkpoint(
        path=path,
        tensors=contents["state_dict"],
        model=ours["model"],
        added=contents.get("added", {}),
        optimizer=contents["optimizer"],
        optimizer_groups=contents.get("optimizer_groups", {}),
        ema=contents["ema"],
        scaler=ours["scaler"],
        progress=Progress(**ours["progress"]),
        machine=ours["machine"],
        facts=Facts(json.loads(ours["config"]), Digests(_keys_of(ours), ours["image_digests"].numpy())),
        base=_base_of(ours),
        watch=ours.get("watch", {}),
        provenance=provenance_in(contents),
    )


def _keys_of(ours: dict[str, Any]) -> Strings:
    """Return the images' keys, which older files have as JSON."""
    if isinstance(ours["image_keys"], str):
        return Strings.of(json.loads(ours["image_keys"]))
    return Strings(ours["image_keys"].numpy().tobytes(), ours["image_key_offsets"].numpy())


def _base_of(ours: dict[str, Any]) -> dict[int, Loss]:
    """Return the base's losses; of older files none, for they do not have them by noise level."""
    if "base_coarse" not in ours:
        return {}
    pairs = zip(ours["base_losses"].tolist(), ours["base_coarse"].tolist(), strict=True)
    return dict(zip(ours["base_identities"].tolist(), itertools.starmap(Loss, pairs), strict=True))


def peek_config(path: Path) -> dict[str, Any]:
    """Return the settings in a last.ckpt without reading its tensors."""
    try:
        file = path / RUN_FILE if is_sharded(path) else path
        ours = torch.load(file, map_location="cpu", weights_only=True, mmap=True)[METADATA_KEY]
        config: dict[str, Any] = json.loads(ours["config"])
    except Exception:
        # Whatever is wrong with the file, the full reader says it in words.
        config = read_checkpoint(path).facts.config
    return config


# What may differ between a run and its continuation without changing a single number of the training; what data.exclude
# leaves out is compared image by image.
_FREE = (
    "project", "runs_dir", "samples", "trackers", "checkpoints", "model.path", "model.config", "data.workers",
    "data.check", "data.strict", "data.exclude", "data.index", "train.gradient_checkpointing",
    "preservation.every_steps", "preservation.every_epochs", "validation.every_steps", "validation.every_epochs",
    "control", "stop", "memory.offload_optimizer", "memory.offload_frozen", "cache.folder", "cache.max_gb",
)  # fmt: skip


def changes(before: Facts, now: Facts) -> list[str]:
    """Return, one line each, what differs in settings and images; nothing if the run can go on as it was."""
    old, new = flatten(before.config), flatten(now.config)
    lines = [
        f"{key}: was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _is_free(key, old.get(key), new.get(key))
    ]
    return [*lines, *differences(before.images, now.images)]


def require_same(checkpoint: Checkpoint, now: Facts, allow_changes: bool) -> list[str]:
    """Return the changes, or raise ResumeError when there are some and they are not allowed."""
    found = changes(checkpoint.facts, now)
    if found and not allow_changes:
        listed = "\n".join(f"  {line}" for line in found)
        raise ResumeError(
            f"{checkpoint.path} comes from a run with other settings or images, so going on would not give what the "
            f"uninterrupted run gives:\n{listed}\nPut them back, or go on regardless with --allow-changes."
        )
    return found


def rounding_notes(checkpoint: Checkpoint, machine: Mapping[str, int]) -> list[str]:
    """Return a line for each number of processes or threads that is not what it was."""
    return [
        f"{name}: the run had {was}, now {machine[name]}; it goes on with the same images and noise, "
        "and numbers that agree to rounding, not to the bit"
        for name, was in checkpoint.machine.items()
        if machine[name] != was
    ]


def _is_free(key: str, before: Any, now: Any) -> bool:
    # Folders may move; what is in them is compared image by image. With or without one is another matter.
    source_moved = key.startswith("data.sources.") and key.endswith(".path")
    moved = source_moved or (key in ("preservation.path", "validation.path") and None not in (before, now))
    return moved or any(key == free or key.startswith(free + ".") for free in _FREE)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {dotted key: value}."""
    items: Sequence[tuple[str, Any]]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {prefix: value}
    return {k: v for name, item in items for k, v in flatten(item, f"{prefix}.{name}" if prefix else name).items()}
