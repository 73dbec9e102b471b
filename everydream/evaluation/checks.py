"""What the monitors' settings cannot say by themselves: what they need, and what would have no effect."""

from collections.abc import Iterator, Sequence

from everydream.data.settings import SourceSettings
from everydream.evaluation.settings import ControlSettings, PreservationSettings, StopSettings, ValidationSettings
from everydream.methods.checks import changed_keys


def monitor_problems(
    sources: Sequence[SourceSettings],
    preservation: PreservationSettings,
    validation: ValidationSettings,
    control: ControlSettings,
    stop: StopSettings,
    keep_best: bool,
    formats: Sequence[str] | None,
) -> Iterator[str]:
    """Yield the problems, one line each."""
    for name, settings in (("preservation", preservation), ("validation", validation)):
        yield from _measuring_problems(name, settings)
    has_truth = any(source.role == "ground_truth" for source in sources)
    if preservation.images and preservation.path is None and not has_truth:
        yield (
            f"preservation.images: {preservation.images} images are to be held out of ground truth, and no source has "
            "role: ground_truth. Give one that role, name a folder of captioned images to measure under "
            "preservation.path, or set this to 0."
        )
    if control.every_steps is None:
        for key in changed_keys("control", control):
            yield f"{key}: has no effect, since control.every_steps is null; say how often, e.g. 250."
    elif not _draws_something(sources, control):
        yield "control: there is nothing to draw; give prompts under control.concept or control.control, or captions."
    if keep_best and formats == []:
        yield "checkpoints.keep_best: has no effect, since checkpoints.formats is empty and nothing is exported."
    if stop.when is None and changed_keys("stop", stop):
        yield "stop.patience: has no effect, since stop.when is null; set it to overfit."
    if stop.when is not None or keep_best:
        yield from _cadence_problems(preservation, validation, control)
    for key, is_on in (("stop.when", stop.when is not None), ("checkpoints.keep_best", keep_best)):
        if is_on and not validation.images:
            yield (
                f"{key}: goes by images of the subject that are not trained on, and validation.images is 0. Say how "
                "many to hold out, e.g. 8, or name a folder of them under validation.path too."
            )


def _measuring_problems(name: str, settings: PreservationSettings | ValidationSettings) -> Iterator[str]:
    if settings.path is not None and not settings.images:
        yield (
            f"{name}.images: 0, so nothing of {name}.path would be measured; say how many of its images, "
            "e.g. 16, or take the path out."
        )
    elif not settings.images:
        for key in changed_keys(name, settings):
            yield f"{key}: has no effect, since {name}.images is 0."
    if settings.every_steps is not None and settings.every_epochs is not None:
        yield f"{name}: give one of every_steps and every_epochs, not both."


def _cadence_problems(
    preservation: PreservationSettings, validation: ValidationSettings, control: ControlSettings
) -> Iterator[str]:
    """Yield what would leave steps half measured that are to be compared."""
    own = (validation.every_steps, validation.every_epochs)
    also = {"preservation": (preservation.every_steps, preservation.every_epochs)} if preservation.images else {}
    also |= {"control": (control.every_steps, None)} if control.every_steps is not None else {}
    for name, cadence in also.items():
        if cadence != own:
            yield (
                f"{name}: has another cadence than validation, and stop.when and checkpoints.keep_best compare steps "
                "at which both are measured. Give them the same cadence, e.g. "
                f"{name}.every_steps={validation.every_steps or 100}"
            )


def _draws_something(sources: Sequence[SourceSettings], control: ControlSettings) -> bool:
    named = control.concept is None and any(source.label or source.token for source in sources)
    return bool(control.concept or control.captions or named or control.control != [])
