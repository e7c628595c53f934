"""What `journey inspect` shows of a model: attention maps, hidden states, logit lens, against transformers' own.

transformers shows maps only from its plain attention, so the models are opened with that; ours are recorded from what
goes into the fused kernel.

Legend: T positions, S keys, D width, V vocabulary.
"""

import math
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from llm_journey.inspection.inspection import Inspection, inspect_ids, inspect_pair
from llm_journey.inspection.recorder import watch
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality
from llm_journey.parity.families import FAMILIES, OPENERS
from llm_journey.parity.random_models import (
    opened_by_transformers,
    plant,
    random_encoder_decoder,
    random_ids,
    random_model,
)

_LENGTH = 29
# Where transformers keeps the norm before its head.
_FINAL_NORM = {"gpt2": "transformer.ln_f", "llama with grouped queries": "model.norm", "qwen3": "model.norm"}


class _Everything:
    """A watcher that keeps every map and residual as it is."""

    def __init__(self) -> None:
        self.maps: dict[tuple[int, int], Tensor] = {}
        self.residuals: list[Tensor] = []

    def on_residual(self, layer: int, residual_td: Tensor) -> None:
        """Kept in the order of layers."""
        del layer
        self.residuals.append(residual_td.clone())

    def on_attention(self, layer: int, head: int, weights_ts: Tensor) -> None:
        """Kept by layer and head."""
        self.maps[layer, head] = weights_ts.clone()


def _seen(planted: bool, *, family: str, what: str) -> float:
    """One text through both; the planted error changes a weight of the second layer's attention."""
    model = random_model(**FAMILIES[family])
    assert isinstance(model, Decoder | Encoder)
    ids_bt = random_ids(1, _LENGTH, model.config.vocab_size)
    opener = OPENERS[model.config.kind]
    with opened_by_transformers(model, opener, attn_implementation="eager") as theirs, torch.inference_mode():
        shown = theirs(ids_bt, output_attentions=True, output_hidden_states=True)
        if planted:
            plant(model.blocks[1].attention.q.weight)  # type: ignore[union-attr, arg-type]
        if what == "lens":
            norm = attrgetter(_FINAL_NORM[family])(theirs)
            states = [theirs.lm_head(norm(state[0])) for state in shown.hidden_states[:-1]]
            return _lens_difference(inspect_ids(model, ids_bt[0].tolist()), ids_bt[0], [*states, shown.logits[0]])
    seen = _Everything()
    watch(model, seen, lambda: model(ids_bt))
    if what == "maps":
        heads = model.config.num_heads
        expected = [
            shown.attentions[layer][0, head] for layer in range(model.config.num_layers) for head in range(heads)
        ]
        return largest(list(seen.maps.values()), expected)
    # transformers' last hidden state has been through the final norm (none where norms stand after), ours has not.
    with torch.inference_mode():
        residuals = [*seen.residuals[:-1], model.norm(seen.residuals[-1])]
    return largest(residuals, [state[0] for state in shown.hidden_states])


def _pair_seen(planted: bool, *, what: str) -> float:
    """A source and its target through an encoder-decoder: the maps of all three kinds, or the decoder's lens.

    The planted error changes the sign of a matrix of the encoder, which all of these depend on.
    """
    model = random_encoder_decoder()
    source_bs, target_bt = random_ids(1, _LENGTH, 97), random_ids(1, 19, 97, seed=2)
    with (
        opened_by_transformers(model, OPENERS["encoder_decoder"], attn_implementation="eager") as theirs,
        torch.inference_mode(),
    ):
        shown = theirs(
            input_ids=source_bs, decoder_input_ids=target_bt, output_attentions=True, output_hidden_states=True
        )
        states = [theirs.lm_head(state[0]) + theirs.final_logits_bias for state in shown.decoder_hidden_states[:-1]]
        if planted:
            model.encoder_blocks[0].mlp.down.weight.neg_()  # type: ignore[union-attr, operator]
    seen = inspect_pair(model, source_bs[0].tolist(), target_bt[0].tolist())
    if what == "lens":
        return _lens_difference(seen, target_bt[0], [*states, shown.logits[0]])
    expected = [*shown.encoder_attentions, *shown.decoder_attentions, *shown.cross_attentions]
    return largest(list(seen.maps.values()), [weights[0] for weights in expected])


def _lens_difference(found: Inspection, ids_t: Tensor, expected: list[Tensor]) -> float:
    """Per layer: probability of what came next, entropy in bits, and the likeliest token's probability."""
    ours: list[Any] = [
        value for row in found.lens for value in (row.probability[:-1], row.entropy, row.kept_probabilities[:, 0])
    ]
    theirs: list[Any] = []
    for logits_tv in expected:
        probabilities_tv = logits_tv.softmax(-1)
        bits_t = torch.special.entr(probabilities_tv).sum(-1) / math.log(2)
        next_t = probabilities_tv[:-1].gather(1, ids_t[1:, None])[:, 0]
        theirs += [next_t, bits_t, probabilities_tv.amax(-1)]
    return largest(ours, theirs)


_vs_transformers = partial(
    Equality, reference="transformers", tolerance=1e-4, reason="float32 sums taken in another order"
)

EQUALITIES = (
    *(
        _vs_transformers(
            component=f"attention maps, {family}",
            compared="weights of every head and layer, output_attentions",
            difference=partial(_seen, family=family, what="maps"),
        )
        for family in ("gpt2", "llama with grouped queries", "qwen3 with a sliding window", "bert")
    ),
    *(
        _vs_transformers(
            component=f"hidden states, {family}",
            compared="the residual stream before and after every layer, output_hidden_states",
            difference=partial(_seen, family=family, what="states"),
        )
        for family in ("gpt2", "llama with grouped queries", "bert")
    ),
    *(
        _vs_transformers(
            component=f"logit lens, {family}",
            compared="probabilities and entropy of every layer, its norm and head on its hidden states",
            difference=partial(_seen, family=family, what="lens"),
        )
        for family in ("gpt2", "llama with grouped queries", "qwen3")
    ),
    _vs_transformers(
        component="attention maps, marian",
        compared="encoder, decoder and cross-attention weights, output_attentions",
        difference=partial(_pair_seen, what="maps"),
    ),
    _vs_transformers(
        component="logit lens, marian",
        compared="probabilities and entropy of every decoder layer, its head on its hidden states",
        difference=partial(_pair_seen, what="lens"),
    ),
)
