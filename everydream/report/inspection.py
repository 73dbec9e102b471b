"""`everydream inspect`: all facts about a run's images in one dictionary, and a summary of it for a terminal."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from everydream.data.likeness import known_clusters
from everydream.data.looking import Look
from everydream.data.looks import Looks, Progress
from everydream.data.scan import OWN_CAPTIONS, source_warnings
from everydream.errors import ConfigError
from everydream.models.common.token_reader import TokenReader
from everydream.plan import Planned
from everydream.report.balance import subjects, suggested
from everydream.report.buckets import bucket_map
from everydream.report.colours import backgrounds, dominant_colours, recurring_backgrounds
from everydream.report.duplicates import duplicates, measured_first, places_of
from everydream.report.findings import findings
from everydream.report.images import image_warnings
from everydream.report.lint import misspelled, repeated_captions, tag_variants
from everydream.report.outline import (
    describe_buckets,
    describe_epochs,
    describe_measured,
    describe_rejected,
    describe_shared,
    describe_switched_off,
    table,
)
from everydream.report.page import embedded_pictures, page_data, render
from everydream.report.sources import describe_sources, source_facts
from everydream.report.steps import accumulations, arithmetic, batch_sizes, group_draws, last_run, saves
from everydream.report.tokens import lengths, names_of_subjects
from everydream.report.words import frequencies, recurring_phrases, words_of

_OF_A_KIND = 3
_MOST_FINDINGS = 12


def inspect_run(
    planned: Planned, cache: Path | None = None, html: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Return the whole report; write it as a page to `html` as well. `cache`: its folder, None for the user's.

    Raises ConfigError where the page cannot be written.
    """
    with Looks(cache) as looks:
        report = full_report(planned, TokenReader(), looks, progress)
        if html is not None:
            data = page_data(planned, report)
            text = render(f"{planned.config.project}: what a run would do", report, data,
                          embedded_pictures(planned, data, looks))  # fmt: skip
            try:
                html.write_text(text, encoding="utf-8", errors="backslashreplace")
            except OSError as error:
                raise ConfigError(f"--html: {html} cannot be written ({error.strerror}). Name another file.") from error
    return report


def look_at_images(planned: Planned, looks: Looks, progress: Progress | None = None) -> list[Look | None]:
    """Return what is seen of each image of the run, then of those that are measured and not among them."""
    indexes = [planned.index, *planned.apart()]
    paths = [index.file(record) for index in indexes for record in range(len(index))]
    return looks.see(paths, planned.config.data.background, progress)


def full_report(
    planned: Planned, reader: TokenReader, looks: Looks, progress: Progress | None = None
) -> dict[str, Any]:
    """Return everything that `everydream inspect` knows."""
    index, data = planned.index, planned.config.data
    seen = look_at_images(planned, looks, progress)
    captions = [index.captions[int(offset)] for offset in index.caption_offsets[:-1]]
    different = list(dict.fromkeys(index.captions))
    known = looks.remembered("tokens 1", [ascii(text).encode() for text in different], lambda: reader.counts(different))
    num_tokens = dict(zip(different, known, strict=True))
    # A text that was cut to find a lost tail is none of the captions.
    facts = inspect_report(planned, lambda text: num_tokens[text] if text in num_tokens else reader.counts([text])[0])
    facts["buckets"] = bucket_map(planned)
    each = [num_tokens[caption] for caption in captions]
    facts["tokens"] = {**lengths(each, planned.config.text_encoder.chunks), "captions": len(each), "each": each}
    places = places_of(planned)
    order = measured_first(places)
    ordered = [places[number] for number in order]
    facts["duplicates"] = duplicates(ordered, known_clusters(looks, [seen[number] for number in order]))
    facts["captions"], facts["colours"] = {}, {}
    learned = {part for word in planned.config.textual_inversion.words for part in words_of(word.token)}
    background_N = backgrounds(seen[: len(index)])
    for number, (name, source) in enumerate(zip(index.names, data.sources, strict=True)):
        records = [record for record, own in enumerate(index.source_N.tolist()) if own == number]
        own, mine = [captions[record] for record in records], [seen[record] for record in records]
        facts["captions"][name] = {
            "role": source.role, "images": len(own), "different": len(set(own)),
            "own": source.caption_rule in OWN_CAPTIONS and source.role != "class",
            "repeated": repeated_captions(own), "variants": tag_variants(own),
            "misspelled": misspelled(own, reader.pieces), "phrases": recurring_phrases(own),
            "names": names_of_subjects(source, own, reader, learned), **frequencies(own),
        }  # fmt: skip
        facts["colours"][name] = {
            "role": source.role, "images": len(own),
            "backgrounds": recurring_backgrounds([background_N[record] for record in records]),
            "dominant": looks.remembered(
                "colours 1", [look.small for look in mine if look is not None], partial(dominant_colours, mine)
            ),
        }  # fmt: skip
    facts["balance"] = suggested(subjects(index, data.sources, planned.mix.counts(0), planned.held_out()))
    facts["plan"] = plan_facts(planned)
    facts["findings"] = findings(facts)
    return facts


