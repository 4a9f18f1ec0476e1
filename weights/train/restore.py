"""Makes a `--work` folder from an exported model, so that training goes on from it on a machine without checkpoints.

The schedule of learning rates begins anew; the optimisers' memories are not in the export.
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from checkpoints import Average, save_checkpoint
from train_text import Questions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the exported model")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    shutil.copytree(args.folder / "tokenizer", args.work / "tokenizer")
    read = {"dtype": torch.float32}
    autoencoder = AutoencoderKL.from_pretrained(str(args.folder / "vae"), **read)
    encoder = CLIPTextModel.from_pretrained(str(args.folder / "text_encoder"), **read)
    network = UNet2DConditionModel.from_pretrained(str(args.folder / "unet"), **read)
    for stage in ("vae", "decoder"):
        save_checkpoint(args.work / f"{stage}.pt", {"network": autoencoder, "average": Average(autoencoder, 0)}, 0)
    save_checkpoint(args.work / "text.pt", {"encoder": encoder, "questions": Questions()}, 0)
    save_checkpoint(args.work / "unet.pt", {"network": network}, 0)


if __name__ == "__main__":
    main()
