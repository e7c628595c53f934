"""Pictures of linear algebra: projection, rotation, the singular value decomposition, low rank, conditioning."""

import math
from typing import Any

import numpy as np

from llm_journey.foundations.linear_algebra import (
    Floats,
    condition_number,
    effective_rank,
    least_squares,
    low_rank,
    remove_direction,
    rotation,
    svd,
    truncation_error,
)
from llm_journey.foundations.optimization import newton_schulz
from llm_journey.foundations.pictures.canvas import (
    BLUE,
    FAINT,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PINK,
    SKY,
    Picture,
    arrow,
    dress,
    legend,
    note,
)
from llm_journey.foundations.probability import softmax


def _draw_projection(figure: Any) -> None:
    generator = np.random.default_rng(3)
    x_nd = generator.normal(size=(60, 3)) * [0.8, 0.6, 0.4] + [0.7, 0.3, 0.6]
    flat_nd = remove_direction(x_nd, np.ones(3))
    normed_nd = flat_nd / np.sqrt(np.square(flat_nd).mean(axis=1, keepdims=True))
    clouds = (
        ("Vectors of width 3", x_nd),
        ("less their mean: on a plane", flat_nd),
        ("by their deviation: on a circle", normed_nd),
    )
    for index, (title, points_nd) in enumerate(clouds):
        axis = figure.add_subplot(1, 3, index + 1, projection="3d")
        corners = np.array([[-1, 0, 1], [0, -1, 1], [1, -1, 0], [1, 0, -1], [0, 1, -1], [-1, 1, 0]]) * 1.75
        axis.plot_trisurf(*corners.T, color=SKY, alpha=0.13, linewidth=0, shade=False)
        axis.plot([-1.6, 1.6], [-1.6, 1.6], [-1.6, 1.6], color=FAINT, linewidth=1, linestyle="--")
        axis.text(1.65, 1.65, 1.65, "(1, 1, 1)", color=FAINT, fontsize=8.5)
        axis.scatter(*points_nd.T, color=(BLUE, GREEN, ORANGE)[index], s=13, depthshade=False)
        axis.set_title(title, fontsize=10, fontweight="bold", color=INK, y=1.06)
        axis.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), zlim=(-2.2, 2.2), xticks=[], yticks=[], zticks=[])
        axis.set_box_aspect((1, 1, 1), zoom=1.3)
        axis.view_init(elev=18, azim=-18)
        for side in (axis.xaxis, axis.yaxis, axis.zaxis):
            side.pane.set_visible(False)
            side.line.set_color(GRID)


def _draw_rotation(figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.45])
    dress(left, "A pair of channels, turned by its position")
    query_2, key_2 = np.array([1.0, 0.0]), np.array([0.72, 0.55])
    for position, shade in ((0, 1.0), (2, 0.5)):
        turn = rotation(0.7 * position)
        for vector_2, color, name in ((query_2, BLUE, "q"), (key_2, ORANGE, "k")):
            end_2 = turn @ vector_2
            arrow(left, (0, 0), end_2, color, alpha=shade)
            note(
                left,
                f"{name} at {position}",
                *(end_2 * 1.13),
                color=color,
                ha="center",
                va="center",
                alpha=0.4 + 0.6 * shade,
            )
    left.set(xlim=(-1.1, 1.35), ylim=(-0.35, 1.35), aspect="equal", xticklabels=[], yticklabels=[])
    note(left, "the angle between them is the same", -0.98, -0.24, color=FAINT)

    dress(right, "q·k for a head of 64 channels", "distance from query to key, in positions", "q·k / 32")
    frequencies_i = 10_000.0 ** (-np.arange(0, 64, 2) / 64)
    distances = np.arange(0, 257)
    for start, color, width in ((0, SKY, 6.0), (1000, BLUE, 1.6)):
        scores = [_rotary_score(start, start + int(distance), frequencies_i) for distance in distances]
        right.plot(distances, scores, color=color, linewidth=width, label=f"query at position {start:,}")
    right.axhline(0, color=FAINT, linewidth=0.8)
    legend(right, "upper right")


