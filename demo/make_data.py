"""`python -m demo.make_data`: the demo's two picture sets, in EveryDream's layout.

    concept/a red ring on a blue background_(1).png               what the model is to learn
    ground_truth/circle/a red circle on a blue background_(1).png what it must not forget

The caption is the file's name before the first underscore. The pictures are in the repository; this
script is how they came to be, and a test holds the two together.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from demo.shapes import KNOWN_SHAPES, NEW_SHAPE, Subject, draw, held_out, subjects
from scrapers.names import name_of

SEED = 1000
"""Not a seed of the shipped model's own pictures: the ground truth is of its world, not its training set."""
PICTURES_EACH = 2


def concept() -> list[Subject]:
    """Return the subjects of the concept set: all of the new shape but those held out for scoring."""
    kept_out = held_out()
    return [subject for subject in subjects((NEW_SHAPE,)) if subject not in kept_out]


def pictures() -> Iterator[tuple[str, Image.Image]]:
    """Yield every picture with its path, relative to the data set's folder."""
    for folder, chosen in (("concept", concept()), ("ground_truth", subjects(KNOWN_SHAPES))):
        for subject in chosen:
            place = folder if folder == "concept" else f"{folder}/{subject.shape}"
            for i in range(PICTURES_EACH):
                yield f"{place}/{name_of(subject.caption).numbered(i + 1, '.png')}", draw(subject, SEED + i)


def prompts() -> list[str]:
    """Return a few prompts for the trainer's samples: four unseen rings, four known shapes."""
    old = [Subject("circle", "red", "white"), Subject("square", "blue", "yellow")]
    old += [Subject("triangle", "green", "black"), Subject("circle", "yellow", "blue")]
    return [subject.caption for subject in (*held_out()[:4], *old)]


def write(out: Path) -> int:
    """Write the whole data set and return the number of its pictures."""
    num = 0
    for path, picture in pictures():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(out / path, optimize=True)
        num += 1
    (out / "prompts.txt").write_text("\n".join(prompts()) + "\n", encoding="utf-8")
    return num


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("datasets/demo"))
    out: Path = parser.parse_args().out
    print(f"{write(out)} pictures in {out}")


if __name__ == "__main__":
    main()
