"""Pictures of probability: temperature, the scale of attention's scores, sampling, maximum likelihood, Bayes."""

import math
from typing import Any

import numpy as np

from llm_journey.foundations.information import entropy
from llm_journey.foundations.pictures.canvas import (
    BLUE,
    FAINT,
    GOLD,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Picture,
    dress,
    legend,
    note,
)
from llm_journey.foundations.probability import (
    dirichlet_log_density,
    dirichlet_mean,
    dirichlet_posterior,
    fit_gaussian,
    gaussian_log_density,
    negative_log_likelihood,
    sample_categorical,
    sample_gaussian,
    sample_gumbel_max,
    softmax,
)

_WORDS = ("the", "a", "its", "this", "every", "no", "two", "red")
_LOGITS = np.array([3.1, 2.6, 1.5, 1.1, 0.3, -0.2, -1.2, -2.4])


def _draw_temperature(figure: Any) -> None:
    temperatures = (0.3, 1.0, 3.0)
    for axis, temperature, color in zip(
        figure.subplots(1, 3, sharey=True), temperatures, (BLUE, GREEN, ORANGE), strict=True
    ):
        p_v = softmax(_LOGITS, temperature)
        dress(axis, f"temperature {temperature:g}: {math.exp(entropy(p_v)):.1f} words in effect")
        bars = axis.bar(_WORDS, p_v, color=color, width=0.72)
        axis.bar_label(bars, [f"{p:.3f}" if p >= 0.0005 else "≈ 0" for p in p_v], fontsize=7.5, color=FAINT, padding=2)
        axis.grid(axis="x", visible=False)
        axis.set_ylim(0, 1)
        axis.tick_params(axis="x", labelsize=8)


def _draw_attention_scale(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    generator = np.random.default_rng(0)
    widths = 2 ** np.arange(1, 11)
    dress(left, "Deviation of q·k, channels of variance 1", "head width E", "standard deviation")
    dress(right, "Attention over 64 keys: how many it spreads over", "head width E", "exp(entropy), keys in effect")
    deviations: dict[str, list[float]] = {"raw": [], "scaled": []}
    spreads: dict[str, list[float]] = {"raw": [], "scaled": []}
    for width in widths:
        queries_ne, keys_nse = generator.normal(size=(100, width)), generator.normal(size=(100, 64, width))
        scores_ns = (keys_nse @ queries_ne[:, :, None])[:, :, 0]
        for name, scale in (("raw", 1.0), ("scaled", math.sqrt(width))):
            scaled_ns = scores_ns / scale
            deviations[name].append(float(scaled_ns.std()))
            spreads[name].append(float(np.mean([math.exp(entropy(p_s)) for p_s in softmax(scaled_ns)])))
    left.loglog(widths, np.sqrt(widths), color=FAINT, linestyle="--", linewidth=1, label="√E")
    for name, color, label in (("raw", ORANGE, "q·k"), ("scaled", BLUE, "q·k / √E")):
        left.loglog(widths, deviations[name], "o", color=color, markersize=5, label=label)
        right.semilogx(widths, spreads[name], "o-", color=color, markersize=4, label=label)
    right.set_ylim(0, 66)
    for axis in (left, right):
        axis.set_xticks(widths[1::2], [str(width) for width in widths[1::2]])
        axis.minorticks_off()
    legend(left, "upper left")
    legend(right, "upper right")


def _draw_sampling(figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.15, 1.05])
    p_v = softmax(_LOGITS[:5])
    cumulative_v = np.cumsum(p_v)
    dress(left, "Inverse of the distribution function", "", "u, uniform in [0, 1)")
    bottoms_v = cumulative_v - p_v
    left.bar(_WORDS[:5], p_v, bottom=bottoms_v, color=[BLUE, GREEN, ORANGE, PINK, GOLD], width=0.8)
    left.axhline(0.78, color=FAINT, linewidth=1.2, linestyle="--")
    drawn = int(np.searchsorted(cumulative_v, 0.78, side="right"))
    note(left, f"u = 0.78 draws “{_WORDS[drawn]}”", 1.7, 0.71, color=FAINT)

    dress(middle, "20,000 draws", "", "share")
    generator = np.random.default_rng(1)
    samplers = (
        ("inverse", BLUE, sample_categorical(p_v, 20_000, generator)),
        ("Gumbel-max", ORANGE, sample_gumbel_max(_LOGITS[:5], 20_000, generator)),
    )
    middle.bar(range(5), p_v, color="#e4e8ed", width=0.86, label="softmax")
    for offset, (name, color, draws_n) in zip((-0.2, 0.2), samplers, strict=True):
        shares_v = np.bincount(draws_n, minlength=5) / len(draws_n)
        middle.bar(np.arange(5) + offset, shares_v, color=color, width=0.3, label=name)
    middle.set_xticks(range(5), _WORDS[:5])
    legend(middle)

    dress(right, "Error of the shares", "number of draws N", "mean absolute error")
    counts = 2 ** np.arange(4, 17)
    for sampler, color, name in ((sample_categorical, BLUE, "inverse"), (sample_gumbel_max, ORANGE, "Gumbel-max")):
        given_v = p_v if sampler is sample_categorical else _LOGITS[:5]
        errors = []
        for count in counts:
            trials = [np.bincount(sampler(given_v, int(count), generator), minlength=5) / count for _ in range(12)]
            errors.append(float(np.abs(np.array(trials) - p_v).mean()))
        right.loglog(counts, errors, "o", color=color, markersize=4, label=name)
    expected = np.sqrt(2 / math.pi) * np.sqrt(p_v * (1 - p_v)).mean() / np.sqrt(counts)
    right.loglog(counts, expected, color=FAINT, linestyle="--", linewidth=1, label="central limit, ∝ 1/√N")
    legend(right)


