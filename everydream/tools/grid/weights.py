"""The model that cells are drawn by: loaded once for each checkpoint, with adapters put in and taken out to the bit."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from everydream.config import RunConfig
from everydream.errors import ConfigError
from everydream.methods import METHODS
from everydream.methods.hypernetwork import load_into
from everydream.methods.merging import merge_adapter
from everydream.methods.textual_inversion import learn_files
from everydream.models.family import Family
from everydream.models.load import load, restore
from everydream.tools.grid.sources import Source
from everydream.tools.models.files import to_fastest_device
from everydream.training.state import load_added, read_checkpoint

Merged = tuple[tuple[Path, float], ...]


class Bench:
    """One model at a time, changed as little as the next cell needs."""

    def __init__(self) -> None:
        self.num_loads = 0
        self._source: Source | None = None
        self._family: Family | None = None
        self._both: _Both | None = None
        self._merged: Merged = ()
        self._plain: dict[str, torch.Tensor] = {}

    def place(self, source: Source, ema: bool | None, adapters: Merged) -> Family:
        """Return the model as a cell needs it. Raises EveryDreamError subclasses for what does not fit."""
        if self._family is None or not self.holds(source):
            self._drop()
            self._family, self._both = _loaded(source)
            self._source = source.without_adapters()
            self.num_loads += 1
        self._show(ema)
        if adapters != self._merged:
            self._take_out()
            self._put_in(adapters)
        return self._family

    def holds(self, source: Source) -> bool:
        """Tell whether the model of a source is the one in place."""
        return self._source == source.without_adapters()

    def _drop(self) -> None:
        # Before the next is loaded: two models may not fit.
        self._source = self._family = self._both = None
        self._merged, self._plain = (), {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _show(self, ema: bool | None) -> None:
        if self._both is None:
            if ema is not None:
                raise ConfigError("Only a run's last.ckpt holds trained and averaged weights; this checkpoint is none.")
            return
        wanted = self._both.usual if ema is None else ema
        if wanted and not self._both.averaged:
            raise ConfigError("This last.ckpt holds no average: its run kept none (ema.decay).")
        if wanted != self._both.shows_average:
            self._take_out()
            self._both.swap()

    @torch.no_grad()
    def _put_in(self, adapters: Merged) -> None:
        assert self._family is not None
        self._plain = {
            name: weight.detach().to("cpu", copy=True) for name, (_, weight) in self._family.adapter_weights().items()
        }
        try:
            for path, strength in adapters:
                merge_adapter(self._family, path, strength)
        except BaseException:
            self._take_out()
            raise
        self._merged = adapters

    @torch.no_grad()
    def _take_out(self) -> None:
        """Put the weights back as they were: subtracting an adapter again would round."""
        if self._plain:
            assert self._family is not None
            for name, (_, weight) in self._family.adapter_weights().items():
                weight.data.copy_(self._plain[name])
        self._merged, self._plain = (), {}


class _Both:
    """The trained weights of a run's state and their average, one of them in place."""

    def __init__(self, live: Mapping[str, torch.Tensor], averaged: dict[str, torch.Tensor], usual: bool) -> None:
        self.averaged = {name: averaged[name].to(live[name], copy=True) for name in live if name in averaged}
        self.usual = usual and bool(self.averaged)
        self.shows_average = False
        self._live = live

    @torch.no_grad()
    def swap(self) -> None:
        """Put the other in place."""
        for name, other in self.averaged.items():
            held = self._live[name].detach().clone()
            self._live[name].data.copy_(other)
            other.copy_(held)
        self.shows_average = not self.shows_average


def _loaded(source: Source) -> tuple[Family, _Both | None]:
    if source.is_last:
        return _state_of_a_run(Path(source.model.path))
    family = load(source.model, source.clip_skip, source.chunks)
    if source.words:
        learn_files(family, source.words)
    if source.hypernetwork is not None:
        load_into(family, source.hypernetwork, 1.0)
    to_fastest_device(family)
    return family, None


def _state_of_a_run(path: Path) -> tuple[Family, _Both]:
    checkpoint = read_checkpoint(path)
    config = RunConfig.model_validate(checkpoint.facts.config)
    reading = (config.text_encoder.clip_skip, config.text_encoder.chunks)
    family = restore(checkpoint.tensors, checkpoint.model, path, *reading)
    groups = METHODS[config.method](config).attach(family, config.seed, _captions(config))
    load_added(groups, checkpoint.added)
    for module in family.modules().values():
        module.eval().requires_grad_(False)
    to_fastest_device(family)
    live = {name: p for group in groups for name, p in zip(group.names, group.parameters, strict=True)}
    return family, _Both(live, checkpoint.ema, config.checkpoints.use_ema)


def _captions(config: RunConfig) -> Sequence[str]:
    """Return captions that hold every word, which a method of words asks for."""
    return [" ".join(word.token for word in config.textual_inversion.words)]
