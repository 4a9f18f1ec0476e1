"""matmul against f64."""

import numpy as np

from cases.pointwise import FUNCTIONS
from harness import close, dtype, launch, store, values
from variants import planned


def product_limit(x, weight, more=0.0):
    """What sums in f32 may lose."""
    terms = np.abs(x) @ np.abs(weight).T
    return 1.2 * 2.0**-24 * ((8 + np.sqrt(x.shape[-1])) * terms + 4 * np.abs(more)) + 1e-6


def operands(pictures, tokens, outputs, inputs, elem):
    """x with outliers of 1e4, weights that keep the sums' size, bias, residual and gate."""
    rows = pictures * tokens
    rng = np.random.default_rng(rows + outputs + inputs)
    x = rng.normal(0, 1, (rows, inputs))
    x[0, 0] = 1e4
    x[-1, -1] = -1e4
    weight = rng.normal(0, inputs**-0.5, (outputs, inputs))
    rest = [rng.normal(0, 1, shape) for shape in (outputs, (rows, outputs), (pictures, outputs))]
    return [store(a, elem) for a in (x, weight, *rest)]


def judge(y, x, weight, biases, residuals, gates, elem, function):
    """y against f64; what is None is left out."""
    x, weight = values(x, elem), values(weight, elem)
    expected = x @ weight.T
    more = np.zeros(1)
    if biases is not None:
        expected, more = expected + values(biases, elem), more + np.abs(values(biases, elem))
    if function is not None:
        expected = function(expected)
    limit = product_limit(x, weight, more)
    if gates is not None:
        gates = values(gates, elem).repeat(len(x) // len(gates), 0)
        # One more rounding.
        expected, limit = expected * gates, limit * np.abs(gates) + 2.0**-24 * np.abs(expected * gates)
    if residuals is not None:
        residuals = values(residuals, elem)
        limit = limit + 2.0**-24 * (np.abs(expected) + np.abs(residuals))
        expected = expected + residuals
    return close(y, expected, elem, limit, "matmul")


def other_blocks(plan):
    """The launches of a kernel whose blocks take one tile after the other, with another number of them."""
    return [{**plan, "blocks": [count, 1, 1]} for count in (1, 3) if "maps" in plan and plan["blocks"][0] > 1]


def matmul(call):
    elem, tokens, outputs = call.elem, call.tokens, call.outputs
    x, weight, biases, residuals, gates = operands(call.batch, tokens, outputs, call.inputs, elem)
    nothing = np.full(16, np.nan, np.float32)

    def run(plans, x, residuals, gates, **schedules):
        more = (biases, call.bias), (residuals, call.residual), (gates, call.gate)
        arrays = [x, weight, *(array if there else nothing for array, there in more)]
        (y,) = launch(call, plans[0], arrays, [((len(x), outputs), dtype(elem))], **schedules)
        return y

    y = run(call.plans, x, residuals, gates)
    for plan in other_blocks(call.plans[0]):
        again = run([plan], x, residuals, gates, schedules=((0, 0),))
        assert again.tobytes() == y.tobytes(), "the bits depend on the blocks"
    if call.batch > 1:
        for picture in range(call.batch):
            own = slice(picture * tokens, (picture + 1) * tokens)
            single = run(call.alone, x[own], residuals[own], gates[picture : picture + 1], schedules=((0, 0),))
            assert single.tobytes() == y[own].tobytes(), f"picture {picture} depends on the others"
    more = biases if call.bias else None, residuals if call.residual else None, gates if call.gate else None
    return judge(y, x, weight, *more, elem, FUNCTIONS.get(call.activation))


def cases():
    for call in planned("matmul"):
        size = f"{call.batch}x{call.tokens}x{call.outputs}x{call.inputs}"
        yield f"matmul {call.elem} {size} {call.activation}", lambda c=call: matmul(c)
