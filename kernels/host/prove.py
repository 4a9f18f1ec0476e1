#!/usr/bin/env python3
"""Runs the CUDA kernels on the host against f64 references.

    pip install -r kernels/requirements.txt    # numpy; g++ is needed as well
    python kernels/host/prove.py [words that a case's name must hold]

See device.hpp for what this proves and what it does not.
"""

import importlib
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def cases(stem):
    return importlib.import_module(f"cases.{stem}").cases()


def kind(name):
    """Operation and type: cases of one kind share what is compiled for them."""
    return " ".join(name.split()[:2])


def prove(stem, wanted, words):
    """Cases that ran, the largest share of the allowed error, and what failed, of one kind of one file."""
    ran, worst, failed = 0, 0.0, []
    for name, case in cases(stem):
        if kind(name) != wanted or not all(word in name.split() for word in words):
            continue
        ran += 1
        try:
            worst = max(worst, case())
        except AssertionError as error:
            failed.append(f"FAILED {name}: {error}")
    return ran, worst, failed


def main():
    words = sys.argv[1:]
    begun = time.monotonic()
    stems = [path.stem for path in sorted((HERE / "cases").glob("*.py")) if path.stem != "__init__"]
    kinds = {
        (stem, kind(name)): None
        for stem in stems
        for name, _ in cases(stem)
        if all(word in name.split() for word in words)
    }
    ran, failed = 0, 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tasks = {key: pool.submit(prove, *key, words) for key in kinds}
        for (_, wanted), task in tasks.items():
            count, worst, failures = task.result()
            ran, failed = ran + count, failed + len(failures)
            print(*failures, f"{wanted}: {count} cases, at most {worst:.2f} of the allowed error", sep="\n", flush=True)
    print(f"{ran} cases, {failed} failed, {time.monotonic() - begun:.0f} s")
    if failed or not ran:
        sys.exit(1)


if __name__ == "__main__":
    main()
