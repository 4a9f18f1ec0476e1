"""matmul_sm90 against f64."""

from cases.matmul import matmul
from variants import planned


def by_constant(plan, activation):
    return {"constants": {"ACTIVATION": activation}}


def cases():
    for index, call in enumerate(planned("matmul_sm90")):
        size = f"{call.batch}x{call.tokens}x{call.outputs}x{call.inputs}"
        ring = call.plans[0]["constants"]
        # No launch asks for an activation so far: the cases take turns.
        name = f"matmul_sm90 {call.elem} {ring['TILE_N']}x{ring['TILE_K']}x{ring['STAGES']} {size} {index % 4}"
        yield name, lambda c=call, a=index % 4: matmul(c, a, by_constant)
