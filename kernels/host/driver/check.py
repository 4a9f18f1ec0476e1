#!/usr/bin/env python3
"""The software CUDA driver against calls that a driver must carry out, and calls that it must refuse.

    python kernels/host/driver/check.py FOLDER    # where `build` has put it; numpy is needed
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
from variants import OPERATIONS, source  # noqa: E402

Pointer, Address, Size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
NON_BLOCKING, LIMIT = 1, 8
FLOAT16, BFLOAT16 = 6, 9


class Refused(Exception):
    pass


class Device:
    """The calls of the two libraries; one that is refused raises what the driver says."""

    def __init__(self, folder):
        self.driver = ctypes.CDLL(str(folder / "libcuda.so"))
        self.nvrtc = ctypes.CDLL(str(folder / "libnvrtc.so"))
        self.stderr = os.dup(2)
        context = Pointer()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        library = self.nvrtc if name.startswith("nvrtc") else self.driver
        if "AQUATINT_CUDA_ERRORS" not in os.environ:
            # The driver ends this process where it refuses.
            getattr(library, name)(*arguments)
            return
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            try:
                result = getattr(library, name)(*arguments)
            finally:
                os.dup2(self.stderr, 2)
            said.seek(0)
            text = said.read().decode()
        if result != 0 or text:
            raise Refused(f"{result}: {text}")

    def new(self, name, *arguments, kind=Pointer):
        value = kind()
        self.call(name, ctypes.byref(value), *arguments)
        return value

    def stream(self):
        return self.new("cuStreamCreate", NON_BLOCKING)

    def event(self, stream=None):
        event = self.new("cuEventCreate", 0)
        if stream is not None:
            self.call("cuEventRecord", event, stream)
        return event

    def memory(self, size):
        return self.new("cuMemAlloc_v2", Size(size), kind=Address)

    def upload(self, array, stream):
        memory = self.memory(array.nbytes)
        self.call("cuMemcpyHtoDAsync_v2", memory, array.ctypes.data_as(Pointer), Size(array.nbytes), stream)
        return memory

    def locked(self, array):
        address = self.new("cuMemAllocHost_v2", Size(array.nbytes))
        view = np.frombuffer((ctypes.c_char * array.nbytes).from_address(address.value), array.dtype)
        view[:] = array
        return address, view

    def image(self, text, option="sm_90a"):
        program = self.new("nvrtcCreateProgram", text.encode(), None, 0, None, None)
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={option}".encode())
        self.call("nvrtcCompileProgram", program, 1, options)
        size = Size()
        self.call("nvrtcGetPTXSize", program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        self.call("nvrtcGetPTX", program, image)
        return image

    def kernel(self, operation, elem, constants, entry=None):
        module = self.new("cuModuleLoadData", self.image(source(operation, elem, constants)))
        return self.new("cuModuleGetFunction", module, (entry or operation).encode())

    def launch(self, kernel, blocks, threads, shared, stream, *arguments):
        given = (Pointer * len(arguments))(*(None if a is None else ctypes.addressof(a) for a in arguments))
        self.call("cuLaunchKernel", kernel, *blocks, *threads, shared, stream, given, None)


def words(*values):
    return (ctypes.c_uint32 * len(values))(*values)


class Activation:
    """silu of 1024 numbers."""

    COUNT, BYTES = 1024, 4096

    def __init__(self, device):
        self.device, self.stream = device, device.stream()
        self.kernel = device.kernel("activation", "f32", {"WIDTH": 4})
        self.input = np.linspace(-3, 3, self.COUNT, dtype=np.float32)
        self.x, self.y = device.upload(self.input, self.stream), device.memory(self.BYTES)

    def launch(self, blocks=(1, 1, 1), threads=(256, 1, 1), shared=0, stream=None, x=None, y=None, params=(256, 3)):
        params = words(*params)
        x, y = x or self.x, y or self.y
        self.device.launch(self.kernel, blocks, threads, shared, stream or self.stream, x, y, params)

    def expected(self):
        return self.input / (1 + np.exp(-self.input.astype(np.float64)))


class Product:
    """y = x · weightᵀ on Hopper."""

    ROWS, OUTPUTS, INPUTS = 130, 136, 72
    CONSTANTS = {"TILE_N": 128, "TILE_K": 64, "STAGES": 3, "DYNAMIC": 1, "ACTIVATION": 0}
    SHARED = OPERATIONS["matmul_sm90"].memory_of(CONSTANTS)

    def __init__(self, device):
        self.device, self.stream = device, device.stream()
        self.kernel = device.kernel("matmul_sm90", "f16", self.CONSTANTS)
        random = np.random.default_rng(0)
        self.x = random.standard_normal((self.ROWS, self.INPUTS)).astype(np.float16)
        self.weight = random.standard_normal((self.OUTPUTS, self.INPUTS)).astype(np.float16)
        self.buffers = [device.upload(array, self.stream) for array in (self.x, self.weight)]
        self.y = device.memory(2 * self.ROWS * self.OUTPUTS)

    def map(self, which, rows, element=FLOAT16, base=0, pitch=2 * INPUTS, box=(64, 128), steps=(1, 1), swizzle=3):
        room = ctypes.create_string_buffer(192)
        at = ctypes.addressof(room) + -ctypes.addressof(room) % 64
        self.device.call(
            "cuTensorMapEncodeTiled", Pointer(at), element, 2, Pointer(self.buffers[which].value + base),
            (ctypes.c_uint64 * 2)(self.INPUTS, rows), (ctypes.c_uint64 * 1)(pitch), words(*box), words(*steps),
            0, swizzle, 2, 0,
        )
        return (ctypes.c_char * 128).from_buffer_copy((ctypes.c_char * 128).from_address(at))

    def launch(self, allowed=SHARED, shared=SHARED, **map_of):
        self.device.call("cuFuncSetAttribute", self.kernel, LIMIT, allowed)
        maps = self.map(0, self.ROWS, **map_of), self.map(1, self.OUTPUTS)
        params = words(self.ROWS, self.OUTPUTS, self.INPUTS, 0, 0, 0)
        unread = self.buffers[0]
        self.device.launch(
            self.kernel, (4, 1, 1), (288, 1, 1), shared, self.stream, *maps, unread, unread, unread, self.y, params
        )


def download(device, memory, like, stream):
    found = np.zeros_like(like)
    device.call("cuMemcpyDtoHAsync_v2", found.ctypes.data_as(Pointer), memory, Size(found.nbytes), stream)
    return found


def carried_out(device):
    """What a driver must do, with its results."""
    silu = Activation(device)
    silu.launch()
    found = download(device, silu.y, silu.input, silu.stream)
    assert np.allclose(found, silu.expected(), rtol=1e-6, atol=1e-7), "silu"

    # Page-locked memory has the values when the host has waited, not before.
    address, view = device.locked(np.zeros_like(silu.input))
    device.call("cuMemcpyDtoHAsync_v2", address, silu.y, Size(silu.BYTES), silu.stream)
    assert np.all(np.isnan(view)), "read too early"
    device.call("cuEventSynchronize", device.event(silu.stream))
    assert np.array_equal(view, found), "read after the wait"

    # Another stream, which waits; and all of them, through the context.
    other = device.stream()
    device.call("cuStreamWaitEvent", other, device.event(silu.stream), 0)
    silu.launch(stream=other)
    event = device.event()
    device.call("cuCtxRecordEvent", None, event)
    device.call("cuCtxWaitEvent", None, event)
    silu.launch()

    product = Product(device)
    product.launch()
    found = download(device, product.y, np.zeros((product.ROWS, product.OUTPUTS), np.float16), product.stream)
    expected = product.x.astype(np.float64) @ product.weight.astype(np.float64).T
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-2), "product"


def from_another_stream(device):
    silu = Activation(device)
    silu.launch()
    silu.launch(stream=device.stream())


def freed_too_early(device):
    silu = Activation(device)
    silu.launch()
    device.call("cuMemFreeAsync", silu.y, device.stream())


def after_free(device):
    silu = Activation(device)
    device.call("cuMemFree_v2", silu.x)
    silu.launch()


def changed_while_copied(device):
    address, view = device.locked(np.zeros(64, np.float32))
    memory, stream = device.memory(256), device.stream()
    device.call("cuMemcpyHtoDAsync_v2", memory, address, Size(256), stream)
    view[3] = 1
    device.call("cuStreamSynchronize", stream)


def freed_while_copied(device):
    address, _ = device.locked(np.zeros(64, np.float32))
    device.call("cuMemcpyDtoHAsync_v2", address, device.memory(256), Size(256), device.stream())
    device.call("cuMemFreeHost", address)


def too_much_copied(device):
    array = np.zeros(65, np.float32)
    device.call("cuMemcpyHtoDAsync_v2", device.memory(256), array.ctypes.data_as(Pointer), Size(260), device.stream())


def with_no_params(device):
    silu = Activation(device)
    device.launch(silu.kernel, (1, 1, 1), (256, 1, 1), 0, silu.stream, silu.x, silu.y, None)


REFUSED = {
    "another architecture": (lambda d: d.image(source("geglu", "f32", {"WIDTH": 1}), "sm_80"), "the device is sm_90a"),
    "a kernel of another program": (
        lambda d: d.image('extern "C" __global__ void fill(float* x) {}'), "fill is no kernel of kernels/cuda"
    ),
    "an image of elsewhere": (lambda d: d.new("cuModuleLoadData", b".version 8.0"), "not of the software NVRTC"),
    "threads": (lambda d: Activation(d).launch(threads=(128, 1, 1)), "128x1x1 threads, expected 256x1x1"),
    "a grid of two directions": (lambda d: Activation(d).launch(blocks=(1, 2, 1)), "a grid of 1x2x1"),
    "no blocks": (lambda d: Activation(d).launch(blocks=(0, 1, 1)), "a grid of 0x1x1"),
    "shared memory that nothing uses": (lambda d: Activation(d).launch(shared=1024), "1024 bytes of dynamic"),
    "a buffer that is none": (lambda d: Activation(d).launch(x=Address(4096)), "no live device memory"),
    "a buffer's middle": (lambda d: (a := Activation(d)).launch(x=Address(a.x.value + 4)), "no multiple of 16"),
    "one buffer for input and output": (lambda d: (a := Activation(d)).launch(y=a.x), "one buffer, which is written"),
    "no params": (with_no_params, "parameter 2, of 8 bytes"),
    "a freed buffer": (after_free, "that were freed"),
    "a race": (from_another_stream, "race: activation reads"),
    "a free that does not wait": (freed_too_early, "race: cuMemFreeAsync writes"),
    "a source that changes": (changed_while_copied, "was changed while a copy"),
    "a target that is freed": (freed_while_copied, "is under way"),
    "a copy beyond the end": (too_much_copied, "260 bytes from"),
    "shared memory that was not allowed": (lambda d: Product(d).launch(allowed=49152), "allowed 49152"),
    "more than a block may have": (lambda d: Product(d).launch(allowed=232449), "at most 232448"),
    "too little shared memory": (lambda d: Product(d).launch(shared=Product.SHARED - 1024), "expected 99376"),
    "a map of another type": (lambda d: Product(d).launch(element=BFLOAT16), "maps element type 9"),
    "a map's address": (lambda d: Product(d).launch(base=8), "no multiple of 16"),
    "a map's pitch": (lambda d: Product(d).launch(pitch=2 * 72 + 8), "pitch 0 is 152 bytes"),
    "a map's pitch below its row": (lambda d: Product(d).launch(pitch=128), "the dimension within has 144"),
    "a map beyond the end": (lambda d: Product(d).launch(pitch=160), "no live device memory"),
    "a box of too many rows": (lambda d: Product(d).launch(box=(64, 257)), "is 257, expected 1 to 256"),
    "a box beside its swizzle": (lambda d: Product(d).launch(box=(32, 128)), "has 64 bytes, its swizzle 128"),
    "a map's steps": (lambda d: Product(d).launch(steps=(1, 9)), "is 9, expected 1 to 8"),
}


def beyond_the_end(device):
    """The kernel is told of more than its buffers hold."""
    Activation(device).launch(params=(4096, 3), blocks=(16, 1, 1))


def within_the_last_page(device):
    silu = Activation(device)
    silu.launch(y=device.memory(silu.BYTES - 16))


ENDED = {
    "beyond_the_end": "which is no memory of the device",
    "within_the_last_page": "a write beyond the end",
}


def main():
    folder, *what = sys.argv[1:]
    os.environ["AQUATINT_CUDA_CAPABILITY"] = "90"
    if what:
        globals()[what[0]](Device(Path(folder)))
        return
    for name, said in ENDED.items():
        process = subprocess.run([sys.executable, __file__, folder, name], capture_output=True, text=True)
        assert process.returncode != 0 and said in process.stderr, f"{name}: {process.returncode}, {process.stderr}"
    os.environ["AQUATINT_CUDA_ERRORS"] = "return"
    device = Device(Path(folder))
    carried_out(device)
    for name, (case, said) in REFUSED.items():
        try:
            case(device)
        except Refused as refused:
            assert said in str(refused), f"{name}: {refused}"
        else:
            raise AssertionError(f"{name} was not refused")
    print(f"{len(REFUSED) + len(ENDED)} refused, what must be carried out is")


if __name__ == "__main__":
    main()
