#!/usr/bin/env python3
"""Makes data/goldens: what the reference implementation (Hugging Face transformers on PyTorch,
eager attention, CPU) computes on small random models and on SmolLM2-135M-Instruct.

    make_goldens.py dense [NAME...]       NAME.gold for data/goldens/NAME.json of the dense families
    make_goldens.py ssm [NAME...]         the same of Mamba-2 and Jamba
    make_goldens.py smollm2 FILE.gguf     smollm2_greedy.json and smollm2_encode.jsonl

Needs torch, transformers, tokenizers and what export.py needs; never run to build or test. The
weights go through export.py into a .bin and are read back from there; the reference's model is then
saved as a checkpoint, in which export.py must find the same weights. The formats are described in data/goldens/README.md.
"""
import glob
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers

from binreader import read_bin
from goldens_ssm import hf_ssm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
GOLDENS = os.path.join(ROOT, "data", "goldens")
LENGTHS = (1, 31, 33, 511, 512, 513, 1537)
ROWS = 2                            # last rows of the residual stream that are kept


def mix64(x):
    mask = (1 << 64) - 1
    x = (x + 0x9e3779b97f4a7c15) & mask
    x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & mask
    x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & mask
    return x ^ (x >> 31)


def golden_ids(seed, n):
    return [mix64(seed * 1000003 + i) % 256 for i in range(n)]


# ---------------------------------------------------------------------------
# From the model file into transformers

HF_NAMES = {"attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
            "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
            "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
            "bq": "self_attn.q_proj.bias", "bk": "self_attn.k_proj.bias", "bv": "self_attn.v_proj.bias",
            "w1": "mlp.gate_proj.weight", "w3": "mlp.up_proj.weight", "w2": "mlp.down_proj.weight"}
ROPE = ("default", "linear", "llama3", "yarn", "dynamic")
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "glm": "Glm"}
SSM = ("mamba2", "jamba")


def hf_config(p, family):
    rope = {"rope_theta": p["rope_theta"], "rope_type": ROPE[p["rope_scaling"]]}
    positions = p["max_ctx"]
    if p["rope_scaling"]:
        rope["factor"] = p["rope_factor"]
        if p["rope_orig_ctx"]:
            rope["original_max_position_embeddings"] = p["rope_orig_ctx"]
        if rope["rope_type"] == "llama3":
            rope["low_freq_factor"] = p["rope_low_freq_factor"]
            rope["high_freq_factor"] = p["rope_high_freq_factor"]
        if rope["rope_type"] == "dynamic":
            positions = rope.pop("original_max_position_embeddings")
    more = {"mistral": {"sliding_window": None}, "glm": {"attention_bias": True}}.get(family, {})
    if family == "glm":
        rope["partial_rotary_factor"] = p["rope_dim"] / p["head_dim"]
    kind = getattr(transformers, CLASSES[family] + "Config")
    return kind(vocab_size=p["vocab_size"], hidden_size=p["dim"], intermediate_size=p["hidden_dim"],
                num_hidden_layers=p["n_layers"], num_attention_heads=p["n_heads"],
                num_key_value_heads=p["n_kv_heads"], head_dim=p["head_dim"],
                max_position_embeddings=positions, rms_norm_eps=p["norm_eps"],
                tie_word_embeddings=bool(p["tied"]), rope_parameters=rope,
                attn_implementation="eager", pad_token_id=None, **more)


