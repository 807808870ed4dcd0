#!/usr/bin/env python3
"""train.py - makes the small models in data/: lays out their circuits, trains them on.

    train.py --model llama|jamba|mamba2 --dir DIR [--mtokens M] [--threads N] [--device cpu|cuda]

DIR receives the Hugging Face directory (config.json, model.safetensors, tokenizer.json ...), which
export.py turns into a model file like any other, the checkpoint, from which a second call goes on,
and log.jsonl. Needs PyTorch, tokenizers and safetensors, and ./scbench, which makes the sessions.

Start. The matrices of llama and jamba do not begin at random: heads are set up that look a fixed
distance back, that find the place where the same tokens stood before, the line that ends in a name
or a number, the string with a prefix and a suffix, the largest number (start_llama, start_jamba).
That alone does the tasks. --mtokens 0, the default, stops there; what more adds is trained.

Data of the training. Sessions of retr_kv, retr_mh, retr_ps and math_find as `scbench gen` writes
them, laid out as the multi-turn mode does: context, then question and golden answer, turn after
turn. The loss is on the answers. Training takes seeds from TRAIN_SEEDS upwards, tests and
measurements seeds below it: no session is in both.
"""
import argparse
import collections
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import torch
import torch.nn.functional as F
from torch import nn

TRAIN_SEEDS = 1 << 20           # sessions of smaller seeds are never trained on
SPECIAL = ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]
VOCAB = 1024
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# ---------------------------------------------------------------------------
# Tokenizer: byte-level BPE over pre-tokens chosen so that what is to be found is cut alike wherever
# it stands: hex digits and digits in pairs from the left, other letters singly unless they are a
# word, the quotes and commas of lists and objects as one token each.

PATTERN = (
    r""" ?(?<!["A-Za-z0-9_-])[A-Z]?[a-z]+(?![A-Za-z0-9_-])"""           # a word
    r"""|(?<![A-Zg-z_])[0-9a-f]{2}(?=(?:[0-9a-f]{2})*(?![0-9A-Za-z_]))"""  # hex, pairs to the end
    r"""|[0-9]{2}"""
    r"""|", "|":| "|, |\.?\n+|[{\[]"|"[}\]]"""
    r"""|[\s\S]""")
PIECES = ['":', '", "', '":', ', ', '.\n', '\n\n', '{"', '["', '"}', '"]', ' "']
TEMPLATE = ("<|bos|>{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
            "{% else %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def byte_letters():
    """the letters that stand for the 256 bytes in a byte-level vocabulary (GPT-2)"""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def learn_merges(words, fixed, n):
    """words: text -> count. Byte-pair encoding: n merges, the fixed ones first."""
    merges = list(fixed)
    parts = {w: list(w) for w in words}

    def apply(a, b):
        for w, p in parts.items():
            i = 0
            while i < len(p) - 1:
                if p[i] == a and p[i + 1] == b:
                    p[i:i + 2] = [a + b]
                i += 1
    for a, b in merges:
        apply(a, b)
    while len(merges) < n:
        pairs = collections.Counter()
        for w, p in parts.items():
            for pair in zip(p, p[1:]):
                pairs[pair] += words[w]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        apply(*best)
    return merges


def fixed_merges(letters):
    hexes = "0123456789abcdef"
    merges = [(a, b) for a in hexes for b in hexes]
    known = set()
    for piece in PIECES:
        text = "".join(letters[b] for b in piece.encode())
        for i in range(1, len(text)):
            pair = (text[:i], text[i])
            if pair not in known:
                known.add(pair)
                merges.append(pair)
    return merges


def write_tokenizer(dir, words):
    """words: text -> count, of running text; {} for the tokenizer that counts the first texts"""
    letters = byte_letters()
    spelled = {"".join(letters[b] for b in w.encode()): n for w, n in words.items()}
    merges = learn_merges(spelled, fixed_merges(letters), VOCAB - 256 - len(SPECIAL))
    vocab = {s: i for i, s in enumerate(letters[b] for b in range(256))}
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    first = VOCAB - len(SPECIAL)
    added = [{"id": first + i, "content": s, "special": True, "lstrip": False, "rstrip": False,
              "single_word": False, "normalized": False} for i, s in enumerate(SPECIAL)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
             "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated",
             "invert": False}
    write_json(os.path.join(dir, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "post_processor": None, "decoder": level,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges]}})
    write_json(os.path.join(dir, "tokenizer_config.json"), {
        "bos_token": SPECIAL[0], "eos_token": SPECIAL[3], "chat_template": TEMPLATE})


def write_json(path, value):
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")
    os.replace(path + ".tmp", path)


# ---------------------------------------------------------------------------
# Sessions

INSTRUCTION = {         # of the program's tasks; the check below compares whole prompts
    "retr_kv": "Here is a JSON object. Its keys and values are random identifiers; questions about "
               "single keys follow.\n\n",
    "retr_ps": "Here is a list of random strings; questions about single strings of it follow.\n\n",
    "retr_mh": "In the lines below, variables are set now and then: to a number, or to the value "
               "of another variable. Questions about the variables follow.\n\n",
    "math_find": "Here is a list of integers; questions about the whole list follow.\n\n",
}


def generate(task, tokenizer, ctx, turns, sessions, seed):
    """records of `scbench gen`; None where ctx is too small for so many turns"""
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, "s.jsonl")
        r = subprocess.run([os.path.join(ROOT, "scbench"), "gen", "--task", task, "--tokenizer",
                            tokenizer, "--ctx", str(ctx), "--turns", str(turns), "--sessions",
                            str(sessions), "--seed", str(seed), "--out", out],
                           capture_output=True, text=True)
        if r.returncode:
            if "too small" in r.stderr:
                return None
            sys.exit(f"train.py: scbench gen: {r.stderr.strip()}")
        with open(out, encoding="utf-8") as f:
            return [json.loads(line) for line in f]


def texts_of(task, record):
    """(context, [(question, answer)]) as the program prompts them"""
    context = record["context"] if "context" in record else record["input"]
    answers = [t["answer"] for t in record["multi_turns"]]
    return (INSTRUCTION[task] + (context if isinstance(context, str) else json.dumps(context)),
            [("\n\n" + t["input"], ", ".join(a) if isinstance(a, list) else str(a))
             for t, a in zip(record["multi_turns"], answers)])


# weights of their ids; an answer counts as this many at least
QUESTION, ANSWER, SHORT = 0.03, 1.0, 10


class Layout:
    """texts -> ids and a weight per predicted id"""
    def __init__(self, dir):
        from tokenizers import Tokenizer
        self.tok = Tokenizer.from_file(os.path.join(dir, "tokenizer.json"))
        self.bos, self.user, self.assistant, self.end = range(VOCAB - 4, VOCAB)

    def ids(self, context, turns):
        """ids (n), weight (n): of predicting ids[i] from those before it; none for ranks of a list
        that the model has no means to find"""
        texts = [context] + [s for turn in turns for s in turn]
        pieces = [e.ids for e in self.tok.encode_batch(texts, add_special_tokens=False)]
        ids = [self.bos, self.user, *pieces[0]]
        weight = [0.0] * len(ids)
        for (question, _), q, a in zip(turns, pieces[1::2], pieces[2::2]):
            known = not re.search(r"The (second|third|\d+\w\w|median)\b.* list is$", question)
            ids += [*q, self.assistant, *a, self.end, self.user]
            each = ANSWER * max(1.0, SHORT / (len(a) + 1))
            weight += [QUESTION] * len(q) + [0.0] + [each * known] * (len(a) + 1) + [0.0]
        return ids[:-1], weight[:-1]


