"""Products with a weight matrix in the form that is fastest for answering: float32 in and out, (N, K) -> (N, M).

Of a decoding step's time nearly all goes into reading the weights once, so fewer bits are faster tokens. PyTorch's
packed kernels read int8 and int4 with bf16 activations and are made for few rows; many rows (a prompt) are better
served by a plain product with the weight unpacked for the occasion. Where they are missing, or on another device, the
readable form is computed instead.

Legend: N rows (tokens), K inputs, M outputs, G groups.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_journey.model.native import is_native
from llm_journey.quantization import nf4
from llm_journey.quantization.formats import (
    GROUP_SIZES,
    DynamicInt8Weight,
    Int4Weight,
    Int8Weight,
    QuantizedWeight,
    quantize_rows,
)
from llm_journey.quantization.nf4 import Nf4Weight
from llm_journey.quantization.scheme import num_bytes, stored

# Up to so many rows the packed kernel wins over unpacking for a plain product (measured at 576 x 960 to 576 x 3072).
FEW_ROWS_INT8, FEW_ROWS_INTEGERS, FEW_ROWS_INT4 = 3, 96, 64
TALL = 8192  # outputs from which on a matrix is read from memory at every call


class Product(Protocol):
    """x (N, K) float32 -> (N, M) float32. `num_bytes` are read for each call."""

    @property
    def num_bytes(self) -> int: ...

    def __call__(self, x_nk: Tensor) -> Tensor: ...

    def for_compiler(self) -> "PureProduct | None":
        """The product of few rows for a compiler to fuse with what stands around it; None: it has no such form."""
        ...


@dataclass(frozen=True)
class PureProduct:
    """A product as a function of its tensors, (x_nk, *tensors) -> (N, M), so that compiled once it serves every matrix
    of the same shape. `kind`: says which function it is, with all that is fixed in it."""

    kind: str
    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]


class DenseProduct:
    """x W^T + b with the weight as it is, or rounded to bf16."""

    def __init__(self, weight_mk: Tensor, bias_m: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.weight_mk = weight_mk.detach().to(dtype).contiguous()
        self.bias_m = None if bias_m is None else bias_m.detach().float()

    @property
    def num_bytes(self) -> int:
        return self.weight_mk.nbytes

    def __call__(self, x_nk: Tensor) -> Tensor:
        return _dense(x_nk, self.weight_mk, self.bias_m)

    def for_compiler(self) -> PureProduct:
        return PureProduct(str(self.weight_mk.dtype), _dense, _given(self.weight_mk, self.bias_m))


def _dense(x_nk: Tensor, weight_mk: Tensor, bias_m: Tensor | None = None) -> Tensor:
    if weight_mk.dtype == torch.float32:
        return F.linear(x_nk, weight_mk, bias_m)
    return _add(F.linear(x_nk.to(weight_mk.dtype), weight_mk).float(), bias_m)


class Int8Product:
    """x (scale q)^T + b: q is multiplied, the scale applied to the result, so that unpacking loses nothing.

    One to three rows go to torch's packed kernel with bf16 activations. More rows, and any rows of a matrix as tall as
    a vocabulary, are multiplied as integers where the processor has VNNI: each row as two rows of int8 codes, the
    rounded inputs and 254 times what rounding left over, which together hold 16 bits (see `two_codes`). A prompt's many
    rows are a plain product with the codes unpacked. One core, 576 x 49,152: packed kernel 4.4 ms, integers 1.9 ms;
    576 x 3,072 and 16 rows: 1.0 ms and 0.4 ms.
    """

    def __init__(self, weight: Int8Weight, bias_m: Tensor | None = None) -> None:
        self.codes_mk, self.scale_m = weight.codes_nk.contiguous(), weight.scale_n.contiguous()
        self.bias_m = None if bias_m is None else bias_m.detach().float()
        on_cpu = self.codes_mk.device.type == "cpu"
        self._scale_bf16_m = self.scale_m.bfloat16()
        self._packed = on_cpu and self.codes_mk.shape[0] % 4 == 0
        self._integers = on_cpu and _has_vnni()
        self._tall = _packed_for_fbgemm(weight) if self._integers and self.codes_mk.shape[0] >= TALL else None
        self._wide = _wide_dtype(self.codes_mk.device)

    @property
    def num_bytes(self) -> int:
        return self.codes_mk.nbytes + self.scale_m.nbytes

    def __call__(self, x_nk: Tensor) -> Tensor:
        num_rows = len(x_nk)
        if self._tall is not None and num_rows <= FEW_ROWS_INTEGERS:
            return _add(_in_two_parts(x_nk, self._tall_product), self.bias_m)
        if self._packed and num_rows <= FEW_ROWS_INT8:
            result_nm = torch._weight_int8pack_mm(x_nk.bfloat16(), self.codes_mk, self._scale_bf16_m).float()
        elif self._integers and num_rows <= FEW_ROWS_INTEGERS:
            result_nm = _in_two_parts(x_nk, self._integer_product)
        else:
            result_nm = F.linear(x_nk.to(self._wide), self.codes_mk.to(self._wide)) * self.scale_m  # float32
        return _add(result_nm, self.bias_m)

    def for_compiler(self) -> PureProduct | None:
        if not self._integers:
            return None
        return PureProduct("int8", _int8_product, _given(self.codes_mk, self.scale_m, self.bias_m))

    def _integer_product(self, codes_nk: Tensor) -> Tensor:
        return torch._int_mm(codes_nk.to(torch.int8), self.codes_mk.T) * self.scale_m

    def _tall_product(self, codes_nk: Tensor) -> Tensor:
        # The kernel's inputs are unsigned: 128 stands for zero.
        result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            codes_nk, 1.0, 128, self._tall
        )
        return result


def _int8_product(x_nk: Tensor, codes_mk: Tensor, scale_m: Tensor, bias_m: Tensor | None = None) -> Tensor:
    """One row as it is written, which compiled is one loop that reads each code once and rounds nothing; more rows in
    integers. SmolLM2's 30 layers, weights from memory, two cores: 3.9 ms compiled, 6.1 ms fbgemm, 7.6 ms packed."""
    if x_nk.shape[0] == 1:
        # as_strided wants memory: without it the compiler would take what makes x into the loop, again for each output.
        x_nk = x_nk.as_strided(x_nk.shape, (x_nk.shape[1], 1))
        result_nm = (x_nk * codes_mk.float()).sum(-1)[None] * scale_m
    else:
        result_nm = _in_two_parts(x_nk, lambda codes: torch._int_mm(codes.to(torch.int8), codes_mk.T) * scale_m)
    return _add(result_nm, bias_m)


