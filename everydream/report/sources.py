"""The sources of a run, in words and as JSON: what each is, how its captions are made, how often it is drawn."""

from collections import Counter
from typing import Any

from everydream.data.pairing import partners_of, pools
from everydream.data.settings import SourceSettings
from everydream.plan import Planned


def describe_sources(planned: Planned) -> list[str]:
    """Return a line per source: role, images, captions, amount, draws, true share of the epoch."""
    held_out_N = planned.held_out()
    total = max(int(planned.mix.counts(0).sum()), 1)
    lines = []
    for number, (fact, source) in enumerate(zip(source_facts(planned), planned.config.data.sources, strict=True)):
        held_out = int((held_out_N & (planned.index.source_N == number)).sum())
        parts = [
            f"{fact['images']} images",
            f"{fact['rejected']} rejected" if fact["rejected"] else "",
            f"{held_out} of them held out" if held_out else "",
            _groups(fact.get("groups", {})),
            f"{fact['masks']} with masks" if "masks" in fact else "",
            _captions(source),
            _amount(source),
            _pairing(number, planned),
            _to_make(source, fact["images"]),
            f"loss_scale {source.loss_scale:g}" if source.loss_scale not in (None, 1.0) else "",
        ]
        percent = 100 * fact["draws"] / total
        what = ", ".join(filter(None, parts))
        lines.append(f"{fact['name']}{_role(fact)}: {what}: {fact['draws']} draws an epoch = {percent:.1f} %")
    return lines


def source_facts(planned: Planned) -> list[dict[str, Any]]:
    """Return for each source what `everydream inspect --json` says of it; draws are those of the first epoch."""
    index, sources, counts = planned.index, planned.config.data.sources, planned.mix.counts(0)
    facts = []
    for number, (name, source) in enumerate(zip(index.names, sources, strict=True)):
        mine = index.source_N == number
        fact: dict[str, Any] = {
            "name": name,
            "role": source.role,
            "captions": source.caption_rule,
            "images": int(mine.sum()),
            "rejected": sum(item.source == number for item in index.rejected),
            "draws": int(counts[mine].sum()),
        }
        if source.role == "class":
            fact["pairs_with"] = [index.names[other] for other in partners_of(number, sources, index.names)]
        if masks := sum(bool(mine[record]) for record in index.masks):
            fact["masks"] = masks
        if groups := Counter(group for record, group in index.groups.items() if mine[record]):
            fact["groups"] = dict(groups)
        facts.append(fact)
    return facts


def _role(fact: dict[str, Any]) -> str:
    if fact["role"] == "class":
        return f" (class images of {_listed(fact['pairs_with'])})"
    return " (ground truth)" if fact["role"] == "ground_truth" else ""


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _groups(groups: dict[str, int]) -> str:
    """Return how many images are drawn as how many groups, and of how many members each."""
    if not groups:
        return ""
    least, most = min(groups.values()), max(groups.values())
    members = f"{least}" if least == most else f"{least} to {most}"
    many = f"{len(groups)} groups" if len(groups) > 1 else "1 group"
    return f"{sum(groups.values())} of them in {many} of {members} that take turns"


def _captions(source: SourceSettings) -> str:
    if source.caption_rule == "joepenna":
        meanings = {"S": source.token if source.role != "class" else None, "C": source.class_word}
        words = [f"{letter} = {word}" for letter, word in meanings.items() if word]
        return f"joepenna captions ({', '.join(words)})"
    return "" if source.caption_rule == "everydream" else f"{source.caption_rule} captions"


def _amount(source: SourceSettings) -> str:
    """Return how much of a source was asked for."""
    if source.follows:
        return ""
    if source.share is not None:
        return f"share {source.share:g}"
    if source.choose is not None:
        return f"choose {source.choose}"
    return f"repeats {1.0 if source.repeats is None else source.repeats:g}"


def _pairing(number: int, planned: Planned) -> str:
    """Return what a class source that gives no amount is drawn as often as."""
    names = planned.index.names
    for partners, pool in pools(planned.config.data.sources, names).items():
        if number in pool:
            others = [names[other] for other in pool if other != number]
            together = f" together with {_listed(others)}" if others else ""
            return f"as many draws{together} as {_listed([names[other] for other in partners])}"
    return ""


def _to_make(source: SourceSettings, images: int) -> str:
    more = (source.generate or 0) - images
    return f"{more} more are made when training starts" if more > 0 else ""
