"""An estimate of a run's energy from its time and its machine; nothing is metered, and it is called an estimate.

The model of L. Lannelongue, J. Grealey and M. Inouye, "Green Algorithms: quantifying the carbon footprint of
computation", Advanced Science 8 (2021): time * (cores * watts a core * use + memory * watts a gigabyte), here with
cores in full use and without a data centre's overhead.
"""

from dataclasses import dataclass

WATTS_PER_CORE = 12.0  # their figure for a processor that is not in their table
WATTS_PER_GIGABYTE = 0.3725


@dataclass(frozen=True)
class EnergyEstimate:
    """Joules, the assumed power in watts, and the assumption in words."""

    joules: float
    watts: float
    assumption: str


def estimate_energy(
    seconds: float, *, cores: int, memory_bytes: float, accelerator_watts: float = 0.0
) -> EnergyEstimate:
    """Energy of `seconds` of work on `cores` full cores and `memory_bytes` of memory in use.

    `accelerator_watts` is the board power of the accelerators in use, 0 without any.
    """
    gigabytes = memory_bytes / 1e9
    watts = cores * WATTS_PER_CORE + gigabytes * WATTS_PER_GIGABYTE + accelerator_watts
    parts = [f"{WATTS_PER_CORE:g} W for each of {cores} cores", f"{WATTS_PER_GIGABYTE:g} W/GB for {gigabytes:.1f} GB"]
    if accelerator_watts:
        parts.append(f"{accelerator_watts:g} W for accelerators")
    assumption = f"not metered; assumed {', '.join(parts)}, no cooling or idle power"
    return EnergyEstimate(joules=seconds * watts, watts=watts, assumption=assumption)
