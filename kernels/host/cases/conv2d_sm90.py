"""conv2d_sm90 against f64."""

import struct

from cases.conv2d import inputs, judge, or_nothing, out_size, picture
from harness import HOPPER_SCHEDULES, dtype, run
from variants import OPERATIONS

RESIDUALS = ("none", "map", "vector")


def pixel_map(shape, size, stride, padding, deep):
    """x's tensor map: the header's im2col, box and swizzle, corners, steps."""
    lower = (-padding[2], -padding[0])
    upper = [(size[1 - i] - 1) * stride + lower[i] - (shape[2 - i] - 1) for i in (0, 1)]
    return (128, deep), 2 * deep, (*lower, *upper), (stride, stride)


def conv2d(elem, ring, shape, outputs, kernel, stride, padding, blocks, bias, residual):
    constants = dict(zip(("TILE_N", "TILE_K", "STAGES", "DYNAMIC"), ring))
    assert constants in OPERATIONS["conv2d_sm90"].variants(elem), "a variant that is not compiled"
    wide, deep = ring[:2]
    size = out_size(shape, kernel, stride, padding)
    x, weight, biases, residuals = inputs(elem, shape, outputs, kernel, size, bias, residual)

    def launch(x, residuals, schedules, blocks=1):
        params = struct.pack(
            "<12I", len(x), *size, shape[3], outputs, *kernel, stride, padding[0], padding[2], bias,
            RESIDUALS.index(residual),
        )
        maps = (pixel_map(shape, size, stride, padding, deep), ((wide, 1, deep), 2 * deep))
        (y,) = run(
            "conv2d_sm90", elem, constants, "conv2d_sm90",
            [x, weight.reshape(outputs, -1, shape[3]), or_nothing(biases), or_nothing(residuals)],
            [((len(x), *size, outputs), dtype(elem))], params, blocks, 384 if wide == 256 else 288, schedules, maps,
        )
        return y

    y = launch(x, residuals, HOPPER_SCHEDULES, blocks)
    for row in range(len(x) if len(x) > 1 else 0):
        single = launch(picture(x, row), picture(residuals, row), ((0, 0),))
        assert single.tobytes() == y[row].tobytes(), f"row {row} depends on its batch"
    return judge(y, x, weight, biases, residuals, elem, stride, padding)


def cases():
    static, middle, large = (128, 32, 2, 0), (128, 64, 3, 1), (256, 64, 4, 1)
    around = (1, 1, 1, 1)
    shapes = (
        # ring, x, outputs, kernel, stride, padding (top, bottom, left, right), blocks, bias, residual
        (static, (1, 1, 1, 8), 8, (1, 1), 1, (0, 0, 0, 0), 1, 0, "none"),
        (static, (2, 11, 13, 40), 136, (3, 3), 1, around, 2, 1, "map"),
        (static, (2, 9, 12, 24), 24, (3, 3), 2, (0, 1, 0, 1), 1, 1, "vector"),
        (middle, (1, 7, 8, 72), 16, (3, 2), 2, (2, 1, 0, 1), 1, 1, "none"),
        (middle, (3, 6, 9, 64), 200, (3, 3), 1, around, 2, 0, "vector"),
        (large, (2, 13, 11, 72), 264, (3, 3), 1, around, 1, 1, "map"),
    )
    for elem in OPERATIONS["conv2d_sm90"].elems:
        for shape in shapes:
            ring, x, outputs, kernel, stride, *_ = shape
            sizes = " ".join("x".join(map(str, numbers)) for numbers in (ring[:3], x, (outputs,), kernel))
            name = f"conv2d_sm90 {elem} {sizes} stride {stride}"
            yield name, lambda e=elem, s=shape: conv2d(e, *s)
