"""Probability against scipy.stats and scipy.special; samplers by the shares that they draw."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llm_journey.foundations.linear_algebra import Floats
from llm_journey.foundations.probability import (
    bayes,
    binomial_log_probability,
    check_distribution,
    dirichlet_log_density,
    dirichlet_mean,
    dirichlet_posterior,
    fit_categorical,
    fit_gaussian,
    gaussian_log_density,
    log_softmax,
    logsumexp,
    multinomial_log_probability,
    multivariate_gaussian_log_density,
    negative_log_likelihood,
    sample_categorical,
    sample_gaussian,
    sample_gumbel_max,
    softmax,
    stationary_distribution,
)

seeds = st.integers(0, 2**32 - 1)
logits = arrays.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-800, 800))


def distribution(seed: int, size: int) -> Floats:
    return np.random.default_rng(seed).dirichlet(np.ones(size))


@given(logits, st.floats(0.05, 20))
def test_softmax_is_scipys(z_nv: Floats, temperature: float) -> None:
    np.testing.assert_allclose(logsumexp(z_nv), scipy.special.logsumexp(z_nv, axis=-1), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(
        softmax(z_nv, temperature), scipy.special.softmax(z_nv / temperature, axis=-1), rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(log_softmax(z_nv), scipy.special.log_softmax(z_nv, axis=-1), rtol=1e-13, atol=1e-12)


@given(logits, st.floats(-500, 500))
def test_softmax_does_not_see_a_shift(z_nv: Floats, shift: float) -> None:
    np.testing.assert_allclose(softmax(z_nv), softmax(z_nv + shift), atol=1e-12)
    np.testing.assert_allclose(softmax(z_nv).sum(axis=-1), 1.0, atol=1e-14)


def test_softmax_of_extremes() -> None:
    assert logsumexp(np.array([-np.inf, -np.inf])) == -np.inf
    np.testing.assert_array_equal(softmax(np.array([1e308, -1e308, 1e308])), [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(softmax(np.array([0.0, -np.inf])), [1.0, 0.0])
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        softmax(np.zeros(2), 0.0)


@pytest.mark.parametrize("bad", [[0.5, 0.6], [1.5, -0.5], [], [np.nan, 1.0], [0.3, 0.3]])
def test_what_is_no_distribution_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities must"):
        check_distribution(np.array(bad))


@given(seeds, st.floats(-50, 50), st.floats(0.01, 50))
def test_gaussian_is_scipys(seed: int, mean: float, deviation: float) -> None:
    x_n = np.random.default_rng(seed).normal(mean, 3 * deviation, size=7)
    expected = scipy.stats.norm.logpdf(x_n, mean, deviation)
    np.testing.assert_allclose(gaussian_log_density(x_n, mean, deviation), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="must be positive"):
        gaussian_log_density(x_n, mean, -deviation)


@given(seeds, st.integers(1, 5))
def test_multivariate_gaussian_is_scipys(seed: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    root_dd = generator.normal(size=(width, width)) + 2 * np.eye(width)
    covariance_dd = root_dd @ root_dd.T + 0.1 * np.eye(width)
    mean_d, x_nd = generator.normal(size=width), generator.normal(size=(6, width))
    expected = np.atleast_1d(scipy.stats.multivariate_normal.logpdf(x_nd, mean_d, covariance_dd))
    found = multivariate_gaussian_log_density(x_nd, mean_d, covariance_dd)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    with pytest.raises(np.linalg.LinAlgError):
        multivariate_gaussian_log_density(x_nd, mean_d, -covariance_dd)


@given(st.integers(1, 40), st.floats(0, 1))
def test_binomial_is_scipys(trials: int, probability: float) -> None:
    successes = np.arange(trials + 1)
    expected = scipy.stats.binom.logpmf(successes, trials, probability)
    np.testing.assert_allclose(binomial_log_probability(successes, trials, probability), expected, rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(2, 6), st.integers(0, 30))
def test_multinomial_is_scipys(seed: int, size: int, total: int) -> None:
    p_v = distribution(seed, size)
    counts_nv = np.random.default_rng(seed).multinomial(total, np.ones(size) / size, size=5)
    expected = scipy.stats.multinomial.logpmf(counts_nv, total, p_v)
    np.testing.assert_allclose(multinomial_log_probability(counts_nv, p_v), expected, rtol=1e-9, atol=1e-9)


def test_impossible_and_certain_outcomes() -> None:
    p_v = np.array([1.0, 0.0])
    np.testing.assert_array_equal(multinomial_log_probability(np.array([[3, 0], [2, 1]]), p_v), [0.0, -np.inf])
    with pytest.raises(ValueError, match="counts must not be negative"):
        multinomial_log_probability(np.array([[-1, 1]]), p_v)


@given(seeds, st.integers(2, 6))
def test_dirichlet_is_scipys(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    alpha_v, x_nv = generator.uniform(0.2, 9, size), generator.dirichlet(np.ones(size), 4)
    expected = [scipy.stats.dirichlet.logpdf(x_v, alpha_v) for x_v in x_nv]
    np.testing.assert_allclose(dirichlet_log_density(x_nv, alpha_v), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dirichlet_mean(alpha_v), scipy.stats.dirichlet.mean(alpha_v), rtol=1e-12)
    if size == 2:
        expected = scipy.stats.beta.logpdf(x_nv[:, 0], *alpha_v)
        np.testing.assert_allclose(dirichlet_log_density(x_nv, alpha_v), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="must be positive"):
        dirichlet_log_density(x_nv, -alpha_v)


@pytest.mark.parametrize("sampler", ["inverse", "gumbel"])
@pytest.mark.parametrize("seed", range(4))
def test_draws_have_the_shares_of_the_distribution(sampler: str, seed: int) -> None:
    """Chi-squared at a thousandth of a thousandth: a sampler that is off by a per cent fails at 200,000 draws."""
    p_v = np.append(distribution(seed, 7) * 0.9 + 0.1 / 7, 0.0)
    generator = np.random.default_rng(seed)
    with np.errstate(divide="ignore"):
        draw: Callable[[], np.ndarray] = {
            "inverse": lambda: sample_categorical(p_v, 200_000, generator),
            "gumbel": lambda: sample_gumbel_max(np.log(p_v) + 3, 200_000, generator),
        }[sampler]
        counts_v = np.bincount(draw(), minlength=8)
    assert counts_v[-1] == 0
    assert scipy.stats.chisquare(counts_v[:-1], p_v[:-1] * 200_000).pvalue > 1e-6
    off_v = p_v.copy()
    off_v[:2] += [0.01, -0.01]
    assert scipy.stats.chisquare(counts_v[:-1], off_v[:-1] * 200_000).pvalue < 1e-6


class _Fixed:
    """A generator of one number, over and over."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, count: int) -> Floats:
        return np.full(count, self.value)


