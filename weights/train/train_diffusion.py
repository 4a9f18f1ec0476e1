"""Trains the text encoder and the denoiser together on latents of rendered scenes.

Needs vae.pt and text.pt in `--work`, and begins with the denoiser in unet.pt if there is one. Stops after `--minutes` and goes on from its checkpoint when called again.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch

import networks
import scenes
from checkpoints import Average, load_checkpoint, log, save_checkpoint
from optimiser import Optimiser
from train_text import Questions, answers
from vocabulary import PLAIN, nonsense, phrase


def scene_of(index):
    return scenes.sample(random.Random(7_919 * index + 3))


@torch.no_grad()
def latents(path, count, work, device):
    """Latents of scenes 0..count, `[count, 16, 8, 8]` in f16, normalised; made once an autoencoder and kept."""
    if path.exists() and path.stat().st_mtime >= (work / "vae.pt").stat().st_mtime:
        saved = torch.load(path, weights_only=True)
        if len(saved["latents"]) >= count:
            return saved["latents"][:count], saved["scale"]
    network = networks.autoencoder().to(device, memory_format=torch.channels_last).eval()
    network.load_state_dict(torch.load(work / "vae.pt", map_location=device, weights_only=True)["average"]["network"])
    parts = []
    for start in range(0, count, 100):
        x = np.stack([scenes.render(scene_of(i)) for i in range(start, min(start + 100, count))])
        x = torch.from_numpy(x).permute(0, 3, 1, 2).to(device).contiguous(memory_format=torch.channels_last)
        parts.append(network.encode(x * 2 - 1).latent_dist.mean.cpu())
    made = torch.cat(parts)
    scale = 1 / made.std().item()
    made = (made * scale).half()
    beside = path.with_suffix(".part")
    torch.save({"latents": made, "scale": scale}, beside)
    beside.replace(path)
    return made, scale


def batch(rng, pools, count, size):
    """Indices of scenes, their prompts, and the scenes that the prompts describe (`None`: none).

    An empty prompt goes with few kinds of scenes: it should draw a picture that is simple and whole. Large objects have
    the most details, and get more than their share."""
    indices, prompts, described = [], [], []
    for _ in range(size):
        roll = rng.random()
        if roll < 0.1:
            indices.append(rng.choice(pools["plain"]))
            prompts.append("" if roll < 0.08 else nonsense(rng))
            described.append(None)
        else:
            index = rng.choice(pools["large"]) if roll < 0.2 else rng.randrange(count)
            scene = scene_of(index)
            indices.append(index)
            prompts.append(phrase(scene, rng))
            described.append(scene)
    return indices, prompts, described


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--count", type=int, default=64_000)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    started = time.time()
    torch.set_flush_denormal(True)
    data, _ = latents(args.work / "latents.pt", args.count, args.work, args.device)
    log(args.work / "diffusion.jsonl", latents=len(data), seconds=time.time() - started)
    tokenizer = networks.load_tokenizer(args.work / "tokenizer")
    alphas = networks.scheduler().alphas_cumprod.to(args.device)
    drawn = [scene_of(i) for i in range(args.count)]
    pools = {"plain": [i for i, scene in enumerate(drawn) if _plain(scene)],
             "large": [i for i, scene in enumerate(drawn) if scene["objects"][0]["pixels"] == scenes.LARGEST]}

    torch.manual_seed(0)
    network = networks.unet().to(args.device, memory_format=torch.channels_last)
    encoder, questions = networks.text_encoder(tokenizer).to(args.device), Questions().to(args.device)
    load_checkpoint(args.work / "text.pt", {"encoder": encoder, "questions": questions})
    load_checkpoint(args.work / "unet.pt", {"network": network})
    optimiser = Optimiser([network, encoder, questions], args.steps, args.rate, args.adam_rate)
    averages = Average(network, 0.999), Average(encoder, 0.999)
    state = {
        "network": network, "encoder": encoder, "questions": questions, "optimiser": optimiser,
        "average": averages[0], "average_encoder": averages[1],
    }
    step = load_checkpoint(args.work / "diffusion.pt", state)
    predict = torch.compile(network) if args.compile else network
    mean = []
    while step < args.steps and time.time() - started < 60 * args.minutes:
        rng, noise_rng = random.Random(1_000_003 * step + 2), networks.seeded(step)
        indices, prompts, described = batch(rng, pools, args.count, args.batch)
        x = data[indices].float()
        noise = torch.randn(x.shape, generator=noise_rng).to(args.device)
        # Spread evenly over the schedule within every batch.
        even = (torch.arange(args.batch) + torch.rand(args.batch, generator=noise_rng)) / args.batch
        time_steps = (even * len(alphas)).long().clamp_max(len(alphas) - 1).to(args.device)  # `even` may round to 1
        x = x.to(args.device)
        alpha = alphas[time_steps].sqrt()[:, None, None, None]
        sigma = (1 - alphas[time_steps]).sqrt()[:, None, None, None]
        noisy = (alpha * x + sigma * noise).contiguous(memory_format=torch.channels_last)
        states = networks.text_states(encoder, networks.tokens(tokenizer, prompts).to(args.device))
        velocity = predict(noisy, time_steps, states, return_dict=False)[0]
        error = (velocity - (alpha * noise - sigma * x)).square().mean(dim=(1, 2, 3))
        asked, right = questions(states, torch.tensor([answers(s) for s in described], device=args.device))
        (error.mean() + 0.01 * asked).backward()
        optimiser.step(step)
        averages[0].update(network)
        averages[1].update(encoder)
        quarters = error.detach().view(4, -1).mean(1) if args.batch % 4 == 0 else error.detach().mean().expand(4)
        mean.append([error.mean().item(), asked.item(), right.item(), *quarters.tolist()])
        step += 1
        if step % 50 == 0:
            loss, asked, right, *quarters = np.mean(mean, axis=0).tolist()
            log(args.work / "diffusion.jsonl", step=step, seconds=time.time() - started, loss=loss, asked=asked,
                right=right, quarters=[round(q, 4) for q in quarters])
            mean = []
        if step % 500 == 0:
            save_checkpoint(args.work / "diffusion.pt", state, step)
    save_checkpoint(args.work / "diffusion.pt", state, step)
    print({"step": step, "of": args.steps, "parameters": networks.parameters(network)})


def _plain(scene):
    """One well-known object of the usual size in the middle."""
    first = scene["objects"][0]
    return scene["layout"] == "single" and first["size"] == "normal" and first["centre"] == [32, 32] and first["name"] in PLAIN


if __name__ == "__main__":
    main()
