"""conv2d against f64."""

import numpy as np

from harness import close, dtype, launch, store, values
from variants import planned


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


def inputs(elem, shape, outputs, kernel, size, bias, residual):
    """x with outliers of 1e4, weights that keep the sums' size, bias and residual; None for those that are not wanted.

    * `size`: rows and columns of y
    """
    rng = np.random.default_rng(sum(shape) + outputs)
    x = rng.normal(0, 1, shape)
    x.reshape(-1)[0] = 1e4
    x.reshape(-1)[-1] = -1e4
    inner = kernel[0] * kernel[1] * shape[3]
    weight = rng.normal(0, inner**-0.5, (outputs, *kernel, shape[3]))
    biases = store(rng.normal(0, 1, outputs), elem) if bias else None
    pixels = size if residual == "map" else (1, 1)
    residuals = store(rng.normal(0, 1, (shape[0], *pixels, outputs)), elem) if residual != "none" else None
    return store(x, elem), store(weight, elem), biases, residuals


def out_size(shape, kernel, stride, padding):
    """Rows and columns of y."""
    top, bottom, left, right = padding
    return (shape[1] + top + bottom - kernel[0]) // stride + 1, (shape[2] + left + right - kernel[1]) // stride + 1


def or_nothing(array):
    """What stands for a buffer that is not read."""
    return np.full(16, np.nan, np.float32) if array is None else array


def picture(array, index):
    """One picture of a batch, or nothing of nothing."""
    return None if array is None else array[index : index + 1]


def judge(y, x, weight, biases, residuals, elem, stride, padding):
    """y against f64, and what sums in f32 may lose."""
    outputs, *kernel, _ = weight.shape
    under = patches(values(x, elem), kernel, stride, padding)
    flat = values(weight, elem).reshape(outputs, -1)
    expected, more = under @ flat.T, np.zeros(1)
    for further in (biases, residuals):
        if further is not None:
            expected, more = expected + values(further, elem), more + np.abs(values(further, elem))
    terms = np.abs(under) @ np.abs(flat).T
    limit = 1.2 * 2.0**-24 * ((8 + np.sqrt(flat.shape[1])) * terms + 4 * np.abs(more)) + 1e-6
    return close(y, expected, elem, limit, "conv2d")


def conv2d(call):
    elem, batch, outputs = call.elem, call.batch, call.outputs
    shape = (batch, *call.x)
    size = out_size(shape, call.kernel, call.stride, call.padding)
    x, weight, biases, residuals = inputs(elem, shape, outputs, call.kernel, size, call.bias, call.residual)

    def run(plans, x, residuals, **schedules):
        arrays = [x, weight, or_nothing(biases), or_nothing(residuals)]
        (y,) = launch(call, plans[0], arrays, [((len(x), *size, outputs), dtype(elem))], **schedules)
        return y

    y = run(call.plans, x, residuals)
    if batch > 1:
        for row in range(batch):
            single = run(call.alone, picture(x, row), picture(residuals, row), schedules=((0, 0),))
            assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    return judge(y, x, weight, biases, residuals, elem, call.stride, call.padding)


def cases():
    for call in planned("conv2d"):
        size = "x".join(map(str, (call.batch, *call.x)))
        name = f"conv2d {call.elem} {size} {call.outputs} {call.kernel[0]}x{call.kernel[1]} stride {call.stride}"
        yield name, lambda c=call: conv2d(c)
