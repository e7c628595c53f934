"""A decoder quantized layer by layer, each layer's rounding fitted to the inputs that it gets on calibration text.

Block after block (Frantar et al. 2023, section 4): the calibration windows pass through the block, X^T X of every
linear layer's inputs is summed up, its matrices are rounded, and the windows pass through once more, now with what the
rounded block gives; so that later blocks make good what earlier ones lost. Only one block's sums exist at a time.

Legend: B windows, T positions, D width, K inputs of a layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from llm_journey.compression.gptq import gptq
from llm_journey.core.errors import BadInputError
from llm_journey.model.attention import attention_mask
from llm_journey.model.decoder import Decoder
from llm_journey.quantization.formats import QuantizedWeight
from llm_journey.quantization.layers import quantize_model
from llm_journey.quantization.scheme import Scheme

_BATCH = 4
Progress = Callable[[int, int], None]


@torch.inference_mode()
def quantize_by_gptq(
    decoder: Decoder,
    windows_bt: Tensor,
    scheme: Scheme,
    *,
    act_order: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Swap the decoder's matrices for quantized ones, by GPTQ on the ids `windows_bt` (B, T). Embedding and head: int8.

    on_progress: called with (blocks done, blocks). Raises BadInputError where the scheme does not fit, JourneyError
    where the calibration inputs are of no use.
    """
    if scheme.format != "int4":
        raise BadInputError(f"GPTQ chooses codes in groups of 3 or 4 bits, not of {scheme.format}")
    batches = torch.split(windows_bt.to(decoder.device), _BATCH)
    num_positions = windows_bt.shape[1]
    hidden = [decoder._embedded(ids_bt, 0, None) for ids_bt in batches]
    rotary = decoder._rotary(0, num_positions, None)
    mask = attention_mask(num_positions, num_positions, decoder.device, sliding_window=decoder.config.sliding_window)
    for index, block in enumerate(decoder.blocks):
        with _input_products(block) as sums:
            for x_btd in hidden:
                block(x_btd, rotary, mask)

        def quantizer(name: str, weight_nk: Tensor, sums: dict[str, Tensor] = sums) -> QuantizedWeight:
            return gptq(weight_nk, sums.pop(name), scheme, act_order=act_order)

        quantize_model(block, scheme, quantizer)
        hidden = [block(x_btd, rotary, mask) for x_btd in hidden]
        if on_progress is not None:
            on_progress(index + 1, len(decoder.blocks))
    quantize_model(decoder, scheme)  # what is left: embedding and head


@contextmanager
def _input_products(block: nn.Module) -> Iterator[dict[str, Tensor]]:
    """X^T X (K, K) of each linear layer's inputs while inside, by the layer's name in the block."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_nk = inputs[0].flatten(0, -2)
        product_kk = x_nk.T @ x_nk
        sums[name] = product_kk if name not in sums else sums[name].add_(product_kk)

    layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