def test_an_inverse_draw_at_the_ends_never_lands_on_what_cannot_happen() -> None:
    tenths_v = np.full(10, 0.1)  # sums to 0.9999999999999999
    highest: Any = _Fixed(np.nextafter(1.0, 0.0))
    assert sample_categorical(tenths_v, 3, highest).tolist() == [9, 9, 9]
    lowest: Any = _Fixed(0.0)
    assert sample_categorical(np.array([0.0, 0.0, 1.0]), 3, lowest).tolist() == [2, 2, 2]


def test_gaussian_draws_follow_the_gaussian() -> None:
    draws_n = sample_gaussian(50_000, -2.0, 3.0, np.random.default_rng(0))
    assert scipy.stats.kstest(draws_n, scipy.stats.norm(-2.0, 3.0).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(draws_n, scipy.stats.norm(-2.0, 3.15).cdf).pvalue < 1e-4


@given(seeds, st.integers(2, 6), st.floats(-0.2, 0.2))
def test_no_other_parameters_are_likelier(seed: int, size: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    counts_v = generator.integers(1, 30, size)
    best_v = fit_categorical(counts_v)
    other_v = softmax(np.log(best_v) + shift * generator.normal(size=size))
    likelihoods = [multinomial_log_probability(counts_v[None], p_v)[0] for p_v in (best_v, other_v)]
    assert likelihoods[0] >= likelihoods[1] - 1e-9

    x_n = generator.normal(2, 3, size=20)
    mean_1, covariance_11 = fit_gaussian(x_n[:, None])
    mean, deviation = float(mean_1[0]), math.sqrt(float(covariance_11[0, 0]))
    assert (mean, deviation) == pytest.approx(scipy.stats.norm.fit(x_n))
    least = negative_log_likelihood(gaussian_log_density(x_n, mean, deviation))
    assert least <= negative_log_likelihood(gaussian_log_density(x_n, mean + shift, deviation)) + 1e-12
    assert least <= negative_log_likelihood(gaussian_log_density(x_n, mean, deviation * math.exp(shift))) + 1e-12


def test_fits_are_scipys_and_need_observations() -> None:
    x_nd = np.random.default_rng(0).normal(size=(30, 3)) @ np.diag([1, 2, 3])
    expected_mean, expected_covariance = scipy.stats.multivariate_normal.fit(x_nd)
    mean_d, covariance_dd = fit_gaussian(x_nd)
    np.testing.assert_allclose(mean_d, expected_mean, atol=1e-12)
    np.testing.assert_allclose(covariance_dd, expected_covariance, atol=1e-12)
    for counts in ([0, 0], [3, -1]):
        with pytest.raises(ValueError, match="needs counts"):
            fit_categorical(np.array(counts))


def test_the_training_loss_is_the_negative_log_likelihood() -> None:
    z_nv, targets_n = np.random.default_rng(0).normal(size=(9, 5)), np.arange(9) % 5
    expected = torch.nn.functional.cross_entropy(torch.tensor(z_nv), torch.tensor(targets_n))
    assert negative_log_likelihood(log_softmax(z_nv)[np.arange(9), targets_n]) == pytest.approx(float(expected))


def test_bayes_by_hand() -> None:
    """A test with 99% sensitivity and 95% specificity for what one in a thousand has: a positive means 1.9%."""
    posterior = bayes(np.array([0.001, 0.999]), np.array([0.99, 0.05]))
    assert posterior[0] == pytest.approx(0.001 * 0.99 / (0.001 * 0.99 + 0.999 * 0.05))
    assert posterior[0] == pytest.approx(0.0194, abs=1e-4)
    for likelihood in ([0.0, 0.0], [1.0, -0.1]):
        with pytest.raises(ValueError, match="some hypothesis must allow"):
            bayes(np.array([0.5, 0.5]), np.array(likelihood))


@given(seeds, st.integers(2, 6))
def test_evidence_may_come_at_once_or_in_turn(seed: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    prior_h, first_h, second_h = distribution(seed, size), generator.random(size) + 0.01, generator.random(size) + 0.01
    in_turn = bayes(bayes(prior_h, first_h), second_h)
    np.testing.assert_allclose(in_turn, bayes(prior_h, first_h * second_h), atol=1e-13)


def test_the_dirichlet_posterior_is_bayes_rule() -> None:
    """On a grid over the share of one outcome: prior density times likelihood, normalised, by brute force."""
    grid = np.linspace(0.0005, 0.9995, 1000)
    pairs_n2, alpha_2, counts_2 = np.stack([grid, 1 - grid], axis=1), np.array([2.0, 3.5]), np.array([4, 1])
    prior = np.exp(dirichlet_log_density(pairs_n2, alpha_2))
    likelihood = np.exp(counts_2 @ np.log(pairs_n2).T)
    expected = bayes(prior / prior.sum(), likelihood)
    posterior = np.exp(dirichlet_log_density(pairs_n2, dirichlet_posterior(alpha_2, counts_2)))
    np.testing.assert_allclose(posterior / posterior.sum(), expected, rtol=1e-9)
    np.testing.assert_allclose(dirichlet_mean(dirichlet_posterior(np.ones(2), counts_2)), [5 / 7, 2 / 7])


@given(seeds, st.integers(2, 6))
def test_the_stationary_distribution_is_the_first_left_eigenvector(seed: int, size: int) -> None:
    transition_vv = np.random.default_rng(seed).dirichlet(np.ones(size), size)
    found_v = stationary_distribution(transition_vv)
    np.testing.assert_allclose(found_v @ transition_vv, found_v, atol=1e-12)
    values, left_vv, _ = scipy.linalg.eig(transition_vv, left=True)
    first_v = np.real(left_vv[:, np.argmax(np.real(values))])
    np.testing.assert_allclose(found_v, first_v / first_v.sum(), atol=1e-9)


def test_a_chain_that_falls_apart_has_no_single_stationary_distribution() -> None:
    with pytest.raises(ValueError, match="falls apart"):
        stationary_distribution(np.eye(3))