def two_codes(x_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (2 N, K), whole numbers from -127 to 127, and scales (N, 1): x = scale (first + second / 254), to half a
    step of the second, which is 1 part in 64,516 of the row's largest magnitude."""
    largest_n1 = x_nk.abs().amax(1, keepdim=True)
    scale_n1 = torch.where(largest_n1 > 0, largest_n1, 1.0) / 127
    scaled_nk = x_nk / scale_n1
    first_nk = scaled_nk.round()
    return torch.cat((first_nk, (scaled_nk - first_nk).mul_(254).round_())), scale_n1


def _in_two_parts(x_nk: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    codes_2nk, scale_n1 = two_codes(x_nk)
    result_2nm, num_rows = product(codes_2nk), x_nk.shape[0]
    return torch.add(result_2nm[:num_rows], result_2nm[num_rows:], alpha=1 / 254) * scale_n1


def _packed_for_fbgemm(weight: Int8Weight) -> Any:
    """The codes as fbgemm's kernel reads them, which streams a tall matrix from memory twice as fast; None without.

    PyTorch 2.13 warns that a later release drops it; there the other kernels take its place.
    """
    if not hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32"):
        return None
    if "x86" not in torch.backends.quantized.supported_engines:
        return None
    zeros_n = torch.zeros(len(weight.scale_n), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        as_quantized = torch._make_per_channel_quantized_tensor(weight.codes_nk, weight.scale_n.double(), zeros_n, 0)
    return torch.ops.quantized.linear_prepack(as_quantized, None)


def _has_vnni() -> bool:
    """Whether the processor sums products of bytes in 32 bits; older ones saturate at 16, which is wrong."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni"))


class Int4Product:
    """x (scale q + minimum)^T + b, two codes in each byte."""

    def __init__(self, weight: Int4Weight, bias_m: Tensor | None = None) -> None:
        self.num_outputs, self.num_inputs = weight.codes_nk.shape
        self.group_size = weight.even_size
        self.bias_m = None if bias_m is None else bias_m.detach().float()
        device = weight.codes_nk.device
        self._packed_kernel = (
            device.type == "cpu" and self.group_size in GROUP_SIZES and self.num_outputs % _BLOCK_ROWS == 0
        )
        self._wide = _wide_dtype(device)
        # The kernel's own form: w = (q - 8) * scale + zero, with scale and zero as (G, M, 2) in bf16. Codes of fewer
        # bits are put in the middle of the sixteen, where zero is small and bf16 rounds it little.
        half = 2 ** (weight.bits - 1)
        codes_nk, zero_mg = weight.codes_nk + (8 - half), weight.minimum_ng + half * weight.scale_ng
        scales_gm2 = torch.stack((weight.even(weight.scale_ng), weight.even(zero_mg)), -1).transpose(0, 1).contiguous()
        if self._packed_kernel:
            self._codes = torch._convert_weight_to_int4pack_for_cpu(codes_nk.int(), 2)
            self._scales_gm2 = scales_gm2.bfloat16()
        else:
            self._codes = codes_nk[:, ::2] | codes_nk[:, 1::2] << 4
            self._scales_gm2 = scales_gm2

    @property
    def num_bytes(self) -> int:
        return self._codes.nbytes + self._scales_gm2.nbytes

    def __call__(self, x_nk: Tensor) -> Tensor:
        if self._packed_kernel and len(x_nk) <= FEW_ROWS_INT4:
            return _int4_product(x_nk, self._codes, self._scales_gm2, self.bias_m, group_size=self.group_size)
        return _add((x_nk.to(self._wide) @ self.unpacked(self._wide)).float(), self.bias_m)

    def for_compiler(self) -> PureProduct | None:
        if not self._packed_kernel:
            return None
        function = functools.partial(_int4_product, group_size=self.group_size)
        return PureProduct(f"int4 {self.group_size}", function, _given(self._codes, self._scales_gm2, self.bias_m))

    def unpacked(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(K, M): the transposed weight as its codes say."""
        scale_gm, zero_gm = (part_gm.contiguous() for part_gm in self._scales_gm2.to(dtype).unbind(-1))
        if not self._packed_kernel:
            codes_km = torch.stack((self._codes & 15, self._codes >> 4), -1).flatten(1).T
            codes_gkm = torch.unflatten(codes_km, 0, (-1, self.group_size)).to(dtype) - 8
            return torch.addcmul(zero_gm[:, None], codes_gkm, scale_gm[:, None]).flatten(0, 1)
        # Block by block of outputs, as the codes lie: copies of bytes and of bf16 are all that moves.
        codes_bkr = self._codes.view(-1, self.num_inputs, _BLOCK_ROWS // 2)
        codes_bkr = torch.cat((codes_bkr & 15, codes_bkr >> 4), -1).view(torch.int8).sub_(8)
        order = _block_order()
        if order is not None:
            codes_bkr = codes_bkr[..., order]
        codes_bgkr = torch.unflatten(codes_bkr.to(dtype), 1, (-1, self.group_size))
        scale_bgr, zero_bgr = (
            torch.unflatten(part_gm, 1, (-1, _BLOCK_ROWS)).transpose(0, 1).contiguous()[:, :, None]
            for part_gm in (scale_gm, zero_gm)
        )
        weight_bkr = torch.addcmul(zero_bgr, codes_bgkr, scale_bgr).flatten(1, 2)
        return weight_bkr.transpose(0, 1).reshape(self.num_inputs, -1)


def _int4_product(
    x_nk: Tensor, codes: Tensor, scales_gm2: Tensor, bias_m: Tensor | None = None, *, group_size: int
) -> Tensor:
    result_nm = torch._weight_int4pack_mm_for_cpu(x_nk.bfloat16(), codes, group_size, scales_gm2)
    return _add(result_nm.float(), bias_m)


class DynamicInt8Product:
    """x (scale q)^T + b with x rounded to int8 row by row: integers are multiplied and summed exactly, then scaled.

    torch._int_mm takes any number of rows on a CPU; 576 x 3,072 and one row took 29 us there, float32 135 us, 512 rows
    a tenth of float32's time (one core with AVX-512 VNNI).
    """

    def __init__(self, weight: DynamicInt8Weight, bias_m: Tensor | None = None) -> None:
        self.weight = weight
        self.bias_m = None if bias_m is None else bias_m.detach().float()
        self._integers = weight.codes_nk.device.type == "cpu" and _has_vnni()

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.weight)

    def __call__(self, x_nk: Tensor) -> Tensor:
        if not self._integers:
            return _add(dynamic_product(x_nk, self.weight), self.bias_m)
        return _dynamic_product(x_nk, self.weight.codes_nk, self.weight.scale_n, self.bias_m)

    def for_compiler(self) -> PureProduct | None:
        if not self._integers:
            return None
        tensors = _given(self.weight.codes_nk, self.weight.scale_n, self.bias_m)
        return PureProduct("dynamic int8", _dynamic_product, tensors)


def _dynamic_product(x_nk: Tensor, codes_mk: Tensor, scale_m: Tensor, bias_m: Tensor | None = None) -> Tensor:
    codes_nk, scale_n = quantize_rows(x_nk)
    sums_nm = torch._int_mm(codes_nk, codes_mk.T).float()
    return _add(sums_nm * scale_n[:, None] * scale_m, bias_m)


def dynamic_product(x_nk: Tensor, weight: DynamicInt8Weight) -> Tensor:
    """The readable form, (N, M): rounded inputs times rounded weights. float64 holds every such sum exactly."""
    codes_nk, scale_n = quantize_rows(x_nk)
    sums_nm = F.linear(codes_nk.double(), weight.codes_nk.double()).float()
    return sums_nm * scale_n[:, None] * weight.scale_n


class Nf4Product:
    """x W^T + b. No kernel of torch's reads NF4: two weights at a time are looked up, then multiplied plainly."""

    def __init__(self, weight: Nf4Weight, bias_m: Tensor | None = None) -> None:
        tensors = stored(weight)
        self._codes, self._shape = tensors["codes"], weight.shape
        self._absmax = weight.block_scales()
        self.bias_m = None if bias_m is None else bias_m.detach().float()
        points = nf4.code_points().to(self._codes.device)
        pairs = torch.arange(256, device=self._codes.device)
        self._pairs = torch.stack((points[pairs & 15], points[pairs >> 4]), -1)
        self.num_bytes = sum(tensor.nbytes for tensor in tensors.values())

    def __call__(self, x_nk: Tensor) -> Tensor:
        rows, columns = self._shape
        numbers = F.embedding(self._codes.int(), self._pairs).flatten()[: rows * columns]
        return F.linear(x_nk, nf4.scaled(numbers.view(rows, columns), self._absmax), self.bias_m)

    def for_compiler(self) -> None:
        """None: looking up two weights at a time is no faster compiled."""


class JoinedProduct:
    """Several products of one input, side by side, whose weights cannot be one matrix."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = products

    @property
    def num_bytes(self) -> int:
        return sum(product.num_bytes for product in self.products)

    def __call__(self, x_nk: Tensor) -> Tensor:
        return torch.cat([product(x_nk) for product in self.products], -1)

    def for_compiler(self) -> None:
        """None: such mixtures are rare."""


def make_product(weight: QuantizedWeight, bias_m: Tensor | None = None) -> Product:
    """The fast product of a quantized weight, from its own codes."""
    match weight:
        case DynamicInt8Weight():
            return DynamicInt8Product(weight, bias_m)
        case Int8Weight():
            return Int8Product(weight, bias_m)
        case Int4Weight():
            return Int4Product(weight, bias_m)
        case Nf4Weight():
            return Nf4Product(weight, bias_m)
        case _:
            raise TypeError(f"no quantized weight: {type(weight).__name__}")


_BLOCK_ROWS = 64  # outputs whose codes lie together in the packed form


@functools.cache
def _block_order() -> Tensor | None:
    """Where each output of a block of 64 lies among its low and then its high half-bytes: it differs by processor.
    None: in order.

    Found by packing codes that number the outputs: first their lower four bits, then their upper two.
    """
    rows = torch.arange(_BLOCK_ROWS)
    found = torch.zeros(_BLOCK_ROWS, dtype=torch.long)
    for part, factor in ((rows % 16, 1), (rows // 16, 16)):
        packed = torch._convert_weight_to_int4pack_for_cpu(part[:, None].expand(-1, 32).int().contiguous(), 2)
        first = packed.view(32, _BLOCK_ROWS // 2)[0]
        found += factor * torch.cat((first & 15, first >> 4)).long()
    order = found.argsort()
    return None if torch.equal(order, rows) else order


def _wide_dtype(device: torch.device) -> torch.dtype:
    """What weights are unpacked to for many rows: the narrowest type that the device multiplies in hardware."""
    return torch.bfloat16 if is_native(torch.bfloat16, device) else torch.float32


def _add(result_nm: Tensor, bias_m: Tensor | None) -> Tensor:
    return result_nm if bias_m is None else result_nm + bias_m


def _given(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)
