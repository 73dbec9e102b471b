"""What kohya's scripts write, and when."""

from pathlib import Path

from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.keys import Keys
from everydream.tools.importing.kohya_lengths import Lengths
from everydream.tools.importing.kohya_method import put_stop

_FORMATS = {
    "ckpt": "ckpt",
    "safetensors": "safetensors",
    "diffusers": "diffusers",
    "diffusers_safetensors": "diffusers",
}
_DTYPES = {"float": "fp32", "fp16": "fp16", "bf16": "bf16"}
_SAMPLERS = {"ddim": "ddim", "euler": "euler", "k_euler": "euler", "dpmsolver++": "dpmpp_2m"}


def put_outputs(keys: Keys, draft: Draft, lengths: Lengths, file: Path) -> None:
    """Set checkpoints, samples and trackers."""
    put_stop(keys, draft, lengths)
    _put_cadence(keys, draft, lengths)
    precision = keys.text("save_precision", "float")
    draft.put("checkpoints.dtype", _DTYPES.get(precision, precision), "save_precision")
    _put_format(keys, draft)
    _put_samples(keys, draft, lengths, file)
    tracker = keys.text("log_with", "tensorboard")
    if tracker != "tensorboard":
        draft.tell(
            "missing",
            f"log_with: {tracker}; with wandb installed set trackers: [wandb], until then TensorBoard is used.",
        )


def _put_cadence(keys: Keys, draft: Draft, lengths: Lengths) -> None:
    epochs, ratio = keys.whole("save_every_n_epochs", None), keys.whole("save_n_epoch_ratio", None)
    if ratio and lengths.total_epochs is not None:
        epochs = max(1, lengths.total_epochs // ratio)
        draft.tell("changed", f"save_n_epoch_ratio: {ratio} files are about one every {epochs} epochs here.")
    elif ratio:
        draft.tell(
            "missing",
            f"save_n_epoch_ratio: {ratio}; the images are not there to count epochs; set checkpoints.every_epochs.",
        )
    draft.put("checkpoints.every_epochs", epochs or None, "save_every_n_epochs")
    steps = keys.whole("save_every_n_steps", None)
    draft.put("checkpoints.every_steps", steps or None, "save_every_n_steps")
    draft.put("checkpoints.every_minutes", None)
    # A number of files there for epochs, and a span for steps; here it is how many files stay.
    by_epochs, span = keys.whole("save_last_n_epochs", None), keys.whole("save_last_n_steps", None)
    by_steps = span // steps + 1 if span and steps else None
    keep = by_epochs if epochs and by_epochs else by_steps
    draft.put("checkpoints.keep", keep, "all, as there" if keep is None else "save_last_n_epochs, save_last_n_steps")
    for key in ("save_last_n_epochs", "save_last_n_steps"):
        if keep is None and keys.given(key):
            draft.tell("idle", key)


def _put_format(keys: Keys, draft: Draft) -> None:
    method = draft.entries["method"].value
    usual = "safetensors" if method == "lora" else "pt"
    model = Path(draft.entries["model.path"].value).suffix.lower()
    if method in ("full", "dreambooth"):  # the model's own format, as there
        usual = {".ckpt": "ckpt", ".safetensors": "safetensors"}.get(model, "diffusers")
    wanted = keys.text("save_model_as", usual)
    ours = _FORMATS.get(wanted, wanted)
    if method == "lora":
        ours = "safetensors"
    elif method == "textual_inversion":
        ours = "safetensors" if wanted == "safetensors" else "pt"
    draft.put("checkpoints.formats", [ours], "save_model_as")
    if wanted != ours and _FORMATS.get(wanted) != ours:
        draft.tell("changed", f"save_model_as: {wanted} is {ours} here.")


def _put_samples(keys: Keys, draft: Draft, lengths: Lengths, file: Path) -> None:
    steps, epochs = keys.whole("sample_every_n_steps", None), keys.whole("sample_every_n_epochs", None)
    if epochs and lengths.steps_per_epoch:
        steps = epochs * lengths.steps_per_epoch
        draft.tell("changed", f"sample_every_n_epochs: {epochs} epochs are about {steps} steps here.")
    elif epochs:
        draft.tell(
            "missing", "sample_every_n_epochs: the images are not there to count steps; set samples.every_steps."
        )
    draft.put("samples.every_steps", steps if steps and steps > 0 else None, "sample_every_n_steps")
    prompts = keys.text("sample_prompts", None)
    if prompts is not None and _is_plain(prompts, file):
        draft.put("samples.prompts", prompts, "sample_prompts")
    elif prompts is not None:
        draft.tell(
            "missing",
            f"sample_prompts: {prompts}; not there, or it holds options such as --n and --w, which would "
            "be read as words. Write a text file of prompts alone, one a line, for samples.prompts.",
        )
    sampler = keys.text("sample_sampler", "ddim")
    draft.put("samples.sampler", _SAMPLERS.get(sampler, "ddim"), "sample_sampler")
    if sampler not in _SAMPLERS:
        draft.tell("changed", f"sample_sampler: {sampler} is ddim here.")


def _is_plain(prompts: str, file: Path) -> bool:
    """Tell whether a file of prompts is there and holds nothing but prompts."""
    path = find(prompts, file)
    if path is None or path.suffix.lower() != ".txt":
        return False
    return " --" not in path.read_text(encoding="utf-8", errors="replace")
