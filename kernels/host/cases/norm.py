"""group_norm and layer_norm against f64."""

import struct

import numpy as np

from harness import close, dtype, run, store, values
from variants import ELEMS, chunk

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


def layer_norm(elem, width, rows, channels, kind):
    x = inputs((rows, channels), elem, kind)
    weight, bias = weights(channels, elem)
    constants = {"WIDTH": width, "PACKS": -(-channels // (32 * width))}

    def launch(x):
        (y,) = run(
            "layer_norm", elem, constants, "layer_norm", [x, weight, bias], [(x.shape, dtype(elem))],
            struct.pack("<2IfI", len(x), channels, EPS, 0), -(-len(x) // 4), 128,
        )
        return y

    y = launch(x)
    for row in range(rows):
        assert launch(x[row : row + 1]).tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    exact = values(x, elem)
    normalised = normalise(exact, (1,))
    weight, bias = values(weight, elem), values(bias, elem)
    # Where every x is near the mean, x - mean is exact.
    near = np.zeros_like(exact) if kind == "far" else exact
    limit = sums(exact, near, normalised, (1,), weight, bias).reshape(exact.shape)
    return close(y, normalised * weight + bias, elem, limit, "layer_norm")


def geometry(pixels, channels, groups, width):
    """The launch that group_norm.cu asks for: tile_groups, slice_pixels, slices."""
    def packs(tile):
        return tile * channels // groups / width

    fits = [t for t in range(1, groups + 1) if groups % t == 0 and packs(t).is_integer() and packs(t) <= 256]
    tile = max(fits)
    slice_pixels = max(4 * (256 // int(packs(tile))), -(-pixels // 256))
    return tile, slice_pixels, -(-pixels // slice_pixels)


def group_norm(elem, width, batch, pixels, channels, groups, kind, silu):
    x = inputs((batch, pixels, channels), elem, kind)
    weight, bias = weights(channels, elem)
    tile, slice_pixels, slices = geometry(pixels, channels, groups, width)

    def launch(x):
        batch = len(x)
        params = struct.pack(
            "<6IfI", pixels, channels, groups, tile, slice_pixels, slices, EPS, 3 if silu else 0
        )
        blocks = batch * slices * (groups // tile)
        constants = {"WIDTH": width}
        (partial,) = run(
            "group_norm", elem, constants, "group_norm_statistics", [x],
            [((batch, slices, groups, 2), np.float32)], params, blocks, 256,
        )
        (y,) = run(
            "group_norm", elem, constants, "group_norm", [x, weight, bias, partial],
            [(x.shape, dtype(elem))], params, blocks, 256,
        )
        return y

    y = launch(x)
    if batch > 1:
        for row in range(batch):
            assert launch(x[row : row + 1]).tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    split = values(x, elem).reshape(batch, pixels, groups, channels // groups)
    normalised = normalise(split, (1, 3))
    weight, bias = values(weight, elem), values(bias, elem)
    limit = sums(split, split, normalised, (1, 3), weight, bias).reshape(y.shape)
    expected = normalised.reshape(y.shape) * weight + bias
    if silu:
        expected = expected / (1 + np.exp(-expected))
    return close(y, expected, elem, limit, "group_norm")


def cases():
    for elem in ELEMS:
        wide = chunk(elem)
        shapes = ((1, 1, 1), (5, 31, 1), (2, 1277, 1), (3, wide, wide), (5, 320, wide), (2, 4096, wide))
        for rows, channels, width in shapes:
            for kind in ("plain", "outlier", "far"):
                yield (
                    f"layer_norm {elem} {kind} {rows}x{channels}",
                    lambda e=elem, w=width, r=rows, c=channels, k=kind: layer_norm(e, w, r, c, k),
                )
        shapes = (
            # batch, pixels, channels, groups, width
            (1, 1, 1, 1, 1),
            (2, 35, 6, 3, 1),
            (1, 1100, 4, 2, 1),
            (1, 1, 32, 32, wide),
            (2, 63, 320, 32, wide),
            (1, 9, 2560, 32, wide),
        )
        for batch, pixels, channels, groups, width in shapes:
            for kind in ("plain", "outlier", "far"):
                silu = kind == "plain"
                yield (
                    f"group_norm {elem} {kind} {batch}x{pixels}x{channels} {'silu' if silu else 'none'}",
                    lambda a=(elem, width, batch, pixels, channels, groups, kind, silu): group_norm(*a),
                )
