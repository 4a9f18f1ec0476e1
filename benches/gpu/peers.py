#!/usr/bin/env python3
"""PyTorch's share of run.py: a stage's workloads in PyTorch and diffusers, one JSON line a figure.

    peers.py k1 --device cuda
    peers.py m1 --device cpu --smoke

Random inputs N(0, 1), random weights N(0, 0.02). Five warm-ups, then 30 samples (10 where a run takes over a second),
each as many runs in a row as fit a thirtieth of --seconds, then one wait for the device. What PyTorch refuses is a line
with `skipped`. `prepared_s` is the first run, with all that is compiled and tuned in it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import machine
import workloads

WARM_UPS = 5
MODEL = Path(__file__).resolve().parents[2] / "weights"


class Here:
    """Where and in what to compute."""

    def __init__(self, arguments, dtype):
        self.device, self.dtype = torch.device(arguments.device), getattr(torch, workloads.TYPES[dtype][1])
        self.used_before, self.compiled = arguments.used_before, not arguments.no_compile
        self.seconds = arguments.seconds
        self.cuda = self.device.type == "cuda"

    def randn(self, *shape, scale=1.0):
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * scale

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def measure(self, work):
        """Seconds a run of each sample, and what was held and used for it."""
        if self.cuda:
            torch.cuda.empty_cache()
        begun = time.perf_counter()
        work()
        self.wait()
        prepared = time.perf_counter() - begun
        for _ in range(WARM_UPS - 1):
            once = self.run(work, 1)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        rounds = max(1, int(self.seconds / 30 / once))
        samples = [self.run(work, rounds) for _ in range(10 if once > 1 else 30)]
        return {"samples": samples, "prepared_s": prepared, **self.memory()}

    def run(self, work, rounds):
        begun = time.perf_counter()
        for _ in range(rounds):
            work()
        self.wait()
        return (time.perf_counter() - begun) / rounds

    def memory(self):
        """On a GPU what the card holds for this process, since the allocator gives nothing back in between."""
        if not self.cuda:
            return {"peak_mb": machine.resident_peak_mb()}
        used, allocated = machine.gpu_used_mb(), torch.cuda.max_memory_allocated() // 1_000_000
        return {"peak_mb": None if used is None else used - self.used_before, "allocated_mb": allocated}


def linear(here, m, n, k):
    x, weight, bias = here.randn(1, m, k), here.randn(n, k, scale=0.02), here.randn(n, scale=0.02)
    yield "torch", lambda: F.linear(x, weight, bias)


def attention(here, heads, queries, keys, head_dim):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def split(tokens):
        return here.randn(1, tokens, heads * head_dim).view(1, tokens, heads, head_dim).transpose(1, 2)

    q, k, v = split(queries), split(keys), split(keys)
    backends = {"sdpa flash": SDPBackend.FLASH_ATTENTION}
    if here.cuda:
        backends |= {"sdpa cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION}

    def on(backend):
        def work():
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(q, k, v)

        return work

    for name, backend in backends.items():
        yield name, on(backend)


def conv2d(here, side, inputs, outputs):
    x = here.randn(1, inputs, side, side).to(memory_format=torch.channels_last)
    weight = here.randn(outputs, inputs, 3, 3, scale=0.02).to(memory_format=torch.channels_last)
    bias = here.randn(outputs, scale=0.02)
    yield "torch", lambda: F.conv2d(x, weight, bias, padding=1)


# Our forms under PyTorch's names.
GELU = {"Exact": "none", "Tanh": "tanh"}
HEAD_DIM = 128


def qk_norm_rope(here, tokens):
    """As diffusers computes it in FLUX: `RMSNorm` over each head, then `apply_rotary_emb` on neighbours."""
    weight = here.randn(HEAD_DIM)
    angles = torch.randn(tokens, HEAD_DIM // 2, device=here.device).repeat_interleave(2, dim=1)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]

    def one(x):
        x = F.rms_norm(x.unflatten(-1, (-1, HEAD_DIM)), (HEAD_DIM,), weight, 1e-6)
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
        return (x.float() * cos + turned.float() * sin).to(x.dtype)

    return lambda q, k: (one(q), one(k))


def memory_bound(here, workload):
    kind, sizes = workload.kind, workload.sizes
    if kind in ("group_norm_silu", "upsample"):
        x = here.randn(1, sizes[1], sizes[0], sizes[0]).to(memory_format=torch.channels_last)
    else:
        x = here.randn(1, *sizes[:2])
    affine, other = here.randn(sizes[1]), torch.randn_like(x)
    if kind == "qk_norm_rope":
        compute, inputs = qk_norm_rope(here, sizes[0]), (x, other)
    else:
        compute, inputs = {
            "group_norm_silu": (lambda x: F.silu(F.group_norm(x, sizes[2], affine, affine, 1e-5)), (x,)),
            "upsample": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), (x,)),
            "layer_norm": (lambda x: F.layer_norm(x, (sizes[1],), affine, affine, 1e-5), (x,)),
            "rms_norm": (lambda x: F.rms_norm(x, (sizes[1],), affine, 1e-6), (x,)),
            "layer_norm_modulate": (lambda x: F.layer_norm(x, (sizes[1],), eps=1e-6) * (1 + affine) + affine, (x,)),
            "gate_residual": (lambda x, other: x + affine * other, (x, other)),
            "geglu": (lambda x: x.chunk(2, dim=-1)[0] * F.gelu(x.chunk(2, dim=-1)[1]), (x,)),
            "swiglu": (lambda x: x.chunk(2, dim=-1)[0] * F.silu(x.chunk(2, dim=-1)[1]), (x,)),
            "bias_gelu": (lambda x: F.gelu(x + affine, approximate=GELU[sizes[2]]), (x,)),
        }[kind]
    yield "torch", lambda: compute(*inputs)
    if here.compiled:
        compiled = torch.compile(compute, dynamic=False)
        yield "torch.compile", lambda: compiled(*inputs)
    source = here.randn(workloads.moved(workload, x.element_size()) // 2 // x.element_size())
    target = torch.empty_like(source)
    yield "copy", lambda: target.copy_(source)


def config(part):
    return json.loads((MODEL / part / "config.json").read_text())


def random_weights(here, make):
    """A network with weights N(0, 0.02), made where it runs."""
    torch.set_default_dtype(here.dtype)
    with torch.device(here.device):
        model = make().eval()
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
    return model.to(memory_format=torch.channels_last)


def unet(here, model):
    from diffusers import UNet2DConditionModel

    if model == "embedded":
        return random_weights(here, lambda: UNet2DConditionModel.from_config(config("unet")))
    return random_weights(
        here, lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    )


def compile_blocks(network):
    """The blocks that a U-Net repeats: diffusers' regional compilation, and its residual blocks as well."""
    from diffusers.models.resnet import ResnetBlock2D

    # Each size of a block is a graph of its own.
    torch._dynamo.config.recompile_limit = 64
    network.compile_repeated_blocks(fullgraph=True, dynamic=False)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            module.compile(fullgraph=True, dynamic=False)


