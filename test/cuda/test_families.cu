// test_families.cu - Mamba-2 and Jamba on the device against the CPU, as test_device.cu has
// transformers: groups of heads and norms, widths that are no whole blocks, experts in a feed's
// products of many rows and in a step's of few, bf16 and q8. Attention of random weights is sharp,
// so what its products round differently shows in the logits; layers that scan differ in few bits.
#include "models.h"
#include "test/tinyssm.h"

enum { VOCAB = 270 };

static const struct { const char *name; double tol; Config c; } models[] = {
    { "mamba2, odd sizes", 0.02,
      { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 40, .n_layers = 2, .max_ctx = 4096,
        .norm_eps = 1e-5f, .dtype = DT_BF16, .ssm_inner = 72, .ssm_state = 20, .ssm_conv = 4,
        .ssm_heads = 3, .ssm_head_dim = 24, .ssm_groups = 1, .norm_groups = 1 } },
    { "mamba2, 8 groups, q8", 0.02,
      { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 64, .n_layers = 2, .max_ctx = 4096,
        .norm_eps = 1e-5f, .tied = true, .dtype = DT_Q8, .ssm_inner = 256, .ssm_state = 64,
        .ssm_conv = 3, .ssm_heads = 8, .ssm_head_dim = 32, .ssm_groups = 8, .norm_groups = 8 } },
    { "jamba, 4 experts", 0.1,
      { .arch = ARCH_JAMBA, .vocab_size = VOCAB, .dim = 48, .hidden_dim = 72, .n_layers = 4,
        .n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .max_ctx = 4096, .norm_eps = 1e-6f,
        .dtype = DT_BF16, .attn_period = 2, .attn_offset = 1, .n_experts = 4, .n_experts_used = 2,
        .expert_period = 2, .expert_offset = 1, .ssm_inner = 96, .ssm_state = 16, .ssm_conv = 4,
        .ssm_dt_rank = 5 } },
    { "jamba, 16 experts, q8", 0.1,
      { .arch = ARCH_JAMBA, .vocab_size = VOCAB, .dim = 40, .hidden_dim = 56, .n_layers = 3,
        .n_heads = 3, .n_kv_heads = 1, .head_dim = 64, .max_ctx = 4096, .norm_eps = 1e-6f,
        .dtype = DT_Q8, .attn_period = 3, .attn_offset = 0, .n_experts = 16, .n_experts_used = 3,
        .expert_period = 1, .expert_offset = 0, .ssm_inner = 100, .ssm_state = 19, .ssm_conv = 2,
        .ssm_dt_rank = 7 } },
};

int main(void) {
    char path[] = "/tmp/scbench_families_XXXXXX";
    int rc = twin_begin(), fd;
    Err err;
    if (rc) return rc;
    need(cpu_init(1, &err), &err);
    CHECK((fd = mkstemp(path)) >= 0, "%s: %s", path, strerror(errno));
    close(fd);
    for (size_t i = 0; i < COUNTOF(models); i++) {
        ssm_write(&models[i].c, 7 + i, path);
        model_plays(path, models[i].name, true, models[i].tol);
    }
    unlink(path);
    model_plays("data/tiny_mamba2.bin", "tiny_mamba2", false, 0.02);
    model_plays("data/tiny_jamba.bin", "tiny_jamba", false, 0.02);
    return twin_end("families");
}
