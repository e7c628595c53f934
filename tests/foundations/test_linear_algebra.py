"""Linear algebra against SciPy and PyTorch, and its laws on random matrices."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.foundations.linear_algebra import (
    Floats,
    condition_number,
    cosine_similarity,
    effective_rank,
    least_squares,
    low_rank,
    orthonormalize,
    project,
    remove_direction,
    rotation,
    svd,
    truncation_error,
)
from llm_journey.model.positions import apply_rotary, rotary_tables

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 9)


def matrix(seed: int, rows: int, columns: int, spread: float = 1.0) -> Floats:
    """A random matrix; `spread` is how many powers of ten lie between its rows' sizes."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, columns)) * 10.0 ** generator.uniform(0, spread, size=(rows, 1))


@given(seeds, sizes, sizes, st.sampled_from([0.0, 3.0, 8.0]))
def test_svd_is_scipys(seed: int, rows: int, columns: int, spread: float) -> None:
    """Values to rounding of the largest (backward stability is all that either promises), factors by their laws."""
    a_ij = matrix(seed, rows, columns, spread)
    u_ik, s_k, vt_kj = svd(a_ij)
    np.testing.assert_allclose(s_k, scipy.linalg.svdvals(a_ij), atol=1e-13 * s_k[0], rtol=0)
    np.testing.assert_allclose((u_ik * s_k) @ vt_kj, a_ij, atol=1e-13 * s_k[0])
    np.testing.assert_allclose(u_ik.T @ u_ik, np.eye(len(s_k)), atol=1e-13)
    np.testing.assert_allclose(vt_kj @ vt_kj.T, np.eye(len(s_k)), atol=1e-13)
    assert (np.diff(s_k) <= 0).all() and (s_k >= 0).all()


@given(seeds, st.integers(2, 9), st.integers(2, 9), st.data())
def test_svd_of_a_matrix_without_full_rank(seed: int, rows: int, columns: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, min(rows, columns) - 1))
    a_ij = (
        matrix(seed, rows, max(rank, 1)) @ matrix(seed + 1, max(rank, 1), columns)
        if rank
        else np.zeros((rows, columns))
    )
    u_ik, s_k, vt_kj = svd(a_ij)
    assert int((s_k > 0).sum()) == np.linalg.matrix_rank(a_ij)
    np.testing.assert_allclose((u_ik * s_k) @ vt_kj, a_ij, atol=1e-13 * max(s_k[0], 1))
    np.testing.assert_allclose(u_ik.T @ u_ik, np.eye(len(s_k)), atol=1e-13)
    np.testing.assert_allclose(vt_kj @ vt_kj.T, np.eye(len(s_k)), atol=1e-13)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_svd_at_the_ends_of_the_number_line(scale: float) -> None:
    a_ij = matrix(0, 5, 4)
    np.testing.assert_allclose(svd(scale * a_ij)[1], scale * scipy.linalg.svdvals(a_ij), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan]]), np.array([[1.0, np.inf]])])
def test_svd_refuses_what_is_no_matrix(bad: Floats) -> None:
    with pytest.raises(ValueError, match="needs a finite matrix"):
        svd(bad)


@given(seeds, sizes, st.data())
def test_orthonormalize_is_qr(seed: int, width: int, data: st.DataObject) -> None:
    a_dk = matrix(seed, width, data.draw(st.integers(1, width)))
    q_dk = orthonormalize(a_dk)
    reference_dk, r_kk = scipy.linalg.qr(a_dk, mode="economic")
    np.testing.assert_allclose(q_dk.T @ q_dk, np.eye(q_dk.shape[1]), atol=1e-13)
    # Unique but for signs; the tolerance follows the condition of the columns.
    np.testing.assert_allclose(q_dk, reference_dk * np.sign(np.diag(r_kk)), atol=1e-13 * np.linalg.cond(a_dk))


def test_orthonormalize_keeps_nearly_parallel_columns_orthogonal() -> None:
    """The Läuchli matrix, on which Gram-Schmidt without its second pass loses orthogonality."""
    q_dk = orthonormalize(np.vstack([np.ones((1, 5)), 1e-9 * np.eye(5)]))
    np.testing.assert_allclose(q_dk.T @ q_dk, np.eye(5), atol=1e-14)


