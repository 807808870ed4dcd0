#!/usr/bin/env python3
"""Makes data/scorers: inputs written or drawn here and what the reference programs say of them.

    rules.jsonl         {"r" rule, "w" harness | ours | both, "p" prediction (or "x": its bytes in
                        hex), "l" labels, "s" score}: the rules of the published harness as they are
                        described, in Python, and cases of our own reading
    rouge.jsonl         {"p", "r", "s"}: rougeLsum F1 of rouge_score
    bleu.jsonl          {"p", "r", "s"}: nltk's sentence_bleu, smoothing method 4
    code_extract.jsonl  {"g" language, "c" code, "f" [first byte, bytes] of the first function that
                        tree-sitter captures or null, "e": 1 where tree-sitter saw an error}
    fences.jsonl        {"g", "p" answer, "f" function}: blocks by a regular expression

    python test/make_scorer_vectors.py      needs rouge_score, nltk, tree-sitter and its grammars
                                            (python java typescript rust cpp go php)

Code comes from test/code_snippets.txt, as it stands and changed: line ends, tabs, two in a row, a
line less, cut short."""

import importlib
import json
import os
import random
import re
import string
from collections import Counter

import tree_sitter
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "data", "scorers")
rng = random.Random(7)

# ---------------------------------------------------------------------------
# the harness's rules


def substring(p, labels):
    return float(labels[0] in p)


def names(p, labels):
    return round(sum(x.lower() in p.lower() for x in labels) / len(labels), 2)


def number(p, labels):
    found = re.search(r"\d+\.\d+|\d+", p)
    if not found:
        return 0.0
    try:
        want = int(labels[0])
    except ValueError:
        return float(float(found[0]) == float(labels[0]))
    value = float(found[0])
    return float(value != float("inf") and int(value) == want)


def passkey(p, labels):
    runs = [x for x in re.split("[^0-9]", p) if x]
    return float(bool(runs) and runs[0] == labels[0])


def choice(p, labels):
    text, letter = labels
    p = p.strip()
    if not p:
        return 0.0
    if p[0] in "ABCD":
        return float(p[0] in (letter, text))
    if p in (text, letter):
        return 1.0
    for mark in "\n\"'.,?!{}":
        p = p.replace(mark, " ")
    while "  " in p:
        p = p.replace("  ", " ")
    for prefix in ("answer is:", "answer:", "answer is", "option is"):
        at = p.find(prefix)
        if at < 0:
            continue
        if at + len(prefix) == len(p):
            return 0.0
        rest = p[at + len(prefix) + 1 :]
        return float(rest.startswith(text) or rest.startswith(letter))
    for word in p.split():
        if word in "ABCD":
            return float(word in (text, letter))
    return 0.0


def qa_en(p, labels):
    return float(any(x.upper() in p.strip().upper() for x in labels))


def letter_anywhere(p, labels):
    return qa_en(p, list(labels[0]))


TYPOGRAPHIC = [
    (0x2E, 0x2E),
    (0x2013, 0x2014),
    (0x2018, 0x2019),
    (0x201B, 0x201F),
    (0x2026, 0x2027),
    (0x3001, 0x3003),
    (0x300B, 0x3011),
    (0x3014, 0x301F),
    (0x3030, 0x3030),
    (0x303E, 0x303F),
    (0xFE4F, 0xFE4F),
    (0xFF01, 0xFF0D),
    (0xFF0F, 0xFF0F),
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF64),
]
GONE = set(string.punctuation) | {chr(c) for a, b in TYPOGRAPHIC for c in range(a, b + 1)}


def multiset_f1(a, b):
    same = sum((Counter(a) & Counter(b)).values())
    if not same:
        return 0.0
    precision, recall = same / len(a), same / len(b)
    return 2 * precision * recall / (precision + recall)


def normal_zh(s):
    return list("".join("".join(c for c in s.lower() if c not in GONE).split()))


def qa_zh_list(p, labels):
    return max(multiset_f1(normal_zh(p), normal_zh(x)) for x in labels)


def qa_zh(p, labels):
    return max((multiset_f1(normal_zh(p), normal_zh(x)) for x in labels[0]), default=0.0)


