"""A served model's memory does not grow with what is asked of it."""

import random
from pathlib import Path

import httpx
import pytest
from serve_process import NAME, save_small_model, served

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
