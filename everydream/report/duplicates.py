"""Which images show the same picture, and between which parts of a run: what is measured must not be trained."""

from collections.abc import Sequence
from typing import Any

from everydream.data.likeness import Cluster
from everydream.plan import Planned

APART = frozenset({"held out", "measured"})
"""The parts of a run that are not trained."""
Place = dict[str, Any]
"""Where an image is: `source`, `path`, `part` (training, ground truth, class, held out or measured), `record`."""


def places_of(planned: Planned) -> list[Place]:
    """Return where each record of the index is, then where each image is that is measured and not of the index."""
    index, held_out_N = planned.index, planned.held_out()
    parts = {"training": "training", "ground_truth": "ground truth", "class": "class"}
    found = []
    for record, path in enumerate(index.paths):
        source = int(index.source_N[record])
        part = "held out" if held_out_N[record] else parts[planned.config.data.sources[source].role]
        found.append({"source": index.names[source], "path": path, "part": part, "record": record})
    for other in planned.apart():
        names = [other.names[int(source)] for source in other.source_N]
        found += [
            {"source": name, "path": path, "part": "measured", "record": None}
            for name, path in zip(names, other.paths, strict=True)
        ]
    return found


def measured_first(places: Sequence[Place]) -> list[int]:
    """Return the order in which to compare: each image of a cluster is like its first, so leaks show from there."""
    return sorted(range(len(places)), key=lambda number: places[number]["part"] not in APART)


def duplicates(places: Sequence[Place], clusters: Sequence[Cluster]) -> list[dict[str, Any]]:
    """Return the clusters of images that show the same picture: kind, members, and the parts that they join.

    `leak`: the picture is both trained and held out or measured. Leaks come first, then the largest.
    """
    found = []
    for cluster in clusters:
        members = [places[member] for member in cluster.members]
        parts = sorted({str(member["part"]) for member in members})
        found.append({
            "kind": cluster.kind,
            "members": members,
            "parts": parts,
            "sources": sorted({str(member["source"]) for member in members}),
            "leak": bool(APART & set(parts)) and bool(set(parts) - APART) and cluster.kind != "mirrored",
        })  # fmt: skip
    return sorted(found, key=lambda item: (not item["leak"], -len(item["members"]), item["members"][0]["path"]))
