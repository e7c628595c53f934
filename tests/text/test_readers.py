"""Folders, files and globs: what is read, in which order, under which names; broken files never stop the rest."""

import json
import os
from pathlib import Path

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.text.readers import Limits, Problem, find_files, read_documents


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def rows(*texts: str, key: str = "text") -> str:
    return "".join(json.dumps({key: text}) + "\n" for text in texts)


def read(source: str | Path, **options: object) -> tuple[dict[str, str], list[Problem]]:
    problems: list[Problem] = []
    documents = list(read_documents(source, problems=problems, **options))  # type: ignore[arg-type]
    assert len({document.identifier for document in documents}) == len(documents)
    return {document.identifier: document.text for document in documents}, problems


def test_a_folder_of_many_kinds(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "plain")
    write(tmp_path / "a" / "notes.MD", "# notes")
    write(tmp_path / "a" / "rows.jsonl", rows("one", "two"))
    write(tmp_path / "page.html", "<p>page</p>")
    write(tmp_path / "picture.png", b"\x89PNG")
    write(tmp_path / ".hidden.txt", "hidden")
    write(tmp_path / ".git" / "readme.txt", "hidden")
    write(tmp_path / "empty.txt", " \n")
    found, problems = read(tmp_path)
    assert list(found.items()) == [
        ("a/notes.MD", "# notes"),
        ("a/rows.jsonl#1", "one"),
        ("a/rows.jsonl#2", "two"),
        ("b.txt", "plain"),
        ("page.html", "page"),
    ]
    assert problems == []


def test_a_single_file_and_its_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows("one", "two"))
    documents = list(read_documents(str(path)))
    assert [(document.identifier, document.source) for document in documents] == [
        ("rows.jsonl#1", "rows.jsonl:1"),
        ("rows.jsonl#2", "rows.jsonl:2"),
    ]


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/1.txt", "x/2.txt", "y/1.txt", "y/1.md", "y/z/3.txt"):
        write(tmp_path / name, name)
    assert list(read(f"{tmp_path}/*/1.*")[0]) == ["x/1.txt", "y/1.md", "y/1.txt"]
    assert list(read(f"{tmp_path}/**/*.txt")[0]) == ["x/1.txt", "x/2.txt", "y/1.txt", "y/z/3.txt"]
    monkeypatch.chdir(tmp_path)
    assert list(read("y/*.txt")[0]) == ["1.txt"]
    write(tmp_path / "odd[1].txt", "literal")
    assert list(read("odd[1].txt")[0]) == ["odd[1].txt"]


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine" / "a.txt", "text")
    assert list(read("~/mine")[0]) == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder; give a folder, a file or a glob of .jsonl.gz"),
        ("nowhere/*.txt", "the pattern .* holds no file that can be read"),
        ("only.png", "not a kind of file that can be read; known: .jsonl.gz .parquet"),
        ("pictures", "the folder .* holds no file that can be read"),
        ("bare", "the folder .* holds no file that can be read"),
        ("nul\0byte", "no such file|cannot be looked at"),
        ("x" * 5000, "no such file|cannot be looked at"),
    ],
)
def test_a_wrong_source_is_named_at_once(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "only.png", b"x")
    write(tmp_path / "pictures" / "a.png", b"x")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInputError, match=message) as raised:
        read_documents(f"{tmp_path}/{name}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "its files are empty"),
        ("a.txt", b"\x00\x01\x02", "a.txt: looks binary"),
        ("a.jsonl", b'{"body": "x", "title": "y"}\n', "keys that are there: body, title"),
    ],
)
def test_a_source_without_any_text_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(BadInputError, match=message):
        list(read_documents(tmp_path))


