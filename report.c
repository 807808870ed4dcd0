// report.c - result rows, a run's directory, resume; memory plans. What the rows say stands in
// tables.c.
#include "scb.h"
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>
#include <utf8proc.h>

enum { QUESTION = 240 };        // bytes of a question's end that a row holds

// ---------------------------------------------------------------------------
// Rows

void row_clear(Row *r) {
    static const RowsAt no_rows = { -1, -1, NAN, -1, -1 };
    memset(r, 0, sizeof *r);
    r->depth = r->score = r->similarity = NAN;
    r->matched = -1;
    r->evictable = r->policy_bytes = r->ssm_bytes = r->peak_bytes = -1;
    r->n_prompt = r->n_new = r->shared = r->restored = -1;
    r->tokens_before = r->tokens_after = r->compress_read = r->gold_kept = -1;
    r->compress_s = NAN;
    r->q = r->end = no_rows;
    r->pairs_ratio = r->prefill_s = r->shared_prefill_s = r->first_token_s = r->decode_tok_s = NAN;
    r->root_s = r->decode_s = r->policy_s = r->shared_policy_s = NAN;
}

// adds the first character of s, n > 0 bytes; the bytes it took
static size_t utf8_first(StrBuf *out, const char *s, size_t n) {
    utf8proc_int32_t code;
    utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n,
                                            &code);
    if (len > 0) str_add(out, s, (size_t)len);
    else str_puts(out, "\xef\xbf\xbd");
    return len > 0 ? (size_t)len : 1;
}

void utf8_add(StrBuf *out, const char *s, size_t n) {
    for (size_t i = 0; i < n;) i += utf8_first(out, s + i, n - i);
}

void json_text(StrBuf *out, const char *s, size_t n) {
    str_puts(out, "\"");
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x80) {
            i += utf8_first(out, s + i, n - i);
            continue;
        }
        if (c == '"' || c == '\\') str_fmt(out, "\\%c", c);
        else if (c == '\n') str_puts(out, "\\n");
        else if (c < 0x20 || c == 0x7f) str_fmt(out, "\\u%04x", c);
        else str_add(out, s + i, 1);
        i++;
    }
    str_puts(out, "\"");
}

static void put_text(StrBuf *b, const char *key, const char *s, size_t n) {
    str_fmt(b, "%s\"%s\": ", b->p[b->n - 1] == '{' ? "" : ", ", key);
    if (s) json_text(b, s, n);
    else str_puts(b, "null");
}
static void put_str(StrBuf *b, const char *key, const char *s) {
    put_text(b, key, s, s ? strlen(s) : 0);
}

static void put_raw(StrBuf *b, const char *key, const char *s) {
    str_fmt(b, "%s\"%s\": %s", b->p[b->n - 1] == '{' ? "" : ", ", key, s);
}

static void put_int(StrBuf *b, const char *key, int64_t v) {    // below zero: missing
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)v);
    put_raw(b, key, v < 0 ? "null" : text);
}

static void put_real(StrBuf *b, const char *key, double v) {
    char text[32];
    snprintf(text, sizeof text, "%.9g", v);
    put_raw(b, key, isfinite(v) ? text : "null");
}
static void put_bool(StrBuf *b, const char *key, bool v) { put_raw(b, key, v ? "true" : "false"); }

static void put_rows_at(StrBuf *b, const RowsAt *a, const char *when) {
    char key[32];
    snprintf(key, sizeof key, "rows_min_%s", when);
    put_int(b, key, a->rows_min);
    snprintf(key, sizeof key, "rows_mean_%s", when);
    put_real(b, key, a->rows_mean);
    snprintf(key, sizeof key, "rows_max_%s", when);
    put_int(b, key, a->rows_max);
    snprintf(key, sizeof key, "kv_live_bytes_%s", when);
    put_int(b, key, a->kv_live_bytes);
    snprintf(key, sizeof key, "kv_alloc_bytes_%s", when);
    put_int(b, key, a->kv_alloc_bytes);
}

