"""Writes the averaged weights as a folder in diffusers' layout, f16."""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import networks


def assemble(work, autoencoder_from="decoder"):
    """The pipeline in f32, from the checkpoints of the stages."""
    vae, diffusion = (torch.load(work / f"{name}.pt", map_location="cpu", weights_only=True) for name in (autoencoder_from, "diffusion"))
    tokenizer = networks.load_tokenizer(work / "tokenizer")
    parts = networks.autoencoder(), networks.text_encoder(tokenizer), networks.unet()
    averages = vae["average"], diffusion["average_encoder"], diffusion["average"]
    for part, average in zip(parts, averages):
        part.load_state_dict(average["network"])
        part.eval()
    autoencoder, encoder, unet = parts
    scale = torch.load(work / "latents.pt", weights_only=True, mmap=True)["scale"]
    autoencoder.register_to_config(scaling_factor=scale)
    return StableDiffusionPipeline(
        vae=autoencoder, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=networks.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--autoencoder", choices=["vae", "decoder"], default="decoder", help="the stage it is taken from")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    beside = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    assemble(args.work, args.autoencoder).to(torch.float16).save_pretrained(beside)
    for part in sorted(beside.iterdir()):
        if part.is_dir():
            shutil.rmtree(args.out / part.name, ignore_errors=True)
        part.replace(args.out / part.name)
    beside.rmdir()
    total = sum(f.stat().st_size for name in networks.PARTS for f in (args.out / name).rglob("*"))
    print(f"{total:,} bytes")


if __name__ == "__main__":
    main()
