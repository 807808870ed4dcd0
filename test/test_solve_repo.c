// test_solve_repo.c - repoqa and mix_repoqa_kv: a solver that has only context and question.
//
// The solver knows the corpus (data/code), not the generator. From the question it takes the entry
// whose description shares most words with it; from the context the functions whose names hold one
// of that entry's two names. Among several renderings of one algorithm it keeps those whose
// literals agree best with the numbers and letters of the description, and it answers only if one
// is left.
#include "tasks/code.h"
#include "tasks/score.h"
#include <ctype.h>

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_solve_repo.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static TaskSession session(const Task *t, uint64_t seed, int number, int turns, int units) {
    TaskSession s;
    memset(&s, 0, sizeof s);
    s.number = number;
    t->make(&s, seed, turns, units);
    return s;
}

static int occurrences(const char *text, const char *part) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p++) n++;
    return n;
}

// ---------------------------------------------------------------------------
// Words of a description

typedef struct { uint64_t *p; int n; } Words;           // hashes of words, as they come

static uint64_t word_hash(const char *s, size_t n) {
    uint64_t h = 7;
    for (size_t i = 0; i < n; i++)
        h = mix64(h ^ (uint64_t)(unsigned char)tolower((unsigned char)s[i]));
    return h;
}

static Words words_of(const char *s, size_t n) {
    Words w = { (uint64_t *)malloc((n + 1) * sizeof(uint64_t)), 0 };
    for (size_t i = 0; i < n; ) {
        size_t j = i;
        while (j < n && isalpha((unsigned char)s[j])) j++;
        if (j - i >= 3) w.p[w.n++] = word_hash(s + i, j - i);
        i = j + (j == i);
    }
    return w;
}

static bool holds_word(const Words *w, uint64_t h) {
    for (int i = 0; i < w->n; i++) if (w->p[i] == h) return true;
    return false;
}

enum { MAX_ALL = 400 };
static Words lexicon[MAX_ALL];          // the words of each entry
static double *weight[MAX_ALL];         // of each word: log of the entries over those that have it

static void lexicon_load(void) {
    int n = code_n_entries();
    for (int i = 0; i < n; i++) {
        const CodeEntry *e = code_entry(i);
        StrBuf all = { 0 };
        for (int k = 0; k < 4; k++) {
            str_add(&all, e->part[k], e->part_n[k]);
            str_puts(&all, " ");
        }
        lexicon[i] = words_of(all.p, all.n);
        free(all.p);
    }
    for (int i = 0; i < n; i++) {
        weight[i] = (double *)malloc((size_t)lexicon[i].n * sizeof(double));
        for (int k = 0; k < lexicon[i].n; k++) {
            int have = 0;
            for (int j = 0; j < n; j++) have += holds_word(&lexicon[j], lexicon[i].p[k]);
            weight[i][k] = log((double)n / have);
        }
    }
}

// the entry of whose weighted words the question has the greatest share
static const CodeEntry *entry_meant(const char *question) {
    Words q = words_of(question, strlen(question));
    const CodeEntry *best = NULL;
    double top = -1;
    for (int i = 0; i < code_n_entries(); i++) {
        double hit = 0, all = 0;
        for (int k = 0; k < lexicon[i].n; k++) {
            all += weight[i][k];
            if (holds_word(&q, lexicon[i].p[k])) hit += weight[i][k];
        }
        if (hit / all > top) {
            top = hit / all;
            best = code_entry(i);
        }
    }
    free(q.p);
    return best;
}

// ---------------------------------------------------------------------------
// Literals: numbers from 3 up and single letters, as a sorted list

enum { MAX_LITERALS = 200, LETTER = 100000 };
typedef struct { int v[MAX_LITERALS]; int n; } Literals;

static char number_text[1000][48];

static void numbers_load(void) {
    for (int v = 0; v < 1000; v++) {
        StrBuf t = { 0 };
        code_number(&t, v);
        snprintf(number_text[v], sizeof number_text[v], "%s", t.p);
        free(t.p);
    }
}

static void literal_add(Literals *l, int v) {
    if (l->n < MAX_LITERALS && v >= 3) l->v[l->n++] = v;
}

