"""conv2d against f64."""

import struct

import numpy as np

from harness import close, dtype, run, store, values
from variants import ELEMS, chunk


def patches(x, kernel, stride, padding):
    """[batch, out_height, out_width, kernel height * kernel width * channels], by slices of the padded x."""
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (x.shape[1] - kernel[0]) // stride + 1
    width = (x.shape[2] - kernel[1]) // stride + 1
    parts = [
        x[:, ky : ky + stride * (height - 1) + 1 : stride, kx : kx + stride * (width - 1) + 1 : stride]
        for ky in range(kernel[0])
        for kx in range(kernel[1])
    ]
    return np.concatenate(parts, axis=3)


def conv2d(elem, tile, shape, outputs, kernel, stride, padding, bias, residual):
    batch, height, width, inputs = shape
    rng = np.random.default_rng(sum(shape) + outputs)
    x = rng.normal(0, 1, shape)
    x.reshape(-1)[0] = 1e4
    x.reshape(-1)[-1] = -1e4
    inner = kernel[0] * kernel[1] * inputs
    x = store(x, elem)
    weight = store(rng.normal(0, inner**-0.5, (outputs, *kernel, inputs)), elem)
    biases = store(rng.normal(0, 1, outputs), elem)
    under = patches(values(x, elem), kernel, stride, padding)
    _, out_height, out_width, _ = under.shape
    residual_shape = (batch, out_height, out_width, outputs) if residual == 1 else (batch, 1, 1, outputs)
    residuals = store(rng.normal(0, 1, residual_shape), elem)
    nothing = np.full(16, np.nan, np.float32)
    constants = {"TILE": tile, "ALIGNED": int(inputs % chunk(elem) == 0)}

    def launch(x, residuals, **schedules):
        batch = len(x)
        params = struct.pack(
            "<14I", batch, height, width, inputs, out_height, out_width, outputs, *kernel, stride,
            padding[0], padding[2], bias, residual,
        )
        (y,) = run(
            "conv2d", elem, constants, "conv2d",
            [x, weight, biases if bias else nothing, residuals if residual else nothing],
            [((batch, out_height, out_width, outputs), dtype(elem))], params,
            -(-batch * out_height * out_width // tile) * -(-outputs // tile), 256 if tile == 128 else 128, **schedules,
        )
        return y

    y = launch(x, residuals)
    if batch > 1:
        for row in range(batch):
            single = launch(x[row : row + 1], residuals[row : row + 1], schedules=((0, 0),))
            assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    flat = values(weight, elem).reshape(outputs, inner)
    expected, more = under @ flat.T, np.zeros(1)
    if bias:
        expected, more = expected + values(biases, elem), more + np.abs(values(biases, elem))
    if residual:
        expected, more = expected + values(residuals, elem), more + np.abs(values(residuals, elem))
    terms = np.abs(under) @ np.abs(flat).T
    limit = 1.2 * 2.0**-24 * ((8 + np.sqrt(inner)) * terms + 4 * np.abs(more)) + 1e-6
    return close(y, expected, elem, limit, "conv2d")


def cases():
    for elem in ELEMS:
        wide = chunk(elem)
        shapes = (
            # tile, x, outputs, kernel, stride, padding, bias, residual
            (64, (1, 1, 1, 1), 1, (1, 1), 1, (0, 0, 0, 0), 0, 0),
            (64, (2, 5, 7, 4 if elem != "f32" else 3), 10, (3, 3), 1, (1, 1, 1, 1), 1, 2),
            (64, (2, 6, 5, wide), 9, (3, 3), 1, (1, 1, 1, 1), 1, 1),
            (64, (1, 7, 8, 3 * wide), 2 * wide, (3, 2), 2, (2, 1, 0, 1), 1, 0),
            (64, (2, 9, 4, 5 * wide), 66, (1, 1), 1, (0, 0, 0, 0), 0, 2),
            (128, (2, 11, 13, 5 * wide), 136, (3, 3), 1, (1, 1, 1, 1), 1, 1),
            (128, (1, 12, 23, 2 * wide), 4, (3, 3), 1, (1, 1, 1, 1), 1, 2),
        )
        for shape in shapes:
            tile, x, outputs, kernel, stride, *_ = shape
            size = "x".join(map(str, x))
            name = f"conv2d {elem} {tile} {size} {outputs} {kernel[0]}x{kernel[1]} stride {stride}"
            yield name, lambda e=elem, s=shape: conv2d(e, *s)
