"""Information theory: entropy, cross-entropy, KL both ways, mutual information, perplexity, bits, codes.

Legend: V outcomes of p and q, X and Y two variables, G grid points. Amounts of information are in nats (natural
logarithm), as every loss of this package; `bits` converts. 0 log 0 counts as 0. Left out: differential entropies
beyond the Gaussian, and channels.
"""

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np

from llm_journey.foundations.linear_algebra import Floats
from llm_journey.foundations.optimization import adam, linear_decay
from llm_journey.foundations.probability import Ints, check_distribution


def bits(nats: float) -> float:
    """nats / ln 2: the same amount of information in bits (Shannon 1948, section 1)."""
    return nats / math.log(2)


def entropy(p_v: Floats) -> float:
    """H(p) = -sum p log p: nats; the mean surprise, from 0 to log V (Shannon 1948, section 6).

    `p_v` may have any shape: the entropy of a joint distribution (X, Y) is that of all its cells.
    """
    return cross_entropy(p_v, p_v)


def cross_entropy(p_v: Floats, q_v: Floats) -> float:
    """H(p, q) = -sum p log q: nats; the mean surprise of who expects q where p is true. The loss of a language model.

    Infinite where q rules out what p allows. H(p, q) = H(p) + KL(p || q) (Cover and Thomas 2006, theorem 5.4.3).
    """
    p_v, q_v = check_distribution(p_v), check_distribution(q_v)
    if p_v.shape != q_v.shape:
        raise ValueError(f"p and q must be over the same outcomes, not of shapes {p_v.shape} and {q_v.shape}")
    seen = p_v > 0
    with np.errstate(divide="ignore"):
        return -float((p_v[seen] * np.log(q_v[seen])).sum()) + 0.0  # + 0.0: no minus zero


def kl_divergence(p_v: Floats, q_v: Floats) -> float:
    """KL(p || q) = sum p log(p / q): nats, >= 0, and 0 only where p = q; infinite where q rules out what p allows.

    (Kullback and Leibler 1951, section 2.) Forward, KL(data || model), it is what cross-entropy training minimises: it
    punishes a model that misses something. Reverse, KL(model || data), it punishes a model that invents something.
    """
    p_v, q_v = check_distribution(p_v), check_distribution(q_v)
    if p_v.shape != q_v.shape:
        raise ValueError(f"p and q must be over the same outcomes, not of shapes {p_v.shape} and {q_v.shape}")
    seen = p_v > 0
    with np.errstate(divide="ignore"):
        # Term by term, not as H(p, q) - H(p): near-equal distributions would lose every digit to cancellation.
        ratio_v = np.log(p_v[seen]) - np.log(q_v[seen])
    return max(float((p_v[seen] * ratio_v).sum()), 0.0)


def jensen_shannon_divergence(p_v: Floats, q_v: Floats) -> float:
    """JS = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2: nats, symmetric, at most log 2 (Lin 1991)."""
    middle_v = (np.asarray(p_v) + np.asarray(q_v)) / 2
    return (kl_divergence(p_v, middle_v) + kl_divergence(q_v, middle_v)) / 2


def gaussian_kl(mean_p: float, deviation_p: float, mean_q: float, deviation_q: float) -> float:
    """KL(N(a, s^2) || N(b, t^2)) = log(t / s) + (s^2 + (a - b)^2) / (2 t^2) - 1/2: nats.

    (Kingma and Welling 2014, appendix B, for two general Gaussians.)
    """
    spread = (deviation_p**2 + (mean_p - mean_q) ** 2) / (2 * deviation_q**2)
    return math.log(deviation_q / deviation_p) + spread - 0.5


def conditional_entropy(joint_xy: Floats) -> float:
    """H(Y | X) = H(X, Y) - H(X): nats; what is still unknown of Y once X is known (Cover and Thomas 2006, eq. 2.14).

    `joint_xy` (X, Y) holds p(x, y).
    """
    joint_xy = check_distribution(joint_xy)
    rows_x = joint_xy.sum(axis=1, keepdims=True)
    # Term by term, -sum p(x, y) log p(y | x): no difference of large numbers.
    seen = joint_xy > 0
    return -float((joint_xy[seen] * np.log((joint_xy / np.where(rows_x > 0, rows_x, 1.0))[seen])).sum()) + 0.0


def mutual_information(joint_xy: Floats) -> float:
    """I(X; Y) = KL(p(x, y) || p(x) p(y)) = H(Y) - H(Y | X): nats; what knowing X tells of Y, and Y of X.

    `joint_xy` (X, Y) holds p(x, y); 0 where they are independent (Cover and Thomas 2006, eq. 2.28).
    """
    joint_xy = check_distribution(joint_xy)
    independent_xy = joint_xy.sum(axis=1, keepdims=True) * joint_xy.sum(axis=0, keepdims=True)
    return kl_divergence(joint_xy, independent_xy / independent_xy.sum())


