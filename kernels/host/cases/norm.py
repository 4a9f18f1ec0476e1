"""group_norm and layer_norm against f64."""

import numpy as np

from harness import close, dtype, launch, store, values
from variants import planned

EPS = 1e-5


def inputs(shape, elem, kind, seed=0):
    """Normal values; `outlier` adds values of 1e4, `far` a mean a thousand times the deviation."""
    x = np.random.default_rng(seed).normal(0, 1, shape)
    if kind == "outlier":
        flat = x.reshape(-1)
        flat[0] = 1e4
        flat[flat.size // 2] = -1e4
    if kind == "far":
        x += 1000.0
    return store(x, elem)


def weights(channels, elem):
    rng = np.random.default_rng(channels)
    return store(rng.normal(1, 0.5, channels), elem), store(rng.normal(0, 1, channels), elem)


def normalise(x, axes, eps=EPS):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def sums(x, rounded, normalised, axes, weight, bias):
    """What f32 may lose: the mean, rounded at the size of the largest of `rounded`, the deviation, the last steps."""
    mean = 2.0**-23 * np.abs(rounded).max(axes, keepdims=True) / np.sqrt(x.var(axes, keepdims=True) + EPS)
    limit = (mean + 2e-6 * (1 + np.abs(normalised))).reshape(-1, weight.size)
    return (limit * np.abs(weight) + 1e-6 * np.abs(bias) + 1e-30)


def layer_norm(call, kind):
    elem = call.elem
    x = inputs((call.batch, call.channels), elem, kind)
    weight, bias = weights(call.channels, elem)

    def run(plans, x):
        (y,) = launch(call, plans[0], [x, weight, bias], [(x.shape, dtype(elem))])
        return y

    y = run(call.plans, x)
    if call.batch > 1:
        for row in range(call.batch):
            assert run(call.alone, x[row : row + 1]).tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    exact = values(x, elem)
    normalised = normalise(exact, (1,))
    weight, bias = values(weight, elem), values(bias, elem)
    # Where every x is near the mean, x - mean is exact.
    near = np.zeros_like(exact) if kind == "far" else exact
    limit = sums(exact, near, normalised, (1,), weight, bias).reshape(exact.shape)
    return close(y, normalised * weight + bias, elem, limit, "layer_norm")


def group_norm(call, kind):
    elem, batch, groups = call.elem, call.batch, call.groups
    x = inputs((batch, call.pixels, call.channels), elem, kind)
    weight, bias = weights(call.channels, elem)
    # u32 pixels, channels, groups, tile_groups, slice_pixels, slices
    slices = call.plans[0]["params"][5]

    def run(plans, x):
        statistics, apply = plans
        (partial,) = launch(call, statistics, [x], [((len(x), slices, groups, 2), np.float32)])
        (y,) = launch(call, apply, [x, partial, weight, bias], [(x.shape, dtype(elem))])
        return y

    y = run(call.plans, x)
    if batch > 1:
        for row in range(batch):
            assert run(call.alone, x[row : row + 1]).tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    split = values(x, elem).reshape(batch, call.pixels, groups, call.channels // groups)
    normalised = normalise(split, (1, 3))
    weight, bias = values(weight, elem), values(bias, elem)
    limit = sums(split, split, normalised, (1, 3), weight, bias).reshape(y.shape)
    expected = normalised.reshape(y.shape) * weight + bias
    if call.silu:
        expected = expected / (1 + np.exp(-expected))
    return close(y, expected, elem, limit, "group_norm")


def cases():
    for call in planned("layer_norm", "layer_norm"):
        for kind in ("plain", "outlier", "far"):
            name = f"layer_norm {call.elem} {kind} {call.batch}x{call.channels}"
            yield name, lambda c=call, k=kind: layer_norm(c, k)
    for call in planned("group_norm"):
        size = f"{call.batch}x{call.pixels}x{call.channels}"
        for kind in ("plain",) if call.silu else ("outlier", "far"):
            name = f"group_norm {call.elem} {kind} {size} {'silu' if call.silu else 'none'}"
            yield name, lambda c=call, k=kind: group_norm(c, k)
