"""What every section of the settings has in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of the YAML: strict types, no unknown keys, frozen once read."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
