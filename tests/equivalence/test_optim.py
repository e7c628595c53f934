"""Our optimizers = PyTorch's: AdamW with the same groups, Muon step by step; orthogonalize = its polynomial.

Everything is float32. AdamW's fused and plain forms round in another order: 2e-6 of weights of about one after 30
steps. Newton-Schulz multiplies an early rounding by up to 3.4445^5 = 485 for the smallest singular values: 1e-4.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.training.optim import Muon, Optimizer, OptimizerConfig, clip_gradients, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024


def _with_singular_values(values: Tensor, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(matrix, U, V): a random matrix (rows, columns) = U diag(values) V^T."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    u = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64))[0]
    return (u * values) @ v.T, u, v


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    scale=st.sampled_from([1e-4, 1.0, 1e5]),
    seed=st.integers(0, 9999),
)
def test_orthogonalize_is_the_polynomial_of_the_singular_values(
    rows: int, columns: int, scale: float, seed: int
) -> None:
    """U S V^T goes to U p(S / |S|) V^T; five steps bring values from 1 down to 1/50 of the norm into [0.6, 1.3]."""
    size = min(rows, columns)
    values = 0.1 + 0.9 * torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix, u, v = _with_singular_values(scale * values, rows, columns, seed)
    found = orthogonalize(matrix.float()[None])[0].double()
    expected = values / values.norm()
    for _ in range(5):
        a, b, c = COEFFICIENTS
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(found, (u * expected) @ v.T, atol=1e-4, rtol=0.0)
    singular = torch.linalg.svdvals(found)
    assert float(singular.min()) >= 0.6 and float(singular.max()) <= 1.3


@pytest.mark.parametrize("shape", [(12, 12), (8, 40), (40, 8), (1, 9), (9, 1)])
def test_batched_is_one_by_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(5, *shape)
    together = orthogonalize(matrices)
    assert together.shape == matrices.shape
    for index in range(5):
        torch.testing.assert_close(together[index], orthogonalize(matrices[index : index + 1])[0], atol=1e-5, rtol=1e-5)
    assert not orthogonalize(torch.zeros(2, *shape)).any()


@pytest.mark.parametrize("shape", [(128, 128), (341, 128), (128, 341)])
def test_bfloat16_is_near_float32(shape: tuple[int, int]) -> None:
    """Eight bits through five steps: an entry moves by 0.006 at most here, 3% of a typical direction by its norm."""
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    wide, narrow = orthogonalize(matrices), orthogonalize(matrices, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow - wide).norm() / wide.norm()) < 0.03


def _train(optimizers: list[Any], parameters: list[Tensor], steps: int) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


def _matrices() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 24), (24, 8)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("in_float32", [True, False])
def test_muon_is_torch_muon(in_float32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's takes its Newton-Schulz steps in bfloat16. Made to take them in float32, twelve steps agree to 1e-5.

    As it is, an update of about 1 a matrix differs by bfloat16's 8 bits, grown by the iteration: up to 0.05 in a
    direction, so weights moved by 12 steps of 0.02 may differ by 12 * 0.02 * 0.1 at most.
    """
    ours, theirs = _matrices(), _matrices()
    arguments: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    if in_float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    _train([Muon(ours, **arguments)], ours, 12)
    _train([torch.optim.Muon(theirs, **arguments)], theirs, 12)
    tolerance = 1e-5 if in_float32 else 12 * 0.02 * 0.1
    for one, other, start in zip(ours, theirs, _matrices(), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0.0)
        assert float((one - start).detach().abs().max()) > 3 * tolerance


def test_muon_is_its_formula_one_matrix_at_a_time() -> None:
    """A readable reference: no batches, no in-place arithmetic, the update as the docstring has it."""
    ours, reference = _matrices(), [matrix.detach() for matrix in _matrices()]
    momenta = [torch.zeros_like(matrix) for matrix in reference]
    rate, decay, momentum = 0.05, 0.2, 0.95
    optimizer = Muon(ours, rate, momentum, decay, newton_schulz_steps=3)
    generator = torch.Generator().manual_seed(7)
    for _ in range(6):
        for index, matrix in enumerate(reference):
            gradient = torch.randn(matrix.shape, generator=generator)
            ours[index].grad = gradient.clone()
            momenta[index] = momentum * momenta[index] + (1 - momentum) * gradient
            direction = (1 - momentum) * gradient + momentum * momenta[index]
            x = direction / direction.norm()
            for _ in range(3):
                a, b, c = COEFFICIENTS
                x = a * x + (b * x @ x.T + c * x @ x.T @ x @ x.T) @ x
            scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            reference[index] = (1 - rate * decay) * matrix - rate * scale * x
        optimizer.step()
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one.detach(), other, atol=1e-5, rtol=1e-5)


