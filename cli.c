// cli.c - the command line: option tables, "did you mean", interrupts, progress.
#include "scb.h"
#include <ctype.h>
#include <signal.h>
#include <sys/ioctl.h>

// ---------------------------------------------------------------------------
// Names

// edit distance with swaps of neighbours (optimal string alignment), letters of either case equal
static int edit_distance(const char *a, const char *b) {
    enum { MAX = 63 };
    int d[3][MAX + 1];
    int la = (int)strlen(a), lb = (int)strlen(b);
    if (la > MAX || lb > MAX) return INT_MAX;
    for (int j = 0; j <= lb; j++) d[0][j] = j;
    for (int i = 1; i <= la; i++) {
        int *row = d[i % 3], *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= lb; j++) {
            int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);
            int best = up[j - 1] + (x != y);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) &&
                y == tolower((unsigned char)a[i - 2]) && up2[j - 2] + 1 < best)
                best = up2[j - 2] + 1;
            row[j] = best;
        }
    }
    return d[la % 3][lb];
}

// the nearest name within one edit and one more per three letters, else the only name that
// the word begins
int did_you_mean(const char *word, const char *const *names, int n) {
    int len = (int)strlen(word), best = -1, best_d = 1 + len / 3, starts = -1, n_starts = 0;
    for (int i = 0; i < n; i++) {
        int d = edit_distance(word, names[i]);
        if (d < best_d || (d == best_d && best < 0)) best = i, best_d = d;
        if (len >= 3 && !strncmp(word, names[i], (size_t)len)) starts = i, n_starts++;
    }
    return best >= 0 ? best : n_starts == 1 ? starts : -1;
}

// ---------------------------------------------------------------------------
// Numbers and lists

int parse_int(const char *what, const char *text, int64_t lo, int64_t hi, int64_t *out, Err *err) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text))
        return FAIL_CODE(err, EXIT_USAGE, "%s wants an integer, got '%s'", what, text);
    if (errno || v < lo || v > hi)
        return FAIL_CODE(err, EXIT_USAGE, "%s wants an integer from %lld to %lld, got '%s'", what,
                         (long long)lo, (long long)hi, text);
    *out = v;
    return 0;
}

int parse_real(const char *what, const char *text, double lo, double hi, double *out, Err *err) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text) || !isfinite(v))
        return FAIL_CODE(err, EXIT_USAGE, "%s wants a number, got '%s'", what, text);
    if (v < lo || v > hi)
        return FAIL_CODE(err, EXIT_USAGE, "%s wants a number from %g to %g, got '%s'", what, lo, hi,
                         text);
    *out = v;
    return 0;
}

bool list_next(const char **cursor, char *out, size_t cap) {
    if (!*cursor) return false;
    const char *end = strchr(*cursor, ',');
    size_t n = end ? (size_t)(end - *cursor) : strlen(*cursor);
    if (n >= cap) n = 0;
    memcpy(out, *cursor, n);
    out[n] = 0;
    *cursor = end ? end + 1 : NULL;
    return true;
}

// ---------------------------------------------------------------------------
// Options

static int opt_set(const OptSpec *s, void *fields, const char *text, Err *err) {
    void *at = (char *)fields + s->at;
    int64_t i;
    StrList *list = (StrList *)at;
    switch (s->kind) {
    case OPT_STR:
        *(const char **)at = text;
        return 0;
    case OPT_FLAG:
        *(bool *)at = text[0] == '1';
        return 0;
    case OPT_INT:
        if (parse_int(s->name, text, INT_MIN, INT_MAX, &i, err)) return -1;
        *(int *)at = (int)i;
        return 0;
    case OPT_INT64:
        return parse_int(s->name, text, INT64_MIN, INT64_MAX, (int64_t *)at, err);
    case OPT_REAL:
        return parse_real(s->name, text, -1e300, 1e300, (double *)at, err);
    case OPT_LIST:
        list->p = (const char **)xrealloc(list->p, (size_t)(list->n + 1) * sizeof *list->p);
        list->p[list->n++] = text;
        return 0;
    }
    return 0;
}