void row_json(const Row *r, StrBuf *out) {
    str_puts(out, "{");
    put_int(out, "session", r->session);
    put_int(out, "turn", r->turn);
    put_str(out, "task", r->task);
    put_real(out, "depth", r->depth);
    put_str(out, "mode", r->mode);
    put_str(out, "preset", r->preset);
    put_str(out, "method", r->method);
    put_raw(out, "params", r->params ? r->params : "null");
    put_bool(out, "scaled", r->scaled);
    put_str(out, "history", r->history);
    put_str(out, "compress", r->compress);
    put_str(out, "query_aware", r->query_aware);
    put_str(out, "group", r->group);
    put_str(out, "positions", r->positions);
    put_int(out, "seed", r->seed);
    put_int(out, "ctx", r->ctx);
    put_bool(out, "chat", r->chat);
    put_int(out, "n_prompt", r->n_prompt);
    put_int(out, "n_new", r->n_new);
    put_str(out, "stop", r->stop);
    put_str(out, "ids_hash", *r->ids_hash ? r->ids_hash : NULL);
    put_text(out, "prediction", r->prediction, r->prediction_len);
    put_str(out, "gold", r->gold);
    put_real(out, "score", r->score);
    put_str(out, "error", r->error);
    put_int(out, "evictable", r->evictable);
    put_rows_at(out, &r->q, "q");
    put_rows_at(out, &r->end, "end");
    put_raw(out, "shared", r->shared < 0 ? "null" : r->shared ? "true" : "false");
    put_int(out, "policy_bytes", r->policy_bytes);
    put_int(out, "ssm_bytes", r->ssm_bytes);
    put_real(out, "pairs_ratio", r->pairs_ratio);
    put_real(out, "prefill_s", r->prefill_s);
    put_real(out, "shared_prefill_s", r->shared_prefill_s);
    put_real(out, "first_token_s", r->first_token_s);
    put_real(out, "decode_tok_s", r->decode_tok_s);
    put_int(out, "peak_bytes", r->peak_bytes);
    put_str(out, "logits_hash", *r->logits_hash ? r->logits_hash : NULL);
    put_int(out, "batch", r->batch ? r->batch : -1);
    put_real(out, "root_s", r->root_s);
    put_real(out, "decode_s", r->decode_s);
    put_real(out, "policy_s", r->policy_s);
    put_real(out, "shared_policy_s", r->shared_policy_s);
    put_raw(out, "restored", r->restored < 0 ? "null" : r->restored ? "true" : "false");
    put_int(out, "turns", r->turns ? r->turns : -1);
    put_str(out, "part", r->part);
    put_str(out, "arm", r->arm);
    put_str(out, "scorer", r->scorer);
    put_str(out, "lang", r->lang);
    put_real(out, "similarity", r->similarity);
    put_raw(out, "matched", r->matched < 0 ? "null" : r->matched ? "true" : "false");
    put_int(out, "tokens_before", r->tokens_before);
    put_int(out, "tokens_after", r->tokens_after);
    put_real(out, "compress_s", r->compress_s);
    put_raw(out, "compress_read", r->compress_read < 0 ? "null"
            : r->compress_read ? "true" : "false");
    put_raw(out, "gold_kept", r->gold_kept < 0 ? "null" : r->gold_kept ? "true" : "false");
    size_t n = r->question ? strlen(r->question) : 0, from = n > QUESTION ? n - QUESTION : 0;
    while (from && from < n && ((uint8_t)r->question[from] & 0xc0) == 0x80) from++;
    put_text(out, "question", r->question ? r->question + from : NULL, n - from);
    str_puts(out, "}");
}

int write_whole(const char *path, const char *text, size_t n, Err *err) {
    StrBuf tmp = { 0 };
    str_fmt(&tmp, "%s.tmp", path);
    FILE *f = fopen(tmp.p, "wb");
    int rc = 0;
    if (!f) rc = FAIL(err, "%s: cannot be written: %s", tmp.p, strerror(errno));
    else {
        bool ok = fwrite(text, 1, n, f) == n && fflush(f) == 0 && fsync(fileno(f)) == 0;
        ok = fclose(f) == 0 && ok;
        if (!ok || rename(tmp.p, path)) {
            rc = FAIL(err, "%s: cannot be written: %s", path, strerror(errno));
            remove(tmp.p);
        }
    }
    free(tmp.p);
    return rc;
}

