"""What all schemas share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Size = Annotated[int, Field(gt=0, le=2**20)]
"""Channels, kernels and whatever else is an axis of a tensor."""
Layers = Annotated[int, Field(gt=0, le=1000)]
SampleRate = Annotated[int, Field(ge=1000, le=768_000)]
"""Samples a second, from less than a telephone's to more than any converter's."""


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
