// compress.c - scbench compress: LLMLingua-2 alone, and the compressed contexts of a run.
#include "lingua.h"
#include <xxhash.h>
#include <sys/stat.h>

typedef struct {
    const char *text, *out, *words, *force, *preset, *specials, *shape;
    double rate;
    int target, threads;
    bool drop_consecutive, reserve_digits, first_token, stats, verify, quiet, help;
} CompressOpts;

#define AT(field) offsetof(CompressOpts, field)
static const OptSpec compress_opts[] = {
    { "--text", NULL, OPT_STR, AT(text), NULL, "FILE", "what to compress" },
    { "--rate", NULL, OPT_REAL, AT(rate), "0", "R",
      "share of the tokens to keep, above 0 and at most 1; default: the preset's" },
    { "--target", NULL, OPT_INT, AT(target), "0", "N", "tokens to keep, instead of a rate" },
    { "--preset", NULL, OPT_STR, AT(preset), "scbench", "scbench|upstream",
      "scbench: rate 1/3, line ends and question marks stay; upstream: rate 0.5, nothing forced" },
    { "--force", NULL, OPT_STR, AT(force), NULL, "LIST",
      "texts that always stay, by comma; \\n is a line end, \\, a comma; default: the preset's" },
    { "--specials", NULL, OPT_STR, AT(specials), "official", "official|fixed",
      "ids around a sequence: as the package feeds them, or as the encoder was trained" },
    { "--drop-consecutive", NULL, OPT_FLAG, AT(drop_consecutive), NULL, NULL,
      "of forced texts that follow each other only the first one stays" },
    { "--reserve-digits", NULL, OPT_FLAG, AT(reserve_digits), NULL, NULL,
      "words with a digit stay" },
    { "--first-token", NULL, OPT_FLAG, AT(first_token), NULL, NULL,
      "a word is worth what its first token is, not the mean of its tokens" },
    { "--out", NULL, OPT_STR, AT(out), NULL, "FILE",
      "the compressed text; default: standard output" },
    { "--words", NULL, OPT_STR, AT(words), NULL, "FILE.tsv",
      "every word with 1 or 0: kept or not" },
    { "--stats", NULL, OPT_FLAG, AT(stats), NULL, NULL,
      "where the time went, against ceilings measured before and after" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores; changes no bit" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the file's checksums (always below 1 GB)" },
    { "--quiet", NULL, OPT_FLAG, AT(quiet), NULL, NULL, "no progress" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};

// ---------------------------------------------------------------------------
// Presets and what is set over them

static int force_list(const char *list, LinguaSet *f, Err *err) {
    StrBuf item = { 0 };
    for (const char *s = list;; s++) {
        bool end = !*s || *s == ',';
        if (!end) {
            if (*s == '\\' && s[1]) s++, str_add(&item, *s == 'n' ? "\n" : *s == 't' ? "\t" : s, 1);
            else str_add(&item, s, 1);
            continue;
        }
        if (!item.n || f->o.n_force == LINGUA_FORCED) {
            free(item.p);
            return FAIL_CODE(err, EXIT_USAGE, "texts that always stay are at most %d, separated by "
                             "commas, none of them empty, got '%s'", LINGUA_FORCED, list);
        }
        f->text[f->o.n_force++] = item.p;
        memset(&item, 0, sizeof item);
        if (!*s) return 0;
    }
}

int lingua_set(const PromptStage *p, LinguaSet *s, Err *err) {
    const char *preset = p->preset ? p->preset : "scbench";
    bool scbench = !strcmp(preset, "scbench");
    memset(s, 0, sizeof *s);
    if (!scbench && strcmp(preset, "upstream"))
        return FAIL_CODE(err, EXIT_USAGE, "a preset of prompt compression is scbench or upstream, "
                         "not '%s'", preset);
    if (p->rate > 0 && p->target)
        return FAIL_CODE(err, EXIT_USAGE, "a rate and a target of prompt compression exclude each "
                         "other");
    s->o.rate = p->rate != 0 ? p->rate : scbench ? 1.0 / 3 : 0.5;
    s->o.target_tokens = p->target;
    s->o.context_filter = true;
    s->o.reserve_digits = p->reserve_digits;
    s->o.drop_consecutive = p->drop_consecutive;
    s->o.first_token = p->first_token;
    s->fixed_specials = p->fixed_specials;
    const char *force = p->force ? p->force : scbench ? "\\n,?" : NULL;
    if (force && *force && force_list(force, s, err)) {
        lingua_set_free(s);
        return -1;
    }
    s->o.force = (const char *const *)s->text;
    return 0;
}

void lingua_set_free(LinguaSet *s) {
    for (int i = 0; i < s->o.n_force; i++) free(s->text[i]);
    s->o.n_force = 0;
}

// ---------------------------------------------------------------------------
// Compressed contexts of a run, kept between runs: DIR/KEY.txt, the key being a hash of encoder,
// options and text, with a first line that says how many tokens there were before and after

static uint64_t key_of(const Lingua *w, const LinguaSet *set, const char *s, size_t n) {
    const LinguaOpts *o = &set->o;
    StrBuf t = { 0 };
    str_fmt(&t, "%016llx %.17g %d %d %d %d %d", (unsigned long long)lingua_hash(w), o->rate,
            o->target_tokens, set->fixed_specials, o->reserve_digits, o->drop_consecutive,
            o->first_token);
    for (int i = 0; i < o->n_force; i++) str_fmt(&t, " %zu:%s", strlen(o->force[i]), o->force[i]);
    str_add(&t, "", 1);
    str_add(&t, s, n);
    uint64_t h = XXH64(t.p, t.n, 0);
    free(t.p);
    return h;
}

static bool cache_read(const char *path, LinguaResult *out) {
    FILE *f = fopen(path, "rb");
    char part[1 << 14];
    size_t n;
    unsigned long long hash;
    int end = 0;
    if (!f) return false;
    bool ok = fgets(part, sizeof part, f) && sscanf(part, "%d %d %llx%n", &out->tokens_before,
                                                    &out->tokens_after, &hash, &end) == 3 &&
              part[end] == '\n';
    str_add(&out->text, "", 0);
    while (ok && (n = fread(part, 1, sizeof part, f)) > 0) str_add(&out->text, part, n);
    fclose(f);
    ok = ok && XXH64(out->text.p, out->text.n, 0) == hash;      // a torn file is made again
    if (!ok) lingua_result_free(out);
    return ok;
}

int lingua_cached(Lingua *w, const LinguaSet *set, const char *dir, const char *s, size_t n,
                  LinguaResult *out, Err *err) {
    char path[1024];
    memset(out, 0, sizeof *out);
    if (dir) {
        snprintf(path, sizeof path, "%s/%016llx.txt", dir,
                 (unsigned long long)key_of(w, set, s, n));
        if ((out->read = cache_read(path, out))) return 0;
    }
    if (lingua_run(w, &set->o, set->fixed_specials, &s, &n, 1, out, err)) return -1;
    if (!dir) return 0;
    StrBuf file = { 0 };
    if (mkdir(dir, 0777) && errno != EEXIST) {
        lingua_result_free(out);
        return FAIL(err, "%s: cannot be made: %s", dir, strerror(errno));
    }
    str_fmt(&file, "%d %d %016llx\n", out->tokens_before, out->tokens_after,
            (unsigned long long)XXH64(out->text.p, out->text.n, 0));
    str_add(&file, out->text.p, out->text.n);
    int rc = write_whole(path, file.p, file.n, err);
    free(file.p);
    if (rc) lingua_result_free(out);
    return rc;
}

// ---------------------------------------------------------------------------
// The command

static int read_text(const char *path, StrBuf *out, Err *err) {
    FILE *f = fopen(path, "rb");
    char part[1 << 16];
    size_t n;
    str_add(out, "", 0);
    while (f && (n = fread(part, 1, sizeof part, f)) > 0) str_add(out, part, n);
    int rc = f && !ferror(f) ? 0 : FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    if (f) fclose(f);
    return rc;
}

static int write_words(const char *path, const LinguaResult *r, Err *err) {
    StrBuf out = { 0 };
    str_puts(&out, "kept\tword\n");
    for (int i = 0; i < r->n_words; i++) {
        str_fmt(&out, "%d\t", r->word[i].kept);
        json_text(&out, r->word[i].text, strlen(r->word[i].text));
        str_puts(&out, "\n");
    }
    int rc = write_whole(path, out.p, out.n, err);
    free(out.p);
    return rc;
}

static bool show(void *user, double share) {
    progress_update((Progress *)user, share);
    return interrupted();
}

// Time of the network's phases as a share of what the matrix unit could do, and what is outside it;
// top: before and after
static void stats_print(FILE *out, const LinguaPhases *p, const LinguaResult *r,
                        const Ceilings top[2]) {
    double unit = (top[0].tile_tflops + top[1].tile_tflops) / 2;
    double product = (top[0].gemm_tflops + top[1].gemm_tflops) / 2;
    double flops = p->linear_flops + p->attn_flops;
    const struct { const char *name; double seconds, flops; } line[] = {
        { "linear", p->linear_s, p->linear_flops }, { "attention", p->attn_s, p->attn_flops },
        { "rest of the network", p->total_s - p->linear_s - p->attn_s, 0 },
        { "outside the network", r->total_s - p->total_s, 0 },
        { "all", r->total_s, flops },
    };
    fprintf(out, "%s, %d threads; ceilings before and after: matrix unit %.2f TF/s, own matrix "
            "product %.2f TF/s\n", cpu_isa(), cpu_threads(), unit, product);
    fprintf(out, "%-20s %9s %7s %11s %7s %8s\n", "phase", "s", "% time", "GFLOP", "TF/s",
            "% limit");
    for (size_t i = 0; i < COUNTOF(line); i++) {
        fprintf(out, "%-20s %9.3f %7.2f", line[i].name, line[i].seconds,
                100 * line[i].seconds / r->total_s);
        if (line[i].flops == 0) fprintf(out, " %11s %7s %8s\n", "-", "-", "-");
        else fprintf(out, " %11.1f %7.3f %8.1f\n", 1e-9 * line[i].flops,
                     1e-12 * line[i].flops / line[i].seconds,
                     1e-10 * line[i].flops / line[i].seconds / unit);
    }
    fprintf(out, "%lld tokens of the encoder, %.1f tok/s\n", (long long)p->tokens,
            (double)p->tokens / r->total_s);
}

static int compress_file(const CompressOpts *o, const char *encoder, Err *err) {
    PromptStage stage = { true, o->rate, o->target, o->preset, o->force, false, o->reserve_digits,
                          o->drop_consecutive, o->first_token };
    LinguaSet set;
    LinguaResult r = { .n_words = 0 };
    StrBuf text = { 0 };
    ModelFile file;
    Progress progress;
    stage.fixed_specials = !strcmp(o->specials, "fixed");
    if (!stage.fixed_specials && strcmp(o->specials, "official"))
        return FAIL_CODE(err, EXIT_USAGE, "--specials wants official or fixed, got '%s'",
                         o->specials);
    if (lingua_set(&stage, &set, err)) return -1;
    if (cpu_init(o->threads, err) || read_text(o->text, &text, err) ||
        file_open(&file, encoder, o->verify, err)) return -1;
    interrupt_install();
    Lingua *w = lingua_open(&file, err);
    progress_begin(&progress, "compress", 1, o->quiet);
    if (w) lingua_set_progress(w, show, &progress);
    const char *one = text.p;
    Ceilings top[2] = { { 0, 0, 0 }, { 0, 0, 0 } };
    enum { BUFFER = 64 << 20 };         // what is read is of no use here
    if (w && o->stats) top[0] = cpu_ceilings(BUFFER, 0.5);
    int rc = w ? lingua_run(w, &set.o, set.fixed_specials, &one, &text.n, 1, &r, err) : -1;
    progress_end(&progress);
    if (!rc && o->stats) {
        LinguaPhases p = lingua_phases(w);
        top[1] = cpu_ceilings(BUFFER, 0.5);
        stats_print(stderr, &p, &r, top);
    }
    if (!rc && o->words) rc = write_words(o->words, &r, err);
    if (!rc && o->out) rc = write_whole(o->out, r.text.p, r.text.n, err);
    else if (!rc && fwrite(r.text.p, 1, r.text.n, stdout) != r.text.n)
        rc = FAIL(err, "the text cannot be written: %s", strerror(errno));
    if (!rc && !o->quiet)
        fprintf(stderr, "%d tokens became %d (%.1f %%) in %.2f s, %.2f s of them in the encoder\n",
                r.tokens_before, r.tokens_after,
                r.tokens_before ? 100.0 * r.tokens_after / r.tokens_before : 0.0, r.total_s,
                r.network_s);
    lingua_result_free(&r);
    lingua_close(w);
    file_close(&file);
    lingua_set_free(&set);
    free(text.p);
    return rc;
}

int lingua_command(int argc, char **argv, Err *err) {
    CompressOpts o;
    StrList pos;
    int rc = opts_parse(compress_opts, (int)COUNTOF(compress_opts), argc, argv, &o, &pos, err);
    if (rc) return -1;
    if (o.help) {
        puts("scbench compress ENCODER.bin --text FILE [options]\n"
             "LLMLingua-2 (arXiv 2403.12968): leaves out the words that an encoder finds least "
             "worth keeping\n");
        opts_help(stdout, compress_opts, (int)COUNTOF(compress_opts));
    } else if (pos.n != 1 || !o.text) {
        rc = FAIL_CODE(err, EXIT_USAGE,
                       "usage: scbench compress ENCODER.bin --text FILE [--rate R]");
    } else rc = compress_file(&o, pos.p[0], err);
    free(pos.p);
    return rc;
}
