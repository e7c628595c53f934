"""Linear algebra: projections, rotations, the singular value decomposition, low rank, conditioning.

Legend: N vectors, D width, K basis vectors or rank, I rows, J columns. Real numbers in float64; no units. The
decompositions are written out (Gram-Schmidt, one-sided Jacobi), to be read; NumPy's own are faster for large matrices.
Left out: eigenvalues of general matrices, sparse matrices, complex numbers.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_EPSILON = float(np.finfo(np.float64).eps)
_MAX_SWEEPS = 60  # Jacobi converges quadratically: ten are plenty, sixty mean that something is wrong


def cosine_similarity(x_nd: Floats, y_md: Floats) -> Floats:
    """cos(x, y) = x.y / (|x| |y|): the cosine of the angle between each x and each y, (N, M), in [-1, 1].

    Raises ValueError for a zero vector, which points nowhere. (Strang 2016, section 1.2.)
    """
    norms_n, norms_m = np.linalg.norm(x_nd, axis=-1), np.linalg.norm(y_md, axis=-1)
    if not (norms_n.all() and norms_m.all()):
        raise ValueError("a zero vector has no direction, so no cosine")
    cosines_nm = (x_nd / norms_n[:, None]) @ (y_md / norms_m[:, None]).T
    return np.asarray(np.clip(cosines_nm, -1.0, 1.0))


def orthonormalize(vectors_dk: Floats) -> Floats:
    """q_k = v_k - sum_(j<k) q_j (q_j.v_k), scaled to length 1: an orthonormal basis of the columns' span, (D, K).

    Modified Gram-Schmidt, each vector twice, which is enough to be orthogonal to rounding (Giraud et al. 2005). Raises
    ValueError where the columns are linearly dependent.
    """
    basis_dk = np.array(vectors_dk, dtype=np.float64)
    for index in range(basis_dk.shape[1]):
        before = float(np.linalg.norm(basis_dk[:, index]))
        for _ in range(2):
            for earlier in range(index):
                basis_dk[:, index] -= basis_dk[:, earlier] * (basis_dk[:, earlier] @ basis_dk[:, index])
        length = float(np.linalg.norm(basis_dk[:, index]))
        if length <= _EPSILON * basis_dk.shape[0] * before:
            raise ValueError(f"column {index} depends linearly on those before it, so the columns are no basis")
        basis_dk[:, index] /= length
    return basis_dk


def project(x_nd: Floats, basis_dk: Floats) -> Floats:
    """P x = Q Q^T x: the point of the columns' span that lies nearest to each x, (N, D).

    Q is the orthonormal basis; P = A (A^T A)^-1 A^T for any other basis A (Strang 2016, section 4.2).
    """
    q_dk = orthonormalize(basis_dk)
    return (x_nd @ q_dk) @ q_dk.T


def remove_direction(x_nd: Floats, direction_d: Floats) -> Floats:
    """x - d (d.x) / (d.d): what is left of each x once its part along d is taken away, (N, D).

    With d = (1, ..., 1) it subtracts the mean over the width, the first half of layer normalisation.
    """
    return x_nd - project(x_nd, direction_d[:, None])


def rotation(angle: float) -> Floats:
    """R = [[cos a, -sin a], [sin a, cos a]]: the turn of the plane by `angle` radians, (2, 2).

    R(a)^T R(b) = R(b - a), which is why rotary positions see distances only (Su et al. 2021, eq. 16).
    """
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def svd(matrix_ij: Floats) -> tuple[Floats, Floats, Floats]:
    """A = U diag(s) V^T: rotate, stretch, rotate. Returns U (I, K), s (K,) falling, V^T (K, J), K = min(I, J).

    One-sided Jacobi (Hestenes 1958; Golub and Van Loan 2013, section 8.6): turn pairs of columns of A until all are
    orthogonal; their lengths are then the singular values, their directions U, and the turns together V. Raises
    ValueError for a matrix that is empty or not finite.
    """
    matrix_ij = np.asarray(matrix_ij, dtype=np.float64)
    if matrix_ij.ndim != 2 or 0 in matrix_ij.shape or not np.isfinite(matrix_ij).all():
        raise ValueError(f"a decomposition needs a finite matrix with rows and columns, not shape {matrix_ij.shape}")
    if matrix_ij.shape[0] < matrix_ij.shape[1]:
        u_jk, s_k, vt_ki = svd(matrix_ij.T)
        return vt_ki.T, s_k, u_jk.T
    scale = float(np.abs(matrix_ij).max()) or 1.0  # squares of what is scaled neither overflow nor vanish
    columns_ij, v_jj = matrix_ij / scale, np.eye(matrix_ij.shape[1])
    # A shorter column is a rounding error, and counts as zero (NumPy's matrix_rank has the same rule).
    floor = _EPSILON * max(matrix_ij.shape) * float(np.linalg.norm(columns_ij))
    _turn_until_orthogonal(columns_ij, v_jj, floor)
    s_k = np.linalg.norm(columns_ij, axis=0)
    order = np.argsort(-s_k, kind="stable")
    s_k, columns_ij, v_jj = s_k[order], columns_ij[:, order], v_jj[:, order]
    rank = int((s_k > floor).sum())
    u_ik = _complete(columns_ij[:, :rank] / s_k[:rank], columns_ij.shape[1])
    s_k[rank:] = 0.0
    return u_ik, scale * s_k, v_jj.T


def low_rank(matrix_ij: Floats, rank: int) -> Floats:
    """A_k = sum_(r<=k) s_r u_r v_r^T: the matrix of rank k that lies nearest to A, (I, J).

    Nearest in the Frobenius and in the spectral norm (Eckart and Young 1936). It takes k (I + J) numbers, not I J.
    """
    if rank < 0:
        raise ValueError(f"rank must not be negative, not {rank}")
    u_ik, s_k, vt_kj = svd(matrix_ij)
    return (u_ik[:, :rank] * s_k[:rank]) @ vt_kj[:rank]


def truncation_error(singular_values_k: Floats, rank: int) -> float:
    """|A - A_k|_F / |A|_F = sqrt(sum_(r>k) s_r^2 / sum_r s_r^2): what rank k leaves out, in [0, 1]; 0 for A = 0.

    (Eckart and Young 1936; no other matrix of that rank leaves out less.)
    """
    whole = float(np.square(singular_values_k).sum())
    return math.sqrt(float(np.square(singular_values_k[rank:]).sum()) / whole) if whole else 0.0


def effective_rank(singular_values_k: Floats) -> float:
    """exp(H(p)), p = s / sum(s): how many directions a matrix really uses, from 1 to K (Roy and Vetterli 2007).

    Raises ValueError where all singular values are zero.
    """
    total = float(singular_values_k.sum())
    if total <= 0:
        raise ValueError("the zero matrix has no effective rank")
    shares_k = singular_values_k[singular_values_k > 0] / total
    return math.exp(-float((shares_k * np.log(shares_k)).sum()))


def condition_number(matrix_ij: Floats) -> float:
    """kappa = s_1 / s_K: how much a relative error may grow in solving A x = b; infinite where A is singular.

    (Trefethen and Bau 1997, lecture 12.) On the Hessian it is the ratio of steepest to flattest curvature.
    """
    s_k = svd(matrix_ij)[1]
    return float(s_k[0] / s_k[-1]) if s_k[-1] > 0 else math.inf


def least_squares(matrix_ij: Floats, target_i: Floats, ridge: float = 0.0) -> Floats:
    """x = V diag(s / (s^2 + ridge)) U^T b: minimises |A x - b|^2 + ridge |x|^2, (J,).

    Without ridge, the shortest of all minimisers (the pseudo-inverse: Golub and Van Loan 2013, section 5.5.2); with it,
    Hoerl and Kennard 1970, eq. 2.1. A ridge bounds the condition number of A^T A + ridge I by
    (s_1^2 + ridge) / ridge.
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, not {ridge}")
    u_ik, s_k, vt_kj = svd(matrix_ij)
    squares_k = np.square(s_k) + ridge
    factors_k = np.divide(s_k, squares_k, out=np.zeros_like(s_k), where=squares_k > 0)
    return vt_kj.T @ (factors_k * (u_ik.T @ target_i))


