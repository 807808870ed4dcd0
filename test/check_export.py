#!/usr/bin/env python3
"""Tests of export.py on tiny checkpoints written here: what goes in comes out, and what is wrong is
named, with nothing written."""
import contextlib
import io
import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import gguf
import numpy as np
import safetensors.numpy
import xxhash

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import export                                       # noqa: E402
import export_tok                                   # noqa: E402
from binreader import BF16, F32, Q8, read_bin       # noqa: E402

CONFIG = {"model_type": "llama", "vocab_size": 272, "hidden_size": 64, "intermediate_size": 80,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
          "tie_word_embeddings": False, "bos_token_id": 262, "eos_token_id": 263,
          "hidden_act": "silu"}

CHATML = ("{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
          "<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
          "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
          "{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA3 = """{% for m in messages %}
    {% set text = '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' %}
    {% if loop.index0 == 0 %}
        {% set text = bos_token + text %}
    {% endif %}
    {{- text -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\n\n' -}}
{% endif %}
"""
LLAMA31 = """{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" }}
{{- system + "<|eot|>" }}
{%- for m in messages %}
    {%- if m.role not in ['user', 'assistant'] %}
        {{- raise_exception("unknown role " + m.role) }}
    {%- endif %}
    {{- '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\n\n' }}
{%- endif %}
"""
LLAMA2 = ("{% for m in messages %}{% if m.role == 'user' %}"
          "{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}{% else %}"
          "{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA2_SYSTEM = """{% for m in messages %}
    {% set text = '<<SYS>>\nBe brief.\n<</SYS>>\n\n' + m.content if loop.first else m.content %}
    {% if m.role == 'user' %}
        {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' -}}
    {% else %}
        {{- ' ' + text.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}"""
QWEN25 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are a model.<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
GLM4 = ("[gMASK]<sop>{% for m in messages %}{% if m['tools'] is defined %}<|system|>tools{% endif %}"
        "{% if m['content'] %}<|{{ m['role'] }}|>{{ m['metadata'] }}\n{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
MISTRAL = """{{- bos_token }}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + m.content + '[/INST]' }}
    {%- else %}
        {{- ' ' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
JAMBA = ("{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
         "{% else %}{% set s = '' %}{% endif %}<|bom|><|system|> {{ s }}<|eom|>"
         "{% for m in messages %}{% if m.role != 'system' %}<|bom|><|{{ m.role }}|> "
         "{{ m.content }}<|eom|>{% endif %}{% endfor %}"
         "{% if add_generation_prompt %}<|bom|><|assistant|>{% endif %}")

SPECIALS = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]      # ids 262 to 265
WORDS = ["he", "ll", "hell", "\u0120w", "\u00e9\u00a9",
    "\u010a\u010a"]      # ids 256 to 261, byte alphabet
MERGES = ["h e", "l l", "he ll", "\u0120 w", "\u00e9 \u00a9", "\u010a \u010a"]


def alphabet():
    """byte -> character, written down independently of export.py"""
    out, extra = [], 256
    for b in range(256):
        if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255:
            out.append(chr(b))
        else:
            out.append(chr(extra))
            extra += 1
    return out


ALPHABET_TOKENS = (alphabet() + WORDS + SPECIALS + [f"<unused{i}>" for i in range(6)],
                   [1] * 262 + [3, 3, 3, 3] + [5] * 6, MERGES)       # tokens, types, merges of GGUF


def tokenizer_json():
    chars = alphabet()
    return {"added_tokens": [{"id": 262 + i, "content": s, "special": i != 3, "lstrip": i == 0,
                              "rstrip": i == 1, "single_word": i == 2, "normalized": i == 3}
                             for i, s in enumerate(SPECIALS)],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]},
            "post_processor": None,
            "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(chars + WORDS)},
                      "merges": MERGES}}


def unpermute_inverse(w, heads):
    """half-split rows -> GGUF's interleaved rows, as its converter writes them"""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def weights(config, seed=1):
    rng = np.random.default_rng(seed)
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[k] * config["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
    w = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    if not config["tie_word_embeddings"]:
        w["lm_head.weight"] = (V, E)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w |= {p + "input_layernorm.weight": (E,), p + "post_attention_layernorm.weight": (E,),
              p + "self_attn.q_proj.weight": (q, E), p + "self_attn.k_proj.weight": (kv, E),
              p + "self_attn.v_proj.weight": (kv, E), p + "self_attn.o_proj.weight": (E, q),
              p + "mlp.gate_proj.weight": (F, E), p + "mlp.up_proj.weight": (F, E),
              p + "mlp.down_proj.weight": (E, F)}
        if config["model_type"] == "qwen2":
            w |= {p + f"self_attn.{x}_proj.bias": (q if x == "q" else kv,) for x in "qkv"}
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in w.items()}


OURS = {"input_layernorm.weight": "attn_norm", "post_attention_layernorm.weight": "ffn_norm",
        "self_attn.q_proj.weight": "wq", "self_attn.k_proj.weight": "wk", "self_attn.v_proj.weight": "wv",
        "self_attn.o_proj.weight": "wo", "self_attn.q_proj.bias": "bq", "self_attn.k_proj.bias": "bk",
        "self_attn.v_proj.bias": "bv", "mlp.gate_proj.weight": "w1", "mlp.up_proj.weight": "w3",
        "mlp.down_proj.weight": "w2"}


def our_name(hf):
    if hf.startswith("model.layers."):
        _, _, i, kind = hf.split(".", 3)
        return f"layers.{i}.{OURS[kind]}"
    return {"model.embed_tokens.weight": "embed", "model.norm.weight": "final_norm",
            "lm_head.weight": "lm_head"}[hf]


GGUF = {"attn_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight", "wq": "attn_q.weight",
        "wk": "attn_k.weight", "wv": "attn_v.weight", "wo": "attn_output.weight",
        "bq": "attn_q.bias", "bk": "attn_k.bias", "bv": "attn_v.bias", "w1": "ffn_gate.weight",
        "w3": "ffn_up.weight", "w2": "ffn_down.weight", "embed": "token_embd.weight",
        "final_norm": "output_norm.weight", "lm_head": "output.weight"}


def gguf_name(hf):
    ours = our_name(hf).split(".")
    return GGUF[ours[-1]] if len(ours) == 1 else f"blk.{ours[1]}.{GGUF[ours[2]]}"


def bf16(x):
    """nearest even by way of exact arithmetic: a double rounds the 8-bit mantissa"""
    m, e = np.frexp(x.astype(np.float64))
    y = np.ldexp(np.rint(m * 256), e - 8).astype(np.float32)
    return np.where(np.abs(x) < 2.0 ** -126, np.float32(0), y)


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="scb_export.")
        self.addCleanup(shutil.rmtree, self.dir)
        self.out = os.path.join(self.dir, "out.bin")
        self.config, self.tokenizer = dict(CONFIG), tokenizer_json()
        self.settings = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}
        self.weights = None

    def path(self, name):
        return os.path.join(self.dir, name)

    def json(self, name, value):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as f:
            json.dump(value, f)

    def write_hf(self, name="hf", shards=1):
        """the checkpoint as it stands in self -> its directory"""
        if self.weights is None:
            self.weights = weights(self.config)
        self.json(f"{name}/config.json", self.config)
        self.json(f"{name}/tokenizer.json", self.tokenizer)
        self.json(f"{name}/tokenizer_config.json", self.settings)
        names = sorted(self.weights)
        if shards == 1:
            safetensors.numpy.save_file(self.weights, self.path(f"{name}/model.safetensors"))
            return self.path(name)
        place = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = {k: self.weights[k] for k in names[i::shards]}
            safetensors.numpy.save_file(part, self.path(f"{name}/{file}"))
            place |= dict.fromkeys(part, file)
        self.json(f"{name}/model.safetensors.index.json", {"metadata": {}, "weight_map": place})
        return self.path(name)

    def run_export(self, *args):
        """-> exit status, what it said"""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                rc = export.main([str(a) for a in args])
            except SystemExit as e:
                rc = e.code
        return rc, said.getvalue()

    def good(self, *args, warns=None):
        rc, said = self.run_export(*args)
        self.assertEqual(rc, 0, said)
        if warns is None:
            self.assertEqual(said, "")
        else:
            self.assertRegex(said, warns)
        return read_bin(args[1] if "--random" not in args else self.out)

    def bad(self, pattern, *args, rc=1):
        """fails in one sentence that matches; the output stays as it was"""
        with open(self.out, "w") as f:
            f.write("old")
        got, said = self.run_export(*args)
        self.assertEqual(got, rc, said)
        self.assertRegex(said, pattern)
        if rc == 1:
            self.assertEqual(said.count("\n"), 1, said)
        with open(self.out) as f:
            self.assertEqual(f.read(), "old")
        self.assertFalse(os.path.exists(self.out + ".tmp"))
        os.remove(self.out)

    def same(self, tensors, weights, convert=lambda x: x, vectors=lambda x: x):
        for hf, x in weights.items():
            want = (vectors if x.ndim == 1 else convert)(x)
            np.testing.assert_array_equal(tensors[our_name(hf)], want, hf)