def check_layout(layout, model):
    """the ids of training are those that the program feeds; model: any with the tokenizer"""
    for task in INSTRUCTION:
        record = generate(task, model, 1024, 3, 1, TRAIN_SEEDS)[0]
        ids, _ = layout.ids(*texts_of(task, record))
        with tempfile.TemporaryDirectory() as tmp:
            r = subprocess.run(
                [os.path.join(ROOT, "scbench"), model, "--task", task, "--ctx", "1024", "--turns",
                 "3", "--sessions", "1", "--seed", str(TRAIN_SEEDS), "--max-new", "1",
                 "--dump-prompts", "--quiet", "--out", tmp + "/run"],
                capture_output=True, text=True)
            if r.returncode:
                sys.exit(f"train.py: scbench: {r.stderr.strip()}")
            with open(tmp + "/run/prompts.jsonl", encoding="utf-8") as f:
                fed = [i for line in f for i in json.loads(line)["ids"]]
        if fed != ids[:len(fed)] or len(fed) < len(ids) - 200:
            sys.exit(f"train.py: the program feeds other ids for {task}")


def piece_of(tok):
    """text of one token -> its id"""
    def id_of(text):
        ids = tok.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            sys.exit(f"train.py: {text!r} is no token")
        return ids[0]
    return id_of


Stage = collections.namedtuple("Stage", "tokens share shortest longest")


