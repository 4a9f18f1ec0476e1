"""aquatint beside diffusers on this machine's CPU, in one run: `run.py [SD15_FOLDER]`.

Both sides take turns, twice each, and the better median of each counts: on a shared machine the worse one
says more about its neighbours. Needs `requirements.txt` and Rust; SD15_FOLDER is what
`make_sd15_checkpoint.py` wrote.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROUNDS = 2


def lines(command, env):
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main():
    folder = sys.argv[1:2]
    env = {"AQUATINT_SD15": folder[0]} if folder else {}
    sides = {
        "aquatint": ["cargo", "bench", "--quiet", "--bench", "peer_cpu"],
        "diffusers": [sys.executable, str(HERE / "peers.py"), *folder],
    }
    best = {side: {} for side in sides}
    for _ in range(ROUNDS):
        for side, command in sides.items():
            for line in lines(command, env):
                print(side, json.dumps(line), flush=True)
                known = best[side].get(line["name"])
                if known is None or line["median"] < known["median"]:
                    best[side][line["name"]] = line
    print(f"\n{'workload':28} {'aquatint s':>12} {'diffusers s':>12} {'ratio':>7} {'MB':>7} {'MB':>7}")
    for name, ours in best["aquatint"].items():
        theirs = best["diffusers"].get(name)
        if theirs:
            row = (ours["median"], theirs["median"], ours["median"] / theirs["median"], ours["peak_rss_mb"], theirs["peak_rss_mb"])
            print(f"{name:28} {row[0]:12.3f} {row[1]:12.3f} {row[2]:7.2f} {row[3]:7} {row[4]:7}")
        else:
            print(f"{name:28} {ours['median']:12.3f} {'':12} {'':7} {ours['peak_rss_mb']:7}")


if __name__ == "__main__":
    main()