def normal_en(s):
    s = "".join(c for c in s.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", s).split()


def token_f1(p, labels):
    return max(multiset_f1(normal_en(p), normal_en(x)) for x in labels)


# ---------------------------------------------------------------------------
# texts

ODD = [
    "\0",
    "\u0130",
    "\u00df",
    "\u03a3",
    "\u03c3\u03a3",
    "\ufb01",
    "\u1fb3",
    "\u2003",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u0301",
    "\u0660\u0663",
    "\uff11",
    "\U0001d7d8",
    "\u212a",
    "\u300a",
    "\u300b",
    "\u3002",
    "\uff0c",
    "\u2014",
    "\U0001f600",
    "\u01c5",
    "\u0149",
    "\u5317",
    "\u4eac",
    "\u4e0a\u6d77",
    "\u4ed6",
    "\u5728",
    "\u2019",
    "\ufffd",
    "\r\n",
    "\t",
    "\n\n",
    "\x0b",
]
WORDS = (
    "the a an answer is: answer: option is A B C D AB BCD Because Paris paris the cat sat on mat "
    "12 12.5 007 1,000 -3 3.14 99999999999999999999 VAR1 AAAAA BBBBB ABCDE (A) (B) B. "
    "a) \u0391\u03a3 Stra\u00dfe STRASSE \u0130stanbul na\u00efve It's test-case \"Peyton\" "
    "Walking Georgie no none , . ! ? { } '"
).split(" ")


def text(n, odd=0.25):
    parts = []
    for _ in range(rng.randrange(n + 1)):
        parts.append(rng.choice(ODD) if rng.random() < odd else rng.choice(WORDS))
        parts.append(rng.choice(["", " ", " ", " ", "\n", "  "]))
    return "".join(parts)


def rule_rows():
    rows = []

    def add(rule, which, p, labels, score):
        rows.append({"r": rule, "w": which, "p": p, "l": labels, "s": score})

    plans = [
        ("substring", "both", substring),
        ("names", "both", names),
        ("number", "harness", number),
        ("passkey", "both", passkey),
        ("choice", "harness", choice),
        ("qa_en", "harness", qa_en),
        ("qa_en", "ours", token_f1),
        ("qa_zh", "harness", qa_zh),
        ("qa_zh", "ours", qa_zh_list),
        ("letter", "harness", letter_anywhere),
    ]
    for rule, which, score in plans:
        seen = Counter()
        for _ in range(4000):
            p = text(12)
            labels = [text(3) for _ in range(rng.randrange(1, 4))]
            if rule == "names":
                labels = [rng.choice(WORDS) for _ in range(rng.choice([1, 2, 3, 4, 8]))]
            if rule == "number":
                labels = [rng.choice("12 7 3 -3 0 1 12.5 3.14 1000 99999999999999999999".split())]
            if rule == "passkey":
                labels = [rng.choice(["12", "007", "3", "", "99999999999999999999"])]
            if rule == "choice":
                labels = [
                    rng.choice(["Walking Georgie", "the cat", "A", "no", "Stra\u00dfe", ""]),
                    rng.choice("ABCD"),
                ]
            if rule == "letter":
                labels = [rng.choice(["A", "B", "(C)", "\u00df", "D"])]
            if any("\0" in x for x in labels):
                continue
            s = score(p, labels)
            kind = 0 if s == 0 else 2 if s == 1 else 1
            if seen[kind] < 40:
                seen[kind] += 1
                add(rule, which, p, labels, s)

    fixed(add)
    for rule, data, labels, s in [
        ("substring", b"\xffabc\xc3", ["abc"], 1),
        ("substring", b"a\xe4\xb8", ["a\ufffd"], 1),
        ("substring", b"a\xe4\xb8b", ["\ufffd\ufffd"], 0),
        ("qa_zh", b"\xe5\x8c\x97\xf0\x9f", ["\u5317"], 2 / 3),
        ("substring", b"\xed\xa0\x80", ["\ufffd\ufffd\ufffd"], 1),
        ("substring", b"\xc0\xaf", ["\ufffd\ufffd"], 1),
    ]:
        assert rule != "substring" or substring(data.decode("utf-8", "replace"), labels) == s
        rows.append(
            {
                "r": rule,
                "w": "both" if rule == "substring" else "ours",
                "x": data.hex(),
                "l": labels,
                "s": s,
            }
        )
    return rows


def fixed(add):
    """Cases with known answers: the harness's described vectors, and our own reading of answers."""
    for p, letter, s in [
        ("A. Walking", "A", 1),
        ("Walking Georgie", "A", 1),
        ("walking Georgie", "A", 0),
        ("a", "A", 0),
        ("", "A", 0),
        ("Answer", "A", 1),
        ("The correct option is A", "A", 1),
        ("The answer is: B", "B", 1),
        ("the answer is B", "B", 1),
        ("BC", "B", 1),
        ("answer: C", "C", 1),
        ("I think D is", "D", 1),
        (" Because", "B", 1),
    ]:
        assert choice(p, ["Walking Georgie", letter]) == s, (p, letter)
        add("choice", "harness", p, ["Walking Georgie", letter], s)
    for p, s in [
        ("\u5317\u4eac", 2 / 3),
        ("\u5317\u4eac\u5927\u5b66", 0.4),
        ("\u4ed6\u5728\u5317\u4eac\u3002", 0.4),
        ("\u5317", 1),
        ("\u4e0a\u6d77", 0),
    ]:
        assert abs(qa_zh(p, ["\u5317\u4eac"]) - s) < 1e-12
        add("qa_zh", "harness", p, ["\u5317\u4eac"], qa_zh(p, ["\u5317\u4eac"]))
    for n, s in [(1, 0.33), (2, 0.67)]:
        add("names", "both", " ".join(["one", "two"][:n]), ["ONE", "TWO", "THREE"], s)
    add("names", "both", "one", ["one"] + ["x%d" % i for i in range(7)], 0.12)
    add("names", "both", "AAAAABBBBB", ["aaaaa", "bbbbb"], 1)
    for p, label in [
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
        ("\u0391\u03a3\u0391", "\u03b1\u03c3"),
        ("\u0391\u03a3'\u0391", "\u03b1\u03c3"),
        ("\u0391'\u03a3 \u0391", "'\u03c2"),
        ("\u03a3", "\u03c2"),
    ]:
        add("names", "both", p, [label], names(p, [label]))
    for p, label, s in [
        ("B", "B", 1),
        ("(B)", "B", 1),
        ("b", "B", 1),
        ("b) because", "B", 1),
        ("B.", "B", 1),
        ("**B**", "B", 1),
        ("B: seven", "B", 1),
        ("B is right", "B", 1),
        ("The answer is A", "A", 1),
        ("The answer is (A).", "A", 1),
        ("Answer: A", "A", 1),
        ("answer:\n**C**", "C", 1),
        ("The best answer", "B", 0),
        ("A man went home", "A", 0),
        ("A", "A", 1),
        ("A\n", "A", 1),
        ("A. A man", "A", 1),
        ("I think it is (C)", "C", 1),
        ("I think B", "B", 1),
        ("Because of that", "B", 0),
        ("", "A", 0),
        ("Option D", "D", 1),
        ("The correct option is A.", "A", 1),
        ("So the answer is (B) and not (A)", "B", 1),
        ("(E)", "(E)", 1),
        ("C", "(B)", 0),
        ("it's a", "A", 0),
        ("A-team", "A", 0),
        ("Answers vary", "A", 0),
        ('"B"', "B", 1),
        ("I'd say D", "D", 1),
        ("none of these", "C", 0),
    ]:
        add("letter", "ours", p, [label], s)
    for p, letter, s in [
        ("B", "B", 1),
        ("Walking Georgie", "A", 1),
        ("It was WALKING georgie.", "C", 1),
        ("A", "B", 0),
        ("The answer is D) Walking Georgie", "D", 1),
        ("The answer is D) Walking Georgie", "A", 0),
        ("Because", "B", 0),
        ("Answer", "A", 0),
        ("", "A", 0),
        ("Answer: b)", "B", 1),
        ("A man", "A", 0),
    ]:
        add("choice", "ours", p, ["Walking Georgie", letter], s)
    for p, label, s in [
        ("12", "12", 1),
        ("-12", "12", 0),
        ("-12", "-12", 1),
        ("12.5", "12", 0),
        ("12.0", "12", 1),
        ("007", "7", 1),
        ("3-4", "3", 1),
        ("range 3-4", "4", 0),
        ("x-4", "4", 1),
        ("it is \u22125.", "-5", 1),
        ("none", "0", 0),
        ("9007199254740993", "9007199254740993", 1),
        ("9007199254740993", "9007199254740992", 0),
        ("1.5", "1.5", 1),
    ]:
        add("number", "ours", p, [label], s)
    for p, label, s in [
        ("12.5", "12", 1),
        ("12.7", "12", 1),
        ("007", "7", 1),
        ("-12", "12", 1),
        ("1,000", "1", 1),
        ("none", "0", 0),
        ("9007199254740993", "9007199254740992", 1),
    ]:
        assert number(p, [label]) == s
        add("number", "harness", p, [label], s)


def rouge_rows():
    score = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=False).score
    pairs = [
        ("the mat sat on the cat", "the cat sat on the mat"),
        ("a c\nf e d", "a b c\nd e f"),
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"),
        ("police kill the gunman", "police killed the gunman"),
        ("a b c d e f", "a b c\nd e f"),
        ("its a test case", "It's a test-case"),
        ("x y z x y z", "x y z"),
        ("", "a"),
        ("a", ""),
        ("...", "a"),
        ("\n\n", "\n"),
    ]
    for k in range(150):
        few = [chr(97 + i) + str(i % 3) for i in range(rng.choice([2, 5, 30]))]

        def side():
            lines = [
                " ".join(rng.choice(few) for _ in range(rng.randrange(0, rng.choice([4, 30, 90]))))
                for _ in range(rng.randrange(1, 6))
            ]
            return rng.choice(["\n", "\n\n", "\r\n"]).join(lines) if k % 5 else text(30)

        pairs.append((side(), side()))
    return [{"p": p, "r": r, "s": score(r, p)["rougeLsum"].fmeasure} for p, r in pairs]


