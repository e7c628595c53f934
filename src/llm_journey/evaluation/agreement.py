"""How far one model's next-token distributions are from another's: what an export or a quantization changed.

Legend: T positions, V vocabulary. Logits in, figures out; whose logits they are is the caller's business.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

# A lead of the reference's first token over its second, in logits, below which a changed order says little.
DECIDED_MARGIN = 0.05


@dataclass(frozen=True)
class Agreement:
    """The other model beside the reference, over all positions.

    largest_logit_difference: of any logit. greedy_agreement: share of positions with the same most likely token.
    decided_agreement: the same where the reference's lead exceeds DECIDED_MARGIN, at decided_positions of them.
    mean_kl, largest_kl: KL(reference || other), in nats a position (Kullback and Leibler 1951).
    """

    positions: int
    decided_positions: int
    largest_logit_difference: float
    greedy_agreement: float
    decided_agreement: float
    mean_kl: float
    largest_kl: float

    def describe(self) -> dict[str, float | int]:
        """The figures as JSON values."""
        return asdict(self)


def compare_logits(pairs: Iterable[tuple[Tensor, Tensor]]) -> Agreement:
    """The agreement over pairs of (reference, other) logits, each (T, V); taken one pair at a time, in float64."""
    same, decided, divergences, largest = [], [], [], 0.0
    for reference_tv, other_tv in pairs:
        reference_tv, other_tv = reference_tv.double(), other_tv.double()
        largest = max(largest, float((reference_tv - other_tv).abs().max()))
        best_tk = reference_tv.topk(2, dim=-1)
        same.append(best_tk.indices[:, 0] == other_tv.argmax(-1))
        decided.append(best_tk.values[:, 0] - best_tk.values[:, 1] > DECIDED_MARGIN)
        log_p_tv, log_q_tv = reference_tv.log_softmax(-1), other_tv.log_softmax(-1)
        divergences.append((log_p_tv.exp() * (log_p_tv - log_q_tv)).sum(-1))
    same_n, decided_n, kl_n = torch.cat(same), torch.cat(decided), torch.cat(divergences)
    return Agreement(
        positions=len(same_n),
        decided_positions=int(decided_n.sum()),
        largest_logit_difference=largest,
        greedy_agreement=float(same_n.double().mean()),
        decided_agreement=float(same_n[decided_n].double().mean()) if decided_n.any() else 1.0,
        mean_kl=float(kl_n.mean()),
        largest_kl=float(kl_n.max()),
    )
