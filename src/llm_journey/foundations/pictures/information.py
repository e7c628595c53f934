"""Pictures of information theory: entropy and codes, cross-entropy and perplexity, KL both ways, mutual information."""

import math
from typing import Any

import numpy as np

from llm_journey.foundations.information import (
    bits,
    cross_entropy,
    entropy,
    fit_forward_kl,
    fit_reverse_kl,
    gaussian_on_grid,
    huffman_code_lengths,
    kl_divergence,
    mutual_information,
    perplexity,
    plug_in_bias,
    shannon_code_lengths,
)
from llm_journey.foundations.linear_algebra import Floats
from llm_journey.foundations.pictures.canvas import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PINK,
    Picture,
    dress,
    legend,
    note,
)
from llm_journey.foundations.probability import Ints, sample_categorical, stationary_distribution

# Shares of the letters in English text, in per cent (Lewand 2000, "Cryptological Mathematics").
_LETTERS = {
    "e": 12.70, "t": 9.06, "a": 8.17, "o": 7.51, "i": 6.97, "n": 6.75, "s": 6.33, "h": 6.09, "r": 5.99, "d": 4.25,
    "l": 4.03, "c": 2.78, "u": 2.76, "m": 2.41, "w": 2.36, "f": 2.23, "g": 2.02, "y": 1.97, "p": 1.93, "b": 1.29,
    "v": 0.98, "k": 0.77, "j": 0.15, "x": 0.15, "q": 0.10, "z": 0.07,
}  # fmt: skip


