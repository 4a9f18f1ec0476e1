"""Measures whether pictures show what their prompts ask for, on combinations kept from training.

The background is the median of the outermost pixels, by the nearest of the named colours. An object is the glyph
that leaves the least squared error when it is drawn over that background, among all glyphs, sizes and places.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline
from PIL import Image

import scenes
from train_vae import psnr
from vocabulary import COLOUR_NAMES, COLOURS, NAMES, held_out, pair_held_out, phrase

SAMPLERS = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler, "lcm": LCMScheduler}
# The list of scenes that figures are reported on; defaults are chosen on another one.
SEED = 2024


def held_out_scenes(count, seed):
    """As many scenes of one object as of two, each with a combination that was kept from training."""
    rng = random.Random(seed)
    singles, pairs = [], []
    while len(singles) < count // 2 or len(pairs) < count - count // 2:
        scene = scenes.sample(rng, training=False)
        names = [o["name"] for o in scene["objects"]]
        if scene["colour_said"] is None:
            continue
        if len(names) == 1 and len(singles) < count // 2 and held_out("single", names[0], scene["colour"]):
            singles.append(scene)
        if len(names) == 2 and len(pairs) < count - count // 2 and pair_held_out(*names):
            pairs.append(scene)
    drawn = singles + pairs
    return drawn, [phrase(scene, rng) for scene in drawn]


def halved(pixels):
    """Means of 2x2 pixels. Glyphs sit at even pixels and have even sides, so nothing is lost to alignment."""
    height, width, channels = pixels.shape
    return pixels.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def background(picture):
    """Its colour, and the name of the nearest."""
    frame = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3),
                            picture[:, :2].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])
    colour = np.median(frame, axis=0)
    return colour, min(COLOUR_NAMES, key=lambda name: np.square(colour - np.asarray(COLOURS[name]) / 255).sum())


def best_match(region, colour, sizes):
    """The name and size of the glyph that explains `region` (`[h, w, 3]`, halved) best."""
    rest = torch.from_numpy((region - colour).astype(np.float32)).permute(2, 0, 1)[None]
    best = (np.inf, None, None)
    for size in sizes:
        side = size // 2
        if side > min(region.shape[:2]):
            continue
        glyphs = np.zeros((len(NAMES), side, side, 3), dtype=np.float32)
        for i, name in enumerate(NAMES):
            pixels = halved(scenes.sprite(name, size))
            height, width = pixels.shape[:2]
            top, left = (scenes.centred(size, 2 * inner) // 2 for inner in (height, width))
            glyphs[i, top : top + height, left : left + width] = pixels[..., :3] - pixels[..., 3:] * colour
        kernels = torch.from_numpy(glyphs).permute(0, 3, 1, 2)
        pad = side // 4
        error = kernels.square().sum((1, 2, 3))[:, None, None] - 2 * F.conv2d(F.pad(rest, [pad] * 4), kernels)[0]
        least = error.flatten(1).min(1)
        index = least.values.argmin().item()
        if least.values[index] < best[0]:
            best = (least.values[index].item(), NAMES[index], size)
    return best[1], best[2]


def judge(scene, picture):
    """What is right about `picture`, `[64, 64, 3]` in 0..1: background, objects (in place), size of a single one."""
    colour, name = background(picture)
    kind = "single" if scene["layout"] == "single" else "pair"
    sizes = scenes.SIZES[kind].values()
    small = halved(picture)
    middle = scenes.SIDE // 4
    regions = {"single": [small], "row": [small[:, :middle], small[:, middle:]],
               "column": [small[:middle], small[middle:]]}[scene["layout"]]
    found = [best_match(region, colour, sizes) for region in regions]
    return {
        "background": name == scene["colour"],
        "objects": [match[0] == entry["name"] for match, entry in zip(found, scene["objects"])],
        "sizes": [match[1] == scenes.SIZES[kind][entry["size"]] for match, entry in zip(found, scene["objects"])],
        "found": [name, *(match[0] for match in found)],
    }


def draw(pipe, prompts, steps, guidance, seed=0, batch=50):
    """`[count, 64, 64, 3]` in 0..1, bytes as a PNG would have them."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        pictures.append(pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators,
                             output_type="np").images)
    return np.round(np.concatenate(pictures) * 255) / 255


def grid(pictures, columns):
    side = scenes.SIDE
    rows = -(-len(pictures) // columns)
    sheet = np.ones((rows * (side + 2), columns * (side + 2), 3))
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (side + 2), (i % columns) * (side + 2)
        sheet[top : top + side, left : left + side] = picture
    return Image.fromarray((sheet * 255).round().astype(np.uint8))


def evaluate(pipe, count, steps, guidance, seed):
    drawn, prompts = held_out_scenes(count, seed)
    started = time.time()
    pictures = draw(pipe, prompts, steps, guidance)
    seconds = time.time() - started
    verdicts = [judge(scene, picture) for scene, picture in zip(drawn, pictures)]
    singles = [v for s, v in zip(drawn, verdicts) if s["layout"] == "single"]
    pairs = [v for s, v in zip(drawn, verdicts) if s["layout"] != "single"]
    share = lambda values: round(float(np.mean(values)), 4)
    figures = {
        "prompts": count, "steps": steps, "guidance": guidance, "seconds": round(seconds, 1),
        "background": share([v["background"] for v in verdicts]),
        "single_object": share([all(v["objects"]) for v in singles]),
        "single_size": share([all(v["sizes"]) for v in singles]),
        "both_objects_in_place": share([all(v["objects"]) for v in pairs]),
        "objects_of_pairs": share([o for v in pairs for o in v["objects"]]),
    }
    wrong = [(p, v["found"]) for p, v in zip(prompts, verdicts) if not (v["background"] and all(v["objects"]))]
    return figures, wrong, pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, nargs="+", default=[20])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5])
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--seed", type=int, default=SEED, help="which list of scenes")
    parser.add_argument("--grid", type=Path)
    args = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(str(args.folder), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SAMPLERS[args.sampler].from_config(pipe.scheduler.config)
    print(json.dumps({"autoencoder_psnr": round(psnr(pipe.vae)[0], 2)}))
    for steps in args.steps:
        for guidance in args.guidance:
            figures, wrong, pictures = evaluate(pipe, args.count, steps, guidance, args.seed)
            print(json.dumps({"sampler": args.sampler, **figures}), flush=True)
    for prompt, found in wrong[:40]:
        print(f"  wrong: {prompt!r} shows {found}")
    if args.grid:
        half = args.count // 2
        grid(np.concatenate([pictures[: min(48, half)], pictures[half : half + 48]]), 12).save(args.grid)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
