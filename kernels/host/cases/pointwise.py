"""activation, geglu and upsample_nearest_2x against f64."""

import math

import numpy as np

from harness import close, dtype, launch, store, values
from variants import planned

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def swish(x, scale):
    return x / (1 + np.exp(np.minimum(-scale * x, 700.0)))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FUNCTIONS = {
    "gelu": gelu,
    "quick_gelu": lambda x: swish(x, 1.702),
    "silu": lambda x: swish(x, 1.0),
    "gelu_tanh": gelu_tanh,
}


def inputs(shape, elem, seed):
    """Standard normal values, some near the tails, with outliers of 1e4."""
    x = np.random.default_rng(seed).normal(0, 2, shape)
    flat = x.reshape(-1)
    flat[:: max(1, flat.size // 7)] *= 5
    flat[0] = 1e4
    flat[-1] = -1e4
    return store(x, elem)


def activation(call):
    x = inputs((call.batch * call.row,), call.elem, call.row)
    (y,) = launch(call, call.plans[0], [x], [(x.shape, dtype(call.elem))])
    return close(y, FUNCTIONS[call.kind](values(x, call.elem)), call.elem, 1e-6, "activation")


def ends(call):
    """As in PyTorch: infinite stays so above, is no number below, where it meets a factor of zero; what is finite is itself
    or nothing."""
    with np.errstate(over="ignore"):
        kinds = [np.inf, -np.inf, np.nan, 3e38, -3e38, 1e20, -1e20]
        x = store(np.resize(kinds, call.batch * call.row), call.elem)
    (y,) = launch(call, call.plans[0], [x], [(x.shape, dtype(call.elem))])
    exact, found = values(x, call.elem), values(y, call.elem)
    expected = np.where(exact < 0, np.where(np.isinf(exact), np.nan, 0.0), exact)
    # A nearest neighbour in bf16 is a 256th away.
    with np.errstate(invalid="ignore"):
        same = (found == expected) | (np.abs(found - expected) < np.abs(expected) / 256)
    assert np.all(same | np.isnan(found) & np.isnan(expected)), "the ends of an activation"
    return 0.0


def geglu(call):
    channels = call.channels
    x = inputs((call.batch * call.tokens, 2 * channels), call.elem, call.batch)
    (y,) = launch(call, call.plans[0], [x], [((len(x), channels), dtype(call.elem))])
    exact = values(x, call.elem)
    expected = exact[:, :channels] * gelu(exact[:, channels:])
    # The gate's own error times the value.
    absolute = 1e-6 * (1 + np.abs(exact[:, :channels]))
    return close(y, expected, call.elem, absolute, "geglu")


def upsample(call):
    x = inputs((call.batch, call.height, call.width, call.channels), call.elem, 1)
    shape = (call.batch, 2 * call.height, 2 * call.width, call.channels)
    (y,) = launch(call, call.plans[0], [x], [(shape, dtype(call.elem))])
    assert y.tobytes() == x.repeat(2, 1).repeat(2, 2).tobytes(), "upsample"
    return 0.0


def cases():
    for call in planned("activation"):
        name = f"activation {call.elem} {call.kind} {call.batch}x{call.row}"
        yield name, lambda c=call: activation(c)
        yield f"{name}, at its ends", lambda c=call: ends(c)
    for call in planned("geglu"):
        size = f"{call.batch}x{call.tokens}x{call.channels}"
        yield f"geglu {call.elem} {size}", lambda c=call: geglu(c)
    for call in planned("upsample_nearest_2x"):
        size = f"{call.batch}x{call.height}x{call.width}x{call.channels}"
        yield f"upsample {call.elem} {size}", lambda c=call: upsample(c)
