"""What a run's settings have against its method, before anything is loaded."""

from collections.abc import Sequence

from everydream.methods.method import MethodSettings
from everydream.methods.settings import FORMATS, USUAL_RATES, TextEncoderSettings, UNetSettings
from everydream.settings import Settings


def method_problems(config: MethodSettings, formats: Sequence[str], epochs: int) -> list[str]:
    """Return what does not go with the method, a line each: nothing that is set may be without effect."""
    method = config.method
    problems: list[str] = []
    trains_networks = method in USUAL_RATES
    others = {"text_encoder_2": config.text_encoder_2, "text_encoder_3": config.text_encoder_3}
    given = {part: section for part, section in others.items() if section is not None}
    if trains_networks and not (config.unet.train or any(s.train for s in (config.text_encoder, *given.values()))):
        problems.append("unet.train, text_encoder.train: both are false, so nothing would train.")
    if not trains_networks:
        problems += [f"{part}: has no effect with method: {method}. Take it out." for part in given]
    problems += [
        f"{part}.{key}: has no effect; text_encoder.{key} counts for every text encoder."
        for part, section in given.items()
        for key in ("clip_skip", "chunks")
        if f"{part}.{key}" in changed_keys(part, section)
    ]
    idle = [name for name in ("lora", "textual_inversion", "hypernetwork") if name != method]
    idle += [] if trains_networks else ["unet", "text_encoder"]
    problems += [
        f"{key}: has no effect with method: {method}. Take it out, or choose the method that it belongs to."
        for name in idle
        for key in changed_keys(name, getattr(config, name))
        if key not in ("text_encoder.clip_skip", "text_encoder.chunks")
    ]
    problems += _part_problems(config, given, epochs) if trains_networks else []
    if method == "textual_inversion" and not config.textual_inversion.words:
        problems.append("textual_inversion.words: empty; say what to learn, e.g. [{token: <rex>, init: dog}].")
    for name in formats:
        if name not in FORMATS[method] or (name == "diffusers" and config.lora.kind != "lora"):
            kind = "" if config.lora.kind == "lora" else f" of kind {config.lora.kind}"
            problems.append(
                f"checkpoints.formats: {name} cannot be written with method: {method}{kind}; it writes "
                f"{', '.join(other for other in FORMATS[method] if other != name)}."
            )
    return problems


def _part_problems(config: MethodSettings, others: dict[str, TextEncoderSettings], epochs: int) -> list[str]:
    """Return what the parts' own settings have against each other, for the methods that train networks."""
    texts = {"text_encoder": config.text_encoder, **others}
    parts: dict[str, UNetSettings | TextEncoderSettings] = {"unet": config.unet, **texts}
    problems = [
        f"{key}: has no effect with {name}.train: false."
        for name, part in parts.items()
        if not part.train
        for key in changed_keys(name, part)
        if key.rpartition(".")[2] not in ("train", "lr", "clip_skip", "chunks")
    ]
    problems += [
        f"{name}.train_embeddings: has no effect with method: lora, which adapts no embeddings."
        for name, text in texts.items()
        if config.method == "lora" and not text.train_embeddings
    ]
    stops = [part.epochs for part in parts.values() if part.train]
    last = max((stop for stop in stops if stop is not None), default=0)
    if stops and None not in stops and last < epochs:
        problems.append(
            f"unet.epochs, text_encoder.epochs: nothing would train after epoch {last} of {epochs}; set "
            f"train.epochs to {last}, or let one part go on."
        )
    return problems


def changed_keys(prefix: str, section: Settings) -> list[str]:
    """Return the keys of a section that do not have their defaults."""
    defaults = type(section)()
    names = type(section).model_fields
    return [f"{prefix}.{name}" for name in names if getattr(section, name) != getattr(defaults, name)]