// ---------------------------------------------------------------------------
// Reading rows

static const char *get_str(const json_t *row, const char *key) {
    const char *s = json_string_value(json_object_get(row, key));
    return s ? s : "";
}
static int get_int(const json_t *row, const char *key) {
    return (int)json_integer_value(json_object_get(row, key));
}
static bool is_error(const json_t *row) { return json_is_string(json_object_get(row, "error")); }

// the four names that say what a row belongs to, and its place
static bool is_row(const json_t *row) {
    static const char *const need[] = { "task", "mode", "preset", "method" };
    static const char *const place[] = { "session", "turn" };
    bool ok = json_is_object(row);
    for (size_t k = 0; k < COUNTOF(need); k++)
        ok = ok && json_is_string(json_object_get(row, need[k]));
    for (size_t k = 0; k < COUNTOF(place); k++) {
        json_int_t v = json_integer_value(json_object_get(row, place[k]));
        ok = ok && v > 0 && v <= INT_MAX;
    }
    return ok;
}

int rows_each(const char *path, int (*fn)(void *user, const RowLine *l, Err *err), void *user,
              bool *torn, Err *err) {
    FILE *f = fopen(path, "rb");
    if (!f) return FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    RowLine l = { 0 };
    char *text = NULL;
    size_t cap = 0;
    int rc = 0;
    *torn = false;
    for (ssize_t n; !rc && (n = getline(&text, &cap, f)) > 0; l.at += n) {
        json_error_t je;
        if ((*torn = text[n - 1] != '\n')) break;
        json_t *row = json_loadb(text, (size_t)n - 1, JSON_ALLOW_NUL, &je);
        l.line++;
        l.row = row;
        if (is_row(row)) rc = fn(user, &l, err);
        else rc = FAIL(err, "%s: line %d is no result row%s%s", path, l.line, row ? "" : ": ",
                       row ? "" : je.text);
        json_decref(row);
    }
    if (!rc && ferror(f)) rc = FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    fclose(f);
    free(text);
    return rc;
}

// ---------------------------------------------------------------------------
// Resume

typedef struct {
    const char *path;
    const char *const *tasks;
    const int *rows;            // (n_tasks, sessions)
    int n_tasks, sessions, n;   // n lines so far
    int *slot, *count;          // (n): task * sessions + session - 1, -1: error row; rows per slot
} Resume;

static int resume_row(void *user, const RowLine *l, Err *err) {
    Resume *r = (Resume *)user;
    int t = 0, s = get_int(l->row, "session");
    while (t < r->n_tasks && strcmp(r->tasks[t], get_str(l->row, "task"))) t++;
    if (t == r->n_tasks || s > r->sessions || !r->rows[t * r->sessions + s - 1])
        return FAIL(err, "%s: line %d belongs to another run (task %s, session %d)", r->path,
                    l->line, get_str(l->row, "task"), s);
    int slot = t * r->sessions + s - 1;
    if (!(r->n & (r->n + 1)))
        r->slot = (int *)xrealloc(r->slot, 2 * ((size_t)r->n + 1) * sizeof *r->slot);
    r->slot[r->n++] = is_error(l->row) ? -1 : slot;
    if (!is_error(l->row) && ++r->count[slot] > r->rows[slot])
        return FAIL(err, "%s: line %d repeats a turn of session %d of %s", r->path, l->line, s,
                    r->tasks[t]);
    return 0;
}

// the lines of finished sessions, in their order, replace the file
static int resume_cut(const Resume *r, Err *err) {
    StrBuf tmp = { 0 };
    char *line = NULL;
    size_t cap = 0;
    str_fmt(&tmp, "%s.tmp", r->path);
    FILE *in = fopen(r->path, "rb"), *out = fopen(tmp.p, "wb");
    bool ok = in && out;
    for (int i = 0; ok && i < r->n; i++) {
        ssize_t len = getline(&line, &cap, in);
        int slot = r->slot[i];
        ok = len > 0;
        if (ok && slot >= 0 && r->count[slot] == r->rows[slot])
            ok = fwrite(line, 1, (size_t)len, out) == (size_t)len;
    }
    ok = ok && fflush(out) == 0 && fsync(fileno(out)) == 0;
    if (in) fclose(in);
    if (out) ok = fclose(out) == 0 && ok;
    ok = ok && rename(tmp.p, r->path) == 0;
    int rc = ok ? 0 : FAIL(err, "%s: cannot be written: %s", r->path, strerror(errno));
    if (!ok) remove(tmp.p);
    free(line);
    free(tmp.p);
    return rc;
}