// numbers in words: twenty-one, three hundred and five; letters stand in single quotes
static Literals described(const char *s, size_t n) {
    Literals l = { .n = 0 };
    for (size_t i = 0; i < n; ) {
        if (s[i] == '\'') {
            size_t j = i + 1;
            while (j < n && islower((unsigned char)s[j])) j++;
            if (j < n && s[j] == '\'' && j > i + 1)
                for (size_t k = i + 1; k < j; k++) literal_add(&l, LETTER + s[k]);
            i = j > i + 1 ? j + 1 : i + 1;
            continue;
        }
        if (!isalpha((unsigned char)s[i])) { i++; continue; }
        int best = -1;
        size_t len = 0;
        for (int v = 0; v < 1000; v++) {
            size_t k = strlen(number_text[v]);
            if (k > len && i + k <= n && s[i] == number_text[v][0] &&
                !memcmp(s + i, number_text[v], k) &&
                (i + k == n || !(isalpha((unsigned char)s[i + k]) || s[i + k] == '-'))) {
                best = v;
                len = k;
            }
        }
        if (best >= 0) literal_add(&l, best);
        if (best >= 0) i += len;
        else while (i < n && (isalpha((unsigned char)s[i]) || s[i] == '-')) i++;
    }
    return l;
}

static Literals written(const char *s) {
    Literals l = { .n = 0 };
    bool line_start = true;
    for (size_t i = 0; s[i]; ) {
        bool remark = (s[i] == '#' && line_start) || (s[i] == '/' && s[i + 1] == '/' && line_start);
        if (remark) { while (s[i] && s[i] != '\n') i++; continue; }
        if (s[i] == '\n') line_start = true;
        else if (!isspace((unsigned char)s[i])) line_start = false;
        if (s[i] == '\'' || s[i] == '"') {
            size_t j = i + 1;
            while (s[j] && s[j] != s[i] && s[j] != '\n') j++;
            for (size_t k = i + 1; k < j; k++)
                if (islower((unsigned char)s[k])) literal_add(&l, LETTER + s[k]);
            i = j + 1;
        } else if (isdigit((unsigned char)s[i]) &&
                   (i == 0 || !(isalnum((unsigned char)s[i - 1]) || s[i - 1] == '_'))) {
            literal_add(&l, (int)strtol(s + i, NULL, 10));
            while (isalnum((unsigned char)s[i])) i++;
        } else i++;
    }
    return l;
}

// how many of a remain when each value of b takes one equal value away
static int left_over(Literals a, const Literals *b) {
    for (int i = 0; i < b->n; i++)
        for (int k = 0; k < a.n; k++)
            if (a.v[k] == b->v[i]) {
                a.v[k] = a.v[--a.n];
                break;
            }
    return a.n;
}

// values of a without those of b
static Literals minus(Literals a, const Literals *b) {
    for (int i = 0; i < b->n; i++)
        for (int k = 0; k < a.n; k++)
            if (a.v[k] == b->v[i]) {
                a.v[k] = a.v[--a.n];
                break;
            }
    return a;
}

// ---------------------------------------------------------------------------
// Solver

// letters of a name without case and underlines
static void squeeze(const char *s, size_t n, char *out, size_t cap) {
    size_t k = 0;
    for (size_t i = 0; i < n && k + 1 < cap; i++)
        if (s[i] != '_') out[k++] = (char)tolower((unsigned char)s[i]);
    out[k] = 0;
}

static bool named_after(const char *name, const CodeEntry *e) {
    char have[128], want[128];
    squeeze(name, strlen(name), have, sizeof have);
    for (size_t i = 0; i < e->names_n; ) {
        size_t n = 0;
        while (i + n < e->names_n && e->names[i + n] != ' ') n++;
        squeeze(e->names + i, n, want, sizeof want);
        if (n && strstr(have, want)) return true;
        i += n + 1;
    }
    return false;
}

typedef struct { char *source; char name[96]; } Found;

