"""The benchmark runs, and refuses to compare unequal work."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data import topics

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tokenizer.py"


def test_the_benchmark_runs_on_a_small_text(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": topics.topics[name]}) + "\n" for name in sorted(topics.topics)[:20]))
    command = [
        *(sys.executable, str(SCRIPT), "--text", str(text), "--repeats", "2", "--vocab-size", "500", "--json"),
        *("--oracle-merges", "10", "--oracle-megabytes", "1", "--memory-megabytes", "2", "--processes", "1"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(run.stdout)
    figures = {(row["arm"], row["metric"]): row for row in rows}
    ratio = figures["ours / tokenizers", "training time ratio"]
    assert ratio["n"] == 2 and ratio["spread"][0] <= ratio["value"] <= ratio["spread"][1]
    assert figures["ours", "ids equal to the oracle's"]["value"] <= 1.0
    assert 10 < figures["ours", "training on 2 MB, peak memory with children"]["value"] < 1000
    assert {"command", "hardware", "versions", "config_sha256"} <= ratio.keys()
    assert run.stderr.count("ok: ") == 5 and "FAILED" not in run.stderr
