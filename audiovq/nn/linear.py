"""Products with weights that stay the same, which oneDNN lays out for itself once.

What PyTorch's own products call on an x86 CPU, MKL, passes over AVX-512 where the processor is not Intel's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

X86 = platform.machine().lower() in ("x86_64", "amd64")

Value = TypeVar("Value")


class Derived:
    """What is computed from tensors once, and again when they have changed.

    It is neither copied nor saved with the module that holds it.
    """

    def __init__(self) -> None:
        self._held: tuple[Any, Any] | None = None

    def of(self, compute: Callable[..., Value], *tensors: Tensor) -> Value:
        """`compute(*tensors)`, of these tensors as they are now."""
        if torch.compiler.is_compiling():  # Tensors of a graph have no values yet.
            return compute(*tensors)
        states = [(id(tensor), tensor.data_ptr(), tensor.dtype, _version(tensor)) for tensor in tensors]
        held = self._held
        if held is None or held[0][0] != states:
            with torch.inference_mode(False), torch.no_grad():
                value = compute(*tensors)
            # The tensors are held, too, so that no others can take their identities.
            held = self._held = (states, tensors), value
        return held[1]

    def __deepcopy__(self, memo: object) -> Derived:
        return Derived()

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`; with `gelu`, the activation goes with the product.

    Shape:
        input [..., in_features]; output [..., out_features].
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self._packed = Derived()

    def forward(self, input: Float[Tensor, "*batch inputs"], gelu: bool = False) -> Float[Tensor, "*batch outputs"]:
        return linear(input, self.weight, self.bias, self._packed, gelu)


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs ..."],
    bias: Float[Tensor, " outputs"],
    packed: Derived,
    gelu: bool = False,
) -> Float[Tensor, "*batch outputs"]:
    """`F.linear`, in inference on an x86 CPU by oneDNN, whose weights `packed` keeps.

    Weights may be those of a convolution, for inputs that are its windows.
    """
    if by_onednn(x, weight):
        activation = ("gelu", [], "none") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, packed.of(_pack, weight), bias, *activation)
    output = F.linear(x, weight.flatten(1), bias)
    return F.gelu(output) if gelu else output


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` goes by oneDNN."""
    return (
        X86
        and not torch.is_grad_enabled()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled  # pyright: ignore[reportAttributeAccessIssue]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    )


def _pack(weight: Float[Tensor, "outputs ..."]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
