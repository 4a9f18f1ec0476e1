"""Writes a checkpoint of Stable Diffusion 1.5's real size with random weights: `make_sd15_checkpoint.py FOLDER`.

diffusers' layout, f16, about 2.1 GB in all (the U-Net 1.7 GB), weights N(0, 0.02) from a fixed seed. For load
times, memory and the speed of a forward pass; it draws noise. One network is in memory at a time.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TOKENIZER = Path(__file__).parents[2] / "tests/fixtures/pipelines/sd15/tokenizer"

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def text_encoder():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77, hidden_act="quick_gelu",
        )
    )


def unet():
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def vae():
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )


@torch.no_grad()
def save(make, folder, seed):
    torch.set_default_dtype(torch.float16)
    model = make()
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.half().save_pretrained(folder)


def main():
    folder = Path(sys.argv[1])
    for seed, make in enumerate((text_encoder, unet, vae)):
        save(make, folder / make.__name__, seed)
    shutil.copytree(TOKENIZER, folder / "tokenizer", dirs_exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


if __name__ == "__main__":
    main()