def _turn_until_orthogonal(columns_ij: Floats, v_jj: Floats, floor: float) -> None:
    """Turn pairs of columns by Jacobi rotations, in place, until each pair is orthogonal; `v_jj` collects the turns."""
    num_columns = columns_ij.shape[1]
    for _ in range(_MAX_SWEEPS):
        turned = False
        for p in range(num_columns - 1):
            for q in range(p + 1, num_columns):
                length_p, length_q = (float(np.linalg.norm(columns_ij[:, index])) for index in (p, q))
                overlap = float(columns_ij[:, p] @ columns_ij[:, q])
                orthogonal = 4 * _EPSILON * math.sqrt(columns_ij.shape[0]) * length_p * length_q  # but for rounding
                if min(length_p, length_q) <= floor or abs(overlap) <= orthogonal:
                    continue
                turned = True
                zeta = (length_q - length_p) * (length_q + length_p) / (2 * overlap)
                tangent = math.copysign(1.0, zeta) / (abs(zeta) + math.hypot(1.0, zeta))
                cosine = 1 / math.hypot(1.0, tangent)
                turn = cosine * np.array([[1.0, tangent], [-tangent, 1.0]])
                columns_ij[:, [p, q]] = columns_ij[:, [p, q]] @ turn
                v_jj[:, [p, q]] = v_jj[:, [p, q]] @ turn
        if not turned:
            return
    raise ArithmeticError(f"the columns are not orthogonal after {_MAX_SWEEPS} sweeps")


def _complete(basis_ik: Floats, num_columns: int) -> Floats:
    """An orthonormal basis (I, K) lengthened to `num_columns` columns: each new one from the axis least seen so far."""
    while basis_ik.shape[1] < num_columns:
        least = int(np.argmin(np.square(basis_ik).sum(axis=1)))
        new_i = np.eye(basis_ik.shape[0])[:, least]
        for _ in range(2):
            new_i = new_i - basis_ik @ (basis_ik.T @ new_i)
        basis_ik = np.column_stack([basis_ik, new_i / np.linalg.norm(new_i)])
    return basis_ik