def plug_in_bias(num_x: int, num_y: int, num_observations: int) -> float:
    """(X - 1)(Y - 1) / (2 N): nats that mutual information estimated from N observed pairs comes out too large.

    To first order, for independent variables with X and Y values (Miller 1955; Panzeri and Treves 1996).
    """
    return (num_x - 1) * (num_y - 1) / (2 * num_observations)


def perplexity(nats: float) -> float:
    """exp(loss): as many equally likely outcomes would surprise as much (Jelinek et al. 1977). `nats` is a token's."""
    return math.exp(nats) if nats < 700 else math.inf


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """nats / (ln 2 * bytes): bits a byte of text, from the summed loss over it (Gao et al. 2020, section 3.1).

    It does not depend on how a tokenizer cuts the text, so models with different tokenizers compare.
    """
    if num_bytes < 1:
        raise ValueError(f"a text of {num_bytes} bytes has no bits per byte")
    return bits(nats) / num_bytes


def shannon_code_lengths(p_v: Floats) -> Ints:
    """l_v = ceil(log2(1 / p_v)): bits of a prefix code's words, (V,); on average below H + 1 (Shannon 1948, section 9).

    Every probability must be positive.
    """
    if not (check_distribution(p_v) > 0).all():
        raise ValueError("a code needs a word for every outcome: probabilities must be positive")
    lengths_v: Ints = np.ceil(-np.log2(p_v)).astype(np.int64)
    return lengths_v


def huffman_code_lengths(p_v: Floats) -> Ints:
    """Bits of the words of the shortest prefix code, (V,): join the two least likely, again and again (Huffman 1952).

    Its mean length is at least H / ln 2 and less than H / ln 2 + 1 bits. One outcome alone needs no bit.
    """
    p_v = check_distribution(p_v)
    tie_breaker = itertools.count()
    heap: list[tuple[float, int, Sequence[int]]] = [(float(p), next(tie_breaker), [v]) for v, p in enumerate(p_v)]
    heapq.heapify(heap)
    lengths_v = np.zeros(len(p_v), dtype=np.int64)
    while len(heap) > 1:
        (p_one, _, one), (p_other, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        joined = [*one, *other]
        lengths_v[joined] += 1
        heapq.heappush(heap, (p_one + p_other, next(tie_breaker), joined))
    return lengths_v


def gaussian_on_grid(grid_g: Floats, mean: float, deviation: float) -> Floats:
    """q_g = exp(-(x_g - m)^2 / (2 s^2)) / sum: a Gaussian as a distribution over the points of a grid, (G,)."""
    log_q_g = -np.square((grid_g - mean) / deviation) / 2
    q_g = np.exp(log_q_g - log_q_g.max())
    return np.asarray(q_g / q_g.sum())


def fit_forward_kl(grid_g: Floats, p_g: Floats) -> tuple[float, float]:
    """argmin_q KL(p || q) = (E_p[x], sqrt(Var_p[x])): mean and deviation of the Gaussian that covers all of p.

    Moment matching: the forward KL of an exponential family needs no more (Bishop 2006, section 10.7).
    It is exact where the Gaussian lies well inside a fine grid; units are those of x.
    """
    check_distribution(p_g)
    mean = float(p_g @ grid_g)
    return mean, math.sqrt(float(p_g @ np.square(grid_g - mean)))


def fit_reverse_kl(grid_g: Floats, p_g: Floats, start: tuple[float, float], steps: int = 2000) -> tuple[float, float]:
    """argmin_q KL(q || p): mean and deviation of a Gaussian that settles in one mode of p.

    (Bishop 2006, section 10.1.2, figure 10.3.) Found by Adam on (m, log s) from `start`, by the gradient
    E_q[log(q / p) dlog q]; which minimum it finds depends on the start. p must be positive on the whole grid.
    """
    if not (check_distribution(p_g) > 0).all():
        raise ValueError("the reverse KL is infinite where p is zero; give a p that is positive on the whole grid")
    log_p_g = np.log(p_g)

    def gradient(parameters_2: Floats) -> Floats:
        mean, deviation = float(parameters_2[0]), math.exp(float(parameters_2[1]))
        q_g = gaussian_on_grid(grid_g, mean, deviation)
        away_g = (grid_g - mean) / deviation
        slopes_2g = np.stack([away_g / deviation, np.square(away_g)])  # of log q, up to a constant
        slopes_2g = slopes_2g - (slopes_2g @ q_g)[:, None]
        log_ratio_g = np.log(np.maximum(q_g, np.finfo(np.float64).tiny)) - log_p_g
        return np.asarray(slopes_2g @ (q_g * log_ratio_g))

    first = np.array([start[0], math.log(start[1])])
    end_2 = adam(gradient, first, steps=steps, learning_rate=linear_decay(0.05, steps))[-1]
    return float(end_2[0]), math.exp(float(end_2[1]))
