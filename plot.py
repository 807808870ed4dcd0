#!/usr/bin/env python3
"""plot.py - figures from the tidy CSV of `scbench report --format csv`.

    ./scbench report out/a --format csv > a.csv
    ./plot.py turns a.csv turns.png             score by turn, a line per method; --split: a panel
                                                per task
    ./plot.py abilities a.csv abilities.svg     methods by categories; --radar for a radar chart
    ./plot.py budget a.csv budget.pdf           score by rows kept
    ./plot.py sweep a.csv sweep.png             score by the share of rows kept, a panel per turn
    ./plot.py depth a.csv depth.png             score by depth of the answer in the context
    ./plot.py probe p.csv probe.png             what scbench probe measured

Instead of the CSV, the directory of a run. The ending of the output chooses the format: png, svg or
pdf. Bands and whiskers are the report's 95 % intervals over sessions. --task, --mode and --method
choose rows; what is left over after that is averaged over tasks.
"""
import argparse
import csv
import io
import os
import subprocess
import sys

COLUMNS = ("kind", "method", "budget", "history", "query_aware", "mode", "category", "task", "turn",
           "depth_from", "mean", "lo", "hi", "rows", "tokens")
MODES = ("multi-turn", "multi-request", "single")
CATEGORIES = ("Retr.String", "Retr.Semantic", "Global", "Multi-task", "Other")
# told apart by colour-blind readers too (Okabe and Ito 2008); full is black
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#999999")
MARKERS = "osD^vPX*"
QUERY = {"multi-turn": "first", "multi-request": "no", "single": "each"}
KINDS = {"turns": ("turn",), "abilities": ("category",), "budget": ("average",),
         "depth": ("depth",), "sweep": ("turn", "task")}
TABLES = {"turns": "turns", "abilities": "categories", "budget": "methods", "depth": "depth",
          "sweep": "turns"}


def fail(sentence):
    sys.exit(f"plot.py: {sentence}")


def number(row, key):
    try:
        return float(row[key])
    except ValueError:
        return None


