"""Tokenizer files: Hugging Face's `tokenizer.json` with `tokenizer_config.json`, and tiktoken's rank files.

Read and written here: byte-level BPE as GPT-2, Llama 3, Qwen and SmolLM have it, with one of the known split patterns.
Refused with a reason: SentencePiece-like vocabularies, unknown patterns, tokens that strip what stands behind them,
and files that contradict themselves.

Whether a begin token stands before a text, or an end token behind it, is what the post-processor of `tokenizer.json`
says (`Tokenizer.frame`). Without one nothing is added, in older folders of ours too, and `add_bos_token` of
`tokenizer_config.json` is not read: transformers 5 overlooks it where there is a `tokenizer.json`.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from llm_journey.core.errors import BadInputError
from llm_journey.core.files import write_bytes, write_json
from llm_journey.core.json_text import parse_json
from llm_journey.tokenizer.bpe import Pair
from llm_journey.tokenizer.byte_level import from_characters, to_characters
from llm_journey.tokenizer.pretokenize import PATTERNS
from llm_journey.tokenizer.tokenizer import Roles, Tokenizer

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_MASK = "[MASK]"  # as tools that fill masks ask for it
# The largest in use (262,144 tokens) has 33 MB.
MAX_FILE_BYTES = 40 << 20  # the largest published ones take 34 MB
# What a file may hold: published vocabularies reach 262,144 tokens and 515,000 merges, each a list of two.
_MAX_LISTS, _MAX_ITEMS = 700_000, 2_500_000


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which tokenizers and transformers open with equal ids."""
    write_json(directory / TOKENIZER_FILE, to_huggingface(tokenizer))
    roles = tokenizer.roles
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": roles.begin,
        "eos_token": roles.end,
        "pad_token": roles.padding,
        "mask_token": _MASK if _MASK in tokenizer.special_tokens else None,
        "chat_template": tokenizer.chat_template,
    }
    write_json(directory / CONFIG_FILE, {key: value for key, value in config.items() if value is not None})


def load(path: Path) -> Tokenizer:
    """The tokenizer in a folder that holds `tokenizer.json`, or in such a file.

    `tokenizer_config.json` and `chat_template.jinja` beside it are read where they are. Raises BadInputError that
    names the file and what is wrong with it.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    data = read_object(file)
    config_file = file.parent / CONFIG_FILE
    config = read_object(config_file) if config_file.is_file() else {}
    template_file = file.parent / TEMPLATE_FILE
    template = _read(template_file).decode("utf-8", "replace") if template_file.is_file() else None
    try:
        return from_huggingface(data, config, template)
    except BadInputError as error:
        raise BadInputError(f"{file}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BadInputError that names the file."""
    data = _read(path)
    if data.count(b"[") + data.count(b"{") > _MAX_LISTS or data.count(b",") > _MAX_ITEMS:
        raise BadInputError(f"{path}: holds more values than any vocabulary; this is no tokenizer file")
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise BadInputError(f"{path}: not valid JSON ({reason}); is the download whole?") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: holds no JSON object")
    return value


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; this is no tokenizer file")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None


def to_huggingface(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    names = {token: to_characters(data) for data, token in tokenizer.vocabulary.items()}
    vocabulary = {name: token for token, name in names.items()} | tokenizer.special_tokens
    added = [
        {
            "id": token,
            "content": name,
            "single_word": False,
            "lstrip": name in tokenizer.takes_space,
            "rstrip": False,
            "normalized": False,
            "special": name not in tokenizer.visible_tokens,
        }
        for name, token in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if tokenizer.compose else None,
        "pre_tokenizer": _pre_tokenizer(tokenizer.pattern),
        "post_processor": _post_processor(tokenizer),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.whole_words_first,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [[names[left], names[right]] for left, right in tokenizer.merges],
        },
    }


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """A template of what `Tokenizer.frame` adds, None where that is nothing."""
    roles = tokenizer.roles
    before, behind = roles.begin if tokenizer.adds_begin else None, roles.end if tokenizer.adds_end else None
    if before is None and behind is None:
        return None

    def framed(name: str, segment: int) -> list[dict[str, Any]]:
        parts = [("SpecialToken", before), ("Sequence", name), ("SpecialToken", behind)]
        return [{kind: {"id": item, "type_id": segment}} for kind, item in parts if item is not None]

    names = sorted({name for name in (before, behind) if name is not None})
    return {
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": framed("A", 0) + framed("B", 1),
        "special_tokens": {
            name: {"id": name, "ids": [tokenizer.special_tokens[name]], "tokens": [name]} for name in names
        },
    }


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if pattern == "gpt2":
        return byte_level
    if pattern == "gpt2_digits":
        return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    published = {"Regex": PATTERNS[pattern].published}
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": published, "behavior": "Isolated", "invert": False},
            {**byte_level, "use_regex": False},
        ],
    }


