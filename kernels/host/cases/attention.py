"""attention against f64."""

import struct

import numpy as np

from harness import close, dtype, run, store, values
from variants import ELEMS

# The exponentials are rounded to the element type before they meet v, in f16 and bf16.
WEIGHTS = {"f32": 2.0**-22, "f16": 2.0**-11, "bf16": 2.0**-8}


def launch_size(elem, head_dim):
    """QUERIES and THREADS of attention.cu."""
    if elem == "f32":
        return (8 if head_dim == 512 else 32), 128
    return (32, 256) if head_dim == 512 else (64, 128)


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(elem, batch, queries, keys, heads, head_dim, causal, outliers):
    rng = np.random.default_rng(queries + keys + head_dim)
    channels = heads * head_dim
    q, k, v = (rng.normal(0, 1, (batch, rows, channels)) for rows in (queries, keys, keys))
    if outliers:
        # One query that sees a single key, one value that dominates, scores far from zero.
        q.reshape(-1)[0] = 1e4
        v.reshape(-1)[-1] = 1e4
        k += 3.0
    q, k, v = (store(a, elem) for a in (q, k, v))
    scale = float(np.float32(head_dim**-0.5))
    tile, threads = launch_size(elem, head_dim)
    constants = {"HEAD_DIM": head_dim, "CAUSAL": causal}

    def launch(q, k, v, **schedules):
        batch = len(q)
        (y,) = run(
            "attention", elem, constants, "attention", [q, k, v], [(q.shape, dtype(elem))],
            struct.pack("<3If", queries, keys, heads, scale), batch * heads * -(-queries // tile), threads, **schedules,
        )
        return y

    y = launch(q, k, v)
    if batch > 1:
        for row in range(batch):
            single = launch(*(a[row : row + 1] for a in (q, k, v)), schedules=((0, 0),))
            assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"

    def split(x):
        return values(x, elem).reshape(batch, -1, heads, head_dim).transpose(0, 2, 1, 3)

    def join(x):
        return x.transpose(0, 2, 1, 3).reshape(batch, queries, channels)

    q, k, v = split(q), split(k), split(v)
    scores = scale * q @ k.swapaxes(2, 3)
    # What f32 loses in a score is the relative error of its exponential.
    terms = scale * np.abs(q) @ np.abs(k).swapaxes(2, 3)
    if causal:
        hidden = np.triu(np.ones((queries, keys), bool), 1)
        scores = np.where(hidden, -np.inf, scores)
    weights = softmax(scores)
    relative = WEIGHTS[elem] + 2.0**-23 * (4 + np.sqrt(head_dim) / 4) * terms + 2.0**-23 * np.sqrt(keys)
    expected = weights @ v
    limit = (weights * relative) @ np.abs(v) + np.abs(expected) * (weights * relative).sum(-1, keepdims=True)
    return close(y, join(expected), elem, join(limit) + 1e-7, "attention")


def cases():
    for elem in ELEMS:
        shapes = (
            # batch, queries, keys, heads, head_dim, causal, outliers
            (1, 1, 1, 1, 64, 0, 0),
            (2, 70, 77, 2, 40, 0, 0),
            (1, 65, 130, 2, 40, 0, 1),
            (2, 77, 77, 2, 64, 1, 0),
            (1, 130, 130, 1, 64, 1, 1),
            (1, 33, 65, 2, 80, 0, 1),
            (1, 17, 64, 1, 128, 0, 0),
            (1, 5, 129, 2, 160, 0, 0),
            (2, 37, 35, 1, 512, 0, 1),
        )
        for shape in shapes:
            batch, queries, keys, heads, head_dim, causal, outliers = shape
            kind = f"{'causal' if causal else 'all'} {'outliers' if outliers else 'plain'}"
            yield (
                f"attention {elem} d{head_dim} {batch}x{queries}x{keys}x{heads} {kind}",
                lambda e=elem, s=shape: attention(e, *s),
            )
