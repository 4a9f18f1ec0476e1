"""Trains the tokenizer, then gives the text encoder its start: it learns to say what a prompt asks for.

The diffusion goes on from there. Each question is answered at a position of its own near the end, which in any but
the longest prompt is padding and so has seen the whole prompt: cross-attention finds each answer in its place.
"""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import networks
import scenes
from checkpoints import load_checkpoint, log, save_checkpoint
from optimiser import Optimiser
from vocabulary import COLOUR_NAMES, NAMES, corpus, nonsense, phrase

SIZES = ["normal", "small", "large"]
LAYOUTS = ["single", "row", "column"]
# Position and answers of each question; an answer more for "not said".
QUESTIONS = {
    "size second": (-6, len(SIZES)),
    "size first": (-5, len(SIZES)),
    "layout": (-4, len(LAYOUTS)),
    "colour": (-3, len(COLOUR_NAMES)),
    "second": (-2, len(NAMES)),
    "first": (-1, len(NAMES)),
}


class Questions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(networks.WIDTH, answers + 1) for _, answers in QUESTIONS.values()
        )

    def forward(self, states, answers):
        """Cross-entropy, and the share of prompts with every answer right."""
        loss, right = 0.0, torch.ones(len(answers), dtype=torch.bool, device=states.device)
        for i, (head, (position, _)) in enumerate(zip(self.heads, QUESTIONS.values())):
            logits = head(states[:, position])
            loss = loss + F.cross_entropy(logits, answers[:, i])
            right &= logits.argmax(1) == answers[:, i]
        return loss, right.float().mean()


def answers(scene):
    """Where nothing is asked for (`None`), every answer is "not said"."""
    blank = [count for _, count in QUESTIONS.values()]
    if scene is None:
        return blank
    first, *second = scene["objects"]
    return [
        SIZES.index(second[0]["size"]) if second else blank[0],
        SIZES.index(first["size"]),
        LAYOUTS.index(scene["layout"]),
        COLOUR_NAMES.index(scene["colour_said"]) if scene["colour_said"] else blank[3],
        NAMES.index(second[0]["name"]) if second else blank[4],
        NAMES.index(first["name"]),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    started = time.time()
    folder = args.work / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        networks.train_tokenizer(folder, corpus())
    tokenizer = networks.load_tokenizer(folder)
    torch.manual_seed(0)
    encoder, questions = networks.text_encoder(tokenizer).to(args.device), Questions().to(args.device)
    optimiser = Optimiser([encoder, questions], args.steps)
    state = {"encoder": encoder, "questions": questions, "optimiser": optimiser}
    step = load_checkpoint(args.work / "text.pt", state)
    while step < args.steps and time.time() - started < 60 * args.minutes:
        rng = random.Random(1_000_003 * step + 1)
        drawn = [scenes.sample(rng) if rng.random() < 0.97 else None for _ in range(args.batch)]
        prompts = [phrase(s, rng) if s else nonsense(rng) for s in drawn]
        ids = networks.tokens(tokenizer, prompts).to(args.device)
        expected = torch.tensor([answers(s) for s in drawn], device=args.device)
        loss, right = questions(networks.text_states(encoder, ids), expected)
        loss.backward()
        optimiser.step(step)
        step += 1
        if step % 50 == 0:
            log(args.work / "text.jsonl", step=step, seconds=time.time() - started, loss=loss.item(), right=right.item())
        if step % 500 == 0:
            save_checkpoint(args.work / "text.pt", state, step)
    save_checkpoint(args.work / "text.pt", state, step)
    print({"step": step, "of": args.steps, "vocabulary": len(tokenizer), "parameters": networks.parameters(encoder)})


if __name__ == "__main__":
    main()
