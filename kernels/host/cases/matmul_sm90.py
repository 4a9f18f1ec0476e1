"""matmul_sm90 against f64."""

import struct

import numpy as np

from cases.matmul import judge, operands
from harness import HOPPER_SCHEDULES, dtype, run
from variants import OPERATIONS


def matmul(elem, ring, rows, outputs, inputs, blocks, kind, bias, residual, alone=()):
    names = ("TILE_N", "TILE_K", "STAGES", "DYNAMIC", "ACTIVATION")
    constants = dict(zip(names, (*ring, kind)))
    assert constants in OPERATIONS["matmul_sm90"].variants(elem), "a variant that is not compiled"
    wide, deep = ring[:2]
    x, weight, biases, residuals = operands(rows, outputs, inputs, elem)
    nothing = np.full(16, np.nan, np.float32)

    def launch(x, residuals, blocks, schedules):
        (y,) = run(
            "matmul_sm90", elem, constants, "matmul_sm90",
            [x, weight, biases if bias else nothing, residuals if residual else nothing],
            [((len(x), outputs), dtype(elem))],
            struct.pack("<6I", len(x), outputs, inputs, bias, residual, 0),
            blocks, 384 if wide == 256 else 288, schedules,
            (((128, deep), 2 * deep), ((wide, deep), 2 * deep)),
        )
        return y

    y = launch(x, residuals, blocks, HOPPER_SCHEDULES)
    tiles = -(-rows // 128) * -(-outputs // wide)
    if tiles != blocks:
        assert launch(x, residuals, tiles, ((0, 0),)).tobytes() == y.tobytes(), "the bits depend on the blocks"
    for row in alone:
        single = launch(x[row : row + 1], residuals[row : row + 1], 1, ((0, 0),))
        assert single.tobytes() == y[row].tobytes(), f"row {row} depends on the others"
    return judge(y, x, weight, biases if bias else None, residuals if residual else None, elem, kind)


def cases():
    static, middle, large = (128, 32, 2, 0), (128, 64, 3, 1), (256, 64, 4, 1)
    shapes = (
        # ring, rows, outputs, inputs, blocks, activation, bias, residual, rows run alone
        (static, 1, 8, 8, 1, 1, 0, 0, ()),
        (static, 131, 136, 168, 1, 1, 1, 1, (130,)),
        (static, 128, 128, 128, 1, 3, 1, 0, ()),
        (static, 1100, 136, 72, 3, 1, 0, 1, (0, 1023)),
        (middle, 5, 24, 200, 1, 2, 1, 1, (4,)),
        (middle, 131, 264, 328, 2, 2, 1, 0, (64,)),
        (large, 1, 8, 8, 1, 0, 1, 0, ()),
        (large, 131, 264, 392, 1, 0, 1, 1, (130,)),
        (large, 257, 520, 136, 2, 0, 0, 1, (255,)),
    )
    for elem in OPERATIONS["matmul_sm90"].elems:
        for ring, rows, outputs, inputs, *rest in shapes:
            yield (
                f"matmul_sm90 {elem} {ring[0]}x{ring[1]}x{ring[2]} {rows}x{outputs}x{inputs}",
                lambda a=(elem, ring, rows, outputs, inputs, *rest): matmul(*a),
            )
