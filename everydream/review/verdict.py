"""The verdict on a run: which checkpoint to take, why, what went wrong, what to change in the data.

Each piece of advice is a rule over measured numbers, written next to its words; what was not measured is said to be
unknown and never guessed.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from everydream.evaluation.judging import BLED, FORGOTTEN, Point, best_of, least_of, points_of
from everydream.review.history import History
from everydream.training.export import exports_in

_BLEEDING, _COPYING_SSIM = 0.25, 0.85
_STANDS_OUT, _FALLEN = 0.25, 0.5
_NAMED = 3


@dataclass(frozen=True)
class Verdict:
    """What a run's numbers say."""

    headline: str
    step: int | None
    """Of the best point that was measured; None: nothing was."""
    exports: list[Path]
    """Of that step, if they are there."""
    why: list[str]
    wrong: list[str]
    """What went wrong."""
    change: list[str]
    """What to change in data or settings."""

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON data, paths as text."""
        return {**asdict(self), "exports": [str(path) for path in self.exports]}

    def lines(self) -> list[str]:
        """Return it for a terminal."""
        found = [f"Verdict: {self.headline}"]
        for name, items in (("why", self.why), ("wrong", self.wrong), ("change", self.change)):
            found += [f"  {name + ':' if not number else '':<8}{item}" for number, item in enumerate(items)]
        return found


def verdict(history: History) -> Verdict:
    """Judge a run by what it has written so far."""
    points = points_of(history.looks)
    best = best_of(points)
    exports = _exports(history, best)
    return Verdict(
        headline=_headline(history, best, exports),
        step=best.step if best is not None else None,
        exports=exports,
        why=list(_why(history, points, best)),
        wrong=list(_wrong(history)),
        change=list(_change(history, points, best)),
    )


def _exports(history: History, best: Point | None) -> list[Path]:
    folder = history.run / "checkpoints"
    if best is None or not folder.is_dir():
        return []
    return sorted(exports_in(folder, str(history.config.get("project", ""))).get(best.step, []))


def _headline(history: History, best: Point | None, exports: list[Path]) -> str:
    if best is None:
        return "nothing was validated, so no checkpoint can be said to be the best; set validation.images, e.g. 8."
    if best.cost >= 0:
        return f"no step is better than the base model; the least bad one is step {best.step}."
    if exports:
        return f"take step {best.step}: {', '.join(path.name for path in exports)}."
    return f"step {best.step} was the best and its export is not there; checkpoints.keep_best keeps it."


def _why(history: History, points: list[Point], best: Point | None) -> Iterator[str]:
    least = least_of(points)
    if best is None or least is None:
        return
    look = history.looks[best.step]
    trained = [point for point in points if point.step]
    if least is best:
        yield f"of {len(trained)} measured steps it has the least cost, {best.cost:+.3f}"
    else:
        yield (
            f"of {len(trained)} measured steps the latest within a twentieth of the most that was won: its cost is "
            f"{best.cost:+.3f}, the least {least.cost:+.3f} at step {least.step}"
        )
    learned = _with_doubt(look, "validation")
    yield f"the subject's loss on images that are not trained on: {learned} against the base's, finest details aside"
    if FORGOTTEN in look:
        yield f"what the base model knew: its loss {_percent(best.forgotten)}"
    if BLED in look:
        yield f"bleeding into other pictures: {best.bled:.2f} (0 none, 1 all)"
    last = points[-1]
    if last.step != best.step:
        yield f"the last measured step, {last.step}, costs {last.cost:+.3f}"


def _percent(change: float) -> str:
    return f"{100 * math.expm1(change):+.1f} %"


def _with_doubt(look: dict[str, Any], name: str) -> str:
    change, margin = look.get(f"{name}/coarse_change"), look.get(f"{name}/coarse_margin")
    if change is None:
        return "not measured"
    doubt = "" if margin is None else f" (between {_percent(change - margin)} and {_percent(change + margin)})"
    return f"{_percent(change)}{doubt}"


def _wrong(history: History) -> Iterator[str]:
    # Events are not taken back on a resume, so what was done again may be told twice.
    for alarm in {alarm["alarm"]: alarm for alarm in history.alarms}.values():
        yield f"step {alarm['step']}, {alarm['alarm']}: {alarm['advice']}"
    rejected = {(e.get("source"), e["path"]) for e in history.events if e.get("event") == "image rejected"}
    if rejected:
        yield f"rejected images: {len(rejected)}; events.jsonl has the reasons"
    skipped = sum("skipped" in step for step in history.steps)
    if skipped:
        yield f"{skipped} of {len(history.steps)} steps were skipped"
    failed = {str(event["event"]) for event in history.events if str(event.get("event", "")).endswith(" failed")}
    for what in sorted(failed):
        yield f"{what}; events.jsonl says when and why"


def _change(history: History, points: list[Point], best: Point | None) -> Iterator[str]:
    yield from _about_length(history, points, best)
    yield from _about_forgetting(history, best)
    yield from _about_copies(history, best)
    yield from _about_images(history)


def _about_length(history: History, points: list[Point], best: Point | None) -> Iterator[str]:
    if best is None:
        return
    trained = [point for point in points if point.step]
    if len(trained) > 2 and best == trained[-1] == least_of(points):
        first = "first stop the forgetting, then " if _forgot(history) else ""
        yield f"the last measured step is the best, so it was still getting better: {first}train longer"
    last = history.looks[trained[-1].step]
    gap, margin = last.get("overfit/gap"), last.get("overfit/margin")
    if gap is not None and margin is not None and gap - margin > 0 and best != trained[-1]:
        yield (
            f"at the end the loss on training images was {-100 * math.expm1(-gap):.0f} % further down than on others: "
            f"learned by heart. Stop near step {best.step}, or add images: close-ups, other angles, backgrounds, light"
        )


def _about_forgetting(history: History, best: Point | None) -> Iterator[str]:
    sources = history.plan.get("sources", [])
    total = sum(source["draws"] for source in sources)
    truth = sum(source["draws"] for source in sources if source["role"] == "ground_truth")
    share = truth / total if total else 0.0
    bleeds = best is not None and best.bled > _BLEEDING
    more = (
        f"more ground truth (it is {100 * share:.0f} % of the draws)"
        if truth
        else "ground truth, a quarter of the draws to begin with"
    )
    if _forgot(history):
        yield f"what the base model knew has suffered beyond doubt: {more}, a lower rate, or fewer steps"
    if bleeds:
        advice = f"name it by a rare word, caption what recurs in its pictures, and add {more}"
        yield f"other pictures take on the look of the subject: {advice}"
    if best is not None and not any(FORGOTTEN in look for look in history.looks.values()):
        yield "what the base model knew was not measured: preservation.images tells it"


def _forgot(history: History) -> bool:
    """Tell whether the last measurement shows beyond doubt that what the base model knew has suffered."""
    looks = [look for _, look in sorted(history.looks.items()) if FORGOTTEN in look]
    return bool(looks) and looks[-1][FORGOTTEN] - looks[-1].get("preservation/coarse_margin", 0.0) > 0


def _about_copies(history: History, best: Point | None) -> Iterator[str]:
    ssim = [look["copying/ssim"] for _, look in sorted(history.looks.items()) if "copying/ssim" in look]
    if len(ssim) > 1 and ssim[-1] > _COPYING_SSIM and ssim[-1] > ssim[0]:
        yield (
            f"samples look like training images (SSIM {ssim[-1]:.2f} with the nearest, {ssim[0]:.2f} before training): "
            "more different images, fewer repeats, or an earlier checkpoint"
        )
    twins = history.plan.get("twins", [])
    if twins:
        shown = "; ".join(", ".join(group[:_NAMED]) for group in twins[:_NAMED])
        yield f"pictures that are there more than once, near duplicates: {len(twins)}; remove the copies: {shown}"


def _about_images(history: History) -> Iterator[str]:
    high = [entry for entry in history.ledger.get("high", []) if entry["excess"] > _STANDS_OUT]
    if high:
        named = ", ".join(f"{entry['key']} ({100 * entry['excess']:+.0f} %)" for entry in high[:_NAMED])
        yield f"images whose loss is far above the others' of their source: {len(high)}; look at them: {named}"
    fallen = [entry for entry in history.ledger.get("fallen", []) if entry["fallen"] > _FALLEN]
    if fallen:
        named = ", ".join(entry["key"] for entry in fallen[:_NAMED])
        yield f"learned by heart, {len(fallen)} in all; lower their repeats or look for copies: {named}"