def test_parameters_without_a_gradient_stay() -> None:
    matrices = _matrices()
    for matrix in matrices[1:]:
        matrix.grad = torch.ones_like(matrix)
    Muon(matrices, 0.1, weight_decay=0.5).step()
    before = _matrices()
    assert torch.equal(matrices[0], before[0]) and not torch.equal(matrices[1], before[1])


def _decoder(**choices: Any) -> Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 19, "width": 8, "num_layers": 2, "num_heads": 2, "context": 8}
    return Decoder(TransformerConfig(**shape, **choices))


@pytest.mark.parametrize("tied", [True, False])
def test_adamw_is_torch_adamw_with_the_same_groups(tied: bool) -> None:
    """Matrices decay, norms and biases do not, embeddings and an untied head have a rate of their own."""
    choices = {"tied_embeddings": tied, "bias": True, "norm": "layernorm", "positions": "learned"}
    ours, theirs = _decoder(**choices), _decoder(**choices)
    config = OptimizerConfig(
        name="adamw",
        learning_rate=0.01,
        embedding_learning_rate=0.03,
        weight_decay=0.1,
        betas=(0.8, 0.99),
        epsilon=1e-6,
    )
    optimizer = Optimizer(ours, config)
    named = dict(theirs.named_parameters())
    looked_up = [name for name in named if "embed" in name or name == "head.weight"]
    matrices = [name for name in named if named[name].ndim == 2 and name not in looked_up]
    vectors = [name for name in named if named[name].ndim == 1]
    assert len(looked_up) == (2 if tied else 3) and len(looked_up) + len(matrices) + len(vectors) == len(named)
    reference = torch.optim.AdamW(
        [
            {"params": [named[name] for name in looked_up], "lr": 0.03},
            {"params": [named[name] for name in matrices]},
            {"params": [named[name] for name in vectors], "weight_decay": 0.0},
        ],
        lr=0.01,
        weight_decay=0.1,
        betas=(0.8, 0.99),
        eps=1e-6,
        foreach=False,
        fused=False,
    )
    for scale in (1.0, 0.3):
        optimizer.set_scale(scale)
        for group, peak in zip(reference.param_groups, (0.03, 0.01, 0.01), strict=True):
            group["lr"] = peak * scale
        for model, optimizers in ((ours, [optimizer]), (theirs, [reference])):
            _train(optimizers, list(model.parameters()), 15)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, named[name], atol=2e-6, rtol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = _decoder(tied_embeddings=False, qk_norm=True)
    optimizer = Optimizer(model, OptimizerConfig(name="muon", weight_decay=0.1))
    _train([optimizer], list(model.parameters()), 1)
    by_muon = {name.split("/")[1] for name in optimizer.state_tensors() if name.startswith("muon/")}
    by_adamw = {name.split("/")[1] for name in optimizer.state_tensors() if name.startswith("adamw/")}
    matrices = {name for name, value in model.named_parameters() if name.startswith("blocks.") and value.ndim == 2}
    assert by_muon == matrices and len(matrices) == 14
    assert by_adamw == {name for name, _ in model.named_parameters()} - matrices


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_out_and_in_bit_for_bit(name: str) -> None:
    config = validate(OptimizerConfig, {"name": name, "weight_decay": 0.1}, "test")
    whole, first, second = _decoder(), _decoder(), _decoder()
    optimizers = [Optimizer(model, config) for model in (whole, first, second)]
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]

    def steps(model: Decoder, optimizer: Optimizer, generator: torch.Generator, count: int) -> None:
        for _ in range(count):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            optimizer.zero_grad()

    steps(whole, optimizers[0], generators[0], 7)
    steps(first, optimizers[1], generators[1], 3)
    second.load_state_dict(first.state_dict())
    optimizers[2].load_state_tensors(optimizers[1].state_tensors())
    steps(first, optimizers[1], torch.Generator().manual_seed(99), 2)  # what was handed over must not follow these
    steps(second, optimizers[2], generators[1], 4)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(parameter.grad is None for parameter in second.parameters())


@pytest.mark.parametrize("name", ["adamw/blocks.7.mlp.up.weight/exp_avg", "sgd/embed.weight/momentum_buffer", "junk"])
def test_state_of_another_model_is_refused_by_name(name: str) -> None:
    optimizer = Optimizer(_decoder(), OptimizerConfig())
    with pytest.raises(BadInputError, match=f"'{name}' fits no parameter"):
        optimizer.load_state_tensors({name: torch.zeros(3)})


@pytest.mark.parametrize("limit", [0.0, 0.5, 100.0])
def test_clipping_scales_the_joint_norm(limit: float) -> None:
    model = _decoder()
    _train([], list(model.parameters()), 1)
    before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    norm = float(torch.cat([gradient.flatten() for gradient in before]).norm())
    assert clip_gradients(model.parameters(), limit) == pytest.approx(norm, rel=1e-6)
    factor = 1.0 if limit == 0.0 or norm <= limit else limit / norm
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * factor, rtol=1e-5, atol=0.0)