class HuggingFace(Case):
    def test_f32(self):
        params, tensors, dtypes = self.good(self.write_hf(), self.out)
        self.same(tensors, self.weights)
        want = {"arch": "llama", "vocab_size": 272, "dim": 64, "hidden_dim": 80, "n_layers": 2, "n_heads": 4,
                "n_kv_heads": 2, "head_dim": 32, "max_ctx": 2048, "norm_eps": 1e-5, "rope_theta": 5e5,
                "rope_dim": 32, "rope_scaling": 0, "rope_factor": 1.0, "rope_low_freq_factor": 0.0,
                "rope_high_freq_factor": 0.0, "rope_orig_ctx": 0, "qkv_bias": 0, "tied": 0, "dtype": F32}
        self.assertEqual({k: params[k] for k in want}, want)
        weights_there = {k for k in tensors if not k.startswith(("tok.", "chat."))}
        self.assertEqual(weights_there, {our_name(k) for k in self.weights})
        self.assertEqual(set(dtypes[k] for k in weights_there), {F32})

    def test_shards_and_repeat(self):
        files = []
        for name, shards in (("one", 1), ("again", 1), ("three", 3)):
            self.good(self.write_hf(name, shards), self.path(name + ".bin"))
            with open(self.path(name + ".bin"), "rb") as f:
                files.append(f.read())
        self.assertTrue(files[0] == files[1] == files[2])

    def test_bf16(self):
        self.weights = weights(self.config)
        edge = np.array([1 + 2 ** -8, 1 + 3 * 2 ** -8, -1 - 2 ** -8, 1e-39, -1e-40, 3e38, 0.0, 2.0 ** -126],
                        np.float32)
        self.weights["model.norm.weight"][:8] = edge
        self.weights["lm_head.weight"][7, 3:11] = edge
        params, tensors, dtypes = self.good(self.write_hf(), self.out, "--dtype", "bf16")
        self.same(tensors, self.weights, bf16, bf16)
        self.assertEqual((params["dtype"], dtypes["layers.1.w2"],
                         dtypes["final_norm"]), (BF16, BF16, F32))
        self.assertEqual(tensors["final_norm"][:2].tolist(), [1.0, 1 + 2 ** -6])
        self.assertEqual(tensors["final_norm"][3:5].tolist(), [0.0, 0.0])

    def test_half_and_bf16_sources(self):
        """both default to bf16; a bf16 checkpoint passes unchanged"""
        w = self.weights = weights(self.config)
        self.weights = {k: v.astype(np.float16) for k, v in w.items()}
        params, tensors, _ = self.good(self.write_hf(), self.out)
        self.assertEqual(params["dtype"], BF16)
        half = lambda x: bf16(x.astype(np.float32))
        self.same(tensors, self.weights, half, half)
        rounded = {k: bf16(v) for k, v in w.items()}
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for k, v in rounded.items():
            raw = (v.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            header[k] = {"dtype": "BF16", "shape": v.shape,
                "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        head = json.dumps(header).encode() + b"   "
        with open(self.path("hf/model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(head)) + head + data)
        for dtype in ((), ("--dtype", "f32")):
            params, tensors, _ = self.good(self.path("hf"), self.out, *dtype)
            self.same(tensors, rounded)

    def test_q8(self):
        for tied in (False, True):
            self.config |= {"tie_word_embeddings": tied,
                "hidden_size": 70}     # 70 = 2 groups and a tail
            w = self.weights = weights(self.config)
            w["model.layers.0.mlp.up_proj.weight"][3] = 0
            w["model.layers.0.mlp.up_proj.weight"][4, 32:64] = 1e-9     # the scale is 0 in fp16
            params, tensors, dtypes = self.good(self.write_hf(), self.out, "--dtype", "q8")
            self.assertEqual((params["dtype"], params["tied"],
                             "lm_head" in tensors), (Q8, int(tied), not tied))
            self.assertEqual(dtypes["embed"], Q8 if tied else BF16)
            for hf, x in w.items():
                got = tensors[our_name(hf)]
                if x.ndim == 1 or dtypes[our_name(hf)] == BF16:
                    np.testing.assert_array_equal(got, bf16(x), hf)
                    continue
                for k in range(0, x.shape[1], 32):
                    g = x[:, k:k + 32]
                    s = np.float16(np.abs(g).max(axis=1) / np.float32(127)
                                   ).astype(np.float32)[:, None]
                    q = np.rint(g / np.where(s == 0, 1, s)) * (s != 0)
                    np.testing.assert_array_equal(got[:, k:k + 32], s * np.clip(q, -127, 127), hf)

    def test_qwen2_bias(self):
        self.config["model_type"] = "qwen2"
        params, tensors, dtypes = self.good(self.write_hf(), self.out, "--dtype", "bf16")
        self.assertEqual((params["arch"], params["qkv_bias"],
                         dtypes["layers.0.bq"]), ("llama", 1, F32))
        self.same(tensors, self.weights, bf16, bf16)

    def test_tied_head(self):
        self.config["tie_word_embeddings"] = True
        w = self.weights = weights(self.config)
        w["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
        w["lm_head.weight"] = w["model.embed_tokens.weight"].copy()
        params, tensors, _ = self.good(self.write_hf(), self.out)
        self.assertEqual((params["tied"], "lm_head" in tensors), (1, False))
        w["lm_head.weight"][271, 63] += 1
        self.bad("tensor lm_head.weight is unexpected", self.write_hf(), self.out)

    def test_options(self):
        src = self.write_hf()
        params, tensors, _ = self.good(src, self.out, "--layers", 1,
                                       "--rope-theta", 123.5, "--max-ctx", 99)
        self.assertEqual((params["n_layers"], params["rope_theta"],
                         params["max_ctx"]), (1, 123.5, 99))
        self.assertFalse([k for k in tensors if k.startswith("layers.1.")])
        self.same(tensors, {k: v for k, v in self.weights.items() if "layers.1." not in k})
        self.bad("--layers 3: the model has 2", src, self.out, "--layers", 3)

    def test_vocab_only(self):
        src = self.write_hf()
        os.remove(os.path.join(src, "model.safetensors"))
        params, tensors, _ = self.good(src, self.out, "--vocab-only")
        self.assertTrue(all(k.startswith(("tok.", "chat.")) for k in tensors))
        self.assertEqual(set(params), {"tok_kind", "tok_nfc", "tok_digits", "tok_ignore_merges", "tok_add_bos",
                                       "bos_id", "chat_present", "chat_trim"})
        self.bad("no model.safetensors", src, self.out)

    def test_rope(self):
        llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 512}
        for scaling, want in (
                (None, (0, 1.0, 0, 0.0, 0.0)),
                ({"type": "linear", "factor": 2}, (1, 2.0, 0, 0.0, 0.0)),
                ({"rope_type": "llama3", **llama3}, (2, 8.0, 512, 1.0, 4.0)),
                ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
                 (3, 4.0, 512, 0.0, 0.0)),
                ({"type": "dynamic", "factor": 2.0}, (4, 2.0, 2048, 0.0, 0.0))):
            for newer in (False, True):
                self.config.pop("rope_scaling", None)
                self.config.pop("rope_parameters", None)
                if newer:
                    self.config.pop("rope_theta", None)
                    self.config["rope_parameters"] = {
                        "rope_theta": 77.0, **(scaling or {"rope_type": "default"})}
                else:
                    self.config |= {"rope_scaling": scaling, "rope_theta": 77.0}
                p, _, _ = self.good(self.write_hf(), self.out)
                self.assertEqual(p["rope_theta"], 77.0)
                self.assertEqual((p["rope_scaling"], p["rope_factor"], p["rope_orig_ctx"], p["rope_low_freq_factor"],
                                  p["rope_high_freq_factor"]), want)
        for scaling, pattern in (({"type": "longrope"}, "'longrope' is not supported"),
                                 ({"type": "linear"}, "'factor' is missing"),
                                 ({"type": "yarn", "factor": 2, "mscale": 3}, "'mscale' = 3 is not supported")):
            self.config |= {"rope_scaling": scaling, "rope_theta": 77.0}
            self.config.pop("rope_parameters", None)
            self.bad(pattern, self.write_hf(), self.out)


class Refused(Case):
    def test_tensors(self):
        good = weights(self.config)
        up, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
        nan = good[up].copy()
        nan[5, 5] = np.nan
        for change, pattern in (
                ({up: None}, f"tensor {up} is missing"),
                ({up: good[up][:, :32].copy()}, rf"tensor {up} has shape \(80, 32\).*\(80, 64\)"),
                ({norm: good[norm][:, None].copy()}, rf"tensor {norm} has shape"),
                ({up: good[up].astype(np.int32)}, f"tensor {up} is I32"),
                ({up: nan}, "layers.1.w3 holds values that are not finite"),
                ({"model.layers.2.mlp.up_proj.weight": good[up]},
                 "layers.2.mlp.up_proj.weight is unexpected"),
                ({"model.layers.0.self_attn.q_proj.bias": good[norm]}, "q_proj.bias is unexpected")):
            self.weights = {k: v for k, v in {**good, **change}.items() if v is not None}
            self.bad(pattern, self.write_hf(), self.out)
        self.weights = dict(good)
        self.weights[up] = good[up] * np.float32(1e8)
        self.bad("layers.1.w3 .*too large", self.write_hf(), self.out, "--dtype", "q8")

    def test_config(self):
        for change, pattern in (
                ({"model_type": "chimera"}, "'chimera' is not supported"),
                ({"model_type": None}, "'None' is not supported"),
                ({"rms_norm_eps": None}, "config.json: key 'rms_norm_eps' is missing"),
                ({"hidden_size": "64"}, "'hidden_size' is '64'"),
                ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
                ({"attention_bias": True}, "attention_bias"),
                ({"mlp_bias": True}, "mlp_bias"),
                ({"num_key_value_heads": 3}, "must divide"),
                ({"num_hidden_layers": 0}, "n_layers is 0"),
                ({"vocab_size": 260}, "266 tokens, the model has only 260"),
                ({"eos_token_id": 272}, "id 272 is outside")):
            self.config, self.weights = {**CONFIG, **change}, None
            with contextlib.suppress(TypeError, ValueError):
                self.weights = weights(self.config)
            self.weights = self.weights or weights(CONFIG)
            self.bad(pattern, self.write_hf(), self.out)

    def test_tokenizer(self):
        base = tokenizer_json()
        model = base["model"]
        split = {"type": "Split", "pattern": {"Regex": "x"},
            "behavior": "MergedWithNext", "invert": False}
        for change, pattern in (
                ({"model": {**model, "type": "Unigram"}}, "model.vocab is .*of another form"),
                ({"model": {**model, "byte_fallback": True}}, "model.byte_fallback"),
                ({"model": {**model, "merges": ["h q"]}}, r"merge 0 \('h', 'q'\) needs token 'hq'"),
                ({"model": {**model, "vocab": {**model["vocab"],
                 "\u2581a": 266}}}, "token 266 .* byte-level"),
                ({"normalizer": {"type": "Lowercase"}}, "normalizer .*Lowercase"),
                ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
                ({"pre_tokenizer": split}, "MergedWithNext")):
            self.tokenizer = {**base, **change}
            self.bad(pattern, self.write_hf(), self.out)
        os.remove(self.path("hf/tokenizer.json"))
        self.bad("there is no tokenizer", self.path("hf"), self.out)

    def test_files(self):
        src = self.write_hf()
        file = os.path.join(src, "model.safetensors")
        with open(file, "rb") as f:
            whole = f.read()
        for data, pattern in ((whole[:-1], "do not fit its shape .* or the file"), (whole + b"x", "1 bytes after"),
                              (whole[:200], "not a safetensors file"), (b"",
                               "not a safetensors file"),
                              (whole[:8] + b"!" + whole[9:], "header is damaged")):
            with open(file, "wb") as f:
                f.write(data)
            self.bad(pattern, src, self.out)
        self.bad("nowhere: No such file", self.path("nowhere"), self.out)
        self.bad("neither a directory nor a GGUF file", file, self.out)
        with open(os.path.join(src, "config.json"), "w") as f:
            f.write("{")
        self.bad("config.json: not valid JSON", src, self.out)
        with open(self.path("x.gguf"), "wb") as f:
            f.write(b"GGUF\x03\0\0\0")
        self.bad("x.gguf: not a readable GGUF file", self.path("x.gguf"), self.out)
        src = self.write_hf("shards", 3)
        os.remove(os.path.join(src, "model-00002-of-00003.safetensors"))
        self.bad("model-00002-of-00003.safetensors: No such file", src, self.out)
        rc, said = self.run_export("--random", 1, "--shape",
                                   "smollm2-135m", self.path("no/such/out.bin"))
        self.assertEqual(rc, 1)
        self.assertRegex(said, "no/such/out.bin.tmp: No such file")

    def test_usage(self):
        for args in ((), ("a",), ("a", "b", "c"), ("--random", 1, self.out), ("--shape", "x", "a", self.out),
                     ("--random", -1, "--shape", "x", self.out), ("a", self.out, "--dtype", "f64"),
                     ("a", self.out, "--layers", 0)):
            self.bad("usage: export.py SOURCE", *args, rc=2)
        self.bad("--shape huge: .*llama3.1-8b", "--random", 1, "--shape", "huge", self.out)

    def test_missing_package(self):
        for package in ("numpy", "xxhash"):
            code = (f"import sys; sys.modules['{package}'] = None; import export; "
                    "sys.exit(export.main(sys.argv[1:]))")
            r = subprocess.run([sys.executable, "-c", code, "--random", "1", "--shape", "smollm2-135m", self.out],
                               capture_output=True, text=True, cwd=os.path.dirname(export.__file__))
            self.assertEqual(r.returncode, 1)
            self.assertRegex(
                r.stderr, f"^export.py: the Python package {package} is missing: .*requirements.txt.*\n$")

    def test_full_disk(self):
        """a file that may not grow beyond 60 kB stands for a full disk"""
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))
        try:
            self.bad("out.bin: File too large", self.write_small(), self.out, "--dtype", "f32")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    def write_small(self):
        """a checkpoint below the limit whose f32 export is above it"""
        self.config |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
                        "num_key_value_heads": 1, "tie_word_embeddings": True}
        self.weights = {k: v.astype(np.float16) for k, v in weights(self.config).items()}
        return self.write_hf()

    def test_interrupted(self):
        p = subprocess.Popen([sys.executable, export.__file__, "--random",
                             "1", "--shape", "llama3.1-8b", self.out])
        for _ in range(600):
            if os.path.exists(self.out + ".tmp") or p.poll() is not None:
                break
            time.sleep(0.05)
        p.send_signal(signal.SIGTERM)
        self.assertEqual(p.wait(20), 143)
        self.assertEqual(os.listdir(self.dir), [])