// the functions of the context, cut with the scorers' scanner and named by the word before '('
static Found *functions_of(const TaskSession *s, int *n) {
    char *text = text_dup(s->context.p);
    size_t len = s->context.n;
    Found *all = NULL;
    Span span;
    int cap = 0;
    *n = 0;
    for (size_t at = 0; at < len; ) {
        const char *next =
            strstr(text + at, " path: ");    // file by file: the scanner is not incremental
        size_t end = len;
        if (next) {
            const char *q = strstr(next + 1, " path: ");
            if (q) end = (size_t)(q - text) - 2;
        }
        while (end > at && first_function(s->lang, text + at, end - at, &span)) {
            if (*n == cap) all = (Found *)xrealloc(all, (size_t)(cap = cap * 2 + 64) * sizeof *all);
            Found *f = &all[(*n)++];
            const char *src = text + at + span.at, *par = strchr(src, '('), *b = par;
            while (b > src && (isalnum((unsigned char)b[-1]) || b[-1] == '_')) b--;
            snprintf(f->name, sizeof f->name, "%.*s", (int)(par - b), b);
            f->source = (char *)memcpy(calloc(1, span.len + 1), src, span.len);
            for (size_t k = 0; k < span.len; k++)       // keeps the class around the others
                if (text[at + span.at + k] != '\n') text[at + span.at + k] = ' ';
        }
        at = end;
    }
    free(text);
    return all;
}

// index of the function, -1: none or several fit
static int solve(const Found *f, int n, const char *asked) {
    // the description stands between the first line and the last
    const char *from = strchr(asked, '\n') + 1;
    char *question = text_fmt("%.*s", (int)(strrchr(asked, '\n') - from), from);
    const CodeEntry *e = entry_meant(question);
    StrBuf own = { 0 };
    for (int i = 0; i < 4; i++) str_add(&own, e->part[i], e->part_n[i]);
    Literals known = described(own.p, own.n), all = described(question, strlen(question));
    Literals want = minus(all, &known);
    free(own.p);
    free(question);
    int best = 1 << 30, at = -1, same = 0;
    for (int i = 0; i < n; i++) {
        if (!named_after(f[i].name, e)) continue;
        Literals have = written(f[i].source);
        int miss = left_over(want, &have) * 4 + left_over(have, &want);
        if (miss < best) {
            best = miss;
            at = i;
            same = 1;
        } else if (miss == best) same++;
    }
    return same == 1 ? at : -1;
}

static void expect_solved(const TaskSession *s) {
    int n;
    Found *f = functions_of(s, &n);
    EXPECT(n >= s->n_needles, "session %d (%s): %d of %d functions found", s->number, s->lang, n,
           s->n_needles);
    for (int t = 0; t < s->n_turns; t++) {
        const TaskTurn *turn = &s->turns[t];
        if (turn->part) continue;
        int at = solve(f, n, turn->question);
        EXPECT(at >= 0 && !strcmp(f[at].source, turn->answer),
               "session %d (%s) turn %d: solver says %s, golden is %s\n%s", s->number, s->lang, t,
               at < 0 ? "nothing" : f[at].name, turn->name, turn->question);
    }
    for (int i = 0; i < n; i++) free(f[i].source);
    free(f);
}

static void solver_seeds(void) {
    for (int k = 0; k < 200; k++) {
        TaskSession s = session(&task_repoqa, 1000 + (uint64_t)k, k, 5, 40 + k % 3 * 30);
        expect_solved(&s);
        session_clear(&s);
    }
    for (int k = 0; k < 7; k++) {
        TaskSession s = session(&task_repoqa, 5, k, 5, 600);
        expect_solved(&s);
        session_clear(&s);
    }
}

static void solver_refuses(void) {
    TaskSession s = session(&task_repoqa, 3, 5, 5, 60);
    int n, refused = 0;
    Found *f = functions_of(&s, &n);
    for (int t = 0; t < s.n_turns; t++) {
        int at = solve(f, n, s.turns[t].question);
        if (at < 0) continue;
        Found *two = (Found *)malloc((size_t)(n + 1) * sizeof *two);
        memcpy(two, f, (size_t)n * sizeof *two);
        two[n] = f[at];
        snprintf(two[n].name, sizeof two[n].name, "x_%.90s", f[at].name);
        refused += solve(two, n + 1, s.turns[t].question) < 0;
        free(two);
    }
    EXPECT(refused == 5, "a second function that fits is noticed in %d of 5 turns", refused);
    for (int i = 0; i < n; i++) free(f[i].source);
    free(f);
    session_clear(&s);
}

