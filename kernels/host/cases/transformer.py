"""rms_norm, layer_norm_modulate, gate_residual, qk_norm_rope, swiglu and bias_gelu against f64."""

import math

import numpy as np

from cases.pointwise import gelu, gelu_tanh
from harness import close, dtype, launch, store, values
from variants import planned

EPS = 1e-5


def silu(x):
    return x / (1 + np.exp(np.minimum(-x, 700.0)))


def normal(shape, elem, seed, outlier=0.0):
    """Standard normal values, and two outliers of that size."""
    x = np.random.default_rng(seed).normal(0, 1, shape)
    if outlier:
        flat = x.reshape(-1)
        flat[0] = outlier
        flat[flat.size // 2] = -outlier
    return store(x, elem)


def outputs(call, batched, shared, shapes):
    """What a call's launch gives; every row of the batch must have the bits that it has alone.

    * `batched`: inputs with one part a row of the batch, which stand before the `shared` ones
    * `shapes`: of one row's outputs
    """
    def run(plan, batched):
        results = [((len(batched[0]), *shape), dtype(call.elem)) for shape in shapes]
        return launch(call, plan, [*batched, *shared], results)

    together = run(call.plans[0], batched)
    if call.batch > 1:
        for row in range(call.batch):
            alone = run(call.alone[0], [x[row : row + 1] for x in batched])
            for a, b in zip(alone, together):
                assert a.tobytes() == b[row].tobytes(), f"row {row} depends on its batch"
    return together


def rms(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def rms_norm(call):
    elem = call.elem
    x, weight = normal((call.batch, call.channels), elem, 1, 1e4), normal(call.channels, elem, 2)
    (y,) = outputs(call, [x], [weight], [(call.channels,)])
    expected = rms(values(x, elem), values(weight, elem))
    return close(y, expected, elem, 1e-6 * np.abs(expected) + 1e-30, "rms_norm")


def layer_norm_modulate(call):
    elem, picture = call.elem, (call.tokens, call.channels)
    x = normal((call.batch, *picture), elem, 3, 1e4)
    scale, shift = (normal((call.batch, call.channels), elem, seed) for seed in (4, 5))
    (y,) = outputs(call, [x, scale, shift], [], [picture])
    exact = values(x, elem)
    slope, shift = 1 + values(scale, elem)[:, None], values(shift, elem)[:, None]
    deviation = np.sqrt(exact.var(-1, keepdims=True) + EPS)
    normalised = (exact - exact.mean(-1, keepdims=True)) / deviation
    # The mean, rounded at the size of the largest element, and the last steps.
    limit = 2.0**-23 * np.abs(exact).max(-1, keepdims=True) / deviation + 2e-6 * (1 + np.abs(normalised))
    limit = limit * (1 + np.abs(slope)) + 1e-6 * np.abs(shift) + 1e-30
    return close(y, normalised * slope + shift, elem, limit, "layer_norm_modulate")


def gate_residual(call):
    elem, picture = call.elem, (call.tokens, call.channels)
    residual, x = normal((call.batch, *picture), elem, 6), normal((call.batch, *picture), elem, 7, 1e4)
    gate = normal((call.batch, call.channels), elem, 8)
    (y,) = outputs(call, [residual, x, gate], [], [picture])
    added, residual = values(gate, elem)[:, None] * values(x, elem), values(residual, elem)
    limit = 2e-7 * (np.abs(added) + np.abs(residual)) + 1e-30
    return close(y, residual + added, elem, limit, "gate_residual")


def swiglu(call):
    elem, channels = call.elem, call.channels
    x = normal((call.batch, call.tokens, 2 * channels), elem, 9, 1e4)
    (y,) = outputs(call, [x], [], [(call.tokens, channels)])
    value, gate = values(x, elem)[..., :channels], values(x, elem)[..., channels:]
    limit = 1e-6 * np.abs(value) * (np.abs(silu(gate)) + 1e-6) + 1e-30
    return close(y, value * silu(gate), elem, limit, "swiglu")


def bias_gelu(call):
    elem, entry = call.elem, call.plans[0]["entry"]
    x = normal((call.batch, call.tokens, call.channels), elem, 10, 1e4)
    # Wide enough for both tails.
    bias = store(5 * values(normal(call.channels, elem, 11), elem), elem)
    (y,) = outputs(call, [x], [bias], [(call.tokens, call.channels)])
    total = values(x, elem) + values(bias, elem)
    expected = (gelu_tanh if entry == "bias_gelu_tanh" else gelu)(total)
    limit = 1e-6 * np.minimum(np.abs(total), 4.0) + 2e-7 * np.abs(total) + 1e-7
    return close(y, expected, elem, limit, entry)


def qk_norm_rope(call):
    elem, head_dim = call.elem, call.head_dim
    shapes = [(call.tokens, heads, head_dim) for heads in (call.q_heads, call.k_heads)]
    q, k = (normal((call.batch, *shape), elem, 12 + i, 1e4) for i, shape in enumerate(shapes))
    weights = [normal(head_dim, elem, seed) for seed in (20, 21)]
    angles = np.random.default_rng(22).uniform(-math.pi, math.pi, (call.tokens, head_dim // 2))
    tables = [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
    found = outputs(call, [q, k], [*weights, *tables], shapes)
    cosines, sines = (table.astype(np.float64)[:, None] for table in tables)
    worst = 0.0
    for y, x, weight in zip(found, (q, k), weights):
        n = rms(values(x, elem), values(weight, elem))
        a, b = n[..., ::2], n[..., 1::2]
        expected, limit = np.empty_like(n), np.empty_like(n)
        expected[..., ::2], expected[..., 1::2] = a * cosines - b * sines, b * cosines + a * sines
        limit[..., ::2] = limit[..., 1::2] = 1e-6 * (np.abs(a) + np.abs(b)) + 1e-30
        worst = max(worst, close(y, expected, elem, limit, "qk_norm_rope"))
    return worst


def cases():
    for call in planned("rms_norm"):
        yield f"rms_norm {call.elem} {call.batch}x{call.channels}", lambda c=call: rms_norm(c)
    pictures = (
        ("layer_norm", "layer_norm_modulate", layer_norm_modulate),
        ("gate_residual", "gate_residual", gate_residual),
        ("swiglu", "swiglu", swiglu),
        ("bias_gelu", "bias_gelu", bias_gelu),
        ("bias_gelu", "bias_gelu_tanh", bias_gelu),
    )
    for operation, entry, case in pictures:
        for call in planned(operation, entry):
            size = f"{call.batch}x{call.tokens}x{call.channels}"
            yield f"{entry} {call.elem} {size}", lambda f=case, c=call: f(c)
    for call in planned("qk_norm_rope"):
        size = f"{call.batch}x{call.tokens}x{call.q_heads}+{call.k_heads}x{call.head_dim}"
        yield f"qk_norm_rope {call.elem} {size}", lambda c=call: qk_norm_rope(c)