class Tokenizer(Case):
    def vocab(self, *args, warns=None):
        return self.good(self.write_hf(), self.out, "--vocab-only", *args, warns=warns)

    def test_tables(self):
        params, t, _ = self.vocab()
        raw, at = t["tok.bytes"].tobytes(), t["tok.offsets"]
        texts = [raw[at[i]:at[i + 1]] for i in range(272)]
        self.assertEqual(len(at), 273)
        self.assertEqual(texts[:256], [bytes([b]) for b in range(256)])
        self.assertEqual(texts[256:262], [b"he", b"ll", b"hell", b" w", b"\xe9\xa9", b"\n\n"])
        self.assertEqual(texts[262:], [s.encode() for s in SPECIALS] + [b""] * 6)
        self.assertEqual(t["tok.types"].tolist(), [0] * 262 + [1, 1, 1, 2] + [3] * 6)
        self.assertEqual(t["tok.merges"].tolist(), [[104, 101, 256], [108, 108, 257], [256, 257, 258],
                                                    [32, 119, 259], [0xe9, 0xa9, 260], [10, 10, 261]])
        self.assertEqual(t["tok.added"].tolist(), [[262, 1], [263, 2], [264, 4], [265, 8]])
        self.assertEqual(t["tok.eos"].tolist(), [263])
        self.assertEqual({k: params[k] for k in ("tok_kind", "tok_nfc", "tok_digits", "tok_ignore_merges",
                                                 "tok_add_bos", "bos_id", "chat_present")},
                         {"tok_kind": 1, "tok_nfc": 0, "tok_digits": 1, "tok_ignore_merges": 0, "tok_add_bos": 0,
                          "bos_id": 262, "chat_present": 0})
        self.assertEqual(t["tok.regex"].tobytes().decode(), export_tok.GPT2)
        self.assertEqual(t["chat.prefix"].tolist(), [0])

    def test_variants(self):
        split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+|[^\s]"}, "behavior": "Isolated",
                 "invert": False}
        bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        self.tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytelevel]}
        self.tokenizer["normalizer"] = {"type": "NFC"}
        self.tokenizer["model"] |= {"ignore_merges": True, "merges": [m.split(" ") for m in MERGES]}
        template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
                                                             {"Sequence": {"id": "A", "type_id": 0}}]}
        self.tokenizer["post_processor"] = {"type": "Sequence", "processors": [bytelevel, template]}
        self.config["eos_token_id"] = [263, 265]
        self.json("hf/generation_config.json", {"eos_token_id": [264, 263]})
        params, t, _ = self.vocab()
        self.assertEqual(t["tok.regex"].tobytes().decode(), split["pattern"]["Regex"])
        self.assertEqual((params["tok_nfc"], params["tok_ignore_merges"], params["tok_add_bos"],
                          params["tok_digits"]), (1, 1, 1, 0))
        self.assertEqual(t["tok.eos"].tolist(), [264, 263, 265])
        self.assertEqual(len(t["tok.merges"]), 6)
        self.settings = {"bos_token": None, "eos_token": None}
        self.tokenizer["model"]["merges"] = []
        self.tokenizer["added_tokens"] = []
        self.config["eos_token_id"] = None
        self.json("hf/generation_config.json", {})
        params, t, _ = self.vocab()
        self.assertEqual((params["bos_id"], params["tok_add_bos"]), (-1, 0))
        self.assertEqual((t["tok.merges"].tolist(), t["tok.added"].tolist(), t["tok.eos"].tolist()),
                         ([[-1, -1, -1]], [[-1, -1]], [-1]))

    def test_chat_families(self):
        """the pieces of every family's kind of template: first_open where the first turn differs,
        answer_open where the model itself begins its answer with something"""
        inst = {"user_open": "<bos>[INST] ", "user_close": " [/INST]", "assistant_open": "",
                "answer_open": " ", "assistant_close": " <eos>"}
        chatml = {"prefix": "<|im_start|>system\nYou are a model.<|im_end|>\n",
                  "user_open": "<|im_start|>user\n", "user_close": "<|im_end|>\n",
                  "assistant_open": "<|im_start|>assistant\n", "assistant_close": "<|im_end|>\n"}
        system = "<bos>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"
        for template, trim, pieces in (
                (LLAMA2, 1, inst), (LLAMA2_SYSTEM, 1, {**inst, "first_open": system}),
                (QWEN25, 0, chatml),
                (GLM4, 0, {"prefix": "[gMASK]<sop>", "user_open": "<|user|>\n",
                           "assistant_open": "<|assistant|>", "answer_open": "\n"}),
                (MISTRAL, 0, {"prefix": "<bos>", "user_open": "[INST] ", "user_close": "[/INST]",
                              "answer_open": " ", "assistant_close": "<eos>"}),
                (JAMBA, 0, {"prefix": "<bos><|bom|><|system|> <|eom|>", "user_open": "<|bom|><|user|> ",
                            "user_close": "<|eom|>", "assistant_open": "<|bom|><|assistant|>",
                            "answer_open": " ", "assistant_close": "<|eom|>"})):
            self.settings["chat_template"] = template
            params, t, _ = self.vocab()
            got = {k[5:]: v.tobytes().decode().rstrip("\0") for k, v in t.items()
                   if k.startswith("chat.")}
            self.assertEqual({k: v for k, v in got.items() if v}, {k: v for k, v in pieces.items() if v})
            self.assertEqual((params["chat_present"], params["chat_trim"]), (1, trim))

    def chat(self, template, warns=None):
        self.settings["chat_template"] = template
        params, t, _ = self.vocab(warns=warns)
        pieces = [t[f"chat.{k}"].tobytes().decode() for k in
                  ("prefix", "user_open", "user_close", "assistant_open", "assistant_close")]
        return params["chat_present"], params["chat_trim"], pieces

    def test_chat(self):
        chatml = ["<|im_start|>system\nBe brief.<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n",
                  "<|im_start|>assistant\n", "<|im_end|>\n"]
        turn = ["<|head|>user<|/head|>\n\n", "<|eot|>", "<|head|>assistant<|/head|>\n\n", "<|eot|>"]
        date = ("<|head|>system<|/head|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
                "<|eot|>")
        self.assertEqual(self.chat(CHATML), (1, 0, chatml))
        self.assertEqual(self.chat(LLAMA3), (1, 1, ["<bos>", *turn]))
        self.assertEqual(self.chat(LLAMA31), (1, 1, ["<bos>" + date, *turn]))
        self.assertEqual(self.chat([{"name": "tool_use", "template": LLAMA3},
                                    {"name": "default", "template": CHATML}]), (1, 0, chatml))
        with open(self.path("hf/chat_template.jinja"), "w") as f:
            f.write(LLAMA3)
        self.assertEqual(self.chat(CHATML), (1, 1, ["<bos>", *turn]))

    def test_chat_refused(self):
        """templates of another form: a warning that names the file, and no chat"""
        last_only = ("{% for m in messages %}{% if loop.last %}<u>{{ m.content }}</u>{% else %}"
                     "{{ m.role }}: {{ m.content }};{% endif %}{% endfor %}")
        half_trim = ("{% for m in messages %}[{{ m.content | trim if m.role == 'user' else m.content }}]"
                     "{% endfor %}{% if add_generation_prompt %}{% endif %}")
        first_user = ("{% for m in messages %}{% if loop.index < 3 %}<{{ m.role }}>{% else %}"
                      "<{{ m.role }}{{ loop.index }}>{% endif %}{{ m.content }}{% endfor %}")
        for template, why in ((last_only, ""), (half_trim, ""), (first_user, ""),
                              ("{{ messages[0].content | upper }}",
                               "0 times"), ("{{ nothing.at.all }}", "fails"),
                              ("{% if %}", "fails"), ("{{ raise_exception('no users') }}", "no users")):
            there, trim, pieces = self.chat(
                template, f"warning: .*tokenizer_config.json: the chat template .*{why}")
            self.assertEqual((there, trim, pieces), (0, 0, ["\0"] * 5), template)


