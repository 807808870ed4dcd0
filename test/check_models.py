#!/usr/bin/env python3
"""Tests of export.py on the families whose checkpoints differ from the model file: GLM-4 in its
layouts, Mamba-2, Jamba. The checkpoints are made here from the meaning of the tensors."""
import json
import math
import os
import struct
import subprocess
import sys
import unittest

import gguf
import numpy as np

from binreader import BF16, F32
from check_export import ALPHABET_TOKENS, Case, bf16, export

F = np.float32
GLM = {"model_type": "glm", "vocab_size": 272, "hidden_size": 48, "intermediate_size": 40,
       "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
       "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7, "attention_bias": True,
       "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
       "eos_token_id": [263, 264]}
CHATGLM = {"model_type": "chatglm", "padded_vocab_size": 272, "vocab_size": 272, "hidden_size": 48,
           "ffn_hidden_size": 40, "num_layers": 2, "num_attention_heads": 4, "kv_channels": 16,
           "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 131072,
           "layernorm_epsilon": 1.5625e-7, "rope_ratio": 500, "add_qkv_bias": True,
           "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True,
           "original_rope": True,
           "apply_query_key_layer_scaling": True, "eos_token_id": [263, 264]}
MAMBA2 = {"model_type": "mamba2", "vocab_size": 272, "hidden_size": 40, "num_hidden_layers": 3,
          "num_heads": 10, "head_dim": 8, "expand": 2, "state_size": 6, "n_groups": 2,
          "conv_kernel": 4, "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True,
          "rms_norm": True, "tie_word_embeddings": False, "eos_token_id": 263,
          "time_step_limit": [0.0, math.inf]}
PARAMS = {"model_type": "mamba", "dim": 64, "n_layers": 2, "vocab_size": 270, "n_groups": 2,
          "pad_vocab_size_multiple": 16, "rms_norm": True, "residual_in_fp32": True,
          "fused_add_norm": True, "tie_embeddings": False}
JAMBA = {"model_type": "jamba", "vocab_size": 272, "hidden_size": 40, "intermediate_size": 24,
         "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "attn_layer_period": 3,
         "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2,
         "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_expand": 2,
         "mamba_d_state": 6, "mamba_d_conv": 4,
         "mamba_dt_rank": 5, "mamba_conv_bias": True, "mamba_proj_bias": False,
         "sliding_window": None, "eos_token_id": 263}


def normal(seed, shapes):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(F) for k, s in shapes.items()}


def glm_weights():
    """by meaning: q, k, v, o, gate, up, down per layer, rows as GLM has them"""
    shapes = {"embed": (272, 48), "norm": (48,), "head": (272, 48)}
    for i in range(2):
        shapes |= {f"{i}.in": (48,), f"{i}.post": (48,), f"{i}.q": (64, 48), f"{i}.k": (32, 48),
                   f"{i}.v": (32, 48), f"{i}.bq": (64,), f"{i}.bk": (32,), f"{i}.bv": (32,),
                   f"{i}.o": (48, 64), f"{i}.gate": (40, 48), f"{i}.up": (40, 48),
                   f"{i}.down": (48, 40)}
    return normal(3, shapes)


def as_glm(w):
    out = {"model.embed_tokens.weight": w["embed"], "model.norm.weight": w["norm"],
           "lm_head.weight": w["head"]}
    for i in range(2):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": w[f"{i}.in"],
                p + "post_attention_layernorm.weight": w[f"{i}.post"],
                p + "self_attn.o_proj.weight": w[f"{i}.o"],
                p + "mlp.gate_up_proj.weight": np.concatenate([w[f"{i}.gate"], w[f"{i}.up"]]),
                p + "mlp.down_proj.weight": w[f"{i}.down"]}
        for x in "qkv":
            out[p + f"self_attn.{x}_proj.weight"] = w[f"{i}.{x}"]
            out[p + f"self_attn.{x}_proj.bias"] = w[f"{i}.b{x}"]
    return out