def _rotary_score(at: int, other: int, frequencies_i: Floats) -> float:
    """The mean of q.k over pairs of channels that all hold (1, 0), each turned by position times its frequency."""
    one_2 = np.array([1.0, 0.0])
    pairs = [(rotation(at * f) @ one_2) @ (rotation(other * f) @ one_2) for f in frequencies_i]
    return float(np.mean(pairs))


def _draw_svd(figure: Any) -> None:
    matrix_22 = np.array([[1.5, 0.9], [0.2, 0.75]])
    u_22, s_2, vt_22 = svd(matrix_22)
    angles = np.linspace(0, 2 * math.pi, 200)
    circle_n2 = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    panels = (
        ("The unit circle, and V", np.eye(2)),
        (f"A = U diag({s_2[0]:.2f}, {s_2[1]:.2f}) Vᵀ", matrix_22),
        ("U Vᵀ: every stretch is 1", u_22 @ vt_22),
        ("Newton-Schulz, five steps", newton_schulz(matrix_22)),
    )
    for axis, (title, map_22) in zip(figure.subplots(1, 4), panels, strict=True):
        dress(axis, title)
        axis.plot(*(circle_n2 @ map_22.T).T, color=FAINT, linewidth=1.4)
        for vector_2, color, name in zip(vt_22, (BLUE, ORANGE), ("v₁", "v₂"), strict=True):
            end_2 = map_22 @ vector_2
            arrow(axis, (0, 0), end_2, color)
            label = (
                name
                if map_22 is panels[0][1]
                else f"A{name}"
                if map_22 is matrix_22
                else f"{np.linalg.norm(end_2):.2f}"
            )
            note(axis, label, *(end_2 * (1 + 0.26 / np.linalg.norm(end_2))), color=color, ha="center", va="center")
        axis.set(xlim=(-2.35, 2.35), ylim=(-1.6, 1.6), aspect="equal", xticklabels=[], yticklabels=[])


