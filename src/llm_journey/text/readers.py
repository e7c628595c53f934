"""Documents out of a folder, a file or a glob: .txt .md .jsonl .jsonl.gz .parquet .html .htm .pdf

A folder is walked in sorted order; hidden files, other kinds of files and links that lead out of it are not read. A
file that cannot be read becomes a Problem and the rest goes on. Text comes as it stands in the file: cleaning is
cleaning.py's part. Each kind of file has its reader beside this one: plain.py, records.py, pages.py.
"""

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_journey.core.errors import BadInputError
from llm_journey.text.documents import Document, Limits, Problem, Unreadable
from llm_journey.text.pages import PageReader
from llm_journey.text.plain import read_pieces
from llm_journey.text.records import RowCounts, read_json_lines, read_parquet

__all__ = ["KINDS", "Document", "Limits", "Problem", "SourceFile", "find_files", "read_documents"]

# Longest first, so that .jsonl.gz is never taken for something else.
KINDS = {
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".html": "html",
    ".htm": "html",
    ".txt": "plain",
    ".pdf": "pdf",
    ".md": "plain",
}


@dataclass(frozen=True)
class SourceFile:
    """A file to read: where it lies, its name inside the source (identifiers start with it), and its kind."""

    path: Path
    name: str
    kind: str


def find_files(source: str | Path, problems: list[Problem] | None = None) -> list[SourceFile]:
    """The readable kinds of files of a source, sorted by name.

    Raises BadInputError where the source does not exist or holds no file of a readable kind.
    """
    known = " ".join(KINDS)
    found = [] if problems is None else problems
    try:
        path = Path(source).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInputError(f"{str(source)!r} cannot be looked at ({error}); give a folder, a file or a glob") from None
    if is_folder:
        files = _select(_walk(path, found), path, found)
        where = f"the folder {path}"
    elif exists:
        kind = _kind(path.name)
        if kind is None:
            raise BadInputError(f"{path}: not a kind of file that can be read; known: {known}")
        return [SourceFile(path, _portable(path.name), kind)]
    elif glob.has_magic(str(source)):
        matches = sorted(Path(match) for match in glob.iglob(str(path), recursive=True))  # noqa: PTH207 - any root
        files = _select(matches, _fixed_part(path), found)
        where = f"the pattern {source}"
    else:
        raise BadInputError(f"{source}: no such file or folder; give a folder, a file or a glob of {known}")
    if not files:
        reason = f" ({found[0].path}: {found[0].reason})" if found else ""
        raise BadInputError(f"{where} holds no file that can be read{reason}; known kinds: {known}")
    return files


def read_documents(
    source: str | Path,
    *,
    text_key: str = "text",
    problems: list[Problem] | None = None,
    limits: Limits | None = None,
) -> Iterator[Document]:
    """Every document of a folder, file or glob, in the sorted order of its files.

    One document per text, HTML or PDF file (plain files over 4 MiB come in pieces of about 1 MiB, `name#0`, `name#1`,
    ...), one per row of JSON Lines and Parquet (`name#row`, the text under `text_key`). Empty texts are left out.
    What could not be read is appended to `problems`. Raises BadInputError at once where there is no such source, and
    at the end where nothing in it could be read.
    """
    noted = [] if problems is None else problems
    files = find_files(source, noted)
    return _read_all(files, str(source), text_key, noted, limits or Limits())


def _read_all(
    files: list[SourceFile], source: str, text_key: str, problems: list[Problem], limits: Limits
) -> Iterator[Document]:
    num_documents = 0
    with PageReader(limits) as pages:
        for file in files:
            try:
                for document in _read_file(file, text_key, problems, limits, pages):
                    num_documents += 1
                    yield document
            except Unreadable as unreadable:
                problems.append(Problem(file.name, str(unreadable)))
            except OSError as error:
                problems.append(Problem(file.name, f"cannot be read ({error.strerror or error})"))
    if not num_documents:
        reason = f"{problems[0].path}: {problems[0].reason}" if problems else "its files are empty"
        raise BadInputError(f"{source}: no text could be read ({reason})")


def _read_file(
    file: SourceFile, text_key: str, problems: list[Problem], limits: Limits, pages: PageReader
) -> Iterator[Document]:
    if not stat.S_ISREG(file.path.stat().st_mode):
        raise Unreadable("is no regular file")
    match file.kind:
        case "plain":
            yield from _read_plain(file, problems, limits)
        case "jsonl" | "parquet":
            yield from _read_rows(file, text_key, problems, limits)
        case _:
            yield Document(file.name, pages.read(file.path, file.kind), file.name)


def _read_plain(file: SourceFile, problems: list[Problem], limits: Limits) -> Iterator[Document]:
    fallback_lines: list[int] = []
    in_pieces = file.path.stat().st_size > limits.whole_file_bytes
    for number, text in enumerate(read_pieces(file.path, limits, fallback_lines)):
        if text.strip():
            yield Document(f"{file.name}#{number}" if in_pieces else file.name, text, file.name)
    if any(fallback_lines):
        reason = f"{sum(fallback_lines)} lines are not UTF-8 and were read as Windows-1252"
        problems.append(Problem(file.name, reason, skipped=False))


def _read_rows(file: SourceFile, text_key: str, problems: list[Problem], limits: Limits) -> Iterator[Document]:
    counts = RowCounts(text_key)
    read = read_json_lines if file.kind == "jsonl" else read_parquet
    try:
        for number, text in read(file.path, counts, limits):
            if text.strip():
                yield Document(f"{file.name}#{number}", text, f"{file.name}:{number}")
    finally:
        if reason := counts.reason():
            problems.append(Problem(file.name, reason, skipped=not counts.used))


def _walk(folder: Path, problems: list[Problem]) -> list[Path]:
    def note(error: OSError) -> None:
        problems.append(Problem(_portable(str(error.filename)), f"cannot be listed ({error.strerror})"))

    paths = []
    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        paths += [Path(parent) / name for name in [*names, *linked] if not name.startswith(".")]
    return paths


def _select(paths: list[Path], root: Path, problems: list[Problem]) -> list[SourceFile]:
    """The files of readable kinds among `paths`, by name; links that lead out of `root` become problems."""
    resolved_root = root.resolve()
    files = []
    for path in paths:
        name = _portable(path.relative_to(root).as_posix())
        kind = _kind(path.name)
        try:
            linked_folder = path.is_symlink() and path.is_dir()
            if (kind is None and not linked_folder) or (path.is_dir() and not linked_folder):
                continue
            inside = path.resolve().is_relative_to(resolved_root)
        except (OSError, RuntimeError) as error:  # no permission to look; links in a circle
            problems.append(Problem(name, f"cannot be looked at ({getattr(error, 'strerror', None) or error})"))
            continue
        if not inside:
            problems.append(Problem(name, "is a link that leads out of the folder; it is not followed"))
        elif kind is not None and not linked_folder:
            files.append(SourceFile(path, name, kind))
    return sorted(files, key=lambda file: file.name)


def _kind(name: str) -> str | None:
    return next((kind for suffix, kind in KINDS.items() if name.lower().endswith(suffix)), None)


def _fixed_part(pattern: Path) -> Path:
    """The folder that a glob starts from: its parts before the first wildcard."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _portable(name: str) -> str:
    """A file name as text that UTF-8 can hold, whatever bytes the file system has."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
