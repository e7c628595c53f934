"""Information theory against scipy.stats and torch, its laws on random distributions, and codes that decode."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.evaluation.ngram import KneserNey
from llm_journey.foundations.information import (
    bits,
    bits_per_byte,
    conditional_entropy,
    cross_entropy,
    entropy,
    fit_forward_kl,
    fit_reverse_kl,
    gaussian_kl,
    gaussian_on_grid,
    huffman_code_lengths,
    jensen_shannon_divergence,
    kl_divergence,
    mutual_information,
    perplexity,
    plug_in_bias,
    shannon_code_lengths,
)
from llm_journey.foundations.linear_algebra import Floats

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 12)


def distribution(seed: int, *shape: int, zeros: bool = False) -> Floats:
    generator = np.random.default_rng(seed)
    p = generator.gamma(0.4, size=shape) + 1e-9
    if zeros:
        p[generator.random(shape) < 0.3] = 0.0
        p.flat[0] = 1.0
    return p / p.sum()


@given(seeds, sizes, st.booleans())
def test_entropy_and_kl_are_scipys(seed: int, size: int, zeros: bool) -> None:
    p_v, q_v = distribution(seed, size, zeros=zeros), distribution(seed + 1, size)
    assert entropy(p_v) == pytest.approx(scipy.stats.entropy(p_v), abs=1e-12)
    assert kl_divergence(p_v, q_v) == pytest.approx(scipy.stats.entropy(p_v, q_v), abs=1e-10)
    distance = scipy.spatial.distance.jensenshannon(p_v, q_v)
    assert jensen_shannon_divergence(p_v, q_v) == pytest.approx(distance**2, abs=1e-10)
    if not zeros:
        torch_kl = torch.nn.functional.kl_div(torch.tensor(np.log(q_v)), torch.tensor(p_v), reduction="sum")
        assert kl_divergence(p_v, q_v) == pytest.approx(float(torch_kl), abs=1e-10)


@given(seeds, sizes)
def test_laws_of_entropy(seed: int, size: int) -> None:
    p_v, q_v = distribution(seed, size), distribution(seed + 1, size)
    assert 0 <= entropy(p_v) <= math.log(size) + 1e-12
    assert cross_entropy(p_v, q_v) == pytest.approx(entropy(p_v) + kl_divergence(p_v, q_v))
    assert kl_divergence(p_v, q_v) >= 0 and kl_divergence(p_v, p_v) == 0
    assert jensen_shannon_divergence(p_v, q_v) == pytest.approx(jensen_shannon_divergence(q_v, p_v))
    assert jensen_shannon_divergence(p_v, q_v) <= math.log(2)
    assert entropy(np.full(size, 1 / size)) == pytest.approx(math.log(size))
    assert perplexity(entropy(np.full(size, 1 / size))) == pytest.approx(size)


def test_what_is_ruled_out_costs_infinitely_much() -> None:
    sure, fair = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert cross_entropy(fair, sure) == kl_divergence(fair, sure) == math.inf
    assert kl_divergence(sure, fair) == pytest.approx(math.log(2))
    assert str(entropy(sure)) == "0.0"
    for function in (cross_entropy, kl_divergence):
        with pytest.raises(ValueError, match="over the same outcomes"):
            function(fair, np.array([0.2, 0.3, 0.5]))


def test_near_equal_distributions_keep_their_digits() -> None:
    """KL is about e^2 / 2 per unit of p here; as a difference of two entropies of 1 it would be noise below 1e-16."""
    p_v = np.array([0.5, 0.5])
    q_v = p_v + np.array([1e-7, -1e-7])
    assert kl_divergence(p_v, q_v) == pytest.approx(-0.5 * math.log1p(-4e-14), rel=1e-2)


@given(st.floats(-5, 5), st.floats(0.2, 4), st.floats(-5, 5), st.floats(0.2, 4))
def test_gaussian_kl_is_torchs(a: float, s: float, b: float, t: float) -> None:
    one, other = (
        torch.distributions.Normal(*torch.tensor([a, s]).double()),
        torch.distributions.Normal(*torch.tensor([b, t]).double()),
    )
    a, s, b, t = (float(x) for x in (one.mean, one.stddev, other.mean, other.stddev))
    assert gaussian_kl(a, s, b, t) == pytest.approx(
        float(torch.distributions.kl_divergence(one, other)), rel=1e-9, abs=1e-12
    )


@given(seeds, st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_laws_of_mutual_information(seed: int, num_x: int, num_y: int, zeros: bool) -> None:
    joint_xy = distribution(seed, num_x, num_y, zeros=zeros)
    x, y = joint_xy.sum(axis=1), joint_xy.sum(axis=0)
    found = mutual_information(joint_xy)
    assert found == pytest.approx(entropy(x) + entropy(y) - entropy(joint_xy), abs=1e-10)
    assert found == pytest.approx(mutual_information(joint_xy.T), abs=1e-10)
    assert found == pytest.approx(entropy(y) - conditional_entropy(joint_xy), abs=1e-10)
    assert -1e-12 <= found <= min(entropy(x), entropy(y)) + 1e-10
    assert conditional_entropy(joint_xy) == pytest.approx(entropy(joint_xy) - entropy(x), abs=1e-10)
    assert mutual_information(np.outer(x, y)) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.diag(x)) == pytest.approx(entropy(x), abs=1e-12)


def test_mutual_information_is_scikit_learns_formula_on_counts() -> None:
    """scipy.stats.chi2_contingency with the log-likelihood ratio gives 2 N I, with no correction."""
    counts_xy = np.random.default_rng(0).integers(1, 40, size=(4, 5))
    statistic = scipy.stats.chi2_contingency(counts_xy, lambda_="log-likelihood", correction=False).statistic
    assert mutual_information(counts_xy / counts_xy.sum()) == pytest.approx(statistic / (2 * counts_xy.sum()))


def test_the_plug_in_bias_is_what_independent_pairs_show() -> None:
    generator, found = np.random.default_rng(0), []
    for _ in range(300):
        counts_xy = generator.multinomial(2_000, np.full(30, 1 / 30)).reshape(5, 6)
        found.append(mutual_information(counts_xy / 2_000))
    error = float(np.std(found)) / math.sqrt(300)
    assert float(np.mean(found)) == pytest.approx(plug_in_bias(5, 6, 2_000), abs=4 * error)


def test_bits_and_bits_per_byte_are_those_of_the_baselines() -> None:
    assert bits(math.log(8)) == pytest.approx(3)
    documents = [[1, 2, 3], [1, 2]]
    model = KneserNey(1, 5, 0).fit(documents)
    nats = -sum(math.log(model.distribution([])[token]) for document in documents for token in document)
    assert bits_per_byte(nats, 17) == pytest.approx(model.bits_per_byte(documents, 17))
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)


def test_perplexity_of_a_broken_model_is_infinite() -> None:
    assert perplexity(1e6) == math.inf


@given(seeds, st.integers(1, 40))
def test_code_lengths_obey_kraft_and_shannon(seed: int, size: int) -> None:
    p_v = distribution(seed, size)
    least = bits(entropy(p_v))
    huffman_v, shannon_v = huffman_code_lengths(p_v), shannon_code_lengths(p_v)
    mean = float(p_v @ huffman_v)
    assert least - 1e-12 <= mean < least + 1
    assert mean <= float(p_v @ shannon_v) + 1e-12
    assert float((0.5**shannon_v).sum()) <= 1
    assert float((0.5**huffman_v).sum()) == 1  # a complete code: no shorter word would fit


@given(seeds, st.integers(2, 6))
def test_no_prefix_code_is_shorter_than_huffmans(seed: int, size: int) -> None:
    """Every choice of lengths that Kraft's inequality allows, by brute force."""
    p_v = distribution(seed, size)
    lengths_mv = np.stack(np.meshgrid(*[np.arange(1, size)] * size), axis=-1).reshape(-1, size)
    lengths_mv = lengths_mv[(0.5**lengths_mv).sum(axis=1) <= 1]
    assert float(p_v @ huffman_code_lengths(p_v)) == pytest.approx(float((lengths_mv @ p_v).min()))


