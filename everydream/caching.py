"""From a plan to what of it need not be computed again: all processes fill the caches, then training asks them.

plan -> crops and captions that are visited -> keys -> what is missing -> encoded -> what the loader asks
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from everydream.caches.checks import require_variety
from everydream.caches.contents import UNKNOWN, hash_files
from everydream.caches.filling import Images, NoRoom, Room, Shelf, fill_images, fill_texts
from everydream.caches.keys import KEY_BYTES, encoder_hash, text_key
from everydream.caches.known import POOLED, TOKENS, Known
from everydream.caches.needed import Needed, crop_of, latent_keys, needed, needed_captions
from everydream.caches.store import Keys, Store, as_keys
from everydream.config import RunConfig
from everydream.data.fitting import Variants
from everydream.data.plan import draws_of_step
from everydream.errors import ConfigError
from everydream.formats.files import DTYPES
from everydream.models.family import Family
from everydream.plan import Planned
from everydream.training.launch import Launch
from everydream.training.memory import resolved
from everydream.types import EpochPlan, Index

Counter = Callable[[int, int], None]
Counting = Callable[[str], AbstractContextManager[Counter]]


def variants_of(config: RunConfig) -> Variants | None:
    """Return the crops that are kept of each image; None where each visit draws its own, or has none to draw."""
    return Variants(config.cache.variants) if config.cache.variants > 1 else None


def cache_folder(config: RunConfig) -> Path:
    """Return where a run's caches are."""
    given = config.cache.folder
    return Path(given) if given is not None else Path(config.runs_dir) / "cache"


def require_cacheable(planned: Planned, family: Family) -> None:
    """Raise ConfigError for what caches would silently freeze, or cannot hold."""
    cache = planned.config.cache
    if not cache.is_on:
        return
    require_variety(planned.index, cache, planned.config.data)
    if cache.latents and family.needs_pixels:
        raise ConfigError(
            f"cache.latents: this {family.name} model is shown something of the pixels besides latents (a mask and "
            "what it leaves, or a depth map), which is made anew at each visit. Set cache.latents: false."
        )


@dataclass
class Part:
    """One of the two caches of a run: what it needs, and how that is called."""

    name: str
    keys: Keys
    encoder: str
    networks: tuple[str, ...]
    """What makes it, and can leave the device once all is there."""


@dataclass
class Caches:
    """The caches of a run, on this process."""

    planned: Planned
    family: Family
    launch: Launch
    say: Callable[[str], None]
    counting: Counting
    store: Store
    contents_N: Keys
    needed: Needed
    captions: list[str]
    images: Part | None
    texts: Part | None
    has_pooled: bool

    def known(self) -> Known:
        """Return what the loader asks."""
        config = self.planned.config
        return Known(
            self.store, self.contents_N, config.data.background, config.cache.dtype,
            self.images.encoder if self.images is not None else None,
            self.texts.encoder if self.texts is not None else None, self.has_pooled,
        )  # fmt: skip

    def whole(self) -> list[str]:
        """Return the networks that are not needed for training any more, since all that they make is there."""
        return [name for part in self._parts() if self.store.has(part.keys).all() for name in part.networks]

    @property
    def is_whole(self) -> bool:
        """Whether all that the run needs is there."""
        return all(self.store.has(part.keys).all() for part in self._parts())

    def describe(self) -> str:
        """Return what is there of what is needed."""
        counts = [f"{part.name} {int(self.store.has(part.keys).sum())} of {len(part.keys)}" for part in self._parts()]
        return f"Cache: {', '.join(counts)} in {self.store.folder}"

    def fill(self, leave_free: int) -> None:
        """Make what is missing, all processes together; where there is no room, say so and leave it at that."""
        if self.launch.is_main:
            for line in self.store.remove_damaged():
                self.say(f"Cache: damaged and made anew: {line}")
        self.launch.wait()
        self.store.look()
        keep = np.concatenate([part.keys for part in self._parts()])
        self.store.touch(keep)
        room = Room(self.planned.config.cache.max_gb * 1e9, leave_free, keep)
        try:
            for part, fill in ((self.images, self._fill_images), (self.texts, self._fill_texts)):
                if part is not None and not self.store.has(part.keys).all():
                    with self.counting(f"Caching {part.name}") as counter, torch.no_grad(), self.launch.autocast():
                        about = {"kind": part.name, "encoder": part.encoder, "dtype": self.planned.config.cache.dtype}
                        fill(Shelf(self.store, about, room), counter)
        except NoRoom as error:
            self.say(f"The cache could not be filled: {error}. What is not in it is encoded at each visit.")
        self.launch.wait()
        self.store.look()

    def _parts(self) -> list[Part]:
        return [part for part in (self.images, self.texts) if part is not None]

    def _fill_images(self, shelf: Shelf, counter: Counter) -> None:
        planned, world, device = self.planned, self.launch.world, self.launch.device
        config, variants, part = planned.config, variants_of(planned.config), self.images
        assert part is not None
        images = Images(
            planned.index, config.data, self.contents_N, self.needed.record_W, self.needed.bucket_W, part.keys,
            lambda n: crop_of(planned.index, self.needed, n, planned.buckets, variants, config.data),
        )  # fmt: skip
        problems = fill_images(
            images, shelf, lambda pixels: self.family.image_moments(pixels.to(device)).cpu(), config.cache.dtype,
            (self.launch.rank, world), workers_of(config, self.launch),
            lambda done, total: counter(done * world, total * world),
        )  # fmt: skip
        for line in problems:
            self.say(f"Cache: {line}")

    def _fill_texts(self, shelf: Shelf, counter: Counter) -> None:
        assert self.texts is not None
        encoder, dtype, world = self.texts.encoder, self.planned.config.cache.dtype, self.launch.world

        def read(captions: Sequence[str]) -> list[torch.Tensor]:
            found = self.family.read_captions(captions)
            return [found.tokens_BLD] if found.pooled_BD is None else [found.pooled_BD, found.tokens_BLD]

        outputs = (POOLED, TOKENS) if self.has_pooled else (TOKENS,)
        fill_texts(
            self.captions, shelf, read, lambda caption: [text_key(caption, o, encoder, dtype) for o in outputs], dtype,
            (self.launch.rank, world), lambda done, total: counter(done * world, total * world),
        )  # fmt: skip