def rope_frequencies(p):
    """The reference's frequencies in double. Its own are up to 3 half-units of fp32 off, which alone
    turns a key at position 1537 by 1e-4 and would be most of the f32 difference to an exact program."""
    R, theta, kind = p["rope_dim"], p["rope_theta"], ROPE[p["rope_scaling"]]
    if kind == "dynamic" and p["max_ctx"] > p["rope_orig_ctx"]:
        grown = p["rope_factor"] * p["max_ctx"] / p["rope_orig_ctx"] - (p["rope_factor"] - 1)
        theta *= grown ** (R / (R - 2))
    out = []
    for i in range(R // 2):
        f = theta ** (-2 * i / R)
        turns = p["rope_orig_ctx"] * f / (2 * math.pi)
        keep = {"linear": 0.0}.get(kind, 1.0)
        if kind == "llama3":            # long waves are stretched, short ones kept
            low, high = p["rope_low_freq_factor"], p["rope_high_freq_factor"]
            keep = min(1.0, max(0.0, (turns - low) / (high - low)))
        if kind == "yarn":              # by the index where a wave turns 32 times, and once
            at = [R * math.log(p["rope_orig_ctx"] / (2 * math.pi * n)) / (2 * math.log(theta))
                  for n in (32, 1)]
            low, high = max(math.floor(at[0]), 0), min(math.ceil(at[1]), R - 1)
            keep = 1 - min(1.0, max(0.0, (i - low) / (high - low)))
        out.append(keep * f + (1 - keep) * f / p["rope_factor"])
    return out


def side_by_side(x, heads, width, rotary):
    """our rows of q or k -> GLM's: its channels 2j and 2j + 1 turn together, ours j and j + R/2"""
    y = x.reshape(heads, width, -1).copy()
    for j in range(rotary // 2):
        y[:, 2 * j], y[:, 2 * j + 1] = (x.reshape(y.shape)[:, j + s] for s in (0, rotary // 2))
    return y.reshape(x.shape)


def hf_state(p, tensors, family):
    state = {"model.embed_tokens.weight": tensors["embed"], "model.norm.weight": tensors["final_norm"],
             "lm_head.weight": tensors["embed" if p["tied"] else "lm_head"]}
    for name, x in tensors.items():
        if not name.startswith("layers."):
            continue
        _, i, kind = name.split(".")
        at = f"model.layers.{i}."
        if family == "glm" and kind in ("wq", "wk", "bq", "bk"):
            heads = p["n_heads" if kind[1] == "q" else "n_kv_heads"]
            x = side_by_side(x, heads, p["head_dim"], p["rope_dim"])
        if family == "glm" and kind in ("w1", "w3"):
            x = np.concatenate([tensors[f"layers.{i}.w1"], tensors[f"layers.{i}.w3"]])
            state[at + "mlp.gate_up_proj.weight"] = x
        else:
            state[at + HF_NAMES[kind]] = x
    return state


def exact_rope(m, p):
    """the frequencies in double, fixed; the reference's own must agree with them"""
    rotary = m.model.rotary_emb = type(m.model.rotary_emb)(config=m.config)     # never rounded
    exact = torch.tensor(rope_frequencies(p), dtype=torch.float32)
    own, kind = rotary.inv_freq, ROPE[p["rope_scaling"]]
    if kind == "dynamic":
        own, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](
            m.config, None, seq_len=p["max_ctx"])
        rotary.max_seq_len_cached, rotary.original_max_seq_len = 1 << 30, 0
    amplitude = 0.1 * math.log(p["rope_factor"]) + 1 if kind == "yarn" else 1
    assert torch.allclose(exact, own, rtol=1e-6, atol=0), (exact, own)
    assert abs(rotary.attention_scaling - amplitude) < 1e-12
    rotary.inv_freq = exact


def hf_model(path, dtype=torch.float32, family="llama"):
    if family in SSM:
        return hf_ssm(path, dtype)
    params, tensors, _ = read_bin(path)
    m = getattr(transformers, CLASSES[family] + "ForCausalLM")(hf_config(params, family))
    state = hf_state(params, tensors, family)
    m.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=True)
    m = m.eval().to(dtype)
    exact_rope(m, params)
    return m


def check_export(m, path, tmp):
    """the reference writes its checkpoint in shards; export.py must find the same model in it"""
    import export
    export.np, export.xxh64 = np, export.need("xxhash").xxh64
    params, tensors, _ = read_bin(path)
    m.save_pretrained(tmp, max_shard_size="60KB")
    src = export.HfDir(tmp, False)
    c = src.config()
    export.check_tensors(src, c, tmp)
    differ = {k for k, v in c.items() if v != params[k]} - {"max_ctx", "norm_groups"}
    assert not differ, differ
    for t in src.family.tensors(c):
        x = np.concatenate([src.rows(t, a, b) for a, b in export.row_blocks(t.shape)])
        # A went through its logarithm
        assert np.allclose(x.reshape(t.shape), tensors[t.name], atol=0,
                           rtol=1e-6 if t.name.endswith(".a") else 0), t.name


# ---------------------------------------------------------------------------
# Small random models

def run_model(m, ids):
    """-> [(rms over all elements, last rows (<= 2, E))] per layer, logits of the last row (V)"""
    seen = []

    def hook(_module, _args, out):
        x = (out[0] if isinstance(out, tuple) else out)[0].float()
        seen.append((float(x.double().square().mean().sqrt()), x[-ROWS:].numpy().copy()))
    body = m.backbone if hasattr(m, "backbone") else m.model
    hooks = [layer.register_forward_hook(hook) for layer in body.layers]
    with torch.no_grad():
        out = m(torch.tensor([ids]), use_cache=False, logits_to_keep=1)
    logits = out.logits[0, -1].float().numpy()
    for h in hooks:
        h.remove()
    return seen, logits


def error(a, b, rms):
    return float(np.abs(a - b).max() / rms)


def rms_of(x):
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


def make_families(families, names):
    total = 0
    for file in sorted(glob.glob(os.path.join(GOLDENS, "*.json"))):
        config = json.load(open(file))
        if "golden_seed" not in config or config["model_type"] not in families:
            continue
        if names and os.path.basename(file)[:-5] not in names:
            continue
        seed, family, models = config["golden_seed"], config["model_type"], {}
        more = ["--max-ctx", str(config["golden_max_ctx"])] if "golden_max_ctx" in config else []
        with tempfile.TemporaryDirectory() as tmp:
            for kind in ("f32", "bf16"):
                out = os.path.join(tmp, kind + ".bin")
                subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), "--random", str(seed),
                                "--shape", file, "--dtype", kind, *more, out], check=True)
                models[kind] = hf_model(out, family=family)
            rounded = hf_model(os.path.join(tmp, "bf16.bin"), torch.bfloat16, family)
            check_export(models["f32"], os.path.join(tmp, "f32.bin"), os.path.join(tmp, "hf"))
        total += write_golden(file, seed, models, rounded)
    print(f"{total} bytes")


