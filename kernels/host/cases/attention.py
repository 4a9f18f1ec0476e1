"""attention against f64."""

import numpy as np

from harness import close, dtype, launch, store, values
from variants import planned

# The exponentials are rounded to the element type before they meet v, in f16 and bf16.
WEIGHTS = {"f32": 2.0**-22, "f16": 2.0**-11, "bf16": 2.0**-8}


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def inputs(elem, batch, queries, keys, heads, head_dim, outliers):
    """q, k, v."""
    rng = np.random.default_rng(queries + keys + head_dim)
    q, k, v = (rng.normal(0, 1, (batch, rows, heads * head_dim)) for rows in (queries, keys, keys))
    if outliers:
        # One query that sees a single key, one value that dominates, scores far from zero.
        q.reshape(-1)[0] = 1e4
        v.reshape(-1)[-1] = 1e4
        k += 3.0
    return [store(a, elem) for a in (q, k, v)]


def judge(y, q, k, v, elem, heads, causal):
    """y against f64, and what sums in f32 and rounded exponentials may lose."""
    batch, queries, channels = q.shape
    keys, head_dim = k.shape[1], channels // heads
    scale = float(np.float32(head_dim**-0.5))

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


def attention(call):
    elem, batch = call.elem, call.batch
    q, k, v = inputs(elem, batch, call.queries, call.keys, call.heads, call.head_dim, call.outliers)

    def run(plans, q, k, v, **schedules):
        (y,) = launch(call, plans[0], [q, k, v], [(q.shape, dtype(elem))], **schedules)
        return y

    y = run(call.plans, q, k, v)
    if batch > 1:
        for row in range(batch):
            single = run(call.alone, *(a[row : row + 1] for a in (q, k, v)), schedules=((0, 0),))
            assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    return judge(y, q, k, v, elem, call.heads, call.causal)


def cases():
    for call in planned("attention"):
        size = f"{call.batch}x{call.queries}x{call.keys}x{call.heads}"
        kind = f"{'causal' if call.causal else 'all'} {'outliers' if call.outliers else 'plain'}"
        yield f"attention {call.elem} d{call.head_dim} {size} {kind}", lambda c=call: attention(c)