def from_huggingface(
    data: Mapping[str, Any], config: Mapping[str, Any] | None = None, chat_template: str | None = None
) -> Tokenizer:
    """The tokenizer that `tokenizer.json` (`data`) and `tokenizer_config.json` (`config`) describe.

    Raises BadInputError for what is missing, contradictory or of a kind that is not supported.
    """
    model = _member(data, "model", dict)
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise BadInputError("not a byte-level BPE vocabulary; only that kind is supported")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise BadInputError("uses dropout or word affixes, which byte-level BPE here does without")
    special_tokens, visible_tokens, takes_space = _added_tokens(data.get("added_tokens") or [])
    vocabulary = _vocabulary(_member(model, "vocab", dict), special_tokens)
    roles, adds_begin, adds_end = _frame(
        data.get("post_processor"), _roles(config or {}, special_tokens), special_tokens
    )
    return Tokenizer(
        vocabulary,
        _merges(_member(model, "merges", list), vocabulary),
        special_tokens=special_tokens,
        pattern=_pattern(data.get("pre_tokenizer")),
        roles=roles,
        chat_template=chat_template if chat_template is not None else _template(config or {}),
        whole_words_first=bool(model.get("ignore_merges")),
        compose=_composes(data.get("normalizer")),
        visible_tokens=visible_tokens,
        adds_begin=adds_begin,
        adds_end=adds_end,
        takes_space=takes_space,
    )


def _member(data: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in data:
        raise BadInputError(f"key '{key}' is missing; this is no tokenizer.json of a BPE tokenizer")
    if not isinstance(data[key], kind):
        raise BadInputError(f"key '{key}' should hold a JSON {'object' if kind is dict else 'array'}")
    return data[key]


def _added_tokens(entries: Any) -> tuple[dict[str, int], list[str], list[str]]:
    """(name -> id, those that are not special, those that take the white space before them)."""
    special_tokens: dict[str, int] = {}
    visible, takes_space = [], []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("content"), str):
            raise BadInputError("an entry of 'added_tokens' lacks its id or its content")
        name = entry["content"]
        if any(entry.get(key) for key in ("rstrip", "single_word")):
            raise BadInputError(f"added token {name!r} looks at what stands behind it, which is not supported")
        if entry.get("lstrip"):
            takes_space.append(name)
        if name in special_tokens:
            raise BadInputError(f"added token {name!r} stands twice")
        special_tokens[name] = entry["id"]
        if not entry.get("special"):
            visible.append(name)
    return special_tokens, visible, takes_space


def _vocabulary(entries: Mapping[str, Any], special_tokens: Mapping[str, int]) -> dict[bytes, int]:
    vocabulary: dict[bytes, int] = {}
    for name, token in entries.items():
        if type(token) is not int:
            raise BadInputError(f"token {name!r} has no whole number as its id")
        if name in special_tokens:
            if special_tokens[name] != token:
                raise BadInputError(f"token {name!r} has two ids, {token} and {special_tokens[name]}")
            continue
        try:
            vocabulary[from_characters(name)] = token
        except KeyError:
            raise BadInputError(f"token {name!r} is not spelled in the byte alphabet; not byte-level") from None
    return vocabulary


