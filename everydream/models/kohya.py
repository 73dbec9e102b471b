"""What kohya's adapter files say of the model that they are for; web UIs sort adapters by it."""

from everydream.models.family import Family

_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def base_version(family: Family) -> dict[str, str]:
    """Return the keys of a family's version, {} for families whose adapters have other names than kohya's."""
    if family.name not in _VERSIONS:
        return {}
    is_v2 = family.name == "sd2"
    ending = "_v" if is_v2 and family.objective.prediction == "v" else ""
    return {"ss_base_model_version": _VERSIONS[family.name] + ending, "ss_v2": str(is_v2)}
