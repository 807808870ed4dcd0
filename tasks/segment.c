// segment.c - Chinese words: the dictionary walk and the character model of jieba 0.42.1.
//
// A run of letters, digits and Chinese characters is cut along the path of largest
//   sum over words of log freq(w) - log total
// through all dictionary words (ties: the longer word). What is left as single characters between
// two words goes through a hidden Markov model over B, M, E, S (begin, middle, end, single) unless
// the dictionary knows it. Facts and constants: the package's data files and its documentation.
#include "longbench.h"

enum { B, E, M, S, N_STATES };      // in the order of the letters: ties take the larger

typedef struct { uint64_t hash; uint32_t freq; uint32_t used; } Entry;

struct Segmenter {
    Entry *slot;                    // words and their beginnings (freq 0), by hash of the text
    size_t mask, n;
    double log_total;
    double *emit[N_STATES];         // (HAN_LAST - HAN_FIRST + 1)
};

enum { HAN_FIRST = 0x4e00, HAN_LAST = 0x9fff, N_HAN = HAN_LAST - HAN_FIRST + 1 };
static const double never = -3.14e100;
static const double start[N_STATES] = { [B] = -0.26268660809250016, [E] = -3.14e100,
                                        [M] = -3.14e100, [S] = -1.4652633398537678 };
static const double step[N_STATES][N_STATES] = {        // [from][to], 0: not allowed
    [B] = { [E] = -0.510825623765990, [M] = -0.916290731874155 },
    [E] = { [B] = -0.5897149736854513, [S] = -0.8085250474669937 },
    [M] = { [E] = -0.33344856811948514, [M] = -1.2603623820268226 },
    [S] = { [B] = -0.7211965654669841, [S] = -0.6658631448798212 },
};

static bool han(int32_t c) { return c >= 0x4e00 && c <= 0x9fd5; }
static bool letter(int32_t c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}
static bool run_char(int32_t c) {
    return han(c) || letter(c) || (c > 0 && c < 128 && strchr("+#&._%-", c) != NULL);
}

// ---------------------------------------------------------------------------
// The dictionary: lines "word freq tag". 64-bit hashes stand for the texts: among half a million
// keys two meet with a chance of one in 10^8, and the tests compare with the package.

static uint64_t key_of(const char *s, size_t n) { return text_hash(s, n) | 1; }

static Entry *entry(const Segmenter *g, uint64_t key) {
    size_t at = (key >> 1) & g->mask;
    while (g->slot[at].used && g->slot[at].hash != key) at = (at + 1) & g->mask;
    return &g->slot[at];
}

static void grow(Segmenter *g) {
    Segmenter was = *g;
    size_t size = was.slot ? (was.mask + 1) * 2 : 1 << 20;
    g->mask = size - 1;
    g->slot = (Entry *)xrealloc(NULL, size * sizeof *g->slot);
    memset(g->slot, 0, size * sizeof *g->slot);
    for (size_t i = 0; was.slot && i <= was.mask; i++)
        if (was.slot[i].used) *entry(g, was.slot[i].hash) = was.slot[i];
    free(was.slot);
}

// a word, or a beginning of one (freq 0, which does not replace a word)
static void put(Segmenter *g, const char *s, size_t n, uint32_t freq) {
    if (!g->slot || g->n * 2 > g->mask) grow(g);
    uint64_t key = key_of(s, n);
    Entry *e = entry(g, key);
    if (!e->used) *e = (Entry){ key, 0, 1 }, g->n++;
    if (freq) e->freq = freq;
}

static int read_words(Segmenter *g, const char *path, Err *err) {
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    double total = 0;
    int number = 0;
    if (!f) return FAIL(err, "%s: %s", path, strerror(errno));
    while ((n = getline(&line, &cap, f)) > 0) {
        char *space = (char *)memchr(line, ' ', (size_t)n), *end = NULL;
        unsigned long freq = space ? strtoul(space, &end, 10) : 0;
        number++;
        if (!space || end == space || freq > UINT32_MAX) {
            FAIL(err, "%s:%d: expected a word, its frequency and a tag", path, number);
            break;
        }
        size_t len = (size_t)(space - line);
        for (size_t i = 0; i < len;) {
            int32_t c;
            i += text_next(line + i, len - i, &c);
            put(g, line, i, i < len ? 0 : (uint32_t)freq);
        }
        total += (double)freq;
    }
    bool bad = n > 0;
    free(line);
    fclose(f);
    if (!bad && total <= 0) return FAIL(err, "%s: no words in it", path);
    g->log_total = log(total);
    return bad ? -1 : 0;
}

