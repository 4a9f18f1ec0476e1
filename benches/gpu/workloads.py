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
    workloads: tuple
    smoke: tuple
    # Whether each workload gets a process of its own, so that its peak memory can be told.
    alone: bool = False
    # Whether the other side needs diffusers.
    diffusers: bool = False
    # Why the stage measures nothing.
    absent: str = ""


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


def gated(operation, tokens, channels):
    """The channels count both halves."""
    return Workload(f"{operation} {tokens}x{channels}", operation, (tokens, channels))


def bias_gelu(form, tokens, channels):
    return Workload(f"bias_gelu {form} {tokens}x{channels}", "bias_gelu", (tokens, channels, form))


def transformer(tokens, channels):
    """What surrounds the matrix products of a diffusion transformer's block, with heads of 128 channels."""
    operations = ("rms_norm", "layer_norm_modulate", "gate_residual", "qk_norm_rope")
    return tuple(Workload(f"{name} {tokens}x{channels}", name, (tokens, channels)) for name in operations)


def denoise_step(batch, side, sampler):
    return Workload(f"denoise_step {batch}x{side}² {sampler}", "denoise_step", (batch, side, sampler))


SAMPLERS = ("euler", "euler rescaled", "dpmpp_2m_sde")


def step(model, side, batch):
    return Workload(f"step {model} {side}² CFG batch {batch}", "step", (model, side, batch))


def decode(model, side):
    return Workload(f"decode {model} {side}²", "decode", (model, side))


STAGES = {
    "k1": Stage(
        "matrix products beside cuBLAS",
        (linear(4096, 9216, 3072), linear(4096, 12288, 3072), linear(4096, 3072, 3072), linear(4608, 3072, 15360)),
        (linear(64, 64, 64),),
    ),
    "k2": Stage(
        "attention beside PyTorch's SDPA",
        tuple(attention(24, n, n, d) for d in (64, 128) for n in (4096, 4608, 16384)),
        (attention(4, 64, 64, 16),),
    ),
    "k3": Stage(
        "3×3 convolution beside cuDNN, channels last",
        (conv2d(128, 320, 320), conv2d(128, 512, 512), conv2d(1024, 128, 128)),
        (conv2d(16, 32, 32),),
    ),
    "k4": Stage(
        "norms and element-wise kernels beside PyTorch and a copy of as many bytes",
        (
            group_norm(64, 320), group_norm(128, 320), group_norm(512, 256), group_norm(1024, 128),
            layer_norm(4096, 3072), layer_norm(16384, 3072), *transformer(4608, 3072),
            gated("geglu", 8192, 2560), gated("geglu", 16384, 10240), gated("swiglu", 4608, 18432),
            bias_gelu("Exact", 4608, 12288), bias_gelu("Tanh", 4608, 12288), upsample(64, 320), upsample(512, 256),
        ),
        (
            group_norm(8, 96, 16), layer_norm(64, 96), *transformer(1024, 1536), gated("geglu", 64, 96),
            gated("swiglu", 1024, 1536), bias_gelu("Exact", 1024, 1536), bias_gelu("Tanh", 1024, 1536), upsample(8, 96),
        ),
    ),
    "denoise_step": Stage(
        "guidance and a sampler's step for a batch beside diffusers",
        tuple(denoise_step(batch, side, name) for side in (64, 128) for batch in (1, 16) for name in SAMPLERS),
        tuple(denoise_step(batch, 8, name) for batch in (1, 4) for name in SAMPLERS),
        diffusers=True,
    ),
    "m1": Stage(
        "a denoising step of Stable Diffusion 1.5's size with guidance beside diffusers",
        tuple(step("sd15", 512, batch) for batch in (1, 4, 16)),
        (step("embedded", 64, 1), step("embedded", 64, 4)),
        alone=True, diffusers=True,
    ),
    "m2": Stage(
        "a denoising step of Stable Diffusion XL's size", (), (),
        absent="this crate has no Stable Diffusion XL",
    ),
    "m6": Stage(
        "decoding with Stable Diffusion 1.5's autoencoder beside diffusers",
        (decode("sd15", 1024),),
        (decode("embedded", 64),),
        alone=True, diffusers=True,
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
    # Read and written: a picture's maps, and tokens' channels.
    maps, tokens = {"group_norm_silu": 2, "upsample": 5}, {
        "layer_norm": 2, "rms_norm": 2, "layer_norm_modulate": 2, "bias_gelu": 2, "gate_residual": 3, "qk_norm_rope": 4,
        "geglu": 1.5, "swiglu": 1.5,
    }
    if kind in maps:
        return maps[kind] * sizes[0] ** 2 * sizes[1] * width
    if kind in tokens:
        return int(tokens[kind] * sizes[0] * sizes[1]) * width
    raise ValueError(f"{workload.name} does more than move memory")
