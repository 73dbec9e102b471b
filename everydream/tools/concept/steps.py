"""The steps of a concept, in order; each returns what the next one needs, and says what it did."""

import filecmp
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from everydream.config import RunConfig, load_config
from everydream.errors import ConfigError, ResumeError
from everydream.formats.atomic import atomic_file, atomic_folder, format_bytes
from everydream.methods.settings import file_name_of
from everydream.tools.concept.pick import Candidate, measure, pick, table
from everydream.tools.concept.project import Concept, new_words, write_project
from everydream.tools.models.files import size_of
from everydream.tools.models.runs import exports_of
from everydream.tools.prep.settings import PrepSettings
from everydream.tools.prep.work import describe, prepare
from everydream.tools.progress import counting
from everydream.training.runs import find_checkpoint

STEPS = ("prepare", "class", "train", "pick", "prune")
"""What can be skipped. Without `class` the model is trained without class images."""


def teach(concept: Concept, person: bool, skip: Sequence[str], fresh: bool) -> Path | None:
    """Take all steps but those in `skip`; return the file to use, None if none was picked.

    Raises ConfigError where a step needs what a skipped one has not left, and whatever training raises.
    """
    if not concept.photos.is_dir():
        raise ConfigError(f"--concept-images-dir: there is no folder {concept.photos.absolute()}.")
    for step in skip:
        print(f"Left out: {step}.")
    images = _prepare(concept, person, "prepare" in skip)
    write_project(concept, images)
    config = load_config(concept.config, concept.overrides, to_train=True)
    run = _existing_run(concept) if "train" in skip else _train(config, fresh)
    if "pick" in skip:
        return None
    chosen = _pick(config, run)
    return chosen.path if "prune" in skip else _prune(concept, chosen)


def _prepare(concept: Concept, person: bool, skipped: bool) -> Path:
    """Return the folder to train on: the photos themselves, whose shapes buckets take, or crops around faces."""
    prepared = concept.folder / "images"
    if not person:
        return concept.photos
    if skipped:
        if not prepared.is_dir():
            raise ConfigError(f"--skip prepare, but there are no prepared images in {prepared}. Leave it out once.")
        return prepared
    settings = PrepSettings(person=True, size=concept.resolution, faces=concept.faces)
    print(describe(prepare(concept.photos, prepared, settings), prepared))
    return prepared


def _train(config: RunConfig, fresh: bool) -> Path:
    """Train, or go on with the newest run of this project where that was left off; return the run's folder."""
    from everydream.train import train  # noqa: PLC0415 - loads the model libraries

    last = None if fresh else find_checkpoint("auto", Path(config.runs_dir), config.project)
    try:
        run, ended_by = train(config, last)
    except ResumeError as error:
        way_out = "begin anew beside the old run, with --fresh"
        raise ResumeError(str(error).replace("go on regardless with --allow-changes", way_out)) from error
    if ended_by is not None:
        raise KeyboardInterrupt
    return run


def _existing_run(concept: Concept) -> Path:
    last = find_checkpoint("auto", concept.runs, concept.name)
    if last is None:
        raise ConfigError(f"--skip train, but {concept.runs} holds no run of {concept.name} to go on from.")
    return last.parent.parent


def _pick(config: RunConfig, run: Path) -> Candidate:
    """Measure the run's exports and say which is kept, and why."""
    from everydream.class_images import with_class_images  # noqa: PLC0415 - loads the model libraries
    from everydream.plan import plan_run  # noqa: PLC0415

    exports = exports_of(run, config.project, next(iter(config.checkpoints.formats or ()), "safetensors"))
    if not exports:
        raise ConfigError(f"{run / 'checkpoints'} holds no export of {config.project}, so there is nothing to pick.")
    planned = plan_run(with_class_images(config)[0])
    with counting("Comparing exports", len(exports)) as show:
        candidates = measure(planned.config, planned, exports, lambda done, _: show(done, ""))
    chosen = pick(candidates)
    print("Exports compared at fixed noise (lower is better; a class loss above the base's is forgetting):")
    print("\n".join(table(candidates, chosen)))
    return chosen


def _prune(concept: Concept, chosen: Candidate) -> Path:
    """Copy the chosen export to the concept's own folder under the concept's name: weights only, as exports are."""
    # The word to type in other tools is a file's name for embeddings, so that is what it is called there.
    is_word = concept.method == "textual_inversion"
    name = file_name_of(new_words(concept.label, concept.class_label)[0]) if is_word else concept.name
    is_folder = chosen.path.is_dir()
    out = _free(concept.folder / ("model" if is_folder else f"{name}{chosen.path.suffix}"), chosen.path)
    if is_folder:
        with atomic_folder(out) as folder:
            shutil.copytree(chosen.path, folder, dirs_exist_ok=True)
    else:
        with atomic_file(out) as partial:
            shutil.copyfile(chosen.path, partial)
    print(f"Kept {out} ({format_bytes(size_of(out))}), from step {chosen.step}.")
    return out


def _free(out: Path, source: Path) -> Path:
    """Return a name that nothing has but the same file: an earlier result stays beside a new one."""
    for number in range(2, 1000):
        if not out.exists() or _same(out, source):
            break
        out = out.with_name(f"{out.stem.removesuffix(f'-{number - 1}')}-{number}{out.suffix}")
    return out


def _same(one: Path, other: Path) -> bool:
    """Tell whether two files, or the files of two folders, are equal byte for byte."""
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in (one, other)]
    pairs = [(one / name, other / name) for name in files[0]] if one.is_dir() else [(one, other)]
    return (
        one.is_dir() == other.is_dir()
        and files[0] == files[1]
        and all(filecmp.cmp(mine, theirs, shallow=False) for mine, theirs in pairs)
    )


def how_to_prompt(concept: Concept, file: Path) -> str:
    """Return how pictures are made of what was learned."""
    options = {"lora": "--lora", "textual_inversion": "--embedding", "hypernetwork": "--hypernetwork"}
    option = options.get(concept.method)
    model = f"{concept.model} {option} {file}" if option is not None else str(file)
    words = " ".join(new_words(concept.label, concept.class_label))
    subject = re.sub(r"^(an? )?(photo|picture|image|portrait) of ", "", concept.label, flags=re.IGNORECASE)
    return (
        f"To use it, write “{concept.label}” where you would write “{concept.class_label}”; the new is in “{words}”.\n"
        f'  everydream sample {model} "{concept.label}" "a painting of {subject}" --seeds 1-4'
    )