def _draw_maximum_likelihood(figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    generator = np.random.default_rng(4)
    x_n = sample_gaussian(40, 2.0, 1.5, generator)
    mean_1, covariance_11 = fit_gaussian(x_n[:, None])
    mean, deviation = float(mean_1[0]), math.sqrt(float(covariance_11[0, 0]))
    grid = np.linspace(-3, 7, 400)
    dress(left, "40 observations and three Gaussians", "x", "density")
    left.plot(x_n, np.full(40, 0.008), "|", color=FAINT, markersize=11)
    for m, s, color in ((mean, deviation, BLUE), (0.5, deviation, ORANGE), (mean, 3.0, PINK)):
        loss = negative_log_likelihood(gaussian_log_density(x_n, m, s))
        label = f"N({m:.2f}, {s:.2f}²): {loss:.2f} nats each"
        left.plot(grid, np.exp(gaussian_log_density(grid, m, s)), color=color, linewidth=1.8, label=label)
    left.set_ylim(0, 0.42)
    legend(left, "upper left")

    means, deviations = np.linspace(0.2, 4.2, 81), np.linspace(0.7, 3.4, 81)
    losses = [[negative_log_likelihood(gaussian_log_density(x_n, m, s)) for m in means] for s in deviations]
    dress(right, "Loss of every Gaussian, nats an observation", "mean", "standard deviation")
    least = negative_log_likelihood(gaussian_log_density(x_n, mean, deviation))
    levels = [1.92, 1.95, 2.0, 2.1, 2.3, 2.7, 3.5]
    lines = right.contour(means, deviations, np.array(losses), levels=levels, colors=SKY, linewidths=1.1)
    right.clabel(lines, fmt="%.2f", fontsize=8, colors=FAINT)
    right.plot(
        mean, deviation, "*", color=BLUE, markersize=13, label=f"least: {least:.2f}, at mean(x) and √mean((x − m)²)"
    )
    right.plot(2.0, 1.5, "x", color=FAINT, markersize=8, markeredgewidth=2, label="what they were drawn from")
    legend(right, "upper right")


def _draw_bayes(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    truth, generator = 0.7, np.random.default_rng(0)
    draws_n = sample_categorical(np.array([1 - truth, truth]), 300, generator)
    grid = np.linspace(0.002, 0.998, 500)
    dress(left, "Belief about a share, after N draws", "share", "density of the belief")
    for seen, color in ((0, FAINT), (3, ORANGE), (30, GREEN), (300, BLUE)):
        counts = np.bincount(draws_n[:seen], minlength=2)[::-1]
        alpha_2 = dirichlet_posterior(np.array([2.0, 2.0]), counts)
        density = np.exp(dirichlet_log_density(np.stack([grid, 1 - grid], axis=1), alpha_2))
        label = f"N = {seen}: mean {dirichlet_mean(alpha_2)[0]:.2f}" + (" (the prior)" if seen == 0 else "")
        left.plot(grid, density, color=color, linewidth=1.8, label=label)
        left.fill_between(grid, density, color=color, alpha=0.08)
    left.axvline(truth, color=FAINT, linewidth=1, linestyle="--")
    note(left, "the true share", truth + 0.012, 16, color=FAINT)
    left.set_ylim(0, 17)
    legend(left, "upper left")

    dress(right, "Loss on unseen words, vocabulary of 500", "words seen N", "cross-entropy, nats a word")
    p_v = 1 / np.arange(1, 501)
    p_v /= p_v.sum()
    sizes = np.unique(np.logspace(1, 5, 17).astype(int))
    stream_n = sample_categorical(p_v, int(sizes[-1]), generator)
    for prior, color in ((1e-3, SKY), (0.1, GREEN), (1.0, BLUE), (20.0, ORANGE)):
        losses = []
        for size in sizes:
            counts_v = np.bincount(stream_n[:size], minlength=500)
            smoothed_v = dirichlet_mean(dirichlet_posterior(np.full(500, prior), counts_v))
            losses.append(-float(p_v @ np.log(smoothed_v)))
        right.semilogx(
            sizes, losses, "o-", color=color, markersize=3, linewidth=1.3, label=f"{prior:g} added to each count"
        )
    right.axhline(entropy(p_v), color=FAINT, linestyle="--", linewidth=1)
    note(right, "entropy of the words: no model does better", 11, entropy(p_v) - 0.19, color=FAINT)
    right.set_ylim(entropy(p_v) - 0.35, 8.6)
    legend(right, "upper right")


PICTURES = (
    Picture(
        name="temperature",
        title="Softmax and its temperature",
        caption=(
            "The same eight logits at three temperatures. Dividing logits by t < 1 sharpens the distribution towards "
            "the largest, by t > 1 flattens it towards uniform; the number of words in effect is exp(entropy)."
        ),
        used_in=("generation/sampling.py", "adjust"),
        draw=_draw_temperature,
        height=3.2,
    ),
    Picture(
        name="attention_scale",
        title="Why attention divides by √E",
        caption=(
            "A product of two independent vectors of E channels with variance 1 is a sum of E terms of variance 1: "
            "its deviation grows as √E. Unscaled, softmax over wide heads picks a single key and passes on hardly any "
            "gradient; divided by √E, it spreads alike at every width (Vaswani et al. 2017, section 3.2.1)."
        ),
        used_in=("model/attention.py", "written_out_attention"),
        draw=_draw_attention_scale,
    ),
    Picture(
        name="sampling",
        title="Drawing a token",
        caption=(
            "Two ways to draw from softmax(z): find where a uniform number falls among the summed probabilities, or "
            "add Gumbel noise to the logits and take the largest. Both give the same distribution; the error of the "
            "shares falls as 1/√N."
        ),
        used_in=("generation/sampling.py", "sample"),
        draw=_draw_sampling,
        height=3.3,
    ),
    Picture(
        name="maximum_likelihood",
        title="Maximum likelihood: the loss of training",
        caption=(
            "Of all Gaussians the one with the observations' own mean and deviation gives them the least negative log "
            "likelihood, lower even than the one that they were drawn from: fitting always flatters on its own data. "
            "Next-token training minimises the same quantity, with a softmax in place of the Gaussian."
        ),
        used_in=("model/loss.py", "next_token_loss"),
        draw=_draw_maximum_likelihood,
    ),
    Picture(
        name="bayes",
        title="Bayes: belief before, evidence, belief after",
        caption=(
            "A Dirichlet prior counts like observations made before; its posterior mean adds them to the real counts. "
            "Smoothing an n-gram model is this: without it, words not seen yet would cost an infinite loss; too much "
            "drowns what was seen. Kneser-Ney discounts counts instead, a hierarchical prior's mean (Teh 2006)."
        ),
        used_in=("evaluation/ngram.py", "KneserNey"),
        draw=_draw_bayes,
    ),
)