def step(here, model, side, batch):
    from diffusers import DDIMScheduler
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    network = unet(here, model)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(500)
    # The network takes its timestep from the device, the scheduler from the host: neither waits for the other.
    host, device = scheduler.timesteps.tolist(), scheduler.timesteps.to(here.device)
    tokens = 77 if model == "sd15" else config("text_encoder")["max_position_embeddings"]
    states = here.randn(2 * batch, tokens, network.config.cross_attention_dim)
    noise = here.randn(batch, network.config.in_channels, side // 8, side // 8)
    running = {"latents": noise, "index": 0}

    def work():
        if running["index"] == len(host):
            running.update(latents=noise, index=0)
        index, latents = running["index"], running["latents"]
        both = torch.cat([latents, latents])
        predicted = network(both, device[index], encoder_hidden_states=states, return_dict=False)[0]
        negative, positive = predicted.chunk(2)
        guided = negative + 4.0 * (positive - negative)
        running["latents"] = scheduler.step(guided, host[index], latents, return_dict=False)[0]
        running["index"] = index + 1

    network.set_attn_processor(AttnProcessor())
    yield "diffusers eager", work
    network.set_attn_processor(AttnProcessor2_0())
    yield "diffusers SDPA", work
    if here.compiled:
        compile_blocks(network)
        yield "diffusers torch.compile", work


def fused_step(predicted, sample, older, noise, factors, rescale):
    """Guidance, the clean estimate and the sampler's step in one expression, for a compiler to fuse. `factors`: of the
    sample and the prediction in the estimate; of sample, estimate, last estimate and noise in the step."""
    negative, positive = predicted.float().chunk(2)
    guided = negative + 7.5 * (positive - negative)
    if rescale:
        spread = [x.std(dim=(1, 2, 3), keepdim=True) for x in (positive, guided)]
        guided = rescale * guided * (spread[0] / spread[1]) + (1 - rescale) * guided
    estimate = factors[0] * sample + factors[1] * guided
    after = factors[2] * sample + factors[3] * estimate
    if noise is not None:
        after = after + factors[4] * older + factors[5] * noise
    return after, estimate


def denoise_step(here, batch, side, sampler):
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    noisy, rescale = sampler == "dpmpp_2m_sde", 0.7 if sampler.endswith("rescaled") else 0.0
    scheduler = (
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **schedule) if noisy
        else EulerDiscreteScheduler(**schedule)
    )
    scheduler.is_scale_input_called = True
    predicted, latents = here.randn(2 * batch, 4, side, side), here.randn(batch, 4, side, side)
    # Drawn by the host, as pictures of a seed have it, and moved in the step: on both sides.
    noise = torch.randn(batch, 4, side, side)
    running = {"latents": latents, "left": []}

    def work():
        if not running["left"]:
            scheduler.set_timesteps(500)
            running.update(latents=latents, left=list(scheduler.timesteps.flip(0)))
        timestep = running["left"].pop()
        negative, positive = predicted.chunk(2)
        guided = negative + 7.5 * (positive - negative)
        if rescale:
            guided = rescale_noise_cfg(guided, positive, rescale)
        more = {"variance_noise": noise} if noisy else {}
        running["latents"] = scheduler.step(guided, timestep, running["latents"], return_dict=False, **more)[0]

    yield "diffusers eager", work
    if here.compiled:
        compiled = torch.compile(fused_step, dynamic=False, fullgraph=True)
        factors = torch.tensor([1.0, -1.3, 0.93, 0.07, -0.02, 0.3], device=here.device)
        sample, older = latents.float(), latents.float()

        def fused():
            compiled(predicted, sample, older, noise.to(here.device) if noisy else None, factors, rescale)

        yield "torch.compile", fused


