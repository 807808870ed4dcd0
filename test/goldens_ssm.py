"""Mamba-2 and Jamba for make_goldens.py: a model file's weights in the reference implementation's
PyTorch classes."""
import numpy as np
import torch
import transformers

from binreader import read_bin


def hf_mamba2(p, tensors):
    """model, state: in_proj is z | x B C | dt; the conv is (X, 1, K) there, A its logarithm"""
    from transformers.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM
    config = transformers.Mamba2Config(
        vocab_size=p["vocab_size"], hidden_size=p["dim"], num_hidden_layers=p["n_layers"],
        num_heads=p["ssm_heads"], head_dim=p["ssm_head_dim"], expand=p["ssm_inner"] // p["dim"],
        state_size=p["ssm_state"], n_groups=p["ssm_groups"], conv_kernel=p["ssm_conv"], chunk_size=64,
        layer_norm_epsilon=p["norm_eps"], tie_word_embeddings=bool(p["tied"]), use_cache=False)
    state = {"backbone.embeddings.weight": tensors["embed"],
             "backbone.norm_f.weight": tensors["final_norm"],
             "lm_head.weight": tensors["embed" if p["tied"] else "lm_head"]}
    for i in range(p["n_layers"]):
        t = {k: tensors[f"layers.{i}.{k}"] for k in
             ("attn_norm", "wz", "wx", "wdt", "conv", "conv_bias", "dt_bias", "a", "d", "gate_norm",
              "wout")}
        mixer = {"in_proj.weight": np.concatenate([t["wz"], t["wx"], t["wdt"]]),
                 "conv1d.weight": t["conv"].T[:, None], "conv1d.bias": t["conv_bias"],
                 "dt_bias": t["dt_bias"], "A_log": np.log(-t["a"].astype(np.float64)), "D": t["d"],
                 "norm.weight": t["gate_norm"], "out_proj.weight": t["wout"]}
        state[f"backbone.layers.{i}.norm.weight"] = t["attn_norm"]
        state.update({f"backbone.layers.{i}.mixer.{k}": v for k, v in mixer.items()})
    m = Mamba2ForCausalLM(config)
    for layer in m.backbone.layers:     # the width of the gated norm is the file's
        layer.mixer.norm.group_size = p["ssm_inner"] // p["norm_groups"]
    return m, state


def hf_jamba(p, tensors):
    from transformers.models.jamba.modeling_jamba import JambaForCausalLM
    config = transformers.JambaConfig(
        vocab_size=p["vocab_size"], hidden_size=p["dim"], intermediate_size=p["hidden_dim"],
        num_hidden_layers=p["n_layers"], num_attention_heads=p["n_heads"],
        num_key_value_heads=p["n_kv_heads"], rms_norm_eps=p["norm_eps"],
        attn_layer_period=p["attn_period"], attn_layer_offset=p["attn_offset"],
        num_experts=p["n_experts"], num_experts_per_tok=p["n_experts_used"],
        expert_layer_period=p["expert_period"], expert_layer_offset=p["expert_offset"],
        mamba_d_state=p["ssm_state"], mamba_d_conv=p["ssm_conv"], mamba_dt_rank=p["ssm_dt_rank"],
        mamba_expand=p["ssm_inner"] // p["dim"], use_mamba_kernels=False,
        max_position_embeddings=p["max_ctx"], tie_word_embeddings=bool(p["tied"]),
        attn_implementation="eager")
    state = {"model.embed_tokens.weight": tensors["embed"],
             "model.final_layernorm.weight": tensors["final_norm"],
             "lm_head.weight": tensors["embed" if p["tied"] else "lm_head"]}
    names = {"attn_norm": "input_layernorm.weight", "ffn_norm": "pre_ff_layernorm.weight",
             "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
             "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
             "conv_bias": "mamba.conv1d.bias", "wp": "mamba.x_proj.weight",
             "dt_norm": "mamba.dt_layernorm.weight", "b_norm": "mamba.b_layernorm.weight",
             "c_norm": "mamba.c_layernorm.weight", "wdt": "mamba.dt_proj.weight",
             "dt_bias": "mamba.dt_proj.bias", "d": "mamba.D", "wout": "mamba.out_proj.weight",
             "w1": "feed_forward.gate_proj.weight", "w3": "feed_forward.up_proj.weight",
             "w2": "feed_forward.down_proj.weight", "router": "feed_forward.router.weight"}
    for i in range(p["n_layers"]):
        at, pre = f"model.layers.{i}.", f"layers.{i}."
        t = {k[len(pre):]: v for k, v in tensors.items() if k.startswith(pre)}
        state.update({at + names[k]: v for k, v in t.items() if k in names})
        if "a" in t:
            state[at + "mamba.in_proj.weight"] = np.concatenate([t["wx"], t["wz"]])
            state[at + "mamba.conv1d.weight"] = t["conv"].T[:, None]
            state[at + "mamba.A_log"] = np.log(-t["a"].T.astype(np.float64))
        if "router" in t:
            each = range(p["n_experts"])
            state[at + "feed_forward.experts.gate_up_proj"] = np.stack(
                [np.concatenate([t[f"{x}.w1"], t[f"{x}.w3"]]) for x in each])
            state[at + "feed_forward.experts.down_proj"] = np.stack([t[f"{x}.w2"] for x in each])
    return JambaForCausalLM(config), state


def hf_ssm(path, dtype):
    params, tensors, _ = read_bin(path)
    m, state = (hf_mamba2 if params["arch"] == "mamba2" else hf_jamba)(params, tensors)
    exact = {k: torch.tensor(np.ascontiguousarray(v), dtype=torch.float32) for k, v in state.items()}
    m.load_state_dict(exact, strict=True)
    return m.eval().to(dtype)
