"""What the launchers compile: each operation's parts, entries and the constants of its variants."""

from dataclasses import dataclass, field
from pathlib import Path

CUDA = Path(__file__).resolve().parent / "cuda"
ELEMS = ("f32", "f16", "bf16")


def chunk(elem):
    """Elements in 16 bytes."""
    return 4 if elem == "f32" else 8


@dataclass(frozen=True)
class Operation:
    """One file of cuda/."""

    parts: tuple
    entries: tuple
    # The constants of every variant, for an element type.
    variants: object = field(repr=False)
    # Whether f16 and bf16 must reach the tensor cores.
    tensor_cores: bool = False


def widths(elem):
    return [{"WIDTH": 1}, {"WIDTH": chunk(elem)}]


def layer_norm(elem):
    """Channels 320, 1280 and the largest; odd ones."""
    wide = chunk(elem)
    packs = sorted({-(-channels // (32 * wide)) for channels in (320, 1280, 4096)})
    return [{"WIDTH": 1, "PACKS": 1}, {"WIDTH": 1, "PACKS": 40}] + [{"WIDTH": wide, "PACKS": n} for n in packs]


def tiles(elem):
    return [{"TILE": 128, "ALIGNED": 1}, {"TILE": 64, "ALIGNED": 1}, {"TILE": 64, "ALIGNED": 0}]


def heads(elem):
    return [{"HEAD_DIM": dim, "CAUSAL": 0} for dim in (40, 64, 80, 128, 160, 512)] + [{"HEAD_DIM": 64, "CAUSAL": 1}]


GEMM = ("common.cuh", "mma.cuh", "gemm.cuh")

OPERATIONS = {
    "group_norm": Operation(("common.cuh", "group_norm.cu"), ("group_norm_statistics", "group_norm"), widths),
    "layer_norm": Operation(("common.cuh", "layer_norm.cu"), ("layer_norm",), layer_norm),
    "geglu": Operation(("common.cuh", "geglu.cu"), ("geglu",), widths),
    "activation": Operation(("common.cuh", "activation.cu"), ("activation",), widths),
    "upsample_nearest_2x": Operation(
        ("common.cuh", "upsample_nearest_2x.cu"), ("upsample_nearest_2x",), widths
    ),
    "matmul": Operation((*GEMM, "matmul.cu"), ("matmul",), tiles, tensor_cores=True),
    "conv2d": Operation((*GEMM, "conv2d.cu"), ("conv2d",), tiles, tensor_cores=True),
    "attention": Operation(
        ("common.cuh", "mma.cuh", "attention.cu"), ("attention",), heads, tensor_cores=True
    ),
}


def source(operation, elem, constants):
    """The text that a launcher hands to the compiler."""
    prelude = [f"#define ELEM_{elem.upper()} 1"]
    prelude += [f"#define {name} {value}" for name, value in constants.items()]
    parts = [(CUDA / part).read_text() for part in OPERATIONS[operation].parts]
    return "\n".join(prelude) + "\n" + "\n".join(parts)


def label(constants):
    return " ".join(f"{name}={value}" for name, value in constants.items())