class Gguf(Case):
    def write_gguf(self, file="m.gguf", arch="llama", types=None, freqs=None, **change):
        """types: part of a tensor name -> quantisation; freqs: rope_freqs.weight; change: metadata,
        None leaves it out"""
        config = {**self.config, "model_type": arch}
        self.weights = weights(config)
        w = gguf.GGUFWriter(self.path(file), arch)
        meta = {f"{arch}.context_length": 2048, f"{arch}.embedding_length": 64, f"{arch}.block_count": 2,
                f"{arch}.feed_forward_length": config["intermediate_size"], f"{arch}.attention.head_count": 4,
                f"{arch}.attention.head_count_kv": 2, f"{arch}.attention.key_length": 32,
                f"{arch}.attention.value_length": 32, f"{arch}.rope.dimension_count": 32,
                f"{arch}.vocab_size": 272, f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
                f"{arch}.rope.freq_base": 5e5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.bos_token_id": 262, "tokenizer.ggml.eos_token_id": 263,
                "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": CHATML}
        for key, v in {**meta, **change}.items():
            add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string}
            if v is not None:
                add[type(v)](key, v)
        for add, table in zip((w.add_token_list, w.add_token_types, w.add_token_merges),
                              ALPHABET_TOKENS):
            add(table)
        stored = {}
        for hf, x in self.weights.items():
            name = gguf_name(hf)
            data = x
            for part, heads in (("attn_q.w", 4), ("attn_k.w", 2)):
                if part in name and arch == "llama":
                    data = unpermute_inverse(x, heads)
            kind = next((q for s, q in (types or {}).items() if s in name),
                        gguf.GGMLQuantizationType.F32)
            if x.ndim == 1:
                kind = gguf.GGMLQuantizationType.F32
            raw = gguf.quantize(data, kind)
            back = gguf.dequantize(raw, kind).reshape(x.shape)
            for part, heads in (("attn_q.w", 4), ("attn_k.w", 2)):
                if part in name and arch == "llama":
                    back = back.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
            stored[hf] = back
            w.add_tensor(name, raw, raw_dtype=kind)
        if freqs is not None:
            w.add_tensor("rope_freqs.weight", freqs)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return self.path(file), stored

    def test_f32_is_the_directory(self):
        """the same model as directory and as GGUF: same weights, q and k rows included"""
        path, _ = self.write_gguf()
        params, tensors, _ = self.good(path, self.out)
        self.same(tensors, self.weights)
        want, _, _ = self.good(self.write_hf(), self.path("hf.bin"))
        keys = [k for k in want if not k.startswith(("tok_", "chat_", "bos_", "norm_eps"))]
        self.assertEqual({k: params[k] for k in keys}, {k: want[k] for k in keys})
        self.assertAlmostEqual(params["norm_eps"], 1e-5, 10)
        self.assertEqual((params["dtype"], params["tok_digits"], params["tok_add_bos"], params["chat_present"],
                          params["bos_id"]), (F32, 1, 1, 1, 262))
        self.assertEqual(tensors["tok.eos"].tolist(), [263, 265]
                         )       # and the template's end of turn
        self.assertEqual(tensors["tok.types"].tolist(), [0] * 262 + [1] * 4 + [3] * 6)
        self.assertEqual(len(tensors["tok.bytes"]), 256 + 14 + sum(map(len, SPECIALS)))

    def test_quantised(self):
        q = gguf.GGMLQuantizationType
        self.config["intermediate_size"] = 96
        for types in ({"attn_": q.Q4_1, "ffn": q.Q8_0, "token_embd": q.Q8_0, "output.w": q.F16},
                      {"attn_q": q.Q4_0, "attn_k": q.Q5_1, "attn_v": q.Q5_0, "ffn": q.BF16}):
            path, stored = self.write_gguf(types=types)
            params, tensors, _ = self.good(path, self.out)
            self.assertEqual(params["dtype"], BF16)
            self.same(tensors, stored, bf16, bf16)
            params, tensors, _ = self.good(path, self.out, "--dtype", "f32")
            self.same(tensors, stored)

    def test_llama3_scaling(self):
        """GGUF's divisors of the 16 frequencies (theta 5e5): waves below 2048 are kept, above 8192
        divided by the factor"""
        for factor in (8.0, 32.0):
            wave = 2 * np.pi * 5e5 ** (np.arange(16) / 16)
            keep = np.clip((8192 / wave - 1) / 3, 0, 1)
            freqs = (1 / (keep + (1 - keep) / factor)).astype(np.float32)
            self.assertTrue(freqs[0] == 1 and freqs[15] == factor and len(set(freqs)) > 2)
            path, _ = self.write_gguf(freqs=freqs)
            p, _, _ = self.good(path, self.out)
            self.assertEqual((p["rope_scaling"], p["rope_factor"], p["rope_orig_ctx"],
                              p["rope_low_freq_factor"], p["rope_high_freq_factor"]),
                             (2, factor, 8192, 1.0, 4.0))
        path, _ = self.write_gguf(freqs=freqs * np.float32(1.01))
        self.bad("rope_freqs.weight holds a frequency scaling that is not", path, self.out)

    def test_qwen2_is_not_permuted(self):
        path, _ = self.write_gguf(arch="qwen2", **{"tokenizer.ggml.pre": "qwen2"})
        params, tensors, _ = self.good(path, self.out)
        self.same(tensors, self.weights)
        self.assertEqual((params["arch"], params["qkv_bias"], params["tok_nfc"]), ("llama", 1, 1))

    def test_refused(self):
        def bad(pattern, **change):
            path, _ = self.write_gguf(**change)
            self.bad(pattern, path, self.out)
        bad("'strange' is not known", **{"tokenizer.ggml.pre": "strange"})
        bad("'bert' is not supported", **{"tokenizer.ggml.model": "bert"})
        bad("'llama.block_count' is missing", **{"llama.block_count": None})
        bad("tensor blk.1.attn_norm.weight is unexpected", **{"llama.block_count": 1})
        bad("tensor blk.2.attn_norm.weight is missing", **{"llama.block_count": 3})
        bad("tensor token_embd.weight has shape", **{"llama.vocab_size": 280})
        w = gguf.GGUFWriter(self.path("other.gguf"), "falcon")
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()
        self.bad("'falcon' is not supported", self.path("other.gguf"), self.out)

    def test_vocab_only(self):
        path, _ = self.write_gguf()
        params, tensors, _ = self.good(path, self.out, "--vocab-only")
        self.assertEqual((params["chat_present"], len(
            tensors["tok.offsets"]), "embed" in tensors), (1, 273, False))


