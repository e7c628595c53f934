"""Prepare a corpus: read, clean, judge, remove duplicates, split into training and validation text.

Everything streams: memory holds the duplicates' index (32 bytes a document; 1 KiB more with MinHash) and a hash per
document, never the corpus. The prepared folder appears whole or not at all:

    train.jsonl.gz, validation.jsonl.gz   {"id", "text"} a line, in the order read
    dropped.jsonl                         samples of what was left out: {"id", "reason", "text"}
    preparation.json                      config, fingerprint of the source, report, SHA-256 of the files

The split by document depends on nothing but a document's own content and the seed: adding documents moves none of the
old ones, and equal texts cannot part. Duplicates go first, so no held-out document stands in the training text too.
A corpus that is one text (one document, or one long file in pieces) is split by position instead, as nanoGPT does.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llm_journey.core import files
from llm_journey.core.config import STRICT, dump
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.locks import one_at_a_time
from llm_journey.text.cleaning import clean
from llm_journey.text.deduplication import DuplicateIndex, ExactIndex, MinHashIndex, content_hash
from llm_journey.text.quality import QualityConfig, judge, rule_of
from llm_journey.text.readers import Document, Problem, SourceFile, find_files, read_documents

Progress = Callable[[int, int], None]
Resolve = Callable[[str], Path]

SPLITS = ("train", "validation")
_FORMAT = "llm-journey-preparation-1"
_SAMPLES_PER_REASON = 20
_SAMPLE_CHARACTERS = 2000
_PROBLEMS_KEPT = 100
_FEW_HELD_OUT = 5
_PROGRESS_EVERY = 256
_HASHED_BYTES = 1 << 30  # a larger source is recognised by sizes and times instead of its content


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and how the text is chosen and split.

    `source` is a catalog name, a folder, a file or a glob. `held_out` is the share of the documents (or, split by
    position, of the text) kept for validation. `similarity` is the Jaccard threshold of `deduplication: minhash`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    source: str
    text_key: str = "text"
    max_documents: int | None = None
    cleaning: bool = True
    quality: QualityConfig = field(default_factory=QualityConfig)
    deduplication: Literal["none", "exact", "minhash"] = "exact"
    similarity: float = 0.8
    split: Literal["document", "position"] = "document"
    held_out: float = 0.05
    split_seed: int = 0

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source is empty; give a catalog name, a folder, a file or a glob")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must lie between 0 and 1")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity {self.similarity} must lie above 0 and at most at 1")
        if self.max_documents is not None and self.max_documents < 1:
            raise ValueError(f"max_documents {self.max_documents} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PreparationReport:
    """What became of a corpus. Sizes are UTF-8 bytes of text; `reused` says that an earlier preparation was found."""

    source: str
    documents_in: int
    dropped: dict[str, int]
    duplicates: int
    near_duplicates: int
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int
    seconds: float
    notices: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    num_problems: int = 0
    reused: bool = False

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of both splits' text."""
        return self.train_bytes + self.validation_bytes

    def rows(self) -> list[tuple[str, int]]:
        """(what, count) in the order of a table for people."""
        dropped = sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))
        return [
            ("documents in", self.documents_in),
            *((f"dropped: {reason}", count) for reason, count in dropped),
            ("duplicates", self.duplicates),
            ("near-duplicates", self.near_duplicates),
            ("training documents", self.train_documents),
            ("validation documents", self.validation_documents),
            ("training bytes", self.train_bytes),
            ("validation bytes", self.validation_bytes),
            ("files not read", self.num_problems),
        ]


