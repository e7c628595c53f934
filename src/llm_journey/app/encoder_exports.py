"""An encoder as ONNX: hidden states, logits where it has a head, one vector a text where its folder says how.

Legend: B batch, T positions, D width.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.certificates import TEXTS, Source, made, require
from llm_journey.app.runtime_exports import ONNX_BOUND, write_neighbours
from llm_journey.core.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_journey.checkpoint.embedding_files import EmbeddingRecipe
    from llm_journey.model.encoder import Encoder

    Outputs = dict[str, npt.NDArray[np.float32]]

# 1 - the cosine of a vector in int8 and float32's; all-MiniLM-L6-v2: 5e-4, by onnxruntime's dynamic int8 8e-3.
COSINE_BOUND = 1e-2


def write_onnx_encoder(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:
    """model.onnx of an encoder, config.json and the tokenizer's files. type: float32 (default), int8, int8-dynamic."""
    from llm_journey.checkpoint.embedding_files import MODULES, read_embedding_recipe
    from llm_journey.checkpoint.model_folder import load_encoder
    from llm_journey.compression.onnx_files import open_session, require_onnx

    type = type or "float32"
    if type not in ("float32", "int8", "int8-dynamic"):
        raise BadInputError(f"{source.name}: an encoder goes to ONNX as float32, int8 or int8-dynamic, not {type!r}")
    require_onnx()
    encoder, tokenizer = load_encoder(source.path)
    recipe = read_embedding_recipe(source.path) if (source.path / MODULES).is_file() else None
    path = folder / "model.onnx"
    source.observer.stage("writing the graph")
    _write_graph(encoder.eval(), recipe, path, type)
    write_neighbours(source, folder)
    source.observer.stage("comparing what onnxruntime makes of it with the model")
    rows = _random_rows(encoder) if tokenizer is None else tokenizer.encode_batch(TEXTS)
    rows = [row[: encoder.config.context] for row in rows]
    ours, theirs = _outputs(encoder, recipe, rows), _outputs_of_file(open_session(path), rows)
    difference = max(float(abs(ours[name] - theirs[name]).max()) for name in ours)
    vector = "last_hidden_state" if recipe is None else "sentence_embedding"
    distance = _largest_distance(ours[vector], theirs[vector])
    if type == "float32":
        bounds = {"largest_logit_difference": ONNX_BOUND}
        require(difference, ONNX_BOUND, "the largest difference")
    else:
        bounds = {"largest_cosine_distance": COSINE_BOUND}
        require(distance, COSINE_BOUND, f"the largest cosine distance of {type}", "; choose float32")
    return path.name, {
        "type": type,
        "compared": f"{', '.join(ours)} of {source.name} in float32 with this file's in onnxruntime, in a padded batch",
        "positions": sum(map(len, rows)),
        "largest_logit_difference": difference,
        "largest_cosine_distance": distance,
        **made(bounds),
    }


def _write_graph(encoder: "Encoder", recipe: "EmbeddingRecipe | None", path: Path, type: str) -> None:
    from llm_journey.compression.onnx_bits import MATRICES
    from llm_journey.compression.onnx_files import quantize_dynamically, save_onnx
    from llm_journey.compression.onnx_graph import encoder_graph

    graph = encoder_graph(
        encoder,
        linear=MATRICES["int8" if type == "int8" else "float32"][0],
        pooling=None if recipe is None else recipe.pooling,
        normalize=recipe is not None and recipe.normalize,
    )
    if type != "int8-dynamic":
        save_onnx(graph, path)
        return
    whole = path.with_name("float32.onnx")
    save_onnx(graph, whole)
    quantize_dynamically(whole, path)
    for file in path.parent.glob("float32.onnx*"):
        file.unlink()


def _random_rows(encoder: "Encoder") -> list[list[int]]:
    draw, longest = random.Random(0), min(encoder.config.context, 32)
    lengths = [draw.randint(1, longest) for _ in TEXTS]
    return [[draw.randrange(encoder.config.vocab_size) for _ in range(length)] for length in lengths]


def _outputs(encoder: "Encoder", recipe: "EmbeddingRecipe | None", rows: list[list[int]]) -> "Outputs":
    """What the model gives of each text alone, the rows of all under one another."""
    import numpy as np
    import torch

    from llm_journey.generation.embed import embed_ids

    found: dict[str, list[Any]] = {"last_hidden_state": []}
    with torch.inference_mode():
        for ids in rows:
            hidden_btd = encoder.hidden(torch.tensor([ids]))
            found["last_hidden_state"].append(hidden_btd[0].numpy())
            if encoder.head_dense is not None:
                found.setdefault("logits", []).append(encoder.logits(hidden_btd)[0].numpy())
    outputs = {name: np.concatenate(parts) for name, parts in found.items()}
    if recipe is not None:
        vectors = embed_ids(encoder, rows, pooling=recipe.pooling, normalize=recipe.normalize)
        outputs["sentence_embedding"] = vectors
    return outputs


def _outputs_of_file(session: Any, rows: list[list[int]]) -> "Outputs":
    """What the file gives of all texts in one batch, padding left out."""
    import numpy as np

    longest = max(map(len, rows))
    ids_bt = np.array([row + [0] * (longest - len(row)) for row in rows])
    mask_bt = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    feeds = {"input_ids": ids_bt, "attention_mask": mask_bt, "token_type_ids": np.zeros_like(ids_bt)}
    names = [item.name for item in session.get_outputs()]
    given = {item.name: feeds[item.name] for item in session.get_inputs()}
    found = dict(zip(names, session.run(names, given), strict=True))
    return {name: value if name == "sentence_embedding" else value[mask_bt == 1] for name, value in found.items()}


def _largest_distance(first_nd: Any, second_nd: Any) -> float:
    """1 - the smallest cosine of any row of the one with that of the other."""
    import numpy as np

    lengths_n = np.linalg.norm(first_nd, axis=-1) * np.linalg.norm(second_nd, axis=-1)
    return float(1 - ((first_nd * second_nd).sum(-1) / lengths_n).min())
