"""Matrix products of float32 tensors as tf32 or bf16 hardware sees them, on any device: an emulation for its numbers.

    with RoundedProducts("tf32"):
        agent.update(batch)

Both operands of every product, in the forward and in the backward pass, are rounded to the format; products and sums
are float32 then. Hardware takes in the same operands but adds in an order, and rounds sums in a way, of its own.
Nothing gets faster, on the contrary.
"""

from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# Where the operands are among the arguments; the first of addmm and baddbmm is added in float32.
OPERANDS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}
# Torch counts operations of these too, or should; the last two are made of those above but in inference mode.
OTHER_PRODUCTS = {
    *flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    aten.matmul,
    aten.linear,
} - OPERANDS.keys()
DROPPED_BITS = 23 - 10  # float32's and tf32's bits after the binary point
HALF = 1 << (DROPPED_BITS - 1)  # of tf32's last bit


def to_tf32(values: Tensor) -> Tensor:
    """The nearest tf32 numbers (8 bits of exponent, 10 of mantissa) of float32 values, as float32.

    Ties go away from zero, as in NVIDIA's conversion (PTX: cvt.rna.tf32.f32); what is too large becomes infinite.
    """
    bits = values.view(torch.int32).add(HALF)  # sign and magnitude: upwards is away from zero
    bits.bitwise_and_(-(1 << DROPPED_BITS))
    return torch.where(values.isnan(), values, bits.view(torch.float32))


def to_bf16(values: Tensor) -> Tensor:
    """The nearest bfloat16 numbers of float32 values, ties to even (torch's conversion), as float32."""
    return values.to(torch.bfloat16).to(torch.float32)


FORMATS: Dict[str, Callable[[Tensor], Tensor]] = {"tf32": to_tf32, "bf16": to_bf16}


class RoundedProducts(TorchDispatchMode):
    """Within it the operands of float32 matrix products are rounded; other types, and all other operations, are not.

    Raises NotImplementedError for products of another kind, such as fused attention, which would stay in float32.
    """

    def __init__(self, number_format: str):
        """number_format: one of FORMATS."""
        super().__init__()
        self.round = FORMATS[number_format]

    def __torch_dispatch__(self, func: Any, types: Tuple, args: Tuple = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in OTHER_PRODUCTS:
            raise NotImplementedError(f"{func} is not emulated; rounded are {', '.join(map(str, OPERANDS))}")
        operands = OPERANDS.get(func.overloadpacket, ())
        args = [self._rounded(value) if index in operands else value for index, value in enumerate(args)]
        return func(*args, **(kwargs or {}))

    def _rounded(self, operand: Tensor) -> Tensor:
        return self.round(operand) if operand.dtype == torch.float32 else operand
