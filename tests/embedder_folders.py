"""Small embedders as folders in sentence-transformers' layout: a random BERT, a WordPiece of a few words."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = "the a river city king stone old small red near of in and was is built by over from great north".split()  # noqa: SIM905
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
POOLING = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def save_bert(folder: Path, seed: int = 0, context: int = 40, **sizes: Any) -> Path:
    """A random BertModel and its tokenizer, written by transformers."""
    import torch
    import transformers

    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
    config = transformers.BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=context, **(shape | sizes))
    model = transformers.BertModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder


def save_embedder(
    folder: Path, *, pooling: dict[str, Any] | None = None, modules: list[Any] | None = None, limit: int | None = 16
) -> Path:
    """`save_bert` with sentence-transformers' files, written by hand."""
    save_bert(folder)
    (folder / "1_Pooling").mkdir()
    for name, value in (
        ("modules.json", MODULES if modules is None else modules),
        ("1_Pooling/config.json", POOLING if pooling is None else pooling),
        ("sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def some_texts(count: int = 40, longest: int = 45, seed: int = 3) -> list[str]:
    """Texts of 0 to `longest` words, in no order; among them empty ones and two that are equal."""
    generator = random.Random(seed)
    texts = [
        " ".join(generator.choices([*WORDS, "Big", "jade", "?"], k=generator.randint(0, longest))) for _ in range(count)
    ]
    return ["", *texts, texts[0]]