def as_chatglm(w):
    out = {"transformer.embedding.word_embeddings.weight": w["embed"],
           "transformer.encoder.final_layernorm.weight": w["norm"],
           "transformer.output_layer.weight": w["head"],
           "transformer.rotary_pos_emb.inv_freq": np.ones(4, F)}
    for i in range(2):
        p = f"transformer.encoder.layers.{i}."
        out |= {p + "input_layernorm.weight": w[f"{i}.in"],
                p + "post_attention_layernorm.weight": w[f"{i}.post"],
                p + "self_attention.query_key_value.weight":
                    np.concatenate([w[f"{i}.{x}"] for x in "qkv"]),
                p + "self_attention.query_key_value.bias":
                    np.concatenate([w[f"{i}.b{x}"] for x in "qkv"]),
                p + "self_attention.dense.weight": w[f"{i}.o"],
                p + "mlp.dense_h_to_4h.weight": np.concatenate([w[f"{i}.gate"], w[f"{i}.up"]]),
                p + "mlp.dense_4h_to_h.weight": w[f"{i}.down"]}
    return out


def interleaved(x, angle):
    """GLM's rotation of one head of 16: channels 0..7 turn in neighbouring pairs"""
    y = x.astype(float).copy()
    for j in range(4):
        c, s = math.cos(angle[j]), math.sin(angle[j])
        y[2 * j] = x[2 * j] * c - x[2 * j + 1] * s
        y[2 * j + 1] = x[2 * j + 1] * c + x[2 * j] * s
    return y


def half_split(x, angle):
    """the runtime's: pairs (i, i + 4)"""
    y = x.astype(float).copy()
    for j in range(4):
        c, s = math.cos(angle[j]), math.sin(angle[j])
        y[j] = x[j] * c - x[j + 4] * s
        y[j + 4] = x[j + 4] * c + x[j] * s
    return y


class Models(Case):
    def model(self, config, weights, name="hf", **kw):
        self.config, self.weights = dict(config), dict(weights)
        return self.write_hf(name, **kw)

    def weights_of(self, tensors):
        return {k: v for k, v in tensors.items() if not k.startswith(("tok.", "chat."))}

    def equal(self, a, b):
        a, b = self.weights_of(a), self.weights_of(b)
        self.assertEqual(set(a), set(b))
        for k, v in a.items():
            np.testing.assert_array_equal(v, b[k], k)


