"""What all schemas share."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from audiovq.config.models import AutoencoderConfig

Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Size = Annotated[int, Field(gt=0, le=2**20)]
"""Channels, kernels and whatever else is an axis of a tensor."""
Sizes = Annotated[list[Size], Field(max_length=100)]
"""Sizes of what stands in a row, such as the stages of an encoder."""
Layers = Annotated[int, Field(gt=0, le=1000)]
Dilations = Annotated[list[Annotated[int, Field(gt=0, le=2**12)]], Field(max_length=100)]
"""Dilations of units in a row."""
LookAhead = Annotated[int, Field(ge=0, le=2**20)]
"""Samples behind its own that something sees."""
FramesAhead = Annotated[int, Field(ge=0, le=1000)]
"""Frames behind its own that something sees."""
SampleRate = Annotated[int, Field(ge=1000, le=768_000)]
"""Samples a second, from less than a telephone's to more than any converter's."""


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Pydantic takes `true` for 1, and with it YAML's `yes` and `on`."""
        for name, value in data.items() if isinstance(data, dict) else ():
            kinds = _leaves(cls.model_fields[name].annotation) if name in cls.model_fields else set()
            if {int, float} & kinds and bool not in kinds and bool in _leaves_of(value):
                found = {"key": name, "value": value}
                raise PydanticCustomError("true_for_number", "Input should be a number", found)
        return data


def _leaves(annotation: Any) -> set[Any]:
    """The types that a value, or what is in it, may have."""
    own = {annotation} if isinstance(annotation, type) else set()
    return own.union(*map(_leaves, get_args(annotation)))


def _leaves_of(value: Any) -> set[type]:
    """The types that a value, or what is in it, has."""
    return set().union(*map(_leaves_of, value)) if isinstance(value, list | tuple) else {type(value)}


class PartConfig(Schema):
    """Settings of a part of a model, which name the class that is built from them."""

    implementation: ClassVar[str]
    """`package.module:Class`. It is imported when the part is built, so that configs are read without torch. The class
    has a method `of(config)`, which makes the part of a whole model's config."""

    def build(self, config: AutoencoderConfig) -> Any:
        """The part of the model that `config`, to which these settings belong, asks for."""
        module, _, name = self.implementation.partition(":")
        return getattr(import_module(module), name).of(config)


class ConvNeXtConfig(PartConfig):
    """A part whose work is done by ConvNeXt blocks at the frame rate."""

    dim: Size
    """Channels of the blocks."""
    layers: Layers
    """Number of blocks."""
    kernel_size: Size = 7
    """Kernel of the depthwise convolution of a block."""
    expansion: Size = 3
    """Width of a block's hidden layer, as a multiple of `dim`."""
