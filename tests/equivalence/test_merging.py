"""Merged models: TIES and task arithmetic are peft's; SLERP keeps to its arc; what does not fit is named."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llm_journey.core.errors import BadInputError
from llm_journey.finetuning.merging import (
    linear,
    slerp,
    slerp_tensor,
    task_arithmetic,
    ties,
    ties_tensor,
    trimmed,
    weighted_sum,
)

merge_utils = pytest.importorskip("peft.utils.merge_utils")
seeds, weights = st.integers(0, 1000), st.lists(st.floats(-2, 2), min_size=1, max_size=4)


def tensors(seed: int, count: int) -> list[Tensor]:
    return list(torch.randn(count, 6, 7, generator=torch.Generator().manual_seed(seed)))


@given(seeds, weights, st.sampled_from([0.1, 0.2, 0.5, 1.0]))
def test_tasks_are_merged_as_peft_does(seed: int, shares: list[float], density: float) -> None:
    tasks, given_weights = tensors(seed, len(shares)), torch.tensor(shares)
    expected = merge_utils.task_arithmetic([task.clone() for task in tasks], given_weights)
    assert torch.allclose(weighted_sum(tasks, shares), expected, atol=1e-5)
    assert torch.equal(trimmed(tasks[0], density), merge_utils.magnitude_based_pruning(tasks[0].clone(), density))
    expected = merge_utils.ties([task.clone() for task in tasks], given_weights, density)
    assert torch.allclose(ties_tensor(tasks, shares, density), expected, atol=1e-5)


@given(seeds, st.floats(0, 1))
def test_slerp_keeps_to_the_arc(seed: int, share: float) -> None:
    first, second = tensors(seed, 2)
    first, second = first / first.norm(), second / second.norm()
    found = slerp_tensor(first, second, share)
    assert math.isclose(float(found.norm()), 1, abs_tol=1e-5)
    whole = math.acos(float((first * second).sum()))
    assert math.isclose(math.acos(min(1.0, float((first * found).sum()))), share * whole, abs_tol=2e-3)
    assert torch.allclose(slerp_tensor(first, first * 2, share), torch.lerp(first, first * 2, share))


def test_states() -> None:
    one, other = ({"w": each, "n": torch.tensor([1, 2])} for each in tensors(1, 2))
    assert torch.allclose(slerp(one, other, 0.0)["w"], one["w"], atol=1e-6)
    assert torch.allclose(slerp(one, other, 1.0)["w"], other["w"], atol=1e-6)
    assert torch.allclose(linear([one, other], [0.5, 0.5])["w"], (one["w"] + other["w"]) / 2)
    assert torch.allclose(task_arithmetic(one, [other], [1.0])["w"], other["w"], atol=1e-6)
    assert torch.allclose(ties(one, [other], [1.0], density=1.0)["w"], other["w"], atol=1e-6)
    assert torch.equal(linear([one, other], [0.5, 0.5])["n"], one["n"])
    for call, message in (
        (lambda: linear([one, other], [1.0]), "2 models and 1 weights"),
        (lambda: linear([one, {"w": other["w"]}], [1, 1]), "n is not in all of them"),
        (lambda: linear([one, {**other, "w": other["w"][:2]}], [1, 1]), "not of one shape: w"),
        (lambda: linear([one, {**other, "n": torch.tensor([1, 3])}], [1, 1]), "integers that differ"),
        (lambda: slerp(one, other, 1.5), "share must lie"),
        (lambda: ties(one, [other], [1.0], density=0), "density must lie"),
    ):
        with pytest.raises(BadInputError, match=message):
            call()
