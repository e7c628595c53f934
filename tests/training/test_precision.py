"""Mixed precision: the scaler does what PyTorch's does, narrow steps are near wide ones, missing devices are named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import make_trainer, write_documents

from llm_journey.core.errors import BadInputError
from llm_journey.training.precision import Precision, pick_device, pick_precision

CPU = torch.device("cpu")


class Both:
    """The same parameter and gradients through our Precision and through torch.amp.GradScaler's own step and update."""

    def __init__(self) -> None:
        self.ours = Precision("fp16", CPU)
        self.theirs = torch.amp.GradScaler("cpu", init_scale=2.0**14)
        self.parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        self.optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters]

    def step(self, values: list[float]) -> None:
        gradient = torch.tensor(values)
        ours, theirs = self.parameters
        self.ours.backward((ours * gradient).sum())
        self.ours.unscale([ours])
        assert ours.grad is not None
        finite = bool(ours.grad.isfinite().all())
        if finite:
            self.optimizers[0].step()
        self.ours.update(finite)
        self.theirs.scale((theirs * gradient).sum()).backward()  # type: ignore[no-untyped-call]
        self.theirs.step(self.optimizers[1])
        self.theirs.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def check(self) -> None:
        assert torch.equal(*self.parameters)
        assert self.ours.state() == self.theirs.state_dict()


gradients = st.sampled_from([[1.0, 2.0, -0.5], [1e-3, 0.0, 7.0], [float("inf"), 1.0, 1.0], [float("nan"), 0.0, 0.0]])


@settings(max_examples=30, deadline=None)
@given(history=st.lists(gradients, max_size=20))
def test_the_scaler_is_torch_s(history: list[list[float]]) -> None:
    both = Both()
    for values in history:
        both.step(values)
        both.check()


def test_the_scale_grows_after_2000_good_steps_and_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth as PyTorch has it, with a resume on either side in between."""
    both = Both()
    both.step([1.0, 1.0, 1.0])
    nearly = {**both.ours.state(), "_growth_tracker": 1998}
    both.ours.restore(nearly)
    both.theirs.load_state_dict(nearly)
    for _ in range(3):
        both.step([1.0, 1.0, 1.0])
        both.check()
    assert both.ours.state()["scale"] == 2.0**15 and both.ours.state()["_growth_tracker"] == 1
    fresh = Precision("fp16", CPU)
    fresh.restore(both.ours.state())
    assert fresh.state() == both.ours.state()


def test_unscaled_gradients_are_the_true_ones() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    precision = Precision("fp16", CPU)
    precision.backward((parameter**2).sum())
    assert parameter.grad is not None and torch.equal(parameter.grad, torch.tensor([2.0, 4.0]) * 2.0**14)
    precision.unscale([parameter, torch.nn.Parameter(torch.zeros(1))])
    assert torch.equal(parameter.grad, torch.tensor([2.0, 4.0]))


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_without_a_scaler_nothing_is_scaled_or_kept(name: str) -> None:
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    precision = Precision(name, CPU)
    precision.backward(parameter.sum())
    precision.unscale([parameter])
    precision.update(finite=False)
    assert parameter.grad is not None and parameter.grad.item() == 1.0 and precision.state() == {}


STYLES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 1, "qk_norm": True},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
    "vaswani": {"norm": "layernorm", "norm_placement": "post", "positions": "sinusoidal"},
    "post rms": {"norm_placement": "post", "tied_embeddings": False},
}


@pytest.mark.parametrize("order", ["documents", "packed"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_steps_are_near_wide_ones(precision: str, style: str, order: str, tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits and float16 11: four losses of about 3 nats agree to 2%; weights stay in float32."""
    shards = write_documents(tmp_path, [9, 4, 17, 6, 12])
    losses = {}
    for name in ("fp32", precision):
        trainer = make_trainer(shards, model=STYLES[style], order=order, precision=name)
        losses[name] = [trainer.step().loss for _ in range(4)]
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses[precision] != losses["fp32"], "the narrow type was not used"
    assert trainer.state()["precision"].get("_growth_tracker") == (4 if precision == "fp16" else None)


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(tmp_path: Path) -> None:
    """A loss scale far too large: some steps are left out, each halving it, then training goes on."""
    trainer = make_trainer(write_documents(tmp_path, [9, 4, 17, 6, 12]), precision="fp16", steps=100)
    trainer.precision.restore({**trainer.precision.state(), "scale": 2.0**120})
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    result = trainer.step()
    assert not result.finite and trainer.precision.state()["scale"] == 2.0**119
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.position.step == 1 and trainer.position.bad_steps == 1
    trainer.precision.restore({**trainer.precision.state(), "scale": 2.0**10})
    assert trainer.step().finite and trainer.position.bad_steps == 0
    assert not all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def test_devices_and_precisions_that_are_not_here() -> None:
    assert pick_device("cpu") == CPU
    assert pick_precision("bf16", CPU) == "bf16" and pick_precision("fp32", CPU) == "fp32"
    for name in ("cuda:99", "mars", ""):
        with pytest.raises(BadInputError, match=r"cannot be used here .*try training.device=auto") as raised:
            pick_device(name)
        assert "\n" not in str(raised.value)
    with pytest.raises(BadInputError, match="unknown precision 'int8'; known: auto, bf16, fp16, fp32"):
        pick_precision("int8", CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx2": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16")],
)
def test_auto_is_bf16_where_the_processor_has_it(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_precision("auto", CPU) == expected
