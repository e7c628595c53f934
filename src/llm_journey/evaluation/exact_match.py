"""Exact match: the share of held-out pairs whose target the model writes to the last character, by itself.

No teacher forcing: the model reads its own tokens back. Greedy search by default; beams cost their number.
"""

import torch

from llm_journey.datasets.shards import TokenShards
from llm_journey.generation.beam import write_targets
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model
from llm_journey.training.inputs import Inputs

_ROWS = 250


def exact_match(
    model: EncoderDecoder,
    sources: TokenShards,
    targets: TokenShards,
    *,
    num_beams: int = 1,
    most: int | None = None,
) -> float:
    """Share of pairs (the first `most` of them) that are written exactly, the end token included; in [0, 1]."""
    number = min(sources.num_documents, most or sources.num_documents)
    # Shortest first, so that little of a batch is padding.
    order = sources.document_lengths()[:number].argsort(kind="stable").tolist()
    longest = int(targets.document_lengths()[:number].max())
    right = 0
    with torch.random.fork_rng([]):
        for start in range(0, number, _ROWS):
            rows = order[start : start + _ROWS]
            found = write_targets(
                model,
                [sources.document(row).tolist() for row in rows],
                begin_id=targets.end_id,
                end_id=targets.end_id,
                pad_id=sources.end_id,
                max_length=longest,
                num_beams=num_beams,
            )
            for row, (best, *_) in zip(rows, found, strict=True):
                right += best.ended and list(best.ids) == targets.document(row)[:-1].tolist()
    return right / number


def pair_figures(model: Model, inputs: Inputs) -> dict[str, float]:
    """The figure that a run's curve shows, over all held-out pairs; nothing for data without pairs."""
    if inputs.validation_targets is None or not isinstance(model, EncoderDecoder):
        return {}
    return {"exact_match": exact_match(model, inputs.validation, inputs.validation_targets)}
