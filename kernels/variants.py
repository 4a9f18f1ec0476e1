"""What the launchers compile: each operation's parts, entries and the constants of its variants."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
CUDA = HERE / "cuda"
ELEMS = ("f32", "f16", "bf16")
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")


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
    # Instructions that the machine code of f16 and bf16 must hold.
    instructions: tuple = ()
    architectures: tuple = ARCHITECTURES
    elems: tuple = ELEMS
    # The bytes of shared memory that a launch brings, of constants; None where all of it is static.
    launched_memory: object = field(default=None, repr=False)

    def memory_of(self, constants):
        """What a launch brings, None where the memory is static."""
        return self.launched_memory(constants) if constants.get("DYNAMIC") else None


def widths(elem):
    return [{"WIDTH": 1}, {"WIDTH": chunk(elem)}]


def plain(elem):
    return [{}]


def rows(elem):
    """Channels of the models, a few, and the most that a warp holds."""
    wide = chunk(elem)
    packs = sorted({-(-channels // (32 * wide)) for channels in (128, 320, 640, 768, 1280, 3072, 4096)})
    return [{"WIDTH": 1, "PACKS": n} for n in (1, 40, 64)] + [{"WIDTH": wide, "PACKS": n} for n in packs]


def pairs(elem):
    """Heads of at most 256 channels."""
    return [{"WIDTH": width, "PACKS": packs} for width in (2, 4) for packs in (1, 2)]


def tiles(elem):
    return [{"TILE": 128, "ALIGNED": 1}, {"TILE": 64, "ALIGNED": 1}, {"TILE": 64, "ALIGNED": 0}]


def heads(elem):
    sizes = (8, 16, 24, 32, 40, 64, 80, 96, 128, 160, 512)
    return [{"HEAD_DIM": dim, "CAUSAL": causal} for dim in sizes for causal in (0, 1)]


def hopper_rings(elem):
    rings = ((128, 32, 2, 0), (128, 64, 3, 1), (256, 64, 4, 1))
    return [dict(zip(("TILE_N", "TILE_K", "STAGES", "DYNAMIC"), ring)) for ring in rings]


def hopper_tiles(elem):
    return [{**ring, "ACTIVATION": activation} for ring in hopper_rings(elem) for activation in range(5)]


def hopper_ring(constants):
    """Stages of two boxes, two barriers a stage, and what it takes to start at a multiple of 1024."""
    stages, columns = constants["STAGES"], constants["TILE_K"]
    return stages * (128 + constants["TILE_N"]) * columns * 2 + stages * 16 + 1024


def hopper_heads(elem):
    sizes = (40, 64, 80, 128, 160)
    return [{"HEAD_DIM": dim, "CAUSAL": causal, "DYNAMIC": 1} for dim in sizes for causal in (0, 1)]


def hopper_block(head_dim):
    """What a block of attention_sm90.cu has: the table in its header."""
    consumers, keys = (2, 96) if head_dim == 160 else (3, 128)
    return SimpleNamespace(boxes=-(-head_dim // 64), consumers=consumers, keys=keys, stages=4 if head_dim <= 64 else 2)


def hopper_tiles_of_keys(constants):
    """Boxes of queries, stages of keys and values, three barriers a stage and one, the start's alignment."""
    block = hopper_block(constants["HEAD_DIM"])
    rows = 64 * block.consumers + 2 * block.keys * block.stages
    return 128 * block.boxes * rows + 8 + 24 * block.stages + 1024


ROWS = ("common.cuh", "rows.cuh")
GATED = ("common.cuh", "gated.cuh")
GEMM = ("common.cuh", "mma.cuh", "gemm.cuh")
# The machine code of mma.sync with f32 sums; of wgmma and of TMA's loads of a box.
MMA = ("HMMA.16816.F32",)
WGMMA = ("HGMMA", "UTMALDG")