def code_tokens(s):
    return re.split(r"\s+", s.strip())


def bleu_rows():
    method = SmoothingFunction().method4
    add = "def add(a, b):\n    return a + b"
    pairs = [
        (add, add),
        ("def add(a, b):\n    return a - b", add),
        ("def add(a, b): return a + b  # sum", add),
        ("return a + b", add),
        ("def add(a, b):", add),
        ("def x return y a z b", add),
        ("a +", add),
        ("return", add),
        ("", add),
        ("nothing here", add),
        ("", ""),
        ("x", "x"),
        (add, "x"),
        ("a b c d", "d c b a"),
    ]
    for _ in range(150):
        few = ["t%d" % i for i in range(rng.choice([1, 2, 4, 12, 60]))]

        def side():
            if rng.random() < 0.2:
                return text(20)
            return rng.choice([" ", "\n    ", "\u3000", "\x1c"]).join(
                rng.choice(few) for _ in range(rng.randrange(0, rng.choice([3, 8, 60])))
            )

        a = side()
        b = side()
        if rng.random() < 0.4:
            words = a.split(" ")
            del words[rng.randrange(len(words))]
            b = " ".join(words)
        pairs.append((a, b))
    rows = []
    for p, r in pairs:
        score = sentence_bleu([code_tokens(r)], code_tokens(p), smoothing_function=method)
        rows.append({"p": p, "r": r, "s": float(score)})
    expect = [
        1,
        0.6434588841607617,
        0.7259795291154771,
        0.4723665527410147,
        0.15175807321836055,
        0.04576302950377294,
        0.01817268199264075,
        0.0024787521766663585,
        0,
        0,
    ]
    for row, want in zip(rows, expect):
        assert abs(row["s"] - want) < 1e-12, (row, want)
    return rows


