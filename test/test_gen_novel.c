// test_gen_novel.c - the generated novels and papers as texts: sessions share next to no 12-grams,
// prose compresses like prose, lengths grow unit by unit, targets are spread evenly, the same seed
// gives the same bytes, and a million tokens take seconds.
#include "tasks/tasks.h"

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_gen_novel.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

// units for 64 KB of context; the largest step one unit may make, in bytes
static const struct { const Task *task; int units, step; bool chinese; double gzip; } tested[] = {
    { &task_en_qa, 300, 560, false, 3.2 },
    { &task_zh_qa, 600, 320, true, 3.2 },
    { &task_en_mc, 300, 560, false, 3.2 },
    { &task_en_sum, 260, 620, false, 4.1 },         // papers repeat their own terms
    { &task_mix_sum_niah, 260, 620, false, 4.1 },
};

static TaskSession session(const Task *t, uint64_t seed, int number, int turns, int units) {
    TaskSession s;
    memset(&s, 0, sizeof s);
    s.number = number;
    t->make(&s, seed, turns, units);
    return s;
}

// ---------------------------------------------------------------------------
// 12-grams: of words, in Chinese of characters

enum { GRAM = 12, SESSIONS = 50 };
typedef struct { uint64_t hash; int session; } Gram;
typedef struct { Gram *p; size_t n, cap; } Grams;

static int gram_cmp(const void *a, const void *b) {
    const Gram *x = (const Gram *)a, *y = (const Gram *)b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->session - y->session;
}

static size_t token_length(const char *s, bool chinese) {
    size_t n = 1;
    if (!chinese) return strcspn(s, " \n");
    while ((s[n] & 0xc0) == 0x80) n++;
    return n;
}

static void grams_add(Grams *g, const char *text, int number, bool chinese) {
    uint64_t last[GRAM] = { 0 };
    int n = 0;
    for (const char *s = text + strspn(text, " \n"); *s; s += strspn(s, " \n")) {
        uint64_t h = 0;
        for (size_t i = 0, len = token_length(s, chinese); i < len; i++)
            h = mix64(h ^ (unsigned char)*s++);
        last[n++ % GRAM] = h;
        if (n < GRAM) continue;
        uint64_t all = 0;
        for (int i = 0; i < GRAM; i++) all = mix64(all ^ last[(n + i) % GRAM]);
        if (g->n == g->cap) {
            g->cap = g->cap ? 2 * g->cap : 1 << 16;
            g->p = (Gram *)xrealloc(g->p, g->cap * sizeof *g->p);
        }
        g->p[g->n++] = (Gram){ all, number };
    }
}

static void test_grams(const Task *task, int units, bool chinese) {
    Grams g = { NULL, 0, 0 };
    size_t shared = 0, bytes = SIZE_MAX;
    for (int i = 0; i < SESSIONS; i++) {
        TaskSession s = session(task, 7, i, task->turns, units);
        if (s.context.n < bytes) bytes = s.context.n;
        grams_add(&g, s.context.p, i, chinese);
        for (int t = 0; t < s.n_turns; t++) grams_add(&g, s.turns[t].question, i, chinese);
        session_clear(&s);
    }
    EXPECT(bytes >= 64 << 10, "%s: only %zu bytes", task->name, bytes);
    qsort(g.p, g.n, sizeof *g.p, gram_cmp);
    for (size_t i = 0, j; i < g.n; i = j) {
        for (j = i + 1; j < g.n && g.p[j].hash == g.p[i].hash; j++) continue;
        if (g.p[i].session != g.p[j - 1].session) shared += j - i;
    }
    printf("%s: %.3f %% of %zu 12-grams occur in two sessions\n", task->name,
           100.0 * (double)shared / (double)g.n, g.n);
    EXPECT(shared * 100 <= g.n, "%s: %zu of %zu 12-grams occur in two sessions", task->name,
           shared, g.n);
    free(g.p);
}

// ---------------------------------------------------------------------------
// gzip -6, by the program: uncompressed / compressed

static double gzip_ratio(const StrBuf *text) {
    char path[] = "/tmp/test_gen_novel_XXXXXX", command[128];
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    ssize_t put = write(fd, text->p, text->n);
    close(fd);
    snprintf(command, sizeof command, "gzip -6 -c %s | wc -c", path);
    FILE *f = popen(command, "r");
    long n = 0;
    int got = f ? fscanf(f, "%ld", &n) : 0;
    if (f) pclose(f);
    unlink(path);
    return put == (ssize_t)text->n && got == 1 && n > 0 ? (double)text->n / (double)n : -1;
}

static void test_gzip(const Task *task, int units, double most) {
    double low = 9, high = 0;
    for (int size = 1; size <= 16; size *= 16)
        for (int i = 0; i < (size == 1 ? 6 : 1); i++) {
            TaskSession s = session(task, 11, i, task->turns, units * size);
            double ratio = gzip_ratio(&s.context);
            if (ratio < low) low = ratio;
            if (ratio > high) high = ratio;
            session_clear(&s);
        }
    printf("%s: gzip ratio %.2f to %.2f\n", task->name, low, high);
    EXPECT(low >= 2.0 && high <= most, "%s: gzip ratio %.2f to %.2f", task->name, low, high);
}

