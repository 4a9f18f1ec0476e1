"""Builds a kernel as C++ against device.hpp and runs it on numpy arrays."""

import ctypes
import hashlib
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from variants import OPERATIONS, source, variant  # noqa: E402

DEVICE = Path(__file__).resolve().parent / "device.hpp"
STATIC_LIMIT = 48 * 1024
LAUNCHED_LIMIT = 227 * 1024
PAGE = mmap.PAGESIZE
# The order (0: warps first to last, 1: last to first, 2: threads shuffled), and what happens at the last moment
# (1: copies, 2: a warpgroup's products, 3: both).
SCHEDULES = ((0, 0), (1, 0), (0, 1), (2, 1))
HOPPER_SCHEDULES = ((0, 0), (1, 2), (0, 1), (1, 3), (2, 3))
CANARY = 0xA5

libc = ctypes.CDLL(None)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
folder = tempfile.TemporaryDirectory()
loaded = {}


def library(operation, elem, constants):
    """The shared library of one variant."""
    text = f'#define ELEM_{elem.upper()} 1\n#include "{DEVICE}"\n' + source(operation, elem, constants)
    for entry in OPERATIONS[operation].entries:
        text += (
            f'extern "C" void launch_{entry}(void** pointers, const void* params, unsigned blocks, unsigned threads,'
            f" unsigned order, unsigned late) {{\n"
            f"  device::launch({entry}, pointers, params, blocks, threads, order, late);\n}}\n"
        )
    text += (
        'extern "C" unsigned shared_bytes() { return __stop_device_shared - __start_device_shared; }\n'
        'extern "C" unsigned params_bytes() { return sizeof(Params); }\n'
        'extern "C" unsigned block_threads() { return THREADS; }\n'
    )
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    if name not in loaded:
        # Other processes may compile the same.
        path = Path(folder.name) / f"{name}-{os.getpid()}"
        path.with_suffix(".cpp").write_text(text)
        # The array bounds that are known are checked; an overrun stops the program.
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-Werror"]
        flags += ["-fsanitize=bounds,shift,signed-integer-overflow,integer-divide-by-zero"]
        flags += ["-fsanitize-undefined-trap-on-error", "-U_FORTIFY_SOURCE"]
        # Nothing is shared between the libraries of two variants.
        flags += ["-fno-gnu-unique", "-Wl,-Bsymbolic"]
        command = ["g++", *flags, path.with_suffix(".cpp"), "-o", path.with_suffix(".so")]
        subprocess.run(command, check=True)
        loaded[name] = ctypes.CDLL(str(path.with_suffix(".so")))
    return loaded[name]


