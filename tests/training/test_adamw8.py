"""AdamW with moments in 8 bits moves weights as AdamW and bitsandbytes do, however unlike their gradients are."""

from typing import Any

import pytest
import torch

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.training.adamw8 import AdamW8bit
from llm_journey.training.optim import Optimizer, OptimizerConfig

CHOICES: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}


def gradients(steps: int, shape: tuple[int, int] = (64, 256)) -> list[torch.Tensor]:
    """Half of each block has gradients a thousand times smaller than the other half."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.where(torch.arange(shape[1]) % 2 == 0, 1.0, 1e-3)
    return [torch.randn(shape, generator=generator) * scale for _ in range(steps)]


def trained(optimizer: Any, steps: int) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    stepping = optimizer([weight])
    for gradient in gradients(steps):
        weight.grad = gradient.clone()
        stepping.step()
    return weight.detach()


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_no_weight_runs_away(steps: int) -> None:
    """A mean of squares rounded to zero would be divided by: small gradients moved weights a hundred times too far."""
    ours = trained(lambda params: AdamW8bit(params, **CHOICES), steps)
    exact = trained(lambda params: torch.optim.AdamW(params, weight_decay=0.0, **CHOICES), steps)
    assert ours.abs().max() <= 1.5 * exact.abs().max()
    large = torch.arange(256) % 2 == 0
    assert (ours - exact)[:, large].abs().mean() < 0.1 * exact[:, large].abs().mean()


def test_it_moves_as_far_as_bitsandbytes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    try:
        theirs = trained(
            lambda params: bitsandbytes.optim.AdamW8bit(params, weight_decay=0.0, min_8bit_size=1, **CHOICES), 20
        )
    except (RuntimeError, NotImplementedError, KeyError) as error:
        pytest.skip(f"bitsandbytes does not step on this processor: {error}")
    ours = trained(lambda params: AdamW8bit(params, **CHOICES), 20)
    large = torch.arange(256) % 2 == 0
    assert (ours - theirs)[:, large].abs().mean() < 0.1 * theirs[:, large].abs().mean()
    assert ours.abs().max() <= 3 * theirs.abs().max()


def test_embeddings_keep_whole_moments() -> None:
    model = Decoder(TransformerConfig(vocab_size=300, width=64, num_layers=1, num_heads=2, tied_embeddings=False))
    optimizer = Optimizer(model, OptimizerConfig(name="adamw8bit"))
    model(torch.arange(9)[None]).square().mean().backward()
    optimizer.step()
    names = set(optimizer.state_tensors())
    assert "adamw/embed.weight/exp_avg" in names and "adamw/embed.weight/exp_avg_codes" not in names
    assert "adamw/blocks.0.mlp.up.weight/exp_avg_sq_codes" in names
