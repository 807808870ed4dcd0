#!/usr/bin/env python3
"""export.py - a Hugging Face directory, a GGUF file or a seed becomes one model file (.bin).

    export.py SOURCE OUT.bin [options]             SOURCE: directory or FILE.gguf
    export.py --random SEED --shape NAME|CONFIG.json OUT.bin [options]

The layout of the file is in scb.h: prologue, parameter records, tensor records, data. Letters: V
vocabulary, E hidden width, F feed-forward width, H query heads, G KV heads, hd head width, L
layers. Everything is written in blocks of rows, so a run holds one block, never a model. The output
is written to OUT.bin.tmp and renamed; the same input gives the same bytes.

Numbers. bf16 is rounded to nearest even, denormals to 0. q8 is 32 weights along a row with one fp16
scale s = max|w| / 127 and q = round-half-even(w / s). In bf16 and q8 files norms and biases are f32
records that hold bf16 values. A q8 file keeps `embed` in bf16 unless it is also the head (tied).

Random models. Element i (row-major) of the tensor called `name` is
    u = mix64(mix64(seed ^ xxh64(name)) + i)        mix64 of base.h, xxh64 with seed 0
    z = (sum of the four 16-bit fields of u - 131070) / sqrt((2^32 - 1) / 3)
which has mean 0 and variance 1 and is nearly normal, times a width per kind of tensor:
    embed, lm_head, wk, wv, w1, w3   1 / sqrt(E)         norms     1 + z / 10
    wq                               2 / sqrt(E)         biases    z / 10
    wo                               1 / sqrt(2 L H hd)  w2        1 / sqrt(2 L F)
in fp32: fl(fl(sum - 131070) * fl(width / sqrt((2^32 - 1) / 3))), norms fl(1 + that). wq is doubled
so that attention looks at some keys more than at others. The vocabulary is the 256 bytes, <bos>,
<eos>, <|user|>, <|assistant|>, <|end|>; all further ids are unused.
"""
import argparse
import collections
import json
import math
import os
import signal
import struct
import sys

from export_tok import UserError, gguf_vocab, hf_vocab, need, random_vocab, read_json, vocab_records

DT_F32, DT_BF16, DT_Q8, DT_U8, DT_I32 = range(5)
DTYPES = {"f32": DT_F32, "bf16": DT_BF16, "q8": DT_Q8}
ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_DYNAMIC = range(5)
PARAM_INT, PARAM_REAL, PARAM_STR = 1, 2, 3
ALIGN = 64
Q8_GROUP = 32
BLOCK = 1 << 22                                         # elements converted at once

np = None       # numpy and xxhash are imported by main, after --help and usage errors
xxh64 = None


# ---------------------------------------------------------------------------
# Numbers

