"""What the stages measure: each workload under the name that this crate's benches give it, with its sizes for PyTorch.

`smoke` workloads are small ones, for a machine without a GPU.
"""

from dataclasses import dataclass

# The names of types: ours here, criterion's, PyTorch's.
TYPES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


@dataclass(frozen=True)
class Workload:
    name: str
    # What peers.py computes.
    kind: str
    sizes: tuple
    types: tuple = ("f16",)


@dataclass(frozen=True)
class Stage:
    title: str
    # The bench program that runs our side.
    bench: str
    workloads: tuple
    smoke: tuple
    # Whether each workload gets a process of its own, so that its peak memory can be told.
    alone: bool = False


def linear(m, n, k):
    return Workload(f"linear {m}x{n}x{k}", "linear", (m, n, k), ("f16", "bf16"))


def attention(heads, queries, keys, head_dim):
    name = f"attention {heads}x{queries}x{keys}x{head_dim}"
    return Workload(name, "attention", (heads, queries, keys, head_dim), ("f16", "bf16"))


def conv2d(side, inputs, outputs):
    return Workload(f"conv2d {side}² {inputs}->{outputs}", "conv2d", (side, inputs, outputs), ("f16", "bf16"))


def group_norm(side, channels, groups=32):
    return Workload(f"group_norm_silu {side}² {channels}", "group_norm_silu", (side, channels, groups))


def upsample(side, channels):
    return Workload(f"upsample {side}² {channels}", "upsample", (side, channels))


def layer_norm(tokens, channels):
    return Workload(f"layer_norm {tokens}x{channels}", "layer_norm", (tokens, channels))


def geglu(tokens, channels):
    return Workload(f"geglu {tokens}x{channels}", "geglu", (tokens, channels))


def step(model, side, batch):
    return Workload(f"step {model} {side}² CFG batch {batch}", "step", (model, side, batch))


def decode(model, side):
    return Workload(f"decode {model} {side}²", "decode", (model, side))


STAGES = {
    "k1": Stage(
        "matrix products beside cuBLAS", "kernels",
        (linear(4096, 9216, 3072), linear(4096, 12288, 3072), linear(4096, 3072, 3072), linear(4608, 3072, 15360)),
        (linear(64, 64, 64),),
    ),
    "k2": Stage(
        "attention beside PyTorch's SDPA", "kernels",
        tuple(attention(24, n, n, d) for d in (64, 128) for n in (4096, 4608, 16384)),
        (attention(4, 64, 64, 16),),
    ),
    "k3": Stage(
        "3×3 convolution beside cuDNN, channels last", "kernels",
        (conv2d(128, 320, 320), conv2d(128, 512, 512), conv2d(1024, 128, 128)),
        (conv2d(16, 32, 32),),
    ),
    "k4": Stage(
        "norms and element-wise kernels beside PyTorch and a copy of as many bytes", "kernels",
        (
            group_norm(64, 320), group_norm(128, 320), group_norm(512, 256), group_norm(1024, 128),
            layer_norm(4096, 3072), layer_norm(16384, 3072), geglu(8192, 2560), geglu(16384, 10240),
            upsample(64, 320), upsample(512, 256),
        ),
        (group_norm(8, 96, 16), layer_norm(64, 96), geglu(64, 96), upsample(8, 96)),
    ),
    "m1": Stage(
        "a denoising step of Stable Diffusion 1.5's size with guidance beside diffusers", "generate",
        tuple(step("sd15", 512, batch) for batch in (1, 4, 16)),
        (step("embedded", 64, 1),),
        alone=True,
    ),
    "m6": Stage(
        "decoding with Stable Diffusion 1.5's autoencoder beside diffusers", "generate",
        (decode("sd15", 1024),),
        (decode("embedded", 64),),
        alone=True,
    ),
}


def chosen(stage, smoke, only=""):
    """The workload of a stage that `only` names, or those that have it in their names."""
    workloads = STAGES[stage].smoke if smoke else STAGES[stage].workloads
    named = [workload for workload in workloads if workload.name == only]
    return named or [workload for workload in workloads if only in workload.name]


def types(workload, smoke, device=""):
    """WGSL has no bf16."""
    every = ("f32",) if smoke else workload.types
    return tuple(dtype for dtype in every if device != "wgpu" or dtype != "bf16")


def moved(workload, width):
    """Bytes that a kernel which only moves memory reads and writes once, with `width` bytes an element."""
    kind, sizes = workload.kind, workload.sizes
    if kind == "group_norm_silu":
        elements = 2 * sizes[0] ** 2 * sizes[1]
    elif kind == "upsample":
        elements = 5 * sizes[0] ** 2 * sizes[1]
    elif kind == "layer_norm":
        elements = 2 * sizes[0] * sizes[1]
    elif kind == "geglu":
        elements = 3 * sizes[0] * sizes[1] // 2
    else:
        raise ValueError(f"{workload.name} does more than move memory")
    return elements * width