// 'B': {'\u4e00': -3.65, ...}, for each of the four states
static int read_emissions(Segmenter *g, const char *path, Err *err) {
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0;
    int state = -1, found = 0;
    if (!f) return FAIL(err, "%s: %s", path, strerror(errno));
    for (int s = 0; s < N_STATES; s++) {
        g->emit[s] = (double *)xrealloc(NULL, N_HAN * sizeof(double));
        for (int i = 0; i < N_HAN; i++) g->emit[s][i] = never;
    }
    while (getline(&line, &cap, f) > 0) {
        for (const char *p = line; (p = strchr(p, '\'')); p++) {
            unsigned c;
            double v;
            const char *which = strchr("BEMS", p[1]);
            if (p[1] && which && p[2] == '\'') state = (int)(which - "BEMS"), p += 2;
            else if (state >= 0 && sscanf(p, "'\\u%4x': %lf", &c, &v) == 2) {
                if (c >= HAN_FIRST && c <= HAN_LAST) g->emit[state][c - HAN_FIRST] = v, found++;
                p = strchr(p + 1, '\'');
            }
        }
    }
    free(line);
    fclose(f);
    return found > 1000 ? 0 : FAIL(err, "%s: no table of emissions in it", path);
}

Segmenter *segmenter_open(const char *dir, Err *err) {
    static const char *const places[] = { "/usr/lib/python3/dist-packages/jieba",
                                          "/usr/share/jieba" };
    char words[512], emissions[512];
    for (size_t i = 0; !dir && i < COUNTOF(places); i++) {
        snprintf(words, sizeof words, "%s/dict.txt", places[i]);
        if (!access(words, R_OK)) dir = places[i];
    }
    if (!dir) return NULL;
    snprintf(words, sizeof words, "%s/dict.txt", dir);
    snprintf(emissions, sizeof emissions, "%s/finalseg/prob_emit.py", dir);
    Segmenter *g = (Segmenter *)xrealloc(NULL, sizeof *g);
    memset(g, 0, sizeof *g);
    if (!read_words(g, words, err) && !read_emissions(g, emissions, err)) return g;
    segmenter_close(g);
    return NULL;
}

void segmenter_close(Segmenter *g) {
    if (!g) return;
    for (int s = 0; s < N_STATES; s++) free(g->emit[s]);
    free(g->slot);
    free(g);
}

// ---------------------------------------------------------------------------
// Cutting

typedef struct { Span *p; size_t n, cap; } Spans;

static void push(Spans *o, size_t at, size_t len) {
    if (o->n == o->cap)
        o->p = (Span *)xrealloc(o->p, (o->cap = o->cap * 2 + 16) * sizeof *o->p);
    o->p[o->n++] = (Span){ at, len };
}

typedef struct { const char *s; const size_t *at; const int32_t *code; } Chars;  // at (n + 1)

// Viterbi over B, M, E, S of characters [from, to), all Chinese
static void cut_hidden(const Segmenter *g, const Chars *x, int from, int to, Spans *out) {
    int n = to - from, state;
    double (*v)[N_STATES] = (double (*)[N_STATES])xrealloc(NULL, (size_t)n * sizeof *v);
    uint8_t (*back)[N_STATES] = (uint8_t (*)[N_STATES])xrealloc(NULL, (size_t)n * sizeof *back);
    for (int i = 0; i < n; i++)
        for (int s = 0; s < N_STATES; s++) {
            double emit = g->emit[s][x->code[from + i] - HAN_FIRST], best = -INFINITY;
            if (i == 0) { v[0][s] = start[s] + emit; continue; }
            for (int r = 0; r < N_STATES; r++) {
                if (step[r][s] == 0) continue;
                double way = v[i - 1][r] + step[r][s] + emit;
                if (way >= best) best = way, back[i][s] = (uint8_t)r;
            }
            v[i][s] = best;
        }
    state = v[n - 1][S] >= v[n - 1][E] ? S : E;
    uint8_t *path = (uint8_t *)xrealloc(NULL, (size_t)n);
    for (int i = n - 1; i >= 0; i--) {
        path[i] = (uint8_t)state;
        if (i) state = back[i][state];
    }
    for (int i = 0, begin = 0; i < n; i++) {
        if (path[i] == B) begin = i;
        if (path[i] == E || path[i] == S) {
            int a = from + (path[i] == S ? i : begin);
            push(out, x->at[a], x->at[from + i + 1] - x->at[a]);
            begin = i + 1;
        } else if (i == n - 1) push(out, x->at[from + begin], x->at[to] - x->at[from + begin]);
    }
    free(path);
    free(back);
    free(v);
}

