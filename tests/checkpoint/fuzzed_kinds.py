"""What is changed at random: model folders (weights and config), and the files with which text gets in and out."""

import random
from pathlib import Path

from fuzzing import Kind, changed_bytes, changed_values
from small_decoders import BERT, GPT2, MARIAN, MASKED, OWN_KINDS, QWEN3, small_decoder, small_model

from embedder_folders import MODULES, POOLING, VOCABULARY
from llm_journey.app.embedder import open_embedder
from llm_journey.app.language_model import open_model
from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.core.files import write_json
from llm_journey.quantization.layers import quantize_model
from llm_journey.quantization.scheme import Scheme
from llm_journey.tokenizer import TokenizerConfig
from llm_journey.tokenizer.train import train_tokenizer

TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n' }}{% endif -%}\n"
    "{% for message in messages %}{% set text = message['content'] | trim %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _model_folders(directory: Path) -> list[Path]:
    folders = []
    for number, choices in enumerate((QWEN3, GPT2, MASKED, MARIAN, *OWN_KINDS)):
        folders.append(directory / str(number))
        save_model(small_model(**choices), folders[-1])
    for scheme in (Scheme(), Scheme(bits=3, symmetric=True), Scheme(format="int8"), Scheme(format="nf4")):
        folders.append(directory / scheme.describe())
        quantized = small_decoder(width=32, num_heads=2, num_kv_heads=1, head_width=16, mlp_width=64)
        quantize_model(quantized, scheme)
        save_model(quantized, folders[-1])
    return folders


def _chat_folders(directory: Path) -> list[Path]:
    """A decoder with its tokenizer: the chat template in tokenizer_config.json, and in a file of its own."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=280), processes=1)
    tokenizer.chat_template = TEMPLATE
    model = small_decoder(vocab_size=tokenizer.vocab_size, context=64, **QWEN3)
    folders = [directory / "inside", directory / "beside"]
    for folder in folders:
        save_model(model, folder, tokenizer=tokenizer, generation={"temperature": 0.7, "top_k": 20, "top_p": 0.9})
    (folders[1] / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folders


def _chat(folder: Path) -> None:
    """Opened, it must also write and chat: a file that opens and breaks afterwards is no better."""
    model = open_model(str(folder))
    model.generate("the mat", max_new_tokens=2)
    model.chat("the cat?", max_new_tokens=2)


def embedder_folders(directory: Path) -> list[Path]:
    """sentence-transformers' layout, by hand: making it with that library would take longer than the test."""
    folder = directory / "embedder"
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(VOCABULARY))}
    save_model(small_model(**BERT | {"vocab_size": len(vocabulary)}), folder)
    rules = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    model = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    for name, value in {
        "modules.json": MODULES,
        "1_Pooling/config.json": POOLING,
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None},
        "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 1e30},
        "tokenizer.json": {
            "normalizer": {"type": "BertNormalizer", **rules},
            "model": {"type": "WordPiece", **model, "vocab": vocabulary},
        },
    }.items():
        write_json(folder / name, value)
    return [folder]


def _changed_template(data: bytes, generator: random.Random) -> bytes:
    """Bytes changed, or a part of the template doubled within it."""
    if generator.random() < 0.7:
        return changed_bytes(data, generator)
    begin, end = sorted(generator.randrange(len(data)) for _ in range(2))
    place = generator.randrange(len(data))
    return data[:place] + data[begin:end] + data[place:]


KINDS = {
    "models": Kind(
        make=_model_folders,
        places=[
            ("config.json", changed_values),
            ("config.json", changed_values),
            ("config.json", changed_bytes),
            ("model.safetensors", changed_bytes),
        ],
        open=load_model,
    ),
    "chats": Kind(
        make=_chat_folders,
        places=[
            *((name, changed_values) for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")),
            *((name, changed_bytes) for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")),
            ("tokenizer.json", changed_values),
            ("chat_template.jinja", _changed_template),
        ],
        open=_chat,
    ),
    "embedders": Kind(
        make=embedder_folders,
        places=[
            (name, change)
            for name in (
                "modules.json",
                "1_Pooling/config.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
                "tokenizer.json",
                "tokenizer_config.json",
            )
            for change in (changed_values, changed_bytes)
        ],
        open=lambda folder: open_embedder(str(folder)).embed(["the river [SEP] Ünï", ""]),
    ),
}
