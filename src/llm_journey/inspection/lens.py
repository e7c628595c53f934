"""What a layer would predict, had the model ended there: the logit lens (nostalgebraist, "interpreting GPT", 2020).

The final norm and the head are applied to each layer's residual. The last layer's row is what the model predicts. For
a decoder a position predicts the next token; for an encoder with a masked-language-model head, the token in its own
place (which it sees: where a text holds no [MASK], a high probability says little).

Probabilities are those at temperature 1 over the whole vocabulary. Entropy and surprisal are in bits. Left out: the
tuned lens (Belrose et al. 2023), which trains a translator for each layer.

Legend: T positions, N positions of a slice, D width, V vocabulary, C predictions that are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_KEPT = 5
_SLICE = 64  # positions at a time: 13 MB of logits in float32 for a vocabulary of 50,000
_BITS = float(1 / np.log(2))


@dataclass(frozen=True)
class Predictions:
    """What is predicted at each position of one layer.

    kept_ids, kept_probabilities (T, C): the likeliest tokens, best first. entropy (T): of the whole distribution, bits.
    probability, surprisal (T): of the target (the token that came), and its -log2; NaN where there is no target.
    rank (T): of the target, 1 is the likeliest; 0 where there is no target.
    """

    kept_ids: NDArray[np.int64]
    kept_probabilities: NDArray[np.float32]
    entropy: NDArray[np.float32]
    probability: NDArray[np.float32]
    surprisal: NDArray[np.float32]
    rank: NDArray[np.int64]


def predictions(
    readout: Callable[[Tensor], Tensor], residual_td: Tensor, targets_t: Tensor, kept: int = NUM_KEPT
) -> Predictions:
    """Predictions of `readout` ((N, D) -> logits (N, V)) at every position. targets_t: ids, negative where none."""
    slices = [
        _of_slice(readout(residual_td[start : start + _SLICE]).float(), targets_t[start : start + _SLICE], kept)
        for start in range(0, residual_td.shape[0], _SLICE)
    ]
    kept_ids, kept_probabilities, entropy, probability, surprisal, rank = (
        torch.cat(parts).cpu().numpy() for parts in zip(*slices, strict=True)
    )
    return Predictions(kept_ids, kept_probabilities, entropy, probability, surprisal, rank)


def _of_slice(logits_nv: Tensor, targets_n: Tensor, kept: int) -> tuple[Tensor, ...]:
    log_probabilities_nv = torch.log_softmax(logits_nv, dim=-1)
    probabilities_nv = torch.softmax(logits_nv, dim=-1)  # several times faster here than exp of the above
    entropy_n = -torch.linalg.vecdot(probabilities_nv, log_probabilities_nv) * _BITS
    top = probabilities_nv.topk(min(kept, logits_nv.shape[-1]), dim=-1)
    absent_n = targets_n < 0
    target_n1 = targets_n.clamp(min=0)[:, None]
    log_target_n1 = log_probabilities_nv.gather(1, target_n1)
    rank_n = 1 + torch.count_nonzero(log_probabilities_nv > log_target_n1, dim=-1)
    log_target_n = log_target_n1[:, 0].masked_fill(absent_n, float("nan"))
    return (
        top.indices, top.values, entropy_n, log_target_n.exp(), -log_target_n * _BITS, rank_n.masked_fill(absent_n, 0)
    )  # fmt: skip
