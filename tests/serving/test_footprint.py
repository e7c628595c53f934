"""A served model's memory does not grow with what is asked of it."""

import random
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serve_process import NAME, save_small_model, served

from llm_journey.app.server import _on_passing_thread
from llm_journey.core.errors import BadInputError

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
MB = 1 << 20


@pytest.mark.parametrize("precision", ["bfloat16", "int4"])
def test_prompts_of_hundreds_of_lengths(tmp_path: Path, precision: str) -> None:
    """oneDNN keeps kernels for each number of rows: without bounds the process grows by 270 MB here."""
    draw = random.Random(5)
    lengths = draw.sample(range(70, 512), 150)
    with served(save_small_model(tmp_path), precision=precision) as server, httpx.Client(timeout=60) as client:

        def ask(length: int) -> None:
            prompt = [draw.randrange(300) for _ in range(length)]
            body = {"model": NAME, "prompt": prompt, "max_tokens": 1}
            answer = client.post(f"{server.url}/v1/completions", json=body)
            assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == length

        for length in lengths[:50]:
            ask(length)
        before = server.bytes()
        for length in lengths[50:]:
            ask(length)
        assert server.bytes() - before < 25 * MB


def test_what_opens_a_model_leaves_no_helpers_behind(tmp_path: Path) -> None:
    """A thread's OpenMP helpers end with it, so that the engine's are the only ones (app.server)."""
    (tmp_path / "count.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from llm_journey.app.server import _on_passing_thread\n"
        "def work():\n"
        "    torch.ones(1 << 20).exp()\n"
        "    return len(list(Path('/proc/self/task').iterdir()))\n"
        "torch.set_num_threads(2)\n"
        "before = len(list(Path('/proc/self/task').iterdir()))\n"
        "inside = _on_passing_thread(work)\n"
        "time.sleep(0.5)  # the thread's own end comes a moment after its work's\n"
        "after = len(list(Path('/proc/self/task').iterdir()))\n"
        "print(before, inside, after)\n"
    )
    found = subprocess.run([sys.executable, "count.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    before, inside, after = map(int, found.stdout.split())
    assert inside == before + 2 and after == before


def test_errors_of_opening_come_through() -> None:
    def fail() -> None:
        raise BadInputError("no such model")

    with pytest.raises(BadInputError, match="no such model"):
        _on_passing_thread(fail)
