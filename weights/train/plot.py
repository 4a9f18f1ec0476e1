"""Draws the loss curves from the logs of the three stages."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = [
    ("vae.jsonl", "psnr", "autoencoder: dB while training, with noise on the latents"),
    ("text.jsonl", "right", "text encoder: prompts understood in full"),
    ("diffusion.jsonl", "loss", "denoiser: squared error of the velocity"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 3.6), layout="constrained")
    for axis, (name, key, title) in zip(axes, PANELS):
        rows = [json.loads(line) for line in (args.work / name).read_text().splitlines()]
        # A run that was stopped before its checkpoint logs some steps again: the later line counts.
        rows = list({row["step"]: row for row in rows if key in row}.values())
        axis.plot([row["step"] for row in rows], [row[key] for row in rows], linewidth=1)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    held_out = [json.loads(line) for line in (args.work / "vae.jsonl").read_text().splitlines() if "held_out_psnr" in line]
    axes[0].plot([row["step"] for row in held_out], [row["held_out_psnr"] for row in held_out], "o-", label="random scenes, no noise")
    axes[0].legend()
    axes[2].set_yscale("log")
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