class Buffer:
    """Memory that ends, but for the last 16 bytes' alignment, at a page that cannot be touched."""

    def __init__(self, array):
        self.shape, self.dtype, self.bytes = array.shape, array.dtype, array.nbytes
        padded = -(-max(self.bytes, 16) // 16) * 16
        pages = -(-padded // PAGE)
        self.map = mmap.mmap(-1, (pages + 2) * PAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        ctypes.memset(self.base, CANARY, (pages + 2) * PAGE)
        self.end = self.base + (pages + 1) * PAGE
        self.address = self.end - padded
        ctypes.memmove(self.address, array.tobytes(), self.bytes)
        for guard in (self.base, self.end):
            if libc.mprotect(guard, PAGE, 0) != 0:
                raise OSError("mprotect")

    def array(self):
        return np.frombuffer(ctypes.string_at(self.address, self.bytes), self.dtype).reshape(self.shape)

    def untouched_around(self):
        before = ctypes.string_at(self.base + PAGE, self.address - self.base - PAGE)
        after = ctypes.string_at(self.address + self.bytes, self.end - self.address - self.bytes)
        return not (before + after).strip(bytes([CANARY]))

    def free(self):
        for guard in (self.base, self.end):
            libc.mprotect(guard, PAGE, 3)


def tensor_map(address, array, planned):
    """The TensorMap of hopper.hpp for a tensor of 16-bit elements, of a launch's plan."""
    sizes, pitches = planned["sizes"], planned["pitches"]
    assert int(np.prod(sizes)) == array.size and array.itemsize == 2, "a tensor map of another tensor"
    pixels = planned.get("pixels")
    box = planned["box"] if pixels is None else [pixels["channels"], pixels["count"]]
    further = [2 * array.size] * (3 - len(pitches))
    corners = (0, 0, 0, 0, 0, 0) if pixels is None else (*pixels["lower"], *pixels["upper"], *pixels["steps"])
    packed = struct.pack(
        "<8Q6I6i16x", address, *sizes, *[1] * (4 - len(sizes)), *pitches, *further, *box, *[1] * (4 - len(box)),
        planned["swizzle"], len(sizes), *corners,
    )
    return ctypes.create_string_buffer(packed, len(packed))


def shared_memory_holds(code, operation, constants):
    """What the source takes is what the launch brings, and within the device's limits."""
    launched = OPERATIONS[operation].memory_of(constants)
    if launched is None:
        assert code.shared_bytes() <= STATIC_LIMIT, f"{code.shared_bytes()} bytes of shared memory"
    else:
        found = code.shared_bytes() + 1024
        assert found == launched <= LAUNCHED_LIMIT, f"{found} bytes of shared memory, {launched} launched"


def run(operation, elem, constants, entry, arrays, outputs, params, blocks, threads, schedules=SCHEDULES, maps=()):
    """Runs `entry` under every schedule, whose bits must agree.

    * `arrays`: the inputs; `outputs`: shapes and dtypes, which follow them
    * `maps`: the first inputs reach the kernel as tensor maps, as they are planned
    * returns the outputs
    """
    code = library(operation, elem, constants)
    shared_memory_holds(code, operation, constants)
    assert code.params_bytes() == len(params) and len(params) % 8 == 0, "the parameters' size"
    assert code.block_threads() == threads, "the threads of a block"
    agreed = None
    for order, late in schedules:
        buffers = [Buffer(np.ascontiguousarray(array)) for array in arrays]
        for shape, dtype in outputs:
            # NaN in every dtype, so that an element that is never written shows.
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            buffers.append(Buffer(np.frombuffer(b"\xff" * size, dtype).reshape(shape)))
        descriptions = [tensor_map(b.address, a, m) for b, a, m in zip(buffers, arrays, maps)]
        addresses = [ctypes.addressof(text) for text in descriptions]
        addresses += [buffer.address for buffer in buffers[len(maps) :]]
        pointers = (ctypes.c_void_p * len(buffers))(*addresses)
        launch = getattr(code, f"launch_{entry}")
        launch.restype = None
        launch(pointers, params, *(ctypes.c_uint(value) for value in (blocks, threads, order, late)))
        for buffer, array in zip(buffers, arrays):
            assert buffer.array().tobytes() == np.ascontiguousarray(array).tobytes(), "an input was written"
        assert all(buffer.untouched_around() for buffer in buffers), "a write outside of a buffer"
        found = [buffer.array() for buffer in buffers[len(arrays) :]]
        for buffer in buffers:
            buffer.free()
        if agreed is None:
            agreed = found
        for a, b in zip(agreed, found):
            assert a.tobytes() == b.tobytes(), f"the schedule ({order}, {late}) changes bits"
    return agreed


def launch(call, plan, arrays, outputs, schedules=None):
    """Runs a launch that the crate has planned, under every schedule."""
    constants = variant(call, plan)
    assert plan["blocks"][1:] == [1, 1], "blocks in one direction"
    words = plan["params"]
    maps = plan.get("maps", ())
    return run(
        call.operation, call.elem, constants, plan["entry"], arrays, outputs,
        struct.pack(f"<{len(words)}I", *words), plan["blocks"][0], plan["threads"],
        schedules or (HOPPER_SCHEDULES if maps else SCHEDULES), maps,
    )


def store(values, elem):
    """f64 values rounded to an element type: f32 as such, f16 and bf16 as their bits."""
    values = np.asarray(values, np.float32)
    if elem == "f32":
        return values
    if elem == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def values(stored, elem):
    """What stored elements mean, in f64."""
    if elem == "f32":
        return stored.astype(np.float64)
    if elem == "f16":
        return stored.view(np.float16).astype(np.float64)
    return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def dtype(elem):
    return np.float32 if elem == "f32" else np.uint16


# Half a unit in the last place, relative.
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


def close(found, expected, elem, absolute, what):
    """|found - expected| <= one rounding of the element type + `absolute` (f32's sums), everywhere."""
    found = values(found, elem)
    assert found.shape == expected.shape, f"{what}: {found.shape} for {expected.shape}"
    # f16's subnormals have a fixed step.
    tiny = 2.0**-25 if elem == "f16" else 0.0
    limit = 1.01 * ROUNDING[elem] * np.abs(expected) + tiny + absolute
    if elem == "f16":
        # Beyond the largest f16 lies infinity.
        expected = np.where(np.abs(expected) >= 65520, np.copysign(np.inf, expected), expected)
        limit = np.broadcast_to(limit, expected.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.where(found == expected, 0.0, np.abs(found - expected)) / limit
    worst = float(np.max(error)) if error.size else 0.0
    assert np.all(error <= 1.0), f"{what}: {worst:.3g} times the limit"
    return worst
