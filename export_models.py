"""export_models.py - model families: what a checkpoint's configuration says, which tensors a model
file then has, and where each of them lies in a checkpoint.

Used by export.py. Letters: V vocabulary, E hidden width, F feed-forward width, H query heads, G KV
heads, hd head width, L layers; D, N, K, R, J, X of the state-space layers as in scb.h. Three
functions make a family: one turns a configuration into our parameters, one lists our tensors, and
per kind of checkpoint one names the part of a source tensor that one of ours is.

The runtime turns rotary pairs (i, i + R/2) of each head. A checkpoint whose pairs lie side by side
(GLM-4; llama in GGUF) has its rows of q and k put into that order here, which changes no score:
both sides of every dot product q.k are permuted alike.
"""
import collections
import math
import sys

from export_tok import UserError, need

ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_DYNAMIC = range(5)
NUMBER = (int, float)
NO_LIMIT = 262144       # max_ctx of a recurrent model whose configuration names none: as far as its
                        # authors report having tried Codestral

# kind: "matrix" has the model's dtype; "vector" is f32 that holds bf16 values unless the model is
# f32; "exact" is f32
Tensor = collections.namedtuple("Tensor", "name shape kind", defaults=("matrix",))
# Rows [first, first + n) of source tensor name, which has shape, as rows order[0], order[1], ... of
# these. convert: all of it, as (rows, last width), into ours.
Part = collections.namedtuple("Part", "name shape first order convert", defaults=(0, None, None))
# read: config -> parameters; tensors: parameters -> Tensors; part: (parameters, Tensor, names that
# the source has) -> Part
Family = collections.namedtuple("Family", "arch read tensors part")


def warn(sentence):
    print(f"export.py: warning: {sentence}", file=sys.stderr)


def fetch(j, key, where, kinds=(int,), default=None):
    v = j.get(key)
    if v is None and default is not None:
        v = default
    if v is None:
        raise UserError(f"{where}: key '{key}' is missing")
    if isinstance(v, bool) or not isinstance(v, kinds):
        raise UserError(f"{where}: key '{key}' is {v!r}, not a number")
    return v


def only(j, where, **fine):
    """keys that a family fixes: absent, null or the one value we build"""
    for key, value in fine.items():
        if j.get(key, value) not in (value, None):
            raise UserError(f"{where}: {key} = {j[key]!r} is not supported (only {value!r} is)")


# ---------------------------------------------------------------------------
# Dense models: llama, mistral, qwen2, GLM-4

NO_SCALING = {"rope_scaling": ROPE_NONE, "rope_factor": 1.0, "rope_low_freq_factor": 0.0,
              "rope_high_freq_factor": 0.0, "rope_orig_ctx": 0}


def rope_config(j, where, rope_dim):
    """The rotary part of config.json: rope_theta and rope_scaling, or rope_parameters (newer)."""
    both = j.get("rope_parameters")
    s = both if both is not None else j.get("rope_scaling")
    theta = fetch(both or j, "rope_theta", where, NUMBER, j.get("rope_theta", 1e4))
    c = {"rope_theta": float(theta), "rope_dim": rope_dim, **NO_SCALING}
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
        if key not in known and v != {"beta_fast": 32, "beta_slow": 1, "truncate": True}.get(key):
            raise UserError(f"{where}: rope scaling key '{key}' = {v!r} is not supported")
    here = f"{where}, rope scaling {kind}"
    c["rope_scaling"] = kinds[kind]
    c["rope_factor"] = float(fetch(s, "factor", here, NUMBER))
    if kind == "llama3":
        c["rope_low_freq_factor"] = float(fetch(s, "low_freq_factor", here, NUMBER))
        c["rope_high_freq_factor"] = float(fetch(s, "high_freq_factor", here, NUMBER))
    if kind == "dynamic":       # the reference knows no other length
        c["rope_orig_ctx"] = fetch(j, "max_position_embeddings", where)
    elif kind != "linear":
        default = j.get("original_max_position_embeddings")
        if kind == "yarn":
            default = default or j.get("max_position_embeddings")
        c["rope_orig_ctx"] = fetch(s, "original_max_position_embeddings", here, default=default)
    return c


def rotary_share(j, where, default):
    """the part of a head that turns by position; default None: the family turns all of it"""
    nested = j.get("rope_parameters") or {}
    source = nested if "partial_rotary_factor" in nested else j
    if default is None:
        only(source, where, partial_rotary_factor=1.0)
    return fetch(source, "partial_rotary_factor", where, NUMBER, default or 1.0)


