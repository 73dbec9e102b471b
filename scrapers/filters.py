"""Which rows are taken up, by what their source says of them: one pure function, compiled once per run.

What is a word, a domain and a licence's name is said in `words`, `domains` and `licences`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from scrapers.captions import caption_of
from scrapers.domains import domain_of, host_of, is_below
from scrapers.errors import ScrapeError
from scrapers.licences import is_named, licence_at
from scrapers.settings import FilterSettings, ScrapeSettings
from scrapers.types import Reason, Row, Verdict
from scrapers.words import fold, holds_phrase

Check = Callable[[Row, str], Verdict | None]

_LABELS = {"UNLIKELY": False, "UNSURE": True, "NSFW": True}


@dataclass(frozen=True)
class Needs:
    """The fields of `Row` that a run reads, each with the setting that wants it."""

    wanted: Mapping[str, str] = field(default_factory=dict)
    """Read where the source has them; without them the setting cannot judge."""
    required: Mapping[str, str] = field(default_factory=dict)
    """Without these every row would end for the same reason, so a source that lacks one is an error."""


def needed_fields(filters: FilterSettings) -> dict[str, str]:
    """Return the fields of `Row` that these filters look at, with the name of the setting."""
    uses = {
        "width": ("min_width" if filters.min_width > 1 else "max_aspect", filters.min_width > 1 or filters.max_aspect),
        "height": ("min_height" if filters.min_height > 1 else "max_aspect",
                   filters.min_height > 1 or filters.max_aspect),
        "aesthetic": ("min_aesthetic", filters.min_aesthetic is not None),
        "similarity": ("min_similarity", filters.min_similarity is not None),
        "unsafe": ("max_unsafe", filters.max_unsafe is not None),
        "nsfw": ("max_unsafe", filters.max_unsafe is not None),
        "watermark": ("max_watermark", filters.max_watermark is not None),
        "licence": ("licences", filters.licences),
        "licence_url": ("licences", filters.licences),
        "language": ("languages", filters.languages),
        "url": ("domains" if filters.domains else "without_domains", filters.domains or filters.without_domains),
    }  # fmt: skip
    return {name: f"filters.{setting}" for name, (setting, is_used) in uses.items() if is_used}


def needs_of(settings: ScrapeSettings) -> Needs:
    """Return what a run with these settings needs of its source."""
    wanted = needed_fields(settings.filters)
    required: dict[str, str] = {name: wanted[name] for name in ("licence", "language") if name in wanted}
    if settings.filters.unknown_scores == "refuse":
        scores = ("aesthetic", "similarity", "unsafe", "watermark")
        required |= {name: wanted[name] for name in scores if name in wanted}
    if "{caption}" in settings.captions.text:
        wanted["caption"] = required["caption"] = "captions.text"
    return Needs(wanted, required)


def compile_filters(filters: FilterSettings) -> Check:
    """Return `refuse(row, caption)`: None, or why this row is not taken up. `caption` is the cleaned one."""
    _check_settings(filters)
    used = needed_fields(filters)
    checks: list[tuple[bool, Check]] = [
        ("width" in used or "height" in used, lambda row, caption: refuse_size(row.width, row.height, filters)),
        ("aesthetic" in used or "similarity" in used or "watermark" in used, _score_check(filters)),
        ("unsafe" in used, _unsafe_check(filters)),
        ("licence" in used, _licence_check(filters.licences)),
        ("language" in used, _language_check(filters.languages)),
        ("url" in used, _domain_check(filters)),
        (bool(filters.with_any or filters.with_all or filters.without), _word_check(filters)),
    ]
    active = [check for is_active, check in checks if is_active]

    def refuse(row: Row, caption: str) -> Verdict | None:
        if not caption:
            return Verdict(Reason.NO_CAPTION)
        for check in active:
            verdict = check(row, caption)
            if verdict is not None:
                return verdict
        return None

    return refuse


def compile_screening(settings: ScrapeSettings) -> Callable[[Row], tuple[str, Verdict | None]]:
    """Return what tells a row's caption, and why the row is not taken up, if so."""
    refuse = compile_filters(settings.filters)

    def screen(row: Row) -> tuple[str, Verdict | None]:
        caption = caption_of(row.caption, settings.captions.text)
        return caption, refuse(row, caption) if row.url else Verdict(Reason.BAD_URL)

    return screen


def refuse_size(width: int | None, height: int | None, filters: FilterSettings) -> Verdict | None:
    """Judge a size, as claimed or as fetched; what is unknown passes."""
    if (width is not None and width < filters.min_width) or (height is not None and height < filters.min_height):
        return Verdict(Reason.TOO_SMALL, f"{_side(width)} x {_side(height)}")
    if filters.max_aspect is None or not width or not height:
        return None
    if max(width, height) > filters.max_aspect * min(width, height):
        return Verdict(Reason.ASPECT, f"{width} x {height}")
    return None


