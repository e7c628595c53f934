"""Mixed precision: the forward pass in a narrower type, weights and updates in float32 (Micikevicius et al. 2018).

fp32  nothing changes.
bf16  autocast; float32's range, so no scaling is needed.
fp16  autocast, and the loss is scaled so that small gradients do not vanish; a step whose gradients overflow is left
      out and the scale halved (section 3.2).
On a CPU without bf16 arithmetic bf16 works but is many times slower: "auto" picks it only where the processor has it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.model.native import is_native

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(f"device {name!r} cannot be used here ({reason}); try training.device=auto") from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """`name`, with "auto" resolved: bf16 where the device computes in it, else fp32."""
    if name == "auto":
        return "bf16" if is_native(torch.bfloat16, device) else "fp32"
    if name not in _DTYPES:
        raise unknown_name("precision", name, ("auto", *_DTYPES))
    return name


class Precision:
    """One run's precision: a context for the forward pass, and the scaled backward pass."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self._scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14) if name == "fp16" else None

    @property
    def native(self) -> bool:
        """Whether the device computes in it, and not by way of float32."""
        return is_native(_DTYPES[self.name], self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.name])

    @property
    def newton_schulz_dtype(self) -> torch.dtype:
        """What Muon's iteration runs in: bf16 where the forward pass does, float32 otherwise (fp16 lacks the range)."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, scaled in fp16."""
        scaled: Tensor = self._scaler.scale(loss) if self._scaler else loss
        torch.autograd.backward(scaled)

    def unscale(self, parameters: list[torch.nn.Parameter]) -> None:
        """Bring accumulated gradients back to their true size."""
        if self._scaler:
            inverse = 1.0 / self._scaler.get_scale()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(inverse)

    def update(self, finite: bool) -> None:
        """Adapt the scale after a step: halved after an overflow, doubled after 2,000 good steps."""
        if self._scaler:
            state = self._scaler.state_dict()
            scale, good = self._scaler.get_scale(), state["_growth_tracker"] + 1
            if not finite:
                scale, good = scale * state["backoff_factor"], 0
            elif good >= state["growth_interval"]:
                scale, good = scale * state["growth_factor"], 0
            self._scaler.load_state_dict({**state, "scale": scale, "_growth_tracker": good})

    def state(self) -> dict[str, Any]:
        """The scaler's state as JSON values; empty without one."""
        return self._scaler.state_dict() if self._scaler else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        if self._scaler and state:
            self._scaler.load_state_dict(state)
