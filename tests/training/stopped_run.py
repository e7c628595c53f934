"""A run as a program of its own, to be sent real signals: python stopped_run.py TEXTS DIRECTORY. Says each step."""

import sys
import time
from pathlib import Path

import tiny_runs
import torch

from llm_journey.training import run as running


def at_step(step: int) -> None:
    """Say the step, then give the sender of signals a moment."""
    print(step, flush=True)
    time.sleep(0.05)


if __name__ == "__main__":
    torch.set_num_threads(1)
    running.peak_flops = tiny_runs.peak_flops
    result = running.train(
        tiny_runs.make_recipe(Path(sys.argv[1])), Path(sys.argv[2]), observer=tiny_runs.Recorder(at_step)
    )
    print(result.status)