def report_of(path):
    """The CSV of a run's directory, by the program beside this one."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scbench")
    try:
        r = subprocess.run([program, "report", path, "--format", "csv"], capture_output=True,
                           text=True, encoding="utf-8")
    except OSError as e:
        fail(f"{program} cannot be run: {e.strerror}; build it, or give the CSV of its report")
    if r.returncode:
        fail(f"{path}: {r.stderr.strip().splitlines()[-1] if r.stderr.strip() else 'no report'}")
    return io.StringIO(r.stdout)


def read(path, opts):
    """The rows of the wanted kinds, task, mode and method; numbers as floats or None."""
    try:
        table = report_of(path) if os.path.isdir(path) else open(path, newline="", encoding="utf-8")
        with table as f:
            table = csv.DictReader(f)
            missing = [c for c in COLUMNS if c not in (table.fieldnames or ())]
            if missing:
                fail(f"{path} has no column {missing[0]}; make it with scbench report --format csv")
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        fail(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}")
    if any(None in r or None in r.values() for r in rows):
        fail(f"{path} has a line with another number of fields than its head")
    kinds = KINDS[opts.figure]
    rows = [r for r in rows if r["kind"] in kinds]
    if not any(r["kind"] == kinds[0] for r in rows):
        fail(f"{path} has no {kinds[0]} rows; make it with scbench report --format csv, "
             f"alone or with --table {TABLES[opts.figure]}")
    for key in ("task", "mode", "method"):
        want = getattr(opts, key)
        known = sorted({r[key] for r in rows})
        for name in want or ():
            if name not in known:
                names = ", ".join(k for k in known if k) or "none"
                fail(f"{path} has no {key} '{name}'; it has {names}")
        if want:
            rows = [r for r in rows if r[key] in want]
    if not rows:
        fail(f"{path} has no row for this choice of --task, --mode and --method")
    for r in rows:
        for key in ("turn", "depth_from", "mean", "lo", "hi", "rows", "tokens"):
            r[key] = number(r, key)
        # where a mode's own switches stand, nothing tells an arm from its other modes
        r["history"] = "own history" if r["history"] == "own" else ""
        same = r["query_aware"] == QUERY.get(r["mode"])
        r["query_aware"] = "" if same else f"query-aware {r['query_aware']}"
    return [r for r in rows if r["mean"] is not None]


def arms(rows):
    """Arms in order of appearance: (key, label). A label holds what tells two apart."""
    fields = ["model", "method", "budget", "sizes", "ctx", "preset", "positions", "history",
              "query_aware", "scorer"]
    fields = [f for f in fields if f in rows[0]]
    keys = list(dict.fromkeys(tuple(r[f] for f in fields) for r in rows))
    maybe = ("model", "ctx", "preset", "history", "query_aware", "scorer")
    used = [i for i, f in enumerate(fields)
            if f in ("method", "budget") or (f in maybe and len({k[i] for k in keys}) > 1)]
    labels = [" ".join(k[i] for i in used if k[i]) for k in keys]
    for i, label in enumerate(labels):          # sizes only where the rest leaves two equal
        if labels.count(label) > 1 and "sizes" in fields:
            labels[i] = f"{label} {keys[i][fields.index('sizes')]}"
    return [(dict(zip(fields, k)), label) for k, label in zip(keys, labels)]


def of_arm(rows, arm):
    return [r for r in rows if all(r[f] == v for f, v in arm.items())]


def averaged(rows, key):
    """{x: (mean, lo, hi)} over tasks, where all of them have one: a task that ends earlier would
    make a step of its own. An interval only where there is one task to take it from."""
    out = {}
    tasks = len({r["task"] for r in rows})
    for x in sorted({r[key] for r in rows if r[key] is not None}):
        here = [r for r in rows if r[key] == x]
        if len({r["task"] for r in here}) < tasks:
            continue
        one = here[0] if len(here) == 1 else {"lo": None, "hi": None}
        out[x] = (sum(r["mean"] for r in here) / len(here), one["lo"], one["hi"])
    return out


def style(i):
    """Colour, marker and dashes of the i-th arm: 24 that differ."""
    again = i // len(COLORS)
    return dict(color=COLORS[i % len(COLORS)], marker=MARKERS[(i + 3 * again) % len(MARKERS)],
                linestyle=("-", "--", ":")[again % 3])


class Look:
    """Colour and marker of every arm: the same in all panels."""

    def __init__(self, rows):
        self.arms = arms(rows)
        self.style = {}
        full = [label for arm, label in self.arms if arm["method"] == "full"]
        others = [label for _, label in self.arms if label not in full]
        for i, label in enumerate(full):        # one of every model
            self.style[label] = dict(color=("#000000", "#666666", "#b0b0b0")[i % 3], marker=".",
                                     linestyle=("-", "--", ":")[i % 3])
        for i, label in enumerate(others):
            self.style[label] = style(i)


def line(ax, points, label, look):
    xs = list(points)
    ax.plot(xs, [points[x][0] for x in xs], label=label, linewidth=1.8, markersize=6, **look)
    if all(points[x][1] is not None for x in xs):
        ax.fill_between(xs, [points[x][1] for x in xs], [points[x][2] for x in xs],
                        color=look["color"], alpha=0.12, linewidth=0)


def panels(plt, rows, height=3.4):
    """One panel per mode, side by side, with one scale."""
    modes = [m for m in MODES if any(r["mode"] == m for r in rows)]
    fig, axes = plt.subplots(1, len(modes), figsize=(4.6 * len(modes) + 1.6, height), sharey=True,
                             squeeze=False, layout="constrained")
    for ax, mode in zip(axes[0], modes):
        ax.set_title(mode)
        ax.set_ylim(0, 102)
    axes[0][0].set_ylabel("score in %")
    return fig, list(zip(axes[0], modes))


def legend(fig):
    handles = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    fig.set_figheight(max(fig.get_figheight(), 0.3 + 0.21 * len(handles)))
    fig.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)


def task_panels(plt, rows):
    """A panel per mode and task: [(axes, mode, task)]"""
    modes = [m for m in MODES if any(r["mode"] == m for r in rows)]
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    fig, axes = plt.subplots(len(modes), len(tasks), sharex=True, sharey=True, squeeze=False,
                             figsize=(2.5 * len(tasks) + 1.9, 2.5 * len(modes) + 0.5),
                             layout="constrained")
    for ax, task in zip(axes[0], tasks):
        ax.set_title(task)
    for row, mode in zip(axes, modes):
        row[0].set_ylabel(f"{mode}\nscore in %")
        row[0].set_ylim(-3, 103)
    return fig, [(ax, m, t) for row, m in zip(axes, modes) for ax, t in zip(row, tasks)]


def plot_turns(plt, rows, opts):
    look = Look(rows)
    if opts.split:
        fig, axes = task_panels(plt, rows)
    else:
        fig, axes = panels(plt, rows)
        axes = [(ax, mode, None) for ax, mode in axes]
    for ax, mode, task in axes:
        here = [r for r in rows if r["mode"] == mode and task in (None, r["task"])]
        for arm, label in look.arms:
            points = averaged(of_arm(here, arm), "turn")
            if points:
                line(ax, points, label, look.style[label])
        ax.set_xlabel("turn")
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend(fig)
    return fig


def plot_depth(plt, rows, opts):
    look = Look(rows)
    fig, axes = panels(plt, rows)
    for r in rows:
        r["depth"] = 100 * (r["depth_from"] + 0.05) if r["depth_from"] is not None else None
    for ax, mode in axes:
        for arm, label in look.arms:
            points = averaged([r for r in of_arm(rows, arm) if r["mode"] == mode], "depth")
            if points:
                means = {x: (p[0], None, None) for x, p in points.items()}
                line(ax, means, label, look.style[label])
        ax.set_xlabel("depth of the answer in the context, %")
        ax.set_xlim(0, 100)
    legend(fig)
    return fig


def plot_budget(plt, rows, opts):
    """Methods as lines over their budgets; one without a budget is a point, full a level."""
    fig, axes = panels(plt, rows)
    methods = list(dict.fromkeys(r["method"] for r in rows if r["method"] != "full"))
    for ax, mode in axes:
        here = [r for r in rows if r["mode"] == mode]
        for r in here:
            if r["method"] == "full":
                ax.axhline(r["mean"], color="black", linewidth=1.2, linestyle="--", label="full")
        for i, method in enumerate(methods):
            points = {}
            for r in sorted((r for r in here if r["method"] == method and r["rows"]),
                            key=lambda r: r["rows"]):
                points[r["rows"]] = (r["mean"], r["lo"], r["hi"])
            if points:
                line(ax, points, method, style(i))
        ax.set_xscale("log", base=2)
        ax.set_xlabel("rows kept per layer and KV head")
        ax.xaxis.set_major_formatter(plt.matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    legend(fig)
    return fig


def share_kept(rows, r):
    """Rows of r's arm as a share of the tokens: its budget of --ctx, or what it kept on average."""
    same = [x for x in rows if x["kind"] == "task" and x["task"] == r["task"]
            and all(x[f] == r[f] for f in ("mode", "method", "budget", "sizes", "history",
                                           "query_aware", "model", "ctx", "preset"))]
    tokens = mean(x["tokens"] for x in same)
    budget = number(r, "budget")
    if not budget:
        return mean(x["rows"] for x in same) / tokens
    return budget / (number(r, "ctx") or tokens)


