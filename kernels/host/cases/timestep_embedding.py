"""timestep_embedding against f64."""

import numpy as np

from harness import close, dtype, launch, values
from variants import planned


def embedding(call):
    elem, channels, half = call.elem, call.channels, call.channels // 2
    frequencies = np.exp(np.linspace(0, -9, half)).astype(np.float32)
    first, worst = 0, 0.0
    for plan in call.plans:
        begin, rows, found_channels, _ = plan["params"][:4]
        assert (begin, found_channels) == (first, channels), "the launch's rows"
        timesteps = np.array(plan["params"][4 : 4 + rows], np.uint32).view(np.float32)
        (y,) = launch(call, plan, [frequencies], [((call.batch, channels), dtype(elem))])
        own = y[first : first + rows]
        others = np.delete(y, np.s_[first : first + rows], 0)
        assert not others.size or set(others.tobytes()) == {0xFF}, "a row of another launch was written"
        # Rounded to f32 before the sine, as PyTorch does.
        angles = (timesteps[:, None] * frequencies).astype(np.float64)
        parts = [np.cos(angles), np.sin(angles)] if call.cosines_first else [np.sin(angles), np.cos(angles)]
        expected = np.concatenate([*parts, np.zeros((rows, channels % 2))], 1)
        worst = max(worst, close(own, expected, elem, 1.2e-7, "timestep_embedding"))
        if first == 0 and call.batch > 1:
            (alone,) = launch(call, call.alone[0], [frequencies], [((1, channels), dtype(elem))])
            assert alone.tobytes() == y[:1].tobytes(), "a row depends on its batch"
        first += rows
    assert first == call.batch, "rows that no launch writes"
    assert channels % 2 == 0 or not values(own[:, -1], elem).any(), "the odd column"
    return worst


def cases():
    for call in planned("timestep_embedding"):
        yield f"timestep_embedding {call.elem} {call.batch}x{call.channels}", lambda c=call: embedding(c)
