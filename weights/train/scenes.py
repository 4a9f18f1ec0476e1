"""Scenes: one or two glyphs of Noto Color Emoji on a plain background, 64x64 pixels."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vocabulary import COLOUR_NAMES, COLOURS, NAMES, OBJECTS, held_out, pair_held_out

SIDE = 64
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
# The longer side of a glyph in pixels.
SIZES = {
    "single": {"small": 28, "normal": 48, "large": 60},
    "pair": {"small": 20, "normal": 28, "large": 28},
}
LARGEST = SIZES["single"]["large"]
# Where a glyph's centre may stray to, in pixels across and down: whole latents, so that a glyph of one size looks the
# same in the latents wherever it is. A small network then draws it well.
_SOME = (-8, 0, 0, 8)
JITTER = {
    "single": {"small": (_SOME, _SOME), "normal": (_SOME, (0,)), "large": ((0,), (0,))},
    "row": {"small": ((0,), _SOME), "normal": ((0,), _SOME), "large": ((0,), _SOME)},
    "column": {"small": (_SOME, (0,)), "normal": (_SOME, (0,)), "large": (_SOME, (0,))},
}


@functools.cache
def glyph(name):
    """The font's own bitmap, cut to its content, RGBA."""
    font = ImageFont.truetype(FONT, 109)
    canvas = Image.new("RGBA", (180, 180), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), OBJECTS[name], font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no glyph for {name!r}")
    return canvas.crop(box)


@functools.cache
def sprite(name, size):
    """A glyph of `size` pixels on its longer side: colours and coverage, `[height, width, 4]` in 0..1.

    Both sides are even. The colours are premultiplied by the coverage."""
    source = glyph(name)
    width, height = sprite_size(source.size, size)
    pixels = np.asarray(source.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


def sprite_size(source, size):
    """Even sides, the longer one `size`."""
    return tuple(max(2, 2 * round(side * size / max(source) / 2)) for side in source)


def centred(outer, inner):
    """The even offset at which `inner` sits in the middle of `outer`."""
    return (outer - inner) // 4 * 2


def sample(rng, training=True):
    """A random scene. With `training`, combinations that are held out do not appear."""
    while True:
        scene = _draw(rng)
        names = [o["name"] for o in scene["objects"]]
        out = any(held_out("single", name, scene["colour"]) for name in names) or len(names) == 2 and pair_held_out(*names)
        if not (training and out):
            return scene


def _draw(rng):
    colour = rng.choice(COLOUR_NAMES)
    said = None if rng.random() < 0.06 else colour
    if rng.random() < 0.45:
        roll = rng.random()
        size = "small" if roll < 0.14 else "large" if roll < 0.28 else "normal"
        objects = [{"name": rng.choice(NAMES), "size": size}]
        return place({"objects": objects, "layout": "single", "colour": colour, "colour_said": said}, rng)
    sizes = ["normal", "normal"]
    if rng.random() < 0.12:
        sizes = rng.choice([["small", "large"], ["large", "small"], ["small", "normal"], ["normal", "small"]])
    objects = [{"name": n, "size": s} for n, s in zip(rng.sample(NAMES, 2), sizes)]
    layout = "row" if rng.random() < 0.6 else "column"
    return place({"objects": objects, "layout": layout, "colour": colour, "colour_said": said}, rng)


def place(scene, rng):
    """Chooses each object's pixels and centre."""
    kind = "single" if scene["layout"] == "single" else "pair"
    centres = {"single": [(32, 32)], "row": [(16, 32), (48, 32)], "column": [(32, 16), (32, 48)]}[scene["layout"]]
    for entry, centre in zip(scene["objects"], centres):
        entry["pixels"] = SIZES[kind][entry["size"]]
        jitter = JITTER[scene["layout"]][entry["size"]]
        entry["centre"] = [c + rng.choice(offsets) for c, offsets in zip(centre, jitter)]
    return scene


def render(scene):
    """`[64, 64, 3]` in 0..1."""
    picture = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    picture[:] = np.asarray(COLOURS[scene["colour"]], dtype=np.float32) / 255
    for entry in scene["objects"]:
        pixels = sprite(entry["name"], entry["pixels"])
        height, width = pixels.shape[:2]
        left = 2 * math.floor((entry["centre"][0] - width / 2) / 2)
        top = 2 * math.floor((entry["centre"][1] - height / 2) / 2)
        region = picture[top : top + height, left : left + width]
        region *= 1 - pixels[..., 3:]
        region += pixels[..., :3]
    return picture
