"""The work of `everydream cache`: each returns the lines to print, and whether all is well."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from everydream.caches.store import MARK, Store, last_used
from everydream.caching import cache_folder, make_caches, require_cacheable
from everydream.class_images import describe_missing, with_class_images
from everydream.config import RunConfig
from everydream.errors import ConfigError, DataError
from everydream.formats.atomic import format_bytes
from everydream.plan import plan_run
from everydream.preparing import load_family, require_fitting
from everydream.training.display import Display
from everydream.training.launch import Launch
from everydream.training.memory import resolved
from everydream.training.placing import place

_DAY_S = 86_400.0
Told = tuple[list[str], bool]


def fill(config: RunConfig) -> Told:
    """Fill a run's caches without training; all processes that were launched together share the work."""
    if not config.cache.is_on:
        raise ConfigError("cache: nothing is to be kept. Set cache.latents: true, cache.text: true or both.")
    launch = Launch(config.train, [], config.seed)
    display = Display(launch.is_main)
    config, folders = with_class_images(config)
    for line in describe_missing(folders):
        display.say(f"{line}; they are made, and kept here, when training starts.")
    with display.counting("Checking images") as counter:
        planned = plan_run(config, counter)
    family = load_family(config)
    require_fitting(config, planned, family)
    require_cacheable(planned, family)
    use = resolved(config.memory, config.train, config.optimizer)
    for network in family.modules().values():
        network.requires_grad_(False)
    place(family, [], use, config.train, launch.device)
    caches = make_caches(planned, family, launch, display.say, display.counting)
    caches.fill(leave_free=0)
    told = ([caches.describe()] if launch.is_main else []), caches.is_whole
    launch.close(family)
    return told


def verify(folder: Path, progress: Callable[[int, str], None] = lambda done, said: None) -> Told:
    """Read every byte of a cache; what is damaged is named, and made anew when a run next fills the cache."""
    store = _opened(folder)
    found = store.verify(lambda done: progress(done, ""))
    for path in found:
        with suppress(OSError):
            path.with_suffix(MARK).touch()
    entries = sum(len(shard.rows) for shard in store.shards)
    lines = [*(f"{path}: damaged: {why}" for path, why in found.items()), *store.take_notes()]
    if found:
        lines.append(f"{len(found)} damaged; the next run, or everydream cache fill, makes them anew.")
    if lines:
        return lines, False
    return [f"{folder}: {len(store.shards)} shards, {entries} entries, all as they were written"], True


def size(folder: Path) -> Told:
    """Say what a cache holds, by what made it."""
    store = _opened(folder)
    lines = [
        f"{row.about}: {row.entries} entries in {row.shards} shards, {format_bytes(row.bytes)}, last used "
        f"{(time.time() - row.used) / _DAY_S:.0f} days ago"
        for row in store.sums()
    ]
    damaged = f", {len(store.damaged)} of them damaged" if store.damaged else ""
    num = len(store.shards) + len(store.damaged)
    return [*lines, f"{folder}: {format_bytes(store.taken_bytes)} in {num} shards{damaged}"], True


def collect(folder: Path, unused_days: float | None, max_gb: float | None) -> Told:
    """Remove what is damaged, unfinished or there twice; what was long unused, and what is above a bound, if asked."""
    store = _opened(folder)
    before = store.taken_bytes
    lines = [f"removed, damaged: {line}" for line in store.remove_damaged()]
    if unfinished := store.remove_unfinished():
        lines.append(f"removed: {unfinished} files that killed processes left unfinished")
    old = time.time() - (unused_days if unused_days is not None else float("inf")) * _DAY_S
    for what, shards in (
        ("there twice", store.redundant()),
        ("long unused", [shard for shard in store.shards if last_used(shard.path) < old]),
    ):
        if shards:
            store.remove(shards)
            lines.append(f"removed, {what}: {len(shards)} shards")
    if max_gb is not None:
        store.trim(0, max_gb * 1e9, store.shards)
    freed = format_bytes(before - store.taken_bytes)
    return [*lines, f"{folder}: {format_bytes(store.taken_bytes)} left, {freed} freed"], True


def folder_of(folder: Path | None, config: RunConfig | None) -> Path:
    """Return the folder that a command is about."""
    if (folder is None) == (config is None):
        raise ConfigError("Say which cache: its folder, or --config project.yaml (one of them).")
    if folder is not None:
        return folder
    assert config is not None
    return cache_folder(config)


def _opened(folder: Path) -> Store:
    if not folder.is_dir():
        raise DataError(
            f"{folder.absolute()}: there is no cache. It is made when a run with cache.latents: true starts."
        )
    return Store(folder)
