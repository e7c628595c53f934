"""Probability: softmax, distributions, drawing from them, maximum likelihood, Bayes' rule.

Legend: N observations or draws, V outcomes (the vocabulary), D dimensions, H hypotheses. Logarithms are natural, so log
probabilities are in nats; densities are per unit of x. Randomness comes in as a NumPy generator. Left out: continuous
distributions that the package never meets, and sampling by Markov chains.
"""

import math

import numpy as np
import numpy.typing as npt

from llm_journey.foundations.linear_algebra import Floats

Ints = npt.NDArray[np.int64]

_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
_SUM_TOLERANCE = 1e-9  # a thousand times the rounding of a sum over a hundred thousand outcomes


def logsumexp(x: Floats) -> Floats:
    """log sum exp(x) = m + log sum exp(x - m), m = max x: over the last axis, in nats, without overflow.

    (Blanchard et al. 2021, section 1.) Minus infinity stands for probability zero; all of them give minus infinity.
    """
    largest = x.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(x - shift).sum(axis=-1)) + shift[..., 0])


def log_softmax(logits_nv: Floats, temperature: float = 1.0) -> Floats:
    """log p_v = z_v / t - logsumexp(z / t): log probabilities in nats, (N, V) like the logits z.

    Temperature t > 0 has no unit: below 1 it sharpens, above 1 it flattens (Hinton et al. 2015, eq. 1).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}; its limit at 0 is the largest logit")
    with np.errstate(over="ignore"):  # further below the largest than a number can say: probability zero
        scaled_nv = (logits_nv - logits_nv.max(axis=-1, keepdims=True)) / temperature
    return np.asarray(scaled_nv - logsumexp(scaled_nv)[..., None])


def softmax(logits_nv: Floats, temperature: float = 1.0) -> Floats:
    """p_v = exp(z_v / t) / sum_w exp(z_w / t): probabilities, (N, V) like the logits z (Bridle 1990)."""
    return np.exp(log_softmax(logits_nv, temperature))


def check_distribution(probabilities: Floats) -> Floats:
    """The same array, if it is a distribution over all its entries; ValueError says what is wrong if not."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.size == 0 or not (probabilities >= 0).all():
        raise ValueError("probabilities must be numbers that are not negative, and at least one")
    if abs(float(probabilities.sum()) - 1.0) > _SUM_TOLERANCE:
        raise ValueError(f"probabilities must sum to 1, not {float(probabilities.sum())}")
    return probabilities


def gaussian_log_density(x_n: Floats, mean: float = 0.0, deviation: float = 1.0) -> Floats:
    """log p(x) = -(x - m)^2 / (2 s^2) - log(s sqrt(2 pi)): nats per unit of x, (N,) (Bishop 2006, eq. 1.46)."""
    if not deviation > 0:
        raise ValueError(f"the standard deviation must be positive, not {deviation}")
    scale = math.log(deviation) + 0.5 * math.log(2 * math.pi)
    return np.asarray(-np.square((x_n - mean) / deviation) / 2 - scale)


def multivariate_gaussian_log_density(x_nd: Floats, mean_d: Floats, covariance_dd: Floats) -> Floats:
    """log p(x) = -(d^T C^-1 d + log det C + D log 2 pi) / 2, d = x - m: nats, (N,) (Bishop 2006, eq. 1.52).

    By the Cholesky factor L of C, so that nothing is inverted. Raises LinAlgError where C is not positive definite.
    """
    lower_dd = np.linalg.cholesky(covariance_dd)
    whitened_dn = np.linalg.solve(lower_dd, (x_nd - mean_d).T)
    log_determinant = 2 * float(np.log(np.diag(lower_dd)).sum())
    constant = log_determinant + len(mean_d) * math.log(2 * math.pi)
    return np.asarray(-(np.square(whitened_dn).sum(axis=0) + constant) / 2)


def binomial_log_probability(successes_n: Ints, trials: int, probability: float) -> Floats:
    """log p(k) = log C(n, k) + k log p + (n - k) log(1 - p): nats, (N,); n = 1 is Bernoulli (Bishop 2006, eq. 2.9).

    p is in [0, 1]; 0 log 0 counts as 0, so that what cannot happen has minus infinity and what must happen 0.
    """
    return multinomial_log_probability(
        np.stack([successes_n, trials - successes_n], axis=-1), np.array([probability, 1 - probability])
    )


def multinomial_log_probability(counts_nv: Ints, probabilities_v: Floats) -> Floats:
    """log p(c) = log((sum c)! / prod c_v!) + sum_v c_v log p_v: nats, (N,) (Bishop 2006, eq. 2.34).

    With one observation (sum c = 1) it is the categorical distribution: the log probability of a token.
    """
    probabilities_v = check_distribution(probabilities_v)
    if (np.asarray(counts_nv) < 0).any():
        raise ValueError("counts must not be negative")
    arrangements_n = _log_gamma(counts_nv.sum(axis=-1) + 1) - _log_gamma(counts_nv + 1).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_nv = np.where(counts_nv == 0, 0.0, counts_nv * np.log(probabilities_v))
    return np.asarray(arrangements_n + terms_nv.sum(axis=-1))