def _side(pixels: int | None) -> str:
    return "?" if pixels is None else str(pixels)


def _check_settings(filters: FilterSettings) -> None:
    problems = [f"filters.{name}: a blank text matches nothing; take it out"
                for name in ("with_any", "with_all", "without", "licences", "languages")
                if any(not text.strip() for text in getattr(filters, name))]  # fmt: skip
    problems += [f'filters.{name}: "{text}" is not a domain; write it as example.org'
                 for name in ("domains", "without_domains")
                 for text in getattr(filters, name) if domain_of(text) is None]  # fmt: skip
    if problems:
        raise ScrapeError("\n".join(problems))


def _score_check(filters: FilterSettings) -> Check:
    lowest = [(name, limit, reason) for name, limit, reason in (
        ("aesthetic", filters.min_aesthetic, Reason.AESTHETIC),
        ("similarity", filters.min_similarity, Reason.SIMILARITY)) if limit is not None]  # fmt: skip
    highest = filters.max_watermark
    refuses_unknown = filters.unknown_scores == "refuse"

    def check(row: Row, caption: str) -> Verdict | None:
        for name, limit, reason in lowest:
            score = row.aesthetic if name == "aesthetic" else row.similarity
            if score is None:
                if refuses_unknown:
                    return Verdict(Reason.UNKNOWN_SCORE, name)
            elif score < limit:
                return Verdict(reason, f"{score:.3g}")
        if highest is not None:
            if row.watermark is None:
                return Verdict(Reason.UNKNOWN_SCORE, "watermark") if refuses_unknown else None
            if row.watermark > highest:
                return Verdict(Reason.WATERMARK, f"{row.watermark:.3g}")
        return None

    return check


def _unsafe_check(filters: FilterSettings) -> Check:
    highest = filters.max_unsafe if filters.max_unsafe is not None else 1.0
    refuses_unknown = filters.unknown_scores == "refuse"

    def check(row: Row, caption: str) -> Verdict | None:
        """Both must agree where there is a probability and a label."""
        if row.unsafe is not None and row.unsafe > highest:
            return Verdict(Reason.UNSAFE, f"{row.unsafe:.3g}")
        is_unsafe = _LABELS.get(row.nsfw.strip().upper()) if row.nsfw else None
        if is_unsafe:
            return Verdict(Reason.UNSAFE, row.nsfw)
        is_unknown = row.unsafe is None and is_unsafe is None
        return Verdict(Reason.UNKNOWN_SCORE, "unsafe") if is_unknown and refuses_unknown else None

    return check


def _licence_check(licences: Sequence[str]) -> Check:
    @lru_cache(maxsize=1000)
    def is_accepted(licence: str, url: str) -> bool:
        return is_named(licence, licences) or is_named(licence_at(url), licences)

    def check(row: Row, caption: str) -> Verdict | None:
        if is_accepted(row.licence, row.licence_url):
            return None
        return Verdict(Reason.LICENCE, row.licence.strip() or "unknown")

    return check


def _language_check(languages: Sequence[str]) -> Check:
    accepted = {language.strip().casefold() for language in languages}

    def check(row: Row, caption: str) -> Verdict | None:
        language = row.language.strip().casefold()
        is_accepted = language in accepted or re.split("[-_]", language)[0] in accepted
        return None if is_accepted else Verdict(Reason.LANGUAGE, row.language or "unknown")

    return check


def _domain_check(filters: FilterSettings) -> Check:
    wanted, unwanted = (frozenset(filter(None, map(domain_of, names)))
                        for names in (filters.domains, filters.without_domains))  # fmt: skip

    def check(row: Row, caption: str) -> Verdict | None:
        host = host_of(row.url)
        if host is None:
            return Verdict(Reason.DOMAIN, "no host") if wanted else None
        if (wanted and not is_below(host, wanted)) or (unwanted and is_below(host, unwanted)):
            return Verdict(Reason.DOMAIN, host)
        return None

    return check


def _word_check(filters: FilterSettings) -> Check:
    any_of, all_of, none_of = ([(fold(" ".join(phrase.split())), phrase) for phrase in phrases]
                               for phrases in (filters.with_any, filters.with_all, filters.without))  # fmt: skip

    def check(row: Row, caption: str) -> Verdict | None:
        text = fold(caption)
        for folded, phrase in none_of:
            if holds_phrase(text, folded):
                return Verdict(Reason.UNWANTED_WORDS, phrase)
        for folded, phrase in all_of:
            if not holds_phrase(text, folded):
                return Verdict(Reason.WORDS, f"lacks {phrase}")
        if any_of and not any(holds_phrase(text, folded) for folded, _ in any_of):
            return Verdict(Reason.WORDS)
        return None

    return check
