#!/usr/bin/env python3
"""train.py - makes the small models in data/: lays out their circuits, trains them on.

    train.py --model llama|jamba|mamba2 --dir DIR [--mtokens M] [--threads N] [--device cpu|cuda]

DIR receives the Hugging Face directory (config.json, model.safetensors, tokenizer.json ...), which
export.py turns into a model file like any other, the checkpoint, from which a second call goes on,
and log.jsonl. Needs PyTorch, tokenizers and safetensors, and ./scbench, which makes the sessions.

Start. The matrices do not begin at random: heads and states are set up that look a fixed distance
back, that find the place where the same tokens stood before, the line that ends in a name or a
number, the string with a prefix and a suffix, the largest number (start.py). --mtokens 0 stops
there; what more adds is trained.

Data of the training. Sessions as `scbench gen` writes them, laid out as the multi-turn mode does:
context, then question and golden answer, turn after turn. The loss is on the answers. Training
takes seeds from TRAIN_SEEDS upwards, tests and measurements seeds below it: no session is in both.
"""
import argparse
import collections
import json
import math
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import torch
import torch.nn.functional as F
from torch import nn

from start import heights, start_conv, start_jamba, start_llama, start_mamba2

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
QUESTION, ANSWER, SHORT = 0.01, 1.0, 10


class Layout:
    """texts -> ids and a weight per predicted id"""
    def __init__(self, dir):
        from tokenizers import Tokenizer
        self.tok = Tokenizer.from_file(os.path.join(dir, "tokenizer.json"))
        self.bos, self.user, self.assistant, self.end = range(VOCAB - 4, VOCAB)

    def ids(self, context, turns):
        """ids (n), weight (n): of predicting ids[i] from those before it"""
        texts = [context] + [s for turn in turns for s in turn]
        pieces = [e.ids for e in self.tok.encode_batch(texts, add_special_tokens=False)]
        ids = [self.bos, self.user, *pieces[0]]
        weight = [0.0] * len(ids)
        for q, a in zip(pieces[1::2], pieces[2::2]):
            ids += [*q, self.assistant, *a, self.end, self.user]
            each = ANSWER * max(1.0, SHORT / (len(a) + 1))
            weight += [QUESTION] * len(q) + [0.0] + [each] * (len(a) + 1) + [0.0]
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


BATCH = 6144                    # tokens of a step
SHARE = {       # math_find is not among them: a wrong number costs more than all other answers, and
                # its gradients spoil what they should mend (README.md)
    "llama": {"retr_kv": 0.25, "retr_mh": 0.35, "retr_ps": 0.4},
    "jamba": {"retr_kv": 1.0}, "mamba2": {"retr_kv": 1.0},
}
SHORTEST, LONGEST = 400, 1700   # contexts


def draw(rng, share):
    """(task, ctx, turns): contexts with as many questions as fit well"""
    task = rng.choices(list(share), list(share.values()))[0]
    ctx = int(math.exp(rng.uniform(math.log(SHORTEST), math.log(LONGEST))))
    if task == "retr_kv":
        turns = max(1, min(rng.randint(3, 12), ctx // 80))
    elif task == "retr_mh":
        ctx = max(ctx, 420)
        turns = max(1, min(8, (ctx - 120) // 230))
    else:
        ctx = max(ctx, 360)
        turns = rng.randint(1, max(1, min(8, (ctx - 90) // 240)))
    return task, ctx, turns


class Feeder:
    """a thread that keeps batches ready: rows of one shape, padded at the end"""
    def __init__(self, dir, tokenizer, share, seed):
        self.rng = random.Random(seed)
        self.layout, self.tokenizer, self.share = Layout(dir), tokenizer, share
        self.seed = TRAIN_SEEDS + seed * 1000003
        self.ready = queue.Queue(maxsize=6)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        pool = []
        while True:
            task, ctx, turns = draw(self.rng, self.share)
            self.seed += 1
            rows = max(8, 2 * BATCH // ctx)
            records = generate(task, self.tokenizer, ctx, turns, rows, self.seed)
            for record in records or []:
                pool.append((task, *self.layout.ids(*texts_of(task, record))))
            if sum(len(r[1]) for r in pool) > 16 * BATCH:
                self.emit(pool)
                pool = []

    def emit(self, pool):
        """all of the pool, rows of about one length together, the batches in random order"""
        pool.sort(key=lambda r: (len(r[1]) // 32, self.rng.random()))
        batches = [[]]
        for row in pool:
            if batches[-1] and (len(batches[-1]) + 1) * len(row[1]) > BATCH:
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
        self.config = c
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
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.checkpoint = os.path.join(self.dir, "checkpoint.pt")
        if os.path.exists(self.checkpoint):
            self.load()
        else:
            self.begin()
        self.kept = [(p, i, p.detach()[i].clone()) for p, i in
                     (heights(self.model) if args.model == "llama" else ())]

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
        for key in ("step", "tokens", "seconds"):
            setattr(self, key, s[key])

    def save(self):
        state = {key: getattr(self, key) for key in ("step", "tokens", "seconds")}
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

    def train(self):
        feeder = Feeder(self.dir, self.bin, SHARE[self.args.model],
                        self.args.seed + 7919 * self.step)
        log = open(os.path.join(self.dir, "log.jsonl"), "a", encoding="utf-8")
        sums = collections.defaultdict(lambda: [0.0] * 4)
        started = time.time()
        before = self.seconds
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        while self.tokens < 1e6 * self.args.mtokens and not stop:
            tasks, ids, weight = feeder.ready.get()
            loss, parts = loss_of(self.model, ids.to(self.device), weight.to(self.device),
                                  not self.args.f32)
            loss.backward()
            self.muon.step(self.scale())
            with torch.no_grad():
                for p, i, value in self.kept:
                    p[i] = value
            self.step += 1
            self.tokens += ids.numel()
            self.seconds = before + time.time() - started
            for task, part in zip(tasks, parts.T.tolist()):
                sums[task] = [a + b for a, b in zip(sums[task], part)]
            if self.step % 20 == 0:
                row = {"step": self.step, "seconds": round(self.seconds), "tokens": self.tokens,
                       "lr": round(self.scale(), 3)}
                for task, s in sorted(sums.items()):
                    row[task] = {"loss": round(s[0] / s[1], 4), "exact": round(s[2] / s[3], 3)}
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
    p.add_argument("--lr", type=float, default=2e-4, help="of the matrices (default 0.0002)")
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
