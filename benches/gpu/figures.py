"""Figures: from criterion's files, put together over rounds, and kept in benches/results."""

import datetime
import json
import os
import re
import tempfile
from pathlib import Path

SPREAD = "10th percentile, median, 90th percentile"


def criterion(home):
    """{id: seconds a run of each sample} of everything that criterion wrote into `home`."""
    found = {}
    for path in sorted(Path(home).glob("*/*/new/benchmark.json")):
        name = json.loads(path.read_text())["full_id"].split("/", 1)[1]
        sample = json.loads((path.parent / "sample.json").read_text())
        found[name] = [time / runs / 1e9 for time, runs in zip(sample["times"], sample["iters"])]
    return found


def triple(samples):
    """Milliseconds at the 10th, 50th and 90th percentile, to five digits."""
    ordered = sorted(samples)
    at = (ordered[round((len(ordered) - 1) * share)] for share in (0.1, 0.5, 0.9))
    return [float(f"{1000 * seconds:.5g}") for seconds in at]


class Rows:
    """Samples of a stage, by workload, type and side, and where they come from."""

    def __init__(self, **origin):
        self.samples, self.facts, self.origin = {}, {}, origin

    def add(self, name, dtype, side, samples, **facts):
        key = (name, dtype, side)
        self.samples.setdefault(key, []).extend(samples)
        known = self.facts.setdefault(key, {})
        for fact, value in facts.items():
            if value is not None:
                # The highest peak; the longest preparation, which is the one that found no cache.
                known[fact] = max(value, known.get(fact, value))

    def json(self):
        rows = {}
        for (name, dtype, side), samples in self.samples.items():
            row = rows.setdefault((name, dtype), {"name": name, "type": dtype, **self.origin, "sides": {}})
            facts = {
                fact: float(f"{value:.4g}") if isinstance(value, float) else value
                for fact, value in self.facts[name, dtype, side].items()
            }
            row["sides"][side] = {"ms": triple(samples), "samples": len(samples), **facts}
        return list(rows.values())


def json_lines(text):
    """The JSON objects of a program's output, one a line; a line that was cut off is none."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def results_file(folder, device):
    """Today's file of a device."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return Path(folder) / f"{datetime.date.today().isoformat()}-{slug}.json"


def known_results(path, committed):
    """What is in a results file, or in the file of its name in the folder `committed` where it is not there yet."""
    found = next((place for place in (path, Path(committed) / path.name) if place.exists()), None)
    return json.loads(found.read_text()) if found else {"stages": {}}


def merged(known, part):
    """A stage's part with what an earlier run came to and this one did not measure again."""
    rows = part.get("rows", [])
    measured, names = {(row["name"], row["type"]) for row in rows}, {row["name"] for row in rows}
    kept = [row for row in known.get("rows", []) if (row["name"], row["type"]) not in measured]
    if not kept:
        return part
    skipped = {what: why for what, why in known.get("skipped", {}).items() if what.split(", ")[0] not in names}
    commands = list(dict.fromkeys(known.get("commands", []) + part.get("commands", [])))
    fell_back = list(dict.fromkeys(known.get("fell_back", []) + part.get("fell_back", [])))
    about = {key: known[key] for key in ("title", "unit", "spread") if key in known}
    return {
        **about, **part, "rows": kept + rows, "skipped": {**skipped, **part.get("skipped", {})}, "commands": commands,
        **({"fell_back": fell_back} if fell_back else {}),
    }


def record(path, head, known, stage, part):
    """Puts one stage's part beside what is `known`: all of it or nothing, whenever this is ended."""
    stages = {**known["stages"], stage: merged(known["stages"].get(stage, {}), part)}
    text = json.dumps({**head, "stages": stages}, ensure_ascii=False, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "w") as file:
            file.write(lines_of_numbers(text) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def lines_of_numbers(text):
    """Lists of numbers on one line each."""
    return re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda found: f"[{', '.join(found[1].replace(',', ' ').split())}]", text)
