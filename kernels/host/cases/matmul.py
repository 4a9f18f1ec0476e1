"""matmul against f64."""

import struct

import numpy as np

from cases.pointwise import FUNCTIONS
from harness import close, dtype, run, store, values
from variants import ELEMS, chunk

KINDS = {0: lambda x: x, **FUNCTIONS}


def product_limit(x, weight, more=0.0):
    """What sums in f32 may lose."""
    terms = np.abs(x) @ np.abs(weight).T
    return 1.2 * 2.0**-24 * ((8 + np.sqrt(x.shape[-1])) * terms + 4 * np.abs(more)) + 1e-6


def operands(rows, outputs, inputs, elem):
    """x with outliers of 1e4, weights that keep the sums' size, bias, residual."""
    rng = np.random.default_rng(rows + outputs + inputs)
    x = rng.normal(0, 1, (rows, inputs))
    x[0, 0] = 1e4
    x[-1, -1] = -1e4
    weight = rng.normal(0, inputs**-0.5, (outputs, inputs))
    return [store(a, elem) for a in (x, weight, rng.normal(0, 1, outputs), rng.normal(0, 1, (rows, outputs)))]


def matmul(elem, tile, rows, outputs, inputs, kind, bias, residual, alone=()):
    constants = {"TILE": tile, "ALIGNED": int(inputs % chunk(elem) == 0)}
    x, weight, biases, residuals = operands(rows, outputs, inputs, elem)
    nothing = np.full(16, np.nan, np.float32)

    def launch(x, residuals, schedules):
        count = len(x)
        (y,) = run(
            "matmul", elem, constants, "matmul",
            [x, weight, biases if bias else nothing, residuals if residual else nothing],
            [((count, outputs), dtype(elem))],
            struct.pack("<6I", count, outputs, inputs, kind, bias, residual),
            -(-count // tile) * -(-outputs // tile), 256 if tile == 128 else 128, **schedules,
        )
        return y

    y = launch(x, residuals, {})
    for row in alone:
        single = launch(x[row : row + 1], residuals[row : row + 1], {"schedules": ((0, 0),)})
        assert single.tobytes() == y[row].tobytes(), f"row {row} depends on the others"
    x, weight = values(x, elem), values(weight, elem)
    expected = x @ weight.T
    more = np.zeros(1)
    if bias:
        expected, more = expected + values(biases, elem), more + np.abs(values(biases, elem))
    expected = KINDS[kind](expected)
    if residual:
        expected, more = expected + values(residuals, elem), more + np.abs(values(residuals, elem))
    return close(y, expected, elem, product_limit(x, weight, more), "matmul")


def cases():
    for elem in ELEMS:
        wide = chunk(elem)
        shapes = (
            # tile, rows, outputs, inputs, activation, bias, residual, rows run alone
            (64, 1, 1, 1, 0, 0, 0, ()),
            (64, 5, 3, 13, 1, 1, 1, (4,)),
            (64, 70, 67, 36 + 1, 0, 1, 0, (69,)),
            (64, 65, 8 * wide, 5 * wide, 3, 1, 1, (0, 64)),
            (128, 131, 137, 20 * wide, 0, 1, 1, (130,)),
            (128, 128, 128, 4 * wide, 2, 1, 0, ()),
            (128, 1100, 8, wide, 0, 0, 1, ()),
        )
        for tile, rows, outputs, inputs, kind, bias, residual, alone in shapes:
            yield (
                f"matmul {elem} {tile} {rows}x{outputs}x{inputs}",
                lambda a=(elem, tile, rows, outputs, inputs, kind, bias, residual, alone): matmul(*a),
            )