// ---------------------------------------------------------------------------
// Sessions

static void shape_of_sessions(void) {
    for (int k = 0; k < 28; k++) {
        TaskSession s = session(&task_repoqa, 9, k, 5, 75),
                    again = session(&task_repoqa, 9, k, 5, 75);
        EXPECT(s.context.n == again.context.n && !memcmp(s.context.p, again.context.p, s.context.n),
               "session %d differs from itself", k);
        int order[5] = { 0 };
        for (int t = 0; t < 5; t++) {
            const TaskTurn *turn = &s.turns[t];
            EXPECT(!strcmp(turn->question, again.turns[t].question),
                   "session %d: question %d differs", k, t);
            EXPECT(occurrences(s.context.p, turn->answer) == 1,
                   "session %d turn %d: the answer stands %d times", k, t,
                   occurrences(s.context.p, turn->answer));
            double at =
                (double)(strstr(s.context.p, turn->answer) - s.context.p) / (double)s.context.n;
            EXPECT(fabs(at - turn->depth) < 1e-9, "session %d turn %d: depth", k, t);
            order[(int)(at * 5)]++;
            EXPECT(!strstr(turn->question, turn->name),
                   "session %d turn %d: the question holds the name", k, t);
        }
        for (int i = 0; i < 5; i++)
            EXPECT(order[i] == 1, "session %d: %d questions in fifth %d", k, order[i], i);
        session_clear(&s);
        session_clear(&again);
    }
    TaskSession a = session(&task_repoqa, 1, 0, 5, 40), b = session(&task_repoqa, 1, 0, 5, 80);
    EXPECT(b.context.n > a.context.n * 3 / 2, "more units, longer context");
    session_clear(&a);
    session_clear(&b);
}

static void scores(void) {
    for (int k = 0; k < 14; k++) {
        TaskSession s = session(&task_repoqa, 21, k, 5, 50);
        for (int t = 0; t < 5; t++) {
            int u = 0;
            while (strcmp(s.needles[u].name, s.turns[t].name)) u++;
            const char *other = s.needles[u ? u - 1 : 1].source;
            char *good = text_fmt("Here it is:\n```%s\n%s\n```\n", s.lang, s.turns[t].answer);
            char *bad = text_fmt("```\n%s\n```", other);
            double a = task_score(&task_repoqa, &s, t, good, strlen(good), SCORER_OURS);
            double b = task_score(&task_repoqa, &s, t, bad, strlen(bad), SCORER_OURS);
            EXPECT(a == 1 && b == 0, "%s turn %d: %g for the function, %g for its neighbour",
                   s.lang, t, a, b);
            free(good);
            free(bad);
        }
        session_clear(&s);
    }
}

static void keys_and_values(void) {
    for (int k = 0; k < 14; k++) {
        TaskSession s = session(&task_mix_repoqa_kv, 4, k, 8, 60);
        int values = 0;
        for (int t = 0; t < 8; t++) {
            const TaskTurn *turn = &s.turns[t];
            EXPECT(turn->part == t % 2, "turns alternate");
            if (turn->part == 0) continue;
            const char *key = strstr(turn->question, "the key ") + 8;
            char line[64];
            snprintf(line, sizeof line, "%.36s -> ", key);
            const char *at = strstr(s.context.p, line);
            EXPECT(at && occurrences(s.context.p, line) == 1 &&
                       !strncmp(at + strlen(line), turn->answer, 36),
                   "session %d: key %.36s", k, key);
            EXPECT(task_score(&task_mix_repoqa_kv, &s, t, turn->answer, 36, SCORER_OURS) == 1,
                   "value scores 1");
            values++;
        }
        EXPECT(values == 4, "%d of 8 turns ask for values", values);
        expect_solved(&s);
        session_clear(&s);
    }
}

// ---------------------------------------------------------------------------
// Likeness inside a session and between sessions

