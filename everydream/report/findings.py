"""The facts in sentences: what is wrong, what it means and what to do, worst first.

A finding is a dictionary: `level` (problem, warning, note), `kind` (one of a few words, stable), `text`, `advice`, and
`images`, the ids (source/path) of those concerned.
"""

from collections.abc import Iterator
from typing import Any

from everydream.report.images import kind_of
from everydream.report.lint import shown_pieces
from everydream.report.words import RECURRING

LEVELS = ("problem", "warning", "note")
_NAMED = 3
_REPEATED_SHARE = 0.1
_MUCH_CUT = 0.1
_SMALL_SHARE = 0.9
_ALWAYS_WARNED = ("two captions", "invisible characters", "hash in caption", "camera name")

Finding = dict[str, Any]


def findings(facts: dict[str, Any]) -> list[Finding]:
    """Return what of the inspection's facts a user should know, the worst first."""
    found = [
        *_rejected(facts), *_switched_off(facts), *_leaks(facts), *_sources(facts), *_duplicates(facts),
        *_captions(facts), *_learned(facts), *_tokens(facts), *_balance(facts), *_batches(facts), *_images(facts),
    ]  # fmt: skip
    return sorted(found, key=lambda item: LEVELS.index(item["level"]))


def _finding(level: str, kind: str, text: str, advice: str, images: list[str] | None = None) -> Finding:
    return {"level": level, "kind": kind, "text": text, "advice": advice, "images": images or []}


def _ids(cluster: dict[str, Any]) -> list[str]:
    return [f"{member['source']}/{member['path']}" for member in cluster["members"]]


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _rejected(facts: dict[str, Any]) -> Iterator[Finding]:
    if count := len(facts["rejected"]):
        yield _finding(
            "problem",
            "rejected",
            f"Files that cannot be used, and are left out: {count}.",
            "Repair or remove them; the list gives each one's reason.",
        )


def _switched_off(facts: dict[str, Any]) -> Iterator[Finding]:
    if unknown := facts["switched_off"]["unknown"]:
        yield _finding(
            "warning",
            "switched off",
            f"Lines of data.exclude that name no image: {len(unknown)} ({_some(unknown)}).",
            "A line is source/path, as in reports; correct or remove them.",
        )


def _leaks(facts: dict[str, Any]) -> Iterator[Finding]:
    if leaks := [cluster for cluster in facts["duplicates"] if cluster["leak"]]:
        images = [image for cluster in leaks for image in _ids(cluster)]
        yield _finding(
            "problem",
            "leak",
            f"Pictures that are trained and also held out or measured: {len(leaks)}.",
            "What was trained measures nothing: remove one of each, or give other images to measure.",
            images,
        )


def _sources(facts: dict[str, Any]) -> Iterator[Finding]:
    for name, lines in facts["source_warnings"].items():
        for line in lines:
            yield _finding("problem", "source", f"{name}: {line}.", "See docs/captions.md.")


def _duplicates(facts: dict[str, Any]) -> Iterator[Finding]:
    texts = {
        "same": ("Files that are there several times: {} ({} in all).", "Remove the copies, or count them in repeats."),
        "near": ("Pictures in several versions: {} ({} files in all).", "Keep the best of each."),
        "alike": ("Slightly different crops, or frames of one scene: {} groups ({} images in all).",
                  "Fine where it is meant; each group is drawn as often as its images together."),
        "mirrored": ("Pictures with a mirror image beside them: {} ({} images in all).",
                     "Remove it and set data.flip_p, unless left and right matter."),
    }  # fmt: skip
    for kind, (text, advice) in texts.items():
        mine = [cluster for cluster in facts["duplicates"] if cluster["kind"] == kind]
        if mine:
            images = [image for cluster in mine for image in _ids(cluster)]
            level = "warning" if kind in ("same", "near") else "note"
            yield _finding(level, f"duplicates: {kind}", text.format(len(mine), len(images)), advice, images)
    across = [c for c in facts["duplicates"] if len(c["sources"]) > 1 and not c["leak"] and c["kind"] != "mirrored"]
    if across:
        pairs = sorted({" and ".join(cluster["sources"]) for cluster in across})
        yield _finding(
            "warning",
            "duplicates: across",
            f"Pictures in several sources: {len(across)} ({_some(pairs)}).",
            "Each is drawn for all of them; leave it in one.",
            [image for cluster in across for image in _ids(cluster)],
        )


def _captions(facts: dict[str, Any]) -> Iterator[Finding]:
    for name, source in facts["captions"].items():
        repeated = source["repeated"]
        many = sum(count for _, count in repeated)
        if source["own"] and many and many >= _REPEATED_SHARE * source["images"]:
            shown = _some([f'"{caption}" {count} times' for caption, count in repeated])
            yield _finding(
                "warning",
                "captions: repeated",
                f"{name}: {many} of {source['images']} images have a caption that others have too: {shown}.",
                "Say what differs from image to image: what is not captioned is learned as the subject.",
            )
        if source["variants"]:
            shown = _some([" / ".join(tag for tag, _ in group) for group in source["variants"]])
            yield _finding(
                "warning",
                "captions: variants",
                f"{name}: tags that are written in several ways: {shown}.",
                "Choose one: `everydream caption` replaces in all files.",
            )
        if source["misspelled"]:
            shown = _some([f'"{word}" ("{usual}"?)' for word, _, usual, _ in source["misspelled"]])
            yield _finding(
                "note",
                "captions: spelling",
                f"{name}: perhaps misspelled: {shown}.",
                "Correct what is wrong: a misspelled word is another word to the model.",
            )