def write_golden(file, seed, models, rounded):
    c = models["f32"].config
    words = [struct.pack("<4sIIIII", b"GOLD", 1, c.num_hidden_layers, c.hidden_size, c.vocab_size,
                         len(LENGTHS))]
    for n in LENGTHS:
        ids = golden_ids(seed, n)
        words.append(struct.pack("<I", n))
        for kind in ("f32", "bf16"):
            layers, logits = run_model(models[kind], ids)
            for rms, rows in layers:
                words += [struct.pack("<f", rms), rows.astype("<f4").tobytes()]
            words.append(logits.astype("<f4").tobytes())
        again, again_logits = run_model(rounded, ids)
        errors = [error(x, y, rms) for (_, x), (rms, y) in zip(again, layers)]
        errors.append(error(again_logits, logits, rms_of(logits)))
        words.append(struct.pack(f"<{len(errors)}f", *errors))
        print(os.path.basename(file), n, "rms", [round(r, 3) for r, _ in layers],
              "bf16 error", [round(e, 4) for e in errors])
    with open(file[:-5] + ".gold", "wb") as f:
        return f.write(b"".join(words))


# ---------------------------------------------------------------------------
# SmolLM2

N_GREEDY = 200
PROMPTS = (     # (is it a user message, text)
    (True, "What is the capital of France, and what is it known for?"),
    (True, "Write a short story about a lighthouse keeper who finds a map."),
    (True, "Explain in a few sentences how a bicycle stays upright."),
    (False, "The history of the printing press begins in the fifteenth century, when"),
    (False, "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n"),
    (False, "Water boils at a lower temperature on a mountain because"),
    (True, "List five things to pack for a week of hiking in the mountains."),
)


