"""Checkpoints that any stage resumes from, running averages of weights, and logs."""

import copy
import json
import os

import torch


class Average:
    """An exponential moving average of a network's weights. Early steps count less: decay rises with the count."""

    def __init__(self, network, decay):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, network):
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.network.parameters()), [p.detach() for p in network.parameters()], 1 - decay)

    def state_dict(self):
        return {"network": self.network.state_dict(), "count": self.count}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["network"])
        self.count = state["count"]


def save_checkpoint(path, parts, step):
    """Written beside and renamed, so that a stop at any moment leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, beside)
    os.replace(beside, path)


def load_checkpoint(path, parts):
    """The step to go on from: 0 where there is no checkpoint. A part that it does not have stays as it is: what
    `restore.py` makes has weights, and no memory of an optimiser."""
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        if name in saved:
            part.load_state_dict(saved[name])
    return saved["step"]


def log(path, **values):
    line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(line + "\n")
    print(line, flush=True)