def draw(rng, stage):
    """(task, ctx, turns): contexts of the stage's lengths with as many questions as fit well"""
    task = rng.choices(list(stage.share), list(stage.share.values()))[0]
    ctx = int(math.exp(rng.uniform(math.log(stage.shortest), math.log(stage.longest))))
    if task == "retr_kv":
        turns = max(1, min(rng.randint(3, 12), ctx // 80))
    elif task == "retr_mh":
        ctx = max(ctx, 420)
        turns = max(1, min(8, (ctx - 120) // 230))
    elif task == "retr_ps":
        ctx = max(ctx, 360)
        turns = rng.randint(1, max(1, min(8, (ctx - 90) // 240)))
    else:
        turns = rng.randint(1, max(1, min(6, (ctx - 60) // 60)))
    return task, ctx, turns


class Feeder:
    """a thread that keeps batches ready: rows of one shape, padded at the end"""
    def __init__(self, dir, tokenizer, seed):
        import random
        self.rng = random.Random(seed)
        self.layout, self.tokenizer = Layout(dir), tokenizer
        self.seed = TRAIN_SEEDS + seed * 1000003
        self.stage, self.ready = None, queue.Queue(maxsize=6)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while self.stage is None:
            time.sleep(0.1)
        pool = []
        while True:
            stage = self.stage
            task, ctx, turns = draw(self.rng, stage)
            self.seed += 1
            rows = max(8, 2 * stage.tokens // ctx)
            records = generate(task, self.tokenizer, ctx, turns, rows, self.seed)
            for record in records or []:
                pool.append((task, *self.layout.ids(*texts_of(task, record))))
            if sum(len(r[1]) for r in pool) > 16 * stage.tokens:
                self.emit(pool, stage.tokens)
                pool = []

    def emit(self, pool, tokens):
        """all of the pool, rows of about one length together, the batches in random order"""
        pool.sort(key=lambda r: (len(r[1]) // 32, self.rng.random()))
        batches = [[]]
        for row in pool:
            if batches[-1] and (len(batches[-1]) + 1) * len(row[1]) > tokens:
                batches.append([])
            batches[-1].append(row)
        self.rng.shuffle(batches)
        for rows in batches:
            n = max(len(ids) for _, ids, _ in rows)
            ids, weight = torch.zeros(len(rows), n, dtype=torch.long), torch.zeros(len(rows), n)
            for i, (_, row, w) in enumerate(rows):
                ids[i, :len(row)], weight[i, :len(row)] = torch.tensor(row), torch.tensor(w)
            self.ready.put(([task for task, _, _ in rows], ids, weight))


# ---------------------------------------------------------------------------
# Models, with the parameter names of transformers

def rms(x, w):
    return F.rms_norm(x, (x.shape[-1],), w, 1e-5)


class Linear(nn.Linear):
    def __init__(self, k, n, bias=False, zero=False):
        super().__init__(k, n, bias=bias)
        nn.init.zeros_(self.weight) if zero else nn.init.normal_(self.weight, std=k ** -0.5)
        if bias:
            nn.init.zeros_(self.bias)


class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return rms(x, self.weight)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        E, hd = c["hidden_size"], c["head_dim"]
        self.H, self.G, self.hd = c["num_attention_heads"], c["num_key_value_heads"], hd
        self.q_proj = Linear(E, self.H * hd, True)
        self.k_proj = Linear(E, self.G * hd, True)
        self.v_proj = Linear(E, self.G * hd, True)
        self.o_proj = Linear(self.H * hd, E)

    def forward(self, x, cos, sin):
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, self.H, self.hd).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(B, T, self.G, self.hd).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(B, T, self.G, self.hd).transpose(1, 2)
        n = self.H // self.G
        k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


# Start. The residual stream begins as STRIPS strips of WIDE dimensions, each for the code of one
# token, and FLAGS single dimensions. Strip S is the token itself, B + n - 1 the one n before it,
# OUT what comes next. LINE: first letters of the name this line begins with, or what is 20 to 22
# back at the end of a string; PLAN: second and third letter of the name to be said; ASKED: two
# tokens of the question. Heads begin as the ones that fill the strips and that find, by them, the
# place where the answer stands: they look a fixed distance back, by biases that rotation aligns
# there, or for the place whose strips are those of here, in dimensions that rotation leaves alone
# over thousands of tokens, or for a flag. A head that finds nothing looks at the first token, which
# gives nothing.

WIDE, STRIPS, FLAGS = 17, 16, 16
S, B, LINE, OUT, PLAN, ASKED = 0, 1, 7, 10, 11, 13
(BOS, BE, LINE_END, ANSWER, COMMA, STRING_END,
 PAIR, TOP, LOW, DIGIT, LOW_DIGIT,              # of two digits: 1, up to 1 from 90 to 99, down to 0
 PAIR2, TOP2, LOW1, DIGIT1, LOW_DIGIT1) = range(16)     # of what stood two tokens or one back
CODE, FLAG = 4.0, 3.0           # length of a code, height of a flag
RMS = (0.25, 0.66, 0.70, 0.72)  # of the stream before the layers, about
BACK = 12.0                     # length of the biases that look back
SCALE = 1600.0                  # of a key that stands for a number
VALUE_ASKED, STRING_ASKED, SUFFIX_ASKED, KIND_ASKED, SIXTH = 30, 30, 21, 7, 20     # tokens back


def strip(i):
    return slice(i * WIDE, (i + 1) * WIDE)


def spread_codes(ids, n, wide, rounds=400):
    """(n, wide) unit vectors, those of ids far from one another and from their opposites"""
    code = F.normalize(torch.randn(n, wide), dim=1)
    x = code[ids].clone().requires_grad_()
    step = torch.optim.Adam([x], lr=0.02)
    with torch.enable_grad():
        for _ in range(rounds):
            y = F.normalize(x, dim=1)
            near = (y @ y.T).abs() - 2 * torch.eye(len(ids))
            loss = torch.logsumexp(12 * near, 1).mean()
            step.zero_grad()
            loss.backward()
            step.step()
    code[ids] = F.normalize(x.detach(), dim=1)
    return code


ENDS = ['", "', '"}', '"]', '"', ' be']     # what follows in the context where an answer ends


@torch.no_grad()
def spell(n, wide, token):
    """(ids of what answers are made of and of some marks, a code per token (n, wide))"""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    pairs = [a + b for a in "0123456789abcdef" for b in "0123456789abcdef"]
    marks = [*ENDS, '":', ', ', '.\n', ' "', ':', ' string', ' largest', ' smallest', ' is',
             ' variables', ' ']
    known = [token(t) for t in [*letters, *pairs, *marks]]
    code = spread_codes(known, n, wide)
    code[token("<|assistant|>")] = code[token(' "')]    # opens a value, there and here
    code[[token(t) for t in ENDS]] = code[token(ENDS[0])].clone()
    code[token(", ")] *= 0.2
    code[token("<|bos|>")] = 0
    return known, code


@torch.no_grad()
def read_out(head, out, known, code, token):
    """the last matrix: the token whose code stands in strip out; where the context goes on with a
    mark, the answer ends, or its next name follows"""
    head.copy_(0.02 * torch.randn_like(head))
    head[:, out] = 0
    head[known, out] = 3 * code[known]
    for t in (*ENDS, '.\n', ', ', ' "', ' is'):
        head[token(t), out] = 0
    head[token("<|end|>"), out] = 3 * (code[token(ENDS[0])] + code[token(" is")])
    head[token(", "), out] = 3 * code[token(".\n")]


class Wiring:
    """sets the heads of one layer; logits are those before the softmax"""
    def __init__(self, a, c, layer, view, code):
        self.a, self.hd, self.per, self.rms = a, a.hd, a.H // a.G, RMS[layer]
        self.view, self.code = view, code
        half = a.hd // 2
        self.theta = c["rope_theta"] ** (-torch.arange(half) / half)
        still = [i for i in range(half) if self.theta[i] < 1.5e-4]
        dims = torch.tensor(still + [half + i for i in still])
        self.slots = [dims[16 * i:16 * i + 16] for i in range(len(dims) // 16)]
        self.extra = dims[16 * len(self.slots):]
        self.turning = torch.tensor([i for i in range(half) if self.theta[i] > 1e-3])
        for w in (a.q_proj, a.k_proj, a.v_proj):
            w.weight *= 0.05
        a.o_proj.weight *= 0.05
        a.o_proj.weight[STRIPS * WIDE:] = 0
        for g in range(a.G):
            a.k_proj.bias[g * a.hd + self.turning] = BACK
            # the first token, nothing but its flag: at no distance, and of this key
            rows, column = g * a.hd + self.turning, STRIPS * WIDE + BOS
            a.k_proj.weight[rows, column] = -BACK / c["hidden_size"] ** 0.5
            a.k_proj.weight[g * a.hd + self.extra[0]] = 0
            a.k_proj.weight[g * a.hd + self.extra[0], column] = 10 / c["hidden_size"] ** 0.5
            a.v_proj.weight[:, column] = 0

    def unit(self, logit, key):
        """of a query's dimension against a key's of this height"""
        return logit * self.hd ** 0.5 / key

    # keys, shared by the heads of a group
    def key_strip(self, g, slot, s):
        rows = g * self.hd + self.slots[slot]
        self.a.k_proj.weight[rows, strip(s)] = 1.8 * self.view

    def key_flag(self, g, x, *flags):
        """extra dimension x: 10 where a flag is up"""
        for f in flags:
            self.a.k_proj.weight[g * self.hd + self.extra[x], STRIPS * WIDE + f] = \
                10 * self.rms / FLAG

    def key_value(self, g, x, *flags):
        """extra dimension x: SCALE f"""
        self.a.k_proj.weight[g * self.hd + self.extra[x]] = 0
        for f in flags:
            self.a.k_proj.weight[g * self.hd + self.extra[x], STRIPS * WIDE + f] = SCALE * self.rms

    # queries
    def when(self, *tests):
        """(columns, weights) that add up to about 1 where all tests hold: a flag, (strip, token
        ids) or (strip, direction)"""
        parts = []
        for t in tests:
            if isinstance(t, int):
                w = torch.zeros(1)
                w[0] = self.rms / FLAG / len(tests)
                parts.append((slice(STRIPS * WIDE + t, STRIPS * WIDE + t + 1), w))
            else:
                w = t[1] if torch.is_tensor(t[1]) else sum(self.code[i] for i in t[1])
                w = w * self.rms / CODE / len(tests)
                parts.append((strip(t[0]), w))
        return parts

    def query(self, h, dim, height, when=None):
        row = h * self.hd + dim
        if when is None:
            self.a.q_proj.bias[row] += height
        else:
            for columns, w in when:
                self.a.q_proj.weight[row, columns] += height * w

    def sink(self, h, logit, when=None):
        self.query(h, self.extra[0], self.unit(logit, 10), when)

    def flag(self, h, x, logit, when=None):
        self.query(h, self.extra[x], self.unit(logit, 10), when)

    def match(self, h, slot, s, logit):
        length = (CODE / self.rms) ** 2 * 1.8
        gain = logit * self.hd ** 0.5 / length
        rows = h * self.hd + self.slots[slot]
        self.a.q_proj.weight[rows, strip(s)] += gain * self.view

    def back(self, h, distance, when=None, gain=1.0):
        for i in self.turning[:6].tolist():
            angle = distance * self.theta[i].item()
            self.query(h, i, gain * BACK * math.cos(angle), when)
            self.query(h, self.hd // 2 + i, -gain * BACK * math.sin(angle), when)

    def latest(self, h, logit):
        for i in self.turning[4:9].tolist():
            self.query(h, i, self.unit(logit / 5, BACK))

    # values
    def value(self, g, strips):
        for i, s in enumerate(strips):
            rows = slice(g * self.hd + i * WIDE, g * self.hd + (i + 1) * WIDE)
            self.a.v_proj.weight[rows, strip(s)] = torch.eye(WIDE)

    def move(self, h, place, to, size=1.0):
        columns = slice(h * self.hd + place * WIDE, h * self.hd + (place + 1) * WIDE)
        self.a.o_proj.weight[strip(to), columns] += size * self.rms * torch.eye(WIDE)

    def tell(self, g, h, flag, to, what):
        """head h adds what to a strip where it looks at a place with this flag"""
        row = 5 * WIDE + 1
        self.a.v_proj.weight[g * self.hd + row, STRIPS * WIDE + flag] = self.rms / FLAG
        self.a.o_proj.weight[strip(to), h * self.hd + row] = CODE * what

    def move_flag(self, g, h, row, flag, to):
        """head h writes what it sees of a flag to another one"""
        self.a.v_proj.weight[g * self.hd + row] = 0
        self.a.v_proj.weight[g * self.hd + row, STRIPS * WIDE + flag] = 1
        self.a.o_proj.weight[STRIPS * WIDE + to, h * self.hd + row] += self.rms


@torch.no_grad()
def start_llama(model, c, token):
    """token: text -> id"""
    known, code = spell(c["vocab_size"], WIDE, token)
    answer = token("<|assistant|>")
    embed = model.model.embed_tokens.weight
    embed.copy_(0.02 * torch.randn_like(embed))
    embed[:, strip(S)] = CODE * code
    flags = embed[:, STRIPS * WIDE:]
    flags.zero_()
    for f, texts in ((BOS, ["<|bos|>"]), (BE, [" be"]), (LINE_END, [".\n"]),
                     (ANSWER, ["<|assistant|>"]), (COMMA, [", "]), (STRING_END, ['", "', '"]'])):
        for t in texts:
            flags[token(t), f] = FLAG
    embed[token("<|bos|>")] = 0
    flags[token("<|bos|>"), BOS] = 15       # as long as others will be
    for i in range(100):
        for f, height in ((PAIR, 1), (TOP, max(0, (i - 89) / 10)), (LOW, (110 - i) / 110)):
            flags[token(f"{i:02d}"), f] = height / 2
    for i in range(10):
        for f, height in ((DIGIT, i / 9), (LOW_DIGIT, 1 + (9 - i) / 80)):
            flags[token(str(i)), f] = height / 2
    next_name = token(".\n")
    read_out(model.lm_head.weight, strip(OUT), known, code, token)

    view = torch.linalg.qr(torch.randn(WIDE, 16))[0].T
    one, two, three, four = (Wiring(layer.self_attn, c, i, view, code)
                             for i, layer in enumerate(model.model.layers))
    for g in range(2):
        one.value(g, (S,))
    for h in range(6):
        one.back(h, h + 1)
        one.move(h, 0, B + h)
    for row, (h, of, to) in enumerate(((1, PAIR, PAIR2), (1, TOP, TOP2), (0, LOW, LOW1),
                                       (0, DIGIT, DIGIT1), (0, LOW_DIGIT, LOW_DIGIT1))):
        one.move_flag(0, h, 80 + row, of, to)

    # what came after the same four tokens; the name of this line; the value asked for
    two.key_flag(0, 1, BE)
    two.value(0, (S, B + 1, B + 2, B + 3, B + 4))
    for n, logit in enumerate((32, 20, 14, 12)):
        two.key_strip(0, n, B + n)
        two.match(0, n, (S, B, B + 1, B + 2)[n], logit)
    two.sink(0, 38)
    two.sink(0, 60, two.when(COMMA))
    two.move(0, 0, OUT)
    two.flag(1, 1, 40)
    two.latest(1, 40)
    two.sink(1, 66)
    for n in range(3):
        two.move(1, 4 - n, LINE + n)
    two.back(2, VALUE_ASKED, two.when(ANSWER))
    two.sink(2, 40)
    two.move(2, 2, ASKED)
    two.move(2, 1, ASKED + 1)
    # the string that ends here; the suffix asked for, and whether the largest or the smallest
    two.value(1, (S, B, B + 1))
    two.back(3, SIXTH, two.when(STRING_END))
    two.sink(3, 40)
    for n in range(3):
        two.move(3, n, LINE + n)
    two.back(4, SUFFIX_ASKED, two.when((B + 4, [answer])))
    two.back(5, KIND_ASKED, two.when((B, [answer])))
    for h in (4, 5):
        two.sink(h, 50)
        two.move(h, 0, ASKED)
        two.move(h, 1, ASKED + 1)

    # the line that ends in this name, or in the value asked for
    three.key_flag(0, 1, LINE_END)
    three.value(0, (LINE, LINE + 1, LINE + 2))
    for n in range(4):
        three.key_strip(0, n, B + n)
        three.match(0, n, B + n, 16)
    three.flag(0, 1, 60, three.when(COMMA))
    three.sink(0, 98)
    three.match(1, 2, ASKED, 32)
    three.match(1, 1, ASKED + 1, 32)
    three.flag(1, 1, 30, three.when(ANSWER))
    three.sink(1, 60)
    for h in range(2):
        three.move(h, 0, OUT, 2)
        three.move(h, 1, PLAN)
        three.move(h, 2, PLAN + 1)
    for n in range(4):
        three.match(2, n, (S, B, B + 1, B + 2)[n], 16)
    three.flag(2, 1, 60)
    three.sink(2, 98)
    three.tell(0, 2, LINE_END, OUT, 3 * code[next_name])
    # the string with this prefix and the suffix asked for; its first character; the extreme number
    three.key_flag(1, 1, STRING_END)
    three.key_flag(1, 2, COMMA)
    for x, f in enumerate((TOP2, LOW1, LOW_DIGIT1, PAIR2)):
        three.key_value(1, 3 + x, f)
    three.key_value(1, 7, PAIR, LOW_DIGIT)      # not after a number, but in one
    three.value(1, (LINE, S, B, B + 1))
    for n, (s, of) in enumerate(((S, LINE + 1), (B, LINE + 2), (ASKED, B), (ASKED + 1, B + 1))):
        three.key_strip(1, n, of)
        three.match(3, n, s, 18)
    three.flag(3, 1, 30)
    three.sink(3, 74)
    three.move(3, 0, OUT, 3)
    three.back(4, STRING_ASKED, three.when((B + 1, [token(" string")])))
    three.sink(4, 65)
    three.move(4, 1, OUT, 2)
    # of the largest only the first two digits, 90 to 99; of the smallest one digit before two. Each
    # dimension of the keys has a height, and what it gains by how far a kind is asked for: 1, or
    # below -0.5 where only a part of the test holds
    words = [token(t) for t in (" largest", " smallest", " is", " number", ":", '":')]
    apart = torch.linalg.pinv(code[words]).T    # 1 for its own word, 0 for the others
    for x, heights in enumerate(((0, 960, 0), (0, 0, 2000), (0, 3100, 4300), (-3000, 3500, 0),
                                 (-6000, 0, 0))):
        dim = three.extra[3 + x]
        three.query(5, dim, three.unit(heights[0] - 4 * sum(heights[1:]), SCALE))
        for n in range(2):
            asked = three.when(ANSWER, (B, apart[2]), (B + 5, apart[n]))
            three.query(5, dim, three.unit(5.6 * heights[1 + n], SCALE), asked)
    three.sink(5, 30)
    three.move(5, 3, OUT, 4)
    three.move(5, 2, OUT, 3)

    # the second and third letter of a name; the last digit of a number
    four.key_flag(0, 1, ANSWER, COMMA)
    four.value(0, (PLAN, PLAN + 1, S))
    for h in range(2):
        four.back(h, h + 1, None, 3)
        four.flag(h, 1, 30)
        four.sink(h, 279)
        four.move(h, h, OUT, 4)
    # a number ends after three digits, or after two where no third one is found
    for h, back, sink, place, size in ((2, 2, 75, 2, 2), (5, 3, 80, 1, 3)):
        four.back(h, back, four.when((B + back - 1, [token(" is")])))
        four.sink(h, sink)
        four.move(h, place, OUT, size)
    four.key_strip(1, 0, B + 1)
    four.key_flag(1, 1, COMMA)
    four.key_value(1, 2, DIGIT1)
    four.value(1, (B, S))
    four.match(3, 0, S, 160)
    asked = four.when((ASKED, [token(" largest")]))     # the smallest have two digits at most
    four.flag(3, 1, 140, asked)
    four.query(3, four.extra[2], four.unit(108, SCALE), asked)
    four.sink(3, 265)
    four.move(3, 0, OUT, 4)
    # once more what came after the same tokens, now two of them further back
    for slot, n in enumerate((1, 0, 3, 4)):
        if slot:
            four.key_strip(1, slot, B + n)
        four.match(4, slot, B + n - 1 if n else S, 18)
    four.sink(4, 60)
    four.move(4, 1, OUT)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, E, wide):
        super().__init__()
        self.gate_proj, self.up_proj = Linear(E, wide), Linear(E, wide)
        self.down_proj = Linear(wide, E, zero=True)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = Mlp(c["hidden_size"], c["intermediate_size"])
        self.input_layernorm = Norm(c["hidden_size"])
        self.post_attention_layernorm = Norm(c["hidden_size"])

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


LLAMA = {       # Llama with biases on q, k, v, which transformers calls qwen2
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB,
    "hidden_size": 288, "intermediate_size": 320, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 96, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 1e16, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": VOCAB - 4,
    "eos_token_id": VOCAB - 1,
}


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(LlamaLayer(c) for _ in range(c["num_hidden_layers"]))
        self.model.norm = Norm(c["hidden_size"])
        self.lm_head = Linear(c["hidden_size"], c["vocab_size"])
        half = c["head_dim"] // 2
        angle = torch.outer(torch.arange(c["max_position_embeddings"]),
                            c["rope_theta"] ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)


# ---------------------------------------------------------------------------
# Recurrent layers. Both start as the attention layers do: the convolution of the first layer hands
# every token the ones before it.

@torch.no_grad()
def start_conv(conv):
    """channel strip n of the convolution passes on the value n tokens back"""
    K, wide = conv.weight.shape[2], conv.weight.shape[0]
    conv.weight *= 0.1
    conv.bias.zero_()
    for c in range(wide):
        conv.weight[c, 0, K - 1 - c * K // wide] += 1


class Conv(nn.Module):
    """depthwise, causal, K taps, the last one on the present token"""
    def __init__(self, channels, K):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, K) / K)
        self.bias = nn.Parameter(torch.zeros(channels))
        start_conv(self)

    def forward(self, x):
        K, T = self.weight.shape[2], x.shape[1]
        x = F.pad(x, (0, 0, K - 1, 0))
        y = self.bias
        for k in range(K):
            y = y + self.weight[:, 0, k] * x[:, k:k + T]
        return F.silu(y)


def ssd(x, dt, a, B, C, chunk=64):
    """y_t = sum_{s <= t} (C_t . B_s) exp(c_t - c_s) dt_s x_s, c the running sum of dt a: the matrix
    form in chunks (Dao and Gu 2024, listing 1). x (b, T, H, P), dt (b, T, H), a (H), B, C (b, T,
    N)"""
    b, T, H, P = x.shape
    n = -(-T // chunk)
    pad = n * chunk - T
    x, dt = F.pad(x, (0, 0, 0, 0, 0, pad)), F.pad(dt, (0, 0, 0, pad))
    B, C = F.pad(B, (0, 0, 0, pad)), F.pad(C, (0, 0, 0, pad))
    dt = dt.view(b, n, chunk, H).transpose(2, 3)                        # (b, n, H, Q)
    c = torch.cumsum(dt * a[:, None], -1)
    u = (x.view(b, n, chunk, H, P).transpose(2, 3) * dt[..., None]).to(x.dtype)    # (b, n, H, Q, P)
    B, C = B.view(b, n, 1, chunk, -1), C.view(b, n, 1, chunk, -1)
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    decay = torch.exp((c[..., :, None] - c[..., None, :]).masked_fill(~lower, -1e9))
    y = ((C @ B.transpose(-1, -2)) * decay).to(x.dtype) @ u
    last = c[..., -1:]
    states = ((u * torch.exp(last - c)[..., None]).to(x.dtype).transpose(-1, -2) @ B).float()
    state, before = torch.zeros_like(states[:, 0]), []
    for i in range(n):
        before.append(state)
        state = torch.exp(last[:, i])[..., None] * state + states[:, i]
    off = C @ torch.stack(before, 1).to(x.dtype).transpose(-1, -2)
    y = y + off * torch.exp(c)[..., None]
    return y.transpose(2, 3).reshape(b, n * chunk, H, P)[:, :T]


class Mamba2Mixer(nn.Module):
    def __init__(self, c):
        super().__init__()
        E, self.H, self.P, self.N = c["hidden_size"], c["num_heads"], c["head_dim"], c["state_size"]
        self.D_in, wide = self.H * self.P, self.H * self.P + 2 * self.N
        self.in_proj = Linear(E, self.D_in + wide + self.H)
        self.conv1d = Conv(wide, c["conv_kernel"])
        start = torch.exp(torch.linspace(math.log(0.001), math.log(0.1), self.H))
        self.dt_bias = nn.Parameter(torch.log(torch.expm1(start)))
        self.A_log = nn.Parameter(torch.log(torch.linspace(0.02, 2.0, self.H)))
        self.D = nn.Parameter(torch.ones(self.H))
        self.norm = Norm(self.D_in)
        self.out_proj = Linear(self.D_in, E)
        nn.init.normal_(self.out_proj.weight, std=0.5 * self.D_in ** -0.5)

    def forward(self, x):
        b, T, _ = x.shape
        z, xbc, dt = self.in_proj(x).split((self.D_in, self.D_in + 2 * self.N, self.H), -1)
        u, B, C = self.conv1d(xbc).to(z.dtype).split((self.D_in, self.N, self.N), -1)
        u = u.view(b, T, self.H, self.P)
        y = ssd(u, F.softplus(dt.float() + self.dt_bias), -torch.exp(self.A_log), B, C)
        y = (y + self.D[:, None] * u).reshape(b, T, self.D_in)
        return self.out_proj(self.norm(y * F.silu(z)))


class Mamba2(nn.Module):
    def __init__(self, c):
        super().__init__()
        E, V = c["hidden_size"], c["vocab_size"]
        self.backbone = nn.Module()
        self.backbone.embeddings = nn.Embedding(V, E)
        self.backbone.layers = nn.ModuleList(
            nn.ModuleDict({"norm": Norm(E), "mixer": Mamba2Mixer(c)})
            for _ in range(c["num_hidden_layers"]))
        self.backbone.norm_f = Norm(E)
        self.lm_head = Linear(E, V)
        self.lm_head.weight.data = 0.02 * self.backbone.embeddings.weight.data

    def forward(self, ids):
        x = self.backbone.embeddings(ids)
        for layer in self.backbone.layers:
            x = x + layer["mixer"](layer["norm"](x))
        return self.backbone.norm_f(x)


# Start of Mamba-2: an associative memory in three layers. A token's code is one of +-1 in M_WIDE
# dimensions, and the product of codes, element by element, is the code of a sequence, far from that
# of every other one. The first layer multiplies a token by the one before it (the convolution hands
# it over, the gate multiplies), the second this pair by the pair two tokens back: the stream then
# holds a code of the last four tokens. In the third the state keeps, of every pair of hex digits in
# a value, the sum of code (x) times code of the four tokens before it (B), and is asked with the
# last four (C). Nothing decays. What all values share is not kept, it would drown the rest: one
# head knows whether this is a value, its step is large at the marks that open and close one and
# zero between; one counts the dashes; and from what stood two to six tokens back it is clear whether
# a dash or the end comes next. Silu is odd about a bias as long as the input is of one magnitude,
# so the codes stay +-.

M_WIDE = 224                    # strips of the stream: the token, the sequence, then flags
(M_ONE, M_OPEN, M_CHANGE, M_HEX, M_QUOTE, M_DASH,           # of the token
 M_INSIDE, M_COUNT, M_QUOTE_3, M_DASH_3,                    # ..., three tokens back
 M_NEXT_DASH, M_NEXT_END) = range(2 * M_WIDE, 2 * M_WIDE + 12)
M_INPUT = 0.25                  # magnitude at the silus
M_OFF = -20.0                   # of a step's logit: the state stays
M_COUNT_DECAY = 0.1             # per dash: they count 1, 1.90, 2.72, 3.46


def silu(x):
    return x / (1 + math.exp(-x))


def odd_silu(u):
    """(b, v): silu(b + u) = v and silu(b - u) = -v"""
    b = 0.0
    for _ in range(50):
        b -= 0.9 * (silu(b + u) + silu(b - u))
    return b, silu(b + u)


class Mixer:
    """sets the rows of one mixer; rms: of the stream before it. codes: channels that carry one,
    after the gate all of the same height, which the norm takes to unit"""
    def __init__(self, m, c, rms, codes):
        self.m, self.rms = m, rms
        self.bias, self.height = odd_silu(M_INPUT)
        self.gated = self.height ** 2
        self.norm = (codes / m.D_in * self.gated ** 2 + c["layer_norm_epsilon"]) ** -0.5
        for p in (m.in_proj.weight, m.conv1d.weight, m.conv1d.bias, m.out_proj.weight, m.A_log):
            p.zero_()
        m.dt_bias.fill_(M_OFF)

    # codes, over M_WIDE channels from first
    def code(self, first, columns, back=0):
        """the convolution passes on what was in the columns so many tokens back"""
        w, rows = self.m.conv1d.weight, first + torch.arange(M_WIDE)
        self.m.in_proj.weight[self.m.D_in + rows, columns] = M_INPUT * self.rms
        w[rows, 0, w.shape[2] - 1 - back] = 1
        self.m.conv1d.bias[rows] = self.bias

    def times(self, first, columns=None):
        """the sign of the columns, or 1"""
        rows, w = first + torch.arange(M_WIDE), self.m.in_proj.weight
        w[rows, M_ONE] = (self.bias + (M_INPUT if columns is None else 0)) * self.rms
        if columns is not None:
            w[rows, columns] = M_INPUT * self.rms

    def write(self, first, columns, height):
        self.m.out_proj.weight[columns, first + torch.arange(M_WIDE)] = \
            height / (self.gated * self.norm)

    # single channels
    def flag(self, channel, column, height, *taps):
        """silu(height) where the flag is up; taps: (tokens back, factor), by default here"""
        self.m.in_proj.weight[self.m.D_in + channel, column] = height * self.rms
        for back, factor in taps or ((0, 1),):
            self.m.conv1d.weight[channel, 0, -1 - back] = factor

    def gate(self, channel, column, height):
        self.m.in_proj.weight[channel, column] += height * self.rms

    def tell(self, channel, column, seen):
        """1 in the stream where the gated channel's height is seen"""
        self.m.out_proj.weight[column, channel] = 1 / (seen * self.norm)

    def step(self, head, column, height):
        self.m.in_proj.weight[2 * self.m.D_in + 2 * self.m.N + head, column] += height * self.rms

    def remember(self, channel, column):
        """the flag, in a head of its own, of key 1; its height when read after a step of 1"""
        self.flag(channel, column, 1)
        for c in (self.m.D_in, self.m.D_in + self.m.N):
            self.flag(c, M_ONE, 1)
        self.m.D[channel // self.m.P] = 0
        return silu(1) ** 3


@torch.no_grad()
def start_mamba2(model, c, token):
    """token: text -> id"""
    known, code = spell(c["vocab_size"], M_WIDE, token)
    sign = code.sign()
    embed, head = model.backbone.embeddings.weight, model.lm_head.weight
    embed.zero_()
    embed[:, :M_WIDE] = sign
    embed[:, M_ONE] = 1
    quotes = [' "', "<|assistant|>"]
    closing = ['", "', '"}', '"', "<|assistant|>", "<|user|>", "<|bos|>"]
    hexes = [a + b for a in "0123456789abcdef" for b in "0123456789abcdef"]
    for column, texts in ((M_OPEN, ['":']), (M_CHANGE, ['":', *closing]), (M_HEX, hexes),
                          (M_QUOTE, quotes), (M_DASH, ["-"])):
        for t in texts:
            embed[token(t), column] = 1
    token_at = torch.arange(M_WIDE)
    sequence = M_WIDE + token_at
    read_out(head, slice(M_WIDE, 2 * M_WIDE), known, sign / M_WIDE ** 0.5, token)
    head[[token("-"), token("<|end|>")], M_WIDE:2 * M_WIDE] = 0
    head[:, M_NEXT_DASH:] = 0
    head[token("-"), M_NEXT_DASH] = head[token("<|end|>"), M_NEXT_END] = 3000

    E = c["hidden_size"]
    once, twice = ((n * M_WIDE + 2) ** 0.5 / E ** 0.5 for n in (1, 2))
    one, two, three = (
        Mixer(layer["mixer"], c, rms, n * M_WIDE)
        for layer, rms, n in zip(model.backbone.layers, (once, twice, twice), (1, 2, 1)))
    own = range(M_WIDE, one.m.D_in, one.m.P)    # first channels of the heads after the codes'
    slight = 0.005                              # of a factor whose partner is large

    earlier = torch.randperm(M_WIDE)            # the order of the earlier code in a product
    one.code(0, token_at[earlier], 1)
    one.times(0, token_at)
    one.write(0, sequence, 1)
    height = one.remember(own[0], M_OPEN)
    one.gate(own[0], M_ONE, slight)
    one.step(own[0] // one.m.P, M_CHANGE, 36)
    one.tell(own[0], M_INSIDE, 16 * height * silu(slight))
    height = one.remember(own[1], M_DASH)
    one.gate(own[1], M_ONE, slight)
    one.m.A_log[own[1] // one.m.P] = math.log(M_COUNT_DECAY)
    one.step(own[1] // one.m.P, M_DASH, 20.54)  # softplus(0.54) = 1
    one.step(own[1] // one.m.P, M_QUOTE, 120)
    one.tell(own[1], M_COUNT, height * silu(slight))
    for channel, column, to in ((own[2], M_QUOTE, M_QUOTE_3), (own[2] + 1, M_DASH, M_DASH_3)):
        one.flag(channel, column, M_INPUT, (3, 1))
        one.gate(channel, M_ONE, M_INPUT)
        one.tell(channel, to, silu(M_INPUT) ** 2)

    earlier = torch.randperm(M_WIDE)
    two.code(0, sequence[earlier], 2)
    two.times(0, sequence)
    two.write(0, sequence, 1)
    two.code(own[1], sequence)                  # the pair, taken away
    two.times(own[1])
    two.write(own[1], sequence, -1)
    dashes = [sum(math.exp(-M_COUNT_DECAY * i) for i in range(n)) for n in range(5)]
    enough, steep = (dashes[3] + dashes[4]) / 2, 8
    two.flag(own[0], M_DASH, slight, (2, 1))    # two tokens after a dash that is not the last
    two.gate(own[0], M_ONE, steep * enough)
    two.gate(own[0], M_COUNT, -steep)
    two.tell(own[0], M_NEXT_DASH, silu(slight) * silu(steep * (enough - dashes[3])))
    two.flag(own[0] + 1, M_QUOTE_3, slight, (1, 1))             # four after the value's beginning
    two.gate(own[0] + 1, M_ONE, 1)
    two.tell(own[0] + 1, M_NEXT_DASH, silu(slight) * silu(1))
    two.flag(own[0] + 2, M_DASH_3, slight, (3, 1), (0, -1))     # six after the last dash
    two.gate(own[0] + 2, M_ONE, -steep * enough)
    two.gate(own[0] + 2, M_COUNT, steep)
    two.tell(own[0] + 2, M_NEXT_END, silu(slight) * silu(steep * (dashes[4] - enough)))

    three.code(0, token_at)
    three.times(0)
    three.code(three.m.D_in, sequence, 1)
    three.code(three.m.D_in + three.m.N, sequence)
    for n in range(M_WIDE // three.m.P):
        three.step(n, M_ONE, M_OFF)
        three.step(n, M_INSIDE, 20.5)
        three.step(n, M_HEX, 20.5)
    three.m.A_log.fill_(math.log(1e-6))
    three.m.D.zero_()
    three.write(0, sequence, 30)                # far above what stands there


MAMBA2 = {
    "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": VOCAB,
    "hidden_size": 480, "num_hidden_layers": 3, "num_heads": 15, "head_dim": 32, "expand": 1,
    "state_size": 256, "n_groups": 1, "conv_kernel": 4, "chunk_size": 64, "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5, "rms_norm": True, "use_bias": False, "use_conv_bias": True,
    "residual_in_fp32": True, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "bos_token_id": VOCAB - 4, "eos_token_id": VOCAB - 1,
}


class Scan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t along dimension 1 of (B, T, ...), T a multiple of CHUNK: in steps
    over all chunks at once, then over the chunks"""
    CHUNK = 32

    @staticmethod
    def run(a, b):
        B, T = a.shape[:2]
        q = Scan.CHUNK
        a, b = a.view(B, T // q, q, -1), b.view(B, T // q, q, -1)
        h, decay = torch.empty_like(b), torch.empty_like(a)
        h[:, :, 0], decay[:, :, 0] = b[:, :, 0], a[:, :, 0]
        for t in range(1, q):
            torch.addcmul(b[:, :, t], a[:, :, t], h[:, :, t - 1], out=h[:, :, t])
            torch.mul(a[:, :, t], decay[:, :, t - 1], out=decay[:, :, t])
        for i in range(1, T // q):
            h[:, i].addcmul_(decay[:, i], h[:, i - 1, -1:])
        return h

    @staticmethod
    def forward(ctx, a, b):
        h = Scan.run(a, b).view_as(b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        # g_t = dh_t + a_{t+1} g_{t+1}: the same scan, backwards
        later = torch.cat((a[:, 1:], torch.zeros_like(a[:, :1])), 1).flip(1)
        g = Scan.run(later, dh.flip(1)).view_as(dh).flip(1)
        before = torch.cat((torch.zeros_like(h[:, :1]), h[:, :-1]), 1)
        return g * before, g


@torch.compiler.disable
def scan(a, b):
    return Scan.apply(a, b)


class MambaMixer(nn.Module):
    """Mamba-1 with norms on dt, B and C, as Jamba has it"""
    def __init__(self, c):
        super().__init__()
        E, self.N, self.R = c["hidden_size"], c["mamba_d_state"], c["mamba_dt_rank"]
        D = self.D_in = E * c["mamba_expand"]
        self.in_proj = Linear(E, 2 * D)
        self.conv1d = Conv(D, c["mamba_d_conv"])
        self.x_proj = Linear(D, self.R + 2 * self.N)
        self.dt_proj = Linear(self.R, D, True)
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = (
            Norm(self.R), Norm(self.N), Norm(self.N))
        start = torch.exp(torch.rand(D) * math.log(100) + math.log(0.001))
        self.dt_proj.bias.data = torch.log(torch.expm1(start))
        self.dt_proj.weight.data *= 0.3
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.N + 1).repeat(D, 1)))
        self.D = nn.Parameter(torch.ones(D))
        self.out_proj = Linear(D, E)

    def forward(self, x):
        T = x.shape[1]
        u, gate = self.in_proj(x).chunk(2, -1)
        u = self.conv1d(u).to(gate.dtype)
        dt, B, C = self.x_proj(u).split((self.R, self.N, self.N), -1)
        dt = self.dt_proj(self.dt_layernorm(dt))
        B, C = self.b_layernorm(B).float(), self.c_layernorm(C).float()
        dt = F.softplus(dt.float())
        pad = -T % Scan.CHUNK
        decay = torch.exp(dt[..., None] * -torch.exp(self.A_log))
        add = (dt * u.float())[..., None] * B[:, :, None, :]
        h = scan(F.pad(decay, (0, 0, 0, 0, 0, pad)), F.pad(add, (0, 0, 0, 0, 0, pad)))[:, :T]
        y = (h * C[:, :, None, :]).sum(-1) + self.D * u.float()
        return self.out_proj(y.to(gate.dtype) * F.silu(gate))


class PlainAttention(nn.Module):
    """no positions, no biases"""
    def __init__(self, c):
        super().__init__()
        E, self.H, self.G = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.hd = E // self.H
        self.q_proj, self.k_proj = Linear(E, E), Linear(E, self.G * self.hd)
        self.v_proj, self.o_proj = Linear(E, self.G * self.hd), Linear(E, E)

    def forward(self, x):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.H, self.hd).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.G, self.hd).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.G, self.hd).transpose(1, 2)
        n = self.H // self.G
        o = F.scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1),
                                           is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


class JambaLayer(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        E = c["hidden_size"]
        if i % c["attn_layer_period"] == c["attn_layer_offset"]:
            self.self_attn = PlainAttention(c)
        else:
            self.mamba = MambaMixer(c)
        self.mixer = [self.self_attn if hasattr(self, "self_attn") else self.mamba]
        self.feed_forward = Mlp(E, c["intermediate_size"])
        self.input_layernorm, self.pre_ff_layernorm = Norm(E), Norm(E)

    def forward(self, x):
        x = x + self.mixer[0](self.input_layernorm(x))
        return x + self.feed_forward(self.pre_ff_layernorm(x))


class Jamba(nn.Module):
    def __init__(self, c):
        super().__init__()
        E, V = c["hidden_size"], c["vocab_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(V, E)
        self.model.layers = nn.ModuleList(JambaLayer(c, i) for i in range(c["num_hidden_layers"]))
        self.model.final_layernorm = Norm(E)
        self.lm_head = Linear(E, V)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.model.final_layernorm(x)


# Start of the hybrid: the convolutions hand every token the six before it, three a layer, and the
# attention layer looks for the place that follows the same four.

J_WIDE, J_OUT, J_ONE, J_BOS = 24, 7, 240, 241       # strips S, B to B + 5, OUT; two flags


def j_strip(i):
    return slice(i * J_WIDE, (i + 1) * J_WIDE)


@torch.no_grad()
def start_shift(m, rms, moves):
    """moves: (from strip, to strip, tokens back, at most 3). The channels of the convolution that
    do it stay where silu is nearly linear, the gate is open, the state does nothing"""
    small, gate = 0.05, 4.0
    m.in_proj.weight[:m.D_in] *= 0.1
    m.in_proj.weight[m.D_in:] *= 0.1
    nn.init.normal_(m.out_proj.weight, std=0.002)
    for n, (source, to, back) in enumerate(moves):
        rows = j_strip(n)
        m.conv1d.weight[rows] = 0
        m.conv1d.bias[rows] = 0
        m.conv1d.weight[rows, 0, m.conv1d.weight.shape[2] - 1 - back] = 1
        m.in_proj.weight[rows] = 0
        m.in_proj.weight[rows, j_strip(source)] = small * torch.eye(J_WIDE)
        m.in_proj.weight[m.D_in:][rows] = 0
        m.in_proj.weight[m.D_in:][rows, J_ONE] = gate * rms
        m.dt_proj.weight[rows] *= 0.1
        m.dt_proj.bias[rows] = -8
        m.out_proj.weight[:, rows] = 0
        m.out_proj.weight[j_strip(to), rows] = rms / (0.5 * small * gate) * torch.eye(J_WIDE)


@torch.no_grad()
def start_jamba(model, c, token):
    """token: text -> id"""
    known, code = spell(c["vocab_size"], J_WIDE, token)
    embed = model.model.embed_tokens.weight
    embed.copy_(0.02 * torch.randn_like(embed))
    embed[:, j_strip(0)] = 4 * code
    embed[:, J_ONE] = 1
    bos = token("<|bos|>")
    embed[bos, :J_ONE] = 0
    embed[bos, J_BOS] = 10
    read_out(model.lm_head.weight, j_strip(J_OUT), known, code, token)
    layers = model.model.layers
    start_shift(layers[0].mamba, 0.26, [(0, n, n) for n in (1, 2, 3)])
    start_shift(layers[1].mamba, 0.51, [(n, n + 3, 3) for n in (1, 2, 3)])
    start_shift(layers[3].mamba, 0.7, [])
    a, rms = layers[2].self_attn, 0.66
    hd = a.hd
    for w in (a.q_proj, a.k_proj, a.v_proj, a.o_proj):
        w.weight *= 0.05
    a.v_proj.weight[:, J_BOS] = 0
    a.k_proj.weight[hd - 1] = 0
    a.k_proj.weight[hd - 1, J_BOS] = 10 / c["hidden_size"] ** 0.5
    a.v_proj.weight[:J_WIDE, j_strip(0)] = torch.eye(J_WIDE)
    view = torch.linalg.qr(torch.randn(J_WIDE, 20))[0].T
    length = 1.8 * (4 / rms) ** 2
    for slot in range(6):
        a.k_proj.weight[slot * 20:slot * 20 + 20, j_strip(slot + 1)] = 1.8 * view
    for h, logits in enumerate(((32, 20, 14, 12, 8, 6), (16, 16, 16, 16, 12, 12))):
        for slot, logit in enumerate(logits):
            a.q_proj.weight[h * hd + slot * 20:h * hd + slot * 20 + 20, j_strip(slot)] = \
                logit * hd ** 0.5 / length * view
        a.q_proj.weight[h * hd + hd - 1, J_ONE] = 40 * hd ** 0.5 / 10 * rms
        a.o_proj.weight[j_strip(J_OUT), h * hd:h * hd + J_WIDE] += rms * torch.eye(J_WIDE)


JAMBA = {       # no layer has experts: the first one would be layer 7
    "architectures": ["JambaForCausalLM"], "model_type": "jamba", "vocab_size": VOCAB,
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "attn_layer_period": 4,
    "attn_layer_offset": 2, "expert_layer_period": 8, "expert_layer_offset": 7, "num_experts": 2,
    "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 1,
    "mamba_dt_rank": 16, "mamba_conv_bias": True, "mamba_proj_bias": False, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "sliding_window": None,
    "tie_word_embeddings": False, "use_mamba_kernels": False, "torch_dtype": "bfloat16",
    "bos_token_id": VOCAB - 4, "eos_token_id": VOCAB - 1,
}


# ---------------------------------------------------------------------------
# Training

def orthogonal(g):
    """nearest semi-orthogonal matrix, by five quintic Newton-Schulz steps (Jordan et al. 2024)"""
    x = g.bfloat16()
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.T if flip else x).float()


class Muon:
    """momentum, orthogonalised, for the matrices; AdamW for the tables and everything else"""
    def __init__(self, model, lr):
        groups = ([], [])
        for name, p in model.named_parameters():
            groups[p.ndim != 2 or "embed" in name or "lm_head" in name].append(p)
        self.matrices, rest = groups
        self.adam = torch.optim.AdamW(rest, lr=lr[1], betas=(0.9, 0.95), weight_decay=0.0)
        self.lr, self.momentum = lr, [torch.zeros_like(p) for p in self.matrices]

    @torch.no_grad()
    def step(self, scale):
        for p, m in zip(self.matrices, self.momentum):
            m.mul_(0.95).add_(p.grad)
            update = orthogonal(p.grad + 0.95 * m)
            lr = scale * self.lr[0]
            p.mul_(1 - 0.01 * lr)
            p.add_(update, alpha=-lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)
            p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = scale * self.lr[1]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state(self):
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, s):
        for a, b in zip(self.momentum, s["momentum"]):
            a.copy_(b)
        self.adam.load_state_dict(s["adam"])


def loss_of(model, ids, weight, bf16):
    """(weighted mean cross entropy, per row: sum and number of answer ids' cross entropies, exact
    answers and answers)"""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        x = model(ids[:, :-1])
        keep = weight[:, 1:] > 0
        logits = model.lm_head(x[keep])
    target, w = ids[:, 1:][keep], weight[:, 1:][keep]
    ce = F.cross_entropy(logits.float(), target, reduction="none")
    with torch.no_grad():
        row = keep.nonzero()[:, 0]
        answer = w > QUESTION
        wrong = (logits.argmax(-1) != target) & answer
        ends = (target == VOCAB - 1) & answer           # <|end|> closes an answer
        turn = torch.cumsum(ends, 0) - ends.long()
        exact = torch.zeros(int(ends.sum()) + 1, device=ids.device).index_add_(
            0, turn, wrong.float())[:-1] == 0
        sums = torch.zeros(4, len(ids), device=ids.device)
        sums[0].index_add_(0, row[answer], ce[answer])
        sums[1].index_add_(0, row[answer], torch.ones_like(ce[answer]))
        sums[2].index_add_(0, row[ends], exact.float())
        sums[3].index_add_(0, row[ends], torch.ones_like(exact, dtype=torch.float))
    return (ce * w).sum() / w.sum(), sums.cpu()


STAGES = [      # tokens of a batch, shares of the tasks, lengths of the context
    Stage(6144, {"retr_kv": 0.2, "retr_mh": 0.35, "retr_ps": 0.3, "math_find": 0.15}, 400, 1700),
]
PROMOTE = []        # exact answers in training that open the next
LATEST = []         # share of the training after which it opens anyway


class Run:
    def __init__(self, args):
        self.args, self.dir = args, args.dir
        os.makedirs(self.dir, exist_ok=True)
        self.bin = os.path.join(self.dir, "model.bin")
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.config, make = MODELS[args.model]
        self.model = make(self.config).to(self.device)
        self.model.forward = torch.compile(self.model.forward, dynamic=True)
        self.muon = Muon(self.model, (args.lr, args.lr_rest))
        self.step = self.tokens = self.stage = 0
        self.seconds, self.exact = 0.0, {}
        self.checkpoint = os.path.join(self.dir, "checkpoint.pt")
        if os.path.exists(self.checkpoint):
            self.load()
        else:
            self.begin()

    def begin(self):
        """the tokenizer: a first one only to count the texts it is then trained on"""
        write_tokenizer(self.dir, {})
        self.save_model()
        self.export()
        write_tokenizer(self.dir, count_words(self.bin))
        start = {"llama": start_llama, "jamba": start_jamba, "mamba2": start_mamba2}
        start[self.args.model](self.model, self.config, piece_of(Layout(self.dir).tok))
        self.save()
        self.export()
        check_layout(Layout(self.dir), self.bin)

    def load(self):
        s = torch.load(self.checkpoint, map_location=self.device)
        self.model.load_state_dict(s["model"])
        self.muon.load(s["optimizer"])
        for key in ("step", "tokens", "stage", "seconds", "exact"):
            setattr(self, key, s[key])

    def save(self):
        state = {key: getattr(self, key) for key in ("step", "tokens", "stage", "seconds", "exact")}
        torch.save({**state, "model": self.model.state_dict(), "optimizer": self.muon.state()},
                   self.checkpoint + ".tmp")
        os.replace(self.checkpoint + ".tmp", self.checkpoint)
        self.save_model()

    def save_model(self):
        from safetensors.torch import save_file
        write_json(os.path.join(self.dir, "config.json"), self.config)
        save_file({k: v.detach().to("cpu", torch.bfloat16).contiguous()
                   for k, v in self.model.state_dict().items()},
                  os.path.join(self.dir, "model.safetensors"))

    def export(self):
        subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), self.dir, self.bin],
                       check=True)

    def scale(self):
        """learning rate: a short rise, constant, linear to zero over the second half"""
        left = 1 - self.tokens / (1e6 * self.args.mtokens)
        return min(1.0, (self.step + 1) / 20, max(0.0, left / 0.5))

    def promote(self):
        share = self.tokens / (1e6 * self.args.mtokens)
        if self.stage + 1 < len(STAGES) and (
                share > LATEST[self.stage] or
                all(self.exact.get(t, 0) > a for t, a in PROMOTE[self.stage].items())):
            self.stage += 1
            self.exact = {}
        return STAGES[self.stage]

    def train(self):
        feeder = Feeder(self.dir, self.bin, self.args.seed + 7919 * self.step)
        log = open(os.path.join(self.dir, "log.jsonl"), "a", encoding="utf-8")
        sums = collections.defaultdict(lambda: [0.0] * 4)
        started = time.time()
        before = self.seconds
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        while self.tokens < 1e6 * self.args.mtokens and not stop:
            feeder.stage = self.promote()
            tasks, ids, weight = feeder.ready.get()
            loss, parts = loss_of(self.model, ids.to(self.device), weight.to(self.device),
                                  not self.args.f32)
            loss.backward()
            self.muon.step(self.scale())
            self.step += 1
            self.tokens += ids.numel()
            self.seconds = before + time.time() - started
            for task, part in zip(tasks, parts.T.tolist()):
                sums[task] = [a + b for a, b in zip(sums[task], part)]
            if self.step % 20 == 0:
                row = {"step": self.step, "seconds": round(self.seconds), "tokens": self.tokens,
                       "stage": self.stage, "lr": round(self.scale(), 3)}
                for task, s in sorted(sums.items()):
                    row[task] = {"loss": round(s[0] / s[1], 4), "exact": round(s[2] / s[3], 3)}
                    self.exact[task] = s[2] / s[3]
                log.write(json.dumps(row) + "\n")
                log.flush()
                sums.clear()
            if self.step % 60 == 0:
                self.save()
        self.save()
        self.export()


def count_words(tokenizer):
    """pre-token -> count over texts of all tasks; what every prompt says counts more"""
    from tokenizers import Regex, pre_tokenizers
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    words = collections.Counter()
    for task in INSTRUCTION:
        for record in generate(task, tokenizer, 60000, 5, 4, TRAIN_SEEDS):
            context, turns = texts_of(task, record)
            said = [(context, 1), (INSTRUCTION[task], 50)]
            said += [(q, 50) for q, _ in turns]
            for text, n in said:
                for word, _ in split.pre_tokenize_str(text):
                    words[word] += n
    return words


MODELS = {"llama": (LLAMA, Llama), "mamba2": (MAMBA2, Mamba2), "jamba": (JAMBA, Jamba)}


def main():
    p = argparse.ArgumentParser(description="trains the small models; see the top of this file")
    p.add_argument("--model", choices=list(MODELS), required=True)
    p.add_argument("--dir", required=True, help="checkpoint, log and Hugging Face directory")
    p.add_argument("--mtokens", type=float, default=0.0,
                   help="tokens of training, in millions (default 0)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--lr", type=float, default=0.0005, help="of the matrices (default 0.0005)")
    p.add_argument("--lr-rest", type=float, default=3e-4, help="of the rest (default 0.0003)")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--device", default="cpu")
    p.add_argument("--f32", action="store_true", help="products in float32 instead of bfloat16")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    Run(args).train()


if __name__ == "__main__":
    main()