class Glm(Models):
    def test_layouts(self):
        """library, authors' code and GGUF: one model"""
        w = glm_weights()
        p, hf, _ = self.good(self.model(GLM, as_glm(w)), self.out)
        q, remote, _ = self.good(self.model(CHATGLM, as_chatglm(w), "remote"), self.path("r.bin"))
        self.equal(hf, remote)
        self.assertEqual(p, q)
        want = {"arch": "llama", "rope_dim": 8, "rope_theta": 5e6, "head_dim": 16, "n_kv_heads": 2,
                "qkv_bias": 1, "tied": 0, "max_ctx": 131072, "hidden_dim": 40}
        self.assertEqual({k: p[k] for k in want}, want)
        self.equal(hf, self.good(self.write_gguf(w, fused=True), self.path("g.bin"))[1])
        self.equal(hf, self.good(self.write_gguf(w, fused=False), self.path("s.bin"))[1])
        self.model(GLM, as_glm(w), "shards", shards=5)
        self.equal(hf, self.good(self.path("shards"), self.path("5.bin"))[1])
        np.testing.assert_array_equal(hf["layers.1.w1"], w["1.gate"])
        np.testing.assert_array_equal(hf["layers.1.w3"], w["1.up"])
        np.testing.assert_array_equal(hf["layers.0.wv"], w["0.v"])

    def test_scores(self):
        """q.k after the runtime's rotation is q.k after GLM's; the rest keeps its place"""
        w = glm_weights()
        _, t, _ = self.good(self.model(GLM, as_glm(w)), self.out)
        x = np.linspace(-1, 1, 48)
        theirs = [w["1.q"] @ x + w["1.bq"], w["1.k"] @ x + w["1.bk"]]
        ours = [t["layers.1.wq"] @ x + t["layers.1.bq"], t["layers.1.wk"] @ x + t["layers.1.bk"]]
        inv = 5e6 ** (-np.arange(4) / 4)
        for h in range(4):
            q, k = (slice(16 * n, 16 * n + 16) for n in (h, h // 2))
            want = interleaved(theirs[0][q], 977 * inv) @ interleaved(theirs[1][k], 31 * inv)
            got = half_split(ours[0][q], 977 * inv) @ half_split(ours[1][k], 31 * inv)
            self.assertAlmostEqual(got, want, places=9)
            np.testing.assert_array_equal(ours[0][q][8:], theirs[0][q][8:])

    def write_gguf(self, w, fused):
        path = self.path("glm.gguf")
        g = gguf.GGUFWriter(path, "chatglm")
        for key, v in {"context_length": 131072, "embedding_length": 48, "block_count": 2,
                       "feed_forward_length": 40, "attention.head_count": 4,
                       "attention.head_count_kv": 2, "rope.dimension_count": 8,
                       "attention.key_length": 16, "attention.value_length": 16}.items():
            g.add_uint32(f"chatglm.{key}", v)
        g.add_float32("chatglm.attention.layer_norm_rms_epsilon", 1.5625e-7)
        g.add_float32("chatglm.rope.freq_base", 5e6)
        g.add_string("tokenizer.ggml.model", "gpt2")
        g.add_string("tokenizer.ggml.pre", "smollm")
        tokens, types, merges = ALPHABET_TOKENS
        g.add_token_list(tokens)
        g.add_token_types(types)
        g.add_token_merges(merges)
        out = {"token_embd.weight": w["embed"], "output_norm.weight": w["norm"],
               "output.weight": w["head"]}
        for i in range(2):
            p = f"blk.{i}."
            out |= {p + "attn_norm.weight": w[f"{i}.in"], p + "ffn_norm.weight": w[f"{i}.post"],
                    p + "attn_output.weight": w[f"{i}.o"], p + "ffn_down.weight": w[f"{i}.down"],
                    p + "ffn_up.weight": np.concatenate([w[f"{i}.gate"], w[f"{i}.up"]])}
            for kind, b in (("weight", ""), ("bias", "b")):
                parts = {x: w[f"{i}.{b}{x}"] for x in "qkv"}
                if fused:
                    out[f"{p}attn_qkv.{kind}"] = np.concatenate(list(parts.values()))
                else:
                    out |= {f"{p}attn_{x}.{kind}": v for x, v in parts.items()}
        for name, x in out.items():
            g.add_tensor(name, x)
        g.write_header_to_file()
        g.write_kv_data_to_file()
        g.write_tensors_to_file()
        g.close()
        return path

    def test_config(self):
        w = as_glm(glm_weights())
        bare = {k: v for k, v in GLM.items() if k != "rope_parameters"} | {"rope_theta": 5e6}
        p, _, _ = self.good(self.model(bare, w), self.out)
        self.assertEqual((p["rope_dim"], p["rope_theta"]), (8, 5e6))
        lost = dict(GLM, rope_parameters={"rope_theta": 10000, "partial_rotary_factor": 0.5})
        self.bad("rope_theta 10000 for a GLM of 131072 positions.*--rope-theta 1e8",
                 self.model(lost, w), self.out)
        p, _, _ = self.good(self.path("hf"), self.out, "--rope-theta", "5e6")
        self.assertEqual(p["rope_theta"], 5e6)
        self.bad("'glm4' is not supported", self.model({**GLM, "model_type": "glm4"}, w), self.out)

    def test_refused(self):
        hf, remote = as_glm(glm_weights()), as_chatglm(glm_weights())
        up = "model.layers.1.mlp.gate_up_proj.weight"
        qkv = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
        for config, w, pattern in (
                (GLM, {**hf, up: hf[up][:79]}, rf"tensor {up} has shape \(79, 48\).*\(80, 48\)"),
                (GLM, {k: v for k, v in hf.items() if k != up}, f"tensor {up} is missing"),
                (GLM, {**hf, "model.layers.1.mlp.gate_proj.weight": hf[up]},
                 "gate_proj.weight is unexpected"),
                (CHATGLM, {**remote, qkv: remote[qkv][:120]}, rf"{qkv} has shape \(120, 48\)"),
                (CHATGLM, {k: v for k, v in remote.items() if k != qkv}, f"{qkv} is missing"),
                ({**CHATGLM, "add_bias_linear": True}, remote, "add_bias_linear = True"),
                ({**CHATGLM, "multi_query_attention": False}, remote,
                 "multi_query_attention = False"),
                ({**CHATGLM, "rmsnorm": False}, remote, "rmsnorm = False"),
                ({k: v for k, v in CHATGLM.items() if k != "kv_channels"} | {"hidden_size": None},
                 remote, "'hidden_size' is missing"),
                ({**CHATGLM, "padded_vocab_size": None}, remote, "'padded_vocab_size' is missing")):
            self.bad(pattern, self.model(config, w), self.out)


class Dense(Models):
    def test_mistral(self):
        """its window is left out, and that is said"""
        self.config |= {"model_type": "mistral", "sliding_window": 4096}
        p, t, _ = self.good(self.write_hf(), self.out, warns=(
            "^export.py: warning: .*sliding_window 4096 is ignored.*\n$"))
        self.same(t, self.weights)
        self.assertEqual(p["arch"], "llama")
        self.config |= {"sliding_window": None}
        self.good(self.write_hf(), self.out)

    def test_yarn(self):
        """YaRN's purpose is a longer context; dynamic NTK's length is what --max-ctx says"""
        self.config |= {"rope_scaling": {"type": "yarn", "factor": 4.0,
                                         "original_max_position_embeddings": 2048}}
        p, _, _ = self.good(self.write_hf(), self.out)
        self.assertEqual((p["max_ctx"], p["rope_orig_ctx"], p["rope_scaling"]), (8192, 2048, 3))
        self.config |= {"rope_scaling": {"type": "dynamic", "factor": 2.0,
                                         "original_max_position_embeddings": 77}}
        p, _, _ = self.good(self.write_hf(), self.out, "--max-ctx", 6000)
        self.assertEqual((p["max_ctx"], p["rope_orig_ctx"], p["rope_scaling"]), (6000, 2048, 4))
        for share in ({"partial_rotary_factor": 0.5},
                      {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}):
            self.config = {**self.config, "rope_scaling": None, "rope_parameters": None, **share}
            self.bad("partial_rotary_factor = 0.5 is not supported", self.write_hf(), self.out)


def mamba2_weights(seed=5, **change):
    c = {**MAMBA2, **change}
    E, D, J = c["hidden_size"], c["num_heads"] * c["head_dim"], c["num_heads"]
    X = D + 2 * c["n_groups"] * c["state_size"]
    V = c["vocab_size"]
    shapes = {"backbone.embeddings.weight": (V, E), "backbone.norm_f.weight": (E,),
              "lm_head.weight": (V, E)}
    for i in range(c["num_hidden_layers"]):
        p = f"backbone.layers.{i}."
        shapes |= {p + "norm.weight": (E,), p + "mixer.in_proj.weight": (D + X + J, E),
                   p + "mixer.conv1d.weight": (X, 1, 4), p + "mixer.conv1d.bias": (X,),
                   p + "mixer.dt_bias": (J,), p + "mixer.A_log": (J,), p + "mixer.D": (J,),
                   p + "mixer.norm.weight": (D,), p + "mixer.out_proj.weight": (E, D)}
    return normal(seed, shapes)


class Mamba2(Models):
    def test_tensors(self):
        w = mamba2_weights()
        p, t, d = self.good(self.model(MAMBA2, w), self.out, "--dtype", "bf16")
        self.assertEqual({k: v for k, v in p.items() if not k.startswith(("tok_", "chat_", "bos"))},
                         {"arch": "mamba2", "vocab_size": 272, "dim": 40, "n_layers": 3,
                          "max_ctx": 262144, "norm_eps": 1e-5, "ssm_inner": 80, "ssm_state": 6,
                          "ssm_conv": 4, "ssm_heads": 10, "ssm_head_dim": 8, "ssm_groups": 2,
                          "norm_groups": 2, "tied": 0, "dtype": BF16})
        m = "backbone.layers.2.mixer."
        proj = bf16(w[m + "in_proj.weight"])
        want = {"wz": proj[:80], "wx": proj[80:184], "wdt": proj[184:],
                "conv": w[m + "conv1d.weight"][:, 0, :].T, "conv_bias": w[m + "conv1d.bias"],
                "dt_bias": w[m + "dt_bias"], "d": w[m + "D"],
                "a": (-np.exp(w[m + "A_log"].astype(float))).astype(F),
                "gate_norm": bf16(w[m + "norm.weight"]), "wout": bf16(w[m + "out_proj.weight"]),
                "attn_norm": bf16(w["backbone.layers.2.norm.weight"])}
        for k, v in want.items():
            np.testing.assert_array_equal(t[f"layers.2.{k}"], v, k)
        self.assertEqual({k: d[f"layers.0.{k}"] for k in ("wdt", "conv", "a", "wout", "gate_norm")},
                         {"wdt": BF16, "conv": F32, "a": F32, "wout": BF16, "gate_norm": F32})
        self.assertEqual(len(self.weights_of(t)), 3 + 3 * 11)

    def test_layouts(self):
        """the library's names, its ancestor's, and Mistral's consolidated file"""
        w = mamba2_weights(hidden_size=64, num_heads=2, head_dim=64, state_size=128,
                           num_hidden_layers=2)
        c = {**MAMBA2, "hidden_size": 64, "num_heads": 2, "head_dim": 64, "state_size": 128,
             "num_hidden_layers": 2}
        p, t, _ = self.good(self.model(c, w), self.out)
        old = {k.replace("embeddings", "embedding"): v for k, v in w.items()}
        self.equal(t, self.good(self.model(c, old, "old"), self.path("old.bin"))[1])
        src = self.model(c, {f"model.{k}": v for k, v in old.items()}, "mistral")
        os.remove(os.path.join(src, "config.json"))
        os.rename(os.path.join(src, "model.safetensors"),
                  os.path.join(src, "consolidated.safetensors"))
        self.json("mistral/params.json", PARAMS)
        q, u, _ = self.good(src, self.path("mistral.bin"))
        self.equal(t, u)
        self.assertEqual(p, q)

    def test_refused(self):
        w = mamba2_weights()
        a, conv = "backbone.layers.1.mixer.A_log", "backbone.layers.0.mixer.conv1d.weight"
        for config, weights, pattern in (
                ({}, {k: v for k, v in w.items() if k != a}, f"tensor {a} is missing"),
                ({}, {**w, conv: w[conv][:, 0]}, rf"{conv} has shape \(104, 4\).*\(104, 1, 4\)"),
                ({}, {**w, a: np.full(10, 200, F)}, r"layers.1.a holds values that are not finite"),
                ({}, {**w, "backbone.layers.3.norm.weight": w["backbone.norm_f.weight"]},
                 "layers.3.norm.weight is unexpected"),
                ({"use_bias": True}, w, "use_bias = True"),
                ({"num_heads": 11}, w, "11 heads of 8 are not 2 times 40 channels"),
                ({"n_groups": 3}, w, "10 heads do not divide into 3 groups"),
                ({"time_step_limit": [0.001, 0.1]}, w, "time_step_limit"),
                ({"state_size": None}, w, "'state_size' is missing")):
            self.bad(pattern, self.model({**MAMBA2, **config}, weights), self.out)
        self.bad("--rope-theta: .*no rotary part", self.model(MAMBA2, w), self.out,
                 "--rope-theta", "5")


def jamba_weights():
    E, I, D, N, R = 40, 24, 80, 6, 5
    shapes = {"model.embed_tokens.weight": (272, E), "model.final_layernorm.weight": (E,),
              "lm_head.weight": (272, E)}
    ffn = {"gate_proj": (I, E), "up_proj": (I, E), "down_proj": (E, I)}
    for i in range(5):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (E,), p + "pre_ff_layernorm.weight": (E,)}
        if i % 3 == 1:
            shapes |= {p + f"self_attn.{x}_proj.weight": (20 if x in "kv" else 40, E)
                       for x in "qkvo"}
        else:
            shapes |= {p + "mamba.in_proj.weight": (2 * D, E), p + "mamba.conv1d.weight": (D, 1, 4),
                       p + "mamba.conv1d.bias": (D,), p + "mamba.x_proj.weight": (R + 2 * N, D),
                       p + "mamba.dt_proj.weight": (D, R), p + "mamba.dt_proj.bias": (D,),
                       p + "mamba.A_log": (D, N), p + "mamba.D": (D,),
                       p + "mamba.out_proj.weight": (E, D), p + "mamba.dt_layernorm.weight": (R,),
                       p + "mamba.b_layernorm.weight": (N,), p + "mamba.c_layernorm.weight": (N,)}
        if i % 2 == 1:
            shapes[p + "feed_forward.router.weight"] = (4, E)
            shapes |= {p + f"feed_forward.experts.{e}.{k}.weight": s for e in range(4)
                       for k, s in ffn.items()}
        else:
            shapes |= {p + f"feed_forward.{k}.weight": s for k, s in ffn.items()}
    return normal(7, shapes)


class Jamba(Models):
    def test_tensors(self):
        w = jamba_weights()
        p, t, d = self.good(self.model(JAMBA, w, shards=3), self.out)
        self.assertEqual({k: v for k, v in p.items() if not k.startswith(("tok_", "chat_", "bos"))},
                         {"arch": "jamba", "vocab_size": 272, "dim": 40, "hidden_dim": 24,
                          "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "head_dim": 10,
                          "max_ctx": 4096, "norm_eps": 1e-6, "attn_period": 3, "attn_offset": 1,
                          "n_experts": 4, "n_experts_used": 2, "expert_period": 2,
                          "expert_offset": 1, "ssm_inner": 80, "ssm_state": 6, "ssm_conv": 4,
                          "ssm_dt_rank": 5, "tied": 0, "dtype": F32})
        m = "model.layers.3."
        want = {"wx": w[m + "mamba.in_proj.weight"][:80], "wz": w[m + "mamba.in_proj.weight"][80:],
                "conv": w[m + "mamba.conv1d.weight"][:, 0].T, "wp": w[m + "mamba.x_proj.weight"],
                "a": (-np.exp(w[m + "mamba.A_log"].astype(float))).astype(F).T,
                "dt_bias": w[m + "mamba.dt_proj.bias"], "wdt": w[m + "mamba.dt_proj.weight"],
                "b_norm": w[m + "mamba.b_layernorm.weight"], "d": w[m + "mamba.D"],
                "router": w[m + "feed_forward.router.weight"],
                "2.w1": w[m + "feed_forward.experts.2.gate_proj.weight"],
                "2.w3": w[m + "feed_forward.experts.2.up_proj.weight"],
                "2.w2": w[m + "feed_forward.experts.2.down_proj.weight"]}
        for k, v in want.items():
            np.testing.assert_array_equal(t[f"layers.3.{k}"], v, k)
        np.testing.assert_array_equal(t["layers.1.wk"], w["model.layers.1.self_attn.k_proj.weight"])
        np.testing.assert_array_equal(t["layers.2.w2"],
                                      w["model.layers.2.feed_forward.down_proj.weight"])
        self.assertNotIn("layers.1.wx", t)
        packed = {k: v for k, v in w.items() if ".experts." not in k}
        for i in (1, 3):
            at = f"model.layers.{i}.feed_forward.experts."
            one = lambda e, k: w[f"{at}{e}.{k}.weight"]
            packed[at + "gate_up_proj"] = np.stack(
                [np.concatenate([one(e, "gate_proj"), one(e, "up_proj")]) for e in range(4)])
            packed[at + "down_proj"] = np.stack([one(e, "down_proj") for e in range(4)])
        self.equal(t, self.good(self.model(JAMBA, packed, "packed"), self.path("p.bin"))[1])
        some, few, _ = self.good(self.path("hf"), self.path("2.bin"), "--layers", 2)
        self.assertEqual(some["n_layers"], 2)
        self.equal({k: v for k, v in t.items() if not k.startswith("layers.") or k[7] in "01"}, few)

    def test_refused(self):
        w = jamba_weights()
        x = "model.layers.1.feed_forward.experts.3.up_proj.weight"
        for config, weights, pattern in (
                ({}, {k: v for k, v in w.items() if k != x}, f"tensor {x} is missing"),
                ({}, {**w, x: w[x].T.copy()}, rf"tensor {x} has shape \(40, 24\).*\(24, 40\)"),
                ({"num_experts": 3}, w, r"router.weight has shape \(4, 40\)"),
                ({"attn_layer_offset": 3}, w, "attn_layer_offset 3 is not below"),
                ({"num_experts_per_tok": 5}, w, "5 experts per token of 4"),
                ({"mamba_proj_bias": True}, w, "mamba_proj_bias = True"),
                ({"attn_layer_period": None}, w, "'attn_layer_period' is missing")):
            self.bad(pattern, self.model({**JAMBA, **config}, weights), self.out)


class Streams(Models):
    def test_random(self):
        """every family from a seed: repeatable, a below zero, fewer layers the same first layers"""
        for config in (GLM, CHATGLM, MAMBA2, JAMBA):
            self.json("shape.json", config)
            args = ("--random", 5, "--shape", self.path("shape.json"), "--dtype", "f32")
            p, t, _ = self.good(*args, self.out)
            _, again, _ = self.good(*args, self.out)
            self.equal(t, again)
            _, few, _ = self.good(*args, "--layers", 2, self.out)
            self.equal({k: v for k, v in t.items()
                        if not k.startswith("layers.") or k[7] in "01"}, few)
            for k, x in self.weights_of(t).items():
                kind = k.split(".")[-1]
                if kind == "a":
                    self.assertLess(x.max(), 0)
                if x.size < 1000 or kind in ("a", "d", "dt_bias") or kind.endswith("norm"):
                    continue
                scale = {"conv": x.shape[0]}.get(kind, x.shape[1]) ** -0.5
                scale *= 2 if kind == "wq" else 1
                scale /= (2 * p["n_layers"]) ** 0.5 if kind in ("wo", "w2", "wout") else 1
                self.assertAlmostEqual(float(x.std()) / scale, 1, delta=0.12, msg=k)

    def test_memory(self):
        """A shard of 400 MB is exported by a process that may not have 220 MB more than Python with
        its packages takes; the shard is a hole in the disk."""
        config = {**self.config, "hidden_size": 2048, "num_attention_heads": 16, "head_dim": 128,
                  "num_key_value_heads": 4, "intermediate_size": 16384, "num_hidden_layers": 1,
                  "vocab_size": 272, "torch_dtype": "float16"}
        family = export.HF["llama"]
        c = family.read(config, "config")
        header, at = {}, 0
        for t in family.tensors(c):
            k, s, *_ = family.part(c, t, ())
            header[k] = {"dtype": "F32", "shape": s, "data_offsets": [at, at + 4 * math.prod(s)]}
            at += 4 * math.prod(s)
        self.assertGreater(at, 400e6)
        self.config, self.weights = config, {"x": np.zeros(1, F)}
        src = self.write_hf()
        head = json.dumps(header).encode()
        with open(os.path.join(src, "model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(head)) + head)
            f.truncate(8 + len(head) + at)
        code = ("import resource, sys, export, numpy, xxhash\n"
                "pages = int(open('/proc/self/statm').read().split()[0])\n"
                "resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + 220_000_000,) * 2)\n"
                "rc = export.main(sys.argv[1:])\n"
                "peak = [x for x in open('/proc/self/status') if 'VmHWM' in x][0]\n"
                "print(int(peak.split()[1]) // 1024)\n"
                "sys.exit(rc)")
        r = subprocess.run([sys.executable, "-c", code, src, self.out, "--dtype", "bf16"],
                           capture_output=True, text=True, cwd=os.path.dirname(export.__file__))
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        print(f"a shard of {at >> 20} MB was exported with {r.stdout.strip()} MB resident at most")
        self.assertLess(int(r.stdout), (at >> 20) // 2)


if __name__ == "__main__":
    unittest.main()