def _learned(facts: dict[str, Any]) -> Iterator[Finding]:
    """Yield what recurs in a source that is to be trained: it is learned along with the subject."""
    for name, source in facts["captions"].items():
        if source["role"] != "training":
            continue
        for phrase, count in source["phrases"][:1]:
            yield _finding(
                "note",
                "learned: phrase",
                f'{name}: "{phrase}" is in {count} of {source["images"]} captions.',
                "It will call up the subject. Write otherwise what only the subject's name should call up.",
            )
    for name, colours in facts["colours"].items():
        for colour, count in colours["backgrounds"][:1]:
            if colours["role"] == "training":
                yield _finding(
                    "note",
                    "learned: background",
                    f"{name}: {count} of {colours['images']} images have a {colour} background.",
                    f'Say "{colour} background" in their captions, or it is learned with the subject.',
                )


def _tokens(facts: dict[str, Any]) -> Iterator[Finding]:
    lengths = facts["tokens"]
    if lengths["cut"]:
        text = f"Captions longer than {lengths['most']} tokens, whose ends are lost: {lengths['cut']}."
        level = "warning" if lengths["cut"] >= _MUCH_CUT * lengths["captions"] else "note"
        yield _finding(level, "captions: cut", text, "Shorten them, or set text_encoder.chunks to read more of them.")
    for name, source in facts["captions"].items():
        for row in source["names"]:
            if "problem" in row:
                yield _finding(
                    "warning",
                    "captions: token",
                    f"{name}: {row['problem']}.",
                    f"Choose a rare word ({row['word']} is read as: {shown_pieces(row['pieces'])}).",
                )


def _balance(facts: dict[str, Any]) -> Iterator[Finding]:
    uneven = [fact for fact in facts["balance"] if "multiply" in fact]
    if uneven:
        least = min(uneven, key=lambda fact: fact["draws"])
        most = max(uneven, key=lambda fact: fact["draws"])
        named = [fact["folder"] or fact["source"] for fact in (most, least)]
        advice = (
            "multiply.txt in a folder, or repeats of a source, draws them alike; the suggestions are in the report."
        )
        yield _finding(
            "note",
            "balance",
            f"Draws an epoch differ: {named[0]} {most['draws']}, {named[1]} {least['draws']}.",
            advice,
        )


def _batches(facts: dict[str, Any]) -> Iterator[Finding]:
    rows = {row["batch_size"]: row for row in facts["plan"]["batch_sizes"]}
    mine = rows.get(facts["plan"]["batch_size"])
    if mine is None or mine["full"] >= _SMALL_SHARE:
        return
    # A smaller one, and 1 before all, is always fuller; that is no reason to train with it.
    larger = [row for row in rows.values() if row["batch_size"] > mine["batch_size"]]
    best = max(larger, key=lambda row: (row["full"], row["batch_size"]), default=mine)
    if best["full"] > mine["full"]:
        yield _finding(
            "note",
            "batches",
            f"Batches are {100 * mine['full']:.0f} % full: {mine['smaller']} of "
            f"{mine['batches']} are left-overs of their buckets.",
            f"train.batch_size={best['batch_size']} fills {100 * best['full']:.0f} %.",
        )


_OF_IMAGES = {
    "enlarged": ("Images smaller than their bucket, which are enlarged: {}.",
                 "Blur is learned too: use larger originals, or a smaller data.resolution."),
    "cropped": ("Images that lose more than a third to the crop: {}.", "Cut them yourself, or raise data.max_aspect."),
    "misnamed": ("Files of another format than their name says: {}.", "They train; other tools may refuse them."),
    "two captions": ("Images with two captions that differ: {}.", "Delete the one that is wrong."),
    "invisible characters": ("Captions with invisible characters, which are read too: {}.", "Delete them."),
    "hash in caption": ("Captions with what looks like a hash: {}.", "Write captions, or rename the files."),
    "lone S or C": ("Captions with a lone S or C: {}.", "If they are JoePenna's templates: captions: joepenna."),
    "tags twice": ("Captions with a tag twice, in another case or number: {}.", "Keep one of each."),
    "camera name": ("Captions that are names a camera gave: {}.", "Write captions, or rename the files."),
    "number as caption": ("Captions that are only a number: {}.", "Write captions, or rename the files."),
    "copy's name": ("Captions that end as copies do, such as (1): {}.", "Put _ before it, or use a .txt file."),
    "several frames": ("Files with several frames; the first is used: {}.", "Save the one you want as an image."),
    "other": ("Images with other warnings: {}.", "They are listed with the images."),
}  # fmt: skip


def _images(facts: dict[str, Any]) -> Iterator[Finding]:
    concerned: dict[str, list[str]] = {}
    for image in facts["images"]:
        # The ends of long captions are counted with the tokens.
        for kind in {kind_of(text) for text in image["warnings"]} - {"caption cut"}:
            concerned.setdefault(kind, []).append(f"{image['source']}/{image['path']}")
    for kind, (text, advice) in _OF_IMAGES.items():
        if images := concerned.get(kind):
            many = len(images) >= RECURRING * len(facts["images"]) or kind in _ALWAYS_WARNED
            yield _finding("warning" if many else "note", kind, text.format(len(images)), advice, images)