def make_caches(
    planned: Planned, family: Family, launch: Launch, say: Callable[[str], None], counting: Counting
) -> Caches:
    """Return the caches of a run as they are, nothing filled yet."""
    config, index = planned.config, planned.index
    folder, dtype, variants = cache_folder(config), config.cache.dtype, variants_of(config)
    visited = needed(epochs(planned), len(index), planned.buckets, variants)
    kept = DTYPES[resolved(config.memory, config.train, config.optimizer).frozen]
    images = texts = None
    contents_N, captions, has_pooled = as_keys([UNKNOWN] * len(index)), [""], False
    if config.cache.latents:
        with counting("Hashing images") as counter, launch.main_first(), launch.first_of_each_machine():
            contents_N = _contents(folder, index, visited, counter)
        encoder = encoder_hash(family.image_encoder(), kept, config.train.precision)
        keys = latent_keys(index, visited, planned.buckets, variants, config.data, contents_N, encoder, dtype)
        images = Part("latents", keys, encoder, ("vae",))
    if config.cache.text:
        encoder = encoder_hash(family.text_encoders(), kept, config.train.precision)
        captions = needed_captions(index, visited.record_W)
        with torch.no_grad(), launch.autocast():
            has_pooled = family.read_captions([""]).pooled_BD is not None
        outputs = (POOLED, TOKENS) if has_pooled else (TOKENS,)
        keys = as_keys([text_key(caption, output, encoder, dtype) for caption in captions for output in outputs])
        texts = Part("text", keys, encoder, family.text_parts)
    return Caches(
        planned, family, launch, say, counting, Store(folder), contents_N, visited, captions, images, texts, has_pooled
    )


def _contents(folder: Path, index: Index, visited: Needed, progress: Counter) -> Keys:
    """Return the hash of each record's file; of those that are not visited, UNKNOWN."""
    records = np.unique(visited.record_W)
    paths = [index.file(record) for record in records.tolist()]
    contents_N = np.full(len(index), UNKNOWN, f"S{KEY_BYTES}")
    spans = [index.span(record) for record in records.tolist()]
    contents_N[records] = hash_files(folder, paths, spans, progress)
    return contents_N


def epochs(planned: Planned) -> Iterator[EpochPlan]:
    """Yield the plans of all epochs, the last one as far as the run goes."""
    left = planned.total_steps
    for number, steps in enumerate(planned.steps_per_epoch):
        if left <= 0:
            return
        plan = planned.epoch(number)
        yield plan if steps <= left else _first_steps(plan, left)
        left -= steps


def _first_steps(plan: EpochPlan, steps: int) -> EpochPlan:
    first, num = draws_of_step(plan, steps - 1)
    batches = int(np.searchsorted(plan.batch_offsets, first + num))
    return EpochPlan(
        plan.epoch, plan.record_K[: first + num], plan.nth_K[: first + num], plan.batch_offsets[: batches + 1],
        plan.bucket_of_batch[:batches], plan.accumulation,
    )  # fmt: skip


def workers_of(config: RunConfig, launch: Launch) -> int:
    """Return how many processes decode for this one."""
    return config.data.workers if config.data.workers is not None else launch.default_workers()
