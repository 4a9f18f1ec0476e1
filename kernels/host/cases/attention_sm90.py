"""attention_sm90 against f64."""

import struct

from cases.attention import inputs, judge
from harness import HOPPER_SCHEDULES, dtype, run
from variants import OPERATIONS, hopper_block


def attention(elem, batch, queries, keys, heads, head_dim, causal, outliers):
    q, k, v = inputs(elem, batch, queries, keys, heads, head_dim, outliers)
    constants = {"HEAD_DIM": head_dim, "CAUSAL": causal, "DYNAMIC": 1}
    assert constants in OPERATIONS["attention_sm90"].variants(elem), "a variant that is not compiled"

    block = hopper_block(head_dim)
    boxes = [((1, rows, 1, 64), 128) for rows in (64, block.keys, block.keys)]

    def launch(q, k, v, schedules):
        tiles = len(q) * heads * -(-queries // (64 * block.consumers))
        (y,) = run(
            "attention_sm90", elem, constants, "attention_sm90",
            [a.reshape(*a.shape[:2], heads, head_dim) for a in (q, k, v)], [(q.shape, dtype(elem))],
            struct.pack("<3If", queries, keys, heads, head_dim**-0.5), tiles, 128 * (1 + block.consumers),
            schedules, boxes,
        )
        return y

    y = launch(q, k, v, HOPPER_SCHEDULES)
    if batch > 1:
        for row in range(batch):
            single = launch(*(a[row : row + 1] for a in (q, k, v)), ((0, 0),))
            assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    return judge(y, q, k, v, elem, heads, causal)


def cases():
    shapes = (
        # batch, queries, keys, heads, head_dim, causal, outliers
        (1, 1, 1, 1, 64, 0, 0),
        (2, 70, 77, 2, 64, 0, 1),
        (1, 200, 700, 1, 64, 0, 0),
        (1, 260, 260, 2, 64, 1, 1),
        (2, 193, 300, 2, 128, 0, 1),
        (1, 64, 128, 1, 128, 0, 0),
        (1, 333, 333, 1, 128, 1, 0),
        (1, 1, 1, 2, 40, 0, 0),
        (2, 195, 77, 3, 40, 0, 1),
        (1, 200, 700, 1, 40, 0, 0),
        (1, 260, 260, 2, 40, 1, 1),
        (1, 1, 1, 2, 80, 0, 0),
        (2, 193, 300, 2, 80, 0, 1),
        (1, 333, 333, 2, 80, 1, 0),
        (1, 1, 1, 2, 160, 0, 0),
        (2, 130, 301, 2, 160, 0, 1),
        (1, 64, 96, 1, 160, 0, 0),
        (1, 275, 275, 2, 160, 1, 0),
    )
    for elem in OPERATIONS["attention_sm90"].elems:
        for shape in shapes:
            batch, queries, keys, heads, head_dim, causal, outliers = shape
            kind = f"{'causal' if causal else 'all'} {'outliers' if outliers else 'plain'}"
            yield (
                f"attention_sm90 {elem} d{head_dim} {batch}x{queries}x{keys}x{heads} {kind}",
                lambda e=elem, s=shape: attention(e, *s),
            )