class RandomModels(Case):
    def shape(self, **change):
        self.json("shape.json", {**CONFIG, **change})
        return self.path("shape.json")

    def test_rule(self):
        """the rule at the top of export.py, in Python's own integers"""
        mask = (1 << 64) - 1

        def mix64(x):
            x = (x + 0x9e3779b97f4a7c15) & mask
            x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & mask
            x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & mask
            return x ^ (x >> 31)

        def element(name, i, width):
            u = mix64((mix64(77 ^ xxhash.xxh64(name.encode()).intdigest()) + i) & mask)
            z = sum((u >> s) & 0xffff for s in (0, 16, 32, 48)) - 131070
            return np.float32(z) * np.float32(width / ((2 ** 32 - 1) / 3) ** 0.5)
        _, t, _ = self.good("--random", 77, "--shape",
                            self.shape(model_type="qwen2"), "--dtype", "f32", self.out)
        E, F, q, L = 64, 80, 128, 2
        widths = {"embed": E ** -0.5, "lm_head": E ** -0.5, "layers.0.wq": 2 * E ** -0.5, "layers.1.wk": E ** -0.5,
                  "layers.1.wv": E ** -0.5, "layers.1.w1": E ** -0.5, "layers.1.w3": E ** -0.5,
                  "layers.0.wo": (2 * L * q) ** -0.5, "layers.0.w2": (2 * L * F) ** -0.5, "layers.1.bk": 0.1,
                  "layers.1.attn_norm": 0.1, "layers.0.ffn_norm": 0.1, "final_norm": 0.1}
        for name, width in widths.items():
            flat = t[name].reshape(-1)
            for i in (0, 1, flat.size // 2, flat.size - 1):
                z = element(name, i, width)
                np.testing.assert_allclose(flat[i], z + np.float32(1)
                                           if name.endswith("norm") else z, rtol=3e-7)
        self.assertAlmostEqual(float(t["layers.0.wq"].std() * E ** 0.5), 2, delta=0.05)

    def test_repeat(self):
        shape, out = self.shape(), []
        for args in (("--random", 1), ("--random", 1), ("--random", 2), ("--random", (1 << 64) - 1)):
            self.good(*args, "--shape", shape, self.out)
            with open(self.out, "rb") as f:
                out.append(f.read())
        self.assertEqual(out[0], out[1])
        self.assertEqual(len(set(out)), 3)
        # dtypes hold the same weights, and fewer layers the same first layers
        _, f32, _ = self.good("--random", 1, "--shape", shape, "--dtype", "f32", self.out)
        p, rounded, _ = self.good("--random", 1, "--shape", shape, "--layers", 1, self.out)
        self.assertEqual((p["dtype"], p["n_layers"]), (BF16, 1))
        for name, x in rounded.items():
            if not name.startswith(("tok.", "chat.")):
                np.testing.assert_array_equal(x, bf16(f32[name]), name)

    def test_vocabulary(self):
        p, t, _ = self.good("--random", 1, "--shape", self.shape(), self.out)
        at, raw = t["tok.offsets"], t["tok.bytes"].tobytes()
        texts = [raw[at[i]:at[i + 1]] for i in range(272)]
        self.assertEqual(texts[:256], [bytes([b]) for b in range(256)])
        self.assertEqual(texts[256:], [b"<bos>", b"<eos>", b"<|user|>",
                         b"<|assistant|>", b"<|end|>"] + [b""] * 11)
        self.assertEqual(t["tok.types"].tolist(), [0] * 256 + [1] * 5 + [3] * 11)
        self.assertEqual((p["bos_id"], p["chat_present"],
                         t["tok.eos"].tolist()), (256, 1, [257, 260]))
        self.assertEqual((t["tok.regex"].tolist(), t["tok.merges"].tolist()), ([0], [[-1, -1, -1]]))
        p, t, _ = self.good("--random", 1, "--shape", self.shape(vocab_size=258), self.out)
        self.assertEqual((p["bos_id"], p["chat_present"], t["tok.eos"].tolist()), (256, 0, [257]))
        p, t, _ = self.good("--random", 1, "--shape", self.shape(vocab_size=256), self.out)
        self.assertEqual((p["bos_id"], p["tok_add_bos"], t["tok.eos"].tolist()), (-1, 0, [-1]))
        self.bad("vocab_size is 255", "--random", 1, "--shape",
                 self.shape(vocab_size=255), self.out)

    def test_shapes(self):
        """the parameter counts of the published models"""
        counts = {"smollm2-135m": 134_515_008, "llama2-7b": 6_738_415_616, "llama3-8b-262k": 8_030_261_248,
                  "llama3.1-8b": 8_030_261_248, "llama3.1-70b": 70_553_706_496,
                  "mistral-7b": 7_241_732_096, "qwen2.5-0.5b": 494_032_768, "qwen2.5-7b": 7_615_616_512,
                  "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
                  "glm-4-9b-1m": 9_483_857_920, "mamba-codestral-7b": 7_285_403_648,
                  "jamba-1.5-mini": 51_570_323_328, "jamba-1.5-large": 398_555_145_696,
                  "xlm-roberta-large": 558_945_282}
        self.assertEqual(set(counts), set(export.SHAPES))
        for name, count in counts.items():
            shape = export.SHAPES[name]
            family = export.HF[shape.get("model_type", "llama")]
            c = family.read(shape, name)
            self.assertEqual(sum(math.prod(t.shape) for t in family.tensors(c)), count, name)
        self.assertEqual(export.HF["llama"].read(
            export.SHAPES["llama3-8b-262k"], "")["rope_theta"], 283461213.0)
        p, t, _ = self.good("--random", 1, "--shape", "llama3.1-8b", "--vocab-only", self.out)
        self.assertEqual(len(t["tok.types"]), 128256)


if __name__ == "__main__":
    unittest.main()