# ---------------------------------------------------------------------------
# functions

GRAMMARS = {
    "python": ("tree_sitter_python", "language", "(function_definition) @f"),
    "java": ("tree_sitter_java", "language", "(method_declaration) @f"),
    "typescript": ("tree_sitter_typescript", "language_typescript", "(function_declaration) @f"),
    "rust": ("tree_sitter_rust", "language", "(function_item) @f"),
    "cpp": (
        "tree_sitter_cpp",
        "language",
        "(function_definition declarator: (function_declarator declarator: (identifier))) @f",
    ),
    "go": ("tree_sitter_go", "language", "(function_declaration) @f"),
    "php": (
        "tree_sitter_php",
        "language_php_only",
        "[(function_definition) (method_declaration)] @f",
    ),
}


class Grammar:
    def __init__(self, module, entry, query):
        language = tree_sitter.Language(getattr(importlib.import_module(module), entry)())
        self.parser = tree_sitter.Parser(language)
        self.query = tree_sitter.Query(language, query)

    def first(self, code):
        """first byte and bytes of the first function or None, and whether there is an error"""
        tree = self.parser.parse(code)
        nodes = tree_sitter.QueryCursor(self.query).captures(tree.root_node).get("f", [])
        spans = sorted((n.start_byte, -n.end_byte) for n in nodes)
        return (
            [spans[0][0], -spans[0][1] - spans[0][0]] if spans else None
        ), tree.root_node.has_error


def snippets():
    with open(os.path.join(ROOT, "test", "code_snippets.txt"), encoding="utf-8", newline="") as f:
        parts = ("\n" + f.read()).split("\n%%%% ")[1:]
    return [tuple(p.split("\n", 1)) for p in parts]


