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
    matrices (n, k)     1 / sqrt(k)         norms, d             1 + z / 10
    wq                  2 / sqrt(k)         bq, bk, bv           z / 10
    wo, w2, wout        1 / sqrt(2 L k)     conv_bias            z / 10
    conv (K, n)         1 / sqrt(K)         dt_bias, a           -3 + z, -4 + z
in fp32: fl(fl(sum - 131070) * fl(width / sqrt((2^32 - 1) / 3))), the others fl(that + the number in
front). wq is doubled so that attention looks at some keys more than at others; |z| < 3.47 keeps a
below zero. The vocabulary is the 256 bytes, <bos>,
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

from export_models import (GGUF, HF, PLACEHOLDERS, SHAPES, Tensor, check_config, encoder_ids,
                           family_of, warn)
from export_tok import (UserError, bpe_vocab, gguf_vocab, hf_vocab, need, random_vocab, read_json,
                        vocab_records)

DT_F32, DT_BF16, DT_Q8, DT_U8, DT_I32 = range(5)
DTYPES = {"f32": DT_F32, "bf16": DT_BF16, "q8": DT_Q8}
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
# Sources. Each has: family, config(), tensors, rows(tensor, r0, r1) -> f32 (r1 - r0, k) with a
# vector as one row, float_matrices: its matrices are f32, tokenizer(vocab_size) -> Vocab. A
# checkpoint has raw(name, r0, r1) -> the rows of a source tensor seen as (rows, last width).

def part_rows(src, c, t, r0, r1):
    """rows [r0, r1) of our tensor t of a checkpoint"""
    p = src.family.part(c, t, src.tensors)
    if p.convert:
        return np.ascontiguousarray(p.convert(src.raw(p.name, 0, math.prod(p.shape[:-1]))))[r0:r1]
    if len(t.shape) == 1:
        x = src.raw(p.name, 0, 1)[:, p.first:p.first + t.shape[0]]
        return x if p.order is None else x[:, p.order]
    if p.order is None:
        return src.raw(p.name, p.first + r0, p.first + r1)
    at = np.array(p.order[r0:r1])
    low = int(at.min())
    return src.raw(p.name, p.first + low, p.first + int(at.max()) + 1)[at - low]


def check_tensors(src, c, where):
    """Every tensor the family has is there with its shape, and nothing else is."""
    expected = set()
    for t in src.family.tensors(c):
        p = src.family.part(c, t, src.tensors)
        if p.name not in src.tensors:
            raise UserError(f"{where}: tensor {p.name} is missing")
        have = src.shape(p.name)
        if have != p.shape:
            raise UserError(f"{where}: tensor {p.name} has shape {have}, the configuration says "
                            f"{p.shape}")
        src.check_dtype(p.name)
        expected.add(p.name)
    for name in src.tensors:
        if name not in expected and not src.ignored(name, c):
            raise UserError(f"{where}: tensor {name} is unexpected; it would be lost, so "
                            "nothing was written")