def plot_sweep(plt, rows, opts):
    """A panel per mode and turn. full is a level; a method without a budget stands where it keeps
    its rows, one of the prefill stage at all of them."""
    turns = [r for r in rows if r["kind"] == "turn"]
    modes = [m for m in MODES if any(r["mode"] == m for r in turns)]
    numbers = sorted({int(r["turn"]) for r in turns})
    # keep-last beside corm is a run of its own per session: its budget is a range
    turns = [r for r in turns if r["method"] == "full" or "-" not in r["budget"]]
    methods = list(dict.fromkeys(r["method"] for r in turns if r["method"] != "full"))
    fig, axes = plt.subplots(len(modes), len(numbers), sharex=True, sharey=True, squeeze=False,
                             figsize=(2.5 * len(numbers) + 1.9, 2.5 * len(modes) + 0.5),
                             layout="constrained")
    for r in turns:
        r["share"] = share_kept(rows, r)
    for y, mode in enumerate(modes):
        for x, turn in enumerate(numbers):
            ax = axes[y][x]
            here = [r for r in turns if r["mode"] == mode and r["turn"] == turn]
            full = [r["mean"] for r in here if r["method"] == "full"]
            if full:
                ax.axhline(mean(full), color="black", linewidth=1.2, linestyle="--", label="full")
            for i, method in enumerate(methods):
                of = [r for r in here if r["method"] == method and r["share"]]
                points = {s: p for s, p in averaged(
                    [{**r, "share": round(r["share"], 4)} for r in of], "share").items()}
                if points:
                    line(ax, {s: (p[0], None, None) for s, p in points.items()}, method, style(i))
            ax.set_ylim(-3, 103)
            if y == 0:
                ax.set_title(f"turn {turn}")
            if x == 0:
                ax.set_ylabel(f"{mode}\nscore in %")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(plt.matplotlib.ticker.FuncFormatter(
        lambda v, _: "1" if v >= 1 else f"1/{1 / v:g}"))
    fig.supxlabel("rows kept or read, as a share of the tokens", fontsize=10)
    legend(fig)
    return fig