def dense_config(j, where, qkv_bias=False, rotary=None):
    """config.json with the library's usual keys -> our parameters"""
    only(j, where, hidden_act="silu", mlp_bias=False, use_sliding_window=False)
    if j.get("attention_bias") and not qkv_bias:
        raise UserError(f"{where}: attention_bias true is not supported for this family")
    dim, heads = fetch(j, "hidden_size", where), fetch(j, "num_attention_heads", where)
    head_dim = fetch(j, "head_dim", where, default=max(1, dim // max(1, heads)))
    c = {"vocab_size": fetch(j, "vocab_size", where), "dim": dim,
         "hidden_dim": fetch(j, "intermediate_size", where),
         "n_layers": fetch(j, "num_hidden_layers", where), "n_heads": heads,
         "n_kv_heads": fetch(j, "num_key_value_heads", where, default=heads),
         "head_dim": head_dim, "max_ctx": fetch(j, "max_position_embeddings", where),
         "norm_eps": float(fetch(j, "rms_norm_eps", where, NUMBER)),
         **rope_config(j, where, int(head_dim * rotary_share(j, where, rotary))),
         "qkv_bias": int(qkv_bias),
         "tied": int(bool(j.get("tie_word_embeddings", False)))}
    if c["rope_scaling"] == ROPE_YARN:      # what the scaling is for
        c["max_ctx"] = max(c["max_ctx"], int(c["rope_factor"] * c["rope_orig_ctx"]))
    return c


def hf_llama(j, where):
    return dense_config(j, where)


def hf_mistral(j, where):
    if j.get("sliding_window"):
        warn(f"{where}: sliding_window {j['sliding_window']} is ignored: every token attends to "
             "all before it")
    return hf_llama(j, where)


def hf_qwen2(j, where):
    return dense_config(j, where, qkv_bias=True)


def hf_glm(j, where):
    """The library's Glm; published files may lack partial_rotary_factor, which then is 1/2."""
    return dense_config(j, where, qkv_bias=j.get("attention_bias", True) is True, rotary=0.5)


def chatglm(j, where):
    """GLM-4 with its authors' own code: other keys for the same model, half of a head turns, and
    theta is 10000 rope_ratio."""
    only(j, where, rmsnorm=True, post_layer_norm=True, add_bias_linear=False,
         multi_query_attention=True, original_rope=True, pre_seq_len=None, quantization_bit=0,
         apply_residual_connection_post_layernorm=False)
    dim, heads = fetch(j, "hidden_size", where), fetch(j, "num_attention_heads", where)
    head_dim = fetch(j, "kv_channels", where, default=max(1, dim // max(1, heads)))
    return {"vocab_size": fetch(j, "padded_vocab_size", where), "dim": dim,
            "hidden_dim": fetch(j, "ffn_hidden_size", where),
            "n_layers": fetch(j, "num_layers", where), "n_heads": heads,
            "n_kv_heads": fetch(j, "multi_query_group_num", where),
            "head_dim": head_dim, "max_ctx": fetch(j, "seq_length", where),
            "norm_eps": float(fetch(j, "layernorm_epsilon", where, NUMBER)),
            "rope_theta": 1e4 * fetch(j, "rope_ratio", where, NUMBER, 1),
            "rope_dim": head_dim // 2, **NO_SCALING,
            "qkv_bias": int(bool(j.get("add_qkv_bias", False))),
            "tied": int(bool(j.get("tie_word_embeddings", False)))}


def dense_tensors(c):
    E, F, V = c["dim"], c["hidden_dim"], c["vocab_size"]
    q, kv = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
    yield Tensor("embed", (V, E))
    for i in range(c["n_layers"]):
        yield Tensor(f"layers.{i}.attn_norm", (E,), "vector")
        for name, n in (("wq", q), ("wk", kv), ("wv", kv)):
            yield Tensor(f"layers.{i}.{name}", (n, E))
        if c["qkv_bias"]:
            for name, n in (("bq", q), ("bk", kv), ("bv", kv)):
                yield Tensor(f"layers.{i}.{name}", (n,), "vector")
        yield Tensor(f"layers.{i}.wo", (E, q))
        yield Tensor(f"layers.{i}.ffn_norm", (E,), "vector")
        yield from feed_forward(f"layers.{i}", E, F)
    yield Tensor("final_norm", (E,), "vector")
    if not c["tied"]:
        yield Tensor("lm_head", (V, E))


def feed_forward(where, E, F):
    yield Tensor(f"{where}.w1", (F, E))
    yield Tensor(f"{where}.w3", (F, E))
    yield Tensor(f"{where}.w2", (E, F))


def split_name(name):
    """'layers.3.wq' -> ('3', 'wq'); 'embed' -> ('', 'embed')"""
    _, layer, kind = name.split(".", 2) if "." in name else ("", "", name)
    return layer, kind


def half_split(heads, width, rotary):
    """Row of the source for each of our rows: in each head our row s R/2 + j is the source's row
    2j + s; what does not turn keeps its place."""
    order = []
    for h in range(heads):
        order += [h * width + 2 * j + s for s in (0, 1) for j in range(rotary // 2)]
        order += range(h * width + rotary, (h + 1) * width)
    return order


def turned(part, c, kind):
    """part with its rows in the runtime's rotary order, where they are queries or keys"""
    heads = {"q": c["n_heads"], "k": c["n_kv_heads"]}.get(kind[1:])
    if kind[0] not in "wb" or not heads:
        return part
    return part._replace(order=half_split(heads, c["head_dim"], c["rope_dim"]))


HF_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight",
          "lm_head": "lm_head.weight"}
HF_LAYER = {"attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
            "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
            "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
            "bq": "self_attn.q_proj.bias", "bk": "self_attn.k_proj.bias",
            "bv": "self_attn.v_proj.bias", "w1": "mlp.gate_proj.weight", "w3": "mlp.up_proj.weight",
            "w2": "mlp.down_proj.weight"}


def hf_dense_part(c, t, names):
    layer, kind = split_name(t.name)
    if not layer:
        return Part(HF_TOP[kind], t.shape)
    return Part(f"model.layers.{layer}.{HF_LAYER[kind]}", t.shape)


def gate_up(name, c, kind):
    """w1 and w3 where one tensor holds both, gate first"""
    return Part(name, (2 * c["hidden_dim"], c["dim"]), c["hidden_dim"] if kind == "w3" else 0)


def fused_qkv(weight, bias, c, t, kind):
    """a part of [q; k; v] stacked in one tensor"""
    q, kv = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
    first = {"q": 0, "k": q, "v": q + kv}[kind[1]]
    return turned(Part(weight if kind[0] == "w" else bias, (q + 2 * kv, *t.shape[1:]), first), c,
                  kind)


def hf_glm_part(c, t, names):
    layer, kind = split_name(t.name)
    if kind in ("w1", "w3"):
        return gate_up(f"model.layers.{layer}.mlp.gate_up_proj.weight", c, kind)
    return turned(hf_dense_part(c, t, names), c, kind)


def chatglm_part(c, t, names):
    layer, kind = split_name(t.name)
    at = f"transformer.encoder.layers.{layer}"
    if kind in ("wq", "wk", "wv", "bq", "bk", "bv"):
        name = f"{at}.self_attention.query_key_value"
        return fused_qkv(f"{name}.weight", f"{name}.bias", c, t, kind)
    if kind in ("w1", "w3"):
        return gate_up(f"{at}.mlp.dense_h_to_4h.weight", c, kind)
    return Part({"embed": "transformer.embedding.word_embeddings.weight",
                 "final_norm": "transformer.encoder.final_layernorm.weight",
                 "lm_head": "transformer.output_layer.weight",
                 "attn_norm": f"{at}.input_layernorm.weight",
                 "ffn_norm": f"{at}.post_attention_layernorm.weight",
                 "wo": f"{at}.self_attention.dense.weight",
                 "w2": f"{at}.mlp.dense_4h_to_h.weight"}[kind], t.shape)


# ---------------------------------------------------------------------------
# The same from GGUF. g: get(key, default), int(key, default), arch, path, tensors, vector(name, n)

def gguf_dense(g, qkv_bias=False, rotary=1.0):
    """metadata of a GGUF file of a dense family -> our parameters"""
    a = g.arch
    heads, dim = g.int(f"{a}.attention.head_count"), g.int(f"{a}.embedding_length")
    width = g.int(f"{a}.attention.key_length", dim // max(1, heads))
    rope_dim = g.int(f"{a}.rope.dimension_count", int(width * rotary))
    if g.int(f"{a}.attention.value_length", width) != width or rope_dim != int(width * rotary):
        raise UserError(f"{g.path}: heads of {width} with {rope_dim} rotary channels and values of "
                        f"{g.int(f'{a}.attention.value_length', width)} are not supported")
    c = {"vocab_size": g.int(f"{a}.vocab_size", len(g.get("tokenizer.ggml.tokens", []))),
         "dim": dim, "hidden_dim": g.int(f"{a}.feed_forward_length"),
         "n_layers": g.int(f"{a}.block_count"),
         "n_heads": heads, "n_kv_heads": g.int(f"{a}.attention.head_count_kv", heads),
         "head_dim": width, "max_ctx": g.int(f"{a}.context_length"),
         "norm_eps": float(g.get(f"{a}.attention.layer_norm_rms_epsilon")),
         "rope_theta": float(g.get(f"{a}.rope.freq_base", 10000.0)), "rope_dim": rope_dim,
         **NO_SCALING,
         "qkv_bias": int(qkv_bias), "tied": int("output.weight" not in g.tensors)}
    kind = g.get(f"{a}.rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        c["rope_scaling"] = {"linear": ROPE_LINEAR, "yarn": ROPE_YARN}[kind]
        c["rope_factor"] = float(g.get(f"{a}.rope.scaling.factor"))
        if kind == "yarn":
            c["rope_orig_ctx"] = g.int(f"{a}.rope.scaling.original_context_length")
    elif kind != "none":
        raise UserError(f"{g.path}: rope scaling '{kind}' is not supported (linear and yarn are)")
    if g.get(f"{a}.attention.sliding_window", 0):
        warn(f"{g.path}: its sliding window is ignored: every token attends to all before it")
    if "rope_freqs.weight" in g.tensors:
        c.update(llama3_scaling(g, c))
    return c


def gguf_llama(g):
    return gguf_dense(g)


def gguf_qwen2(g):
    return gguf_dense(g, qkv_bias=True)


def gguf_chatglm(g):
    return gguf_dense(g, qkv_bias="blk.0.attn_qkv.bias" in g.tensors or
                      "blk.0.attn_q.bias" in g.tensors, rotary=0.5)


def llama3_scaling(g, c):
    """GGUF keeps Llama-3.1's frequency scaling as one divisor per frequency. The divisors of the
    two published settings are made again from their parameters, and one must agree."""
    name = "rope_freqs.weight"
    have = g.vector(name, c["head_dim"] // 2)
    low, high, orig = 1.0, 4.0, 8192
    for factor in (8.0, 32.0):
        want = []
        for i in range(c["head_dim"] // 2):
            wave = 2 * math.pi * c["rope_theta"] ** (2 * i / c["head_dim"])
            s = min(1.0, max(0.0, (orig / wave - low) / (high - low)))
            want.append(1 / ((1 - s) / factor + s))
        if all(abs(a - b) <= 1e-4 * b for a, b in zip(have, want)):
            return {"rope_scaling": ROPE_LLAMA3, "rope_factor": factor, "rope_orig_ctx": orig,
                    "rope_low_freq_factor": low, "rope_high_freq_factor": high}
    raise UserError(f"{g.path}: tensor {name} holds a frequency scaling that is not Llama-3.1's or "
                    "3.2's")


GGUF_TOP = {"embed": "token_embd.weight", "final_norm": "output_norm.weight",
            "lm_head": "output.weight"}
GGUF_LAYER = {"attn_norm": "attn_norm.weight", "ffn_norm": "ffn_norm.weight", "wq": "attn_q.weight",
              "wk": "attn_k.weight", "wv": "attn_v.weight", "wo": "attn_output.weight",
              "bq": "attn_q.bias", "bk": "attn_k.bias", "bv": "attn_v.bias",
              "w1": "ffn_gate.weight", "w3": "ffn_up.weight", "w2": "ffn_down.weight"}


def gguf_dense_part(c, t, names):
    layer, kind = split_name(t.name)
    if not layer:
        return Part(GGUF_TOP[kind], t.shape)
    return Part(f"blk.{layer}.{GGUF_LAYER[kind]}", t.shape)


def gguf_llama_part(c, t, names):
    """its writer puts rotary pairs side by side"""
    return turned(gguf_dense_part(c, t, names), c, split_name(t.name)[1])


def gguf_chatglm_part(c, t, names):
    layer, kind = split_name(t.name)
    fused = f"blk.{layer}.attn_qkv"
    if kind in ("w1", "w3"):
        return gate_up(f"blk.{layer}.ffn_up.weight", c, kind)
    if kind in ("wq", "wk", "wv", "bq", "bk", "bv") and f"{fused}.weight" in names:
        return fused_qkv(f"{fused}.weight", f"{fused}.bias", c, t, kind)
    return turned(gguf_dense_part(c, t, names), c, kind)


# ---------------------------------------------------------------------------
# Mamba-2 (Codestral), Jamba

def minus_exp(x):
    """-exp(A_log) through double: the same float on every machine"""
    np = need("numpy")
    with np.errstate(over="ignore"):        # what is not finite is refused by name
        return -np.exp(x.astype(np.float64)).astype(np.float32)


def mamba2_config(j, where):
    """config.json of the library's Mamba2 -> our parameters. norm_groups: the gated norm runs over
    n_groups parts of the inner width, as the original implementation has it."""
    only(j, where, hidden_act="silu", use_bias=False, use_conv_bias=True, rms_norm=True)
    heads, width = fetch(j, "num_heads", where), fetch(j, "head_dim", where)
    dim, expand = fetch(j, "hidden_size", where), fetch(j, "expand", where, default=2)
    limit = list(j.get("time_step_limit") or [0.0, math.inf])
    if limit != [0.0, math.inf]:
        raise UserError(f"{where}: time_step_limit = {limit} is not supported (only no limit is)")
    if heads * width != dim * expand:
        raise UserError(f"{where}: {heads} heads of {width} are not {expand} times {dim} channels")
    groups = fetch(j, "n_groups", where)
    return {"vocab_size": fetch(j, "vocab_size", where), "dim": dim,
            "n_layers": fetch(j, "num_hidden_layers", where),
            "max_ctx": fetch(j, "max_position_embeddings", where, default=NO_LIMIT),
            "norm_eps": float(fetch(j, "layer_norm_epsilon", where, NUMBER)),
            "ssm_inner": heads * width, "ssm_state": fetch(j, "state_size", where),
            "ssm_conv": fetch(j, "conv_kernel", where), "ssm_heads": heads, "ssm_head_dim": width,
            "ssm_groups": groups, "norm_groups": fetch(j, "norm_groups", where, default=groups),
            "tied": int(bool(j.get("tie_word_embeddings", False)))}


def mamba_params(j, where):
    """params.json beside Mistral's consolidated file; what it does not name are the defaults of the
    original implementation"""
    only(j, where, model_type="mamba", rms_norm=True)
    dim, vocab = fetch(j, "dim", where), fetch(j, "vocab_size", where)
    multiple = fetch(j, "pad_vocab_size_multiple", where, default=1)
    return mamba2_config(
        {"hidden_size": dim, "num_hidden_layers": fetch(j, "n_layers", where),
         "vocab_size": -(-vocab // multiple) * multiple, "expand": 2, "head_dim": 64,
         "num_heads": 2 * dim // 64, "state_size": 128, "conv_kernel": 4,
         "n_groups": fetch(j, "n_groups", where), "layer_norm_epsilon": 1e-5,
         "tie_word_embeddings": j.get("tie_embeddings", False)}, where)


def mamba2_tensors(c):
    E, V, D, J = c["dim"], c["vocab_size"], c["ssm_inner"], c["ssm_heads"]
    K, X = c["ssm_conv"], c["ssm_inner"] + 2 * c["ssm_groups"] * c["ssm_state"]
    yield Tensor("embed", (V, E))
    for i in range(c["n_layers"]):
        at = f"layers.{i}"
        yield Tensor(f"{at}.attn_norm", (E,), "vector")
        for name, n in (("wz", D), ("wx", X), ("wdt", J)):
            yield Tensor(f"{at}.{name}", (n, E))
        for name, shape in (("conv", (K, X)), ("conv_bias", (X,)), ("dt_bias", (J,)), ("a", (J,)),
                            ("d", (J,))):
            yield Tensor(f"{at}.{name}", shape, "exact")
        yield Tensor(f"{at}.gate_norm", (D,), "vector")
        yield Tensor(f"{at}.wout", (E, D))
    yield Tensor("final_norm", (E,), "vector")
    if not c["tied"]:
        yield Tensor("lm_head", (V, E))


def mamba2_part(c, t, names):
    """The library's names; its ancestor says embedding, and Mistral puts model. before all."""
    layer, kind = split_name(t.name)
    prefix = "model." if "model.backbone.norm_f.weight" in names else ""
    at, D, J = f"{prefix}backbone.layers.{layer}", c["ssm_inner"], c["ssm_heads"]
    X = D + 2 * c["ssm_groups"] * c["ssm_state"]
    if kind == "embed":
        old = f"{prefix}backbone.embedding.weight"
        return Part(old if old in names else f"{prefix}backbone.embeddings.weight", t.shape)
    if kind in ("wz", "wx", "wdt"):
        return Part(f"{at}.mixer.in_proj.weight", (D + X + J, c["dim"]),
                    {"wz": 0, "wx": D, "wdt": D + X}[kind])
    if kind == "conv":
        return Part(f"{at}.mixer.conv1d.weight", (X, 1, c["ssm_conv"]), convert=lambda x: x.T)
    if kind == "a":
        return Part(f"{at}.mixer.A_log", t.shape, convert=minus_exp)
    return Part({"final_norm": f"{prefix}backbone.norm_f.weight",
                 "lm_head": f"{prefix}lm_head.weight", "attn_norm": f"{at}.norm.weight",
                 "conv_bias": f"{at}.mixer.conv1d.bias", "dt_bias": f"{at}.mixer.dt_bias",
                 "d": f"{at}.mixer.D", "gate_norm": f"{at}.mixer.norm.weight",
                 "wout": f"{at}.mixer.out_proj.weight"}[kind], t.shape)


def jamba_config(j, where):
    only(j, where, hidden_act="silu", mamba_conv_bias=True, mamba_proj_bias=False,
         sliding_window=None)
    dim, heads = fetch(j, "hidden_size", where), fetch(j, "num_attention_heads", where)
    rank = j.get("mamba_dt_rank", "auto")
    c = {"vocab_size": fetch(j, "vocab_size", where), "dim": dim,
         "hidden_dim": fetch(j, "intermediate_size", where),
         "n_layers": fetch(j, "num_hidden_layers", where), "n_heads": heads,
         "n_kv_heads": fetch(j, "num_key_value_heads", where, default=heads),
         "head_dim": fetch(j, "head_dim", where, default=max(1, dim // max(1, heads))),
         "max_ctx": fetch(j, "max_position_embeddings", where),
         "norm_eps": float(fetch(j, "rms_norm_eps", where, NUMBER)),
         "attn_period": fetch(j, "attn_layer_period", where),
         "attn_offset": fetch(j, "attn_layer_offset", where),
         "n_experts": fetch(j, "num_experts", where),
         "n_experts_used": fetch(j, "num_experts_per_tok", where),
         "expert_period": fetch(j, "expert_layer_period", where),
         "expert_offset": fetch(j, "expert_layer_offset", where),
         "ssm_inner": dim * fetch(j, "mamba_expand", where),
         "ssm_state": fetch(j, "mamba_d_state", where),
         "ssm_conv": fetch(j, "mamba_d_conv", where),
         "ssm_dt_rank": -(-dim // 16) if rank == "auto" else fetch(j, "mamba_dt_rank", where),
         "tied": int(bool(j.get("tie_word_embeddings", False)))}
    for kind in ("attn", "expert"):
        if not 0 <= c[f"{kind}_offset"] < c[f"{kind}_period"]:
            raise UserError(f"{where}: {kind}_layer_offset {c[f'{kind}_offset']} is not below "
                            f"{kind}_layer_period {c[f'{kind}_period']}")
    if c["n_experts_used"] > c["n_experts"]:
        raise UserError(f"{where}: {c['n_experts_used']} experts per token of {c['n_experts']}")
    return c


def jamba_tensors(c):
    E, F, V, D = c["dim"], c["hidden_dim"], c["vocab_size"], c["ssm_inner"]
    N, K, R = c["ssm_state"], c["ssm_conv"], c["ssm_dt_rank"]
    q, kv = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
    yield Tensor("embed", (V, E))
    for i in range(c["n_layers"]):
        at = f"layers.{i}"
        yield Tensor(f"{at}.attn_norm", (E,), "vector")
        if i % c["attn_period"] == c["attn_offset"]:
            for name, shape in (("wq", (q, E)), ("wk", (kv, E)), ("wv", (kv, E)), ("wo", (E, q))):
                yield Tensor(f"{at}.{name}", shape)
        else:
            for name, shape, kind in (
                    ("wx", (D, E), "matrix"), ("wz", (D, E), "matrix"), ("conv", (K, D), "exact"),
                    ("conv_bias", (D,), "exact"), ("wp", (R + 2 * N, D), "matrix"),
                    ("dt_norm", (R,), "vector"), ("b_norm", (N,), "vector"),
                    ("c_norm", (N,), "vector"), ("wdt", (D, R), "matrix"),
                    ("dt_bias", (D,), "exact"), ("a", (N, D), "exact"), ("d", (D,), "exact"),
                    ("wout", (E, D), "matrix")):
                yield Tensor(f"{at}.{name}", shape, kind)
        yield Tensor(f"{at}.ffn_norm", (E,), "vector")
        if i % c["expert_period"] == c["expert_offset"]:
            yield Tensor(f"{at}.router", (c["n_experts"], E))
            for e in range(c["n_experts"]):
                yield from feed_forward(f"{at}.{e}", E, F)
        else:
            yield from feed_forward(at, E, F)
    yield Tensor("final_norm", (E,), "vector")
    if not c["tied"]:
        yield Tensor("lm_head", (V, E))


JAMBA_TOP = {**HF_TOP, "final_norm": "model.final_layernorm.weight"}
JAMBA_LAYER = {"attn_norm": "input_layernorm.weight", "ffn_norm": "pre_ff_layernorm.weight",
               **{f"w{x}": f"self_attn.{x}_proj.weight" for x in "qkvo"},
               "conv_bias": "mamba.conv1d.bias", "wp": "mamba.x_proj.weight",
               "dt_norm": "mamba.dt_layernorm.weight", "b_norm": "mamba.b_layernorm.weight",
               "c_norm": "mamba.c_layernorm.weight", "wdt": "mamba.dt_proj.weight",
               "dt_bias": "mamba.dt_proj.bias", "d": "mamba.D", "wout": "mamba.out_proj.weight",
               "router": "feed_forward.router.weight"}
PROJ = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def jamba_part(c, t, names):
    layer, kind = split_name(t.name)
    at = f"model.layers.{layer}"
    if not layer:
        return Part(JAMBA_TOP[kind], t.shape)
    if kind in JAMBA_LAYER:
        return Part(f"{at}.{JAMBA_LAYER[kind]}", t.shape)
    if kind in ("wx", "wz"):
        D = c["ssm_inner"]
        return Part(f"{at}.mamba.in_proj.weight", (2 * D, c["dim"]), D if kind == "wz" else 0)
    if kind == "conv":
        return Part(f"{at}.mamba.conv1d.weight", (c["ssm_inner"], 1, c["ssm_conv"]),
                    convert=lambda x: x.T)
    if kind == "a":
        return Part(f"{at}.mamba.A_log", t.shape[::-1], convert=lambda x: minus_exp(x).T)
    if kind in PROJ:
        return Part(f"{at}.feed_forward.{PROJ[kind]}.weight", t.shape)
    return expert_part(c, t, names, f"{at}.feed_forward.experts", *kind.split("."))


def expert_part(c, t, names, at, e, kind):
    """one tensor per expert and matrix, or the stacks that the library makes in memory: gate and up
    (n, 2F, E), down (n, E, F)"""
    if f"{at}.down_proj" not in names:
        return Part(f"{at}.{e}.{PROJ[kind]}.weight", t.shape)
    n, F, E = c["n_experts"], c["hidden_dim"], c["dim"]
    if kind == "w2":
        return Part(f"{at}.down_proj", (n, E, F), int(e) * E)
    return Part(f"{at}.gate_up_proj", (n, 2 * F, E), int(e) * 2 * F + (F if kind == "w3" else 0))


# ---------------------------------------------------------------------------
# Encoders with a classifier of two labels on every token: LLMLingua-2

PLACEHOLDERS = 100      # rows behind the vocabulary: [NEW0] .. [NEW99]


def encoder_config(j, where):
    only(j, where, hidden_act="gelu", position_embedding_type="absolute")
    bert = j["model_type"] == "bert"
    if not any("ForTokenClassification" in a for a in j.get("architectures") or []):
        raise UserError(f"{where}: architectures has no ...ForTokenClassification; an LLMLingua-2 "
                        "checkpoint is one")
    pad = 0 if bert else fetch(j, "pad_token_id", where, default=1)
    return {"vocab_size": fetch(j, "vocab_size", where), "dim": fetch(j, "hidden_size", where),
            "hidden_dim": fetch(j, "intermediate_size", where),
            "n_layers": fetch(j, "num_hidden_layers", where),
            "n_heads": fetch(j, "num_attention_heads", where),
            "positions": fetch(j, "max_position_embeddings", where),
            "pos_offset": 0 if bert else pad + 1, "wordpiece": int(bert),
            "norm_eps": float(fetch(j, "layer_norm_eps", where, NUMBER, 1e-12))}


def encoder_tensors(c):
    E, F = c["dim"], c["hidden_dim"]
    yield Tensor("embed", (c["vocab_size"], E))
    yield Tensor("pos", (c["positions"], E))
    for name in ("type", "embed_norm", "embed_norm_bias"):
        yield Tensor(name, (E,), "vector")
    for i in range(c["n_layers"]):
        at = f"layers.{i}"
        for name, shape in (("wq", (E, E)), ("wk", (E, E)), ("wv", (E, E)), ("wo", (E, E)),
                            ("w1", (F, E)), ("w2", (E, F))):
            yield Tensor(f"{at}.{name}", shape)
        for name in ("bq", "bk", "bv", "bo", "b1", "b2", "norm1", "norm1_bias", "norm2",
                     "norm2_bias"):
            yield Tensor(f"{at}.{name}", (F if name == "b1" else E,), "vector")
    yield Tensor("classifier", (2, E))
    yield Tensor("classifier_bias", (2,), "vector")


ENCODER_LAYER = {"q": "attention.self.query", "k": "attention.self.key",
                 "v": "attention.self.value", "o": "attention.output.dense",
                 "1": "intermediate.dense", "2": "output.dense",
                 "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}


def encoder_part(c, t, names):
    prefix = "bert" if c["wordpiece"] else "roberta"
    layer, kind = split_name(t.name)
    if t.name.startswith("layers."):
        bias = kind.endswith("_bias") or kind[0] == "b"
        key = kind.removesuffix("_bias") if kind.startswith("norm") else kind[1:]
        at = f"{prefix}.encoder.layer.{layer}.{ENCODER_LAYER[key]}"
        return Part(f"{at}.{'bias' if bias else 'weight'}", t.shape)
    at = f"{prefix}.embeddings"
    if kind == "type":
        return Part(f"{at}.token_type_embeddings.weight", (2 if c["wordpiece"] else 1, c["dim"]),
                    convert=lambda x: x[:1])
    return Part({"embed": f"{at}.word_embeddings.weight", "pos": f"{at}.position_embeddings.weight",
                 "embed_norm": f"{at}.LayerNorm.weight",
                 "embed_norm_bias": f"{at}.LayerNorm.bias", "classifier": "classifier.weight",
                 "classifier_bias": "classifier.bias"}[kind], t.shape)


def encoder_ids(c, names, where):
    """Ids around a sequence. names: the texts of the tokens, by id. The package asks XLM-R's
    tokenizer for BERT's names, which it does not know: official is what it then feeds."""
    ids = {name: i for i, name in reversed(list(enumerate(names)))}
    fixed = ("[CLS]", "[SEP]") if c["wordpiece"] else ("<s>", "</s>")
    official = fixed if c["wordpiece"] else ("<unk>", "<unk>")
    for name in fixed + official:
        if name not in ids:
            raise UserError(f"{where}: the tokenizer has no {name}")
    if c["vocab_size"] < len(names) + PLACEHOLDERS:
        raise UserError(f"{where}: {c['vocab_size']} embeddings for {len(names)} tokens leave no "
                        f"{PLACEHOLDERS} for the placeholders [NEW0] ...; a checkpoint of LLMLingua-2 "
                        "has them")
    return {"open_official": ids[official[0]], "close_official": ids[official[1]],
            "open": ids[fixed[0]], "close": ids[fixed[1]], "placeholder": len(names)}


# ---------------------------------------------------------------------------
# The tables

HF = {      # by model_type of config.json; "mamba" is that of params.json
    "llama": Family("llama", hf_llama, dense_tensors, hf_dense_part),
    "mistral": Family("llama", hf_mistral, dense_tensors, hf_dense_part),
    "qwen2": Family("llama", hf_qwen2, dense_tensors, hf_dense_part),
    "glm": Family("llama", hf_glm, dense_tensors, hf_glm_part),
    "chatglm": Family("llama", chatglm, dense_tensors, chatglm_part),
    "mamba2": Family("mamba2", mamba2_config, mamba2_tensors, mamba2_part),
    "mamba": Family("mamba2", mamba_params, mamba2_tensors, mamba2_part),
    "jamba": Family("jamba", jamba_config, jamba_tensors, jamba_part),
    "xlm-roberta": Family("encoder", encoder_config, encoder_tensors, encoder_part),
    "bert": Family("encoder", encoder_config, encoder_tensors, encoder_part),
}
GGUF = {    # by general.architecture; mistral is llama there
    "llama": Family("llama", gguf_llama, dense_tensors, gguf_llama_part),
    "qwen2": Family("llama", gguf_qwen2, dense_tensors, gguf_dense_part),
    "chatglm": Family("llama", gguf_chatglm, dense_tensors, gguf_chatglm_part),
}


def family_of(table, name, where):
    if name in table:
        return table[name]
    raise UserError(f"{where}: the architecture '{name}' is not supported ({', '.join(table)} are)")


def check_config(c, where):
    """what every family's sizes must be, so that listing tensors cannot fail"""
    for key, v in c.items():
        free = (key in ("rope_scaling", "rope_orig_ctx", "qkv_bias", "tied", "wordpiece")
                or "offset" in key)
        if isinstance(v, int) and not free and not 0 < v < 1 << 31:
            raise UserError(f"{where}: {key} is {v}, not a positive number")
    if "n_kv_heads" in c and (c["n_heads"] % c["n_kv_heads"] or c["head_dim"] % 2):
        raise UserError(f"{where}: {c['n_heads']} query heads over {c['n_kv_heads']} KV heads of "
                        f"width {c['head_dim']}: heads must divide evenly, the width must be even")
    if c.get("rope_dim", 2) % 2:
        raise UserError(f"{where}: {c['rope_dim']} rotary channels of a head; they turn in pairs")
    if c.get("ssm_groups") and c["ssm_heads"] % c["ssm_groups"]:
        raise UserError(f"{where}: {c['ssm_heads']} heads do not divide into {c['ssm_groups']} "
                        "groups")


def dense_shape(v, e, f, layers, heads, kv, ctx, theta, eps=1e-5, tied=False, **more):
    return {"vocab_size": v, "hidden_size": e, "intermediate_size": f, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "max_position_embeddings": ctx,
            "rope_theta": theta, "rms_norm_eps": eps, "tie_word_embeddings": tied, **more}


def qwen_shape(v, e, f, layers, heads, kv, tied=False):
    return dense_shape(v, e, f, layers, heads, kv, 32768, 1e6, 1e-6, tied, model_type="qwen2")


def jamba_shape(e, f, layers, heads):
    return {"model_type": "jamba", "vocab_size": 65536, "hidden_size": e, "intermediate_size": f,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
            "max_position_embeddings": 262144, "rms_norm_eps": 1e-6, "attn_layer_period": 8,
            "attn_layer_offset": 4, "num_experts": 16, "num_experts_per_tok": 2,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_expand": 2,
            "mamba_d_state": 16, "mamba_d_conv": 4}


LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SHAPES = {      # the models of the papers, as their config.json has them
    "smollm2-135m": dense_shape(49152, 576, 1536, 30, 9, 3, 8192, 1e5, tied=True),
    "llama2-7b": dense_shape(32000, 4096, 11008, 32, 32, 32, 4096, 1e4),
    "llama3-8b-262k": dense_shape(128256, 4096, 14336, 32, 32, 8, 262144, 283461213.0),
    "llama3.1-8b": dense_shape(128256, 4096, 14336, 32, 32, 8, 131072, 5e5,
                               rope_scaling=LLAMA3_ROPE),
    "llama3.1-70b": dense_shape(128256, 8192, 28672, 80, 64, 8, 131072, 5e5,
                                rope_scaling=LLAMA3_ROPE),
    "mistral-7b": dense_shape(32000, 4096, 14336, 32, 32, 8, 32768, 1e6, model_type="mistral"),
    "qwen2.5-0.5b": qwen_shape(151936, 896, 4864, 24, 14, 2, tied=True),
    "qwen2.5-7b": qwen_shape(152064, 3584, 18944, 28, 28, 4),
    "qwen2.5-32b": qwen_shape(152064, 5120, 27648, 64, 40, 8),
    "qwen2.5-72b": qwen_shape(152064, 8192, 29568, 80, 64, 8),
    "glm-4-9b-1m": dense_shape(151552, 4096, 13696, 40, 32, 4, 1 << 20, 1e8, 1.5625e-7,
                               model_type="glm", head_dim=128),
    "mamba-codestral-7b": {"model_type": "mamba2", "vocab_size": 32768, "hidden_size": 4096,
                           "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64, "expand": 2,
                           "state_size": 128, "n_groups": 8, "conv_kernel": 4,
                           "layer_norm_epsilon": 1e-5},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "vocab_size": 250102, "hidden_size": 1024,
                          "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "max_position_embeddings": 514,
                          "architectures": ["XLMRobertaForTokenClassification"]},
    "jamba-1.5-mini": jamba_shape(4096, 14336, 32, 32),
    "jamba-1.5-large": jamba_shape(8192, 24576, 72, 64),
}
