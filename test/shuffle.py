#!/usr/bin/env python3
"""shuffle.py - the shuffle control: contexts whose keys have changed places, questions as they were.

    shuffle.py retr_kv|retr_ps|retr_mh SESSIONS.jsonl OLD.jsonl NEW.jsonl

SESSIONS.jsonl is what `scbench gen` writes. In every context the keys are moved on by one place:
retr_kv the keys of the object, retr_ps both ends of the strings, retr_mh the numbers of the chains.
OLD.jsonl keeps the answers, which are now wrong: a model that reads the context scores no more than
chance on it. NEW.jsonl has the answers of the new context: the same model scores as before.
"""
import json
import re
import sys

END = 5         # letters at either end of a string that a question of retr_ps gives
CHAIN = r"Let (\w+) be (?:(\d+)|the same as (\w+))\."


def moved(keys):
    return keys[1:] + keys[:1]


def shuffle_kv(record):
    pairs = list(json.loads(record["context"]).items())
    keys = moved([k for k, _ in pairs])
    answer = dict(zip(keys, (v for _, v in pairs)))
    record["context"] = json.dumps(answer)
    return lambda question: answer[re.search(r'"([^"]+)":$', question).group(1)]


def shuffle_ps(record):
    strings = json.loads(record["context"])
    ends = moved([(s[:END], s[-END:]) for s in strings])
    strings = [a + s[END:-END] + b for (a, b), s in zip(ends, strings)]
    record["context"] = json.dumps(strings)
    answer = dict(zip(ends, strings))
    return lambda question: answer[tuple(re.findall(r'"([^"]+)"', question))]


def shuffle_mh(record):
    value = [m.group(2) for m in re.finditer(CHAIN, record["input"]) if m.group(2)]
    to = dict(zip(value, moved(value)))
    record["input"] = re.sub(r"(?<= be )\d+(?=\.)", lambda m: to[m.group()], record["input"])
    chain = {}
    for name, number, other in re.findall(CHAIN, record["input"]):
        names = chain[name] = chain[other] if other else []
        if number:
            chain[number] = names
        names.append(name)
    return lambda question: chain[re.search(r"value (\d+)", question).group(1)]


def main():
    if len(sys.argv) != 5 or "shuffle_" + sys.argv[1][5:] not in globals():
        sys.exit(__doc__.strip())
    shuffle = globals()["shuffle_" + sys.argv[1][5:]]
    with open(sys.argv[2], encoding="utf-8") as f, open(sys.argv[3], "w", encoding="utf-8") as old, \
            open(sys.argv[4], "w", encoding="utf-8") as new:
        for line in f:
            record = json.loads(line)
            answer = shuffle(record)
            old.write(json.dumps(record) + "\n")
            for turn in record["multi_turns"]:
                before, turn["answer"] = turn["answer"], answer(turn["input"])
                if before == turn["answer"]:
                    sys.exit(f"shuffle.py: an answer stayed the same: {before}")
            new.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