def _draw_entropy(figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
    shares = np.linspace(1e-6, 1 - 1e-6, 400)
    dress(left, "A coin: entropy and cross-entropy", "probability p of heads", "bits a toss")
    left.plot(shares, [bits(entropy(np.array([p, 1 - p]))) for p in shares], color=BLUE, linewidth=2.2, label="H(p)")
    for guess, color in ((0.5, GREEN), (0.2, ORANGE)):
        lines = [bits(cross_entropy(np.array([p, 1 - p]), np.array([guess, 1 - guess]))) for p in shares]
        left.plot(shares, lines, color=color, linewidth=1.4, linestyle="--", label=f"H(p, q), q = {guess:g}")
        left.plot(guess, bits(entropy(np.array([guess, 1 - guess]))), "o", color=color, markersize=5)
    left.set_ylim(0, 2.4)
    legend(left, "upper left")

    p_v = np.array(list(_LETTERS.values()))
    p_v /= p_v.sum()
    huffman_v, shannon_v = huffman_code_lengths(p_v), shannon_code_lengths(p_v)
    dress(right, "Letters of English: surprise and length of their codes", "letter, most frequent first", "bits")
    right.bar(
        list(_LETTERS),
        -np.log2(p_v),
        color="#dfe5ec",
        width=0.8,
        label=f"−log₂ p; mean {bits(entropy(p_v)):.3f}, the entropy",
    )
    for lengths_v, marker, color, name in ((huffman_v, "_", BLUE, "Huffman"), (shannon_v, ".", ORANGE, "Shannon")):
        label = f"{name} code; mean {float(p_v @ lengths_v):.3f}"
        right.plot(range(26), lengths_v, marker, color=color, markersize=11, markeredgewidth=2, label=label)
    right.grid(axis="x", visible=False)
    legend(right, "upper left")


def _draw_cross_entropy(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    logits = np.linspace(-4, 12, 400)
    dress(left, "Loss of a token against 99 others at logit 0", "logit of the right token", "nats")
    probability = 1 / (1 + 99 * np.exp(-logits))
    wrong = (1 - probability) / 99
    for smoothing, color in ((0.0, BLUE), (0.1, ORANGE)):
        losses = -(1 - smoothing) * np.log(probability)
        losses = losses - smoothing / 100 * (np.log(probability) + 99 * np.log(wrong))
        least = int(np.argmin(losses))
        left.plot(logits, losses, color=color, linewidth=2, label=f"label smoothing {smoothing:g}")
        if smoothing:
            note(left, f"least at p = {probability[least]:.3f}", logits[least] - 1.2, losses[least] + 0.5, color=color)
            left.plot(logits[least], losses[least], "o", color=color)
    left.plot(0, math.log(100), "o", color=FAINT)
    note(left, "all alike: ln 100 = 4.61", 0.4, math.log(100) + 0.12, color=FAINT)
    left.set_ylim(0, 9)
    legend(left, "upper right")

    dress(right, "One loss, three ways to say it", "loss, nats a token", "perplexity: tokens in effect")
    losses = np.linspace(0.02, math.log(8192), 300)
    right.semilogy(losses, [perplexity(float(loss)) for loss in losses], color=BLUE, linewidth=2)
    marks = ((8192, "uniform over 8,192", "right"), (64, "a die of 64 sides", "left"), (2, "a coin", "left"))
    for tokens, label, side in marks:
        loss = math.log(tokens)
        right.plot(loss, perplexity(loss), "o", color=ORANGE)
        words = f"{label}: {loss:.2f} nats, {bits(loss):.0f} bit{'s' if tokens > 2 else ''}"
        x, y = (loss + 0.25, 0.7 * tokens) if side == "left" else (loss - 0.2, tokens)
        note(right, words, x, y, ha=side)
    right.set(xlim=(-0.1, 9.6), ylim=(0.8, 20_000))


def _draw_kl(figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    grid_g = np.linspace(-8, 8, 801)
    p_g = 0.65 * gaussian_on_grid(grid_g, -3.0, 0.9) + 0.35 * gaussian_on_grid(grid_g, 2.8, 0.7)
    step = float(grid_g[1] - grid_g[0])
    dress(left, "Two peaks, and the best Gaussian by either measure", "x", "density")
    left.fill_between(grid_g, p_g / step, color="#dfe5ec", label="p, the data")
    fits = (
        ("forward", BLUE, fit_forward_kl(grid_g, p_g)),
        ("reverse, from −1", ORANGE, fit_reverse_kl(grid_g, p_g, (-1.0, 1.0))),
        ("reverse, from +3", PINK, fit_reverse_kl(grid_g, p_g, (3.0, 1.0))),
    )
    for name, color, (mean, deviation) in fits:
        q_g = gaussian_on_grid(grid_g, mean, deviation)
        values = f"KL(p‖q) {_kl_words(p_g, q_g)}, KL(q‖p) {_kl_words(q_g, p_g)}"
        left.plot(grid_g, q_g / step, color=color, linewidth=2, label=f"{name}: {values}")
    left.set_ylim(0, 0.82)
    legend(left, "upper right")

    dress(right, "KL(p‖q) and KL(q‖p), p as on the left, q = N(m, 1)", "mean m of q", "nats")
    means = np.linspace(-5, 5.5, 120)
    gaussians = [gaussian_on_grid(grid_g, float(mean), 1.0) for mean in means]
    right.plot(
        means,
        [kl_divergence(p_g, q_g) for q_g in gaussians],
        color=BLUE,
        linewidth=2,
        label="forward: one minimum, between",
    )
    right.plot(
        means,
        [kl_divergence(q_g, p_g) for q_g in gaussians],
        color=ORANGE,
        linewidth=2,
        label="reverse: one in each peak",
    )
    right.set_ylim(0, 13)
    legend(right, "upper center")


def _kl_words(p_g: Floats, q_g: Floats) -> str:
    return f"{kl_divergence(p_g, q_g):.2f}"


def _draw_mutual_information(figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    # Eight states that mostly go on in a circle: what a text would be if only its last letter mattered.
    size = 8
    transition_vv = 0.04 / size * np.ones((size, size)) + 0.68 * np.roll(np.eye(size), 1, axis=1) + 0.28 * np.eye(size)
    share_v = stationary_distribution(transition_vv)
    dress(left, "p(x now, y next) of a chain with 8 states", "y", "x")
    left.grid(False)
    joint_xy = share_v[:, None] * transition_vv
    left.imshow(joint_xy, cmap="Blues")
    left.set(xticks=range(size), yticks=range(size))
    note(left, f"I = {mutual_information(joint_xy):.2f} of H = {entropy(share_v):.2f} nats", 2.2, 0.1)

    dress(right, "What a state tells of the one k steps later", "distance k", "mutual information, nats")
    distances = np.arange(1, 61)
    exact = [mutual_information(share_v[:, None] * np.linalg.matrix_power(transition_vv, int(k))) for k in distances]
    right.semilogy(distances, exact, color=BLUE, linewidth=2, label="exact")
    stream_n = _walk(transition_vv, 20_000, np.random.default_rng(0))
    for count, color in ((1_000, ORANGE), (20_000, GREEN)):
        found = []
        for k in distances:
            pairs_n = stream_n[: count - int(k)] * size + stream_n[int(k) : count]
            counts_xy = np.bincount(pairs_n, minlength=size * size).reshape(size, size)
            found.append(mutual_information(counts_xy / counts_xy.sum()))
        right.semilogy(distances, found, "o", color=color, markersize=3.2, label=f"estimated from {count:,} states")
        right.axhline(plug_in_bias(size, size, count), color=color, linewidth=1, linestyle="--")
    note(right, "dashed: the bias (X − 1)(Y − 1) / 2N", 29, plug_in_bias(size, size, 1_000) * 0.55, color=FAINT)
    right.set_ylim(3e-4, 3)
    legend(right, "upper right")


def _walk(transition_vv: Floats, length: int, generator: np.random.Generator) -> Ints:
    """A walk of the chain from state 0; state after state, since each depends on the one before."""
    draws = [sample_categorical(row_v, length, generator) for row_v in transition_vv]
    state, states = 0, []
    for step in range(length):
        state = int(draws[state][step])
        states.append(state)
    return np.array(states)


PICTURES = (
    Picture(
        name="entropy",
        title="Entropy: the shortest description",
        caption=(
            "Cross-entropy is the tangent of entropy where the guess q is right, and above it elsewhere. A code that "
            "gives likely letters short words comes near to the entropy (Huffman: the shortest whole-bit code). A "
            "language model is judged by the same measure: bits a byte of text that it has not seen."
        ),
        used_in=("training/validate.py", "validate"),
        draw=_draw_entropy,
    ),
    Picture(
        name="cross_entropy",
        title="Cross-entropy: what a token costs",
        caption=(
            "A model that knows nothing starts at ln V. Plain cross-entropy wants the right logit ever larger; with "
            "label smoothing the loss is least at a finite one. Loss in nats, bits and perplexity are one number: "
            "perplexity k is the loss of a fair choice among k tokens."
        ),
        used_in=("model/loss.py", "linear_cross_entropy"),
        draw=_draw_cross_entropy,
    ),
    Picture(
        name="kl",
        title="KL both ways: cover everything, or settle in one peak",
        caption=(
            "Forward KL(p‖q) is large where the data lie and the model gives them little: the best Gaussian covers "
            "both peaks. Reverse KL(q‖p) is large where the model lies and the data do not: it keeps to one peak, "
            "which one depends on the start. Next-token training minimises the forward one."
        ),
        used_in=("model/loss.py", "next_token_loss"),
        draw=_draw_kl,
    ),
    Picture(
        name="mutual_information",
        title="Mutual information: what the past tells of the next token",
        caption=(
            "In a Markov chain the past is forgotten exponentially fast. Estimates from counts level off near their "
            "bias (dashed: for independent pairs; neighbours in a chain are not), which is why counting n-grams fails "
            "at long distances: there is never enough text. Attention looks up any earlier position directly, so "
            "distance alone costs it nothing."
        ),
        used_in=("model/attention.py", "Attention"),
        draw=_draw_mutual_information,
    ),
)