static void pairs_differ(void) {
    double worst = 0;
    for (int k = 0; k < 14; k++) {
        TaskSession s = session(&task_repoqa, 70 + (uint64_t)k, k, 5, k < 7 ? 90 : 330);
        for (int i = 0; i < s.n_needles; i++) {
            const char *a = s.needles[i].source;
            size_t n = strlen(a);
            // long sessions: the functions of algorithms that were used before, against all
            for (int j = 0; j < i; j++) {
                if (k >= 7 && i < code_n_entries()) break;
                const char *b = s.needles[j].source;
                size_t m = strlen(b);
                if (m > 2 * n || n > 2 * m) continue;
                double x = code_bleu(a, n, b, m);
                if (x > worst) worst = x;
                EXPECT(x < 0.8, "%s: two functions are alike by %.3f\n%s\n%s", s.lang, x, a, b);
            }
        }
        session_clear(&s);
    }
    printf("largest likeness of two functions of one repository %.3f\n", worst);
}

static int by_hash(const void *a, const void *b) {
    const uint64_t *x = (const uint64_t *)a, *y = (const uint64_t *)b;
    return x[0] != y[0] ? (x[0] < y[0] ? -1 : 1) : x[1] < y[1] ? -1 : x[1] > y[1];
}

enum { GRAM = 12, N_SESSIONS = 50 };
typedef struct { uint64_t *p; size_t n, cap; } Grams;

static void grams_add(Grams *g, const char *text, size_t n, int number) {
    uint64_t w[GRAM];
    size_t count = 0;
    for (size_t i = 0; i < n; ) {
        while (i < n && isspace((unsigned char)text[i])) i++;
        size_t j = i;
        while (j < n && !isspace((unsigned char)text[j])) j++;
        if (j == i) break;
        w[count++ % GRAM] = word_hash(text + i, j - i);
        i = j;
        if (count < GRAM) continue;
        uint64_t h = 0;
        for (size_t k = count; k < count + GRAM; k++) h = mix64(h ^ w[k % GRAM]);
        if (2 * g->n + 2 > g->cap)
            g->p = (uint64_t *)xrealloc(g->p, (g->cap = g->cap * 2 + 1024) * 8);
        g->p[2 * g->n] = h;
        g->p[2 * g->n++ + 1] = (uint64_t)number;
    }
}

static void sessions_differ(void) {
    Grams g = { 0 };
    for (int k = 0; k < N_SESSIONS; k++) {
        TaskSession s = session(&task_repoqa, 11, k, 5, 200);
        grams_add(&g, s.context.p, s.context.n, k);
        for (int t = 0; t < 5; t++) {                   // the description without its frame
            const char *a = strchr(s.turns[t].question, '\n'),
                       *b = strrchr(s.turns[t].question, '\n');
            grams_add(&g, a, (size_t)(b - a), k);
        }
        session_clear(&s);
    }
    qsort(g.p, g.n, 16, by_hash);
    size_t repeated = 0;
    for (size_t i = 0; i < g.n; ) {
        size_t j = i;
        while (j < g.n && g.p[2 * j] == g.p[2 * i]) j++;
        if (g.p[2 * j - 1] != g.p[2 * i + 1]) repeated += j - i;
        i = j;
    }
    double share = (double)repeated / (double)g.n;
    printf("12-grams that another of %d sessions has: %.3f %% of %zu positions\n", N_SESSIONS,
           100 * share, g.n);
    EXPECT(share < 0.01, "sessions repeat each other");
    free(g.p);
}

// ---------------------------------------------------------------------------
// Corpus

static void corpus(void) {
    EXPECT(code_n_entries() >= 200, "%d algorithms", code_n_entries());
    CodeArena arena = { .cap = 1 << 18 };
    arena.p = (char *)malloc(arena.cap);
    for (int i = 0; i < code_n_entries(); i++) {
        const CodeEntry *e = code_entry(i);
        for (int mods = 0; mods < 4; mods++)
            for (uint64_t k = 0; k < 5; k++) {
                Rng rng = { k * 77 + (uint64_t)mods };
                CodeDraft d;
                CodeFn f;
                code_draft(&d, e, &rng, mods);
                code_parse(&f, &d, &arena);
                EXPECT(!f.fault, "%.*s: %s", (int)e->names_n, e->names, f.fault);
                code_draft_free(&d);
            }
        for (int j = 0; j < code_n_entries(); j++) {
            char name[64];
            size_t n = 0;
            while (e->names[n] != ' ') n++;
            snprintf(name, sizeof name, "%.*s", (int)n, e->names);
            EXPECT(j == i || !named_after(name, code_entry(j)), "the name %s fits two algorithms",
                   name);
        }
    }
    free(arena.p);
}