def changed(base):
    """each snippet, and one or two changed forms of the longer ones"""
    for k, (lang, code) in enumerate(base):
        yield lang, code
        if len(code) < 50:
            continue
        lines = code.split("\n")
        other = rng.choice([c for g, c in base if g == lang])
        cut = rng.randrange(len(lines))
        forms = [
            code.replace("\n", "\r\n"),
            code.replace("    ", "\t"),
            code + "\n" + other,
            other + "\n" + code,
            "\n".join(lines[:cut] + lines[cut + 1 :]),
            code[: rng.randrange(len(code))],
        ]
        pick = [forms[k % 6], forms[(k + 2) % 6]] if len(code) < 700 else [forms[k % 6]]
        for form in dict.fromkeys(pick):
            if form != code:
                yield lang, form


def code_rows(grammars):
    rows = []
    for lang, code in changed(snippets()):
        span, error = grammars[lang].first(code.encode())
        rows.append({"g": lang, "c": code, "f": span} | ({"e": 1} if error else {}))
    return rows


def extract(grammar, answer):
    answer = answer.strip()
    blocks = re.findall(r"^```\w*\s*\n(.*?)^```", answer, re.M | re.S)
    for block in blocks:
        data = block.encode()
        span, _ = grammar.first(data)
        if span:
            return data[span[0] : span[0] + span[1]].decode()
    return blocks[0] if blocks else answer


def fence_rows(grammars):
    f, g = "def f(x):\n    return x\n", "def g(y):\n    return y\n"
    answers = [
        f,
        "```python\n" + f + "```",
        "Here:\n```python\n" + f + "```\nand\n```\n" + g + "```",
        "```python\n" + f,
        "```\nx = 1\n```\n```py\n" + g + "```",
        "```\nx = 1\n```",
        "```c++\n" + f + "```\n" + g + "```\n",
        "```python title\n" + f + "```\n" + g + "```",
        "   ```python\n" + f + "```",
        "text\n   ```python\n" + f + "   ```",
        "```python\n\n\n    " + f.replace("\n", "\n    ") + "\n```",
        "```python   \n \t \n" + f + "```tail\n```\n" + g + "```",
        "```" + f + "```",
        "```\n```\n```\n" + f + "```",
        "``````\n" + f + "```",
        "```python\r\n" + f.replace("\n", "\r\n") + "```\r\n",
        "~~~\n" + f + "~~~",
        "```\u00e9t\u00e9\n" + f + "```",
        "```python\u3000\n" + f + "```",
        "```python\x1c\n" + f + "```",
        "a\r```python\n" + f + "```",
        "",
        "```",
        "```\n",
        "```\n```",
        "\n\n```python\n" + f + "\n```\n\n",
        "````python\n" + f + "````",
        "```python\n@dec\n" + f + "```",
        "```python\nclass A:\n    " + f.replace("\n", "\n    ") + "\n```",
        "```\0\n" + f + "```",
        "```python\nx = '''\n```\n'''\n" + f + "```",
        "```\n\n \n  x = 1\n```",
        "```\nx\n```\n" + f + "```",
        "- ```python\n" + f + "```\n```\nno\n```",
        "```python\n" + f + "```" + "```\n" + g + "```",
    ]
    for _ in range(60):
        answers.append(
            "".join(
                rng.choice(
                    [
                        "```",
                        "```",
                        "\n",
                        "\n",
                        "python",
                        f,
                        g,
                        " ",
                        "x = 1\n",
                        "\u3000",
                        "c++",
                        "``",
                        "\r\n",
                    ]
                )
                for _ in range(rng.randrange(3, 16))
            )
        )
    return [{"g": "python", "p": a, "f": extract(grammars["python"], a)} for a in answers]


def write(name, rows):
    path = os.path.join(OUT, name)
    with open(path + ".tmp", "w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    os.replace(path + ".tmp", path)
    print(f"{name}: {len(rows)} rows, {os.path.getsize(path)} bytes")


def main():
    os.makedirs(OUT, exist_ok=True)
    grammars = {lang: Grammar(*how) for lang, how in GRAMMARS.items()}
    write("rules.jsonl", rule_rows())
    write("rouge.jsonl", rouge_rows())
    write("bleu.jsonl", bleu_rows())
    write("code_extract.jsonl", code_rows(grammars))
    write("fences.jsonl", fence_rows(grammars))


if __name__ == "__main__":
    main()
