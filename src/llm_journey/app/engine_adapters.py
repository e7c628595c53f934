"""An adapter in the form that the engine computes with (generation.adapters), beside the model's own weights."""

from pathlib import Path

from torch import nn

from llm_journey.core.errors import BadInputError
from llm_journey.finetuning.lora import LoraLinear, adapted_layers, adapter_names, remove
from llm_journey.finetuning.peft_format import load_adapter
from llm_journey.generation.adapters import Adapter, LowRankUpdate, Place, joined_update
from llm_journey.model.decoder import Decoder

_PLACES: dict[Place, tuple[str, ...]] = {
    "qkv": ("attention.q", "attention.k", "attention.v"),
    "o": ("attention.o",),
    "up": ("mlp.gate", "mlp.up"),
    "down": ("mlp.down",),
}


def read_engine_adapter(model: Decoder, directory: Path) -> Adapter:
    """A folder's adapter, ours or PEFT's, in the engine's form. The model is afterwards what it was.

    Raises BadInputError where it does not fit the model, and where it changes what is no linear layer of a block.
    """
    assert not adapter_names(model)
    try:
        load_adapter(model, directory)
        others = [path for path, _ in adapted_layers(model) if not path.startswith("blocks.")]
        if others:
            raise BadInputError(
                f"{directory}: changes {', '.join(others)}, which all answers share; merge it into a model of its own: "
                "journey adapters merge"
            )
        return [_of_block(block) for block in model.blocks]
    finally:
        remove(model, merged=False)


def _of_block(block: nn.Module) -> dict[Place, LowRankUpdate]:
    modules = dict(block.named_modules())
    found: dict[Place, LowRankUpdate] = {}
    for place, names in _PLACES.items():
        layers = [modules[name] for name in names if name in modules]
        if any(isinstance(layer, LoraLinear) for layer in layers):
            found[place] = joined_update([_update(layer) for layer in layers])
    return found


def _update(layer: nn.Module) -> LowRankUpdate | int:
    if not isinstance(layer, LoraLinear):
        assert isinstance(layer.out_features, int)
        return layer.out_features
    (adapter,) = layer.working()
    a_rk, b_mr = adapter.a_rk.detach(), adapter.scale * adapter.b_nr.detach()
    if adapter.magnitude_n is None:
        return LowRankUpdate(a_rk, b_mr)
    norm_m = (layer.base.weight.detach() + b_mr @ a_rk).norm(dim=1)
    return LowRankUpdate(a_rk, b_mr, adapter.magnitude_n.detach() / norm_m, layer.bias)
