#!/usr/bin/env python3
"""findings.py - the runs of findings.sh as one Markdown table between the marker lines of a file.

    findings.py SESSIONS DIR FILE.md
"""
import csv
import io
import os
import subprocess
import sys

TASKS = ("retr_kv", "retr_ps", "retr_mh", "math_find")
MARKS = ("<!-- findings -->", "<!-- end of findings -->")


def rows_of(*runs):
    runs = [r for r in runs if os.path.isdir(r)]
    if not runs:
        return []
    r = subprocess.run(["./scbench", "report", *runs, "--format", "csv"], capture_output=True,
                       text=True)
    if r.returncode:
        sys.exit(f"findings.py: {r.stderr.strip()}")
    return list(csv.DictReader(io.StringIO(r.stdout)))


class Cells:
    """means of one run by (kind, mode, task, turn)"""
    def __init__(self, rows, arm):
        self.rows = [r for r in rows if (r["model"], r["method"], r["sizes"]) == arm]

    def mean(self, kind, mode, task="", turn=""):
        found = [float(r["mean"]) for r in self.rows
                 if (r["kind"], r["mode"], r["turn"]) == (kind, mode, turn) and r["mean"] and
                 (not task or r["task"] == task)]
        return sum(found) / len(found) if found else None

    def kept(self):
        found = [float(r["rows"]) for r in self.rows
                 if (r["kind"], r["mode"]) == ("average", "multi-turn") and r["rows"]]
        return f"{found[0]:.0f}" if found else ""


def cell(x, sign=False):
    return "" if x is None else f"{x:{'+' if sign else ''}.0f}"


def table(sessions, dir):
    runs = {name: rows_of(os.path.join(dir, name)) for name in ("own", "aware", "half")}
    first = rows_of(*(os.path.join(dir, f"tiny_{m}") for m in ("llama", "jamba", "mamba2")))
    out = [f"{sessions} sessions per cell, 1,536 tokens, `make findings`; accuracy in %. Half: "
           "multi-turn with half of the rows; own: own history against golden; known: multi-request "
           "with question 1 known when the policy acts, against unknown.",
           "", "| | rows | " + " | ".join(
               ["KV", "PS", "MH", "Math", *(f"turn {t}" for t in range(1, 6)), "half", "own",
                "KV", "PS", "MH", "Math", "known"]) + " |", "|" + "---|" * 18,
           "| | | multi-turn" + " |" * 11 + " multi-request" + " |" * 5]
    for arm in dict.fromkeys((r["model"], r["method"], r["sizes"]) for r in first):
        here = Cells(first, arm)
        turns = [here.mean("turn", "multi-turn", "", str(t)) for t in range(1, 6)]
        both = {}
        for name, mode in (("own", "multi-turn"), ("aware", "multi-request")):
            a = Cells(runs[name], arm).mean("task", mode)
            b = here.mean("task", mode)
            both[name] = a - b if a is not None and b is not None else None
        half = [r for r in runs["half"] if r["method"] == arm[1] and r["kind"] == "task" and
                r["mode"] == "multi-turn" and r["mean"] and arm[0] == r["model"]]
        half = sum(float(r["mean"]) for r in half) / len(half) if len(half) == 4 else None
        name = arm[1] if arm[0] == "tiny_llama" else f"{arm[0]}, {arm[1]}"
        if arm[2] == "at corm's rows":
            name += " at corm's rows"
        out.append(f"| {name} | {here.kept()} | " + " | ".join(
            [*(cell(here.mean("task", "multi-turn", t)) for t in TASKS), *map(cell, turns),
             cell(half), cell(both["own"], True),
             *(cell(here.mean("task", "multi-request", t)) for t in TASKS),
             cell(both["aware"], True)]) + " |")
    return "\n".join(out) + "\n"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    sessions, dir, path = sys.argv[1:]
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if any(text.count(m + "\n") != 1 for m in MARKS):
        sys.exit(f"findings.py: {path} must hold the lines '{MARKS[0]}' and '{MARKS[1]}' once each")
    head, rest = text.split(MARKS[0] + "\n")
    new = head + MARKS[0] + "\n" + table(sessions, dir) + MARKS[1] + rest.split(MARKS[1])[1]
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.write(new)
    os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
