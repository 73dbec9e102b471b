"""What a grid can be drawn from: a run's exports by step, its base and its last.ckpt, or models by their paths."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from everydream.config import RunConfig
from everydream.errors import ConfigError
from everydream.models.settings import ModelSettings, is_hub_id
from everydream.tools.grid.values import known, numbers
from everydream.training.runs import LAST

_STEPS = re.compile(r"\d[\d\s()+\-\[\]]*")
"""What steps and ranges of them are written with."""


@dataclass(frozen=True)
class Source:
    """Where weights come from."""

    model: ModelSettings
    loras: tuple[Path, ...] = ()
    """Adapters of the run, merged with the others."""
    words: tuple[Path, ...] = ()
    hypernetwork: Path | None = None
    clip_skip: int = 0
    chunks: int = 1

    @property
    def is_last(self) -> bool:
        """Whether it is the state of a run, which holds trained and averaged weights."""
        return Path(self.model.path).name == LAST

    def without_adapters(self) -> "Source":
        """Return what has to be loaded; adapters come and go."""
        return replace(self, loras=())

    def files(self) -> list[Path]:
        """Return all that its pictures depend on and that is on this machine."""
        paths = [Path(self.model.path), *self.loras, *self.words, *([self.hypernetwork] if self.hypernetwork else [])]
        return [path for path in paths if path.exists()]


@dataclass
class Sources:
    """The sources of a grid by their labels."""

    run: Path | None = None
    config: RunConfig | None = None
    exports: dict[int, list[Path]] = field(default_factory=dict)
    """Files of each exported step."""
    clip_skip: int = 0
    found: dict[str, Source] = field(default_factory=dict)
    """Those that were asked for, by label."""

    def take(self, item: str) -> list[str]:
        """Return the labels of what an item names: all, base, last, a step or steps of the run, a path, a hub id."""
        if self.run is not None and item == "all":
            return [self._step(step) for step in self.exports]
        if self.run is not None and item in ("base", "last"):
            return [self._base() if item == "base" else self._last()]
        if self.run is not None and _STEPS.fullmatch(item):
            return [self._step(int(step)) for step in numbers("checkpoint", item, whole=True)]
        if Path(item).exists() or is_hub_id(item):
            return [self._path(item)]
        choices = [*map(str, self.exports), "all", "base", "last"] if self.run is not None else []
        if not choices:
            raise ConfigError(f"checkpoint: there is nothing at {Path(item).absolute()}. Give files, folders or --run.")
        return self.take(known("checkpoint", item, choices))

    def usual(self) -> str:
        """Return the label of a run's newest weights: its last export, or its last.ckpt where there is none."""
        return self._step(max(self.exports)) if self.exports else self._last()

    def require_averages(self) -> None:
        """Raise ConfigError unless a last.ckpt with an average is there to take the weights from."""
        if self.run is not None and self.config is not None and self.config.ema.decay is None:
            raise ConfigError("ema: the run keeps no average (ema.decay is null), so there is nothing to compare.")
        if self.run is not None and not any(source.is_last for source in self.found.values()):
            self._last()

    def _step(self, step: int) -> str:
        assert self.config is not None
        if step not in self.exports:
            nearest = min(self.exports, key=lambda there: abs(there - step), default=None)
            raise ConfigError(
                f"checkpoint: {self.run} has no export of step {step}; "
                + (
                    f"nearest is {nearest}. There are {', '.join(map(str, self.exports))}."
                    if nearest
                    else "it has none."
                )
            )
        files, label = tuple(self.exports[step]), f"step {step}"
        whole = self.config.method in ("full", "dreambooth")
        self.found[label] = self._of_run(
            ModelSettings(path=str(files[0])) if whole else self.config.model,
            loras=files if self.config.method == "lora" else (),
            words=files if self.config.method == "textual_inversion" else (),
            hypernetwork=files[0] if self.config.method == "hypernetwork" else None,
        )
        return label

    def _base(self) -> str:
        assert self.config is not None
        self.found["base"] = self._of_run(self.config.model)
        return "base"

    def _last(self) -> str:
        assert self.run is not None
        path = self.run / "checkpoints" / LAST
        if not path.exists():
            raise ConfigError(f"checkpoint: {self.run} has no {LAST}.")
        self.found["last"] = self._of_run(ModelSettings(path=str(path)))
        return "last"

    def _of_run(
        self,
        model: ModelSettings,
        loras: tuple[Path, ...] = (),
        words: tuple[Path, ...] = (),
        hypernetwork: Path | None = None,
    ) -> Source:
        assert self.config is not None
        reading = self.config.text_encoder
        return Source(model, loras, words, hypernetwork, reading.clip_skip, reading.chunks)

    def _path(self, item: str) -> str:
        source = Source(ModelSettings(path=item), clip_skip=self.clip_skip)
        name = Path(item).name or item
        label = name if self.found.get(name, source) == source else item
        self.found[label] = source
        return label
