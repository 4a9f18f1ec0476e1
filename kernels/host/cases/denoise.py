"""denoise_step against f64: rows that differ in guidance, coefficients and what they write."""

import struct

import numpy as np

from harness import close, dtype, launch, store, values
from variants import planned

GUIDED, DENOISED, NOISE, SLOTS = 0, 1, 2, 3


def word(number):
    return struct.unpack("<I", struct.pack("<f", number))[0]


def single(number):
    """As the kernel is told it."""
    return float(np.float32(number))


class Row:
    """p and n: predictions; writes: lists of (source, factor)."""

    def __init__(self, p, n, scale, rescale, sample, draw, estimate, clamp, writes):
        self.p, self.n, self.scale, self.rescale = p, n, single(scale), single(rescale)
        self.sample, self.draw, self.clamp = sample, draw, clamp
        self.estimate = tuple(single(factor) for factor in estimate)
        self.writes = [[(source, single(factor)) for source, factor in terms] for terms in writes]


def table(rows):
    heads, described, written = [], [], 0
    for row in rows:
        n = row.p if row.n is None else row.n
        clamp = -1.0 if row.clamp is None else row.clamp
        heads += [row.p, n, word(row.scale), word(row.rescale), row.sample, row.draw]
        heads += [word(row.estimate[0]), word(row.estimate[1]), word(clamp), written, len(row.writes)]
        heads.append(12 * len(rows) + len(described))
        for terms in row.writes:
            described.append(len(terms))
            for source, factor in terms:
                described += [source, word(factor)]
        written += len(row.writes)
    return np.array(heads + described, np.uint32), written


def step(call, plans, rows, predictions, state, noise):
    """after and counts"""
    deviations, last, _ = plans
    elements, blocks = last["params"]
    words, written = table(rows)
    ratios = np.zeros(len(rows), np.float32)
    if any(row.rescale != 0.0 for row in rows):
        (ratios,) = launch(call, deviations, [predictions, words], [((len(rows),), np.float32)])
    return launch(
        call, last, [predictions, words, state, noise, ratios],
        [((written, elements), np.float32), ((len(rows), blocks), np.float32)],
    )


def exact(row, predictions, state, noise):
    """What a row writes, in f64, and the size of what is added up."""
    p = predictions[row.p]
    guided, size = p, np.abs(p)
    if row.n is not None:
        n = predictions[row.n]
        guided = n + row.scale * (p - n)
        size = np.abs(n) + abs(row.scale) * (np.abs(p) + np.abs(n))
        if row.rescale:
            factor = row.rescale * p.std() / guided.std() + 1 - row.rescale
            # A deviation carries the rounding of what it is a deviation of.
            guided, size = guided * factor, size * factor + np.abs(guided * factor)
            size = size * (1 + size.mean() / guided.std())
    sample = state[row.sample]
    a, b = row.estimate
    denoised, denoised_size = a * sample + b * guided, abs(a) * np.abs(sample) + abs(b) * size
    if row.clamp is not None:
        denoised = np.clip(denoised, -row.clamp, row.clamp)
    after, sizes = [], []
    for terms in row.writes:
        value, total = np.zeros_like(p), np.zeros_like(p)
        for source, factor in terms:
            if source == GUIDED:
                term, extent = guided, size
            elif source == DENOISED:
                term, extent = denoised, denoised_size
            else:
                term = noise[row.draw] if source == NOISE else state[source - SLOTS]
                extent = np.abs(term)
            value, total = value + factor * term, total + abs(factor) * extent
        after.append(value)
        sizes.append(total)
    return np.array(after), np.array(sizes)


