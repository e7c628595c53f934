"""Optimizers: AdamW with decay groups, and Muon for the matrices inside the blocks.

AdamW (Loshchilov and Hutter 2019, algorithm 2) is PyTorch's fused form. Muon (Jordan et al. 2024) is ours: the momentum
of a weight matrix is replaced by the nearest matrix with all singular values near one, so that every direction of the
update has the same size. Embeddings, head, norms and biases stay with AdamW: they are no maps between hidden spaces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from llm_journey.core.config import STRICT
from llm_journey.core.errors import BadInputError
from llm_journey.training.adamw8 import AdamW8bit

# Jordan et al. 2024: coefficients of an odd quintic whose iterates bring singular values in (0, 1] near one. They do
# not converge to one exactly (they end in about [0.7, 1.2]); the steep slope at zero is what is wanted.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Choices of the optimizer. Learning rates are peaks; the schedule scales them. adamw8bit: moments in 8 bits.

    learning_rate: AdamW's, for what Muon does not take. embedding_learning_rate: for embeddings and an untied head
    (their gradients are sparse; they bear more). muon_learning_rate: per step, the size of each singular direction of
    an update relative to a matrix of unit-variance rows. weight_decay is decoupled, on matrices only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Literal["adamw", "adamw8bit", "muon"] = "muon"
    learning_rate: float = 3e-3
    embedding_learning_rate: float | None = None
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    clip: float = 1.0

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.muon_learning_rate, self.embedding_learning_rate)
        if min(rate for rate in rates if rate is not None) <= 0:
            raise ValueError("learning rates must be positive")
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1 and 0 <= self.momentum < 1):
            raise ValueError("betas and momentum must be in [0, 1)")
        if min(self.clip, self.weight_decay, self.epsilon) < 0:
            raise ValueError("clip, weight_decay and epsilon must not be negative (clip 0 clips nothing)")
        if not 1 <= self.newton_schulz_steps <= 20:
            raise ValueError(f"newton_schulz_steps must lie in 1 to 20, not {self.newton_schulz_steps}")


def orthogonalize(matrices_nij: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest orthogonal matrices to a batch (N, I, J), approximately, by Newton-Schulz iteration in `dtype`.

    X <- a X + b (X X^T) X + c (X X^T)^2 X, after scaling X to a spectral norm of at most one (Jordan et al. 2024; the
    iteration itself: Bernstein and Newhouse 2024). The shorter side is kept on the left, where the products are small.
    bfloat16 is enough, as in the original: its rounding lies far below the 30% by which singular values miss one.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices_nij.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for 2-D parameters; equal shapes go through Newton-Schulz as one batch.

    Update of a matrix (I, J): W <- (1 - lr * wd) W - lr * sqrt(max(1, I / J)) * orthogonalize(g + m * momentum).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        newton_schulz_steps: int = 5,
        newton_schulz_dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": newton_schulz_steps}
        self._dtype = newton_schulz_dtype
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - no closure here
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                self._update(parameters, max(1.0, shape[0] / shape[1]) ** 0.5, group)

    def _update(self, parameters: list[Tensor], scale: float, group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(buffer, group["momentum"]))  # Nesterov's look ahead
        updates = orthogonalize(torch.stack(directions), group["steps"], self._dtype)
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


class Optimizer:
    """The optimizers of one model behind one handle: step, scale the learning rates, state as named tensors."""

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, newton_schulz_dtype: torch.dtype = torch.float32
    ) -> None:
        self.config = config
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        groups = _parameter_groups(model, config)
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if not groups["adamw"] and not groups["muon"]:
            raise BadInputError("nothing is left to train: every weight is frozen")
        if groups["adamw"]:
            choices: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
            self._parts["adamw"] = (
                AdamW8bit(groups["adamw"], **choices)
                if config.name == "adamw8bit"
                else torch.optim.AdamW(groups["adamw"], **choices, fused=True)
            )
        if groups["muon"]:
            self._parts["muon"] = Muon(
                groups["muon"],
                config.muon_learning_rate,
                config.momentum,
                config.weight_decay,
                config.newton_schulz_steps,
                newton_schulz_dtype,
            )
        self._peaks = [(group, group["lr"]) for part in self._parts.values() for group in part.param_groups]

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its peak."""
        for group, peak in self._peaks:
            group["lr"] = peak * scale

    def step(self) -> None:
        """Update every parameter from its gradient."""
        for part in self._parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self._parts.values():
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything an update remembers, by `optimizer/parameter/quantity`."""
        return {
            f"{label}/{self._names[parameter]}/{key}": value
            for label, parameter, key, value in self._entries()
            if isinstance(value, Tensor)
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave. Raises BadInputError naming a tensor that fits no parameter."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for full_name, value in tensors.items():
            label, _, rest = full_name.partition("/")
            name, _, key = rest.rpartition("/")
            if label not in self._parts or name not in parameters:
                raise BadInputError(f"optimizer state {full_name!r} fits no parameter of this model and optimizer")
            parameter = parameters[name]
            self._parts[label].state[parameter][key] = value.to(parameter.device, copy=True)

    def _entries(self) -> Iterator[tuple[str, Tensor, str, Any]]:
        for label, part in self._parts.items():
            for parameter, state in part.state.items():
                for key, value in state.items():
                    yield label, parameter, key, value


def _parameter_groups(model: nn.Module, config: OptimizerConfig) -> dict[str, list[Any]]:
    """Where each parameter goes that is trained: block matrices to Muon, the rest to AdamW; only matrices decay."""
    embeddings, decayed, free, muon = [], [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("embed.weight") or name == "head.weight":
            embeddings.append(parameter)
        elif parameter.ndim < 2:
            free.append(parameter)
        elif config.name == "muon":
            muon.append(parameter)
        else:
            decayed.append(parameter)
    embedding_rate = config.embedding_learning_rate or config.learning_rate
    adamw = [
        {"params": embeddings, "weight_decay": 0.0 if config.name == "muon" else config.weight_decay},
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    adamw[0]["lr"] = embedding_rate
    if config.name == "adamw8bit":
        adamw[0]["whole"] = True
    return {"adamw": [group for group in adamw if group["params"]], "muon": muon}


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale all gradients so that their joint 2-norm is at most `limit` (0: no limit); returns the norm before.

    Pascanu et al. 2013, algorithm 1.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
    return float(norm)
