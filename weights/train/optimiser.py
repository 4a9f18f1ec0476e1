"""Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for the rest, one schedule for both."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is brought near orthogonal by five Newton-Schulz steps."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                rows, columns = update.shape
                update = orthogonal(update) * max(1.0, rows / columns) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"])


def orthogonal(matrix):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Optimiser:
    """`rate` is Muon's; AdamW takes `adam_rate`. Both rise over `warmup` and fall linearly over the last `fall` of all steps."""

    def __init__(self, modules, steps, rate=0.02, adam_rate=2e-3, warmup=100, fall=0.6, weight_decay=0.0):
        matrices, rest = [], []
        for module in modules:
            for name, p in module.named_parameters():
                hidden = p.ndim >= 2 and not any(part in name for part in ("embedding", "conv_in", "conv_out"))
                (matrices if hidden else rest).append(p)
        self.parts = [
            (Muon(matrices, rate, weight_decay=weight_decay), rate),
            (torch.optim.AdamW(rest, adam_rate, betas=(0.9, 0.98), weight_decay=0.0), adam_rate),
        ]
        self.parameters = matrices + rest
        self.steps, self.warmup, self.fall = steps, warmup, fall

    def step(self, index):
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        scale = min(1.0, (index + 1) / self.warmup, (self.steps - index) / (self.fall * self.steps))
        for optimiser, rate in self.parts:
            for group in optimiser.param_groups:
                group["lr"] = rate * max(scale, 0.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self):
        return [optimiser.state_dict() for optimiser, _ in self.parts]

    def load_state_dict(self, states):
        for (optimiser, _), state in zip(self.parts, states):
            optimiser.load_state_dict(state)