def _merges(entries: Sequence[Any], vocabulary: Mapping[bytes, int]) -> list[Pair]:
    """Merges as pairs of ids; a file writes each as "left right" (older) or as ["left", "right"]."""
    merges = []
    for number, entry in enumerate(entries):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise BadInputError(f"merge {number} is no pair of tokens: {str(entry)[:60]!r}")
        try:
            left, right = (vocabulary[from_characters(part)] for part in parts)
        except KeyError:
            raise BadInputError(f"merge {number} refers to a token that is not in the vocabulary: {parts}") from None
        merges.append((left, right))
    if len(set(merges)) != len(merges):
        raise BadInputError("a merge stands twice")
    return merges


def _pattern(value: Any) -> str:
    steps = value.get("pretokenizers", [value]) if isinstance(value, dict) else []
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    kinds = [step.get("type") for step in steps]
    byte_level = steps[-1] if kinds and kinds[-1] == "ByteLevel" else {}
    if byte_level.get("add_prefix_space"):
        raise BadInputError("puts a space before each text (add_prefix_space), which is not supported")
    uses_gpt2 = byte_level.get("use_regex", True)
    if kinds == ["ByteLevel"] and uses_gpt2:
        return "gpt2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and uses_gpt2:
        return "gpt2_digits"
    if kinds == ["Split", "ByteLevel"] and not uses_gpt2:
        split = steps[0]
        expression = split["pattern"].get("Regex") if isinstance(split.get("pattern"), dict) else None
        whole = str(split.get("behavior")).lower() == "isolated" and not split.get("invert")
        for name, pattern in PATTERNS.items():
            if whole and expression and expression == pattern.published:
                return name
    raise BadInputError(f"its pre_tokenizer is none of the known split patterns: {', '.join(PATTERNS)}")


def _composes(normalizer: Any) -> bool:
    if normalizer is None:
        return False
    if isinstance(normalizer, dict) and normalizer.get("type") == "NFC":
        return True
    raise BadInputError("its normalizer is neither null nor NFC, which are the supported ones")


def _roles(config: Mapping[str, Any], special_tokens: Mapping[str, int]) -> Roles | None:
    def role(key: str) -> str | None:
        value = config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if name is None:
            return None
        if not isinstance(name, str) or name not in special_tokens:
            raise BadInputError(f"{CONFIG_FILE} names {name!r} as {key}, which is no added token")
        return str(name)

    found = Roles(end=role("eos_token"), begin=role("bos_token"), padding=role("pad_token"))
    return found if found != Roles(end=None, begin=None, padding=None) else None


def _frame(
    post_processor: Any, roles: Roles | None, special_tokens: Mapping[str, int]
) -> tuple[Roles | None, bool, bool]:
    """The roles, with those that only the post-processor names, and whether it adds begin and end to a text."""
    before, behind = _around(post_processor, special_tokens)
    if before is None and behind is None:
        return roles, False, False
    known = roles or Roles(end=behind, begin=before, padding=None)
    found = Roles(end=known.end or behind, begin=known.begin or before, padding=known.padding)
    for name, role, key in ((before, found.begin, "bos_token"), (behind, found.end, "eos_token")):
        if name is not None and name != role:
            raise BadInputError(f"its post_processor adds {name!r}, but {CONFIG_FILE} names {role!r} as {key}")
    return found, before is not None, behind is not None