@pytest.mark.parametrize("columns", [[[1.0, 2.0], [2.0, 4.0]], [[0.0], [0.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
def test_dependent_columns_are_refused(columns: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="depends linearly"):
        orthonormalize(np.array(columns))


@given(seeds, st.integers(2, 8), st.data())
def test_projection(seed: int, width: int, data: st.DataObject) -> None:
    """Equal to the normal equations; doing it twice changes nothing; what is left is orthogonal to the basis."""
    basis_dk = orthonormalize(matrix(seed, width, data.draw(st.integers(1, width)))) * 3.0
    x_nd = matrix(seed + 1, 4, width)
    found_nd = project(x_nd, basis_dk)
    normal_dd = basis_dk @ scipy.linalg.inv(basis_dk.T @ basis_dk) @ basis_dk.T
    np.testing.assert_allclose(found_nd, x_nd @ normal_dd, atol=1e-11)
    np.testing.assert_allclose(project(found_nd, basis_dk), found_nd, atol=1e-12)
    np.testing.assert_allclose((x_nd - found_nd) @ basis_dk, 0, atol=1e-11)


def test_layer_norm_is_a_projection_and_a_scaling() -> None:
    x_nd = matrix(0, 6, 11)
    flat_nd = remove_direction(x_nd, np.ones(11))
    ours = flat_nd / np.sqrt(np.square(flat_nd).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(ours, torch.nn.functional.layer_norm(torch.tensor(x_nd), (11,), eps=0.0), atol=1e-12)


def test_rotation_is_that_of_rotary_positions() -> None:
    cos, sin = rotary_tables(9, 2, 10_000.0)  # one pair of channels: the angle is the position itself
    x_bthe = torch.randn(1, 9, 1, 2, generator=torch.Generator().manual_seed(0))
    turned = apply_rotary(x_bthe, cos, sin)
    for position in range(9):
        expected = rotation(position) @ x_bthe[0, position, 0].double().numpy()
        np.testing.assert_allclose(turned[0, position, 0], expected, atol=1e-6)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_rotations_see_differences_only(a: float, b: float) -> None:
    np.testing.assert_allclose(rotation(a).T @ rotation(b), rotation(b - a), atol=1e-13)
    assert np.linalg.det(rotation(a)) == pytest.approx(1.0)


@given(seeds, sizes, sizes, st.integers(0, 9))
def test_low_rank_is_the_nearest_of_its_rank(seed: int, rows: int, columns: int, rank: int) -> None:
    a_ij = matrix(seed, rows, columns)
    near_ij, s_k = low_rank(a_ij, rank), svd(a_ij)[1]
    assert np.linalg.matrix_rank(near_ij) <= rank
    error = float(np.linalg.norm(a_ij - near_ij))
    assert error == pytest.approx(truncation_error(s_k, rank) * np.linalg.norm(a_ij), abs=1e-11)
    generator = np.random.default_rng(seed)
    left, right = generator.normal(size=(rows, rank)), generator.normal(size=(rank, columns))
    # Any other: the best fit to a random column space of that rank.
    other_ij = left @ np.linalg.pinv(left) @ a_ij if rank else np.zeros_like(a_ij)
    assert np.linalg.norm(a_ij - other_ij) >= error - 1e-10
    u_ik, _, vt_kj = svd(a_ij)
    factor_ik = u_ik[:, :rank] * s_k[:rank]
    if factor_ik.shape[1] == rank:  # a neighbour of the same rank: both factors moved a little
        beside_ij = (factor_ik + 1e-3 * left) @ (vt_kj[:rank] + 1e-3 * right)
        assert np.linalg.norm(a_ij - beside_ij) >= error - 1e-10


def test_low_rank_has_no_negative_rank() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        low_rank(np.eye(2), -1)
    assert truncation_error(np.zeros(3), 1) == 0.0


@given(sizes, st.integers(0, 5))
def test_effective_rank_counts_equal_directions(used: int, unused: int) -> None:
    assert effective_rank(np.array([2.5] * used + [0.0] * unused)) == pytest.approx(used)
    with pytest.raises(ValueError, match="no effective rank"):
        effective_rank(np.zeros(used))


@given(seeds, st.integers(1, 7))
def test_condition_number_is_numpys(seed: int, size: int) -> None:
    a_kk = matrix(seed, size, size)
    assert condition_number(a_kk) == pytest.approx(np.linalg.cond(a_kk), rel=1e-13 * np.linalg.cond(a_kk) + 1e-12)
    assert condition_number(np.zeros((size, size))) == math.inf


@given(seeds, sizes, sizes, st.booleans())
def test_least_squares_is_scipys(seed: int, rows: int, columns: int, deficient: bool) -> None:
    a_ij = matrix(seed, rows, columns)
    if deficient and columns > 1:
        a_ij[:, -1] = a_ij[:, 0]  # many minimisers: the shortest is wanted
    b_i = matrix(seed + 1, rows, 1)[:, 0]
    values = scipy.linalg.svdvals(a_ij)
    condition = values[0] / values[values > 1e-12 * values[0]][-1]
    expected = scipy.linalg.lstsq(a_ij, b_i, cond=1e-13)[0]
    np.testing.assert_allclose(
        least_squares(a_ij, b_i), expected, atol=1e-12 * condition**2 * (1 + np.abs(expected).max())
    )


@given(seeds, sizes, sizes, st.floats(1e-3, 10))
def test_ridge_solves_its_normal_equations(seed: int, rows: int, columns: int, ridge: float) -> None:
    a_ij, b_i = matrix(seed, rows, columns), matrix(seed + 1, rows, 1)[:, 0]
    expected = scipy.linalg.solve(a_ij.T @ a_ij + ridge * np.eye(columns), a_ij.T @ b_i, assume_a="pos")
    np.testing.assert_allclose(least_squares(a_ij, b_i, ridge), expected, rtol=1e-7, atol=1e-8)
    with pytest.raises(ValueError, match="must not be negative"):
        least_squares(a_ij, b_i, -ridge)


@given(seeds, sizes, sizes)
def test_cosine_similarity_is_torchs(seed: int, num: int, width: int) -> None:
    x_nd, y_md = matrix(seed, num, width), matrix(seed + 1, 3, width)
    expected = torch.cosine_similarity(torch.tensor(x_nd)[:, None], torch.tensor(y_md)[None], dim=-1)
    np.testing.assert_allclose(cosine_similarity(x_nd, y_md), expected, atol=1e-14)
    with pytest.raises(ValueError, match="zero vector"):
        cosine_similarity(x_nd, np.zeros((1, width)))