def plot_bars(plt, rows, opts):
    look = Look(rows)
    fig, axes = panels(plt, rows)
    categories = [c for c in CATEGORIES if any(r["category"] == c for r in rows)]
    width = 0.84 / len(look.arms)
    for ax, mode in axes:
        for i, (arm, label) in enumerate(look.arms):
            here = {r["category"]: r for r in of_arm(rows, arm) if r["mode"] == mode}
            xs = [k for k, c in enumerate(categories) if c in here]
            if not xs:
                continue
            ys = [here[categories[k]]["mean"] for k in xs]
            at = [x + (i - (len(look.arms) - 1) / 2) * width for x in xs]
            ax.bar(at, ys, width * 0.94, label=label, color=look.style[label]["color"])
            for x, y, k in zip(at, ys, xs):
                r = here[categories[k]]
                if r["lo"] is not None:
                    ax.plot([x, x], [r["lo"], r["hi"]], color="#555555", linewidth=0.9)
        ax.set_xticks(range(len(categories)), categories, fontsize=9, rotation=18, ha="right",
                      rotation_mode="anchor")
        ax.grid(axis="x", visible=False)
    legend(fig)
    return fig


def plot_radar(plt, rows, opts):
    import numpy as np
    look = Look(rows)
    categories = [c for c in CATEGORIES if any(r["category"] == c for r in rows)]
    modes = [m for m in MODES
             if len({r["category"] for r in rows if r["mode"] == m}) == len(categories)]
    if not modes:
        fail("no mode has rows of every category; leave --radar out or choose one by --mode")
    if len(categories) < 3:
        fail(f"a radar chart needs three categories, here are {len(categories)}; leave --radar out")
    angle = np.linspace(0, 2 * np.pi, len(categories), endpoint=False)
    fig, axes = plt.subplots(1, len(modes), figsize=(4.6 * len(modes) + 1.6, 4.0), squeeze=False,
                             subplot_kw={"projection": "polar"}, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.3)      # it does not see these labels
    for ax, mode in zip(axes[0], modes):
        for arm, label in look.arms:
            here = {r["category"]: r["mean"] for r in of_arm(rows, arm) if r["mode"] == mode}
            if len(here) < len(categories):
                continue
            ys = [here[c] for c in categories]
            ax.plot([*angle, angle[0]], [*ys, ys[0]], label=label, linewidth=1.8,
                    color=look.style[label]["color"])
            ax.fill(angle, ys, color=look.style[label]["color"], alpha=0.06)
        ax.set_xticks(angle, categories)
        ax.set_theta_offset(np.pi / len(categories))
        for tick, a in zip(ax.get_xticklabels(), np.cos(angle + np.pi / len(categories))):
            tick.set_horizontalalignment("left" if a > 0.1 else "right" if a < -0.1 else "center")
        ax.set_rlabel_position(-180 / len(categories))
        ax.set_ylim(0, 100)
        ax.set_title(mode, pad=18)
    legend(fig)
    return fig


# ---------------------------------------------------------------------------
# scbench probe: the head of the file says what was measured

def probe_table(path):
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        fail(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}")
    if not rows or None in rows[0]:
        fail(f"{path} holds no rows; make it with scbench probe --out")
    draw = {"minor": probe_sparsity, "cosine": probe_similarity, "window": probe_compression,
            "share": probe_attention}
    for column, fn in draw.items():
        if column in rows[0]:
            return fn, rows
    fail(f"{path} is no output of scbench probe")


