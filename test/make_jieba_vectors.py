#!/usr/bin/env python3
"""Makes data/scorers/jieba.jsonl: {"in": text, "out": [words]}, the texts from this program's Chinese
generators and from their characters in disorder, the words from jieba 0.42.1.

    python test/make_jieba_vectors.py MODEL.bin [ALL]     needs jieba; MODEL counts tokens for scbench gen

With ALL, so many texts of each kind are written to standard output instead."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile

import jieba

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = ("zh_qa", "longbench/multifieldqa_zh", "longbench/dureader", "longbench/vcsum", "longbench/lsht",
         "longbench/passage_retrieval_zh")
OTHER = "0123456789abcXYZ+#&._%- ,.!?:;()《》〈〉·．、“”…—％＋Ａ１é𠀀龥龦\t"
PIECES = ("GPT-4", "3.5%", "2,000", "C++", "a.b-c", "100%", " ", "v1.2")


def sentences(model):
    found = set()
    with tempfile.TemporaryDirectory() as tmp:
        for i, task in enumerate(TASKS):
            path = os.path.join(tmp, f"{i}.jsonl")
            subprocess.run([os.path.join(ROOT, "scbench"), "gen", "--task", task, "--tokenizer", model, "--ctx",
                            "12000", "--sessions", "3", "--out", path], check=True, capture_output=True)
            for line in open(path, encoding="utf-8"):
                found.update(s for s in re.split("(?<=[。！？])|\n", json.loads(line)["context"]) if s)
    return sorted(found)


def main():
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    rng = random.Random(11)
    whole = sentences(sys.argv[1])
    rng.shuffle(whole)
    characters = "".join(whole)
    texts = whole[:n]
    for _ in range(n):
        texts.append("".join(rng.choice(characters if rng.random() < 0.75 else OTHER)
                             for _ in range(rng.randint(1, 40))))
        a, b = rng.choice(whole), rng.choice(whole)
        at = rng.randrange(len(a))
        texts.append(a[at:at + 20] + rng.choice(PIECES) + b[:rng.randint(0, 20)])
    path = os.path.join(ROOT, "data", "scorers", "jieba.jsonl")
    with open(path, "w", encoding="utf-8") if len(sys.argv) < 3 else sys.stdout as out:
        for text in texts:
            print(json.dumps({"in": text, "out": list(jieba.cut(text))}, ensure_ascii=False), file=out)


main()