// every example of the corpus against its Python rendering, varied
static int corpus_runs(void) {
    if (system("python3 -c pass >/dev/null 2>&1")) return 77;
    StrBuf o = { 0 };
    CodeArena arena = { .cap = 1 << 18 };
    arena.p = (char *)malloc(arena.cap);
    str_puts(&o, "import ast, sys\nbad = 0\nsrc = {}\ndef check(name, f, a, want):\n"
                 "    global bad\n    got = f(*a)\n    if got != want:\n        bad += 1\n"
                 "        print(name, a, got, want)\n");
    for (int i = 0; i < code_n_entries(); i++) {
        static const char *const nouns[] = { "river", "stone", "cloud", "lamp" };
        CodeStyle style = { .lang = LANG_PYTHON, .indent = 4, .snake = true, .hints = i % 2 };
        Rng rng = { (uint64_t)i };
        CodeDraft d;
        CodeFn f;
        int uses = 0;
        code_draft(&d, code_entry(i), &rng, 0);
        code_parse(&f, &d, &arena);
        code_vary(&f, &rng);
        code_name(&f, &style, nouns, 4, &rng);
        code_print(&o, &f, &style, 0, &uses);
        str_puts(&o, "\n");
        for (const char *t = f.entry->tests; t && *t == '?'; t = strchr(t, '\n') + 1) {
            const char *e = strchr(t, '\n'), *eq = strstr(t, " = ");
            for (const char *q = eq; q && q < e; q = strstr(q + 1, " = ")) eq = q;
            str_fmt(&o, "check('%s', %s, (%.*s,), %.*s)\n", f.name, f.name, (int)(eq - t - 2),
                    t + 2, (int)(e - eq - 3), eq + 3);
        }
        code_draft_free(&d);
    }
    str_puts(&o, "sys.exit(bad > 0)\n");
    FILE *p = popen("python3 -", "w");
    fwrite(o.p, 1, o.n, p);
    EXPECT(pclose(p) == 0, "examples of the corpus fail in Python");
    free(o.p);
    free(arena.p);
    return 0;
}

// ---------------------------------------------------------------------------
// A source tree