static void opt_clear(const OptSpec *s, void *fields) {
    static const size_t size[] = {
        sizeof(const char *), sizeof(int),  sizeof(int64_t),
        sizeof(double),       sizeof(bool), sizeof(StrList),
    };
    memset((char *)fields + s->at, 0, size[s->kind]);
}

static int unknown_option(const OptSpec *spec, int n, const char *name, Err *err) {
    const char **names = (const char **)xrealloc(NULL, (size_t)(n + 1) * sizeof *names);
    for (int i = 0; i < n; i++) names[i] = spec[i].name;
    int near = did_you_mean(name, names, n);
    free(names);
    if (near >= 0)
        return FAIL_CODE(err, EXIT_USAGE, "unknown option '%s'; did you mean %s?", name,
                         spec[near].name);
    return FAIL_CODE(err, EXIT_USAGE, "unknown option '%s'; see --help", name);
}

int opts_parse(const OptSpec *spec, int n, int argc, char **argv, void *fields, StrList *pos,
               Err *err) {
    enum { MAX_OPTS = 64 };
    bool seen[MAX_OPTS] = { false };
    CHECK(n <= MAX_OPTS, "%d options in one table", n);
    *pos = (StrList){ NULL, 0 };
    for (int i = 0; i < n; i++) {
        opt_clear(&spec[i], fields);
        if (spec[i].def && opt_set(&spec[i], fields, spec[i].def, err)) return -1;
    }
    bool options = true;
    for (int a = 1; a < argc; a++) {
        const char *arg = argv[a], *value = NULL;
        if (options && !strcmp(arg, "--")) {
            options = false;
            continue;
        }
        if (!options || arg[0] != '-' || !arg[1]) {
            pos->p = (const char **)xrealloc(pos->p, (size_t)(pos->n + 1) * sizeof *pos->p);
            pos->p[pos->n++] = arg;
            continue;
        }
        char name[64];
        size_t len = strcspn(arg, "=");
        snprintf(name, sizeof name, "%.*s", (int)(len < 63 ? len : 63), arg);
        if (arg[len]) value = arg + len + 1;
        int i = 0;
        while (i < n && strcmp(name, spec[i].name) &&
               (!spec[i].alias || strcmp(name, spec[i].alias)))
            i++;
        if (i == n) return unknown_option(spec, n, name, err);
        const OptSpec *s = &spec[i];
        if (seen[i] && s->kind != OPT_LIST)
            return FAIL_CODE(err, EXIT_USAGE, "%s is given twice", s->name);
        seen[i] = true;
        if (s->kind == OPT_FLAG) {
            if (value)
                return FAIL_CODE(err, EXIT_USAGE, "%s takes no value, got '%s'", s->name, value);
            value = "1";
        } else if (!value) {
            if (a + 1 == argc || !strncmp(argv[a + 1], "--", 2))
                return FAIL_CODE(err, EXIT_USAGE, "%s needs a value: %s %s", s->name, s->name,
                                 s->arg);
            value = argv[++a];
        }
        if (opt_set(s, fields, value, err)) return -1;
    }
    return 0;
}

void opts_help(FILE *out, const OptSpec *spec, int n) {
    enum { WIDTH = 100 };
    char left[64];
    int col = 0;
    for (int i = 0; i < n; i++) {
        int w = (int)strlen(spec[i].name) + (spec[i].arg ? (int)strlen(spec[i].arg) + 1 : 0) +
                (spec[i].alias ? (int)strlen(spec[i].alias) + 2 : 0);
        if (w > col) col = w;
    }
    for (int i = 0; i < n; i++) {
        const OptSpec *s = &spec[i];
        snprintf(left, sizeof left, "%s%s%s%s%s", s->alias ? s->alias : "", s->alias ? ", " : "",
                 s->name, s->arg ? " " : "", s->arg ? s->arg : "");
        int x = fprintf(out, "  %-*s ", col, left);
        StrBuf text = { 0 };
        str_puts(&text, s->help);
        if (s->def && s->kind != OPT_FLAG) str_fmt(&text, " (default %s)", s->def);
        for (const char *w = text.p; *w;) {
            int len = (int)strcspn(w, " ");
            if (x + 1 + len > WIDTH) x = fprintf(out, "\n  %-*s ", col, "") - 1;
            x += fprintf(out, " %.*s", len, w);
            w += len;
            w += strspn(w, " ");
        }
        fputc('\n', out);
        free(text.p);
    }
}

