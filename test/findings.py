#!/usr/bin/env python3
"""findings.py - the runs of findings.sh as Markdown tables between the marker lines of a file.

    findings.py SESSIONS DIR FILE.md
    findings.py --rows RUN          mean rows that the one method of a run kept
"""
import csv
import glob
import io
import json
import os
import re
import subprocess
import sys

PAIR = ("retr_kv", "retr_mh")
RETRIEVAL = ("retr_kv", "retr_ps", "retr_mh")
TASKS = {"retr_kv": "KV", "retr_ps": "PS", "retr_mh": "MH", "math_find": "MF"}
MODELS = ("tiny_llama", "tiny_jamba", "tiny_mamba2")
LENGTHS = (768, 1536, 3072)
MODES = ("multi-turn", "multi-request")
MARKS = ("<!-- findings -->", "<!-- end of findings -->")


class Run:
    """what the program reports of one run; an arm is a method, or keep-last at corm's rows"""
    def __init__(self, dir):
        r = subprocess.run(["./scbench", "report", dir, "--format", "csv"], capture_output=True,
                           text=True)
        if r.returncode:
            sys.exit(f"findings.py: {r.stderr.strip()}")
        self.rows = list(csv.DictReader(io.StringIO(r.stdout)))
        for row in self.rows:
            row["arm"] = row["method"]
            if "at corm's rows" in row["sizes"]:
                row["arm"] += " at corm's rows"
        self.arms = list(dict.fromkeys(row["arm"] for row in self.rows))

    def mean(self, arm, mode, tasks=RETRIEVAL, turn=""):
        """mean over tasks in %, of one turn or of all; None where a task is missing"""
        kind = "turn" if turn else "task"
        found = [float(r["mean"]) for r in self.rows
                 if (r["arm"], r["mode"], r["kind"], r["turn"]) == (arm, mode, kind, str(turn)) and
                 r["task"] in tasks and r["mean"]]
        return sum(found) / len(found) if len(found) == len(tasks) else None

    def kept(self, arm, field="rows", mode="multi-turn"):
        found = [float(r[field]) for r in self.rows
                 if (r["arm"], r["mode"], r["kind"]) == (arm, mode, "average") and r[field]]
        return found[0] if found else None


def cell(x, form=".0f"):
    return "" if x is None else format(x, form).replace("-0.0", "+0.0")


def less(a, b):
    return a - b if a is not None and b is not None else None


def line(*cells):
    return "| " + " | ".join(cells) + " |"


def head(*cells):
    return [line(*cells), "|" + "---|" * len(cells)]


def halves(dir):
    """every method at half of the rows"""
    half, own = (Run(os.path.join(dir, d)) for d in ("half", "own"))
    out = head("", "rows", *TASKS.values(), *(f"turn {t}" for t in range(1, 6)), "own",
               *TASKS.values())
    out.append(line("", "", "multi-turn", *[""] * 9, "multi-request", *[""] * 3))
    for arm in half.arms:
        out.append(line(
            f"`{arm}`", cell(half.kept(arm)),
            *(cell(half.mean(arm, "multi-turn", (t,))) for t in TASKS),
            *(cell(half.mean(arm, "multi-turn", turn=t)) for t in range(1, 6)),
            cell(less(own.mean(arm, "multi-turn"), half.mean(arm, "multi-turn")), "+.1f"),
            *(cell(half.mean(arm, "multi-request", (t,))) for t in TASKS)))
    return out


def small(dir):
    """every method at the sizes it has by itself"""
    run = Run(os.path.join(dir, "small"))
    out = head("", "rows", *TASKS.values(), *TASKS.values())
    out.append(line("", "", "multi-turn", *[""] * 3, "multi-request", *[""] * 3))
    for arm in run.arms:
        out.append(line(f"`{arm}`" if " " not in arm else arm, cell(run.kept(arm)),
                        *(cell(run.mean(arm, m, (t,))) for m in MODES for t in TASKS)))
    return out


def full(dir):
    """full attention by task and turn, and the extremes of math_find alone"""
    run = Run(os.path.join(dir, "full"))
    out = head("`tiny_llama`, `full`", *(f"turn {t}" for t in range(1, 6)), "multi-turn",
               "multi-request")
    for task in TASKS:
        out.append(line(f"`{task}`",
                        *(cell(run.mean("full", "multi-turn", (task,), t)) for t in range(1, 6)),
                        *(cell(run.mean("full", m, (task,)), ".1f") for m in MODES)))
    rows = [r for r in results(dir, "full") if r["task"] == "math_find" and
            re.search(r"\nThe (largest|smallest)", r["question"])]
    score = [[r["score"] for r in rows if r["mode"] == m] for m in MODES]
    out.append(line("largest and smallest alone", *[""] * 5,
                    *(cell(100 * sum(s) / len(s), ".1f") for s in score)))
    return out


