#!/usr/bin/env python3
"""Renders README.md's tables of speed, and a bar chart beside each results file of this folder.

    python3 benches/results/render.py            # writes them
    python3 benches/results/render.py --check    # fails if they are out of date

A line is one workload, or all shapes of an operation: how many times as fast as what stands beside it, from the worst
shape to the best. Needs nothing but Python.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
OURS = "aquatint "
# Readable by those who see no red or no green (Okabe & Ito 2008).
COLOURS = {"f32": "#0072b2", "f16": "#d55e00", "bf16": "#009e73"}
# Pixels: the bars, the room at their right, a bar and the gap below it, a letter.
BARS, RIGHT, ROW, LETTER = 400, 24, 20, 6.4


@dataclass
class Line:
    """One line of a table, one bar of a chart."""

    what: str
    dtype: str
    ours: str
    beside: str
    # The other side's time over ours, by shape.
    ratios: list

    def mean(self):
        return math.exp(sum(map(math.log, self.ratios)) / len(self.ratios))

    def cells(self):
        low, high = (f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}" for ratio in (min(self.ratios), max(self.ratios)))
        return [self.what, self.dtype, self.ours, self.beside, low if low == high else f"{low} to {high}"]


def described(name, found, alone):
    """A side, with its own figures where a line stands for one shape."""
    if not alone:
        return name
    memory = f", {found['peak_mb']:,} MB" if "peak_mb" in found else ""
    return f"{name}: {found['ms'][1]:.3g} ms{memory}"


def pairs(row):
    """Each of our sides with the fastest of the others; a copy of as many bytes stands alone, and so does CUDA beside
    wgpu."""
    ours = {side: found for side, found in row["sides"].items() if side.startswith(OURS)}
    others = {side: found for side, found in row["sides"].items() if not side.startswith(OURS) and side != "copy"}
    rivals = [min(others, key=lambda side: others[side]["ms"][1])] if others else []
    rivals += ["copy"] if "copy" in row["sides"] else []
    both = [("aquatint wgpu", "aquatint cuda")] if {"aquatint wgpu", "aquatint cuda"} <= set(ours) else []
    return [(mine, rival) for mine in ours for rival in rivals] + both


def lines(stage):
    """A stage's lines: a group of rows is an operation's shapes, in one type, on one device."""
    groups = {}
    for row in stage.get("rows", []):
        for mine, rival in pairs(row):
            # Which of PyTorch's ways is the fastest differs by shape.
            family = rival if rival.startswith(OURS) else rival.replace(".", " ").split(" ")[0]
            groups.setdefault((row["name"].split(" ")[0], row["type"], mine, family), []).append((row, mine, rival))
    found = []
    for (operation, dtype, _, family), members in groups.items():
        many = len(members) > 1
        if many and operation not in ("step", "decode", "generation"):
            shown = [(f"{operation}, {len(members)} shapes", members)]
        else:
            shown = [(row["name"], [(row, mine, rival)]) for row, mine, rival in members]
        for what, some in shown:
            row, mine, rival = some[0]
            alone = len(some) == 1
            sides = row["sides"]
            ratios = [row["sides"][rival]["ms"][1] / row["sides"][mine]["ms"][1] for row, mine, rival in some]
            beside = described(rival if alone else family, sides[rival], alone)
            found.append(Line(what, dtype, described(mine.removeprefix(OURS), sides[mine], alone), beside, ratios))
    return found


def table(path, results):
    name = path.relative_to(README.parent).as_posix()
    picture = path.with_suffix(".svg").relative_to(README.parent).as_posix()
    source = f"[{path.name}]({name})"
    if results.get("commit"):
        source += f", commit {results['commit'][:12]}"
    text = [f"**{results['device']}**, {results['date']} ({source})", ""]
    for name, stage in results["stages"].items():
        if found := lines(stage):
            title = stage["title"]
            some = any(row.get("kernels") == "client" for row in stage["rows"])
            title += ", on CUDA with `AQUATINT_CUDA_KERNELS=client`" if some else ""
            text += [f"{title[0].upper()}{title[1:]}:", ""]
            text += ["| work | type | aquatint on | beside | times as fast |", "|---|---|---|---|---|"]
            text += [f"| {' | '.join(line.cells())} |" for line in found]
            text.append("")
        elif "programs" in stage:
            passed = ", ".join(f"{key}: {found.get('passed', 0)} passed" for key, found in stage["programs"].items())
            text += [f"{name}: {passed}", ""]
        if stage["state"] != "done":
            text += [f"{name} {stage['state']}: {' '.join(stage['reason'].split())[:200]}", ""]
    if any(lines(stage) for stage in results["stages"].values()):
        text += [f"![Times as fast as what stands beside it]({picture})", ""]
    return "\n".join(text)


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def chart(results):
    """A bar for each line, up to the geometric mean, with the range over its shapes."""
    bars = [line for stage in results["stages"].values() for line in lines(stage)]
    if not bars:
        return None
    labels = [f"{line.what} ({line.ours.split(':')[0]} / {line.beside.split(':')[0]})" for line in bars]
    left = math.ceil(12 + LETTER * max(map(len, labels)))
    width = left + BARS + RIGHT
    most = math.ceil(max(max(line.ratios) for line in bars))
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if most / step <= 10)
    scale = BARS / most
    bottom = 44 + ROW * len(bars)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 44}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="12" y="22" font-weight="bold">Times as fast as what stands beside it: mean and range over the shapes</text>',
    ]
    for tick in range(int(most / step) + 1):
        x = left + tick * step * scale
        out.append(f'<path d="M{x:.1f} 34V{bottom}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick * step:g}</text>')
    for index, (line, label) in enumerate(zip(bars, labels)):
        y = 40 + ROW * index
        colour, end = COLOURS[line.dtype], left + line.mean() * scale
        low, high = (left + ratio * scale for ratio in (min(line.ratios), max(line.ratios)))
        out.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escaped(label)}</text>')
        out.append(f'<path d="M{left} {y + 3}H{end:.1f}V{y + 15}H{left}Z" fill="{colour}"/>')
        if high > low:
            out.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}M{low:.1f} {y + 5}v8M{high:.1f} {y + 5}v8" stroke="#222"/>')
    one = left + scale
    out.append(f'<path d="M{one:.1f} 34V{bottom}" stroke="#222" stroke-dasharray="4 3"/>')
    used = [dtype for dtype in COLOURS if any(line.dtype == dtype for line in bars)]
    for index, dtype in enumerate(used):
        x = left + 70 * index
        out.append(f'<rect x="{x}" y="{bottom + 26}" width="10" height="10" fill="{COLOURS[dtype]}"/>')
        out.append(f'<text x="{x + 15}" y="{bottom + 35}">{dtype}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def readme(tables):
    text = README.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{README}: expected one {BEGIN} and one {END}")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{tables.strip()}\n{END}{tail}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if anything is out of date")
    arguments = parser.parse_args()
    files = sorted(HERE.glob("*.json"), reverse=True)
    if not files:
        sys.exit(f"{HERE}: no results")
    results = {path: json.loads(path.read_text()) for path in files}
    wanted = {path.with_suffix(".svg"): drawn for path in files if (drawn := chart(results[path]))}
    wanted[README] = readme("\n".join(table(path, results[path]) for path in files))
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in HERE.glob("*.svg") if path not in wanted]
    if arguments.check:
        if stale:
            sys.exit(f"out of date, run benches/results/render.py: {', '.join(str(path) for path in stale)}")
        return
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
