// test_corm.c - two forms of CORM (arXiv 2404.15949) keep the same rows at every moment: the
// message matrix of the paper's Algorithm 1, its columns compacted with the rows, and the one
// integer per row that the program keeps, the last step at which the row was important to some
// query. Scores are given, so nothing here depends on a model.
#include "oracle.h"

enum { T_MAX = 512, HEADS_MAX = 4 };

typedef struct {
    int n, id[T_MAX];                   // live rows by the step that brought them, 1-based
} Live;

typedef struct {                        // message-matrix form, Algorithm 1
    Live live;
    int n_msg;
    uint8_t msg[T_MAX][T_MAX];          // (n_msg, live.n), oldest query first
} Matrix;

typedef struct {                        // last-step form
    Live live;
    int last[T_MAX];
} Last;

typedef struct {
    uint64_t seed;
    int heads, window, protect;
    float spread;                       // width of the noise in the scores, in powers of two
    float bonus;                        // what some rows have more than others for ever
} Run;

static Matrix matrix;
static Last last;
static int failures;
static long evicted, compared;

static float unit(uint64_t x) { return (float)(mix64(x) >> 40) * 0x1p-24f; }

// score of row `id` for query step t of one head: noise, and a bonus for a tenth of the rows
static float score(const Run *r, int head, int t, int id) {
    uint64_t row = r->seed * 31 + (uint64_t)(head * 1000 + id);
    float noise = r->spread * unit(mix64(row) ^ (uint64_t)t * 0x9e3779b97f4a7c15ull);
    return noise + (unit(row + 77) < 0.1f ? r->bonus : 0.0f);
}

// which live rows are important to step t for any head of the group
static void important(const Run *r, const Live *a, int t, bool *out) {
    memset(out, 0, (size_t)a->n);
    for (int h = 0; h < r->heads; h++) {
        float s[T_MAX], max = -INFINITY, l = 0;
        for (int j = 0; j < a->n; j++) {
            s[j] = score(r, h, t, a->id[j]);
            max = s[j] > max ? s[j] : max;
        }
        for (int j = 0; j < a->n; j++) l += fexp2(s[j] - max);
        float lse2 = max + flog2(l);
        for (int j = 0; j < a->n; j++) out[j] |= naive_important(s[j], lse2, t);
    }
}

static void matrix_query(const Run *r, int t) {
    Matrix *m = &matrix;
    bool row[T_MAX];
    for (int i = 0; i < m->n_msg; i++) m->msg[i][m->live.n] = 0;    // unseen by older queries
    m->live.id[m->live.n++] = t;
    important(r, &m->live, t, row);
    if (m->n_msg == r->window) {                                    // the oldest query leaves
        memmove(m->msg, m->msg + 1, (size_t)(r->window - 1) * sizeof m->msg[0]);
        m->n_msg--;
    }
    for (int j = 0; j < m->live.n; j++) m->msg[m->n_msg][j] = row[j];
    m->n_msg++;
}

static void matrix_evict(const Run *r) {
    Matrix *m = &matrix;
    if (m->n_msg < r->window) return;
    int kept = 0, n = m->live.n;
    for (int j = 0; j < n; j++) {
        bool keep = j >= n - r->protect;
        for (int i = 0; i < m->n_msg; i++) keep |= m->msg[i][j];
        if (!keep) continue;
        m->live.id[kept] = m->live.id[j];
        for (int i = 0; i < m->n_msg; i++) m->msg[i][kept] = m->msg[i][j];
        kept++;
    }
    m->live.n = kept;
}

static void last_query(const Run *r, int t) {
    bool row[T_MAX];
    last.last[last.live.n] = 0;
    last.live.id[last.live.n++] = t;
    important(r, &last.live, t, row);
    for (int j = 0; j < last.live.n; j++)
        if (row[j]) last.last[j] = t;
}

static void last_evict(const Run *r, int t) {
    NaiveMethod p = { .kind = NAIVE_CORM, .window = r->window, .protect = r->protect };
    int kept = 0, n = last.live.n;
    for (int j = 0; j < n; j++) {
        if (!naive_corm_keeps(&p, j, n, last.last[j], t)) continue;
        last.live.id[kept] = last.live.id[j];
        last.last[kept++] = last.last[j];
    }
    evicted += n - kept;
    last.live.n = kept;
}

// T steps in feeds: the first of `first` steps, then of 1..feed_max; eviction at the end of each.
// one_shot: the first feed reads only its last `window` queries in the matrix form.
static void run(const Run *r, int T, int first, int feed_max, bool one_shot) {
    Rng rng = { r->seed };
    matrix.n_msg = matrix.live.n = last.live.n = 0;
    for (int t = 0; t < T && failures < 5; ) {
        int n = t == 0 ? first : 1 + (int)rng_below(&rng, (uint64_t)feed_max);
        if (n > T - t) n = T - t;
        for (int i = 0; i < n; i++) {
            int step = ++t;
            if (one_shot && step <= first - r->window) matrix.live.id[matrix.live.n++] = step;
            else matrix_query(r, step);
            last_query(r, step);
        }
        matrix_evict(r);
        last_evict(r, t);
        compared++;
        if (matrix.live.n != last.live.n ||
            memcmp(matrix.live.id, last.live.id, (size_t)last.live.n * sizeof *last.live.id)) {
            printf("seed %d, w %d, r %d, step %d: matrix keeps %d rows, last-step form %d\n",
                   (int)r->seed, r->window, r->protect, t, matrix.live.n, last.live.n);
            failures++;
            return;
        }
    }
}

static void fail(bool bad, const char *what) {
    if (!bad) return;
    printf("%s\n", what);
    failures++;
}

int main(void) {
    static const int vector[][3] = {        // T, w, r
        { 300, 16, 16 }, { 300, 16, 4 }, { 300, 4, 16 }, { 400, 32, 8 } };
    naive_ftz();
    for (size_t v = 0; v < COUNTOF(vector); v++)
        for (uint64_t seed = 1; seed <= 12; seed++) {
            Run r = { seed, 1 + (int)(seed % 2) * 2, vector[v][1], vector[v][2], 24.0f, 6.0f };
            run(&r, vector[v][0], 1, 1, false);
        }
    fail(evicted < 1000, "the vectors evicted almost nothing");

    for (uint64_t seed = 1; seed <= 3000; seed++) {
        Rng g = { seed };
        int T = 10 + (int)rng_below(&g, 90);
        Run r = { seed, 1 + (int)rng_below(&g, HEADS_MAX), 1 + (int)rng_below(&g, 40),
                  1 + (int)rng_below(&g, 40), 4.0f + 40.0f * unit(seed), 8.0f * unit(seed + 1) };
        int first = seed % 3 ? 1 + (int)rng_below(&g, (uint64_t)T) : 1;
        run(&r, T, first, seed % 2 ? 1 : 12, seed % 3 == 1);
    }
    fail(compared < 50000, "too few moments were compared");

    // equal scores over all t rows are each 1/t: important, so nothing is ever evicted
    long before = evicted;
    Run flat = { .seed = 1, .heads = 1, .window = 4, .protect = 1 };
    run(&flat, 200, 1, 1, false);
    fail(evicted != before || last.live.n != 200, "uniform attention lost rows");
    if (!failures) printf("%ld moments compared, %ld rows evicted\n", compared, evicted);
    return failures ? 1 : 0;
}
