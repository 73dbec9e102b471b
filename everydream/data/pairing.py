"""Which class images go with which training images, and what sources cannot say by themselves.

Class images (`role: class`) keep what a word meant before the subject came: for each draw of a training image there
is one of a class image. Sources that pair with exactly the same training sources form a pool and share its draws.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from everydream.data.settings import SourceSettings

MARKER = "class_images.json"
"""Lies in folders of class images that were made by us."""


def unique_names(sources: Sequence[SourceSettings]) -> list[str]:
    """Name each source: as asked, else by the last part of its path; a later twin gets " (2)" and so on."""
    names: list[str] = []
    for source in sources:
        wanted = _wanted_name(source)
        name, number = wanted, 1
        while name in names:
            number += 1
            name = f"{wanted} ({number})"
        names.append(name)
    return names


def _wanted_name(source: SourceSettings) -> str:
    if source.name is not None or source.path is None:
        return source.name or "class images"
    return Path(os.path.abspath(source.path)).name or "images"  # noqa: PTH100 - keep links


def partners_of(number: int, sources: Sequence[SourceSettings], names: Sequence[str]) -> tuple[int, ...]:
    """Return the training sources that class source `number` pairs with."""
    wanted = sources[number].pairs_with
    return tuple(
        other
        for other, source in enumerate(sources)
        if source.role == "training" and (wanted is None or names[other] in wanted)
    )


def pools(sources: Sequence[SourceSettings], names: Sequence[str]) -> Mapping[tuple[int, ...], list[int]]:
    """Return {training sources: class sources that are drawn as often as these, together}."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, source in enumerate(sources):
        if source.follows:
            found.setdefault(partners_of(number, sources, names), []).append(number)
    return found


def source_problems(sources: Sequence[SourceSettings]) -> list[str]:
    """Return what is wrong with the sources together, each line with its key path; for `config` to add to its own."""
    names = unique_names(sources)
    problems = [line for number in range(len(sources)) for line in _path_problems(number, sources[number])]
    if all(source.role == "class" for source in sources):
        nothing = "every source has role: class, so there is no subject to learn; add its images with role: training."
        return [*problems, f"data.sources: {nothing}"]
    problems += [line for number in range(len(sources)) for line in _partner_problems(number, sources, names)]
    return [*problems, *_twin_problems(sources, names), *_share_problems(sources, names)]


def _path_problems(number: int, source: SourceSettings) -> Iterator[str]:
    key = f"data.sources.{number}.path"
    if source.path is not None:
        return
    if source.role != "class" or source.caption_rule == "manifest":
        yield f"{key}: missing. {SourceSettings.model_fields['path'].description}"
    elif source.generate is None:
        yield (
            f"{key}: missing. Class images need a folder that holds them, or `generate` (how many) and `label` (the "
            "prompt), to have them made from the model."
        )


def _partner_problems(number: int, sources: Sequence[SourceSettings], names: Sequence[str]) -> Iterator[str]:
    source, known = sources[number], [names[n] for n, other in enumerate(sources) if other.role == "training"]
    if source.role != "class":
        return
    if not known:
        yield (
            f"data.sources.{number}.role: class images are drawn along with training images, and no source has "
            "role: training; add one, or make this one ground_truth."
        )
        return
    key = f"data.sources.{number}.pairs_with"
    shared = Counter(_wanted_name(other) for other in sources if other.role == "training")
    for name, times in Counter(source.pairs_with or ()).items():
        if times > 1:
            yield f"{key}: names {name!r} {times} times; once is enough."
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            yield f"{key}: {name!r} is no training source; there are {', '.join(map(repr, known))}.{hint}"
        elif shared[name] > 1:
            yield f"{key}: {shared[name]} sources are called {name!r}; give each a `name` of its own."


def _twin_problems(sources: Sequence[SourceSettings], names: Sequence[str]) -> Iterator[str]:
    """Tell of a class folder that is listed twice for the same training sources: its images would count twice."""
    seen: dict[tuple[str, tuple[int, ...]], int] = {}
    for number, source in enumerate(sources):
        if source.role == "class" and source.path is not None:
            folder = os.path.realpath(Path(source.path).expanduser())
            first = seen.setdefault((folder, partners_of(number, sources, names)), number)
            if first != number:
                yield (
                    f"data.sources.{number}.path: {source.path} is listed as data.sources.{first} already, for the "
                    "same training sources; keep one of the two."
                )


def _share_problems(sources: Sequence[SourceSettings], names: Sequence[str]) -> Iterator[str]:
    """Tell of shares that leave no room for the class images which follow them."""
    followed = pools(sources, names)
    if not followed or all(source.share is not None for source in sources):
        return
    if all(source.share is not None or source.follows for source in sources):
        yield (
            "data.sources: all sources have a share, but for class images, which follow them; so there is nothing to "
            "be a share of. Give one repeats or choose."
        )
        return
    shares = sum(source.share or 0.0 for source in sources)
    doubled = sum(sources[n].share or 0.0 for partners in followed for n in partners)
    if shares < 1.0 <= shares + doubled:
        yield (
            f"data.sources: the shares sum to {shares:g}, and class images follow {doubled:g} of that with as many "
            f"draws again: {shares + doubled:g} of all draws. Leave room below 1, or give the class images repeats."
        )
