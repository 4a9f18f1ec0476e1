#!/usr/bin/env python3
"""PyTorch's share of run.py: a stage's workloads in PyTorch and diffusers, one JSON line a figure.

    peers.py k1 --device cuda
    peers.py m1 --device cpu --smoke

Random inputs N(0, 1), random weights N(0, 0.02). Five warm-ups, then 30 samples (10 where a run takes over a second),
each as many runs in a row as fit a thirtieth of a second, then one wait for the device. What PyTorch refuses is a line
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

    def __init__(self, device, dtype, used_before, compiled):
        self.device, self.dtype = torch.device(device), getattr(torch, workloads.TYPES[dtype][1])
        self.used_before, self.compiled = used_before, compiled
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
        rounds = max(1, int(1 / 30 / once))
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


def memory_bound(here, workload):
    kind, sizes = workload.kind, workload.sizes
    if kind in ("group_norm_silu", "upsample"):
        x = here.randn(1, sizes[1], sizes[0], sizes[0]).to(memory_format=torch.channels_last)
    else:
        x = here.randn(1, *sizes)
    affine = here.randn(sizes[1])
    compute = {
        "group_norm_silu": lambda x: F.silu(F.group_norm(x, sizes[2], affine, affine, 1e-5)),
        "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
        "layer_norm": lambda x: F.layer_norm(x, (sizes[1],), affine, affine, 1e-5),
        "geglu": lambda x: x.chunk(2, dim=-1)[0] * F.gelu(x.chunk(2, dim=-1)[1]),
    }[kind]
    yield "torch", lambda: compute(x)
    if here.compiled:
        compiled = torch.compile(compute, dynamic=False)
        yield "torch.compile", lambda: compiled(x)
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
        network.compile_repeated_blocks(fullgraph=True, dynamic=False)
        yield "diffusers torch.compile", work


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
    make = {"linear": linear, "attention": attention, "conv2d": conv2d, "step": step, "decode": decode}
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
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    for workload in workloads.chosen(arguments.stage, arguments.smoke, arguments.only):
        for dtype in workloads.types(workload, arguments.smoke):
            here = Here(arguments.device, dtype, arguments.used_before, not arguments.no_compile)
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