def greedy(m, ids, n):
    """-> n ids, the smallest distance between the best and the second logit"""
    out, past, margin, feed = [], None, 1e9, ids
    with torch.no_grad():
        for _ in range(n):
            r = m(torch.tensor([feed]), past_key_values=past, use_cache=True, logits_to_keep=1)
            past = r.past_key_values
            top = torch.topk(r.logits[0, -1], 2)
            margin = min(margin, float(top.values[0] - top.values[1]))
            out.append(int(top.indices[0]))
            feed = [out[-1]]
    return out, margin


def gguf_tokenizer(path):
    """the tokenizers library's own object from the GGUF's vocabulary: isolated digits, then the GPT-2
    pattern, byte-level BPE; control tokens are special added tokens"""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    fields = gguf.GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    names = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    t.add_special_tokens([AddedToken(name, special=True, normalized=False)
                          for name, kind in zip(names, kinds) if kind == 3])
    return t


def encode_texts():
    """written by hand, then drawn from pools of characters that meet every branch of the pattern"""
    texts = [
        "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "a", "Hello world", "Hello, world!", " Hello",
        "  two  spaces\n\n\tTab don't DON'T 12345 3.14", "\n\n\nx", "x\n\n\n", "x   ", "   x", "x   y",
        "you're we've I'll he'd she's I'm can't", "YOU'RE WE'VE I'LL HE'D SHE'S I'M CAN'T", "'s't're've'm'll'd",
        "'", "''", "' s", "a'b", "l'été", "0", "00", "0123456789", "1 2  3   4", "a1b2c3", "3.14159e-10",
        "   42", "42   ", "x 42 y", "１２３", "٣٤٥", "½ ¼ ²³", "Ⅷ", "१२३", "$1,234.56", "50%", "#hash @at",
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "<|im_end|", "<|IM_END|>",
        "<repo_name>x<file_sep>y", "<gh_stars>5", "<empty_output>", "<reponame>", "<unknown>", "<<|im_end|>>",
        "int main(void) {\n    return 0;\n}\n", "for (i = 0; i < n; i++) x[i] += y[i] * 2;",
        "def f(x):\n\treturn x**2  # square\n", "if a != b and c >= d:\n        pass\n", "{\"k\": [1, 2, null]}",
        "https://example.org/a/b?c=d&e=f#g", "user@example.org", "C:\\path\\file.txt", "/usr/lib/x86_64",
        "snake_case CamelCase kebab-case SCREAMING_CASE", "e.g. i.e. etc.", "...", "!!!", "?!?!", "--", "—", "–",
        "\"quoted\" 'single' `code` ``` fence", "(a) [b] {c} <d>", "a,b;c:d", "1st 2nd 3rd 4th",
        "caf\u00e9", "cafe\u0301", "\u212b A\u030a \u00c5", "\u1100\u1161 \uac00", "\ufb01 \ufb02", "na\u00efve fa\u00e7ade",
        "\u00a0", "a\u00a0b", "\u2003em\u2003space", "\u3000", "\u200b", "a\u200bb", "\ufeff", "\u2028", "a\u2028b\r\nc",
        "\u0085", "\u00ad", "\x00", "a\x00b", "\x01\x02\x1f", "\x7f", "\u0080", "\u1680",
        "你好，世界", "こんにちは世界", "안녕하세요 세계", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم",
        "नमस्ते दुनिया", "สวัสดีชาวโลก", "Xin chào thế giới", "İstanbul ıI", "Straße ẞ", "Ǆǅǆ", "ſ ſt",
        "😀", "😀😀", " 😀 ", "👨‍👩‍👧‍👦", "🇫🇷🇩🇪", "👍🏽", "a😀b", "\U0001f600\ufe0f", "𝒳𝓎", "𠀀", "\U0010ffff", "\ufffd",
        "∑∏∫√∞ ≤≥≠≈", "αβγ → δ ⇒ ε", "°C ±5 µm", "© ® ™ € £ ¥", "☃☂★", "½cup", "x²+y²=z²", "H₂O", "¿Qué? ¡Sí!",
        "The quick brown fox jumps over the lazy dog.", "antidisestablishmentarianism", "a" * 50, "ab" * 40,
        "=" * 80, "-" * 33, "\n" * 20, " " * 65, "\t" * 9, " \t \n \t ", "\r", "\r\r\n\n", "a\rb", " \r\n  x",
        "word " * 30, "The year 2024, the month 12, the day 31, at 23:59:59.", "key1=value1&key2=value2",
        "8f14e45f-ceea-467f-ab0e-5d1c2f4c3b2a", "deadbeef0xCAFE", "0x1F600", "1e10", "-1", "+1", "1,000,000",
        "What is the value of key \"9c1f\"? The value is 42.", "Passage 1:\nText.\n\nPassage 2:\nText.\n",
    ]
    pools = (
        "abcdefghijklmnopqrstuvwxyz ", "abc ABC'sdtmlrve  ", "  \t\n\r x", "0123456789 .,a", "!?.,;:-_()[]{}<>/\\|@#$%^&*~`\"' a1\n",
        "äöüßéèêñçøåœ ÀÉÎÕÜ", "абвгдежз АБВ ", "αβγδ ΑΒΓ", "你好世界中文字。， ", "あいうえおカキク ー", "가나다라 한글",
        "ابتثج ", "कखगघ ािी", "\u0300\u0301\u0308abc", "\u00a0\u2003\u3000\u200b\ufeff ab", "😀😁👍🏽\u200d\ufe0f a", "٠١٢²³½Ⅷ 12a",
        "\x00\x01\x1f\x7f\u0080\u0085 a", "the of and to in is that it was for ", "\U0001d4b3\U00020000\U0010fffd z",
    )
    for i in range(180):
        pool = pools[i % len(pools)] if i < 120 else "".join(pools)
        n = 1 + mix64(7000000 + i) % 60
        texts.append("".join(pool[mix64((i + 1) * 1000 + j) % len(pool)] for j in range(n)))
    return texts


