"""Draws the loss curves from the logs of the four stages."""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = [
    ("vae.jsonl", "psnr", "autoencoder: dB while training, noise on the latents"),
    ("text.jsonl", "right", "text encoder: prompts understood in full"),
    ("diffusion.jsonl", "loss", "denoiser: squared error of the velocity"),
    ("decoder.jsonl", "psnr", "decoder: dB while training, less noise"),
]


def rounds(lines):
    """The lines of a log, steps counted on where a round of training began at 0 again."""
    done = last = 0
    for row in lines:
        if "step" in row:
            done += last if row["step"] < last // 2 else 0
            last = row["step"]
            yield row | {"step": done + last}


def curve(rows, key):
    """Steps and values. A run that was stopped before its checkpoint logs some steps again: the later line counts."""
    points = sorted({row["step"]: row[key] for row in rows if key in row}.items())
    return [step for step, _ in points], [value for _, value in points]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    for axis, (name, key, title) in zip(axes.flat, PANELS):
        rows = list(rounds(json.loads(line) for line in (args.work / name).read_text().splitlines()))
        axis.plot(*curve(rows, key), linewidth=1)
        held_out = curve(rows, "held_out_psnr")
        if held_out[0]:
            axis.plot(*held_out, "o-", label="scenes of a fixed seed, no noise")
            axis.legend()
        if name == "diffusion.jsonl":
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
