"""The distance to a teacher's features."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cosine_distance(
    predicted: Float[Tensor, "batch frames dim"], true: Float[Tensor, "batch frames dim"]
) -> Float[Tensor, " batch"]:
    """1 - cos of the angle between two vectors, a mean over the frames of an item where `true` is not 0."""
    known = true.any(-1)
    distance = 1 - F.cosine_similarity(predicted, true, dim=-1)
    return (known * distance).sum(-1) / known.sum(-1).clamp(min=1)
