"""Which of a run's exports to keep: the one that knows the concept best of those that have not lost the class.

Every export is measured at the same noise and noise levels, on the concept's images and on the class's, as
the preservation monitor measures. The concept's own loss falls even while a model learns its photos by heart, so
this tells the forgetting from the learning, and not which picture you will like: look at the grid too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from everydream.config import RunConfig
from everydream.evaluation.heldout import Measured, Role, evenly, measured_records, of_role
from everydream.evaluation.measuring import Loss, compare, losses
from everydream.models.family import Family
from everydream.plan import Planned
from everydream.tools.models.runs import with_export

_MAX_IMAGES = 16
_TIMESTEPS = 8


@dataclass(frozen=True)
class Candidate:
    """An export with what was measured of it."""

    path: Path
    step: int
    concept: float
    """Mean loss on the concept's images."""
    change: float | None
    """Mean difference of the loss on class images to the base model's; None where there are none."""
    margin: float
    """Half its 95 % confidence interval."""

    @property
    def has_forgotten(self) -> bool:
        """Whether the class's loss has risen beyond doubt."""
        return self.change is not None and self.change - self.margin > 0


def measure(
    config: RunConfig,
    planned: Planned,
    exports: Sequence[tuple[int, Path]],
    progress: Callable[[int, int], None],
) -> list[Candidate]:
    """Return every export with its measures."""
    concept, of_class = _measured(planned, "training"), _measured(planned, "class")
    base = _losses(with_export(config, None), of_class, config) if of_class is not None else {}
    found = []
    for done, (step, path) in enumerate(exports, 1):
        family = with_export(config, path)
        assert concept is not None, "a run has training images"
        learned = _losses(family, concept, config)
        kept = compare(_losses(family, of_class, config), base) if of_class is not None else None
        found.append(
            Candidate(
                path=path,
                step=step,
                concept=sum(loss.all for loss in learned.values()) / len(learned),
                change=kept.change if kept is not None else None,
                margin=(kept.margin or 0.0) if kept is not None else 0.0,
            )
        )
        progress(done, len(exports))
    return found


def pick(candidates: Sequence[Candidate]) -> Candidate:
    """Return the one to keep: least concept loss where the class is kept; if nowhere, where it changed least."""
    kept = [candidate for candidate in candidates if not candidate.has_forgotten]
    if kept:
        return min(kept, key=lambda candidate: candidate.concept)
    return min(candidates, key=lambda candidate: candidate.change or 0.0)


def _measured(planned: Planned, role: Role) -> Measured | None:
    """Return some of the images of the sources of a role, evenly spread; None if there are none."""
    records = of_role(planned.index, planned.config.data.sources, role)
    if not len(records):
        return None
    some, config = evenly(records, _MAX_IMAGES), planned.config
    return measured_records(planned.index, some, config.data, config.seed, _TIMESTEPS)


def _losses(family: Family, measured: Measured, config: RunConfig) -> dict[int, Loss]:
    device = next(family.modules()[family.denoiser].parameters()).device
    found, _ = losses(family, measured, config.data, config.seed, _TIMESTEPS, device)
    return found


def table(candidates: Sequence[Candidate], chosen: Candidate) -> Iterator[str]:
    """Yield the lines that show how it was chosen."""
    yield "  step   concept loss   class loss against the base model's"
    for candidate in candidates:
        change = "none measured" if candidate.change is None else f"{candidate.change:+.4f} ± {candidate.margin:.4f}"
        forgotten = ", forgotten" if candidate.has_forgotten else ""
        mark = "  <- kept" if candidate is chosen else ""
        yield f"  {candidate.step:5d}   {candidate.concept:12.4f}   {change}{forgotten}{mark}"