// ---------------------------------------------------------------------------

static void test_growth(const Task *task, int step) {
    for (int seed = 1; seed <= 4; seed++) {
        int from = task->min_units * task->turns;
        size_t before = 0, most = 0;
        for (int n = from; n < from + 150; n++) {
            TaskSession s = session(task, (uint64_t)seed, 3, task->turns, n);
            EXPECT(s.units == n && s.n_turns == task->turns && s.context.n > before,
                   "%s seed %d: %d units are %zu bytes, one less is %zu", task->name, seed, n,
                   s.context.n, before);
            if (before && s.context.n - before > most) most = s.context.n - before;
            before = s.context.n;
            session_clear(&s);
        }
        EXPECT(most <= (size_t)step, "%s seed %d: one unit adds %zu bytes", task->name, seed, most);
    }
}

static int double_cmp(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// the answers of one kind stand near (j + 1/2) / n of the length
static void test_depths(const Task *task, int units, int part, double slack) {
    for (int seed = 1; seed <= 20; seed++) {
        TaskSession s = session(task, (uint64_t)seed, 0, task->turns, units);
        double depth[16];
        int n = 0;
        for (int t = 0; t < s.n_turns; t++)
            if (s.turns[t].part == part) {
                depth[n++] = s.turns[t].depth;
            }
        qsort(depth, (size_t)n, sizeof *depth, double_cmp);
        for (int j = 0; j < n; j++)
            EXPECT(fabs(depth[j] - (j + 0.5) / n) <= slack, "%s seed %d: depth %.3f of %d in %d",
                   task->name, seed, depth[j], j, n);
        session_clear(&s);
    }
}

static bool same_session(const TaskSession *a, const TaskSession *b) {
    bool same = a->context.n == b->context.n && !memcmp(a->context.p, b->context.p, a->context.n);
    for (int t = 0; t < a->n_turns; t++)
        same = same && !strcmp(a->turns[t].question, b->turns[t].question) &&
               !strcmp(a->turns[t].answer, b->turns[t].answer) &&
               a->turns[t].depth == b->turns[t].depth;
    return same;
}

static void test_seeds(const Task *task, int units) {
    TaskSession a = session(task, 5, 2, task->turns, units);
    TaskSession other = session(task, 6, 2, task->turns, units);
    TaskSession next = session(task, 5, 3, task->turns, units);
    TaskSession b = session(task, 5, 2, task->turns, units);
    EXPECT(same_session(&a, &b), "%s: the same seed gives another session", task->name);
    EXPECT(!same_session(&a, &other), "%s: another seed gives the same session", task->name);
    EXPECT(!same_session(&a, &next), "%s: another number gives the same session", task->name);
    session_clear(&a);
    session_clear(&b);
    session_clear(&other);
    session_clear(&next);
}

// every number of turns at its smallest size; each turn is complete
static void test_turns(const Task *task) {
    static const int turns[] = { 1, 2, 3, 4, 5, 8, 13, 40, 1000 };
    for (size_t i = 0; i < COUNTOF(turns); i++) {
        TaskSession s = session(task, 9, 1, turns[i], turns[i] * task->min_units);
        EXPECT(s.n_turns == turns[i], "%s: %d turns instead of %d", task->name, s.n_turns,
               turns[i]);
        for (int t = 0; t < s.n_turns; t++) {
            const TaskTurn *q = &s.turns[t];
            EXPECT(q->input && q->question && strstr(q->question, q->input) && q->answer &&
                   *q->answer && q->n_labels > 0 && q->part < task->n_parts && q->depth >= 0 &&
                   q->depth < 1,
                   "%s: turn %d of %d is incomplete", task->name, t, turns[i]);
        }
        session_clear(&s);
    }
}

// 4.5 bytes a token are more than any tokenizer of the models needs
static void test_million(const Task *task, int units) {
    TaskSession s = session(task, 1, 1, task->turns, units);
    double per_unit = (double)s.context.n / units;
    session_clear(&s);
    clock_t begin = clock();
    s = session(task, 1, 1, task->turns, (int)(4.5e6 / per_unit));
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    EXPECT(s.context.n > 4200000, "%s: %zu bytes are no million tokens", task->name, s.context.n);
    EXPECT(seconds < 5, "%s: %.1f s for a million tokens", task->name, seconds);
    session_clear(&s);
}

int main(void) {
    for (size_t i = 0; i < COUNTOF(tested); i++) {
        const Task *t = tested[i].task;
        test_grams(t, tested[i].units, tested[i].chinese);
        test_gzip(t, tested[i].units, tested[i].gzip);
        test_growth(t, tested[i].step);
        test_depths(t, tested[i].units, 0, t->n_parts == 2 || t == &task_en_sum ? 0.13 : 0.02);
        if (t->n_parts == 2) test_depths(t, tested[i].units, 1, 0.13);
        test_seeds(t, 90);
        test_turns(t);
        test_million(t, tested[i].units);
    }
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