# Coefficients of the size that samplers have: Euler, DPM-Solver++ 2M, an ancestral one, one that keeps values, none.
def batch():
    return [
        Row(0, 1, 7.5, 0.0, 0, 0, (1.0, -14.6), None, [[(SLOTS, 0.93), (DENOISED, 0.07)], [(DENOISED, 1.0)]]),
        Row(2, None, 0.0, 0.0, 1, 0, (0.4, 0.9), 1.0,
            [[(SLOTS + 1, 0.5), (DENOISED, 0.7), (SLOTS + 2, -0.2)], [(DENOISED, 1.0)], [(SLOTS + 2, 1.0)]]),
        Row(4, 3, 5.0, 0.7, 3, 1, (1.01, -0.2), None,
            [[(SLOTS + 3, 0.9), (GUIDED, -0.3), (NOISE, 0.4)], [(DENOISED, 1.0)], [(GUIDED, 1.0)]]),
        Row(5, 6, 3.0, 0.2, 4, 0, (0.0, 1.0), 2.5, [[(DENOISED, 1.0)], [(DENOISED, 1.0)], []]),
    ]


PREDICTIONS, STATE, DRAWS = 7, 5, 2


def inputs(elem, elements, kind):
    rng = np.random.default_rng(elements)
    predictions = rng.normal(0, 1, (PREDICTIONS, elements))
    state, noise = rng.normal(0, 3, (STATE, elements)), rng.normal(0, 1, (DRAWS, elements))
    if kind == "outlier":
        predictions[:, elements // 2] = 1e4
        state[:, 0] = -1e4
    return store(predictions, elem), state.astype(np.float32), noise.astype(np.float32)


def exactly(call, kind):
    predictions, state, noise = inputs(call.elem, call.elements, kind)
    rows = batch()
    after, counts = step(call, call.plans, rows, predictions, state, noise)
    assert not counts.any(), "finite values were counted"
    worst, at = 0.0, 0
    for row in rows:
        mine = after[at : at + len(row.writes)]
        at += len(row.writes)
        alone, _ = step(call, call.alone, [row], predictions, state, noise)
        assert alone.tobytes() == mine.tobytes(), "a row depends on its batch"
        found, size = exact(
            row, values(predictions, call.elem), state.astype(np.float64), noise.astype(np.float64)
        )
        worst = max(worst, close(mine, found, "f32", 1e-6 * size + 1e-30, "denoise_step"))
    return worst


def poison(call):
    """NaN and infinite values are counted in their row, and what a row does not use is not read."""
    predictions, state, noise = inputs(call.elem, call.elements, "plain")
    rows = batch()
    clean, _ = step(call, call.plans, rows, predictions, state, noise)
    # The second row's sample, at both ends of a block; the fourth row's, which nothing of it reads.
    state[1, [0, 1023, 1024, 2499]] = np.nan, np.inf, -np.inf, np.nan
    state[4] = np.nan
    noise[0] = np.nan
    after, counts = step(call, call.plans, rows, predictions, state, noise)
    assert counts.sum(1).tolist() == [0, 4, 0, 0] and counts[1].tolist() == [2, 1, 1], f"counted {counts}"
    # Writes: two of the first row, three of the second, then the others'.
    assert after[:2].tobytes() == clean[:2].tobytes() and after[5:].tobytes() == clean[5:].tobytes(), "a neighbour"
    assert np.isnan(after[3, 0]), "a cut made a number of NaN"
    return 0.0


def network_input(call):
    _, state, _ = inputs(call.elem, call.elements, "outlier")
    entries = ((3, 1.0), (0, 0.25), (3, 0.068), (1, 1.0))
    words = np.array([part for slot, factor in entries for part in (slot, word(factor))], np.uint32)
    (y,) = launch(call, call.plans[2], [state, words], [((len(entries), call.elements), dtype(call.elem))])
    expected = np.array([state[slot].astype(np.float64) * single(factor) for slot, factor in entries])
    return close(y, expected, call.elem, 2.0**-24 * np.abs(expected), "denoise_input")


def cases():
    for call in planned("denoise_step"):
        for kind in ("plain", "outlier"):
            yield (
                f"denoise_step {call.elem} {kind} {call.elements}",
                lambda c=call, k=kind: exactly(c, k),
            )
        if call.elements == 2500:
            yield f"denoise_step {call.elem} poison", lambda c=call: poison(c)
        yield f"denoise_input {call.elem} {call.elements}", lambda c=call: network_input(c)