int report_resume(const char *dir, const char *const *tasks, int n_tasks, int sessions,
                  const int *rows, bool *done, Err *err) {
    StrBuf path = { 0 };
    size_t slots = (size_t)n_tasks * (size_t)sessions;
    str_fmt(&path, "%s/results.jsonl", dir);
    Resume r = { .path = path.p, .tasks = tasks, .rows = rows, .n_tasks = n_tasks,
                 .sessions = sessions };
    r.count = (int *)calloc(slots, sizeof *r.count);
    bool torn = false, drop = false;
    int rc = access(path.p, F_OK) ? 0 : rows_each(path.p, resume_row, &r, &torn, err);
    for (size_t i = 0; !rc && i < slots; i++) done[i] = rows[i] && r.count[i] == rows[i];
    for (int i = 0; !rc && i < r.n; i++) drop = drop || r.slot[i] < 0 || !done[r.slot[i]];
    if (!rc && (torn || drop)) rc = resume_cut(&r, err);
    free(r.slot);
    free(r.count);
    free(path.p);
    return rc;
}

// ---------------------------------------------------------------------------
// A run's directory and its manifest

static void set_now(json_t *m, const char *key) {
    char date[24];
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_object_set_new(m, key, json_string(date));
}

static int manifest_write(const char *path, const json_t *m, Err *err) {
    char *text = json_dumps(m, JSON_INDENT(2));
    int rc = write_whole(path, text, strlen(text), err);
    free(text);
    return rc;
}

static int differs(const char *path, const char *what, const json_t *had, const json_t *now,
                   const char *advice, Err *err) {
    char *a = json_dumps(had, JSON_ENCODE_ANY | JSON_COMPACT);
    char *b = json_dumps(now, JSON_ENCODE_ANY | JSON_COMPACT);
    int rc = FAIL(err, "%s: the run there has another %s: %s, not %s; %s", path, what,
                  a ? a : "none", b ? b : "none", advice);
    free(a);
    free(b);
    return rc;
}

// the same model and options, a missing one like another; skip: an option that may differ, or NULL
static int manifest_same(const char *path, const json_t *had, const json_t *now, const char *skip,
                         Err *err) {
    const json_t *a = json_object_get(json_object_get(had, "model"), "hash");
    const json_t *b = json_object_get(json_object_get(now, "model"), "hash");
    json_t *old = json_object_get(had, "options"), *options = json_object_get(now, "options");
    json_t *value;
    const char *key, *advice = skip ? "only shards of one run lie together"
                                    : "give that run's options, or another --out";
    if (!json_equal(a, b)) return differs(path, "model hash", a, b, advice, err);
    json_object_foreach(options, key, value) {
        a = json_object_get(old, key);
        if (skip && !strcmp(key, skip)) continue;
        if (!json_equal(a, value)) return differs(path, key, a, value, advice, err);
    }
    json_object_foreach(old, key, value) {
        if (skip && !strcmp(key, skip)) continue;
        if (!json_object_get(options, key)) return differs(path, key, value, NULL, advice, err);
    }
    return 0;
}

// manifest.json of dir; the caller's reference. NULL with err
static json_t *manifest_read(const char *dir, StrBuf *path, Err *err) {
    json_error_t je;
    path->n = 0;
    str_fmt(path, "%s/manifest.json", dir);
    json_t *m = json_load_file(path->p, 0, &je);
    if (!m) FAIL(err, "%s: there is no run: %s", path->p, je.text);
    return m;
}

int report_same_run(const char *dir_a, const char *dir_b, Err *err) {
    StrBuf path = { 0 };
    json_t *a = manifest_read(dir_a, &path, err);
    json_t *b = a ? manifest_read(dir_b, &path, err) : NULL;
    int rc = b ? manifest_same(path.p, b, a, "shard", err) : -1;
    json_decref(a);
    json_decref(b);
    free(path.p);
    return rc;
}

