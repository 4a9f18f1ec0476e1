"""diffusers' share of `run.py`: the workloads of `benches/peer_cpu.rs` in PyTorch eager, f32, on the CPU.

`peers.py [SD15_FOLDER]` prints one JSON line a workload.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

WEIGHTS = Path(__file__).parents[2] / "weights"


def measure(name, warm, runs, work):
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    seconds.sort()

    def at(share):
        return seconds[round((runs - 1) * share)]

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    line = dict(name=name, unit="s", median=at(0.5), p10=at(0.1), p90=at(0.9), runs=runs, peak_rss_mb=peak)
    print(json.dumps(line), flush=True)


@torch.no_grad()
def main():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def picture():
        generator = torch.Generator("cpu").manual_seed(0)
        pipe("a red apple on a blue background", num_inference_steps=20, guidance_scale=4.0, generator=generator)

    measure("embedded_20_steps", 5, 30, picture)
    del pipe
    if len(sys.argv) < 2:
        return
    begun = time.perf_counter()
    unet = UNet2DConditionModel.from_pretrained(Path(sys.argv[1]) / "unet", torch_dtype=torch.float32)
    line = dict(name="sd15_load_unet_alone", unit="s", median=time.perf_counter() - begun, runs=1)
    print(json.dumps(line), flush=True)
    for batch in (1, 2):
        latents, states = torch.rand(batch, 4, 32, 32) * 2 - 1, torch.rand(batch, 77, 768) * 2 - 1
        measure(
            f"sd15_unet_256_batch_{batch}", 2, 7,
            lambda: unet(latents, torch.full((batch,), 500.0), encoder_hidden_states=states),
        )


if __name__ == "__main__":
    main()
