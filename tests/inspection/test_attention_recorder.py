"""The recorder shows the model's own weights, leaves the model as it was, and refuses a map that is not the model's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspected_decoders import random_decoder
from torch import Tensor

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.inspection import recorder
from llm_journey.inspection.recorder import attention_weights, watch
from llm_journey.model.attention import Attention, attention_mask, written_out_attention
from llm_journey.model.decoder import Decoder


class Counting:
    """A watcher that keeps which layers and heads it was told of, and can fail at one."""

    def __init__(self, fails_at: tuple[int, int] | None = None) -> None:
        self.told: list[tuple[int, int]] = []
        self.residuals: list[int] = []
        self.fails_at = fails_at

    def on_residual(self, layer: int, residual_td: Tensor) -> None:
        self.residuals.append(layer)

    def on_attention(self, layer: int, head: int, weights_ts: Tensor) -> None:
        self.told.append((layer, head))
        if (layer, head) == self.fails_at:
            raise RuntimeError("stop here")


def state_of(model: Decoder) -> list[object]:
    """Everything that a recorder touches: the kernels, the hooks, the mode."""
    kernels: list[object] = [module.attend for module in model.modules() if isinstance(module, Attention)]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    return [kernels, hooks, model.training]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails_at", [None, (0, 0), (2, 3)])
def test_the_model_is_as_it_was_afterwards(training: bool, fails_at: tuple[int, int] | None) -> None:
    model = random_decoder(dropout=0.2).train(training)
    before = state_of(model)
    ids_bt = torch.arange(9)[None]
    watcher = Counting(fails_at)
    if fails_at is None:
        watch(model, watcher, lambda: model(ids_bt))
        assert watcher.told == [(layer, head) for layer in range(3) for head in range(4)]
        assert watcher.residuals == [0, 1, 2, 3]
    else:
        with pytest.raises(RuntimeError, match="stop here"):
            watch(model, watcher, lambda: model(ids_bt))
    assert state_of(model) == before


def test_watching_changes_no_output() -> None:
    model = random_decoder()
    ids_bt = torch.arange(20)[None]
    with torch.inference_mode():
        expected = model(ids_bt)
    seen: list[Tensor] = []
    watch(model, Counting(), lambda: seen.append(model(ids_bt)))
    assert torch.equal(seen[0], expected)


def test_only_the_layers_asked_for() -> None:
    model, watcher = random_decoder(), Counting()
    checked = watch(model, watcher, lambda: model(torch.arange(5)[None]), layers=frozenset({1}))
    assert watcher.told == [(1, head) for head in range(4)] and checked.num_maps == 4
    assert watcher.residuals == [0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 12),
    earlier=st.integers(0, 5),
    window=st.none() | st.integers(1, 6),
    hidden=st.integers(0, 3),
    slice_scores=st.sampled_from([1, 7, 1 << 22]),
    seed=st.integers(0, 1000),
)
def test_weights_equal_the_written_out_formula(
    queries: int, earlier: int, window: int | None, hidden: int, slice_scores: int, seed: int
) -> None:
    """Values that are the identity make the written-out attention give its weights. In slices of any size."""
    keys = queries + earlier
    generator = torch.Generator().manual_seed(seed)
    q_te, k_se = torch.randn(queries, 6, generator=generator), torch.randn(keys, 6, generator=generator)
    padding_bs = torch.ones(1, keys, dtype=torch.bool)
    padding_bs[0, :hidden] = False
    masks = (None, attention_mask(queries, keys, q_te.device, sliding_window=window, padding_mask_bs=padding_bs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "_SLICE_SCORES", slice_scores)
        for mask in masks:
            expected = written_out_attention(q_te[None, None], k_se[None, None], torch.eye(keys)[None, None], mask)
            found = attention_weights(q_te, k_se, None if mask is None else mask[0, 0], causal=True)
            torch.testing.assert_close(found, expected[0, 0], atol=1e-6, rtol=0)


def test_without_a_mask_a_bidirectional_model_sees_everything() -> None:
    q_te = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = written_out_attention(
        q_te[None, None], q_te[None, None], torch.eye(5)[None, None], torch.ones(1, 1, 5, 5, dtype=torch.bool)
    )
    torch.testing.assert_close(attention_weights(q_te, q_te, None, causal=False), expected[0, 0])


def test_a_map_that_is_not_the_models_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted errors: no scale, another head's keys, no causal mask. Each is noticed where it is made."""
    model, ids_bt = random_decoder(), torch.arange(12)[None]
    pretended = random_decoder()
    pretended.blocks[0].attention.causal = False
    with pytest.raises(JourneyError, match=r"layer 0, head 0: the map differs by .* from what the model computed"):
        watch(pretended, Counting(), lambda: pretended(ids_bt))

    def unscaled(q_te: Tensor, k_se: Tensor, allowed_ts: Tensor | None, *, causal: bool) -> Tensor:
        return attention_weights(1.1 * q_te, k_se, allowed_ts, causal=causal)

    monkeypatch.setattr(recorder, "attention_weights", unscaled)
    with pytest.raises(JourneyError, match="this is a bug"):
        watch(model, Counting(), lambda: model(ids_bt))


def test_the_check_says_how_near_the_maps_are() -> None:
    checked = watch(random_decoder(), Counting(), lambda: None)
    assert (checked.num_maps, checked.largest_difference) == (0, 0.0)
    model = random_decoder()
    checked = watch(model, Counting(), lambda: model(torch.arange(30)[None]))
    assert checked.num_maps == 12 and 0 <= checked.largest_difference < 1e-5


def test_one_text_at_a_time_and_blocks_to_look_into() -> None:
    model = random_decoder()
    with pytest.raises(BadInputError, match="one text can be looked into at a time, not 2"):
        watch(model, Counting(), lambda: model(torch.zeros(2, 4, dtype=torch.long)))
    with pytest.raises(BadInputError, match="no transformer blocks"):
        watch(torch.nn.Linear(2, 2), Counting(), lambda: None)