def mean(values):
    values = [v for v in values if v is not None and v == v]
    return sum(values) / len(values) if values else float("nan")


def probe_grid(rows, key):
    """(layers, heads) of one column"""
    layers = 1 + max(int(r["layer"]) for r in rows)
    heads = 1 + max(int(r["head"]) for r in rows)
    grid = [[float("nan")] * heads for _ in range(layers)]
    for r in rows:
        grid[int(r["layer"])][int(r["head"])] = 100 * float(r[key])
    return grid


def probe_sparsity(plt, rows):
    grid = probe_grid(rows, "minor")
    fig, (a, b) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    a.plot(range(len(grid)), [mean(g) for g in grid], color="black", marker="o", markersize=3)
    a.fill_between(range(len(grid)), [min(g) for g in grid], [max(g) for g in grid], alpha=0.15,
                   color="black", linewidth=0)
    a.set(xlabel="layer", ylabel="minor keys, %", ylim=(0, 100),
          title="mean of the heads, and range")
    shown = b.imshow([list(x) for x in zip(*grid)], aspect="auto", origin="lower", vmin=0, vmax=100)
    b.set(xlabel="layer", ylabel="head", title="minor keys, %")
    b.grid(False)
    fig.colorbar(shown, ax=b)
    return fig


def probe_similarity(plt, rows):
    far = [r for r in rows if r["kind"] == "distance"]
    layers = sorted({int(r["layer"]) for r in far})
    steps = sorted({int(r["distance"]) for r in far})
    fig, (a, b, c) = plt.subplots(1, 3, figsize=(12.6, 3.6), layout="constrained")
    colors = plt.get_cmap("viridis")
    for key, ax in (("cosine", a), ("content", b)):
        for layer in layers[::-(-len(layers) // 10)]:      # about ten lines tell the course
            ys = [mean(float(r[key]) for r in far
                       if int(r["layer"]) == layer and int(r["distance"]) == d) for d in steps]
            ax.plot(steps, ys, color=colors(layer / max(1, layers[-1])), linewidth=1.2)
        ax.set_xscale("log", base=2)
        ax.set(xlabel="tokens between two queries")
    low = min(a.get_ylim()[0], b.get_ylim()[0])
    a.set(ylabel="cosine, mean of the heads", title="as attention meets them", ylim=(low, 1))
    b.set(title="without their rotation", ylim=(low, 1))
    scale = plt.cm.ScalarMappable(plt.Normalize(layers[0], layers[-1]), colors)
    fig.colorbar(scale, ax=b, label="layer")
    for kind, label, color in (("similar", "most similar earlier query", "#0072B2"),
                               ("apart", "two others as far apart", "#D55E00"),
                               ("any", "any earlier query", "#999999")):
        here = [r for r in rows if r["kind"] == kind]
        c.plot(layers, [100 * mean(number(r, "shared") for r in here if int(r["layer"]) == n)
                        for n in layers], label=label, color=color, marker="o", markersize=3)
    c.set(xlabel="layer", ylabel="important keys in common, %", ylim=(0, 100))
    c.legend(frameon=False, fontsize=9)
    return fig


def probe_compression(plt, rows):
    fig, ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    for i, w in enumerate(sorted({int(r["window"]) for r in rows})):
        here = sorted((int(r["tokens"]), 100 * float(r["compression"])) for r in rows
                      if int(r["window"]) == w)
        ax.plot(*zip(*here), label=f"w = r = {w}", color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)])
    ax.set_xscale("log", base=2)
    ax.set(xlabel="tokens", ylabel="rows dropped by corm, %", ylim=(0, 100))
    ax.legend(frameon=False)
    return fig