def test_a_shannon_code_needs_every_outcome_to_be_possible() -> None:
    with pytest.raises(ValueError, match="probabilities must be positive"):
        shannon_code_lengths(np.array([1.0, 0.0]))
    assert huffman_code_lengths(np.array([1.0])).tolist() == [0]


GRID = np.linspace(-8, 8, 401)


def two_peaks() -> Floats:
    return 0.65 * gaussian_on_grid(GRID, -3.0, 0.9) + 0.35 * gaussian_on_grid(GRID, 2.8, 0.7)


def test_forward_kl_is_least_at_the_moments() -> None:
    """On a grid so wide that it cuts off nothing of the Gaussian, which is 2.9 wide."""
    grid_g = np.linspace(-25, 25, 1001)
    p_g = 0.65 * gaussian_on_grid(grid_g, -3.0, 0.9) + 0.35 * gaussian_on_grid(grid_g, 2.8, 0.7)
    found = fit_forward_kl(grid_g, p_g)
    least = scipy.optimize.minimize(
        lambda x: kl_divergence(p_g, gaussian_on_grid(grid_g, x[0], math.exp(x[1]))), [0.0, 1.0], tol=1e-12
    )
    assert found == pytest.approx((least.x[0], math.exp(least.x[1])), abs=1e-5)


@pytest.mark.parametrize("start", [(-1.0, 1.0), (3.0, 1.0)])
def test_reverse_kl_is_least_where_scipy_finds_it(start: tuple[float, float]) -> None:
    p_g = two_peaks()
    found = fit_reverse_kl(GRID, p_g, start)
    least = scipy.optimize.minimize(
        lambda x: kl_divergence(gaussian_on_grid(GRID, x[0], math.exp(x[1])), p_g),
        [start[0], math.log(start[1])],
        tol=1e-12,
    )
    assert found == pytest.approx((least.x[0], math.exp(least.x[1])), abs=1e-4)
    assert abs(found[0] - (-3.0 if start[0] < 0 else 2.8)) < 0.1  # in the near peak


def test_both_fits_find_a_gaussian_that_is_one() -> None:
    p_g = gaussian_on_grid(GRID, 0.7, 1.3)
    assert fit_forward_kl(GRID, p_g) == pytest.approx((0.7, 1.3), abs=1e-6)
    assert fit_reverse_kl(GRID, p_g, (0.0, 1.0)) == pytest.approx((0.7, 1.3), abs=1e-4)
    with pytest.raises(ValueError, match="positive on the whole grid"):
        fit_reverse_kl(np.arange(2.0), np.array([1.0, 0.0]), (0.0, 1.0))