def _around(post_processor: Any, special_tokens: Mapping[str, int]) -> tuple[str | None, str | None]:
    """The tokens that a post-processor puts before and behind a text. ByteLevel, which adds none, may stand beside it.

    Raises BadInputError for one of another kind, or that adds more than one token on a side.
    """
    steps = [post_processor]
    if isinstance(post_processor, dict) and post_processor.get("type") == "Sequence":
        processors = post_processor.get("processors")
        steps = processors if isinstance(processors, list) else []
    kinds = [step.get("type") if isinstance(step, dict) else step for step in steps]
    templates = [step for step, kind in zip(steps, kinds, strict=True) if kind not in (None, "ByteLevel")]
    if not templates:
        return None, None
    pieces = templates[0].get("single") if isinstance(templates[0], dict) else None
    if not isinstance(pieces, list) or len(templates) > 1 or templates[0].get("type") != "TemplateProcessing":
        raise BadInputError("its post_processor is none of null, ByteLevel and one TemplateProcessing")
    names = [next(iter(piece)) if isinstance(piece, dict) and len(piece) == 1 else "" for piece in pieces]
    if names.count("Sequence") != 1 or set(names) - {"Sequence", "SpecialToken"}:
        raise BadInputError("its post_processor's 'single' is no text with tokens around it")
    place = names.index("Sequence")
    if place > 1 or len(names) - place > 2:
        raise BadInputError("its post_processor adds more than one token before or behind a text")
    added = [
        _token_of(piece["SpecialToken"], templates[0], special_tokens) for piece in pieces if "Sequence" not in piece
    ]
    return (added[0] if place else None), (added[-1] if len(names) - place == 2 else None)


def _token_of(piece: Any, template: Mapping[str, Any], special_tokens: Mapping[str, int]) -> str:
    """The name of a template's token, once the ids that it is to become are the one that we know it by."""
    name = piece.get("id") if isinstance(piece, dict) else None
    entries = template.get("special_tokens")
    entry = entries.get(name) if isinstance(entries, dict) and isinstance(name, str) else None
    ids = entry.get("ids") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in special_tokens or ids != [special_tokens[name]]:
        raise BadInputError(f"its post_processor adds {str(name)[:40]!r}, which is no added token of that id")
    return name


def _template(config: Mapping[str, Any]) -> str | None:
    value = config.get("chat_template")
    if isinstance(value, list):  # several, by name
        named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[-1].get("template") if named else None
    return value if isinstance(value, str) else None


def to_tiktoken_ranks(tokenizer: Tokenizer, path: Path) -> None:
    """Write tiktoken's rank file: a line for each token, its bytes in base64 and its id. Special tokens have none.

    Raises BadInputError where ids do not follow the order of the merges, which is all that such a file can say.
    """
    by_id = sorted(tokenizer.vocabulary.items(), key=lambda item: item[1])
    data = {token: item for item, token in by_id}
    order = [tokenizer.vocabulary[data[left] + data[right]] for left, right in tokenizer.merges]
    if order != [token for item, token in by_id if len(item) > 1]:
        raise BadInputError("ids do not follow the order of the merges; save as tokenizer.json instead")
    lines = [base64.b64encode(item) + b" " + str(token).encode() + b"\n" for item, token in by_id]
    write_bytes(path, b"".join(lines))


def from_tiktoken_ranks(
    path: Path, *, pattern: str, special_tokens: Mapping[str, int], chat_template: str | None = None
) -> Tokenizer:
    """The tokenizer of a rank file; its split pattern and special tokens are not in the file and must be given."""
    vocabulary: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            encoded, rank = line.split()
            data, token = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise BadInputError(f"{path}:{number}: not a base64 token and its rank") from None
        if data in vocabulary or not data:
            raise BadInputError(f"{path}:{number}: the token stands twice or is empty")
        vocabulary[data] = token
    try:
        merges = _merges_of_ranks(vocabulary)
        return Tokenizer(
            vocabulary, merges, special_tokens=special_tokens, pattern=pattern, chat_template=chat_template
        )
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None


def _merges_of_ranks(vocabulary: Mapping[bytes, int]) -> list[Pair]:
    """For each token, by rank, the two tokens that it is made of: what the earlier ones leave of its bytes."""
    merges = []
    for data, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
        if len(data) == 1:
            continue
        parts = [data[index : index + 1] for index in range(len(data))]
        while len(parts) > 2:
            joined = [vocabulary.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                raise BadInputError(f"the token of rank {rank} cannot be made from tokens of lower rank")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if not all(part in vocabulary for part in parts):
            raise BadInputError(f"the token of rank {rank} cannot be made: a byte of it has no token")
        merges.append((vocabulary[parts[0]], vocabulary[parts[1]]))
    return merges