def probe_attention(plt, rows):
    turns = sorted({int(r["turn"]) for r in rows})
    bins = 1 + max(int(r["bin"]) for r in rows if r["kind"] == "bin")
    grid = [[mean(100 * float(r["share"]) for r in rows if r["kind"] == "bin"
                  and int(r["turn"]) == t and int(r["bin"]) == b) for b in range(bins)]
            for t in turns]
    fig, (a, b) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    # the first token takes so much that only a logarithm shows the rest
    low = max(1e-3, min(min(g) for g in grid))
    shown = a.imshow([[max(x, low) for x in g] for g in grid], aspect="auto",
                     norm=plt.matplotlib.colors.LogNorm(low),
                     extent=(0, 100, turns[-1] + 0.5, turns[0] - 0.5))
    at = {int(r["turn"]): int(r["bin"]) for r in rows if r["kind"] == "needle"}
    a.plot([100 * (at[t] + 0.5) / bins for t in turns], turns, linestyle="", marker="o",
           color="white", markeredgecolor="black", markersize=6)
    a.set(xlabel="place in the context, %", ylabel="turn", yticks=turns,
          title="attention, %; dots: values asked for")
    a.grid(False)
    fig.colorbar(shown, ax=a)
    layers = sorted({int(r["layer"]) for r in rows})

    def best(kind, layer, turn):
        return 100 * max(float(r["share"]) for r in rows if r["kind"] == kind
                         and int(r["turn"]) == turn and int(r["layer"]) == layer)
    for i, t in enumerate(turns):
        b.plot(layers, [best("needle", n, t) for n in layers], label=f"turn {t}", marker="o",
               markersize=3, color=COLORS[i % len(COLORS)])
    if any(r["kind"] == "other" for r in rows):
        b.plot(layers, [mean(best("other", n, t) for t in turns) for n in layers],
               label="value of another turn", color="black", linestyle="--", linewidth=1)
    b.set(xlabel="layer", ylabel="on the value asked for, %, best head", ylim=(0, None))
    b.legend(frameon=False, fontsize=9)
    return fig


def main():
    p = argparse.ArgumentParser(description="figures of scbench report's CSV", epilog=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("figure", choices=sorted([*KINDS, "probe"]), help="what to draw")
    p.add_argument("csv", help="output of scbench report --format csv, or a run's directory")
    p.add_argument("out", help="FILE.png, FILE.svg or FILE.pdf")
    for name in ("task", "mode", "method"):
        p.add_argument(f"--{name}", action="append", metavar="NAME",
                       help=f"only this {name}; may be repeated")
    p.add_argument("--radar", action="store_true", help="abilities as a radar chart, not as bars")
    p.add_argument("--split", action="store_true", help="turns: a panel per task")
    p.add_argument("--title", help="above the figure")
    p.add_argument("--dpi", type=int, default=200, metavar="N", help="of a png; default 200")
    opts = p.parse_args()
    ending = os.path.splitext(opts.out)[1].lower()
    if ending not in (".png", ".svg", ".pdf"):
        fail(f"{opts.out} does not end in .png, .svg or .pdf")
    if not 20 <= opts.dpi <= 1000:
        fail(f"--dpi wants a number from 20 to 1000, got {opts.dpi}")
    if opts.radar and opts.figure != "abilities":
        fail("--radar belongs to abilities")
    if opts.split and opts.figure != "turns":
        fail("--split belongs to turns")
    if opts.figure == "probe":
        probe, rows = probe_table(opts.csv)
    else:
        rows = read(opts.csv, opts)
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import matplotlib.colors
        import matplotlib.ticker
    except ImportError:
        fail("matplotlib is missing; test/venv.sh installs it into .venv")
    plt.rcParams.update({
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": "#dddddd", "grid.linewidth": 0.7, "axes.axisbelow": True,
        "axes.edgecolor": "#888888", "axes.titlesize": 11,
        "svg.fonttype": "none", "svg.hashsalt": "scbench", "pdf.fonttype": 42,
    })
    draw = {"probe": lambda plt, rows, _: probe(plt, rows), "turns": plot_turns,
            "depth": plot_depth, "budget": plot_budget, "sweep": plot_sweep,
            "abilities": plot_radar if opts.radar else plot_bars}[opts.figure]
    fig = draw(plt, rows, opts)
    if opts.title:
        fig.suptitle(opts.title)
    tmp = f"{opts.out}.tmp"
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    try:
        fig.savefig(tmp, format=ending[1:], metadata=dates[ending], dpi=opts.dpi)
        os.replace(tmp, opts.out)
    except OSError as e:
        if os.path.exists(tmp):
            os.remove(tmp)
        fail(f"{opts.out} cannot be written: {e.strerror or e}")


if __name__ == "__main__":
    main()