def _draw_low_rank(figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    generator = np.random.default_rng(0)
    query_te, key_se = generator.normal(size=(2, 48, 8))
    scores_ts = query_te @ key_se.T / math.sqrt(8)
    attention_ts = softmax(scores_ts)
    dress(left, "Singular values: T = 48, E = 8", "number", "share of the largest")
    for matrix, color, name in ((scores_ts, BLUE, "scores QKᵀ"), (attention_ts, ORANGE, "softmax of them")):
        s_k = svd(matrix)[1]
        shares = np.maximum(s_k / s_k[0], 1e-6)
        label = f"{name} (effective rank {effective_rank(s_k):.0f})"
        left.semilogy(range(1, 49), shares, "o", color=color, markersize=3.2, label=label)
    left.axvline(8, color=FAINT, linewidth=0.9, linestyle="--")
    left.set_ylim(1e-8, 3)
    note(left, "zero, drawn at 10⁻⁶", 22, 2e-6, color=BLUE)
    legend(left, "lower left")

    grid = np.linspace(-2, 2, 48)
    smooth_ij = np.sin(1.6 * grid[:, None] * grid) + np.exp(-np.square(grid[:, None] + grid)) + 0.4 * grid
    lost = truncation_error(svd(smooth_ij)[1], 4)
    panels = (
        (middle, "Rank 48: 2,304 numbers", smooth_ij),
        (right, f"Rank 4: 384 numbers, {100 * lost:.0f}% lost", low_rank(smooth_ij, 4)),
    )
    for axis, title, shown_ij in panels:
        dress(axis, title)
        axis.grid(False)
        axis.imshow(shown_ij, cmap="RdBu", vmin=-1.8, vmax=1.8)
        axis.set(xticks=[], yticks=[])


def _draw_conditioning(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    generator = np.random.default_rng(0)
    kappas = np.logspace(0, 12, 25)
    dress(left, "A x = b, with b off by one part in 10⁸", "condition number κ", "relative error of x")
    errors = {0.0: [], 1e-16: []}  # type: dict[float, list[float]]
    for kappa in kappas:
        u_kk, v_kk = (np.linalg.qr(generator.normal(size=(12, 12)))[0] for _ in range(2))
        matrix_kk = (u_kk * np.geomspace(1, 1 / kappa, 12)) @ v_kk.T
        x_k = v_kk @ np.sign(generator.normal(size=12))
        b_k = matrix_kk @ x_k
        noise_k = generator.normal(size=12)
        noisy_k = b_k + 1e-8 * np.linalg.norm(b_k) * noise_k / np.linalg.norm(noise_k)
        for ridge, found in errors.items():
            found.append(float(np.linalg.norm(least_squares(matrix_kk, noisy_k, ridge) - x_k) / np.linalg.norm(x_k)))
    left.loglog(kappas, 1e-8 * kappas, color=FAINT, linestyle="--", linewidth=1, label="κ · 10⁻⁸, the bound")
    left.loglog(kappas, errors[0.0], "o-", color=BLUE, markersize=3.5, label="least squares")
    left.loglog(kappas, errors[1e-16], "o-", color=ORANGE, markersize=3.5, label="with ridge 10⁻¹⁶")
    legend(left, "upper left")

    dress(right, "96 random inputs of 16 channels", "how unequal the channels are (largest : smallest)", "κ of X")
    spreads = np.logspace(0, 4, 9)
    raw_nd = generator.normal(size=(96, 16))
    rows: dict[str, list[float]] = {"raw": [], "scaled": []}
    for spread in spreads:
        x_nd = raw_nd * np.geomspace(1, 1 / spread, 16)
        rows["raw"].append(condition_number(x_nd))
        rows["scaled"].append(condition_number(x_nd / np.sqrt(np.square(x_nd).mean(axis=0))))
    right.loglog(spreads, rows["raw"], "o-", color=PINK, markersize=3.5, label="channels as they come")
    right.loglog(spreads, rows["scaled"], "o-", color=GREEN, markersize=3.5, label="each channel scaled to variance 1")
    right.set_ylim(0.5, 5e5)
    legend(right, "upper left")
    note(right, "what a step size per channel makes of it", 1.6, 0.8, color=GREEN)


PICTURES = (
    Picture(
        name="projection",
        title="Layer normalisation is a projection, then a scaling",
        caption=(
            "Subtracting a vector's mean takes away its part along (1, ..., 1): an orthogonal projection onto the "
            "plane of all vectors that sum to zero. Dividing by the deviation then puts it on a sphere of radius √D. "
            "RMSNorm leaves the projection out and keeps the sphere."
        ),
        used_in=("model/norms.py", "LayerNorm"),
        draw=_draw_projection,
    ),
    Picture(
        name="rotation",
        title="Rotary positions: turned vectors see distances, not places",
        caption=(
            "A query at position m and a key at n are turned by angles m·f and n·f. Their product keeps R(m)ᵀ R(n) = "
            "R(n − m): only the distance remains, so the curve for a query at 1,000 lies on the one for a query at 0. "
            "With all channels alike, near keys score higher than far ones."
        ),
        used_in=("model/positions.py", "apply_rotary"),
        draw=_draw_rotation,
    ),
    Picture(
        name="svd",
        title="Every matrix turns, stretches, and turns",
        caption=(
            "A maps the circle to an ellipse whose half-axes are its singular values. A momentum matrix stretches a "
            "few directions far more than the rest; Muon replaces it by U Vᵀ, which moves along each direction by the "
            "same amount, and comes near to it by five matrix polynomials (lengths of the arrows written beside "
            "them)."
        ),
        used_in=("training/optim.py", "orthogonalize"),
        draw=_draw_svd,
        height=2.1,
    ),
    Picture(
        name="low_rank",
        title="Low rank: a few directions carry a matrix",
        caption=(
            "Attention scores of a head of width E are a product of (T, E) and (E, T) matrices, so their rank is at "
            "most E, however long the text; the softmax lifts it. Where singular values fall quickly, a few of them "
            "are the whole matrix: the best rank-k matrix keeps the k largest (Eckart and Young 1936)."
        ),
        used_in=("model/attention.py", "written_out_attention"),
        draw=_draw_low_rank,
        height=3.3,
    ),
    Picture(
        name="conditioning",
        title="Conditioning: how much an error can grow",
        caption=(
            "A relative error in b grows at most κ-fold in x; a ridge trades that growth for a bias. Inputs with "
            "channels of unequal size are ill-conditioned, and a step that suits one channel is wrong for the others. "
            "AdamW divides each weight's step by its own gradient's size, which undoes unequal channels."
        ),
        used_in=("training/optim.py", "Optimizer"),
        draw=_draw_conditioning,
    ),
)
