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


def conv2d(call):
    elem, batch, outputs = call.elem, call.batch, call.outputs
    shape = (batch, *call.x)
    rng = np.random.default_rng(sum(shape) + outputs)
    x = rng.normal(0, 1, shape)
    x.reshape(-1)[0] = 1e4
    x.reshape(-1)[-1] = -1e4
    inner = call.kernel[0] * call.kernel[1] * shape[3]
    x = store(x, elem)
    weight = store(rng.normal(0, inner**-0.5, (outputs, *call.kernel, shape[3])), elem)
    biases = store(rng.normal(0, 1, outputs), elem)
    under = patches(values(x, elem), call.kernel, call.stride, call.padding)
    _, out_height, out_width, _ = under.shape
    has_residual = call.residual != "none"
    residual_shape = (out_height, out_width, outputs) if call.residual == "map" else (1, 1, outputs)
    residuals = store(rng.normal(0, 1, (batch, *residual_shape)), elem)
    nothing = np.full(16, np.nan, np.float32)

    def run(plans, x, residuals, **schedules):
        arrays = [x, weight, biases if call.bias else nothing, residuals if has_residual else nothing]
        output = ((len(x), out_height, out_width, outputs), dtype(elem))
        (y,) = launch(call, plans[0], arrays, [output], **schedules)
        return y

    y = run(call.plans, x, residuals)
    if batch > 1:
        for row in range(batch):
            single = run(call.alone, x[row : row + 1], residuals[row : row + 1], schedules=((0, 0),))
            assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    flat = values(weight, elem).reshape(outputs, inner)
    expected, more = under @ flat.T, np.zeros(1)
    if call.bias:
        expected, more = expected + values(biases, elem), more + np.abs(values(biases, elem))
    if has_residual:
        expected, more = expected + values(residuals, elem), more + np.abs(values(residuals, elem))
    terms = np.abs(under) @ np.abs(flat).T
    limit = 1.2 * 2.0**-24 * ((8 + np.sqrt(inner)) * terms + 4 * np.abs(more)) + 1e-6
    return close(y, expected, elem, limit, "conv2d")


def cases():
    for call in planned("conv2d"):
        size = "x".join(map(str, (call.batch, *call.x)))
        name = f"conv2d {call.elem} {size} {call.outputs} {call.kernel[0]}x{call.kernel[1]} stride {call.stride}"
        yield name, lambda c=call: conv2d(c)