def dirichlet_log_density(probabilities_nv: Floats, alpha_v: Floats) -> Floats:
    """log p(x) = log Gamma(sum a) - sum log Gamma(a_v) + sum (a_v - 1) log x_v: (N,) (Bishop 2006, eq. 2.38).

    A density over distributions x > 0 of V outcomes, with respect to the first V - 1 of them; V = 2 is the beta
    distribution. a_v > 0 counts like a_v - 1 observations made before.
    """
    if not (np.asarray(alpha_v) > 0).all():
        raise ValueError("the Dirichlet parameters must be positive")
    normaliser = float(_log_gamma(alpha_v.sum()) - _log_gamma(alpha_v).sum())
    return np.asarray(normaliser + ((alpha_v - 1) * np.log(probabilities_nv)).sum(axis=-1))


def sample_categorical(probabilities_v: Floats, num_draws: int, generator: np.random.Generator) -> Ints:
    """v = min{v : F(v) > u}, u uniform in [0, 1): draws by the inverse of the distribution function, (N,).

    (Devroye 1986, section III.2.) An outcome of probability zero is never drawn.
    """
    cumulative_v = np.cumsum(check_distribution(probabilities_v))
    # The last sum may miss 1 by rounding; measured against it, u never lands behind the last outcome.
    drawn_n: Ints = np.searchsorted(cumulative_v, generator.random(num_draws) * cumulative_v[-1], side="right")
    return drawn_n


def sample_gumbel_max(logits_v: Floats, num_draws: int, generator: np.random.Generator) -> Ints:
    """v = argmax(z_v + g_v), g = -log(-log u): draws from softmax(z) without computing it, (N,).

    (Gumbel 1954; Maddison et al. 2014, section 2.)
    """
    uniform_nv = 1.0 - generator.random((num_draws, len(logits_v)))  # in (0, 1]: its logarithm is finite
    with np.errstate(divide="ignore"):
        gumbel_nv = -np.log(-np.log(uniform_nv))
    drawn_n: Ints = np.argmax(logits_v + gumbel_nv, axis=-1)
    return drawn_n


def sample_gaussian(num_draws: int, mean: float, deviation: float, generator: np.random.Generator) -> Floats:
    """x = m + s sqrt(-2 log u) cos(2 pi w), u and w uniform: draws from N(m, s^2), (N,) (Box and Muller 1958)."""
    radius_n = np.sqrt(-2 * np.log(1.0 - generator.random(num_draws)))
    return np.asarray(mean + deviation * radius_n * np.cos(2 * math.pi * generator.random(num_draws)))


def negative_log_likelihood(log_probabilities_n: Floats) -> float:
    """-(1/N) sum log p(x_n): nats an observation. What maximum likelihood minimises, and the loss of training."""
    return -float(np.mean(log_probabilities_n))


def fit_categorical(counts_v: Ints) -> Floats:
    """p_v = c_v / sum c: the distribution under which the counts are likeliest, (V,) (Bishop 2006, eq. 2.33)."""
    if (np.asarray(counts_v) < 0).any() or counts_v.sum() == 0:
        raise ValueError("maximum likelihood needs counts that are not negative, and at least one observation")
    return np.asarray(counts_v / counts_v.sum())


def fit_gaussian(x_nd: Floats) -> tuple[Floats, Floats]:
    """m = mean(x), C = mean((x - m)(x - m)^T): the likeliest mean (D,) and covariance (D, D).

    (Bishop 2006, eqs. 2.121 and 2.122.) The divisor is N, not N - 1: likeliest, and biased low by (N - 1) / N.
    """
    mean_d = x_nd.mean(axis=0)
    centred_nd = x_nd - mean_d
    return mean_d, centred_nd.T @ centred_nd / len(x_nd)


def bayes(prior_h: Floats, likelihood_h: Floats) -> Floats:
    """p(h | x) = p(x | h) p(h) / sum_g p(x | g) p(g): the belief after seeing x, (H,) (Bayes 1763; Laplace 1774).

    `likelihood_h` is p(x | h), up to a common factor. Raises ValueError where no hypothesis allows what was seen.
    """
    joint_h = check_distribution(prior_h) * likelihood_h
    evidence = float(joint_h.sum())
    if not (joint_h >= 0).all() or evidence <= 0:
        raise ValueError("likelihoods must not be negative, and some hypothesis must allow what was seen")
    return np.asarray(joint_h / evidence)


def dirichlet_posterior(alpha_v: Floats, counts_v: Ints) -> Floats:
    """a_v + c_v: the Dirichlet parameters after seeing counts c, (V,) (Bishop 2006, eq. 2.41)."""
    return np.asarray(alpha_v + counts_v, dtype=np.float64)


def dirichlet_mean(alpha_v: Floats) -> Floats:
    """E[p_v] = a_v / sum a: the probability of each outcome next, (V,) (Bishop 2006, appendix B).

    After counts c and a prior of a each, (c_v + a) / (sum c + V a): additive smoothing.
    """
    return np.asarray(alpha_v / alpha_v.sum())


def stationary_distribution(transition_vv: Floats) -> Floats:
    """pi = pi P: the share of time that a Markov chain spends in each state, (V,) (Norris 1997, section 1.7).

    `transition_vv[i, j]` is the probability of going from i to j. Raises ValueError where pi is not the only one.
    """
    for row_v in transition_vv:
        check_distribution(row_v)
    size = len(transition_vv)
    equations = np.vstack([transition_vv.T - np.eye(size), np.ones(size)])
    solution_v, _, rank, _ = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)
    if rank < size:
        raise ValueError("the chain falls apart into parts that never meet, so its stationary distribution is not one")
    share_v = np.clip(solution_v, 0.0, None)  # rounding may leave a zero just below it
    return np.asarray(share_v / share_v.sum())