// letters and digits with a fraction and a per cent sign; returns the end, or a where there is none
static int number_end(const Chars *x, int a, int to) {
    int i = a;
    while (i < to && letter(x->code[i])) i++;
    if (i == a) return a;
    int j = i + 1;
    while (i < to && x->code[i] == '.' && j < to && x->code[j] >= '0' && x->code[j] <= '9') j++;
    if (i < to && x->code[i] == '.' && j > i + 1) i = j;
    return i < to && x->code[i] == '%' ? i + 1 : i;
}

// what is left between two words: Chinese parts by the model, the rest at numbers and words
static void cut_rest(const Segmenter *g, const Chars *x, int from, int to, Spans *out) {
    for (int i = from; i < to;) {
        int j = i;
        while (j < to && han(x->code[j])) j++;
        if (j > i) {
            cut_hidden(g, x, i, j, out);
            i = j;
            continue;
        }
        while (j < to && !han(x->code[j])) j++;
        for (int a = i; a < j;) {
            int b = number_end(x, a, j);
            if (b == a) while (b < j && !letter(x->code[b])) b++;
            push(out, x->at[a], x->at[b] - x->at[a]);
            a = b;
        }
        i = j;
    }
}

static void flush(const Segmenter *g, const Chars *x, int from, int to, Spans *out) {
    if (from == to) return;
    const Entry *e = entry(g, key_of(x->s + x->at[from], x->at[to] - x->at[from]));
    if (to - from > 1 && !(e->used && e->freq)) cut_rest(g, x, from, to, out);
    else for (int i = from; i < to; i++) push(out, x->at[i], x->at[i + 1] - x->at[i]);
}

// characters [from, to) of one run: the best path from the right, then its words from the left
static void cut_run(const Segmenter *g, const Chars *x, int from, int to, Spans *out) {
    int n = to - from, buffer = from;
    double *best = (double *)xrealloc(NULL, ((size_t)n + 1) * sizeof *best);
    int *next = (int *)xrealloc(NULL, (size_t)n * sizeof *next);
    best[n] = 0;
    for (int i = n - 1; i >= 0; i--) {
        next[i] = 0;
        for (int j = i; j < n; j++) {
            size_t a = x->at[from + i];
            const Entry *e = entry(g, key_of(x->s + a, x->at[from + j + 1] - a));
            if (!e->used) break;
            if (!e->freq) continue;
            double way = log((double)e->freq) - g->log_total + best[j + 1];
            if (!next[i] || way >= best[i]) best[i] = way, next[i] = j + 1;
        }
        if (next[i]) continue;
        best[i] = -g->log_total + best[i + 1];
        next[i] = i + 1;
    }
    for (int i = 0; i < n; i = next[i]) {
        if (next[i] == i + 1) continue;
        flush(g, x, buffer, from + i, out);
        push(out, x->at[from + i], x->at[from + next[i]] - x->at[from + i]);
        buffer = from + next[i];
    }
    flush(g, x, buffer, to, out);
    free(best);
    free(next);
}

// without a dictionary: characters, and runs of letters and digits
static void cut_plain(const Chars *x, int from, int to, Spans *out) {
    for (int i = from; i < to;) {
        int j = i;
        while (j < to && letter(x->code[j])) j++;
        if (j == i) j++;
        push(out, x->at[i], x->at[j] - x->at[i]);
        i = j;
    }
}

Span *segment(const Segmenter *g, const char *s, size_t n, size_t *n_out) {
    Spans out = { 0 };
    size_t *at = (size_t *)xrealloc(NULL, (n + 1) * sizeof *at);
    int32_t *code = (int32_t *)xrealloc(NULL, (n + 1) * sizeof *code);
    int count = 0;
    for (size_t i = 0; i < n; count++) {
        at[count] = i;
        i += text_next(s + i, n - i, &code[count]);
    }
    at[count] = n;
    Chars x = { s, at, code };
    for (int i = 0; i < count;) {
        int j = i;
        while (j < count && run_char(code[j])) j++;
        if (j > i) {
            if (g) cut_run(g, &x, i, j, &out);
            else cut_plain(&x, i, j, &out);
        } else {
            j = i + 1 + (code[i] == '\r' && i + 1 < count && code[i + 1] == '\n');
            push(&out, at[i], at[j] - at[i]);
        }
        i = j;
    }
    free(at);
    free(code);
    *n_out = out.n;
    return out.p;
}