def plan_facts(planned: Planned) -> dict[str, Any]:
    """Return the arithmetic of the run, what would divide it better, what it writes, what the last one took."""
    config, numbers = planned.config, arithmetic(planned)
    sizes = batch_sizes(group_draws(planned), numbers["batch_size"], numbers["accumulation"])
    return {
        **numbers, "batch_sizes": sizes, "accumulations": accumulations(numbers["batches"]),
        **saves(config, planned.steps_per_epoch, planned.total_steps),
        "last_run": last_run(config, planned.total_steps),
    }  # fmt: skip


def inspect_report(planned: Planned, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """Return the report of `everydream inspect --json`; image paths are relative to their source."""
    index, counts, held_out_N = planned.index, planned.mix.counts(0), planned.held_out()
    sizes = planned.bucket_of_each()
    others = [planned.bucket_of_each(nth) for nth in range(1, len(planned.buckets.shares))]
    warnings = image_warnings(planned, count_tokens)
    images = []
    for i in range(len(index)):
        variants = list(index.captions[int(index.caption_offsets[i]) : int(index.caption_offsets[i + 1])])
        entry: dict[str, Any] = {
            "path": index.paths[i],
            "caption": variants[0] if variants else "",
            "bucket": list(sizes[i]),
            "draws": int(counts[i]),
            "source": index.names[int(index.source_N[i])],
            "warnings": warnings.get(i, []),
        }
        if len(variants) > 1:
            entry["variants"] = variants
        if held_out_N[i]:
            entry["held_out"] = True
        if others:
            entry["also_in"] = [list(other[i]) for other in others]
        if i in index.groups:
            entry["group"] = index.groups[i]
        images.append(entry)
    plan = planned.epoch(0)
    return {
        "sources": source_facts(planned),
        "images": images,
        "rejected": [{"path": r.path, "reason": r.reason, "source": index.names[r.source]} for r in index.rejected],
        "switched_off": {"images": list(index.switched_off), "unknown": list(index.unknown_off)},
        "epoch": {
            "draws": len(plan.record_K),
            "batches": plan.num_batches,
            "steps": plan.num_steps,
            # Left-overs train in batches of their own, so nothing is repeated to fill one and nothing waits.
            "repeated": max(len(plan.record_K) - int(counts.sum()), 0),
            "left_for_next": max(int(counts.sum()) - len(plan.record_K), 0),
        },
        "source_warnings": {
            index.names[n]: lines for n, lines in source_warnings(index, planned.config.data.sources).items()
        },
        "total_steps": planned.total_steps,
    }


def describe_inspection(planned: Planned, report: dict[str, Any]) -> str:
    """Return the report of `everydream inspect` for a terminal."""
    index = planned.index
    captions = Counter(entry["caption"] for entry in report["images"])
    common = [f"{count} x {caption!r}" for caption, count in captions.most_common(5)]
    unusual = [f"{name}: {warning}" for name, lines in report["source_warnings"].items() for warning in lines]
    unusual += _by_kind(
        [(f"{e['source']}/{e['path']}", warning) for e in report["images"] for warning in e["warnings"]]
    )
    unusual += [*describe_shared(planned), *describe_switched_off(planned)]
    draws = Counter(entry["draws"] for entry in report["images"] if "held_out" not in entry)
    rows = [
        ("Findings", describe_findings(report)),
        ("Sources", describe_sources(planned)),
        ("Captions", [f"{len(captions)} different ones; the most frequent:", *common]),
        ("Buckets", describe_buckets(planned)),
        ("Draws", [f"{number} drawn {times} times an epoch" for times, number in sorted(draws.items())]),
        ("Epochs", describe_epochs(planned)),
        ("Measured", describe_measured(planned)),
        ("Unusual", unusual or ["nothing"]),
        ("Rejected", describe_rejected(planned) or ["nothing"]),
    ]
    seen = f"{len(index)} images usable, {len(index.rejected)} rejected"
    seen += f", {len(index.switched_off)} switched off" if index.switched_off else ""
    return f"{seen}\n{table(rows)}"


def describe_findings(report: dict[str, Any]) -> list[str]:
    """Return a line for each finding, the worst first; none for a report without facts of pictures."""
    found = report.get("findings", [])
    lines = [f"{item['level']}: {item['text']} {item['advice']}" for item in found[:_MOST_FINDINGS]]
    more = len(found) - len(lines)
    return lines + ([f"... and {more} more; --html FILE or --json FILE has all"] if more > 0 else [])


def _by_kind(warnings: list[tuple[str, str]]) -> list[str]:
    """Return a few warnings of each kind in full and the number of the others; kinds differ in their first words."""
    kinds: dict[str, list[str]] = {}
    for image, warning in warnings:
        kinds.setdefault(" ".join(re.split(r"[\d\"':]", warning)[0].split()[:4]), []).append(f"{image}: {warning}")
    lines = []
    for kind in kinds.values():
        lines += kind[:_OF_A_KIND]
        if len(kind) > _OF_A_KIND:
            lines.append(f"    ... and {len(kind) - _OF_A_KIND} more like these; --json FILE lists all")
    return lines
