"""The scan: every image is looked at once, before anything is trained, and becomes a record or a rejection.

    list files -> portions -> known from the last scan? -> captions, headers or pixels (processes) -> columns

No bad file ends the scan; only a source that is not there does, and `require_usable` if nothing is left. Nothing is
ever written beside the user's images. What was found is kept in the user's cache (`data.kept`) as it is found, so the
next scan opens what changed, and a scan that was killed goes on. What is not noticed is a change that leaves a file's
size and both its dates as they were: a fault of the disk, or on Windows, where the second date is that of creation, a
program that writes as many bytes and sets the old date.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from everydream.data import shards
from everydream.data.checking import decodes_all
from everydream.data.columns import Gathering, pack
from everydream.data.excluding import read_excluded
from everydream.data.kept import Kept
from everydream.data.kohya import parse_folder
from everydream.data.pairing import unique_names
from everydream.data.portions import Portion, Task, portions_of
from everydream.data.remote import is_url, url_of
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.sources import REMOVED, source_problem
from everydream.data.surveying import Engine, surveyed
from everydream.data.tables import read_table
from everydream.data.texts import BadText
from everydream.errors import DataError
from everydream.types import Index, Rejection

_MAX_LISTED = 20
_NEARLY_ALL = 0.9
_FEW_IMAGES = 5
OWN_CAPTIONS = ("everydream", "manifest")
"""Caption rules that expect a caption for each image, not one for a whole folder."""


def scan(
    data: DataSettings,
    captions: CaptionSettings,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine | None = None,
) -> Index:
    """Look at every image of every source; `DataError` names all sources that cannot be read.

    `progress` is called with (done, total) as images are done; `engine` opens them, by default this machine. With
    `data.index` no image is looked at: the index is that file.
    """
    if data.index is not None:
        return read_table(Path(data.index), data, captions)
    shards.forget()
    gathering = Gathering(unique_names(data.sources), read_excluded(data.exclude))
    tasks = {n: Task(n, source, captions, data) for n, source in enumerate(data.sources) if not _to_be_made(source)}
    portions = []
    for item in listed(tasks):
        if isinstance(item, Portion):
            portions.append(item)
        else:
            gathering.add(item.source, pack([item]))
    done, total = 0, sum(portion.images for portion in portions)
    tasks = {number: replace(task, full=decodes_all(data, total)) for number, task in tasks.items()}
    with Kept() as kept:
        for portion, chunk in surveyed(tasks, portions, kept, engine):
            gathering.add(portion.source, chunk)
            done += portion.images
            if progress is not None:
                progress(done, total)
    return gathering.index(data, captions)


def listed(tasks: Mapping[int, Task]) -> Iterator[Portion | Rejection]:
    """Yield the portions of every source, and what is known to be no image; `DataError` as `scan`."""
    problems = []
    for number, task in tasks.items():
        problem = source_problem(task.source)
        try:
            yield from [] if problem else portions_of(task)
        except BadText as error:
            problem = str(error)
        problems += [f"data.sources.{number}: {problem}"] if problem else []
    if problems:
        raise DataError("Sources that cannot be read:\n  " + "\n  ".join(problems))


def _to_be_made(source: SourceSettings) -> bool:
    """Tell whether a source's folder is still to be made, of class images."""
    if source.path is None:
        return True
    return source.generate is not None and not is_url(source.path) and not Path(source.path).exists()


def require_usable(index: Index, strict: bool = False) -> None:
    """Raise `DataError` if there is no usable image, or, if `strict`, if any was rejected against the user's will."""
    unwanted = [item for item in index.rejected if not item.reason.startswith(REMOVED)]
    if len(index) == 0:
        removed = len(index.rejected) - len(unwanted)
        hint = f" ({removed} were taken out by multiply 0)" if removed else ""
        raise DataError(f"No usable image in {', '.join(filter(None, index.roots))}{hint}.{_listing(index, unwanted)}")
    empty = [n for n in range(len(index.names)) if not (index.source_N == n).any()]
    # Left out by multiply 0 is left out on purpose; nothing usable in a source that was asked for is a mistake.
    removed_from = {item.source for item in index.rejected if item.reason.startswith(REMOVED)}
    # A source without a folder has none yet: its images are made when training starts.
    missing = [n for n in empty if n not in removed_from and index.roots[n] and _is_there(index.roots[n])]
    if without := [f"data.sources.{n}: no usable image in {index.roots[n]}" for n in missing]:
        raise DataError("\n".join(without) + f"\nPut images there or take the source out.{_listing(index, unwanted)}")
    if strict and unwanted:
        raise DataError(
            f"{len(unwanted)} of {len(index) + len(index.rejected)} images cannot be used, and data.strict is on: "
            f"repair or remove them, or turn strict off to train on the rest.{_listing(index, unwanted)}"
        )


def _is_there(root: str) -> bool:
    return url_of(Path(root)) is not None or Path(root).exists()


def _listing(index: Index, rejected: Sequence[Rejection]) -> str:
    lines = [f"\n  {index.names[item.source]}/{item.path}: {item.reason}" for item in rejected[:_MAX_LISTED]]
    more = len(rejected) - len(lines)
    return "".join(lines) + (f"\n  and {more} more" if more else "")


def source_warnings(index: Index, sources: Sequence[SourceSettings]) -> dict[int, list[str]]:
    """Return what is suspicious about whole sources: no image, or one caption for nearly all where each has its own."""
    usable = set(index.source_N.tolist())
    found = {
        number: ["holds no usable image"]
        for number, root in enumerate(index.roots)
        if number not in usable and root and _is_there(root)
    }
    firsts: dict[int, Counter[str]] = {}
    for record, source in enumerate(index.source_N.tolist()):
        firsts.setdefault(source, Counter())[index.captions[index.caption_offsets[record]]] += 1
    for source, counter in firsts.items():
        (caption, count), total = counter.most_common(1)[0], counter.total()
        own = sources[source].caption_rule in OWN_CAPTIONS and sources[source].role != "class"
        if own and total >= _FEW_IMAGES and count >= _NEARLY_ALL * total:
            found[source] = [f'{count} of {total} images have the same caption, "{caption}"']
    for number in _like_kohyas(index, sources):
        found.setdefault(number, []).append("its folders are named as kohya's are; if so, give it captions: kohya")
    return found


def _like_kohyas(index: Index, sources: Sequence[SourceSettings]) -> set[int]:
    """Return the sources of file-name captions whose images all lie in folders such as `40_tok class`."""
    others = {
        number
        for number, path in zip(index.source_N.tolist(), index.paths, strict=True)
        if "/" not in path or parse_folder(path.partition("/")[0]) is None
    }
    mine = {n for n, source in enumerate(sources) if source.caption_rule == "everydream"}
    return (mine & set(index.source_N.tolist())) - others
