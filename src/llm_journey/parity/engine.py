"""Answering and compression: graphs in their runtimes, the engine beside plain decoding, few bits by fast kernels."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_journey.compression import torch_graphs
from llm_journey.compression.onnx_bits import MATRICES
from llm_journey.compression.onnx_files import OnnxDecoder, open_session, save_onnx
from llm_journey.compression.onnx_graph import decoder_graph, encoder_graph
from llm_journey.generation.decode import generate
from llm_journey.generation.embed import embed_ids
from llm_journey.generation.engine import Engine, EngineConfig, Request
from llm_journey.generation.runner import Runner
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.parity.differences import largest, num_differing
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import BERT, GPT2, LLAMA, QWEN3, plant, random_decoder, random_ids, random_model
from llm_journey.quantization import nf4
from llm_journey.quantization.dynamic import dynamic_points
from llm_journey.quantization.formats import quantize_int4, quantize_int8
from llm_journey.quantization.products import make_product

_SUMS = "float32 sums taken in another order, of logits around 10"
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "sliding window": {"sliding_window": 5},
}
_OURS = "llm-journey"


def _plant_in(decoder: Decoder, planted: bool) -> None:
    if planted:
        plant(decoder.blocks[0].attention.q.weight)  # type: ignore[union-attr, arg-type]


def _onnx(planted: bool, *, architecture: str, pieces: tuple[int, ...], answering: bool = False) -> float:
    """Logits of 20 positions, read in pieces with the keys and values of those before."""
    decoder, ids_bt = random_decoder(**_ARCHITECTURES[architecture]), random_ids(2, 20, 97)
    with tempfile.TemporaryDirectory() as temporary:
        save_onnx(decoder_graph(decoder, answering=answering), Path(temporary) / "model.onnx")
        peer = OnnxDecoder(Path(temporary) / "model.onnx", threads=1)
    peer.reset(2)
    parts = torch.split(ids_bt, list(pieces), dim=1)
    theirs = torch.cat([torch.from_numpy(peer.read(part.numpy())) for part in parts], dim=1)
    _plant_in(decoder, planted)
    with torch.inference_mode():
        return largest(decoder(ids_bt), theirs)


def _onnx_encoder(planted: bool) -> float:
    """Pooled vectors of three texts in a padded batch, each alone with us."""
    encoder = random_model(**BERT)
    assert isinstance(encoder, Encoder)
    rows = [random_ids(1, length, 97, seed=length)[0].tolist() for length in (10, 4, 1)]
    with tempfile.TemporaryDirectory() as temporary:
        save_onnx(encoder_graph(encoder, pooling="mean", normalize=True), Path(temporary) / "model.onnx")
        session = open_session(Path(temporary) / "model.onnx", threads=1)
    ids_bt = torch.tensor([row + [0] * (10 - len(row)) for row in rows])
    mask_bt = torch.tensor([[1] * len(row) + [0] * (10 - len(row)) for row in rows])
    inputs = {"input_ids": ids_bt, "attention_mask": mask_bt, "token_type_ids": torch.zeros_like(ids_bt)}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    (theirs,) = session.run(["sentence_embedding"], feeds)
    if planted:
        plant(encoder.blocks[0].attention.q.weight)  # type: ignore[union-attr, arg-type]
    return largest(embed_ids(encoder, rows), theirs)


def _onnx_product(planted: bool, *, type: str) -> float:
    """A product in few bits beside its formula, relative to its largest. The activations are whole numbers to 127, so
    that rounding them to int8 changes nothing."""
    from onnx import TensorProto, save

    from llm_journey.compression.onnx_graph import Graph

    weight_mk, x_tk = _weight(8, 64), _whole_numbers(2, 64)
    formula_mk = quantize_int4(weight_mk, 32).dequantize() if type == "int4" else _by_groups(weight_mk)
    graph = Graph()
    x = graph.input("x", TensorProto.FLOAT, (1, 2, 64))
    graph.output(MATRICES[type][0](graph, x, "w", weight_mk), "y", (1, 2, 8))
    with tempfile.TemporaryDirectory() as temporary:
        save(graph.model("product"), Path(temporary) / "model.onnx")
        (found,) = open_session(Path(temporary) / "model.onnx", threads=1).run(None, {"x": x_tk[None].numpy()})
    if planted:
        formula_mk[0, 0] += 0.1
    expected_tm = x_tk @ formula_mk.T
    return largest(expected_tm, found[0]) / float(expected_tm.abs().max())


def _by_groups(weight_mk: Tensor) -> Tensor:
    """int8 with a scale for each 32 inputs, and back."""
    groups_mgk = torch.unflatten(weight_mk, 1, (-1, 32))
    scale_mg1 = groups_mgk.abs().amax(-1, keepdim=True) / 127
    return ((groups_mgk / scale_mg1).round() * scale_mg1).flatten(1)


def _torch_graph(planted: bool, *, script: bool) -> float:
    """Logits of 20 positions, at a batch and lengths that the file was not made with."""
    decoder, ids_bt = random_decoder(num_layers=2 if script else 1, **LLAMA), random_ids(3, 20, 97)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / ("model.ts" if script else "model.pt2")
        (torch_graphs.write_torchscript if script else torch_graphs.write_torch_export)(decoder, path)
        step = (torch_graphs.open_torchscript if script else torch_graphs.open_torch_export)(path)
    _plant_in(decoder, planted)
    with torch.inference_mode():
        first, past = step(ids_bt[:, :9], torch_graphs.DecoderStep(decoder).empty(3))
        return largest(decoder(ids_bt), torch.cat((first, step(ids_bt[:, 9:], past)[0]), dim=1))


def _batched(planted: bool, *, shared: bool) -> float:
    """How many of eight answers differ: all in one engine at once, each alone by plain decoding. shared: they begin
    alike, so that blocks of the cache are taken over."""
    decoder = random_decoder(**LLAMA)
    config = SamplingConfig(temperature=0, max_new_tokens=12)
    beginning = random_ids(1, 16, 97)[0].tolist() if shared else []
    prompts = [[*beginning, *random_ids(1, 3 + 2 * row, 97, seed=row)[0].tolist()] for row in range(8)]
    engine = Engine(Runner(decoder), EngineConfig(block_size=4, max_tokens=24))
    if shared:
        _finish(engine, engine.submit(prompts[0], config))
    requests = [engine.submit(prompt, config) for prompt in prompts]
    for request in requests:
        _finish(engine, request)
    if planted:  # one weight changes no greedy token: the whole matrix changes its sign
        with torch.no_grad():
            decoder.blocks[0].attention.o.weight.neg_()  # type: ignore[union-attr, operator]
    found = [[token.id for token in request.tokens] for request in requests]
    return num_differing(found, [list(generate(decoder, prompt, config)) for prompt in prompts])


def _finish(engine: Engine, request: Request) -> None:
    while request.finish_reason is None:
        engine.step()


def _kernel(planted: bool, *, bits: int, rows: int) -> float:
    """The fast product beside its formula, relative to its largest value."""
    weight_mk, x_nk = _weight(128, 64), _whole_numbers(rows, 64)
    weight = quantize_int8(weight_mk) if bits == 8 else quantize_int4(weight_mk, 32)
    formula_mk = weight.dequantize()
    if planted:
        formula_mk[0] *= 1.5
    expected_nm = x_nk @ formula_mk.T
    return largest(make_product(weight)(x_nk), expected_nm) / float(expected_nm.abs().max())


def _nf4_points(planted: bool) -> float:
    """Both code books."""
    import bitsandbytes.functional

    theirs: Any = bitsandbytes.functional
    points = nf4.code_points().clone()
    points[3] += 1e-6 * planted
    return largest([points, dynamic_points()], [theirs.get_4bit_type("nf4", device="cpu"), theirs.create_dynamic_map()])


def _nf4_codes(planted: bool) -> float:
    """How many of 24,576 codes differ."""
    import bitsandbytes.functional

    theirs: Any = bitsandbytes.functional
    weight_nk = _weight(192, 128)
    packed, _ = theirs.quantize_4bit(weight_nk, blocksize=64, compress_statistics=True, quant_type="nf4")
    if planted:
        weight_nk[0, 0] = -weight_nk[0, 0]
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), 1).flatten()
    return num_differing(nf4.quantize_nf4(weight_nk).codes_nk.flatten().tolist(), codes.tolist())


def _nf4_weights(planted: bool) -> float:
    """Weights out of the same codes, double quantization included; they are around 1."""
    import bitsandbytes.functional

    theirs: Any = bitsandbytes.functional
    weight_nk = _weight(192, 128)
    packed, state = theirs.quantize_4bit(weight_nk, blocksize=64, compress_statistics=True, quant_type="nf4")
    codes_nk = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), 1).view(weight_nk.shape)
    if planted:
        codes_nk[0, 0] ^= 1
    ours = nf4.Nf4Weight(codes_nk, state.absmax, state.state2.absmax, state.offset.view(1))
    return largest(ours.dequantize(), theirs.dequantize_4bit(packed, state))


def _weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def _whole_numbers(rows: int, columns: int) -> Tensor:
    """Activations that bf16 and int8 both hold exactly."""
    x_nk = torch.randint(-127, 128, (rows, columns), generator=torch.Generator().manual_seed(0)).float()
    x_nk[:, ::32] = 127
    return x_nk


EQUALITIES: tuple[Equality, ...] = (
    *(
        Equality(
            component=f"ONNX graph of a decoder, {architecture}{'' if len(pieces) == 1 else ', with keys and values'}",
            reference="onnxruntime",
            compared="logits, its run of our graph",
            tolerance=2e-5,
            reason=_SUMS,
            difference=partial(_onnx, architecture=architecture, pieces=pieces),
            also=("onnx",),
        )
        for architecture in _ARCHITECTURES
        for pieces in ((20,), (9, 1, 10))
    ),
    *(
        Equality(
            component=f"ONNX graph of an edge folder, {architecture}, token by token",
            reference="onnxruntime",
            compared="logits, its run of our graph",
            tolerance=2e-5,
            reason=_SUMS,
            difference=partial(_onnx, architecture=architecture, pieces=(1,) * 20, answering=True),
            also=("onnx",),
        )
        for architecture in ("llama", "sliding window")
    ),
    Equality(
        component="ONNX graph of an encoder, pooled",
        reference="onnxruntime",
        compared="vectors of length 1 of a padded batch, its run of our graph",
        tolerance=1e-6,
        reason="float32 sums taken in another order, of numbers below 1",
        difference=_onnx_encoder,
        also=("onnx",),
    ),
    *(
        Equality(
            component=f"ONNX product, {type} in groups of 32",
            reference="onnxruntime",
            compared="a product, relative to its largest; MatMulNBits and our formula",
            tolerance=1e-5,
            reason="float32 sums taken in another order",
            difference=partial(_onnx_product, type=type),
            also=("onnx",),
        )
        for type in ("int8", "int4")
    ),
    *(
        Equality(
            component=f"{name} file of a decoder",
            reference="torch",
            compared="logits, at a batch and lengths that the file was not made with",
            tolerance=2e-5,
            reason=_SUMS,
            difference=partial(_torch_graph, script=script),
        )
        for name, script in (("torch.export", False), ("TorchScript", True))
    ),
    *(
        Equality(
            component=f"engine, eight at once{', beginnings shared' if shared else ''}",
            reference=_OURS,
            compared="how many answers differ, plain decoding of each alone",
            tolerance=0.0,
            reason="token for token",
            difference=partial(_batched, shared=shared),
        )
        for shared in (False, True)
    ),
    *(
        Equality(
            component=f"int{bits} product, {rows} rows",
            reference="torch",
            compared="a product, relative to its largest; the packed kernel and the formula",
            tolerance=1e-2,
            reason="the kernel's scales and results are bf16, which holds 8 bits",
            difference=partial(_kernel, bits=bits, rows=rows),
        )
        for bits in (8, 4)
        for rows in (1, 100)
    ),
    Equality(
        component="NF4, code points",
        reference="bitsandbytes",
        compared="NF4's 16 and the dynamic tree's 256 numbers",
        tolerance=0.0,
        reason="number for number",
        difference=_nf4_points,
    ),
    Equality(
        component="NF4, codes",
        reference="bitsandbytes",
        compared="how many codes of a random matrix differ",
        tolerance=0.0,
        reason="code for code",
        difference=_nf4_codes,
    ),
    Equality(
        component="NF4, weights of codes",
        reference="bitsandbytes",
        compared="weights around 1, double quantization included",
        tolerance=1e-6,
        reason="two products taken in another order",
        difference=_nf4_weights,
    ),
)