static int make_dirs(const char *dir, Err *err) {
    StrBuf path = { 0 };
    int rc = 0;
    for (const char *p = dir; !rc && (p = strchr(p + 1, '/')) != NULL;) {
        path.n = 0;
        str_add(&path, dir, (size_t)(p - dir));
        if (mkdir(path.p, 0777) && errno != EEXIST)
            rc = FAIL(err, "%s: cannot be made: %s", path.p, strerror(errno));
    }
    if (!rc && mkdir(dir, 0777)) rc = FAIL(err, "%s: cannot be made: %s", dir, strerror(errno));
    free(path.p);
    return rc;
}

int report_begin(const char *dir, const char *manifest, bool resume, Err *err) {
    StrBuf path = { 0 };
    json_t *now = json_loads(manifest, 0, NULL);
    CHECK(now, "the manifest is no JSON");
    str_fmt(&path, "%s/manifest.json", dir);
    set_now(now, "started");
    json_object_set_new(now, "ended", json_null());
    int rc = 0;
    if (resume) {
        json_t *had = manifest_read(dir, &path, err);
        rc = had ? manifest_same(path.p, had, now, NULL, err) : -1;
        if (!rc) json_object_set(now, "started", json_object_get(had, "started"));
        json_decref(had);
    } else rc = make_dirs(dir, err);
    if (!rc) rc = manifest_write(path.p, now, err);
    json_decref(now);
    free(path.p);
    return rc;
}

int report_end(const char *dir, Err *err) {
    StrBuf path = { 0 };
    json_error_t je;
    str_fmt(&path, "%s/manifest.json", dir);
    json_t *m = json_load_file(path.p, 0, &je);
    int rc = m ? 0 : FAIL(err, "%s: cannot be read: %s", path.p, je.text);
    if (!rc) {
        set_now(m, "ended");
        rc = manifest_write(path.p, m, err);
    }
    json_decref(m);
    free(path.p);
    return rc;
}

// ---------------------------------------------------------------------------
// Plans

void plan_print(FILE *out, const Config *c, const PlanLine *lines, int n, int n_tokens) {
    int layers = config_attn_layers(c), name_w = 6;
    size_t row = config_row_bytes(c), token = row * (size_t)layers * (size_t)c->n_kv_heads,
           free_bytes = config_memory(c);
    for (int i = 0; i < n; i++)
        if ((int)strlen(lines[i].label) > name_w) name_w = (int)strlen(lines[i].label);
    fprintf(out, "one row of one KV head: %zu B; a token in all %d layers x %d heads: %zu B; "
            "%d tokens kept whole: %.1f MB\n", row, layers, c->n_kv_heads, token, n_tokens,
            1e-6 * (double)token * n_tokens);
    fprintf(out, "%-*s %12s %11s %12s %11s %11s\n", name_w, "MB", "weights +", "KV +", "scratch +",
            "policy =", "total");
    for (int i = 0; i < n; i++) {
        const Plan *p = &lines[i].plan;
        fprintf(out, "%-*s %10.2f   %9.2f   %10.2f   %9.2f   %9.2f%s\n", name_w, lines[i].label,
                1e-6 * (double)p->weights, 1e-6 * (double)p->kv, 1e-6 * (double)p->scratch,
                1e-6 * (double)p->policy, 1e-6 * (double)p->total,
                p->upper_bound ? "  at most" : "");
        if (p->host) fprintf(out, "%-*s %10.2f MB of rows in host memory\n", name_w, "", 1e-6 *
                             (double)p->host);
    }
    if (!free_bytes) return;
    fprintf(out, "available now: %.1f MB\n", 1e-6 * (double)free_bytes);
    Config one = *c;
    one.stream = true;
    if (!c->stream && config_weight_bytes(c) > free_bytes)
        fprintf(out, "the weights are larger than that; --stream-weights holds one layer at a time "
                "and what belongs to none: %.1f MB\n", 1e-6 * (double)config_weight_bytes(&one));
}
