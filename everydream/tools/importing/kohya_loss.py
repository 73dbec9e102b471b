"""How kohya's scripts make the loss: kind, weights, noise."""

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.keys import Keys

_KINDS = {"l2": "mse", "huber": "huber", "smooth_l1": "smooth_l1"}
_USUAL_ITERATIONS = 6
_USUAL_HUBER_C = 0.1


def put_loss(keys: Keys, draft: Draft) -> None:
    """Set the section loss."""
    _put_kind(keys, draft)
    _put_weighting(keys, draft)
    _put_noise(keys, draft)


def _put_kind(keys: Keys, draft: Draft) -> None:
    name = keys.text("loss_type", "l2")
    kind = _KINDS.get(name, "mse")
    if name not in _KINDS:
        draft.tell("missing", f"loss_type: {name}; the loss is the mean squared error.")
    elif keys.given("loss_type"):
        draft.put("loss.kind", kind, "loss_type")
    c, schedule = keys.number("huber_c", _USUAL_HUBER_C), keys.text("huber_schedule", "snr")
    scale = keys.number("huber_scale", 1.0)
    if kind == "mse":
        for key in ("huber_c", "huber_schedule", "huber_scale"):
            if keys.given(key):
                draft.tell("idle", key)
        return
    draft.put("loss.huber_c", c, "huber_c")
    draft.put("loss.huber_schedule", schedule, "huber_schedule")
    if scale != 1.0:
        draft.tell("missing", f"huber_scale: {scale:g}; the scheduled huber_c is used as it is.")


def _put_weighting(keys: Keys, draft: Draft) -> None:
    gamma = keys.number("min_snr_gamma", None) or None
    draft.put("loss.min_snr_gamma", gamma, "min_snr_gamma")
    if not keys.flag("debiased_estimation_loss", False):
        return
    if gamma is not None:
        draft.tell("missing", "debiased_estimation_loss: not together with min_snr_gamma; one weighting at a time.")
        return
    del draft.entries["loss.min_snr_gamma"]
    draft.put("loss.weighting", "debiased", "debiased_estimation_loss")
    draft.put("loss.normalize_weights", False, "as there; true keeps the loss's size")
    if keys.flag("v_parameterization", False):
        draft.tell(
            "changed",
            "debiased_estimation_loss: for models that predict v the weights are 1 / (SNR + 1) there, "
            "1 / sqrt(SNR + 1) here, which matches 1 / sqrt(SNR) for the others.",
        )


def _put_noise(keys: Keys, draft: Draft) -> None:
    offset = keys.number("noise_offset", None) or 0.0
    draft.put("loss.offset_noise", offset, "noise_offset")
    if keys.flag("noise_offset_random_strength", False) and offset:
        draft.put("loss.offset_noise_random", True, "noise_offset_random_strength")
        draft.tell("changed", "noise_offset_random_strength: one strength for each image here, for each batch there.")
    discount, iterations = keys.number("multires_noise_discount", 0.3), keys.whole("multires_noise_iterations", 0)
    if iterations:
        draft.put("loss.pyramid_noise", discount, "multires_noise_discount")
        if iterations < _USUAL_ITERATIONS:
            draft.tell(
                "changed",
                f"multires_noise_iterations: {iterations}; here until a side is 1, about {_USUAL_ITERATIONS}.",
            )
    elif keys.given("multires_noise_discount"):
        draft.tell("idle", "multires_noise_discount")
    perturbation = keys.number("ip_noise_gamma", None)
    if perturbation:
        draft.put("loss.input_perturbation", perturbation, "ip_noise_gamma")
    if keys.flag("ip_noise_gamma_random_strength", False) and perturbation:
        draft.tell("missing", "ip_noise_gamma_random_strength: the strength is ip_noise_gamma for every image.")
