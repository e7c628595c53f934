"""Several models of one shape as one, by arithmetic on their weights; nothing is trained.

    linear            sum w_i W_i                        (Wortsman et al. 2022, "Model soups", for w_i = 1 / n)
    SLERP             along the arc between two weights  (Shoemake 1985, equation of section 3.3)
    task arithmetic   W_0 + sum w_i t_i                  t_i = W_i - W_0, what training added (Ilharco et al. 2023,
                                                         equation 1)
    TIES              W_0 + merge of the trimmed t_i     trim, elect signs, mean of those that agree (Yadav et al. 2023,
                                                         algorithm 1)

TIES and task arithmetic on one tensor are peft's: tests/equivalence/test_merging.py. A state is a model's tensors by
name; those that are no floating point numbers must be the same in all.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError

State = Mapping[str, Tensor]


def linear(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of models."""
    _check_weights(states, weights)
    return _each(states, lambda tensors: weighted_sum(tensors, weights))


def slerp(first: State, second: State, share: float) -> dict[str, Tensor]:
    """The model at `share` of the way from the first to the second, each tensor along its arc."""
    if not 0 <= share <= 1:
        raise BadInputError(f"share must lie in 0 to 1, not {share}")
    return _each([first, second], lambda tensors: slerp_tensor(tensors[0], tensors[1], share))


def task_arithmetic(base: State, states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The base and the weighted sum of what each model adds to it; a negative weight takes an ability away."""
    _check_weights(states, weights)
    return _each([base, *states], lambda tensors: tensors[0] + weighted_sum(_tasks(tensors), weights))


def ties(base: State, states: Sequence[State], weights: Sequence[float], *, density: float = 0.2) -> dict[str, Tensor]:
    """The base and what the models add to it where they agree. density: the share of each that is kept."""
    _check_weights(states, weights)
    return _each([base, *states], lambda tensors: tensors[0] + ties_tensor(_tasks(tensors), weights, density))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum w_i T_i."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def slerp_tensor(first: Tensor, second: Tensor, share: float) -> Tensor:
    """sin((1 - t) a) / sin a * A + sin(t a) / sin a * B, a the angle between A and B; straight where they are parallel.

    The angle is that of the whole tensors read as vectors, in float64.
    """
    one, other = first.double().flatten(), second.double().flatten()
    cosine = (one @ other) / (one.norm() * other.norm()).clamp(min=1e-30)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(torch.sin(angle)) < 1e-6:
        return torch.lerp(first, second, share)
    shares = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return ((shares[0] * one + shares[1] * other) / torch.sin(angle)).view_as(first).to(first.dtype)


def ties_tensor(tasks: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """What tasks, trimmed to their largest entries, add together where their sign is the one with the larger sum."""
    if not 0 < density <= 1:
        raise BadInputError(f"density must lie above 0 and at most at 1, not {density}")
    stacked = torch.stack([trimmed(task, density) for task in tasks])
    agree = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    return weighted_sum(list(stacked * agree), weights) / agree.sum(0).clamp(min=1)


def trimmed(task: Tensor, density: float) -> Tensor:
    """The largest entries by magnitude, as many as `density` says; the others zero."""
    count = int(density * task.numel())
    kept = torch.zeros(task.numel(), dtype=task.dtype, device=task.device)
    if count:
        places = task.abs().flatten().topk(count).indices
        kept[places] = task.flatten()[places]
    return kept.view_as(task)


def _tasks(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor - tensors[0] for tensor in tensors[1:]]


def _check_weights(states: Sequence[State], weights: Sequence[float]) -> None:
    if not states or len(states) != len(weights):
        raise BadInputError(f"{len(states)} models and {len(weights)} weights; give each model one")


def _each(states: Sequence[State], merge: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """`merge` of each tensor of all states. Raises BadInputError where names, shapes or integers differ."""
    merged = {}
    for other in states[1:]:
        if other.keys() != states[0].keys():
            name = sorted(other.keys() ^ states[0].keys())[0]
            raise BadInputError(f"the models are not of one kind: {name} is not in all of them")
    for name, first in states[0].items():
        tensors = [state[name] for state in states]
        if any(tensor.shape != first.shape for tensor in tensors):
            raise BadInputError(f"the models are not of one shape: {name} is {[list(t.shape) for t in tensors]}")
        if first.is_floating_point():
            merged[name] = merge(tensors)
        elif all(torch.equal(tensor, first) for tensor in tensors):
            merged[name] = first.clone()
        else:
            raise BadInputError(f"{name} holds integers that differ between the models; they cannot be merged")
    return merged