def prepare_documents(
    config: DataConfig,
    directory: Path,
    *,
    resolve: Resolve,
    on_progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> PreparationReport:
    """Fill `directory` with the prepared corpus, or find there that this very preparation was done before.

    `resolve` turns a catalog name or a path into a local path (a glob is taken as it is). `on_progress` gets the
    numbers of documents read and kept so far; `on_wait` is called where another process prepares this folder right now:
    it is waited for, and its work is used. Raises BadInputError for a source that is missing, empty or wholly
    filtered out, JourneyError where the folder cannot be written; neither leaves anything half-written.
    """
    started = time.monotonic()
    problems: list[Problem] = []
    is_glob = glob.has_magic(config.source) and not os.path.exists(config.source)  # noqa: PTH110 - never raises
    source = config.source if is_glob else str(resolve(config.source))
    found = find_files(source, problems)
    _refuse_foreign(directory)
    fingerprint = _source_fingerprint(config, found)
    if reused := _earlier(directory, fingerprint):
        return reused
    problems.clear()
    try:
        with one_at_a_time(directory, on_wait):
            if reused := _earlier(directory, fingerprint):
                return reused
            with files.new_directory(directory) as folder:
                stage = _select(config, source, folder, problems, on_progress)
                notices = _split(config, stage, folder)
                report = stage.report(config, problems, notices, time.monotonic() - started)
                _write_record(folder, config, fingerprint, report)
    except OSError as error:
        raise JourneyError(
            f"{directory}: the prepared corpus cannot be written ({error.strerror or error}); "
            "free disk space or choose another folder (JOURNEY_HOME)"
        ) from None
    return report


def iterate_texts(directory: Path, split: str) -> Iterator[str]:
    """The texts of a prepared split ("train" or "validation"), in order. Raises BadInputError where there is none."""
    return (text for _, text in iterate_rows(directory, split))


def iterate_rows(directory: Path, split: str) -> Iterator[tuple[str, str]]:
    """(identifier, text) of each document of a prepared split, in order."""
    path = directory / f"{split}.jsonl.gz"
    if not path.is_file():
        raise BadInputError(f"{directory}: no prepared {split!r} text here; run `journey data prepare` first")
    return _read_rows(path)


def read_report(directory: Path) -> PreparationReport:
    """The report of a prepared folder. Raises BadInputError where there is none."""
    path = directory / "preparation.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        report: PreparationReport = TypeAdapter(PreparationReport).validate_python(record["report"])
    except FileNotFoundError:
        raise BadInputError(f"{directory}: no prepared corpus here; run `journey data prepare` first") from None
    except (ValueError, KeyError, TypeError, ValidationError):
        raise JourneyError(f"{path} is damaged; delete the folder and prepare the data again") from None
    return report


class _Stage:
    """The documents that were kept, in one file until the split is known, and the counts so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents_in = 0
        self.kept: list[tuple[bytes, int]] = []  # (split key, characters) of each document kept
        self.sources: set[str] = set()  # of the first two sources: one text, or several
        self.dropped: Counter[str] = Counter()
        self.duplicates = self.near_duplicates = 0
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def report(
        self, config: DataConfig, problems: list[Problem], notices: Iterable[str], seconds: float
    ) -> PreparationReport:
        return PreparationReport(
            source=config.source,
            documents_in=self.documents_in,
            dropped=dict(self.dropped),
            duplicates=self.duplicates,
            near_duplicates=self.near_duplicates,
            train_documents=self.documents["train"],
            validation_documents=self.documents["validation"],
            train_bytes=self.bytes["train"],
            validation_bytes=self.bytes["validation"],
            seconds=round(seconds, 3),
            notices=tuple(notices),
            problems=tuple(problems[:_PROBLEMS_KEPT]),
            num_problems=sum(problem.skipped for problem in problems),
        )


def _select(
    config: DataConfig, source: str, folder: Path, problems: list[Problem], on_progress: Progress | None
) -> _Stage:
    """Read, clean, judge and deduplicate; the kept documents go to a staging file, samples of the others are kept."""
    stage = _Stage(folder / "kept.jsonl.gz")
    exact: DuplicateIndex | None = ExactIndex() if config.deduplication != "none" else None
    near: DuplicateIndex | None = MinHashIndex(config.similarity) if config.deduplication == "minhash" else None
    documents = read_documents(source, text_key=config.text_key, problems=problems)
    with _gzip_writer(stage.path, level=1) as kept, (folder / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
        samples: Counter[str] = Counter()
        for document in islice(documents, config.max_documents):
            stage.documents_in += 1
            text = clean(document.text) if config.cleaning else _encodable(document.text)
            reason = _reason_to_drop(config, document, text, exact, near, stage)
            if reason:
                rule = rule_of(reason)
                samples[rule] += 1
                if samples[rule] <= _SAMPLES_PER_REASON:
                    _write_row(dropped, id=document.identifier, reason=reason, text=text[:_SAMPLE_CHARACTERS])
            else:
                _write_row(kept, id=document.identifier, text=text)
                key = hashlib.sha256(b"%d:" % config.split_seed + content_hash(text)).digest()[:8]
                stage.kept.append((key, len(text)))
                if len(stage.sources) < 2:
                    stage.sources.add(document.source)
            if on_progress is not None and stage.documents_in % _PROGRESS_EVERY == 0:
                on_progress(stage.documents_in, len(stage.kept))
    if on_progress is not None:
        on_progress(stage.documents_in, len(stage.kept))
    if not stage.kept:
        counts = ", ".join(f"{reason} {count}" for reason, count in stage.dropped.most_common())
        raise BadInputError(
            f"{config.source}: all {stage.documents_in} documents were dropped ({counts}); "
            "--set data.quality.enabled=false turns the filters off"
        )
    return stage


def _reason_to_drop(
    config: DataConfig,
    document: Document,
    text: str,
    exact: DuplicateIndex | None,
    near: DuplicateIndex | None,
    stage: _Stage,
) -> str:
    """Why a document is left out ("" to keep it), counted in `stage`."""
    keep, reason = judge(text, config.quality)
    if not text.strip():
        keep, reason = False, "empty"
    if not keep:
        stage.dropped[rule_of(reason)] += 1
        return reason
    if exact is not None and (earlier := exact.add(document.identifier, text)) is not None:
        stage.duplicates += 1
        return f"duplicate (of {earlier})"
    if near is not None and (earlier := near.add(document.identifier, text)) is not None:
        stage.near_duplicates += 1
        return f"near-duplicate (of {earlier})"
    return ""


def _split(config: DataConfig, stage: _Stage, folder: Path) -> list[str]:
    """Distribute the staged documents over the two splits; returns notices about how, where it was not as asked."""
    notices = []
    by_position = config.split == "position"
    if not by_position and len(stage.sources) == 1:
        by_position = True
        notices.append(
            f"the corpus is one text, so the last {config.held_out:.1%} of it is held out (split by position)"
        )
    if by_position:
        parts = _parts_by_position(config, stage)
    else:
        held_out = _held_out(config, stage)
        share = sum(stage.kept[number][1] for number in held_out) / sum(length for _, length in stage.kept)
        if len(held_out) < _FEW_HELD_OUT:
            notices.append(
                f"{len(held_out)} of {len(stage.kept)} documents held out, {share:.1%} of the text: few documents make "
                f"a rough split; --set data.split=position holds out the last {config.held_out:.1%} instead"
            )
        parts = _parts_by_document(stage, held_out)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_gzip_writer(folder / f"{split}.jsonl.gz")) for split in SPLITS}
        for split, identifier, text in parts:
            _write_row(writers[split], id=identifier, text=text)
            stage.documents[split] += 1
            stage.bytes[split] += len(text.encode("utf-8"))
    stage.path.unlink()
    return notices


def _held_out(config: DataConfig, stage: _Stage) -> set[int]:
    """Numbers of the documents held out: those whose hash, as a fraction of its range, lies below the share.

    In a small corpus where all fall on one side, the document with the smallest (largest) hash goes to the other.
    """
    keys = [int.from_bytes(key, "big") for key, _ in stage.kept]
    limit = int(config.held_out * 2**64)
    held_out = {number for number, key in enumerate(keys) if key < limit}
    if not held_out:
        held_out = {min(range(len(keys)), key=keys.__getitem__)}
    elif len(held_out) == len(keys):
        held_out.discard(max(range(len(keys)), key=keys.__getitem__))
    return held_out


def _parts_by_document(stage: _Stage, held_out: set[int]) -> Iterator[tuple[str, str, str]]:
    for number, (identifier, text) in enumerate(_read_rows(stage.path)):
        yield "validation" if number in held_out else "train", identifier, text


def _parts_by_position(config: DataConfig, stage: _Stage) -> Iterator[tuple[str, str, str]]:
    """The first part of all characters trains, the rest is held out: the cut is nanoGPT's int(n * (1 - share))."""
    total = sum(length for _, length in stage.kept)
    cut = int(total * (1 - config.held_out))
    if not 0 < cut < total:
        raise BadInputError(
            f"{config.source}: {total} characters are too few to hold out {config.held_out:.1%} of them; add text"
        )
    position = 0
    for identifier, text in _read_rows(stage.path):
        first, second = text[: max(cut - position, 0)], text[max(cut - position, 0) :]
        if first:
            yield "train", identifier, first
        if second:
            yield "validation", identifier, second
        position += len(text)


def _source_fingerprint(config: DataConfig, found: list[SourceFile]) -> str:
    """SHA-256 over the config and the source's files: their content up to 1 GiB in all, beyond it sizes and times."""
    sizes = [file.path.stat().st_size if file.path.is_file() else 0 for file in found]
    by_content = sum(sizes) <= _HASHED_BYTES
    listing = []
    for file, size in zip(found, sizes, strict=True):
        try:
            is_file = file.path.is_file()  # a pipe or a device would be read without end
            mark = files.sha256_file(file.path) if by_content and is_file else str(file.path.stat().st_mtime_ns)
        except OSError:
            mark = "unreadable"
        listing.append([file.name, size, mark])
    return files.sha256_json({"format": _FORMAT, "config": dump(config), "files": listing})


def _refuse_foreign(directory: Path) -> None:
    """Raise BadInputError where writing the prepared folder would replace something that is not one."""
    ours = (directory / "preparation.json").is_file()
    if directory.exists() and not ours and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInputError(f"{directory}: already there and no prepared corpus; choose an empty or a new folder")


def _earlier(directory: Path, fingerprint: str) -> PreparationReport | None:
    """The report of a whole preparation of the same config and source in `directory`, or None."""
    try:
        record = json.loads((directory / "preparation.json").read_text(encoding="utf-8"))
        if record["fingerprint"] != fingerprint or record["format"] != _FORMAT:
            return None
        if any(files.sha256_file(directory / name) != digest for name, digest in record["files"].items()):
            return None
        return replace(read_report(directory), reused=True)
    except (OSError, ValueError, KeyError, TypeError, JourneyError):
        return None  # nothing usable there: it is made anew


def _write_record(folder: Path, config: DataConfig, fingerprint: str, report: PreparationReport) -> None:
    names = [*(f"{split}.jsonl.gz" for split in SPLITS), "dropped.jsonl"]
    record = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "config": dump(config),
        "report": asdict(report),
        "files": {name: files.sha256_file(folder / name) for name in names},
    }
    files.write_json(folder / "preparation.json", record)


@contextmanager
def _gzip_writer(path: Path, level: int = 6) -> Iterator[TextIO]:
    """A UTF-8 text file under gzip whose bytes depend on its content only (no time, no name)."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=level, mtime=0) as packed,
        io.TextIOWrapper(cast(Any, packed), encoding="utf-8", newline="\n") as file,
    ):
        yield file


def _write_row(file: TextIO, **row: str) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                row = json.loads(line)
                yield row["id"], row["text"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise JourneyError(f"{path} is damaged ({error}); delete the folder and prepare the data again") from None


def _encodable(text: str) -> str:
    """Text as UTF-8 can hold it: lone surrogates, which JSON may carry, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