def to_bf16(x):
    """f32 array -> uint16 array of the same shape (what f32_bf16 of base.h computes)."""
    u = x.view(np.uint32)
    r = (u + (np.uint32(0x7fff) + ((u >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    zero = (u & np.uint32(0x7f800000)) == 0
    return np.where(zero, (u >> np.uint32(16)) & np.uint32(0x8000), r).astype(np.uint16)


def from_bf16(b):
    return (b.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_q8(x, name):
    """f32 (n, k) -> uint8 (n, ceil(k / 32), 34): fp16 scale and 32 signed bytes per group."""
    n, k = x.shape
    groups = -(-k // Q8_GROUP)
    if k % Q8_GROUP:
        x = np.pad(x, ((0, 0), (0, groups * Q8_GROUP - k)))
    w = x.reshape(n, groups, Q8_GROUP)
    top = np.abs(w).max(axis=2)
    if n and top.max() / 127 > 65504:
        raise UserError(f"tensor {name} holds {top.max():g}, too large for a q8 scale: use --dtype "
                        "bf16")
    scale = (top / np.float32(127)).astype(np.float16)
    s = scale.astype(np.float32)[:, :, None]
    q = np.rint(np.divide(w, s, out=np.zeros_like(w), where=s != 0))
    out = np.empty((n, groups, 2 + Q8_GROUP), np.uint8)
    out[:, :, :2] = scale.view(np.uint8).reshape(n, groups, 2)
    out[:, :, 2:] = np.clip(q, -127, 127).astype(np.int8).view(np.uint8)
    return out


def encode(x, dtype, name):
    if not np.isfinite(x).all():
        raise UserError(f"tensor {name} holds values that are not finite")
    if dtype == DT_F32:
        return x
    return to_bf16(x) if dtype == DT_BF16 else to_q8(x, name)


def mix64_into(x, t):
    """splitmix64 of every element of the uint64 array x, in place; t: scratch of the same shape."""
    x += np.uint64(0x9e3779b97f4a7c15)
    for shift, mul in ((30, 0xbf58476d1ce4e5b9), (27, 0x94d049bb133111eb), (31, None)):
        np.right_shift(x, np.uint64(shift), out=t)
        x ^= t
        if mul:
            x *= np.uint64(mul)


def mix64(x):
    a = np.array([x & (1 << 64) - 1], np.uint64)
    mix64_into(a, np.empty_like(a))
    return int(a[0])


# ---------------------------------------------------------------------------
# The file

def tensor_bytes(dtype, shape):
    size = {DT_F32: 4, DT_BF16: 2, DT_Q8: 2 + Q8_GROUP, DT_U8: 1, DT_I32: 4}[dtype]
    last = -(-shape[-1] // Q8_GROUP) if dtype == DT_Q8 else shape[-1]
    return math.prod(shape[:-1]) * last * size


def pack_param(key, value):
    if isinstance(value, str):
        kind, v = PARAM_STR, value.encode().ljust(16, b"\0")
    elif isinstance(value, float):
        kind, v = PARAM_REAL, struct.pack("<d8x", value)
    else:
        kind, v = PARAM_INT, struct.pack("<q8x", value)
    return struct.pack("<40sII", key.encode(), kind, 0) + v


def align(n):
    return -(-n // ALIGN) * ALIGN


def write_file(out, params, tensors):
    """params: key -> int, float or str. tensors: [(name, dtype, shape, function that yields the
    data as arrays)]. Sizes are known beforehand, checksums are filled in after the data."""
    n_records = 64 * len(params) + 128 * len(tensors)
    data_offset = offset = align(64 + n_records)
    tmp = out + ".tmp"
    records = b"".join(pack_param(k, v) for k, v in params.items())
    done, total = 0, sum(tensor_bytes(d, s) for _, d, s, _ in tensors)
    show = sys.stderr.isatty()
    try:
        with open(tmp, "wb") as f:
            for i, (name, dtype, shape, blocks) in enumerate(tensors):
                if show:
                    print(f"\r\x1b[K{out}: {i + 1}/{len(tensors)} {name}, {done / 1e6:.0f} of "
                          f"{total / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)
                offset = align(offset)
                f.seek(offset)
                size, hash = tensor_bytes(dtype, shape), xxh64()
                for block in blocks():
                    data = np.ascontiguousarray(block).view(np.uint8).reshape(-1)
                    hash.update(data)
                    f.write(data)
                if f.tell() != offset + size:
                    raise AssertionError(f"{name}: {f.tell() - offset} bytes written, not {size}")
                dims = list(shape) + [1] * (4 - len(shape))
                records += struct.pack("<56sII4QQQQQ", name.encode(), dtype, len(shape), *dims,
                                       offset, size, hash.intdigest(), 0)
                offset += size
                done += size
            f.seek(0)
            f.write(struct.pack("<4sIIIQQQ24x", b"SCBM", 1, len(params), len(tensors), data_offset,
                                offset - data_offset, xxh64(records).intdigest()))
            f.write(records)
        os.replace(tmp, out)
    finally:
        if show:
            print("\r\x1b[K", end="", file=sys.stderr)
        if os.path.exists(tmp):
            os.remove(tmp)


# ---------------------------------------------------------------------------
# Families. A family says how to read its config and which tensors it has; everything else is
# shared. Tensor: our name, shape, names in both kinds of source, heads: rows to un-permute (GGUF).

Tensor = collections.namedtuple("Tensor", "name shape hf gguf heads", defaults=(0,))


def fetch(j, key, where, kinds=(int,), default=None):
    v = j.get(key)
    if v is None and default is not None:
        v = default
    if v is None:
        raise UserError(f"{where}: key '{key}' is missing")
    if isinstance(v, bool) or not isinstance(v, kinds):
        raise UserError(f"{where}: key '{key}' is {v!r}, not a number")
    return v


def rope_config(j, where):
    """The rotary part of config.json: rope_theta and rope_scaling, or rope_parameters (newer)."""
    number = (int, float)
    both = j.get("rope_parameters")
    s = both if both is not None else j.get("rope_scaling")
    theta = fetch(both or j, "rope_theta", where, number, j.get("rope_theta", 1e4))
    c = {"rope_theta": float(theta), "rope_scaling": ROPE_NONE, "rope_orig_ctx": 0,
         "rope_factor": 1.0, "rope_low_freq_factor": 0.0, "rope_high_freq_factor": 0.0}
    kind = (s or {}).get("rope_type", (s or {}).get("type", "default"))
    if kind == "default":
        return c
    kinds = {"linear": ROPE_LINEAR, "llama3": ROPE_LLAMA3, "yarn": ROPE_YARN,
             "dynamic": ROPE_DYNAMIC}
    known = {"rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
             "original_max_position_embeddings", "partial_rotary_factor"}
    if kind not in kinds:
        raise UserError(f"{where}: rope scaling '{kind}' is not supported ({', '.join(kinds)} are)")
    for key, v in s.items():
        if key not in known and v != {"beta_fast": 32, "beta_slow": 1}.get(key):
            raise UserError(f"{where}: rope scaling key '{key}' = {v!r} is not supported")
    here = f"{where}, rope scaling {kind}"
    c["rope_scaling"] = kinds[kind]
    c["rope_factor"] = float(fetch(s, "factor", here, number))
    if kind == "llama3":
        c["rope_low_freq_factor"] = float(fetch(s, "low_freq_factor", here, number))
        c["rope_high_freq_factor"] = float(fetch(s, "high_freq_factor", here, number))
    if kind != "linear":
        default = j.get("original_max_position_embeddings")
        if kind != "llama3":
            default = default or j.get("max_position_embeddings")
        c["rope_orig_ctx"] = fetch(s, "original_max_position_embeddings", here, default=default)
    return c


def hf_llama(j, where, qkv_bias=False):
    """config.json of the llama or qwen2 family -> our parameters."""
    for key, fine in (("hidden_act", "silu"), ("mlp_bias", False), ("use_sliding_window", False),
                      ("partial_rotary_factor", 1.0)):
        if j.get(key, fine) not in (fine, None):
            raise UserError(f"{where}: {key} = {j[key]!r} is not supported (only {fine!r} is)")
    if j.get("attention_bias") and not qkv_bias:
        raise UserError(f"{where}: attention_bias true is not supported for this family")
    dim, heads = fetch(j, "hidden_size", where), fetch(j, "num_attention_heads", where)
    head_dim = fetch(j, "head_dim", where, default=max(1, dim // max(1, heads)))
    return {"vocab_size": fetch(j, "vocab_size", where), "dim": dim,
            "hidden_dim": fetch(j, "intermediate_size", where),
            "n_layers": fetch(j, "num_hidden_layers", where), "n_heads": heads,
            "n_kv_heads": fetch(j, "num_key_value_heads", where, default=heads),
            "head_dim": head_dim, "max_ctx": fetch(j, "max_position_embeddings", where),
            "rope_dim": head_dim, "qkv_bias": int(qkv_bias),
            "tied": int(bool(j.get("tie_word_embeddings", False))),
            "norm_eps": float(fetch(j, "rms_norm_eps", where, (int, float))),
            **rope_config(j, where)}


def hf_qwen2(j, where):
    return hf_llama(j, where, qkv_bias=True)


def gguf_llama(g, qkv_bias=False):
    """metadata of a GGUF file of the llama or qwen2 family -> our parameters."""
    a = g.arch
    heads, dim = g.int(f"{a}.attention.head_count"), g.int(f"{a}.embedding_length")
    rope_dim = g.int(f"{a}.rope.dimension_count", dim // max(1, heads))
    head_dim = g.int(f"{a}.attention.key_length", rope_dim)
    if g.int(f"{a}.attention.value_length", head_dim) != head_dim or rope_dim != head_dim:
        raise UserError(f"{g.path}: keys, values and the rotary part must have one width")
    c = {"vocab_size": g.int(f"{a}.vocab_size", len(g.get("tokenizer.ggml.tokens", []))),
         "dim": dim, "hidden_dim": g.int(f"{a}.feed_forward_length"),
         "n_layers": g.int(f"{a}.block_count"),
         "n_heads": heads, "n_kv_heads": g.int(f"{a}.attention.head_count_kv", heads),
         "head_dim": head_dim, "max_ctx": g.int(f"{a}.context_length"), "rope_dim": rope_dim,
         "qkv_bias": int(qkv_bias), "tied": int("output.weight" not in g.tensors),
         "norm_eps": float(g.get(f"{a}.attention.layer_norm_rms_epsilon")),
         "rope_theta": float(g.get(f"{a}.rope.freq_base", 10000.0)), "rope_scaling": ROPE_NONE,
         "rope_orig_ctx": 0, "rope_factor": 1.0, "rope_low_freq_factor": 0.0,
         "rope_high_freq_factor": 0.0}
    kind = g.get(f"{a}.rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        c["rope_scaling"] = {"linear": ROPE_LINEAR, "yarn": ROPE_YARN}[kind]
        c["rope_factor"] = float(g.get(f"{a}.rope.scaling.factor"))
        if kind == "yarn":
            c["rope_orig_ctx"] = g.int(f"{a}.rope.scaling.original_context_length")
    elif kind != "none":
        raise UserError(f"{g.path}: rope scaling '{kind}' is not supported (linear and yarn are)")
    if "rope_freqs.weight" in g.tensors:
        c.update(llama3_scaling(g, c))
    return c


def gguf_qwen2(g):
    return gguf_llama(g, qkv_bias=True)


def llama3_scaling(g, c):
    """GGUF keeps Llama-3.1's frequency scaling as one divisor per frequency. The divisors of the
    two published settings are made again from their parameters, and one must agree."""
    name = "rope_freqs.weight"
    have = g.rows(Tensor(name, (c["head_dim"] // 2,), None, name), 0, 1)[0]
    low, high, orig = 1.0, 4.0, 8192
    for factor in (8.0, 32.0):
        want = []
        for i in range(c["head_dim"] // 2):
            wave = 2 * math.pi * c["rope_theta"] ** (2 * i / c["head_dim"])
            s = min(1.0, max(0.0, (orig / wave - low) / (high - low)))
            want.append(1 / ((1 - s) / factor + s))
        if np.allclose(have, want, rtol=1e-4):
            return {"rope_scaling": ROPE_LLAMA3, "rope_factor": factor, "rope_orig_ctx": orig,
                    "rope_low_freq_factor": low, "rope_high_freq_factor": high}
    raise UserError(f"{g.path}: tensor {name} holds a frequency scaling that is not Llama-3.1's or "
                    "3.2's")


def llama_tensors(c):
    E, F, V = c["dim"], c["hidden_dim"], c["vocab_size"]
    q, kv = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
    yield Tensor("embed", (V, E), "model.embed_tokens.weight", "token_embd.weight")
    for i in range(c["n_layers"]):
        for name, shape, hf, gguf, heads in (
                ("attn_norm", (E,), "input_layernorm.weight", "attn_norm.weight", 0),
                ("wq", (q, E), "self_attn.q_proj.weight", "attn_q.weight", c["n_heads"]),
                ("wk", (kv, E), "self_attn.k_proj.weight", "attn_k.weight", c["n_kv_heads"]),
                ("wv", (kv, E), "self_attn.v_proj.weight", "attn_v.weight", 0),
                ("bq", (q,), "self_attn.q_proj.bias", "attn_q.bias", 0),
                ("bk", (kv,), "self_attn.k_proj.bias", "attn_k.bias", 0),
                ("bv", (kv,), "self_attn.v_proj.bias", "attn_v.bias", 0),
                ("wo", (E, q), "self_attn.o_proj.weight", "attn_output.weight", 0),
                ("ffn_norm", (E,), "post_attention_layernorm.weight", "ffn_norm.weight", 0),
                ("w1", (F, E), "mlp.gate_proj.weight", "ffn_gate.weight", 0),
                ("w3", (F, E), "mlp.up_proj.weight", "ffn_up.weight", 0),
                ("w2", (E, F), "mlp.down_proj.weight", "ffn_down.weight", 0)):
            if name[0] != "b" or c["qkv_bias"]:
                yield Tensor(f"layers.{i}.{name}", shape, f"model.layers.{i}.{hf}",
                             f"blk.{i}.{gguf}", heads)
    yield Tensor("final_norm", (E,), "model.norm.weight", "output_norm.weight")
    if not c["tied"]:
        yield Tensor("lm_head", (V, E), "lm_head.weight", "output.weight")


def llama_width(name, c):
    """width of a random tensor (see the top)"""
    kind, deep = name.split(".")[-1], math.sqrt(2 * c["n_layers"])
    if kind.endswith("norm") or kind in ("bq", "bk", "bv"):
        return 0.1
    if kind == "wo":
        return 1 / math.sqrt(c["n_heads"] * c["head_dim"]) / deep
    if kind == "w2":
        return 1 / math.sqrt(c["hidden_dim"]) / deep
    return (2 if kind == "wq" else 1) / math.sqrt(c["dim"])


# arch: what the file says; permuted: GGUF reorders the rows of q and k inside each head
Family = collections.namedtuple("Family", "arch hf gguf tensors width permuted")
FAMILIES = {        # by model_type of config.json and general.architecture of GGUF
    "llama": Family("llama", hf_llama, gguf_llama, llama_tensors, llama_width, True),
    "qwen2": Family("llama", hf_qwen2, gguf_qwen2, llama_tensors, llama_width, False),
}
PARAM_ORDER = ("vocab_size dim hidden_dim n_layers n_heads n_kv_heads head_dim max_ctx norm_eps "
               "rope_theta rope_dim rope_scaling rope_factor rope_low_freq_factor "
               "rope_high_freq_factor rope_orig_ctx qkv_bias tied").split()


def family_of(name, where):
    if name not in FAMILIES:
        raise UserError(f"{where}: the architecture '{name}' is not supported "
                        f"({', '.join(FAMILIES)} are)")
    return FAMILIES[name]


def check_config(c, where):
    for key in ("vocab_size dim hidden_dim n_layers n_heads n_kv_heads head_dim max_ctx").split():
        if not 0 < c[key] < 1 << 31:
            raise UserError(f"{where}: {key} is {c[key]}, not a positive number")
    if c["n_heads"] % c["n_kv_heads"] or c["head_dim"] % 2:
        raise UserError(f"{where}: {c['n_heads']} query heads over {c['n_kv_heads']} KV heads of "
                        f"width {c['head_dim']}: heads must divide evenly, the width must be even")


def check_tensors(src, c, where):
    """Every tensor the family has is there with its shape, and nothing else is."""
    expected = {t.hf if src.kind == "hf" else t.gguf: t for t in src.family.tensors(c)}
    for name, t in expected.items():
        if name not in src.tensors:
            raise UserError(f"{where}: tensor {name} is missing")
        have = src.shape(name)
        if have != t.shape:
            raise UserError(f"{where}: tensor {name} has shape {have}, the configuration says "
                            f"{t.shape}")
        src.check_dtype(name)
    for name in src.tensors:
        if name not in expected and not src.ignored(name, c):
            raise UserError(f"{where}: tensor {name} is unexpected; it would be lost, so "
                            "nothing was written")


# ---------------------------------------------------------------------------
# Sources. Each has: family, config(), tensors, rows(tensor, r0, r1) -> f32 (r1 - r0, k) with a
# vector as one row, float_matrices: its matrices are f32, tokenizer(vocab_size) -> Vocab.

class HfDir:
    """config.json and safetensors, one file or shards: u64 length, JSON header, data (row-major)"""
    kind = "hf"
    DTYPES = {"F32": 4, "F16": 2, "BF16": 2}

    def __init__(self, path, vocab_only):
        self.path = path
        self.where = os.path.join(path, "config.json")
        self.json = read_json(self.where)
        self.family = family_of(self.json.get("model_type"), self.where)
        self.tensors = {}       # name -> (file, dtype, shape, offset)
        if not vocab_only:
            self.open_weights()

    def open_weights(self):
        index = os.path.join(self.path, "model.safetensors.index.json")
        if os.path.exists(index):
            place = read_json(index).get("weight_map")
            if not isinstance(place, dict):
                raise UserError(f"{index}: key 'weight_map' is missing")
            for file in sorted(set(place.values())):
                self.open_shard(os.path.join(self.path, os.path.basename(file)))
            for name, file in place.items():
                if name not in self.tensors:
                    raise UserError(f"{index}: tensor {name} is not in {file}")
            return
        single = os.path.join(self.path, "model.safetensors")
        if not os.path.exists(single):
            raise UserError(f"{self.path}: there is no model.safetensors and no model.safetensors."
                            "index.json; PyTorch .bin and .pth files are not read")
        self.open_shard(single)

    def open_shard(self, path):
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            n = int.from_bytes(f.read(8), "little")
            if size < 10 or not 2 <= n <= min(100_000_000, size - 8):
                raise UserError(f"{path}: not a safetensors file (header of {n} bytes in a file of "
                                f"{size})")
            header = f.read(n)
        try:
            header = json.loads(header)
            entries = [(*e["data_offsets"], name, e["dtype"], tuple(e["shape"]))
                       for name, e in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{path}: the safetensors header is damaged ({e!r})")
        end = 0
        for a, b, name, dtype, shape in sorted(entries):
            want = math.prod(shape) * self.DTYPES[dtype] if dtype in self.DTYPES else b - a
            if a != end or b - a != want or 8 + n + b > size:
                raise UserError(f"{path}: tensor {name}: bytes {a} to {b} do not fit its shape "
                                f"{shape} or the file; download it again")
            if name in self.tensors:
                raise UserError(f"{path}: tensor {name} is also in another shard")
            end = b
            self.tensors[name] = (path, dtype, shape, 8 + n + a)
        if 8 + n + end != size:
            raise UserError(f"{path}: {size - 8 - n - end} bytes after the last tensor; download "
                            "it again")

    def config(self):
        return self.family.hf(self.json, self.where)

    def shape(self, name):
        return self.tensors[name][2]

    def check_dtype(self, name):
        if self.tensors[name][1] not in self.DTYPES:
            raise UserError(f"{self.path}: tensor {name} is {self.tensors[name][1]}; BF16, F16 and "
                            "F32 are read")

    def ignored(self, name, c):
        """rotary buffers of old files; a head that repeats the tied embedding"""
        if name.endswith("rotary_emb.inv_freq"):
            return True
        if name != "lm_head.weight" or not c["tied"]:
            return False
        head = Tensor("lm_head", (c["vocab_size"], c["dim"]), name, None)
        embed = next(iter(self.family.tensors(c)))
        if self.shape(name) != head.shape:
            return False
        self.check_dtype(name)
        return all(np.array_equal(self.rows(head, a, b), self.rows(embed, a, b))
                   for a, b in row_blocks(head.shape))

    def float_matrices(self):
        return all(d == "F32" for _, d, shape, _ in self.tensors.values() if len(shape) == 2)

    def rows(self, t, r0, r1):
        path, dtype, shape, offset = self.tensors[t.hf]
        k, size = shape[-1], self.DTYPES[dtype]
        with open(path, "rb") as f:
            f.seek(offset + r0 * k * size)
            raw = np.frombuffer(f.read((r1 - r0) * k * size), np.uint8)
        if raw.size != (r1 - r0) * k * size:
            raise UserError(f"{path}: the file ends inside tensor {t.hf}")
        if dtype == "BF16":
            x = from_bf16(raw.view(np.uint16))
        else:
            x = raw.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32)
        return x.reshape(r1 - r0, k)

    def tokenizer(self, vocab_size):
        return hf_vocab(self.path, self.json, vocab_size)


class Gguf:
    """one GGUF file, quantised or not; tensors are turned into f32 rows by the gguf package"""
    kind = "gguf"

    def __init__(self, path, vocab_only):
        self.gguf = need("gguf")
        self.path = self.where = path
        try:
            reader = self.gguf.GGUFReader(path)
        except OSError:
            raise
        except Exception as e:      # the package lets every kind of error through
            raise UserError(f"{path}: not a readable GGUF file ({e})")
        self.fields = reader.fields
        self.tensors = {} if vocab_only else {t.name: t for t in reader.tensors}
        self.arch = self.get("general.architecture")
        self.family = family_of(self.arch, path)

    def get(self, key, default=None):
        if key in self.fields:
            return self.fields[key].contents()
        if default is None:
            raise UserError(f"{self.path}: key '{key}' is missing")
        return default

    def int(self, key, default=None):
        v = self.get(key, default)
        if isinstance(v, list) and len(set(v)) == 1:
            v = v[0]
        if not isinstance(v, int):
            raise UserError(f"{self.path}: key '{key}' is {v!r}, not a whole number")
        return v

    def config(self):
        return self.family.gguf(self)

    def shape(self, name):
        return tuple(int(n) for n in reversed(self.tensors[name].shape))

    def check_dtype(self, name):
        kind = self.tensors[name].tensor_type
        known = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
        if kind.name not in known:
            raise UserError(f"{self.path}: tensor {name} is {kind.name}; {', '.join(known)} are "
                            "read")

    def ignored(self, name, c):
        return name == "rope_freqs.weight"      # read by llama3_scaling

    def float_matrices(self):
        return all(t.tensor_type.name == "F32" for t in self.tensors.values() if len(t.shape) == 2)

    def rows(self, t, r0, r1):
        g = self.tensors[t.gguf]
        data = g.data.reshape(1, -1) if len(t.shape) == 1 else g.data
        if t.heads and self.family.permuted:
            # hf[h*d + s*d/2 + j] = gguf[h*d + 2j + s]: rotary pairs lie d/2 apart, not side by side
            d = t.shape[0] // t.heads
            order = np.arange(t.shape[0]).reshape(t.heads, d // 2, 2).swapaxes(1, 2).reshape(-1)
            data = data[order[r0:r1]]
        else:
            data = data[r0:r1]
        x = self.gguf.dequantize(np.ascontiguousarray(data), g.tensor_type)
        return np.ascontiguousarray(x, np.float32).reshape(r1 - r0, t.shape[-1])

    def tokenizer(self, vocab_size):
        return gguf_vocab(self, vocab_size)


class Random:
    """weights from a seed, shape from the table or from a config.json"""
    SPAN = 1 << 16          # elements made at once: they stay in the cache

    def __init__(self, seed, shape):
        self.seed = seed
        if shape in SHAPES:
            self.json, self.where = SHAPES[shape], shape
        elif shape.endswith(".json"):
            self.json, self.where = read_json(shape), shape
        else:
            raise UserError(f"--shape {shape}: not a .json file and not one of {', '.join(SHAPES)}")
        self.family = family_of(self.json.get("model_type", "llama"), self.where)

    def config(self):
        self.full = self.family.hf(self.json, self.where)
        return dict(self.full)

    def float_matrices(self):
        return False

    def rows(self, t, r0, r1):
        k, key = t.shape[-1], mix64(self.seed ^ xxh64(t.name.encode()).intdigest())
        width = np.float32(self.family.width(t.name, self.full) / math.sqrt((2 ** 32 - 1) / 3))
        out = np.empty((r1 - r0) * k, np.float32)
        for a in range(0, out.size, self.SPAN):
            n = min(self.SPAN, out.size - a)
            i = (r0 * k + a + key) & (1 << 64) - 1
            u = np.arange(n, dtype=np.uint64) + np.uint64(i)
            s = np.empty_like(u)
            mix64_into(u, s)
            fields = u.view(np.uint16).reshape(n, 4)
            z = fields[:, 0].astype(np.int32)
            for j in (1, 2, 3):
                z += fields[:, j]
            out[a:a + n] = (z - 131070).astype(np.float32) * width
        if t.name.endswith("norm"):
            out += np.float32(1)
        return out.reshape(r1 - r0, k)

    def tokenizer(self, vocab_size):
        return random_vocab(vocab_size, self.where)


def hf_shape(v, e, f, layers, heads, kv, ctx, theta, eps=1e-5, tied=False, **more):
    return {"vocab_size": v, "hidden_size": e, "intermediate_size": f, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "max_position_embeddings": ctx,
            "rope_theta": theta, "rms_norm_eps": eps, "tie_word_embeddings": tied, **more}


LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SHAPES = {
    "smollm2-135m": hf_shape(49152, 576, 1536, 30, 9, 3, 8192, 1e5, tied=True),
    "llama2-7b": hf_shape(32000, 4096, 11008, 32, 32, 32, 4096, 1e4),
    "llama3-8b-262k": hf_shape(128256, 4096, 14336, 32, 32, 8, 262144, 283461213.0),
    "llama3.1-8b": hf_shape(128256, 4096, 14336, 32, 32, 8, 131072, 5e5, rope_scaling=LLAMA3_ROPE),
    "llama3.1-70b": hf_shape(128256, 8192, 28672, 80, 64, 8, 131072, 5e5, rope_scaling=LLAMA3_ROPE),
}


# ---------------------------------------------------------------------------
# Putting it together

def row_blocks(shape):
    """(first row, end) of blocks of about BLOCK elements; a vector is one row"""
    n, k = (1, shape[0]) if len(shape) == 1 else shape
    step = max(1, BLOCK // k)
    return [(r, min(n, r + step)) for r in range(0, n, step)]


def weight_tensors(src, c, tensors, dtype):
    def blocks(t, kind):
        for r0, r1 in row_blocks(t.shape):
            x = src.rows(t, r0, r1)
            if len(t.shape) == 1 and dtype != DT_F32:
                x = from_bf16(encode(x, DT_BF16, t.name))
            yield encode(x, kind, t.name)
    for t in tensors:
        kind = dtype if len(t.shape) == 2 else DT_F32
        if t.name == "embed" and dtype == DT_Q8 and not c["tied"]:
            kind = DT_BF16
        yield t.name, kind, t.shape, lambda t=t, kind=kind: blocks(t, kind)


def open_source(o):
    if o.random is not None:
        return Random(o.random, o.shape)
    if os.path.isdir(o.source):
        return HfDir(o.source, o.vocab_only)
    with open(o.source, "rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise UserError(f"{o.source}: neither a directory nor a GGUF file")
    return Gguf(o.source, o.vocab_only)


def model_config(src, o):
    """(parameters as the file will say, parameters as the source says)"""
    full = src.config()
    check_config(full, src.where)
    c = dict(full)
    if o.layers is not None:
        if not 0 < o.layers <= c["n_layers"]:
            raise UserError(f"--layers {o.layers}: the model has {c['n_layers']}")
        c["n_layers"] = o.layers
    if o.rope_theta is not None:
        c["rope_theta"] = o.rope_theta
    if o.max_ctx is not None:
        c["max_ctx"] = o.max_ctx
    return c, full


def export(o):
    src = open_source(o)
    c, full = model_config(src, o)
    params, tensors = {}, []
    if not o.vocab_only:
        if o.random is None:
            check_tensors(src, full, src.path)
        dtype = DTYPES[o.dtype or ("f32" if src.float_matrices() else "bf16")]
        params = {"arch": src.family.arch, **{k: c[k] for k in PARAM_ORDER}, "dtype": dtype}
        tensors = list(weight_tensors(src, c, src.family.tensors(c), dtype))
    tok_params, tables = vocab_records(src.tokenizer(c["vocab_size"]), src.where)
    tensors += [(name, DT_U8 if x.dtype == np.uint8 else DT_I32, x.shape, lambda x=x: [x])
                for name, x in tables]
    write_file(o.out, {**params, **tok_params}, tensors)


def parse(argv):
    p = argparse.ArgumentParser(
        prog="export.py", epilog="shapes: " + ", ".join(SHAPES),
        description="Make a model file (.bin) of a Hugging Face directory, a GGUF file or a seed.",
        usage="export.py SOURCE OUT.bin [options]\n"
              "       export.py --random SEED --shape NAME|CONFIG.json OUT.bin [options]")

    def positive(kind):
        def read(s):
            v = kind(s)
            if not 0 < v < 1 << 31:
                raise ValueError
            return v
        read.__name__ = "positive number"
        return read

    def seed(s):
        v = int(s)
        if not 0 <= v < 1 << 64:
            raise ValueError
        return v
    p.add_argument("paths", nargs="+", metavar="SOURCE OUT.bin", help="what to read (not with "
                   "--random) and the file to write")
    p.add_argument("--dtype", choices=list(DTYPES), help="type of the matrices (default: the "
                   "source's; bf16 for fp16, quantised and random)")
    p.add_argument("--vocab-only", action="store_true", help="only the tokenizer")
    p.add_argument("--layers", type=positive(int), metavar="N", help="only the first N layers")
    p.add_argument("--rope-theta", type=positive(float), metavar="X", help="another rotary base")
    p.add_argument("--max-ctx", type=positive(int), metavar="N", help="another longest context")
    p.add_argument("--random", type=seed, metavar="SEED", help="weights from a seed")
    p.add_argument("--shape", metavar="NAME", help="with --random: one of the shapes below, or a "
                   "file with the keys of a Hugging Face config.json")
    o = p.parse_args(argv)
    if (o.random is None) != (o.shape is None):
        p.error("--random and --shape go together")
    if o.random is None and len(o.paths) != 2:
        p.error("SOURCE and OUT.bin are wanted")
    if o.random is not None and len(o.paths) != 1:
        p.error("only OUT.bin is wanted with --random")
    o.source, o.out = o.paths[0], o.paths[-1]
    return o


def main(argv):
    global np, xxh64
    o = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that no .tmp stays behind
    try:
        np, xxh64 = need("numpy"), need("xxhash").xxh64
        export(o)
    except UserError as e:
        print(f"export.py: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"export.py: {e.filename or o.out}: {e.strerror or e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