def test_broken_files_become_problems_and_the_rest_is_read(tmp_path: Path) -> None:
    """ogx#6099: one bad file must not keep the rest of the folder from being read."""
    write(tmp_path / "a.txt", os.urandom(4096))
    write(tmp_path / "b.pdf", b"%PDF-1.7 nothing more")
    write(tmp_path / "c.jsonl.gz", b"no gzip at all")
    write(tmp_path / "d.parquet", b"PAR1 nothing PAR1")
    write(tmp_path / "e.jsonl", rows("x", key="body"))
    (tmp_path / "f.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "g.txt")
    write(tmp_path / "good.txt", "good")
    found, problems = read(tmp_path)
    assert found == {"good.txt": "good"}
    assert [problem.path for problem in problems] == [
        "a.txt",
        "b.pdf",
        "c.jsonl.gz",
        "d.parquet",
        "e.jsonl",
        "f.txt",
        "g.txt",
    ]
    reasons = {problem.path: problem.reason for problem in problems}
    assert "looks binary" in reasons["a.txt"]
    assert "is no readable PDF" in reasons["b.pdf"]
    assert "damaged gzip" in reasons["c.jsonl.gz"]
    assert "damaged Parquet" in reasons["d.parquet"]
    assert "keys that are there: body" in reasons["e.jsonl"]
    assert "No such file" in reasons["f.txt"]
    assert "no regular file" in reasons["g.txt"]
    assert all(problem.skipped and "\n" not in problem.reason for problem in problems)


def test_an_entry_that_cannot_be_looked_at_is_a_problem_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link into a folder without permission made the whole folder unreadable."""
    (tmp_path / "good.txt").write_text("text", encoding="utf-8")
    (tmp_path / "locked.txt").write_text("text", encoding="utf-8")
    plain = Path.is_dir

    def is_dir(path: Path) -> bool:
        if path.name == "locked.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    problems: list[Problem] = []
    assert [file.name for file in find_files(tmp_path, problems)] == ["good.txt"]
    assert [(problem.path, problem.reason) for problem in problems] == [
        ("locked.txt", "cannot be looked at (Permission denied)")
    ]


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """CVE-2024-37032: nothing outside the folder is touched, by a link to a file or to a folder."""
    secret = write(tmp_path / "outside" / "secret.txt", "secret")
    folder = tmp_path / "corpus"
    inside = write(folder / "inside.txt", "inside")
    (folder / "link.txt").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    (folder / "twin.txt").symlink_to(inside)
    (folder / "loop").symlink_to(folder)
    found, problems = read(folder)
    assert found == {"inside.txt": "inside", "twin.txt": "inside"}
    assert sorted(problem.path for problem in problems) == ["link.txt", "linked"]
    assert all("leads out of the folder" in problem.reason for problem in problems)
    assert list(read(f"{folder}/*.txt")[0]) == ["inside.txt", "twin.txt"]


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:  # noqa: PTH123 - a name in bytes
        file.write(b"text")
    found, _ = read(tmp_path)
    assert found == {"caf\\xe9.txt": "text"}


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0)
    try:
        problems: list[Problem] = []
        assert [file.name for file in find_files(tmp_path, problems)] == ["a.txt"]
        if os.geteuid() != 0:  # root may list everything
            assert "cannot be listed" in problems[0].reason
    finally:
        locked.chmod(0o755)


def test_lines_in_another_encoding_are_used_and_told(tmp_path: Path) -> None:
    write(tmp_path / "mixed.txt", "naïve\n".encode() + "café\n".encode("cp1252"))
    found, problems = read(tmp_path)
    assert found == {"mixed.txt": "naïve\ncafé\n"}
    assert problems == [Problem("mixed.txt", "1 lines are not UTF-8 and were read as Windows-1252", skipped=False)]


def test_a_long_file_comes_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {number}.\nSecond line.\n\n" for number in range(400))
    path = write(tmp_path / "long.txt", text)
    limits = Limits(whole_file_bytes=1000, piece_characters=500)
    documents = list(read_documents(path, limits=limits))
    assert "".join(document.text for document in documents) == text
    assert [document.identifier for document in documents[:2]] == ["long.txt#0", "long.txt#1"]
    assert {document.source for document in documents} == {"long.txt"}
    assert all(document.text.endswith("\n\n") and 250 < len(document.text) <= 500 for document in documents[:-1])
    assert [document.identifier for document in read_documents(path)] == ["long.txt"]
