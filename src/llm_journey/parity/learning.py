"""What training is made of: losses, optimizers, schedules. Gradients of whole models are in families."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_journey.model.loss import linear_cross_entropy
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import LLAMA, random_decoder
from llm_journey.training.optim import Muon, Optimizer, OptimizerConfig, clip_gradients
from llm_journey.training.schedule import ScheduleConfig, learning_rate_factor


def _loss(planted: bool) -> float:
    """The chunked loss and its gradients against F.cross_entropy of whole logits, smoothed, some targets ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 50, 12, generator=generator).requires_grad_()
    weight = torch.randn(40, 12, generator=generator).requires_grad_()
    targets = torch.randint(40, (1, 50), generator=generator)
    targets[0, ::7] = -100
    expected = nn.functional.cross_entropy((hidden @ weight.T)[0], targets[0], label_smoothing=0.1)
    found = linear_cross_entropy(hidden, weight, targets, 0.11 if planted else 0.1, chunk=16)
    return largest(
        [found, *torch.autograd.grad(found, (hidden, weight))],
        [expected, *torch.autograd.grad(expected, (hidden, weight))],
    )


def _muon(planted: bool) -> float:
    """Twelve steps on five matrices; PyTorch's Newton-Schulz is made to run in float32, as ours does on a CPU."""
    arguments: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    ours, theirs = _matrices(), _matrices()
    with _newton_schulz_in_float32():
        optimizers = [Muon(ours, **arguments), torch.optim.Muon(theirs, **arguments)]
        if planted:
            optimizers[0].param_groups[0]["momentum"] = 0.89
        generator = torch.Generator().manual_seed(7)
        for _ in range(12):
            for one, other in zip(ours, theirs, strict=True):
                one.grad = torch.randn(one.shape, generator=generator)
                other.grad = one.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
    return largest(ours, theirs)


def _matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [
        nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 8), (8, 8), (24, 8), (8, 24), (24, 8))
    ]


@contextmanager
def _newton_schulz_in_float32() -> Iterator[None]:
    original = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = torch.Tensor.clone  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.bfloat16 = original  # type: ignore[method-assign]


def _adamw(planted: bool) -> float:
    """Our groups (only matrices decay) and rates against torch.optim.AdamW with one group a parameter, in float64."""
    model = random_decoder(**LLAMA)
    rate, decay, betas, epsilon = 0.01, 0.1, (0.9, 0.95), 1e-8
    ours_decay = 0.11 if planted else decay
    config = OptimizerConfig(name="adamw", learning_rate=rate, weight_decay=ours_decay, betas=betas, epsilon=epsilon)
    expected = {name: nn.Parameter(value.detach().double()) for name, value in model.named_parameters()}
    groups = [{"params": [value], "weight_decay": decay * (value.ndim >= 2)} for value in expected.values()]
    ours, theirs = Optimizer(model, config), torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            expected[name].grad = parameter.grad.double()
        ours.step()
        theirs.step()
    return largest(list(model.parameters()), list(expected.values()))


def _clipping(planted: bool) -> float:
    """The norm and the clipped gradients of matrices whose joint norm is far over the limit."""
    ours, theirs = _matrices(), _matrices()
    for one, other in zip(ours, theirs, strict=True):
        one.grad, other.grad = one.detach().clone(), one.detach().clone()
    norm = clip_gradients(ours, 0.51 if planted else 0.5)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    return largest([norm, *(one.grad for one in ours)], [expected, *(other.grad for other in theirs)])


def _cosine_schedule(planted: bool) -> float:
    """The factor at each of 200 steps with a tenth of warmup."""
    from transformers import get_cosine_schedule_with_warmup

    make: Any = get_cosine_schedule_with_warmup
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, expected = make(optimizer, num_warmup_steps=20, num_training_steps=200), []
    for _ in range(200):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    config = ScheduleConfig(name="cosine", warmup=0.11 if planted else 0.1)
    return largest([learning_rate_factor(config, step / 200) for step in range(200)], expected)


_vs_torch = partial(Equality, reference="torch", tolerance=1e-5)

EQUALITIES = (
    Equality(
        component="chunked cross-entropy with its gradients",
        reference="torch",
        compared="loss and gradients, torch.nn.functional.cross_entropy",
        tolerance=2e-6,
        reason="a few roundings of a loss of 4 nats",
        difference=_loss,
    ),
    _vs_torch(
        component="Muon",
        compared="weights after 12 steps, torch.optim.Muon",
        reason="float32 rounding through five Newton-Schulz steps",
        difference=_muon,
    ),
    _vs_torch(
        component="AdamW with our decay groups",
        compared="weights after 5 steps, torch.optim.AdamW in float64, a group for each parameter",
        reason="float32 rounding of the weights",
        difference=_adamw,
    ),
    _vs_torch(
        component="clipping of gradients",
        compared="norm and clipped gradients, torch.nn.utils.clip_grad_norm_",
        reason="float32 sums taken in another order; theirs adds 1e-6 to the norm",
        difference=_clipping,
    ),
    Equality(
        component="cosine schedule with warmup",
        reference="transformers",
        compared="factors of 200 steps, get_cosine_schedule_with_warmup",
        tolerance=1e-12,
        reason="rounding of float64",
        difference=_cosine_schedule,
    ),
)
