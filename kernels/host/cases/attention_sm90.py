"""attention_sm90 against f64."""

from cases.attention import attention
from variants import planned


def cases():
    for call in planned("attention_sm90"):
        size = f"{call.batch}x{call.queries}x{call.keys}x{call.heads}"
        kind = f"{'causal' if call.causal else 'all'} {'outliers' if call.outliers else 'plain'}"
        yield f"attention_sm90 {call.elem} d{call.head_dim} {size} {kind}", lambda c=call: attention(c)