OPERATIONS = {
    "group_norm": Operation(("common.cuh", "group_norm.cu"), ("group_norm_statistics", "group_norm"), widths),
    "layer_norm": Operation((*ROWS, "layer_norm.cu"), ("layer_norm", "layer_norm_modulate"), rows),
    "rms_norm": Operation((*ROWS, "rms_norm.cu"), ("rms_norm",), rows),
    "qk_norm_rope": Operation((*ROWS, "qk_norm_rope.cu"), ("qk_norm_rope",), pairs),
    "gate_residual": Operation(("common.cuh", "gate_residual.cu"), ("gate_residual",), widths),
    "geglu": Operation((*GATED, "geglu.cu"), ("geglu",), widths),
    "swiglu": Operation((*GATED, "swiglu.cu"), ("swiglu",), widths),
    "bias_gelu": Operation(("common.cuh", "bias_gelu.cu"), ("bias_gelu", "bias_gelu_tanh"), widths),
    "activation": Operation(("common.cuh", "activation.cu"), ("activation",), widths),
    "upsample_nearest_2x": Operation(
        ("common.cuh", "upsample_nearest_2x.cu"), ("upsample_nearest_2x",), widths
    ),
    "denoise_step": Operation(
        ("common.cuh", "denoise_step.cu"), ("denoise_deviations", "denoise_step", "denoise_input"), plain
    ),
    "timestep_embedding": Operation(
        ("common.cuh", "timestep_embedding.cu"), ("timestep_embedding",), plain
    ),
    "matmul": Operation((*GEMM, "matmul.cu"), ("matmul",), tiles, MMA),
    "conv2d": Operation((*GEMM, "conv2d.cu"), ("conv2d",), tiles, MMA),
    "attention": Operation(
        ("common.cuh", "mma.cuh", "attention.cu"), ("attention",), heads, MMA
    ),
    "matmul_sm90": Operation(
        ("common.cuh", "wgmma.cuh", "gemm_sm90.cuh", "matmul_sm90.cu"), ("matmul_sm90",), hopper_tiles, WGMMA,
        ("sm_90a",), ("f16", "bf16"), hopper_ring,
    ),
    "conv2d_sm90": Operation(
        ("common.cuh", "wgmma.cuh", "gemm_sm90.cuh", "conv2d_sm90.cu"), ("conv2d_sm90",), hopper_rings, WGMMA,
        ("sm_90a",), ("f16", "bf16"), hopper_ring,
    ),
    "attention_sm90": Operation(
        ("common.cuh", "wgmma.cuh", "attention_sm90.cu"), ("attention_sm90",), hopper_heads, WGMMA,
        ("sm_90a",), ("f16", "bf16"), hopper_tiles_of_keys,
    ),
}


def source(operation, elem, constants):
    """The text that a launcher hands to the compiler."""
    prelude = [f"#define ELEM_{elem.upper()} 1"]
    prelude += [f"#define {name} {value}" for name, value in constants.items()]
    return "\n".join(prelude) + "\n" + "".join((CUDA / part).read_text() for part in OPERATIONS[operation].parts)


def label(constants):
    return " ".join(f"{name}={value}" for name, value in constants.items())


def planned(operation=None, entry=None):
    """The calls of host/plans.json with the launches that the crate makes for each: all of them, an operation's, or those
    that begin with one of its entries."""
    calls = [SimpleNamespace(**call) for call in json.loads((HERE / "host" / "plans.json").read_text())]
    found = [call for call in calls if operation in (None, call.operation)]
    found = [call for call in found if entry in (None, call.plans[0]["entry"])]
    assert found, f"no call of {operation} in host/plans.json"
    return found


def variant(call, plan):
    """The constants of a launch as they are listed here; its text must be the one that is compiled here, its memory what
    the kernel asks for."""
    found = [v for v in OPERATIONS[call.operation].variants(call.elem) if v == plan["constants"]]
    assert found, f"no variant of {call.operation} {call.elem} is {label(plan['constants'])}"
    text = plan["prelude"] + "".join((CUDA / part).read_text() for part in plan["parts"])
    assert text == source(call.operation, call.elem, found[0]), f"another text for {call.operation} {call.elem}"
    memory = OPERATIONS[call.operation].memory_of(found[0]) or 0
    launched = plan.get("shared_bytes", 0)
    assert launched == memory, f"{launched} bytes of shared memory launched for {call.operation}, {memory} needed"
    return found[0]
