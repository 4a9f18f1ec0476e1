"""Trains the autoencoder. Stops after `--minutes` and goes on from its checkpoint when called again."""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch

import networks
import scenes
from checkpoints import Average, load_checkpoint, log, save_checkpoint
from optimiser import Optimiser
from vocabulary import COLOURS, NAMES


def collage(rng):
    """Glyphs of any size all over: more edges to learn from than a scene has."""
    colour = np.random.default_rng(rng.getrandbits(32)).random(3) if rng.random() < 0.5 else None
    picture = np.empty((scenes.SIDE, scenes.SIDE, 3), dtype=np.float32)
    picture[:] = colour if colour is not None else np.asarray(rng.choice(list(COLOURS.values()))) / 255
    for _ in range(4):
        pixels = scenes.sprite(rng.choice(NAMES), rng.choice((20, 24, 28, 32, 44, 48)))
        height, width = pixels.shape[:2]
        left = 2 * rng.randint(0, (scenes.SIDE - width) // 2)
        top = 2 * rng.randint(0, (scenes.SIDE - height) // 2)
        region = picture[top : top + height, left : left + width]
        region *= 1 - pixels[..., 3:]
        region += pixels[..., :3]
    return picture


def pictures(rng, count, collages=0.35):
    """`[count, 3, 64, 64]` in -1..1."""
    batch = [collage(rng) if rng.random() < collages else scenes.render(scenes.sample(rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) * 2 - 1


def picture_loss(error):
    """Absolute and squared errors, and those of differences between neighbours at two scales: edges."""
    edges = sum((error[..., s:, :] - error[..., :-s, :]).abs().mean() for s in (1, 2))
    edges += sum((error[..., s:] - error[..., :-s]).abs().mean() for s in (1, 2))
    return error.abs().mean() + 2 * error.square().mean() + 0.25 * edges


def loss_of(network, x):
    posterior = network.encode(x).latent_dist
    mean = posterior.mean.float()
    decoded = network.decode(mean + networks.LATENT_NOISE * torch.randn_like(mean)).sample.float()
    error = decoded - x
    # Every channel of the latents keeps mean 0 and deviation 1, which is what the diffusion expects.
    scale = (mean.std(dim=(0, 2, 3)) - 1).square().mean() + mean.mean(dim=(0, 2, 3)).square().mean()
    # The noise is the same everywhere, and the posterior says so.
    variance = (posterior.logvar.float() - 2 * np.log(networks.LATENT_NOISE)).square().mean()
    loss = picture_loss(error) + 0.1 * scale + 0.001 * variance
    return loss, error.square().mean()


@torch.no_grad()
def psnr(network, seed=12345, count=256):
    """Decibels on random scenes of a fixed seed, about a fifth of them of combinations that no training scene has, pixels rounded
    to bytes; and the latents' deviation."""
    rng = random.Random(seed)
    x = torch.from_numpy(np.stack([scenes.render(scenes.sample(rng, training=False)) for _ in range(count)]))
    x = x.permute(0, 3, 1, 2).to(network.device)
    errors, latents = [], []
    for part in x.split(32):
        z = network.encode(part * 2 - 1).latent_dist.mean
        out = (network.decode(z).sample / 2 + 0.5).clamp(0, 1)
        errors.append((((out * 255).round() - (part * 255).round()) / 255).square().mean(dim=(1, 2, 3)))
        latents.append(z)
    errors = torch.cat(errors)
    return (-10 * errors.clamp_min(1e-10).log10()).mean().item(), torch.cat(latents).std().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=2e-3)
    args = parser.parse_args()
    started = time.time()
    torch.manual_seed(0)
    network = networks.autoencoder().to(args.device, memory_format=torch.channels_last)
    optimiser = Optimiser([network], args.steps, args.rate, args.adam_rate)
    average = Average(network, 0.998)
    state = {"network": network, "optimiser": optimiser, "average": average}
    step = load_checkpoint(args.work / "vae.pt", state)
    compute = torch.compile(loss_of) if args.compile else loss_of
    mean = []
    while step < args.steps and time.time() - started < 60 * args.minutes:
        rng = random.Random(1_000_003 * step)
        torch.manual_seed(step)  # the noise on the latents: a resumed run draws what one that never stopped draws
        x = pictures(rng, args.batch).to(args.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device, torch.bfloat16):
            loss, error = compute(network, x)
        loss.backward()
        optimiser.step(step)
        average.update(network)
        mean.append((loss.item(), error.item()))
        step += 1
        if step % 50 == 0:
            loss, error = np.mean(mean, axis=0)
            log(args.work / "vae.jsonl", step=step, seconds=time.time() - started, loss=loss, psnr=10 * np.log10(4 / error))
            mean = []
        if step % 500 == 0 or step == args.steps:
            save_checkpoint(args.work / "vae.pt", state, step)
            decibels, deviation = psnr(average.network.to(args.device))
            log(args.work / "vae.jsonl", step=step, held_out_psnr=decibels, latent_deviation=deviation)
    save_checkpoint(args.work / "vae.pt", state, step)
    print(json.dumps({"step": step, "of": args.steps, "parameters": networks.parameters(network)}))


if __name__ == "__main__":
    main()