static void put_text_file(const char *dir, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

static const char tree_py[] =
    "import os\n\n"
    "class Box:\n"
    "    def area_of(self, k):\n"
    "        \"\"\"The area_of method multiplies width by height and by the given factor.\n\n"
    "        More text follows here.\n"
    "        \"\"\"\n"
    "        return self.w * self.h * k\n\n"
    "    def silent(self):\n"
    "        return None\n\n"
    "# walks over all the files of a folder and returns their names\n"
    "@cached\n"
    "def names_in(folder):\n"
    "    return sorted(os.listdir(folder))\n\n"
    "def short(x):\n"
    "    \"\"\"Too short.\"\"\"\n"
    "    return x\n\n"
    "def only_text():\n"
    "    \"\"\"This body is nothing but a text that says what it would do.\"\"\"\n";
static const char tree_cpp[] =
    "#include <vector>\n\n"
    "/* Adds one to the value, the way a counter\n * does it when something passes by.\n */\n"
    "template <class T>\nstatic T next_up(T v) {\n    return v + 1; // next_up\n}\n\n"
    "// Tells whether the list holds a value that is below zero.\n"
    "bool any_negative(const std::vector<int> &v) {\n    for (int x : v) if (x < 0) return true;\n "
    "   return false;\n}\n\n"
    "int plain(int a) { return a; }\n"
    "// Overloads are not asked because the name stands for both of them.\n"
    "int twice(int a) { return a + a; }\n"
    "// Overloads are not asked because the name stands for both of them.\n"
    "long twice(long a) { return a + a; }\n";

static void trees(void) {
    char dir[] = "/tmp/test_solve_repo_XXXXXX", cmd[128], sub[160];
    if (!mkdtemp(dir)) return;
    Err err = { .code = 0 };
    TaskSession s, none;
    memset(&s, 0, sizeof s);
    memset(&none, 0, sizeof none);
    EXPECT(repo_from_tree(&none, dir, 1, 2, 4, &err) && strstr(err.msg, dir),
           "an empty tree is an error: %s", err.msg);
    snprintf(sub, sizeof sub, "%s/a", dir);
    snprintf(cmd, sizeof cmd, "mkdir -p %s/a %s/node_modules %s/.git", dir, dir, dir);
    EXPECT(system(cmd) == 0, "mkdir");
    put_text_file(sub, "box.py", tree_py);
    put_text_file(dir, "node_modules/x.py", "def hidden(a):\n    return a\n");
    put_text_file(dir, "broken.py", "def broken(a):\n    return '\xff'\n");
    EXPECT(!repo_from_tree(&s, dir, 1, 2, 5, &err), "%s", err.msg);
    EXPECT(s.n_needles == 5 && !strcmp(s.lang, "python") && s.n_turns == 2, "%d functions",
           s.n_needles);
    for (int t = 0; t < s.n_turns; t++) {
        const TaskTurn *turn = &s.turns[t];
        EXPECT(occurrences(s.context.p, turn->answer) == 1, "the answer stands once:\n%s",
               turn->answer);
        EXPECT(!strstr(turn->question, turn->name), "%s is named", turn->name);
        char *good = text_fmt("```python\n%s\n```", turn->answer);
        EXPECT(task_score(&task_repoqa, &s, t, good, strlen(good), SCORER_OURS) == 1, "%s scores 1",
               turn->name);
        free(good);
        if (!strcmp(turn->name, "area_of"))
            EXPECT(strstr(turn->question, "The it method multiplies width by height") &&
                       !strcmp(turn->answer,
                               "def area_of(self, k):\n        return self.w * self.h * k"),
                   "%s\n%s", turn->question, turn->answer);
        else if (!strcmp(turn->name, "names_in"))
            EXPECT(strstr(turn->question, "walks over all the files") &&
                       !strstr(s.context.p, "walks over"),
                   "%s", turn->question);
        else EXPECT(false, "%s has no comment that can be left out", turn->name);
    }
    EXPECT(s.n_turns == 2 && !strstr(s.context.p, "hidden") && !strstr(s.context.p, "broken") &&
               strstr(s.context.p, "# path: a/box.py\n"),
           "files");
    session_clear(&s);
    EXPECT(repo_from_tree(&none, dir, 1, 3, 5, &err), "only two functions can be asked");
    EXPECT(repo_from_tree(&none, dir, 1, 1, 6, &err), "only five functions are there");
    put_text_file(dir, "next.cpp", tree_cpp);
    put_text_file(dir, "more.cc", "int a1() { return 1; }\nint a2() { return 2; }\n");
    memset(&s, 0, sizeof s);
    EXPECT(!repo_from_tree(&s, dir, 1, 2, 7, &err), "%s", err.msg);
    if (s.n_turns == 2) {
        EXPECT(!strcmp(s.lang, "cpp"), "the language of most functions");
        for (int t = 0; t < 2; t++)
            EXPECT(!strcmp(s.turns[t].name, "next_up") || !strcmp(s.turns[t].name, "any_negative"),
                   "asked: %s", s.turns[t].name);
        EXPECT(!strstr(s.context.p, "Adds one") && strstr(s.context.p, "template <class T>") &&
                   strstr(s.context.p, "Overloads"),
               "context:\n%s", s.context.p);
    }
    session_clear(&s);
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    EXPECT(system(cmd) == 0, "rm");
}

int main(void) {
    lexicon_load();
    numbers_load();
    corpus();
    if (corpus_runs()) printf("python3 is missing: the examples of the corpus were not run\n");
    shape_of_sessions();
    scores();
    keys_and_values();
    solver_seeds();
    solver_refuses();
    trees();
    pairs_differ();
    sessions_differ();
    double start = now_s();
    TaskSession s = session(&task_repoqa, 1, 0, 5, 6500);
    printf("%d functions, %zu bytes, %.2f s\n", s.n_needles, s.context.n, now_s() - start);
    session_clear(&s);
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
