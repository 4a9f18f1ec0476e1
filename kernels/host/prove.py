#!/usr/bin/env python3
"""Runs the CUDA kernels on the host against f64 references.

    pip install -r kernels/requirements.txt    # numpy; g++ is needed as well
    python kernels/host/prove.py [words that a case's name must hold]

See device.hpp for what this proves and what it does not.
"""

import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def main():
    words = sys.argv[1:]
    begun, ran, failed, worst = time.monotonic(), 0, 0, {}
    for path in sorted((HERE / "cases").glob("*.py")):
        if path.stem == "__init__":
            continue
        module = importlib.import_module(f"cases.{path.stem}")
        for name, case in module.cases():
            if not all(word in name.split() for word in words):
                continue
            ran += 1
            try:
                ratio = case()
            except AssertionError as error:
                failed += 1
                print(f"FAILED {name}: {error}", flush=True)
                continue
            key = " ".join(name.split()[:2])
            worst[key] = max(worst.get(key, 0.0), ratio)
    for key, ratio in worst.items():
        print(f"{key}: at most {ratio:.2f} of the allowed error")
    print(f"{ran} cases, {failed} failed, {time.monotonic() - begun:.0f} s")
    if failed or not ran:
        sys.exit(1)


if __name__ == "__main__":
    main()