def decode(here, model, side):
    from diffusers import AutoencoderKL

    def make():
        if model == "embedded":
            return AutoencoderKL.from_config(config("vae"))
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )

    network = random_weights(here, make)
    latents = torch.randn(1, network.config.latent_channels, side // 8, side // 8)

    def work():
        there = latents.to(here.device, here.dtype)
        network.decode(there, return_dict=False)[0].float().cpu()

    yield "diffusers channels last", work
    network.to(memory_format=torch.contiguous_format)
    yield "diffusers eager", work
    if here.compiled:
        network.to(memory_format=torch.channels_last)
        network.decoder.compile(fullgraph=True, dynamic=False)
        yield "diffusers torch.compile", work


def sides(here, workload):
    make = {
        "linear": linear, "attention": attention, "conv2d": conv2d, "denoise_step": denoise_step, "step": step,
        "decode": decode,
    }
    if workload.kind in make:
        return make[workload.kind](here, *workload.sizes)
    return memory_bound(here, workload)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=workloads.STAGES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--only", default="", help="workloads with this in their names")
    parser.add_argument("--used-before", type=int, default=0, help="MB in use on the card before this process")
    parser.add_argument("--seconds", type=float, default=1.0, help="what the samples of a figure take (1)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    for workload in workloads.chosen(arguments.stage, arguments.smoke, arguments.only):
        for dtype in workloads.types(workload, arguments.smoke):
            here = Here(arguments, dtype)
            for side, work in sides(here, workload):
                line = {"name": workload.name, "type": dtype, "side": side}
                try:
                    line |= here.measure(work)
                except Exception as error:  # its compilers have errors of every kind
                    line["skipped"] = next(iter(str(error).strip().splitlines()), repr(error))
                print(json.dumps(line), flush=True)
            # A workload's tensors and graphs leave before the next one.
            del work
            torch.compiler.reset()
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda}), file=sys.stderr)


if __name__ == "__main__":
    main()
