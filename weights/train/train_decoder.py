"""Trains the decoder on, with the encoder as it is: the latents, and what was trained on them, stay valid.

Needs vae.pt in `--work`. Stops after `--minutes` and goes on from its checkpoint when called again.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch

import networks
from checkpoints import Average, load_checkpoint, log, save_checkpoint
from optimiser import Optimiser
from train_vae import picture_loss, pictures, psnr

# A part of what the autoencoder was trained with: less blur, still some tolerance of what the denoiser leaves.
NOISE = networks.LATENT_NOISE / 4


def trained(network):
    return [network.decoder, network.post_quant_conv]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    started = time.time()
    torch.manual_seed(1)
    network = networks.autoencoder().to(args.device, memory_format=torch.channels_last)
    saved = torch.load(args.work / "vae.pt", map_location=args.device, weights_only=True)
    network.load_state_dict(saved["average"]["network"])
    network.encoder.requires_grad_(False)
    optimiser = Optimiser(trained(network), args.steps, args.rate, args.rate / 10, warmup=50, fall=0.9)
    average = Average(network, 0.998)
    state = {"network": network, "optimiser": optimiser, "average": average}
    step = load_checkpoint(args.work / "decoder.pt", state)
    decode = torch.compile(network.decode) if args.compile else network.decode
    mean = []
    while step < args.steps and time.time() - started < 60 * args.minutes:
        rng = random.Random(1_000_003 * step + 4)
        torch.manual_seed(step)  # the noise on the latents: a resumed run draws what one that never stopped draws
        x = pictures(rng, args.batch, collages=0.2).to(args.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            with torch.no_grad():
                latents = network.encode(x).latent_dist.mean.float()
            error = decode(latents + NOISE * torch.randn_like(latents), return_dict=False)[0].float() - x
            loss = picture_loss(error) + 20 * error.square().mean()
        loss.backward()
        optimiser.step(step)
        average.update(network)
        mean.append((loss.item(), error.square().mean().item()))
        step += 1
        if step % 50 == 0:
            loss, error = np.mean(mean, axis=0)
            log(args.work / "decoder.jsonl", step=step, seconds=time.time() - started, loss=loss, psnr=10 * np.log10(4 / error))
            mean = []
        if step % 300 == 0 or step == args.steps:
            save_checkpoint(args.work / "decoder.pt", state, step)
            log(args.work / "decoder.jsonl", step=step, held_out_psnr=psnr(average.network)[0])
    save_checkpoint(args.work / "decoder.pt", state, step)
    print({"step": step, "of": args.steps})


if __name__ == "__main__":
    main()
