"""Where a token stands: sinusoidal and rotary tables, and the rotation.

Legend: B batch, T positions, H heads, E head width, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def sinusoidal_table(num_positions: int, width: int) -> Tensor:
    """(T, D) table: sin at even channels, cos at odd, angle = t / 10000^(2i/D) (Vaswani et al. 2017, section 3.5)."""
    angles_ti = _angles(num_positions, width, 10_000.0)
    return torch.stack((angles_ti.sin(), angles_ti.cos()), dim=-1).flatten(1)


def sinusoidal_halves_table(num_positions: int, width: int) -> Tensor:
    """(T, D) table: the same sines in the first half of the channels, the cosines in the second, as Marian lays them
    (Junczys-Dowmunt et al. 2018). The angles are taken in float64, as transformers does for it."""
    positions_t1 = torch.arange(num_positions, dtype=torch.float64)[:, None]
    angles_ti = positions_t1 / 10_000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat((angles_ti.sin(), angles_ti.cos()), dim=-1).float()


SINUSOIDS: dict[str, Callable[[int, int], Tensor]] = {
    "sinusoidal": sinusoidal_table,
    "sinusoidal_halves": sinusoidal_halves_table,
}


def rotary_tables(num_positions: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (T, E/2), of the angles t * theta^(-2i/E) (Su et al. 2021, eq. 15)."""
    angles_ti = _angles(num_positions, head_width, theta)
    return angles_ti.cos(), angles_ti.sin()


def apply_rotary(x_bthe: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (channel i, channel i + E/2) of `x_bthe` (B, T, H, E) by its position's angle.

    `cos` and `sin` are (T, E/2), or (B, T, E/2) where rows hold positions of their own. The pairing of halves (not of
    neighbours) is Hugging Face's; the two differ by a fixed permutation of channels (Su et al. 2021, eq. 34).
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = x_bthe.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _angles(num_positions: int, width: int, theta: float) -> Tensor:
    # 1 / theta^x and theta^-x differ in the last bit; the former makes the tables equal transformers' bit for bit.
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
