"""The three kinds of transformer, by the name that a configuration gives: one visible lookup."""

from llm_journey.core.errors import unknown_name
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder

Model = Decoder | Encoder | EncoderDecoder
KINDS: dict[str, type[Decoder] | type[Encoder] | type[EncoderDecoder]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
}


def make_model(config: TransformerConfig) -> Model:
    """A fresh model of the kind that `config` names; parameters are drawn from torch's global generator."""
    if config.kind not in KINDS:
        raise unknown_name("kind of model", config.kind, KINDS)
    return KINDS[config.kind](config)
