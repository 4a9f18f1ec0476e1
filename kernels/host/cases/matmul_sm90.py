"""matmul_sm90 against f64."""

from cases.matmul import matmul
from variants import planned


def cases():
    for call in planned("matmul_sm90"):
        size = f"{call.batch}x{call.tokens}x{call.outputs}x{call.inputs}"
        ring = call.plans[0]["constants"]
        name = f"matmul_sm90 {call.elem} {ring['TILE_N']}x{ring['TILE_K']}x{ring['STAGES']} {size} {call.activation}"
        yield name, lambda c=call: matmul(c)
