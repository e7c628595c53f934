"""The bounded GGUF reader: what a whole file holds, and that nothing a damaged one says is believed."""

import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gguf_files import header, key, padded, tensor, text
from llm_journey.checkpoint.gguf import format as gguf
from llm_journey.checkpoint.gguf.reader import GgufFile
from llm_journey.core.errors import BadInputError

U32, F32, STRING, ARRAY = gguf.UINT32, gguf.FLOAT32, gguf.STRING, gguf.ARRAY


def written(folder: Path, data: bytes) -> Path:
    path = folder / "file.gguf"
    path.write_bytes(data)
    return path


def refusal(folder: Path, data: bytes) -> str:
    """The message with which the file is refused: one line that names it."""
    path = written(folder, data)
    with pytest.raises(BadInputError) as caught:
        GgufFile(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_what_a_file_holds(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype="<f4").reshape(3, 4)
    halves = np.arange(5, dtype="<f2")
    keys = [
        key("a.text", STRING, text("naïve")),
        key("a.number", gguf.INT64, struct.pack("<q", -5)),
        key("a.float", F32, struct.pack("<f", 0.5)),
        key("a.true", gguf.BOOL, b"\x01"),
        key("a.texts", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("")),
        key("a.numbers", ARRAY, struct.pack("<IQ", gguf.INT16, 3) + struct.pack("<3h", 1, -2, 3)),
        key("general.alignment", U32, struct.pack("<I", 64)),
    ]
    facts = tensor("matrix", (4, 3), 0, 64) + tensor("vector", (5,), 1, 0)
    head = padded(header(2, len(keys), version=2) + b"".join(keys) + facts, 64)
    file = GgufFile(written(tmp_path, head + padded(halves.tobytes(), 64) + numbers.tobytes()))
    assert file.version == 2
    assert [file.metadata[name] for name in ("a.text", "a.number", "a.float", "a.true")] == ["naïve", -5, 0.5, True]
    assert file.metadata["a.texts"] == ["x", ""] and file.metadata["a.numbers"].tolist() == [1, -2, 3]
    assert file.tensors["matrix"].shape == (3, 4)
    assert np.array_equal(file.numbers("matrix"), numbers)
    assert file.numbers("vector").dtype == np.float32 and file.numbers("vector").tolist() == [0, 1, 2, 3, 4]


LIES = {
    "no such magic": (header(0, 0, magic=b"GGML"), "not b'GGUF'"),
    "too short": (b"GGUF", "4 bytes are no GGUF file"),
    "an old version": (header(0, 0, version=1), "version 1; little-endian files of version 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian file"),
    "keys without end": (header(0, 2**63), "claims 9223372036854775808 keys"),
    "tensors without end": (header(2**60, 0) + bytes(100), "tensors; 100 bytes are left"),
    "more keys than allowed": (header(0, 5000) + bytes(90_000), "4096 are allowed"),
    "a key of endless length": (header(0, 1) + struct.pack("<Q", 2**62) + bytes(20), "a name of 46116"),
    "a text of endless length": (header(0, 1) + key("k", STRING, struct.pack("<Q", 2**62)) + bytes(9), "does not fit"),
    "a list of endless length": (
        header(0, 1) + key("k", ARRAY, struct.pack("<IQ", F32, 2**62)),
        "a list of 46116860184273",
    ),
    "a list of endless texts": (
        header(0, 1) + key("k", ARRAY, struct.pack("<IQ", STRING, 2**40)) + bytes(64),
        "a list of 1099511627776 texts",
    ),
    "a list of lists": (header(0, 1) + key("k", ARRAY, struct.pack("<IQ", ARRAY, 1)) + bytes(64), "only numbers and"),
    "a text that ends beyond the file": (
        header(0, 1) + key("k", ARRAY, struct.pack("<IQQ", STRING, 2, 30)) + bytes(16),
        "text 0 of a list of 2 does not fit",
    ),
    "no UTF-8": (header(0, 1) + key("k", STRING, text(b"\xff\xfe")), "no UTF-8"),
    "an unknown type of value": (header(0, 1) + key("k", 13, bytes(8)), "unknown type of value, 13"),
    "a key twice": (header(0, 2) + key("k", gguf.BOOL, b"\x01") * 2, "key 'k' stands twice"),
    "alignment 0": (header(0, 1) + key("general.alignment", U32, bytes(4)), "must be a power of two"),
    "alignment 48": (header(0, 1) + key("general.alignment", U32, struct.pack("<I", 48)), "must be a power of two"),
    "no dimensions": (header(1, 0) + tensor("t", (), 0, 0), "has 0 dimensions"),
    "five dimensions": (header(1, 0) + tensor("t", (1,) * 5, 0, 0), "has 5 dimensions"),
    "a dimension of 0": (header(1, 0) + tensor("t", (0, 4), 0, 0), "has the shape [4, 0]"),
    "a product beyond 64 bits": (header(1, 0) + tensor("t", (2**40, 2**40), 0, 0), "has the shape"),
    "no whole blocks": (header(1, 0) + padded(tensor("t", (33,), 8, 0)), "rows of 33, no multiple of Q8_0's 32"),
    "a type that is not read": (header(1, 0) + tensor("t", (32,), 6, 0), "stored as Q5_0; F32, F16"),
    "an unknown type of tensor": (header(1, 0) + tensor("t", (32,), 99, 0), "of unknown number 99"),
    "data beyond the file": (padded(header(1, 0) + tensor("t", (1000,), 0, 0)) + bytes(64), "needs 4000 bytes"),
    "an offset beyond the file": (padded(header(1, 0) + tensor("t", (4,), 0, 2**63 - 32)) + bytes(64), "needs 16 b"),
    "an odd offset": (padded(header(1, 0) + tensor("t", (4,), 0, 4)) + bytes(64), "no multiple of the alignment"),
    "a tensor twice": (padded(header(2, 0) + tensor("t", (4,), 0, 0) * 2) + bytes(64), "'t' stands twice"),
    "tensors in each other": (
        padded(header(2, 0) + tensor("t", (16,), 0, 0) + tensor("u", (4,), 0, 32)) + bytes(64),
        "'u' overlaps another",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    data, reason = LIES[name]
    assert reason in refusal(tmp_path, data)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        GgufFile(tmp_path / "none.gguf")
    with pytest.raises(BadInputError, match=r"cannot be read|no GGUF file"):
        GgufFile(tmp_path)


def test_incident_1_counts_that_lie(tmp_path: Path) -> None:
    """llama.cpp#27188: 49 bytes whose counts lie made the reference package hang. Here: under 1 s, under 256 MB."""
    data = header(0, 1) + key("a", ARRAY, struct.pack("<IQ", gguf.UINT8, 2**62))
    data += bytes(49 - len(data))
    assert len(data) == 49
    program = f"""
import time
from pathlib import Path
from llm_journey.checkpoint.gguf.reader import GgufFile
from llm_journey.core.errors import BadInputError
began = time.perf_counter()
try:
    GgufFile(Path({str(written(tmp_path, data))!r}))
except BadInputError as error:
    print(time.perf_counter() - began)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 1 and kilobytes < 256 << 10


def test_the_reader_needs_numpy_alone() -> None:
    program = """
import sys
import llm_journey.checkpoint.gguf.reader, llm_journey.checkpoint.gguf.writer
heavy = {"torch", "pydantic", "tokenizers", "transformers", "safetensors", "gguf"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_list_of_very_many_short_texts_is_bounded(tmp_path: Path) -> None:
    """Two letters take 10 bytes in the file and 64 in memory: their number is limited, and the time it takes.

    Processor time is measured: what else the machine does is not this reader's.
    """
    count = gguf.MAX_STRINGS
    whole = header(0, 1) + key("k", ARRAY, struct.pack("<IQ", STRING, count - 1) + text("ab") * (count - 1))
    path = written(tmp_path, whole)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    assert len(GgufFile(path).metadata["k"]) == count - 1
    assert time.process_time() - began < 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < len(whole) + (64 << 20)
    more = header(0, 1) + key("k", ARRAY, struct.pack("<IQ", STRING, count + 1) + text("ab") * (count + 1))
    assert "a list of 800001 texts" in refusal(tmp_path, more)
