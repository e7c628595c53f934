"""Any bytes under any name: the reader yields documents or a Problem, never another error."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_pages import PAGE, make_pdf

from llm_journey.core.errors import BadInputError
from llm_journey.text.readers import KINDS, Limits, Problem, read_documents

SEEDS = [
    b'{"text": "row"}\n' * 5,
    PAGE.encode(),
    make_pdf("words"),
    b"plain text\n\nmore",
    b"\x1f\x8b\x08\x00" + b"x" * 20,
]
_EDITS = st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4)), max_size=6)


def read(path: Path) -> None:
    problems: list[Problem] = []
    try:
        for document in read_documents(path, problems=problems, limits=Limits(page_seconds=20)):
            assert document.text.strip()
            assert document.identifier.startswith(path.name)
    except BadInputError as error:
        assert "\n" not in str(error)
    assert all(problem.reason and "\n" not in problem.reason for problem in problems)


@pytest.mark.full
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(suffix=st.sampled_from(sorted(KINDS)), seed=st.sampled_from(SEEDS), edits=_EDITS)
def test_edited_files_under_every_name(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: bytes, edits: list[tuple[int, bytes]]
) -> None:
    data = bytearray(seed)
    for place, new in edits:
        place %= len(data) + 1
        data[place : place + len(new)] = new
    path = tmp_path_factory.mktemp("fuzz") / f"file{suffix}"
    path.write_bytes(data)
    read(path)


@settings(max_examples=40, deadline=None)
@given(suffix=st.sampled_from([".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet"]), data=st.binary(max_size=200))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"file{suffix}"
    path.write_bytes(data)
    read(path)
