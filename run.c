// run.c - the shortest program on top of the runtime: open a model, feed a prompt, sample, print.
//
// One prompt, a chat on the terminal or through a pipe, or only the tokenizer.
#include "scb.h"
#include <jansson.h>
#include <sys/stat.h>

typedef struct {
    const char *prompt, *file, *ids, *method, *logits, *encode, *decode, *encode_jsonl, *device;
    int n, threads, gpus;
    int64_t seed;
    double temp;
    bool chat, stream, help;
} Opts;

#define AT(field) offsetof(Opts, field)
static const OptSpec options[] = {
    { "--prompt", "-p", OPT_STR, AT(prompt), NULL, "TEXT", "text to continue, without a template" },
    { "--file", "-f", OPT_STR, AT(file), NULL, "FILE", "the same from a file; - is stdin" },
    { "--ids", NULL, OPT_STR, AT(ids), NULL, "FILE",
      "the prompt as ids, separated by white space; prints the ids that follow" },
    { "--chat", NULL, OPT_FLAG, AT(chat), NULL, NULL,
      "one message per line of standard input; /reset begins a new conversation" },
    { "--tokens", "-n", OPT_INT, AT(n), "200", "N", "new tokens, per answer in a chat" },
    { "--temp", NULL, OPT_REAL, AT(temp), "0", "T", "sampling temperature; 0: likeliest token" },
    { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "of the sampling" },
    { "--method", NULL, OPT_STR, AT(method), "full", "NAME", "what the KV cache keeps" },
    { "--logits", NULL, OPT_STR, AT(logits), NULL, "OUT.f32",
      "write the logits after the prompt and after each new token: raw rows of fp32" },
    { "--device", NULL, OPT_STR, AT(device), "cpu", "cpu|cuda", "where to compute" },
    { "--gpus", NULL, OPT_INT, AT(gpus), "1", "N", "GPUs that share the layers of a transformer" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores" },
    { "--stream-weights", NULL, OPT_FLAG, AT(stream), NULL, NULL,
      "hold one layer at a time: for a model larger than the memory" },
    { "--encode", NULL, OPT_STR, AT(encode), NULL, "FILE", "print the ids of a text, without BOS" },
    { "--decode", NULL, OPT_STR, AT(decode), NULL, "FILE", "print the text of ids" },
    { "--encode-jsonl", NULL, OPT_STR, AT(encode_jsonl), NULL, "FILE",
      "a JSON string per line in, a JSON array of ids per line out" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this page" },
};

typedef struct {
    const Opts *o;
    ModelFile file;
    Tok *tok;
    Model *model;
    Branch *branch;
    Rng rng;
    FILE *logits;
    int pos;                    // tokens fed
    int32_t unfed;              // the last new token if nobody needed its logits, else -1
    StrBuf held;                // bytes of a character whose end is still to come
    int n_new;
    double prompt_s, new_s;
    Progress progress;
} Run;

static void usage(FILE *out) {
    fputs("run MODEL.bin [-p TEXT | -f FILE | --ids FILE | --chat] [options]\n"
          "run MODEL.bin --encode FILE | --decode FILE | --encode-jsonl FILE\n\n", out);
    opts_help(out, options, COUNTOF(options));
}

// ---------------------------------------------------------------------------
// Files

static int read_file(const char *path, StrBuf *out, Err *err) {
    FILE *in = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    char part[1 << 16];
    if (!in) return FAIL(err, "%s: %s", path, strerror(errno));
    str_add(out, "", 0);
    for (size_t n; (n = fread(part, 1, sizeof part, in)) > 0;) str_add(out, part, n);
    int bad = ferror(in) ? errno : 0;
    if (in != stdin) fclose(in);
    return bad ? FAIL(err, "%s: %s", path, strerror(bad)) : 0;
}

static int read_ids(const char *path, int64_t lo, int64_t hi, IntVec *out, Err *err) {
    StrBuf s = {0};
    int64_t id;
    int bad = read_file(path, &s, err);
    if (!bad && strlen(s.p) != s.n) bad = FAIL(err, "%s: NUL bytes between the ids", path);
    for (char *save = NULL, *word = bad ? NULL : strtok_r(s.p, " \t\r\n\v\f", &save); !bad && word;
         word = strtok_r(NULL, " \t\r\n\v\f", &save)) {
        Err why = {0};
        bad = parse_int("an id", word, lo, hi, &id, &why);
        if (bad) FAIL(err, "%s: %s", path, why.msg);
        else ints_push(out, (int32_t)id);
    }
    free(s.p);
    return bad;
}

static int flushed(Err *err) {
    return fflush(stdout) || ferror(stdout) ? FAIL(err, "standard output: %s", strerror(errno)) : 0;
}

// ---------------------------------------------------------------------------
// The tokenizer alone

static int encode_file(const Tok *t, const char *path, Err *err) {
    StrBuf s = {0};
    IntVec ids = {0};
    int bad = read_file(path, &s, err);
    if (!bad) tok_encode(t, s.p, s.n, TOK_SPECIAL, &ids);
    for (size_t i = 0; i < ids.n; i++) printf(i ? " %d" : "%d", ids.p[i]);
    if (!bad) putchar('\n');
    free(s.p);
    free(ids.p);
    return bad;
}

static int encode_line(const Tok *t, const char *line, size_t n, Err *err) {
    json_error_t why;
    json_t *j = json_loadb(line, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    IntVec ids = {0};
    int bad = !j ? FAIL(err, "%s", why.text)
            : json_is_string(j) ? 0 : FAIL(err, "this is not a JSON string");
    if (!bad) tok_encode(t, json_string_value(j), json_string_length(j), TOK_SPECIAL, &ids);
    for (size_t i = 0; !bad && i < ids.n; i++) printf(i ? ",%d" : "[%d", ids.p[i]);
    if (!bad) puts(ids.n ? "]" : "[]");
    free(ids.p);
    json_decref(j);
    return bad;
}

static int encode_jsonl(const Tok *t, const char *path, Err *err) {
    StrBuf s = {0};
    int bad = read_file(path, &s, err), line = 1;
    for (size_t at = 0, n; !bad && at < s.n; at += n + 1, line++) {
        const char *end = memchr(s.p + at, '\n', s.n - at);
        Err why = {0};
        n = end ? (size_t)(end - s.p) - at : s.n - at;
        bad = encode_line(t, s.p + at, n, &why);
        if (bad) FAIL(err, "%s line %d: %s", path, line, why.msg);
    }
    free(s.p);
    return bad;
}

static int decode_file(const Tok *t, const char *path, Err *err) {
    IntVec ids = {0};
    StrBuf text = {0};
    int bad = read_ids(path, INT32_MIN, INT32_MAX, &ids, err);
    if (!bad) tok_decode(t, ids.p, ids.n, 0, &text);
    if (!bad && text.n) fwrite(text.p, 1, text.n, stdout);
    free(ids.p);
    free(text.p);
    return bad;
}

// ---------------------------------------------------------------------------
// Generating

// bytes of s before a character that is not complete yet
static size_t whole_chars(const char *s, size_t n) {
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        uint8_t c = (uint8_t)s[n - k];
        if ((c & 0xc0) == 0x80) continue;
        size_t need = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        return need > k ? n - k : n;
    }
    return n;
}

static void show(Run *r, int32_t id) {
    if (r->o->ids) {
        printf(r->n_new ? " %d" : "%d", id);
    } else {
        tok_decode(r->tok, &id, 1, TOK_SKIP_SPECIAL | (r->n_new ? TOK_MIDDLE : 0), &r->held);
        size_t n = whole_chars(r->held.p, r->held.n);
        fwrite(r->held.p, 1, n, stdout);
        if (n) memmove(r->held.p, r->held.p + n, r->held.n - n);
        r->held.n -= n;
    }
    fflush(stdout);
}

// p_i ~ 2^((logit_i - max) log2(e) / temp)
static int32_t pick(Run *r) {
    const float *logits = branch_logits(r->branch);
    int best = branch_argmax(r->branch), n = model_config(r->model)->vocab_size;
    if (r->o->temp == 0) return best;
    float scale = (float)(1.4426950408889634 / r->o->temp), max = logits[best];
    double sum = 0;
    for (int i = 0; i < n; i++) sum += fexp2((logits[i] - max) * scale);
    double left = sum * (double)(rng_next(&r->rng) >> 11) * 0x1p-53;
    for (int i = 0; i < n; i++) {
        left -= fexp2((logits[i] - max) * scale);
        if (left < 0) return i;
    }
    return best;                // rounding used up the whole sum
}

static bool on_progress(void *user, double share) {
    Run *r = user;
    progress_update(&r->progress, share * r->progress.total);
    return interrupted();
}

static int feed(Run *r, const IntVec *ids, Err *err) {
    int max = model_config(r->model)->max_ctx;
    if (ids->n > (size_t)(max - r->pos))
        return FAIL(err, "the %s has %zu tokens, the model's longest context is %d",
                    r->pos ? "conversation" : "prompt", (size_t)r->pos + ids->n, max);
    double t = now_s();
    progress_begin(&r->progress, "prompt", (double)ids->n, !isatty(STDERR_FILENO));
    int bad = branch_feed(r->branch, ids->p, (int)ids->n, r->pos ? 0 : FEED_FIRST, err);
    progress_end(&r->progress);
    r->pos += (int)ids->n;
    r->prompt_s = now_s() - t;
    return bad;
}

static int keep_logits(Run *r, Err *err) {
    size_t n = (size_t)model_config(r->model)->vocab_size;
    if (!r->logits || fwrite(branch_logits(r->branch), sizeof(float), n, r->logits) == n) return 0;
    return FAIL(err, "%s.tmp: %s", r->o->logits, strerror(errno));
}

// new tokens up to a stop id, the limit, the end of the context or an interrupt
static int generate(Run *r, Err *err) {
    int n = r->o->n, max = model_config(r->model)->max_ctx, bad = keep_logits(r, err);
    double t = now_s();
    r->unfed = -1;
    r->n_new = 0;
    while (!bad && r->n_new < n && !interrupted()) {
        if ((bad = branch_finite(r->branch, err))) break;
        int32_t id = pick(r);
        if (tok_is_stop(r->tok, id)) break;
        show(r, id);
        r->n_new++;
        r->unfed = id;
        if (r->n_new == n && !r->logits) break;
        if (r->pos == max) {
            fprintf(stderr, "\nrun: stopped at the model's longest context, %d tokens\n", max);
            break;
        }
        bad = branch_step(r->branch, id, err) || keep_logits(r, err) ? -1 : 0;
        r->unfed = -1;
        r->pos++;
    }
    r->new_s = now_s() - t;
    if (r->held.n) fwrite(r->held.p, 1, r->held.n, stdout);
    r->held.n = 0;
    return bad ? -1 : flushed(err);
}

static int answer(Run *r, const IntVec *prompt, Err *err) {
    if (feed(r, prompt, err) || generate(r, err)) return -1;
    putchar('\n');
    fflush(stdout);
    fprintf(stderr, "prompt %zu tokens, %.1f tok/s; new %d tokens, %.1f tok/s\n", prompt->n,
            (double)prompt->n / r->prompt_s, r->n_new, r->n_new ? r->n_new / r->new_s : 0);
    return flushed(err);
}

static int open_branch(Run *r, int ctx, Err *err) {
    Method method;
    if (method_find(r->o->method, &method, err)) return -1;
    if (method.prompt.on)
        return FAIL_CODE(err, EXIT_USAGE, "--method %s: llmlingua2 compresses the contexts of "
                         "scbench; for one text see scbench compress", r->o->method);
    if (method_resolve(&method, PRESET_SCBENCH, ctx, 0, -1, err)) return -1;
    int max = model_config(r->model)->max_ctx, n = r->o->n;
    r->branch = branch_open(r->model, NULL, &method, n < max ? n : max, err);
    return r->branch ? 0 : -1;
}

static int one_prompt(Run *r, Err *err) {
    const Opts *o = r->o;
    IntVec ids = {0};
    StrBuf text = {0};
    int bad = 0;
    if (o->ids) bad = read_ids(o->ids, 0, model_config(r->model)->vocab_size - 1, &ids, err);
    else if (o->file) bad = read_file(o->file, &text, err);
    else str_puts(&text, o->prompt ? o->prompt : "");
    if (!bad && !o->ids) tok_encode(r->tok, text.p, text.n, TOK_SPECIAL | TOK_BOS, &ids);
    if (!bad && !ids.n) bad = FAIL(err, "the prompt has no tokens; give some text with -p");
    if (!bad) bad = open_branch(r, (int)ids.n, err);
    if (!bad) bad = answer(r, &ids, err);
    free(ids.p);
    free(text.p);
    return bad;
}

// ---------------------------------------------------------------------------
// Chat: the next feed is what closes the last answer, the user's turn and the answer's header

static void add_piece(const Run *r, ChatPiece piece, IntVec *ids) {
    const IntVec *p = &tok_chat(r->tok)->ids[piece];
    ints_add(ids, p->p, p->n);
}

static void add_message(const Run *r, const char *s, size_t n, IntVec *ids) {
    const ChatPieces *c = tok_chat(r->tok);
    bool first = r->pos == 0;
    if (first) add_piece(r, CHAT_PREFIX, ids);
    add_piece(r, first ? CHAT_FIRST_OPEN : CHAT_USER_OPEN, ids);
    tok_encode(r->tok, s, n, first ? c->first_text : c->user_text, ids);
    add_piece(r, CHAT_USER_CLOSE, ids);
    add_piece(r, CHAT_ASSISTANT_OPEN, ids);
}

// a message of n bytes in s, without the white space that the template strips
static const char *message(const Run *r, const char *s, size_t *n) {
    static const char space[] = " \t\r\n\v\f";
    bool trim = tok_chat(r->tok)->trim;
    *n -= *n && s[*n - 1] == '\n';
    for (; trim && *n && memchr(space, *s, 6); --*n) s++;
    while (trim && *n && memchr(space, s[*n - 1], 6)) --*n;
    return s;
}

static int chat(Run *r, Err *err) {
    bool tty = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t cap = 0;
    int bad = open_branch(r, model_config(r->model)->max_ctx, err);
    IntVec ids = {0};
    if (tty) fputs("one message per line; /reset begins a new conversation, ctrl-D ends\n", stderr);
    while (!bad && !interrupted()) {
        if (tty) fputs("> ", stdout);
        fflush(stdout);
        ssize_t got = getline(&line, &cap, stdin);
        if (got < 0) break;
        size_t n = (size_t)got;
        const char *s = message(r, line, &n);
        if (!n) continue;
        if (n == 6 && !memcmp(s, "/reset", 6)) {
            branch_drop(r->branch);
            r->branch = NULL;
            r->pos = 0;
            ids.n = 0;
            bad = open_branch(r, model_config(r->model)->max_ctx, err);
            continue;
        }
        add_message(r, s, n, &ids);
        bad = answer(r, &ids, err);
        ids.n = 0;
        if (r->unfed >= 0) ints_push(&ids, r->unfed);
        add_piece(r, CHAT_ASSISTANT_CLOSE, &ids);
    }
    if (tty) putchar('\n');
    free(line);
    free(ids.p);
    return bad ? -1 : flushed(err);
}

// ---------------------------------------------------------------------------
// Main

static int run_model(Run *r, Err *err) {
    const Opts *o = r->o;
    ModelOpts opts = { .stream = o->stream };
    if (device_choice(o->device, o->gpus, &opts.device, err) || cpu_init(o->threads, err))
        return -1;
    opts.gpus = o->gpus;
    r->model = model_open(&r->file, &opts, err);
    if (!r->model || file_all_used(&r->file, err)) return -1;
    model_set_progress(r->model, on_progress, r);
    if (!o->chat) return one_prompt(r, err);
    if (!tok_chat(r->tok)->present)
        return FAIL(err, "%s has no chat template; give the text with -p", r->file.path);
    return chat(r, err);
}

static int with_logits(Run *r, Err *err) {
    const char *path = r->o->logits;
    struct stat there;
    StrBuf tmp = {0};
    if (!path) return run_model(r, err);
    if (!stat(path, &there) && !S_ISREG(there.st_mode))         // a rename would replace /dev/null
        return FAIL(err, "--logits %s: not a regular file", path);
    str_fmt(&tmp, "%s.tmp", path);
    r->logits = fopen(tmp.p, "wb");
    int bad = r->logits ? run_model(r, err) : FAIL(err, "%s: %s", tmp.p, strerror(errno));
    bool opened = r->logits;
    if (opened && fclose(r->logits) && !bad) bad = FAIL(err, "%s: %s", tmp.p, strerror(errno));
    if (!bad && !interrupted() && rename(tmp.p, path))
        bad = FAIL(err, "%s: %s", path, strerror(errno));
    if (opened && (bad || interrupted())) unlink(tmp.p);
    free(tmp.p);
    return bad;
}

static int run(Run *r, const char *path, Err *err) {
    const Opts *o = r->o;
    if (file_open(&r->file, path, false, err)) return -1;
    r->tok = tok_open(&r->file, err);
    if (!r->tok) return -1;
    if (o->encode || o->decode || o->encode_jsonl) {
        int bad = o->encode ? encode_file(r->tok, o->encode, err)
                : o->decode ? decode_file(r->tok, o->decode, err)
                : encode_jsonl(r->tok, o->encode_jsonl, err);
        return bad ? -1 : flushed(err);
    }
    interrupt_install();
    return with_logits(r, err);
}

static int check_options(const Opts *o, const StrList *pos, Err *err) {
    int modes = !!o->prompt + !!o->file + !!o->ids + o->chat + !!o->encode + !!o->decode
              + !!o->encode_jsonl;
    const char *wrong = pos->n == 0 ? "name a model file: run MODEL.bin -p TEXT; see --help"
        : pos->n > 1 ? "more than one model file; a text goes behind -p"
        : modes > 1 ? "choose one of -p, -f, --ids, --chat, --encode, --decode and --encode-jsonl"
        : o->n < 0 ? "--tokens wants 0 or more"
        : o->temp < 0 ? "--temp wants 0 or more"
        : o->threads < 0 ? "--threads wants 0 or more"
        : o->logits && o->chat ? "--logits goes with one prompt, not with --chat" : NULL;
    return wrong ? FAIL_CODE(err, EXIT_USAGE, "%s", wrong) : 0;
}

int main(int argc, char **argv) {
    Opts o;
    StrList pos = {0};
    Err err = {0};
    Run r = { .o = &o, .unfed = -1 };
    int bad = opts_parse(options, COUNTOF(options), argc, argv, &o, &pos, &err);
    if (!bad && o.help) {
        usage(stdout);
        return 0;
    }
    if (!bad) bad = check_options(&o, &pos, &err);
    r.rng.s = mix64((uint64_t)o.seed);
    if (!bad) bad = run(&r, pos.p[0], &err);
    branch_drop(r.branch);
    model_close(r.model);
    tok_close(r.tok);
    file_close(&r.file);
    free(r.held.p);
    free(pos.p);
    if (interrupted()) return EXIT_INTERRUPTED;
    if (bad) fprintf(stderr, "run: %s\n", err.msg);
    return !bad ? 0 : err.code ? err.code : EXIT_USER;
}
