"""ONNX graphs in onnxruntime beside the models that they were written from."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from llm_journey.compression.onnx_bits import MATRICES
from llm_journey.compression.onnx_files import OnnxDecoder, open_session, quantize_dynamically, save_onnx
from llm_journey.compression.onnx_graph import Graph, decoder_graph, encoder_graph, float_linear
from llm_journey.generation.decode import generate
from llm_journey.generation.embed import embed_ids
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.parity.random_models import BERT, GPT2, LLAMA, QWEN3, random_decoder, random_ids, random_model
from llm_journey.quantization.formats import quantize_int4

DECODERS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "window": {"sliding_window": 5},
    "post-norm": {"norm_placement": "post", "norm": "layernorm", "positions": "sinusoidal", "mlp": "relu2"},
    "untied": {"tied_embeddings": False, "embedding_norm": True, "embedding_scale": True, "mlp": "silu"},
    "plain": {"positions": "none", "mlp": "relu", "bias": True},
}
# float32 sums taken in another order; logits are around 10.
CLOSE = {"rtol": 0, "atol": 2e-5}


def opened(decoder: Decoder, path: Path, type: str = "float32", **options: Any) -> OnnxDecoder:
    linear, head, embed = MATRICES[type]
    save_onnx(decoder_graph(decoder, linear=linear, head=head, embed=embed, **options), path / "model.onnx")
    return OnnxDecoder(path / "model.onnx", threads=1)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoders_graph_computes_what_it_does(name: str, tmp_path: Path) -> None:
    """Read whole, in pieces with keys and values, and in a batch of unequal lengths."""
    decoder = random_decoder(**DECODERS[name])
    ids_bt = random_ids(3, 20, 97)
    with torch.inference_mode():
        expected_btv = decoder(ids_bt).numpy()
    peer = opened(decoder, tmp_path)
    peer.reset(3)
    np.testing.assert_allclose(peer.read(ids_bt.numpy()), expected_btv, **CLOSE)
    peer.reset(3)
    pieces = [peer.read(ids_bt[:, start:stop].numpy()) for start, stop in ((0, 1), (1, 9), (9, 10), (10, 20))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected_btv, **CLOSE)
    if name == "window":
        assert np.abs(opened(random_decoder(), tmp_path).read(ids_bt[:1].numpy()) - expected_btv[:1]).max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "window"])
def test_padding_on_the_left_changes_nothing(name: str, tmp_path: Path) -> None:
    decoder = random_decoder(**DECODERS[name])
    ids_bt, lengths = random_ids(3, 12, 97), (12, 7, 1)
    peer = opened(decoder, tmp_path)
    peer.reset(3)
    mask_bs = np.array([[position >= 12 - length for position in range(12)] for length in lengths])
    logits_btv = peer.read(ids_bt.numpy(), mask_bs)
    again_btv = peer.read(ids_bt[:, :1].numpy(), np.pad(mask_bs, ((0, 0), (0, 1)), constant_values=True))
    for row, length in enumerate(lengths):
        alone_1t = torch.cat((ids_bt[row : row + 1, 12 - length :], ids_bt[row : row + 1, :1]), dim=1)
        with torch.inference_mode():
            expected_tv = decoder(alone_1t)[0].numpy()
        np.testing.assert_allclose(logits_btv[row, 12 - length :], expected_tv[:-1], **CLOSE)
        np.testing.assert_allclose(again_btv[row, 0], expected_tv[-1], **CLOSE)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "window"])
def test_a_graph_for_answering_gives_the_last_logits_and_the_new_keys_and_values(name: str, tmp_path: Path) -> None:
    decoder = random_decoder(**DECODERS[name])
    ids_bt, config = random_ids(3, 20, 97), decoder.config
    with torch.inference_mode():
        expected_btv = decoder(ids_bt).numpy()
    peer = opened(decoder, tmp_path, answering=True)
    shapes = {item.name: item.shape for item in peer.session.get_outputs()}
    assert shapes["new.0.key"] == ["batch", "length", config.num_kv_heads, config.head_width]
    peer.reset(3)
    for start, stop in ((0, 1), (1, 9), (9, 10), (10, 20)):
        found_b1v = peer.read(ids_bt[:, start:stop].numpy())
        np.testing.assert_allclose(found_b1v[:, 0], expected_btv[:, stop - 1], **CLOSE)


def test_greedy_text_is_the_models(tmp_path: Path) -> None:
    decoder = random_decoder(**LLAMA)
    expected = list(generate(decoder, [3, 1, 4], SamplingConfig(temperature=0, max_new_tokens=20)))
    assert len(set(expected)) > 1
    assert opened(decoder, tmp_path, answering=True).greedy([3, 1, 4], 20) == expected


@pytest.mark.parametrize("type", ["int8", "int4"])
def test_a_product_in_fewer_bits_is_its_formula(type: str, tmp_path: Path) -> None:
    """Activations that lie on the grid of int8 already are not rounded: what is left is the weights' own formula."""
    generator = torch.Generator().manual_seed(0)
    weight_mk = torch.randn(8, 64, generator=generator)
    x_tk = torch.randint(-127, 128, (2, 64), generator=generator).float()
    x_tk[:, ::32] = 127
    blocks_mgk = weight_mk.unflatten(1, (-1, 32))
    scale_mg1 = blocks_mgk.abs().amax(-1, keepdim=True) / 127
    int8_mk = ((blocks_mgk / scale_mg1).round() * scale_mg1).flatten(1)
    formula_mk = int8_mk if type == "int8" else quantize_int4(weight_mk, 32).dequantize()
    graph = Graph()
    x = graph.input("x", TensorProto.FLOAT, (1, 2, 64))
    graph.output(MATRICES[type][0](graph, x, "w", weight_mk), "y", (1, 2, 8))
    onnx.save(graph.model("product"), tmp_path / "model.onnx")
    (found,) = open_session(tmp_path / "model.onnx").run(None, {"x": x_tk[None].numpy()})
    np.testing.assert_allclose(found[0], (x_tk @ formula_mk.T).numpy(), rtol=1e-4, atol=1e-2)  # sums around 600
    assert np.abs((x_tk @ weight_mk.T).numpy() - found[0]).max() > 0.1


