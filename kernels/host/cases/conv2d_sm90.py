"""conv2d_sm90 against f64."""

from cases.conv2d import conv2d
from variants import planned


def cases():
    for call in planned("conv2d_sm90"):
        ring, size = call.plans[0]["constants"], "x".join(map(str, (call.batch, *call.x)))
        rest = f"{call.outputs} {call.kernel[0]}x{call.kernel[1]} stride {call.stride}"
        name = f"conv2d_sm90 {call.elem} {ring['TILE_N']}x{ring['TILE_K']}x{ring['STAGES']} {size} {rest}"
        yield name, lambda c=call: conv2d(c)
