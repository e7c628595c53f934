"""What this machine can do, measured, and what a run made of it."""

import time
from pathlib import Path

import torch

# An assumption, not a measurement: what one busy core and its share of memory and board draw, in watts. Server CPUs
# are specified at 3 to 6 W a core for the chip alone (EPYC 9654: 360 W / 96 cores; Xeon 8480: 350 W / 56 cores).
WATTS_A_CORE = 8.0
_MOST_SECONDS_A_PRODUCT = 0.5


def peak_flops(device: torch.device, precision: str = "fp32", size: int = 2048, repeats: int = 3) -> float:
    """The best FLOP/s of a square matrix product in this precision: the peak that MFU is a share of.

    MFU: model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B).
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        size, repeats = 8192, 10
    best, side = 0.0, min(256, size)
    while True:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        for _ in range(repeats + 1):
            _synchronize(device)
            start = time.perf_counter()
            a @ b
            _synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
        # A type that the processor does not have may be hundreds of times slower: small products then say enough.
        if side >= size or 2 * (2 * side) ** 3 / best > _MOST_SECONDS_A_PRODUCT:
            return best
        side *= 2


def energy_estimate_joules(seconds: float, cores: int) -> float:
    """`cores` busy for `seconds` at WATTS_A_CORE each. An estimate from an assumption; nothing is metered."""
    return seconds * cores * WATTS_A_CORE


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process held: of the GPU's memory where it trains there, else its largest resident set.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
