// pattern.c - MInference's head patterns: which pattern, and how large, every query head has.
//
// The file is the one the released program ships and writes: an array with one object per layer,
// whose keys are the query heads "0" ... and whose values are [type, size, size, score]:
//   ["vertical_and_slash", columns, distances, score]
//   ["stream_llm", sinks, local window, score]
//   ["block_sparse", _, _, score]      always 100 tiles per row block, as that program has it
#include "scb.h"
#include <jansson.h>
#include <xxhash.h>

enum { MOST_LAYERS = 1 << 12, MOST_HEADS = 1 << 12, MOST_ROWS = 1 << 29, BLOCK_TILES = 100 };
static const char *const type_names[] = { "vertical_and_slash", "stream_llm", "block_sparse" };

void pattern_close(PatternFile *p) {
    if (!p) return;
    free(p->head);
    free(p);
}

static int size_read(const json_t *v, int least, const char *name, int layer, int head, int *out,
                     Err *err) {
    if (!json_is_integer(v) || json_integer_value(v) < least || json_integer_value(v) > MOST_ROWS)
        return FAIL(err, "%s: layer %d, head %d: a size must be an integer from %d to %d", name,
                    layer, head, least, MOST_ROWS);
    *out = (int)json_integer_value(v);
    return 0;
}

static int head_read(const json_t *v, const char *name, int layer, int head, HeadPattern *out,
                     Err *err) {
    const char *type = json_string_value(json_array_get(v, 0));
    int kind = 0;
    if (!v)
        return FAIL(err, "%s: layer %d has no head \"%d\" of %d", name, layer, head,
                    head + 1);
    if (!json_is_array(v) || json_array_size(v) != 4 || !type ||
        !json_is_number(json_array_get(v, 3)))
        return FAIL(err, "%s: layer %d, head %d must be [type, size, size, score]", name, layer,
                    head);
    while (kind < (int)COUNTOF(type_names) && strcmp(type, type_names[kind])) kind++;
    if (kind == COUNTOF(type_names))
        return FAIL(err, "%s: layer %d, head %d: the type '%.40s' is none of vertical_and_slash, "
                    "stream_llm, block_sparse", name, layer, head, type);
    memset(out, 0, sizeof *out);
    out->kind = (HeadKind)kind;
    out->score = json_number_value(json_array_get(v, 3));
    if (size_read(json_array_get(v, 1), 0, name, layer, head, &out->a, err) ||
        size_read(json_array_get(v, 2), kind == HEAD_A_SHAPE, name, layer, head, &out->b, err))
        return -1;
    if (kind == HEAD_BLOCK_SPARSE) { out->a = BLOCK_TILES; out->b = 0; }
    return 0;
}

static int layers_read(PatternFile *p, const json_t *root, const char *name, Err *err) {
    size_t layers = json_array_size(root), heads = json_object_size(json_array_get(root, 0));
    if (!json_is_array(root) || !layers || layers > MOST_LAYERS || !heads || heads > MOST_HEADS)
        return FAIL(err, "%s: not a file of head patterns: an array with an object per layer and "
                    "an entry per query head is wanted", name);
    p->n_layers = (int)layers;
    p->n_heads = (int)heads;
    p->head = (HeadPattern *)xrealloc(NULL, layers * heads * sizeof *p->head);
    for (int l = 0; l < p->n_layers; l++) {
        const json_t *layer = json_array_get(root, (size_t)l);
        if (json_object_size(layer) != heads)
            return FAIL(err, "%s: layer %d has %zu heads, layer 0 has %zu", name, l,
                        json_object_size(layer), heads);
        for (int h = 0; h < p->n_heads; h++) {
            char key[16];
            snprintf(key, sizeof key, "%d", h);
            if (head_read(json_object_get(layer, key), name, l, h, &p->head[l * p->n_heads + h],
                          err))
                return -1;
        }
    }
    return 0;
}

PatternFile *pattern_parse(const char *text, size_t n, const char *name, Err *err) {
    json_error_t why;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!root) {
        FAIL(err, "%s:%d: not JSON: %s", name, why.line, why.text);
        return NULL;
    }
    PatternFile *p = (PatternFile *)xrealloc(NULL, sizeof *p);
    memset(p, 0, sizeof *p);
    snprintf(p->hash, sizeof p->hash, "%016llx", (unsigned long long)XXH64(text, n, 0));
    int rc = layers_read(p, root, name, err);
    json_decref(root);
    if (!rc) return p;
    pattern_close(p);
    return NULL;
}

PatternFile *pattern_open(const char *path, const Config *c, Err *err) {
    enum { MOST_BYTES = 64 << 20 };
    StrBuf text = { 0 };
    char part[1 << 16];
    FILE *f = fopen(path, "rb");
    size_t n;
    while (f && text.n <= MOST_BYTES && (n = fread(part, 1, sizeof part, f)) > 0)
        str_add(&text, part, n);
    bool bad = !f || ferror(f);
    if (bad) FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    else if (text.n > MOST_BYTES) FAIL(err, "%s: too large for a file of head patterns", path);
    if (f) fclose(f);
    PatternFile *p = bad || text.n > MOST_BYTES ? NULL : pattern_parse(text.p, text.n, path, err);
    free(text.p);
    if (p && p->n_layers == config_attn_layers(c) && p->n_heads == c->n_heads) return p;
    if (p)
        FAIL(err, "%s: patterns of %d layers with %d heads; the model has %d with %d: this file is "
             "for another model, scbench search makes one for this", path, p->n_layers, p->n_heads,
             config_attn_layers(c), c->n_heads);
    pattern_close(p);
    return NULL;
}

int pattern_write(const PatternFile *p, const char *path, Err *err) {
    StrBuf text = { 0 };
    str_puts(&text, "[");
    for (int l = 0; l < p->n_layers; l++) {
        str_fmt(&text, "%s{", l ? ",\n " : "");
        for (int h = 0; h < p->n_heads; h++) {
            const HeadPattern *x = &p->head[l * p->n_heads + h];
            str_fmt(&text, "%s\"%d\": [\"%s\", %d, %d, %.9g]", h ? ", " : "", h,
                    type_names[x->kind], x->a, x->b, x->score);
        }
        str_puts(&text, "}");
    }
    str_puts(&text, "]\n");
    int rc = write_whole(path, text.p, text.n, err);
    free(text.p);
    return rc;
}
