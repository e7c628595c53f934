"""Ctrl-C on a real process: saved, exit code 130, the command to go on with works."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from llm_journey.app.runs import find_run


def test_ctrl_c_saves_and_says_how_to_go_on(empty_home: Path, tiny_recipe: Path) -> None:
    journey = [sys.executable, "-m", "llm_journey"]
    environment = {**os.environ, "JOURNEY_HOME": str(empty_home), "OMP_NUM_THREADS": "1"}
    settings = ["--set", "training.steps=100000", "--set", "training.validations=20000"]
    process = subprocess.Popen(
        [*journey, "train", str(tiny_recipe), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):  # the first validation: training is under way
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Status" in out and "interrupted" in out
    run = find_run("rivers")
    assert run.status == "interrupted"

    said = re.search(r"go on with: journey (.*)", err)
    assert said is not None
    step = max(int(path.name[5:]) for path in (run.directory / "checkpoints").glob("step-*"))
    shorter = ["--set", f"training.steps={step + 5}", "--set", "training.validations=1"]
    resumed = subprocess.run(
        [*journey, *shlex.split(said.group(1)), *shorter], capture_output=True, text=True, env=environment, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"(step {step})" in resumed.stderr
    assert find_run("rivers").status == "finished"


def test_ctrl_c_before_training_leaves_nothing_half_written(empty_home: Path, tiny_recipe: Path) -> None:
    """A signal while the program still loads ends it with 130 and no traceback."""
    code = (
        "import os, signal, sys\n"
        # A shell's background jobs inherit an ignored SIGINT; this test is about one that is heard.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import llm_journey.app.training as training\n"
        "def interrupted(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "training.pull_source = interrupted\n"
        "from llm_journey.cli.main import execute\n"
        f"sys.exit(execute(['train', {str(tiny_recipe)!r}]))\n"
    )
    environment = {**os.environ, "JOURNEY_HOME": str(empty_home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    assert not (empty_home / "runs" / "rivers").exists()
