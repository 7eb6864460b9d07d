"""What all schemas share."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from audiovq.config.models import AutoencoderConfig

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PartConfig(Schema):
    """Settings of a part of a model, which name the class that is built from them."""

    implementation: ClassVar[str]
    """`package.module:Class`. It is imported when the part is built, so that configs are read without torch. The class
    has a method `of(config)`, which makes the part of a whole model's config."""

    def build(self, config: AutoencoderConfig) -> Any:
        """The part of the model that `config`, to which these settings belong, asks for."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(module), name).of(config)
