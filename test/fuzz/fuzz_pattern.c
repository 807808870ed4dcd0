// fuzz_pattern.c - the reader of head patterns: any bytes are a table or one sentence.
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Err err = { "", 0 };
    PatternFile *p = pattern_parse((const char *)data, size, "fuzz", &err);
    if (!p) {
        CHECK(*err.msg, "no sentence");
        return 0;
    }
    CHECK(p->n_layers > 0 && p->n_heads > 0, "an empty table");
    for (int i = 0; i < p->n_layers * p->n_heads; i++)
        CHECK(p->head[i].a >= 0 && p->head[i].b >= (p->head[i].kind == HEAD_A_SHAPE),
              "sizes %d and %d of entry %d", p->head[i].a, p->head[i].b, i);
    pattern_close(p);
    return 0;
}

#ifndef LIBFUZZER
static StrBuf seed_input(void) {
    StrBuf s = { 0 };
    str_puts(&s, "[{\"0\": [\"vertical_and_slash\", 1000, 6096, 0.9623], "
                 "\"1\": [\"stream_llm\", 100, 800, 7]},\n"
                 " {\"0\": [\"block_sparse\", 100, 0, 1e-3], "
                 "\"1\": [\"vertical_and_slash\", 30, 800, 0.5]}]");
    return s;
}
FUZZ_MAIN(seed_input)
#endif
