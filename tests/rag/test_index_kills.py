"""kill -9 while a library is filled, at ten moments: the next run goes on, and ends with the same vectors."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from indexing_child import index

from llm_journey.rag.library import Library


def test_killed_at_ten_moments_the_next_run_finishes(tmp_path: Path) -> None:
    index(tmp_path / "whole")
    draw = random.Random(1)
    for _ in range(10):
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("indexing_child.py")), str(tmp_path / "killed")],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        time.sleep(draw.uniform(0.0, 0.9))
        child.kill()
        child.communicate()
        with Library(tmp_path / "killed") as library:  # whatever was committed is whole
            for passage in library.passages():
                assert passage.text and passage.document.endswith(".txt")
    index(tmp_path / "killed")
    with Library(tmp_path / "whole") as whole, Library(tmp_path / "killed") as killed:
        assert whole.passages() == killed.passages()
        assert np.array_equal(whole.vectors("slow"), killed.vectors("slow"))
        assert killed.num_documents == 300


def test_two_processes_at_once_corrupt_nothing(tmp_path: Path) -> None:
    index(tmp_path / "whole")
    script = str(Path(__file__).with_name("indexing_child.py"))
    children = [
        subprocess.Popen([sys.executable, script, str(tmp_path / "both")], stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    with Library(tmp_path / "whole") as whole, Library(tmp_path / "both") as both:
        assert [passage.text for passage in both.passages()] == [passage.text for passage in whole.passages()]
        assert np.array_equal(whole.vectors("slow"), both.vectors("slow"))
