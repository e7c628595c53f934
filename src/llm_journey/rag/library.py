"""A library: documents cut into passages, with their vectors, in one SQLite file that only ever changes as a whole.

    documents   a source's documents by name, each with the hash of its text and of how it was cut
    passages    stretches of them, in order
    vectors     of passages' texts, by hash and embedder: a text that comes again is not embedded again

Every change is a transaction: killed at any moment, the file holds what was last committed, and the next `update` goes
on from there. What changed is known by hashes: unchanged documents cost a look, changed ones are cut anew, gone ones
go. Of documents with one and the same text the first is kept. Vectors are float32, in the machine's order of bytes.

Legend: N passages, D width of a vector.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_journey.core.errors import BadInputError
from llm_journey.core.files import sha256_json
from llm_journey.core.locks import one_at_a_time
from llm_journey.rag.chunk import ChunkConfig, chunks
from llm_journey.text.documents import Document

FILE = "library.sqlite"
_VERSION = 1
_SCHEMA = """
create table if not exists documents (
    id integer primary key, name text not null unique, source text not null, mark text not null
);
create table if not exists passages (
    id integer primary key, document integer not null references documents (id) on delete cascade,
    start integer not null, stop integer not null, heading text not null, text text not null, mark text not null
);
create index if not exists passages_of on passages (document);
create table if not exists vectors (
    mark text not null, embedder text not null, vector blob not null, primary key (mark, embedder)
) without rowid;
"""
_COMMIT_EVERY = 200  # documents
_EMBED_AT_ONCE = 256  # passages; each such batch is committed

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Passage:
    """One passage and where it stands. document: its name; source: for a person; [start:stop] of its text."""

    text: str
    document: str
    source: str
    start: int
    stop: int
    heading: str = ""


@dataclass
class Update:
    """What an update did, in documents; passages and vectors are those that were made."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    doubles: int = 0
    passages: int = 0
    vectors: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether everything was as it is."""
        return not (self.added or self.changed or self.removed or self.vectors)


class Library:
    """The library in a folder; made where it is not there. Close it, or use it in a `with`.

    One process at a time changes it; on_wait: called where another does.
    """

    def __init__(self, folder: Path, on_wait: Callable[[], None] | None = None) -> None:
        self.folder, self._on_wait = folder, on_wait
        folder.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(folder / FILE, timeout=30.0, isolation_level=None)
        try:
            self._file.execute("pragma synchronous = normal")
            self._file.execute("pragma foreign_keys = on")
            self._file.execute("pragma trusted_schema = off")
            if self._version() == 0:
                with one_at_a_time(folder, on_wait):
                    self._begin()
            if self._version() != _VERSION:
                raise BadInputError(f"{folder}: a library of version {self._version()}; this program knows {_VERSION}")
        except sqlite3.DatabaseError as error:
            self._file.close()
            raise BadInputError(f"{folder / FILE}: no library ({error}); remove it, and index again") from None
        except BaseException:
            self._file.close()
            raise

    def _version(self) -> int:
        return int(self._file.execute("pragma user_version").fetchone()[0])

    def _begin(self) -> None:
        """Make a new library, unless another process has done so. The journal's mode stays with the file."""
        if self._version() == 0:
            self._file.execute("pragma journal_mode = wal")
            self._file.executescript(_SCHEMA)
            self._file.execute(f"pragma user_version = {_VERSION}")

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    @property
    def num_documents(self) -> int:
        """Documents, doubles not counted."""
        return int(self._file.execute("select count(*) from documents").fetchone()[0])

    def passages(self) -> list[Passage]:
        """All N, in the order in which they were cut."""
        rows = self._file.execute(
            "select p.text, d.name, d.source, p.start, p.stop, p.heading "
            "from passages p join documents d on d.id = p.document order by p.id"
        )
        return [Passage(*row) for row in rows]

    def update(
        self,
        documents: Iterable[Document],
        config: ChunkConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> Update:
        """Make the library hold these documents, cut by `config`, and no others. on_progress: told of how many."""
        with one_at_a_time(self.folder, self._on_wait):
            return self._update(documents, config, on_progress)

    def _update(
        self, documents: Iterable[Document], config: ChunkConfig, on_progress: Callable[[int], None] | None
    ) -> Update:
        done, cut = Update(), sha256_json(asdict(config))[:16]
        known: dict[str, tuple[int, str]] = {
            name: (number, mark) for number, name, mark in self._file.execute("select id, name, mark from documents")
        }
        seen: dict[str, str] = {}
        kept: set[str] = set()
        with self._in_batches() as commit:
            for count, document in enumerate(documents, start=1):
                if on_progress is not None:
                    on_progress(count)
                mark = f"{sha256_json(document.text)[:32]}-{cut}"
                if seen.setdefault(mark, document.identifier) != document.identifier:
                    done.doubles += 1
                    continue
                kept.add(document.identifier)
                number, before = known.get(document.identifier, (None, None))
                if before == mark:
                    done.unchanged += 1
                    continue
                done.passages += self._put(document, number, mark, config)
                if number is None:
                    done.added += 1
                else:
                    done.changed += 1
                if (done.added + done.changed) % _COMMIT_EVERY == 0:
                    commit()
            gone = [number for name, (number, _) in known.items() if name not in kept]
            self._file.executemany("delete from documents where id = ?", [(number,) for number in gone])
            done.removed = len(gone)
        return done

    def embed(self, embedder: str, embed: Embed, *, on_progress: Callable[[int, int], None] | None = None) -> int:
        """Make the vectors that are missing, by `embed` under the name `embedder`; returns how many were made.

        Texts of like length go together. What was made before is kept, whatever stops this.
        """
        with one_at_a_time(self.folder, self._on_wait):
            return self._embed(embedder, embed, on_progress)

    def _embed(self, embedder: str, embed: Embed, on_progress: Callable[[int, int], None] | None) -> int:
        rows = self._file.execute(
            "select distinct p.mark, p.text from passages p "
            "left join vectors v on v.mark = p.mark and v.embedder = ? where v.mark is null",
            (embedder,),
        ).fetchall()
        rows.sort(key=lambda row: len(row[1]))
        for start in range(0, len(rows), _EMBED_AT_ONCE):
            part = rows[start : start + _EMBED_AT_ONCE]
            vectors_nd = np.ascontiguousarray(embed([text for _, text in part]), dtype=np.float32)
            with self._transaction():
                self._file.executemany(
                    "insert or replace into vectors values (?, ?, ?)",
                    [(mark, embedder, row.tobytes()) for (mark, _), row in zip(part, vectors_nd, strict=True)],
                )
            if on_progress is not None:
                on_progress(start + len(part), len(rows))
        return len(rows)

    def vectors(self, embedder: str) -> Vectors:
        """(N, D) of all passages, in their order. Raises BadInputError where some are missing."""
        rows = self._file.execute(
            "select v.vector from passages p left join vectors v on v.mark = p.mark and v.embedder = ? order by p.id",
            (embedder,),
        ).fetchall()
        missing = sum(row[0] is None for row in rows)
        if missing:
            raise BadInputError(f"{self.folder}: {missing:,} of {len(rows):,} passages have no vector of {embedder}")
        if len({len(row[0]) for row in rows}) > 1:
            raise BadInputError(f"{self.folder}: vectors of {embedder} have different widths; index again")
        width = len(rows[0][0]) // np.dtype(np.float32).itemsize if rows else 0
        return np.frombuffer(b"".join(row[0] for row in rows), dtype=np.float32).reshape(len(rows), width)

    def forget_vectors(self) -> int:
        """Drop vectors of texts that no passage has any more; returns how many."""
        with self._transaction():
            found = self._file.execute("delete from vectors where mark not in (select mark from passages)")
        return found.rowcount

    def _put(self, document: Document, number: int | None, mark: str, config: ChunkConfig) -> int:
        if number is not None:
            self._file.execute("delete from documents where id = ?", (number,))
        found = chunks(document.text, config)
        (number,) = self._file.execute(
            "insert into documents (name, source, mark) values (?, ?, ?) returning id",
            (document.identifier, document.source, mark),
        ).fetchone()
        self._file.executemany(
            "insert into passages (document, start, stop, heading, text, mark) values (?, ?, ?, ?, ?, ?)",
            [(number, each.start, each.stop, each.heading, each.text, sha256_json(each.text)[:32]) for each in found],
        )
        return len(found)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._file.execute("rollback")
            raise
        self._file.execute("commit")

    @contextmanager
    def _in_batches(self) -> Iterator[Callable[[], None]]:
        """A transaction that is committed, and begun again, whenever what is yielded is called."""

        def commit() -> None:
            self._file.execute("commit")
            self._file.execute("begin immediate")

        with self._transaction():
            yield commit
