"""Compressors: sizes equal the command-line tools', and priming counts only what the held-out text adds."""

import gzip
import random
import shutil
import subprocess

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.evaluation import compressors
from llm_journey.evaluation.compressors import bits_per_byte_compressed, join_texts

_WORDS = [f"word{number}" for number in range(300)]


def _text(seed: int, words: int) -> bytes:
    generator = random.Random(seed)
    return " ".join(generator.choices(_WORDS, k=words)).encode()


@pytest.mark.skipif(not shutil.which("xz"), reason="no xz command on this machine")
def test_xz_equals_the_command() -> None:
    held_out = _text(1, 5000)
    made = subprocess.run(["xz", "-9e", "--format=xz", "--check=crc64", "-c"], input=held_out, capture_output=True)
    size = bits_per_byte_compressed(b"", held_out)["xz"] * len(held_out) / 8
    assert size == pytest.approx(len(made.stdout), abs=8)  # the command notes the dictionary's size differently


def test_gzip_is_level_nine_with_its_container() -> None:
    held_out = _text(2, 2000)
    expected = 8 * len(gzip.compress(held_out, 9)) / len(held_out)
    assert bits_per_byte_compressed(b"", held_out)["gzip"] == pytest.approx(expected)


def test_priming_finds_the_training_text_again() -> None:
    train = _text(3, 30_000)
    seen = bits_per_byte_compressed(train, train[5_000:25_000])
    new = bits_per_byte_compressed(train, random.Random(5).randbytes(20_000))
    assert seen["xz_primed"] < 0.05 < 1 < seen["xz"]
    assert new["xz_primed"] == pytest.approx(8, rel=0.02)


def test_only_the_last_part_of_a_long_training_text_primes(monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = random.Random(6).randbytes(40_000), random.Random(7).randbytes(10_000)
    monkeypatch.setattr(compressors, "MAX_PRIMING_BYTES", 20_000)
    assert bits_per_byte_compressed(held_out + train, held_out)["xz_primed"] > 7.9
    assert bits_per_byte_compressed(train + held_out, held_out)["xz_primed"] < 0.5


def test_texts_are_joined_by_newlines_in_utf8() -> None:
    assert join_texts(["né", "b"]) == b"n\xc3\xa9\nb\n"


def test_no_held_out_text_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="at least one byte"):
        bits_per_byte_compressed(b"text", b"")
