"""linear_cross_entropy = next_token_loss = F.cross_entropy: values, gradients, ignored targets, smoothing, chunks.

All losses are taken in float32 by design: a value differs by a few roundings (2e-6 of about 4 nats), a gradient by the
order in which a few dozen rows are added (1e-6 of the largest).
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_journey.model.loss import (
    IGNORED,
    distillation_loss,
    linear_cross_entropy,
    linear_distillation,
    next_token_loss,
)

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-6, 1e-6


def _inputs(tokens: int, vocabulary: int, ignored: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, tokens, 12, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, 12, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (1, tokens), generator=generator)
    targets[torch.rand(1, tokens, generator=generator) < ignored] = IGNORED
    return hidden, weight, targets


def _reference(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if not bool((targets != IGNORED).any()):
        return logits.sum() * 0.0  # PyTorch's own mean over nothing is NaN; ours is defined as 0
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=smoothing)


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    chunk=st.integers(1, 45),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    seed=st.integers(0, 10_000),
)
@example(tokens=32, vocabulary=50, chunk=16, ignored=0.0, smoothing=0.0, seed=0)
@example(tokens=33, vocabulary=50, chunk=16, ignored=0.3, smoothing=0.1, seed=0)
@example(tokens=5, vocabulary=9, chunk=2, ignored=1.0, smoothing=0.1, seed=0)
def test_three_forms_agree(
    tokens: int, vocabulary: int, chunk: int, ignored: float, smoothing: float, seed: int
) -> None:
    hidden, weight, targets = _inputs(tokens, vocabulary, ignored, seed)
    forms = {
        "ours in chunks": linear_cross_entropy(hidden, weight, targets, smoothing, chunk),
        "ours from logits": next_token_loss(hidden @ weight.T, targets, smoothing),
    }
    expected = _reference(hidden @ weight.T, targets, smoothing)
    expected_gradients = torch.autograd.grad(expected, (hidden, weight))
    for name, loss in forms.items():
        torch.testing.assert_close(
            loss, expected, rtol=LOSS_TOLERANCE, atol=LOSS_TOLERANCE, msg=lambda m, n=name: n + m
        )
        for found, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), expected_gradients, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=GRADIENT_TOLERANCE * scale)


def test_gradients_are_scaled_by_what_comes_after() -> None:
    """A loss scaler or a micro-batch's share multiplies the loss: the gradients must follow."""
    hidden, weight, targets = _inputs(20, 30, 0.2, 5)
    plain = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    scaled = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets) * 1024.0, (hidden, weight))
    for one, other in zip(plain, scaled, strict=True):
        assert torch.equal(one * 1024.0, other)


def test_ignored_targets_have_no_gradient_at_all() -> None:
    hidden, weight, targets = _inputs(24, 17, 0.5, 6)
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, 0.1, 7), hidden)
    ignored = targets == IGNORED
    assert bool(ignored.any()) and not gradient[ignored].any() and bool(gradient[~ignored].any(-1).all())


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = _inputs(10, 8, 0.0, 7)
    loss = linear_cross_entropy(hidden * 1e4, weight, targets)
    torch.testing.assert_close(loss, _reference((hidden * 1e4) @ weight.T, targets, 0.0), rtol=1e-5, atol=0.0)
    assert bool(torch.autograd.grad(loss, weight)[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden_dtype", ["float32", "narrow"])
def test_under_autocast(dtype: torch.dtype, hidden_dtype: str) -> None:
    """The product runs in the narrow type; the sums and the gradients of float32 weights stay in float32.

    bfloat16 keeps 8 bits: products of 12 terms of about one are off by 1e-2, the loss of 4 nats by less than 2%.
    """
    hidden, weight, targets = _inputs(20, 30, 0.2, 8)
    narrow = hidden.detach().to(dtype if hidden_dtype == "narrow" else torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = linear_cross_entropy(narrow, weight, targets)
    hidden_gradient, weight_gradient = torch.autograd.grad(loss, (narrow, weight))
    expected = _reference(hidden @ weight.T, targets, 0.0)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    assert loss.dtype == torch.float32 and weight_gradient.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0.0)
    torch.testing.assert_close(hidden_gradient.float(), wanted[0], rtol=0.1, atol=5e-3)
    torch.testing.assert_close(weight_gradient, wanted[1], rtol=0.1, atol=2e-2)


def test_a_weight_that_is_not_trained_has_no_gradient_and_ignored_positions_cost_nothing() -> None:
    torch.manual_seed(0)
    hidden_nd, weight_vd = torch.randn(40, 16, requires_grad=True), torch.randn(50, 16)
    targets_n = torch.randint(0, 50, (40,))
    targets_n[torch.rand(40) < 0.7] = IGNORED
    expected = next_token_loss(hidden_nd @ weight_vd.T, targets_n)
    (gradient,) = torch.autograd.grad(expected, hidden_nd)
    found = linear_cross_entropy(hidden_nd, weight_vd, targets_n, chunk=7)
    found.backward()
    assert torch.allclose(found, expected, atol=1e-6)
    assert hidden_nd.grad is not None and torch.allclose(hidden_nd.grad, gradient, atol=1e-6)
    nothing = linear_cross_entropy(hidden_nd, weight_vd, torch.full((40,), IGNORED))
    assert float(nothing) == 0


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 30),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 35),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    weight=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_distillation_in_chunks_is_the_formula_and_pytorchs(
    tokens: int, vocabulary: int, chunk: int, ignored: float, temperature: float, weight: float, seed: int
) -> None:
    hidden, matrix, targets = _inputs(tokens, vocabulary, ignored, seed)
    teacher_hidden, teacher_matrix, _ = (part.detach() for part in _inputs(tokens, vocabulary, 0.0, seed + 1))
    logits, teacher = hidden @ matrix.T, teacher_hidden @ teacher_matrix.T
    choices = {"temperature": temperature, "weight": weight}
    forms = {
        "chunks": linear_distillation(hidden, matrix, teacher_hidden, teacher_matrix, targets, chunk=chunk, **choices),
        "formula": distillation_loss(logits.flatten(0, 1), teacher.flatten(0, 1), targets.flatten(), **choices),
    }
    logits, counts = hidden @ matrix.T, targets != IGNORED
    divergence = torch.zeros(())
    if bool(counts.any()):
        divergence = F.kl_div(
            F.log_softmax(logits[counts] / temperature, -1),
            F.log_softmax(teacher[counts] / temperature, -1),
            log_target=True,
            reduction="batchmean",
        )
    expected = (1 - weight) * _reference(logits, targets, 0.0) + weight * temperature**2 * divergence
    expected_gradients = torch.autograd.grad(expected, (hidden, matrix), allow_unused=True, materialize_grads=True)
    for name, loss in forms.items():
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: n + m)
        for found, wanted in zip(torch.autograd.grad(loss, (hidden, matrix)), expected_gradients, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * scale)
