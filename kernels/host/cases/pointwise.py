"""activation, geglu and upsample_nearest_2x against f64."""

import math
import struct

import numpy as np

from harness import close, dtype, run, store, values
from variants import ELEMS, chunk

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def swish(x, scale):
    return x / (1 + np.exp(np.minimum(-scale * x, 700.0)))


FUNCTIONS = {1: gelu, 2: lambda x: swish(x, 1.702), 3: lambda x: swish(x, 1.0)}


def inputs(shape, elem, seed):
    """Standard normal values, some near the tails, with outliers of 1e4."""
    x = np.random.default_rng(seed).normal(0, 2, shape)
    flat = x.reshape(-1)
    flat[:: max(1, flat.size // 7)] *= 5
    flat[0] = 1e4
    flat[-1] = -1e4
    return store(x, elem)


def blocks(packs):
    return -(-packs // 256)


def activation(elem, width, elements, kind):
    x = inputs((elements,), elem, elements)
    packs = elements // width
    (y,) = run(
        "activation", elem, {"WIDTH": width}, "activation", [x], [((elements,), dtype(elem))],
        struct.pack("<2I", packs, kind), blocks(packs), 256,
    )
    return close(y, FUNCTIONS[kind](values(x, elem)), elem, 1e-6, "activation")


def geglu(elem, width, rows, channels):
    x = inputs((rows, 2 * channels), elem, rows)

    def launch(x):
        packs = len(x) * channels // width
        (y,) = run(
            "geglu", elem, {"WIDTH": width}, "geglu", [x], [((len(x), channels), dtype(elem))],
            struct.pack("<2I", packs, channels // width), blocks(packs), 256,
        )
        return y

    exact = values(x, elem)
    expected = exact[:, :channels] * gelu(exact[:, channels:])
    # The gate's own error times the value.
    absolute = 1e-6 * (1 + np.abs(exact[:, :channels]))
    return close(launch(x), expected, elem, absolute, "geglu")


def upsample(elem, width, shape):
    batch, height, columns, channels = shape
    x = inputs(shape, elem, 1)
    packs = x.size // width
    (y,) = run(
        "upsample_nearest_2x", elem, {"WIDTH": width}, "upsample_nearest_2x", [x],
        [((batch, 2 * height, 2 * columns, channels), dtype(elem))],
        struct.pack("<4I", packs, channels // width, columns, 0), blocks(packs), 256,
    )
    assert y.tobytes() == x.repeat(2, 1).repeat(2, 2).tobytes(), "upsample"
    return 0.0


def cases():
    for elem in ELEMS:
        wide = chunk(elem)
        for kind in FUNCTIONS:
            yield f"activation {elem} {kind} 1 element", lambda e=elem, k=kind: activation(e, 1, 1, k)
            yield f"activation {elem} {kind} 1031", lambda e=elem, k=kind: activation(e, 1, 1031, k)
            yield f"activation {elem} {kind} wide", lambda e=elem, k=kind, w=wide: activation(e, w, 259 * w, k)
        for rows, channels, width in ((1, 1, 1), (3, 37, 1), (1, wide, wide), (7, 41 * wide, wide)):
            yield (
                f"geglu {elem} {rows}x{channels}",
                lambda e=elem, w=width, r=rows, c=channels: geglu(e, w, r, c),
            )
        for shape, width in (((1, 1, 1, 1), 1), ((2, 3, 5, 7), 1), ((3, 4, 3, 3 * wide), wide)):
            yield f"upsample {elem} {shape}", lambda e=elem, w=width, s=shape: upsample(e, w, s)