def results(dir, name):
    """all rows of a run"""
    found = []
    for path in glob.glob(os.path.join(dir, name, "**", "results.jsonl"), recursive=True):
        with open(path, encoding="utf-8") as f:
            found += map(json.loads, f)
    return found


def lengths(dir):
    out = head("`retr_kv`, multi-turn", *(f"{n:,} tokens" for n in LENGTHS), "turns 1 to 5 at 1,536",
               *(f"bytes at {n:,}" for n in LENGTHS))
    for model in MODELS:
        runs = {n: Run(os.path.join(dir, f"length-{model}-{n}")) for n in LENGTHS}
        out.append(line(f"`{model}`", *(cell(runs[n].mean("full", "multi-turn", ("retr_kv",)))
                                        for n in LENGTHS),
                        " ".join(cell(runs[1536].mean("full", "multi-turn", ("retr_kv",), t))
                                 for t in range(1, 6)),
                        *(f"{memory(dir, model, n) / 1e6:.2f} MB" for n in LENGTHS)))
    return out


def memory(dir, model, n):
    """bytes of KV rows and recurrent states when the question is asked, mean over the turns"""
    size = [r["kv_live_bytes_q"] + (r["ssm_bytes"] or 0)
            for r in results(dir, f"length-{model}-{n}")]
    return sum(size) / len(size)


def equal(dir):
    """corm's ragged lists against equal ones of the same bytes"""
    corm, others = Run(os.path.join(dir, "corm")), Run(os.path.join(dir, "equal"))
    out = head("", "rows", "MB", "KV", "MH", "KV", "MH")
    out.append(line("", "", "", "multi-turn", "", "multi-request", ""))
    arms = [(corm, a) for a in corm.arms] + [(others, a) for a in others.arms if a != "keep-last"]
    for run, arm in arms:
        mb = run.kept(arm, "kv_live_bytes")
        out.append(line(f"`{arm}`" if " " not in arm else arm, cell(run.kept(arm)),
                        cell(mb and mb / 1e6, ".2f"),
                        *(cell(run.mean(arm, m, (t,))) for m in MODES for t in PAIR)))
    return out


def wide(dir):
    """what one question marked, asked for by the others"""
    runs = [(Run(os.path.join(dir, d)), m) for d, m in (("wide", "multi-turn"),
                                                        ("wide", "multi-request"),
                                                        ("wide-known", "multi-request"))]
    out = head("`retr_kv`, turns 1 to 5", "multi-turn", "multi-request",
               "multi-request, question 1 known")
    for arm in runs[0][0].arms:
        out.append(line(f"`{arm}`", *(" ".join(cell(run.mean(arm, mode, ("retr_kv",), t))
                                               for t in range(1, 6)) for run, mode in runs)))
    return out


def tables(sessions, dir):
    return "\n".join([
        f"{sessions} sessions per cell, 1,536 tokens, `make findings`; accuracy in %.", "",
        *full(dir), "",
        "Attention in every layer, in one of four, in none:", "", *lengths(dir), "",
        "Half of the rows, `tiny_llama`. Turns: mean of KV, PS and MH; own: that mean with the model's "
        "own history, less the one with golden answers.", "",
        *halves(dir), "",
        "The sizes of the demo, 64 rows (`make demo` with more sessions):", "", *small(dir), "",
        "A quarter of the rows, looks pooled over 41 places (`--set snapkv.kernel=41`), so that one "
        "look at the beginning of a value keeps all of it:", "", *wide(dir), "",
        "`corm` with w = 1,280 (it evicts nothing before so many queries), and others at its mean "
        "rows:", "",
        *equal(dir)]) + "\n"


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--rows":
        run = Run(sys.argv[2])
        return print(round(run.kept(run.arms[0])))
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    sessions, dir, path = sys.argv[1:]
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if any(text.count(m + "\n") != 1 for m in MARKS):
        sys.exit(f"findings.py: {path} must hold the lines '{MARKS[0]}' and '{MARKS[1]}' once each")
    before, rest = text.split(MARKS[0] + "\n")
    new = before + MARKS[0] + "\n" + tables(sessions, dir) + MARKS[1] + rest.split(MARKS[1])[1]
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.write(new)
    os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
