"""matmul against f64."""

import numpy as np

from cases.pointwise import FUNCTIONS
from harness import close, dtype, launch, store, values
from variants import planned

ACTIVATIONS = [lambda x: x, *FUNCTIONS.values()]


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


def judge(y, x, weight, biases, residuals, elem, activation):
    """y against f64; biases and residuals are None where there are none."""
    x, weight = values(x, elem), values(weight, elem)
    expected = x @ weight.T
    more = np.zeros(1)
    if biases is not None:
        expected, more = expected + values(biases, elem), more + np.abs(values(biases, elem))
    expected = ACTIVATIONS[activation](expected)
    if residuals is not None:
        expected, more = expected + values(residuals, elem), more + np.abs(values(residuals, elem))
    return close(y, expected, elem, product_limit(x, weight, more), "matmul")


def by_params(plan, activation):
    """u32 rows, outputs, inputs, activation, ..: no launch asks for an activation so far."""
    return {"params": [*plan["params"][:3], activation, *plan["params"][4:]]}


def other_blocks(plan):
    """The launches of a kernel whose blocks take one tile after the other, with another number of them."""
    return [{**plan, "blocks": [count, 1, 1]} for count in (1, 3) if "maps" in plan and plan["blocks"][0] > 1]


def matmul(call, activation, ask=by_params):
    """A call against f64, and its pictures alone.

    * `ask`: how a launch gets the activation
    """
    elem, rows, outputs = call.elem, call.batch * call.tokens, call.outputs
    x, weight, biases, residuals = operands(rows, outputs, call.inputs, elem)
    nothing = np.full(16, np.nan, np.float32)

    def run(plans, x, residuals, **schedules):
        arrays = [x, weight, biases if call.bias else nothing, residuals if call.residual else nothing]
        asked = ask(plans[0], activation)
        (y,) = launch(call, plans[0], arrays, [((len(x), outputs), dtype(elem))], **asked, **schedules)
        return y

    y = run(call.plans, x, residuals)
    for other in other_blocks(call.plans[0]):
        assert run([other], x, residuals, schedules=((0, 0),)).tobytes() == y.tobytes(), "the bits depend on the blocks"
    if call.batch > 1:
        for picture in range(call.batch):
            own = slice(picture * call.tokens, (picture + 1) * call.tokens)
            single = run(call.alone, x[own], residuals[own], schedules=((0, 0),))
            assert single.tobytes() == y[own].tobytes(), f"picture {picture} depends on the others"
    more = biases if call.bias else None, residuals if call.residual else None
    return judge(y, x, weight, *more, elem, activation)


def cases():
    for call in planned("matmul"):
        size = f"{call.batch}x{call.tokens}x{call.outputs}x{call.inputs}"
        for activation in range(4) if call.tokens == 13 else (0,):
            name = f"matmul {call.elem} {size} {activation}"
            yield name, lambda c=call, a=activation: matmul(c, a)