class HfDir:
    """config.json and safetensors, one file or shards: u64 length, JSON header, data (row-major)"""
    kind = "hf"
    DTYPES = {"F32": 4, "F16": 2, "BF16": 2}

    def __init__(self, path, vocab_only):
        self.path = path
        self.where = os.path.join(path, "config.json")
        if not os.path.exists(self.where) and os.path.exists(os.path.join(path, "params.json")):
            self.where = os.path.join(path, "params.json")      # as Mistral ships Codestral
        self.json = read_json(self.where)
        self.family = family_of(HF, self.json.get("model_type"), self.where)
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
        if self.where.endswith("params.json"):
            single = os.path.join(self.path, "consolidated.safetensors")
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
        self.params = self.family.read(self.json, self.where)
        return dict(self.params)

    def shape(self, name):
        return self.tensors[name][2]

    def check_dtype(self, name):
        if self.tensors[name][1] not in self.DTYPES:
            raise UserError(f"{self.path}: tensor {name} is {self.tensors[name][1]}; BF16, F16 and "
                            "F32 are read")

    def ignored(self, name, c):
        """buffers and a pooler that nothing uses; a head that repeats the tied embedding"""
        if self.family.arch == "encoder":
            return name.endswith(("embeddings.position_ids", ".pooler.dense.weight",
                                  ".pooler.dense.bias"))
        if name.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")):
            return True
        head = Tensor("lm_head", (c["vocab_size"], c["dim"]))
        part = self.family.part(c, head, self.tensors)
        if not c["tied"] or name != part.name or self.shape(name) != part.shape:
            return False
        self.check_dtype(name)
        embed = Tensor("embed", head.shape)
        return all(np.array_equal(self.rows(head, a, b), self.rows(embed, a, b))
                   for a, b in row_blocks(head.shape))

    def float_matrices(self):
        return all(d == "F32" for _, d, shape, _ in self.tensors.values() if len(shape) == 2)

    def raw(self, name, r0, r1):
        path, dtype, shape, offset = self.tensors[name]
        k, size = shape[-1], self.DTYPES[dtype]
        with open(path, "rb") as f:
            f.seek(offset + r0 * k * size)
            data = np.frombuffer(f.read((r1 - r0) * k * size), np.uint8)
        if data.size != (r1 - r0) * k * size:
            raise UserError(f"{path}: the file ends inside tensor {name}")
        if dtype == "BF16":
            x = from_bf16(data.view(np.uint16))
        else:
            x = data.view(np.float16 if dtype == "F16" else np.float32).astype(np.float32)
        return x.reshape(r1 - r0, k)

    def rows(self, t, r0, r1):
        return part_rows(self, self.params, t, r0, r1)

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
        self.family = family_of(GGUF, self.arch, path)

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
        self.params = self.family.read(self)
        return dict(self.params)

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

    def raw(self, name, r0, r1):
        g = self.tensors[name]
        data = g.data.reshape(1, -1) if len(g.shape) == 1 else g.data
        x = self.gguf.dequantize(np.ascontiguousarray(data[r0:r1]), g.tensor_type)
        return np.ascontiguousarray(x, np.float32).reshape(r1 - r0, -1)

    def vector(self, name, n):
        if self.shape(name) != (n,):
            raise UserError(f"{self.path}: tensor {name} has shape {self.shape(name)}, the "
                            f"configuration says {(n,)}")
        return self.raw(name, 0, 1)[0].tolist()

    def rows(self, t, r0, r1):
        return part_rows(self, self.params, t, r0, r1)

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
        self.family = family_of(HF, self.json.get("model_type", "llama"), self.where)

    def config(self):
        self.full = self.family.read(self.json, self.where)
        return dict(self.full)

    def rule(self, t):
        """(mean, width) of a tensor: see the top"""
        kind, k = t.name.split(".")[-1], t.shape[-1]
        if kind in ("a", "dt_bias"):
            return (-4 if kind == "a" else -3), 1
        if kind.endswith("norm") or kind in ("d", "norm1", "norm2"):
            return 1, 0.1
        if len(t.shape) == 1:
            return 0, 0.1
        if kind == "conv":
            return 0, 1 / math.sqrt(t.shape[0])
        if kind in ("wo", "w2", "wout"):
            return 0, 1 / math.sqrt(k) / math.sqrt(2 * self.full["n_layers"])
        return 0, (2 if kind == "wq" else 1) / math.sqrt(k)

    def float_matrices(self):
        return False

    def rows(self, t, r0, r1):
        k, key = t.shape[-1], mix64(self.seed ^ xxh64(t.name.encode()).intdigest())
        mean, width = self.rule(t)
        width = np.float32(width / math.sqrt((2 ** 32 - 1) / 3))
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
        if mean:
            out += np.float32(mean)
        return out.reshape(r1 - r0, k)

    def tokenizer(self, vocab_size):
        return random_vocab(vocab_size, self.where)


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
            if t.kind == "vector" and dtype != DT_F32:
                x = from_bf16(encode(x, DT_BF16, t.name))
            yield encode(x, kind, t.name)
    for t in tensors:
        kind = dtype if t.kind == "matrix" else DT_F32
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
        if "rope_theta" not in c:
            raise UserError(f"--rope-theta: {src.where}: this model has no rotary part")
        c["rope_theta"] = o.rope_theta
    elif c.get("rope_theta") == 1e4 and c["rope_dim"] < c["head_dim"] and c["max_ctx"] > 32768:
        raise UserError(f"{src.where}: rope_theta 10000 for a GLM of {c['max_ctx']} positions: a "
                        "conversion of it has lost rope_ratio; give --rope-theta 1e8 for "
                        "glm-4-9b-chat-1m, 5e6 for glm-4-9b-chat")
    if o.max_ctx is not None:
        c["max_ctx"] = o.max_ctx
    return c, full


def weigher(o):
    """the tokenizer that weighs words, as a file within the file: one tensor of bytes"""
    made = o.out + ".weigher"
    try:
        vocab = bpe_vocab(o.weights_bpe) if o.weights_bpe else random_vocab(512, o.shape)
        tok_params, tables = vocab_records(vocab, o.weights_bpe or o.shape)
        write_file(made, tok_params, [(name, DT_U8 if x.dtype == np.uint8 else DT_I32, x.shape,
                                       lambda x=x: [x]) for name, x in tables])
        data = np.fromfile(made, np.uint8)
    finally:
        if os.path.exists(made):
            os.remove(made)
    return "weigher", DT_U8, data.shape, lambda: [data]


def export(o):
    src = open_source(o)
    c, full = model_config(src, o)
    params, tensors = {}, []
    if not o.vocab_only:
        if o.random is None:
            check_tensors(src, full, src.path)
        dtype = DTYPES[o.dtype or ("f32" if src.float_matrices() else "bf16")]
        params = {"arch": src.family.arch, **c, "dtype": dtype}
        tensors = list(weight_tensors(src, c, src.family.tensors(c), dtype))
    vocab = src.tokenizer(c["vocab_size"])
    if src.family.arch == "encoder" and params:
        if o.random is None:
            params.update(encoder_ids(c, vocab.names, src.where))
        else:
            params.update(encoder_ids(c, ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]"], src.where),
                          placeholder=c["vocab_size"] - PLACEHOLDERS)
        if o.weights_bpe or o.random is not None:
            tensors.append(weigher(o))
        else:
            warn("no --weights-bpe: the file holds probabilities but cannot compress")
    elif o.weights_bpe:
        raise UserError(f"--weights-bpe: {src.where} is no encoder of LLMLingua-2")
    tok_params, tables = vocab_records(vocab, src.where)
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
    p.add_argument("--weights-bpe", metavar="FILE", help="of an LLMLingua-2 encoder: the tokenizer "
                   "that weighs words, cl100k_base.tiktoken or a directory with tokenizer.json")
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
