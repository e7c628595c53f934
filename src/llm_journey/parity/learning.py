"""What training is made of: losses, gradients, optimizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_journey.model.loss import linear_cross_entropy, next_token_loss
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import LLAMA, opened_by_transformers, plant, random_decoder, random_ids
from llm_journey.training.optim import Muon, Optimizer, OptimizerConfig


def _loss(planted: bool) -> float:
    """The chunked loss and its gradients against F.cross_entropy of whole logits, smoothed, some targets ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 50, 12, generator=generator).requires_grad_()
    weight = torch.randn(40, 12, generator=generator).requires_grad_()
    targets = torch.randint(40, (1, 50), generator=generator)
    targets[0, ::7] = -100
    expected = nn.functional.cross_entropy((hidden @ weight.T)[0], targets[0], label_smoothing=0.1)
    found = linear_cross_entropy(hidden, weight, targets, 0.11 if planted else 0.1, chunk=16)
    differences = [float((found - expected).detach().abs())]
    for one, other in zip(_gradients(found, hidden, weight), _gradients(expected, hidden, weight), strict=True):
        differences.append(float((one - other).abs().max()))
    return max(differences)


def _gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def _model_gradients(planted: bool) -> float:
    """Every gradient of a llama-type model on the next-token loss, relative to the largest of its tensor."""
    model = random_decoder(**LLAMA)
    ids_bt = random_ids(2, 33, model.config.vocab_size)
    with opened_by_transformers(model) as theirs:
        expected_loss = nn.functional.cross_entropy(
            theirs(ids_bt[:, :-1]).logits.flatten(0, 1), ids_bt[:, 1:].flatten()
        )
        torch.autograd.backward(expected_loss)
        if planted:
            plant(model.blocks[1].mlp.up.weight)  # type: ignore[union-attr, arg-type]
        torch.autograd.backward(next_token_loss(model(ids_bt[:, :-1]), ids_bt[:, 1:]))
        from llm_journey.checkpoint.families import to_huggingface

        ours = to_huggingface(
            model.config, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
        worst = 0.0
        for name, parameter in theirs.named_parameters():
            scale = max(1.0, float(parameter.grad.abs().max()))
            worst = max(worst, float((ours[1][name] - parameter.grad).abs().max()) / scale)
    return worst


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
    return max(float((one - other).detach().abs().max()) for one, other in zip(ours, theirs, strict=True))


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
    found = {name: parameter.double() for name, parameter in model.named_parameters()}
    return max(float((found[name] - value).detach().abs().max()) for name, value in expected.items())


EQUALITIES = (
    Equality(
        component="chunked cross-entropy with its gradients",
        reference="torch",
        compared="loss and gradients, torch.nn.functional.cross_entropy",
        tolerance=2e-6,
        reason="a few roundings of a loss of 4 nats",
        difference=_loss,
    ),
    Equality(
        component="gradients of a decoder",
        reference="transformers",
        compared="every gradient of a llama-type model, next-token loss",
        tolerance=1e-4,
        reason="float32 sums taken in another order, relative to the largest gradient of a tensor",
        difference=_model_gradients,
    ),
    Equality(
        component="Muon",
        reference="torch",
        compared="weights after 12 steps, torch.optim.Muon",
        tolerance=1e-5,
        reason="float32 rounding through five Newton-Schulz steps",
        difference=_muon,
    ),
    Equality(
        component="AdamW with our decay groups",
        reference="torch",
        compared="weights after 5 steps, torch.optim.AdamW in float64, a group for each parameter",
        tolerance=1e-5,
        reason="float32 rounding of the weights",
        difference=_adamw,
    ),
)