int opt_choose(const char *option, const char *value, const char *const *names, int n, Err *err) {
    StrBuf all = { 0 };
    for (int i = 0; i < n; i++) {
        if (!strcmp(value, names[i])) {
            free(all.p);
            return i;
        }
        str_fmt(&all, "%s%s", i ? ", " : "", names[i]);
    }
    FAIL_CODE(err, EXIT_USAGE, "%s wants one of %s, got '%s'", option, all.p, value);
    free(all.p);
    return -1;
}

int device_choice(const char *value, int gpus, bool *device, Err *err) {
    static const char *const devices[] = { "cpu", "cuda" };
    int k = value ? opt_choose("--device", value, devices, 2, err) : 0;
    *device = k == 1;
    if (k < 0) return -1;
    if (gpus < 1 || gpus > MAX_GPUS || (gpus > 1 && !*device))
        return FAIL_CODE(err, EXIT_USAGE, "--gpus wants 1 to %d, and --device cuda", MAX_GPUS);
    return *device && !device_memory_available(gpus, err) ? -1 : 0;
}

void path_stem(const char *path, char *out, size_t n) {
    const char *slash = strrchr(path, '/');
    snprintf(out, n, "%s", slash ? slash + 1 : path);
    char *dot = strrchr(out, '.');
    if (dot && dot != out) *dot = 0;
}

// ---------------------------------------------------------------------------
// Interrupts

static volatile sig_atomic_t stop_flag;

static void on_signal(int sig) {
    (void)sig;
    stop_flag = 1;
}

void interrupt_install(void) {
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_handler = on_signal;
    act.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
}

bool interrupted(void) { return stop_flag != 0; }

// ---------------------------------------------------------------------------
// Progress

void progress_begin(Progress *p, const char *label, double total, bool quiet) {
    memset(p, 0, sizeof *p);
    snprintf(p->label, sizeof p->label, "%s", label);
    p->total = total;
    p->quiet = quiet;
    p->tty = isatty(STDERR_FILENO);
    p->start = p->last = now_s();
}

void progress_update(Progress *p, double done) {
    static const double every_tty = 0.1, every_plain = 5;
    double t = now_s(), elapsed = t - p->start;
    if (p->quiet || t - p->last < (p->tty ? every_tty : every_plain)) return;
    p->last = t;
    double share = p->total > 0 ? done / p->total : 0;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    int left = share > 0 ? (int)(elapsed * (1 - share) / share + 0.5) : 0;
    char tail[96];
    snprintf(tail, sizeof tail, "%3d %%  %.0f tok/s  %d:%02d left", (int)(100 * share),
             done / elapsed, left / 60, left % 60);
    if (!p->tty) {
        fprintf(stderr, "%s: %s\n", p->label, tail);
        return;
    }
    struct winsize ws;
    int cols = ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col ? ws.ws_col : 80;
    int room = cols - (int)strlen(p->label) - (int)strlen(tail) - 6;
    int width = room > 40 ? 40 : room > 0 ? room : 0, full = (int)(share * width);
    fprintf(stderr, "\r%s [", p->label);
    for (int i = 0; i < width; i++) fputc(i < full ? '=' : ' ', stderr);
    fprintf(stderr, "] %s\033[K", tail);
    fflush(stderr);
    p->shown = true;
}

void progress_end(Progress *p) {
    if (p->shown) fputs("\r\033[K", stderr);
    p->shown = false;
}