def make_smollm2(path):
    tokenizer = gguf_tokenizer(path)
    with open(os.path.join(GOLDENS, "smollm2_encode.jsonl"), "w", encoding="utf-8") as f:
        for text in encode_texts():
            row = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
            f.write(json.dumps(row, separators=(",", ":")) + "\n")
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, "f32.bin")
        subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), path, out, "--dtype",
                        "f32"], check=True)
        m = hf_model(out)
        _, tensors, _ = read_bin(out)
    piece = {k: tensors[f"chat.{k}"].tobytes().decode() for k in
             ("prefix", "user_open", "user_close", "assistant_open")}
    rows = []
    for chat, text in PROMPTS:
        if chat:
            text = (piece["prefix"] + piece["user_open"] + text + piece["user_close"] +
                    piece["assistant_open"])
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        new, margin = greedy(m, ids, N_GREEDY)
        print(f"{len(ids)} + {len(new)} ids, smallest margin {margin:.5f}: "
              f"{tokenizer.decode(new)[:90]!r}")
        rows.append((margin, {"prompt": text, "prompt_ids": ids, "new_ids": new}))
    # the five prompts whose choices are the least close: fp32 noise must not decide
    rows = [row for _, row in sorted(rows, key=lambda r: -r[0])[:5]]
    with open(os.path.join(GOLDENS, "smollm2_greedy.json"), "w", encoding="utf-8") as f:
        lines = [json.dumps(row, separators=(",", ":")) for row in rows]
        f.write("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["dense"]:
        make_families(CLASSES, sys.argv[2:])
    elif sys.argv[1:2] == ["ssm"]:
        make_families(SSM, sys.argv[2:])
    elif len(sys.argv) == 3 and sys.argv[1] == "smollm2":
        make_smollm2(sys.argv[2])
    else:
        sys.exit(__doc__)