@pytest.mark.parametrize(("type", "most"), [("int8", 5e-3), ("int4", 5e-2)])
def test_a_decoder_in_fewer_bits_stays_near(type: str, most: float, tmp_path: Path) -> None:
    decoder = random_decoder(scale=0.1, width=64, mlp_width=96, num_kv_heads=2)
    ids_bt = random_ids(1, 20, 97)
    with torch.inference_mode():
        expected_tv = decoder(ids_bt)[0].log_softmax(-1)
    found_tv = torch.from_numpy(opened(decoder, tmp_path, type).read(ids_bt.numpy())[0]).log_softmax(-1)
    kl = float((expected_tv.exp() * (expected_tv - found_tv)).sum(-1).mean())
    assert 1e-7 < kl < most


def test_large_tensors_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_journey.compression.onnx_files._ONE_FILE", 1000)
    decoder = random_decoder(**LLAMA)
    peer = opened(decoder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())
    with torch.inference_mode():
        np.testing.assert_allclose(peer.read(np.array([[5, 6]])), decoder(torch.tensor([[5, 6]])).numpy(), **CLOSE)


def test_a_tied_matrix_lies_in_the_file_once() -> None:
    sizes = {
        name: sum(len(tensor.raw_data) for tensor in decoder_graph(random_decoder(**choices)).graph.initializer)
        for name, choices in {"tied": {}, "untied": {"tied_embeddings": False}}.items()
    }
    assert sizes["untied"] - sizes["tied"] == 97 * 32 * 4


def test_dynamic_int8_is_near(tmp_path: Path) -> None:
    decoder = random_decoder(width=64, mlp_width=96)
    ids_bt = random_ids(2, 12, 97)
    save_onnx(decoder_graph(decoder, head=float_linear), tmp_path / "float32.onnx")
    quantize_dynamically(tmp_path / "float32.onnx", tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "MatMulInteger" in kinds
    peer = OnnxDecoder(tmp_path / "model.onnx")
    peer.reset(2)
    with torch.inference_mode():
        expected = decoder(ids_bt).numpy()
    difference = np.abs(peer.read(ids_bt.numpy()) - expected)
    assert 0 < difference.mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_an_encoders_graph_computes_what_it_does(pooling: str, tmp_path: Path) -> None:
    """Logits, hidden states and pooled vectors of texts of unequal length in one batch."""
    encoder = random_model(**BERT)
    assert isinstance(encoder, Encoder)
    save_onnx(encoder_graph(encoder, pooling=pooling, normalize=pooling != "max"), tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", threads=1)
    ids_bt, lengths = random_ids(3, 10, 97).numpy(), (10, 4, 1)
    mask_bt = np.array([[position < length for position in range(10)] for length in lengths]).astype(np.int64)
    feeds = {"input_ids": ids_bt, "attention_mask": mask_bt, "token_type_ids": np.zeros_like(ids_bt)}
    hidden, logits, vectors = session.run(["last_hidden_state", "logits", "sentence_embedding"], feeds)
    rows = [ids_bt[row, :length].tolist() for row, length in enumerate(lengths)]
    with torch.inference_mode():
        for row, ids in enumerate(rows):
            expected = encoder.hidden(torch.tensor([ids]))
            np.testing.assert_allclose(hidden[row, : len(ids)], expected[0].numpy(), **CLOSE)
            np.testing.assert_allclose(logits[row, : len(ids)], encoder.logits(expected)[0].numpy(), **CLOSE)
    pooled = embed_ids(encoder, rows, pooling=pooling, normalize=pooling != "max")
    np.testing.assert_allclose(vectors, pooled, **CLOSE)
    feeds["token_type_ids"][0, 5:] = 1
    types = torch.tensor([[0] * 5 + [1] * 5])
    with torch.inference_mode():
        expected = encoder.hidden(torch.from_numpy(ids_bt[:1]), token_types_bt=types)[0].numpy()
    np.testing.assert_allclose(session.run(["last_hidden_state"], feeds)[0][0], expected, **CLOSE)
