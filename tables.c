// tables.c - the report: tables like the paper's (Li et al. 2024) as text or Markdown, CSV, cases.
#include "results.h"
#include <jansson.h>
#include <utf8proc.h>

enum { THRESHOLDS = 11 };       // repoqa at similarities 0.0 .. 1.0

// ---------------------------------------------------------------------------
// Grids: a title, groups of columns, cells; as aligned text or Markdown

// A text of a row as it may be shown: control and format characters and invalid bytes escaped, at
// most max code points, of its beginning or (tail) of its end.
static char *shown(const char *s, size_t n, int max, bool tail) {
    StrBuf b = { 0 };
    int total = 0, i = 0;
    utf8proc_int32_t c;
    utf8proc_ssize_t len;
    str_puts(&b, "");
    for (int pass = 0; pass < 2; pass++) {
        for (size_t at = 0; at < n; at += len > 0 ? (size_t)len : 1) {
            const utf8proc_uint8_t *u = (const utf8proc_uint8_t *)s + at;
            len = utf8proc_iterate(u, (utf8proc_ssize_t)(n - at), &c);
            if (!pass) {
                total++;
                continue;
            }
            int k = i++;
            if (tail ? k < total - max : k >= max) continue;
            utf8proc_category_t kind = len > 0 ? utf8proc_category(c) : UTF8PROC_CATEGORY_CN;
            bool odd = kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF ||
                       kind == UTF8PROC_CATEGORY_ZL || kind == UTF8PROC_CATEGORY_ZP;
            if (tail && k == total - max && max < total) str_puts(&b, "…");
            if (len <= 0) str_fmt(&b, "\\x%02x", (uint8_t)s[at]);
            else if (c == '\n') str_puts(&b, "\\n");
            else if (c == '\t') str_puts(&b, "\\t");
            else if (odd) str_fmt(&b, "\\u%04x", (unsigned)c);
            else str_add(&b, s + at, (size_t)len);
        }
    }
    if (!tail && total > max) str_puts(&b, "…");
    return b.p;
}

typedef enum { TEXT, CSV, MD } Format;

typedef struct {
    char *title, **group, **name, **cell;       // (cols) (cols) (rows, cols)
    int cols, n_cells, left;                    // left: columns aligned to the left
} Grid;

static char *vtext(const char *fmt, va_list ap) {
    char *s;
    if (vasprintf(&s, fmt, ap) < 0) die_code(EXIT_MEMORY, "not enough memory for a table");
    return s;
}

__attribute__((format(printf, 2, 3)))
static Grid grid_make(int left, const char *title, ...) {
    Grid g = { .left = left };
    va_list ap;
    va_start(ap, title);
    char *raw = vtext(title, ap);
    va_end(ap);
    g.title = shown(raw, strlen(raw), 240, false);
    free(raw);
    return g;
}

static void grid_col(Grid *g, const char *group, const char *name) {
    size_t n = (size_t)g->cols + 1;
    g->group = (char **)xrealloc(g->group, n * sizeof *g->group);
    g->name = (char **)xrealloc(g->name, n * sizeof *g->name);
    g->group[g->cols] = shown(group, strlen(group), 60, false);
    g->name[g->cols++] = shown(name, strlen(name), 60, false);
}

__attribute__((format(printf, 2, 3)))
static void put(Grid *g, const char *fmt, ...) {
    va_list ap;
    g->cell = (char **)xrealloc(g->cell, (size_t)(g->n_cells + 1) * sizeof *g->cell);
    va_start(ap, fmt);
    g->cell[g->n_cells++] = vtext(fmt, ap);
    va_end(ap);
}

static void put_real(Grid *g, int decimals, double v) {
    if (isnan(v)) put(g, "-");
    else put(g, "%.*f", decimals, v);
}
static void put_percent(Grid *g, double v) { put_real(g, 1, 100 * v); }

// a share in percent with its sign; no -0.0
static void signed_text(char out[16], double v) {
    double p = round(1000 * v) / 10;
    snprintf(out, 16, p == 0 ? "%.1f" : "%+.1f", p == 0 ? 0 : p);
}

static void put_interval(Grid *g, const Stat *s, bool sign) {
    double lo, hi;
    char a[16], b[16];
    interval(s, &lo, &hi);
    if (isnan(lo)) put(g, "-");
    else if (!sign) put(g, "%.1f - %.1f", 100 * lo, 100 * hi);
    else {
        signed_text(a, lo);
        signed_text(b, hi);
        put(g, "%s .. %s", a, b);
    }
}

static void put_diff(Grid *g, double v) {
    char text[16];
    signed_text(text, v);
    put(g, "%s", isnan(v) ? "-" : text);
}

// columns a text takes on a terminal: East Asian wide characters take two
static int width_of(const char *s) {
    int w = 0;
    utf8proc_int32_t c;
    for (utf8proc_ssize_t n; *s; s += n > 0 ? n : 1) {
        n = utf8proc_iterate((const utf8proc_uint8_t *)s, -1, &c);
        w += n > 0 ? utf8proc_charwidth(c) : 1;
    }
    return w;
}

static void pad(FILE *out, const char *s, int width, bool left) {
    int fill = width - width_of(s);
    fprintf(out, "%*s%s%*s", left || fill < 0 ? 0 : fill, "", s, left && fill > 0 ? fill : 0, "");
}

// first column of the group that column c is in
static int group_from(const Grid *g, int c) {
    while (c && !strcmp(g->group[c - 1], g->group[c])) c--;
    return c;
}

static void grid_text(FILE *out, const Grid *g) {
    int *w = (int *)calloc((size_t)g->cols + 1, sizeof *w), total = 0;
    bool groups = false, bold = isatty(fileno(out)) && !getenv("NO_COLOR");
    for (int i = 0; i < g->n_cells; i++)
        if (width_of(g->cell[i]) > w[i % g->cols]) w[i % g->cols] = width_of(g->cell[i]);
    for (int c = 0; c < g->cols; c++) {
        if (width_of(g->name[c]) > w[c]) w[c] = width_of(g->name[c]);
        w[c] += c == 0 ? 0 : group_from(g, c) == c ? 4 : 2;     // with the space before it
        groups = groups || *g->group[c];
    }
    for (int c = 0; c < g->cols; c++) {         // a group's name fits above its columns
        int sum = 0, end = c;
        if (group_from(g, c) != c) continue;
        for (; end < g->cols && group_from(g, end) == c; end++) sum += w[end];
        int more = width_of(g->group[c]) + (c ? 4 : 0) - sum;
        if (more > 0) w[end - 1] += more;
    }
    fprintf(out, "%s\n", g->title);
    for (int c = 0; c < g->cols; c++) total += w[c];
    for (int c = 0, end; groups && c < g->cols; c = end) {
        int sum = 0;
        for (end = c; end < g->cols && group_from(g, end) == c; end++) sum += w[end];
        if (c) fputs("    ", out);
        pad(out, g->group[c], end == g->cols ? 0 : sum - (c ? 4 : 0), true);
    }
    if (groups) fputc('\n', out);
    if (bold) fputs("\033[1m", out);
    for (int c = 0; c < g->cols; c++) {
        bool left = c < g->left;
        int gap = c == 0 ? 0 : group_from(g, c) == c ? 4 : 2;
        if (left) fprintf(out, "%*s", gap, "");
        pad(out, g->name[c], left ? w[c] - gap : w[c], left);
    }
    fprintf(out, "%s\n", bold ? "\033[0m" : "");
    for (int i = 0; i < total; i++) fputc('-', out);
    for (int i = 0; i < g->n_cells; i++) {
        int c = i % g->cols, gap = c == 0 ? 0 : group_from(g, c) == c ? 4 : 2;
        bool left = c < g->left;
        if (c == 0) fputc('\n', out);
        if (left) fprintf(out, "%*s", gap, "");
        pad(out, g->cell[i], left ? w[c] - gap : w[c], left);
    }
    fputc('\n', out);
    free(w);
}

static void md_text(FILE *out, const char *s) {
    for (; *s; s++) {
        if (strchr("|\\*_<`", *s)) fputc('\\', out);
        fputc(*s, out);
    }
}

static void grid_md(FILE *out, const Grid *g) {
    md_text(out, g->title);
    fputs("\n\n|", out);
    for (int c = 0; c < g->cols; c++) {
        fputc(' ', out);
        md_text(out, g->group[c]);
        if (*g->group[c]) fputc(' ', out);
        md_text(out, g->name[c]);
        fputs(" |", out);
    }
    fputs("\n|", out);
    for (int c = 0; c < g->cols; c++) fputs(c < g->left ? " --- |" : " ---: |", out);
    for (int i = 0; i < g->n_cells; i++) {
        fputs(i % g->cols ? " " : "\n| ", out);
        md_text(out, g->cell[i]);
        fputs(" |", out);
    }
    fputc('\n', out);
}

// prints the grid, a blank line before all but the first, and frees it
static void grid_end(FILE *out, Grid *g, Format format, int *printed) {
    if (g->n_cells) {
        if ((*printed)++) fputc('\n', out);
        (format == MD ? grid_md : grid_text)(out, g);
    }
    for (int c = 0; c < g->cols; c++) {
        free(g->group[c]);
        free(g->name[c]);
    }
    for (int i = 0; i < g->n_cells; i++) free(g->cell[i]);
    free(g->group);
    free(g->name);
    free(g->cell);
    free(g->title);
}

static void put_shown(Grid *g, const char *s) {
    char *text = shown(s, strlen(s), 60, false);
    put(g, "%s", text);
    free(text);
}

// ---------------------------------------------------------------------------
// The columns that name an arm

static void budget_text(const ArmRows *a, char out[32]) {
    if (a->budget_hi < 0) strcpy(out, "-");
    else if (a->budget_lo == a->budget_hi) snprintf(out, 32, "%lld", (long long)a->budget_lo);
    else snprintf(out, 32, "%lld-%lld", (long long)a->budget_lo, (long long)a->budget_hi);
}

// fields of an arm a table tells apart; skip: one it compares itself, -1
static int label_cols(const Results *d, int skip) {
    int n = 2;
    for (int f = 0; f < FIELDS; f++) n += d->shown[f] && f != F_METHOD && f != skip;
    return n;
}

static void label_head(const Results *d, Grid *g, int skip) {
    if (d->shown[F_MODEL]) grid_col(g, "", "model");
    grid_col(g, "", "method");
    grid_col(g, "", "budget");
    for (int f = F_MODEL + 1; f < FIELDS; f++)
        if (d->shown[f] && f != F_METHOD && f != skip) grid_col(g, "", field_names[f]);
}

// what an arm's label or sizes say beyond its method and budget
static void sizes_put(Grid *g, const ArmRows *a, const char *budget) {
    const char *s = a->field[F_SIZES];
    size_t n = strlen(a->field[F_METHOD]);
    if (!strncmp(s, a->field[F_METHOD], n) && (!s[n] || s[n] == ' ')) s += n + (s[n] == ' ');
    if (!*s || !strcmp(s, budget)) put(g, "-");
    else put_shown(g, s);
}

static void label_put(const Results *d, Grid *g, int arm, int skip) {
    char budget[32];
    const ArmRows *a = &d->arm[arm];
    if (d->shown[F_MODEL]) put_shown(g, a->field[F_MODEL]);
    put_shown(g, a->field[F_METHOD]);
    budget_text(a, budget);
    put(g, "%s", budget);
    for (int f = F_MODEL + 1; f < FIELDS; f++) {
        if (!d->shown[f] || f == F_METHOD || f == skip) continue;
        if (f == F_SIZES) sizes_put(g, a, budget);
        else if (*a->field[f]) put_shown(g, a->field[f]);
        else put(g, "%s", f == F_HISTORY ? "golden" : f == F_QUERY ? "default" : "-");
    }
}

// "method budget" as text
static void arm_label(const Results *d, int arm, char *out, size_t n) {
    const ArmRows *a = &d->arm[arm];
    char budget[32], *name = shown(a->field[F_METHOD], strlen(a->field[F_METHOD]), 60, false);
    budget_text(a, budget);
    snprintf(out, n, a->budget_hi < 0 ? "%s" : "%s %s", name, budget);
    free(name);
}

static const char *heading_of(const Results *d, int task) {
    return d->task[task].column ? d->task[task].column->heading : d->task[task].name;
}

// ---------------------------------------------------------------------------
// Tables

typedef struct {
    const Results *d;
    FILE *out;
    Format format;
    int printed;                // grids so far
} Printer;

static bool mode_seen(const Results *d, int mode) {
    for (int t = 0; t < d->n_tasks; t++)
        for (int a = 0; a < d->n_arms; a++)
            if (has(d, t, (Key){ a, mode })) return true;
    return false;
}

static bool any_of(const Results *d, Tasks l, Key k) {
    for (int i = 0; i < l.n; i++)
        if (has(d, l.task[i], k)) return true;
    return false;
}
static bool arm_in(const Results *d, Tasks l, int arm) {
    for (int m = 0; m < MODES; m++)
        if (any_of(d, l, (Key){ arm, m })) return true;
    return false;
}
static bool mode_in(const Results *d, Tasks l, int mode) {
    for (int a = 0; a < d->n_arms; a++)
        if (any_of(d, l, (Key){ a, mode })) return true;
    return false;
}
static bool based_in(const Results *d, Tasks l) {
    for (int a = 0; a < d->n_arms; a++)
        if (d->arm[a].base >= 0 && arm_in(d, l, a)) return true;
    return false;
}

static int turns_in(const Results *d, Tasks l) {
    int turns = 0;
    for (int i = 0; i < l.n; i++)
        if (d->task[l.task[i]].turns > turns) turns = d->task[l.task[i]].turns;
    return turns;
}

static int sessions_in(const Results *d, Tasks l) {
    int most = 0;
    for (int i = 0; i < l.n; i++)
        if (d->task[l.task[i]].n_sessions > most) most = d->task[l.task[i]].n_sessions;
    return most;
}

// every task of the report; free(x.task)
static Tasks all_tasks(const Results *d) {
    Tasks l = { d->n_tasks, (int *)xrealloc(NULL, (size_t)(d->n_tasks + 1) * sizeof(int)) };
    for (int t = 0; t < d->n_tasks; t++) l.task[t] = t;
    return l;
}

// those of the list that some arm has in this mode; free(x.task)
static Tasks list_in(const Results *d, Tasks list, int mode) {
    Tasks l = { 0, (int *)xrealloc(NULL, (size_t)(list.n + 1) * sizeof(int)) };
    for (int i = 0; i < list.n; i++)
        if (mode_in(d, (Tasks){ 1, &list.task[i] }, mode)) l.task[l.n++] = list.task[i];
    return l;
}

// score, its interval, the difference to full and its interval, per mode
static void intervals_block(Printer *p, Tasks l, const char *what) {
    const Results *d = p->d;
    bool based = based_in(d, l);
    Grid g = grid_make(label_cols(d, -1), "%s: mean, 95 %% interval over sessions%s", what,
                       based ? "; difference to full, paired by session" : "");
    label_head(d, &g, -1);
    for (int m = 0; m < MODES; m++) {
        if (!mode_in(d, l, m)) continue;
        grid_col(&g, mode_names[m], "mean");
        grid_col(&g, mode_names[m], "interval");
        if (based) grid_col(&g, mode_names[m], "- full");
        if (based) grid_col(&g, mode_names[m], "interval of it");
    }
    for (int a = 0; a < d->n_arms; a++) {
        if (!arm_in(d, l, a)) continue;
        label_put(d, &g, a, -1);
        for (int m = 0; m < MODES; m++) {
            Key k = { a, m };
            if (!mode_in(d, l, m)) continue;
            Tasks here = list_in(d, l, m);
            Pair v = mean_over(d, here, k, base_key(d, k), ALL_ROWS);
            put_percent(&g, v.score.at);
            put_interval(&g, &v.score, false);
            if (based) put_diff(&g, v.diff.at);
            if (based) put_interval(&g, &v.diff, true);
            pair_free(&v);
            free(here.task);
        }
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

static void turns_block(Printer *p, Tasks l, const char *what) {
    const Results *d = p->d;
    char name[16];
    int turns = turns_in(d, l);
    Grid g = grid_make(label_cols(d, -1), "%s: accuracy in %% by turn, %d session%s", what,
                       sessions_in(d, l), sessions_in(d, l) == 1 ? "" : "s");
    label_head(d, &g, -1);
    for (int m = 0; m < MODES; m++) {
        if (!mode_in(d, l, m)) continue;
        for (int t = 1; t <= turns; t++) {
            snprintf(name, sizeof name, "t%d", t);
            grid_col(&g, mode_names[m], name);
        }
        grid_col(&g, mode_names[m], "mean");
    }
    for (int a = 0; a < d->n_arms; a++) {
        if (!arm_in(d, l, a)) continue;
        label_put(d, &g, a, -1);
        for (int m = 0; m < MODES; m++) {
            if (!mode_in(d, l, m)) continue;
            Tasks here = list_in(d, l, m);
            for (int t = 1; t <= turns + 1; t++) {
                Pick pick = ALL_ROWS;
                if (t <= turns) pick.turn = t;
                Pair v = mean_over(d, here, (Key){ a, m }, NOBODY, pick);
                put_percent(&g, v.score.at);
                pair_free(&v);
            }
            free(here.task);
        }
    }
    grid_end(p->out, &g, p->format, &p->printed);
    intervals_block(p, l, what);
}

static void table_turns(Printer *p) {
    const Results *d = p->d;
    for (int t = 0; t < d->n_tasks; t++) {
        Tasks one = { 1, &t };
        char *what = shown(d->task[t].name, strlen(d->task[t].name), 60, false);
        turns_block(p, one, what);
        free(what);
    }
    if (d->n_tasks < 2) return;
    Tasks l = all_tasks(d);
    turns_block(p, l, "mean of the tasks");
    free(l.task);
}

// "mode, parts of mix tasks": one column per (task, part); languages and thresholds alike
static void parts_block(Printer *p, int mode, Tasks l) {
    const Results *d = p->d;
    bool any = false;
    Grid g = grid_make(label_cols(d, -1), "%s: parts of the mix tasks in %%", mode_names[mode]);
    label_head(d, &g, -1);
    for (int i = 0; i < l.n; i++) {
        const TaskRows *t = &d->task[l.task[i]];
        for (int k = 0; k < t->n_parts && t->n_parts > 1; k++, any = true)
            grid_col(&g, heading_of(d, l.task[i]), t->part[k]);
    }
    for (int a = 0; any && a < d->n_arms; a++) {
        if (!any_of(d, l, (Key){ a, mode })) continue;
        label_put(d, &g, a, -1);
        for (int i = 0; i < l.n; i++) {
            const TaskRows *t = &d->task[l.task[i]];
            for (int k = 0; k < t->n_parts && t->n_parts > 1; k++) {
                Pick pick = ALL_ROWS;
                pick.part = k;
                Pair v = pair_of(d, l.task[i], (Key){ a, mode }, NOBODY, pick);
                put_percent(&g, v.score.at);
                pair_free(&v);
            }
        }
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

// repoqa at the thresholds 0.0 .. 1.0 of similarity, and by language
static void functions_block(Printer *p, int mode, int task) {
    const Results *d = p->d;
    char name[16];
    Grid g = grid_make(label_cols(d, -1), "%s, %s: functions found in %% by threshold, score by "
                       "language", mode_names[mode], heading_of(d, task));
    label_head(d, &g, -1);
    for (int i = 0; i < THRESHOLDS; i++) {
        snprintf(name, sizeof name, "%.1f", i / 10.0);
        grid_col(&g, "similarity at least", name);
    }
    for (int i = 0; i < d->n_langs; i++) grid_col(&g, "language", d->lang[i]);
    for (int a = 0; a < d->n_arms; a++) {
        Key k = { a, mode };
        if (!has(d, task, k)) continue;
        label_put(d, &g, a, -1);
        for (int i = 0; i < THRESHOLDS + d->n_langs; i++) {
            Pick pick = ALL_ROWS;
            if (i < THRESHOLDS) pick.threshold = i / 10.0;
            else pick.lang = i - THRESHOLDS;
            Pair v = pair_of(d, task, k, NOBODY, pick);
            put_percent(&g, v.score.at);
            pair_free(&v);
        }
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

// the paper's tables 11 and 12: one grid per mode, then the differences to full
static void table_tasks(Printer *p) {
    const Results *d = p->d;
    for (int m = 0; m < MODES; m++) {
        Tasks l = tasks_seen(d, m);
        for (int diff = 0; diff < (based_in(d, l) ? 2 : 1) && l.n; diff++) {
            Grid g = grid_make(label_cols(d, -1), diff
                ? "%s: difference to full, paired by session; *: the 95 %% interval excludes 0"
                : "%s: score per task in %%", mode_names[m]);
            label_head(d, &g, -1);
            for (int i = 0; i < l.n; i++) grid_col(&g, "", heading_of(d, l.task[i]));
            grid_col(&g, "", "mean");
            for (int a = 0; a < d->n_arms; a++) {
                Key k = { a, m };
                if (!any_of(d, l, k) || (diff && d->arm[a].base < 0)) continue;
                label_put(d, &g, a, -1);
                for (int i = 0; i <= l.n; i++) {
                    Pair v = i < l.n ? pair_of(d, l.task[i], k, base_key(d, k), ALL_ROWS)
                                     : mean_over(d, l, k, base_key(d, k), ALL_ROWS);
                    double lo, hi;
                    char text[16];
                    interval(&v.diff, &lo, &hi);
                    signed_text(text, v.diff.at);
                    if (!diff) put_percent(&g, v.score.at);
                    else if (isnan(v.diff.at)) put(&g, "-");
                    else put(&g, "%s%s", text, lo > 0 || hi < 0 ? "*" : "");
                    pair_free(&v);
                }
            }
            grid_end(p->out, &g, p->format, &p->printed);
        }
        parts_block(p, m, l);
        for (int i = 0; i < l.n; i++)
            if (d->task[l.task[i]].similarity) functions_block(p, m, l.task[i]);
        free(l.task);
    }
}

// the paper's tables 4 and 10
static void table_categories(Printer *p) {
    const Results *d = p->d;
    Grid g = grid_make(label_cols(d, -1), "score per category in %%; AVG: mean of the categories");
    Grid e = grid_make(label_cols(d, -1), "AVG: 95 %% interval over sessions; difference to full, "
                       "paired by session");
    label_head(d, &g, -1);
    label_head(d, &e, -1);
    for (int m = 0; m < MODES; m++) {
        Tasks l = tasks_seen(d, m);
        for (int c = 0; c < CATEGORIES && l.n; c++) {
            Tasks in = tasks_in(d, l, c);
            if (in.n) grid_col(&g, mode_names[m], category_names[c]);
            free(in.task);
        }
        if (l.n) {
            grid_col(&g, mode_names[m], "AVG");
            grid_col(&e, mode_names[m], "AVG");
            grid_col(&e, mode_names[m], "interval");
            grid_col(&e, mode_names[m], "- full");
            grid_col(&e, mode_names[m], "interval of it");
        }
        free(l.task);
    }
    for (int a = 0; a < d->n_arms; a++) {
        label_put(d, &g, a, -1);
        label_put(d, &e, a, -1);
        for (int m = 0; m < MODES; m++) {
            Key k = { a, m };
            Tasks l = tasks_seen(d, m);
            for (int c = 0; c < CATEGORIES && l.n; c++) {
                Tasks in = tasks_in(d, l, c);
                Pair v = mean_over(d, in, k, NOBODY, ALL_ROWS);
                if (in.n) put_percent(&g, v.score.at);
                pair_free(&v);
                free(in.task);
            }
            if (l.n) {
                Pair v = average(d, l, k, base_key(d, k), ALL_ROWS);
                put_percent(&g, v.score.at);
                put_percent(&e, v.score.at);
                put_interval(&e, &v.score, false);
                put_diff(&e, v.diff.at);
                put_interval(&e, &v.diff, true);
                pair_free(&v);
            }
            free(l.task);
        }
    }
    grid_end(p->out, &g, p->format, &p->printed);
    grid_end(p->out, &e, p->format, &p->printed);
}

// what an arm scores and what it costs, one line per mode
static void table_methods(Printer *p) {
    const Results *d = p->d;
    int left = label_cols(d, -1) + 1;
    Grid g = grid_make(left, "overall score in %% (AVG of the categories) and cost");
    label_head(d, &g, -1);
    grid_col(&g, "", "mode");
    grid_col(&g, "score", "AVG");
    grid_col(&g, "score", "interval");
    grid_col(&g, "score", "- full");
    grid_col(&g, "score", "interval of it");
    grid_col(&g, "kept", "rows");
    grid_col(&g, "kept", "KV MB");
    grid_col(&g, "kept", "alloc");
    grid_col(&g, "time", "prefill s");
    grid_col(&g, "time", "tok/s");
    for (int m = 0; m < MODES; m++) {
        Tasks l = tasks_seen(d, m);
        for (int a = 0; a < d->n_arms; a++) {
            Key k = { a, m };
            if (!any_of(d, l, k)) continue;
            Pair v = average(d, l, k, base_key(d, k), ALL_ROWS);
            Cost cost = cost_of(d, l, k);
            label_put(d, &g, a, -1);
            put(&g, "%s", mode_names[m]);
            put_percent(&g, v.score.at);
            put_interval(&g, &v.score, false);
            put_diff(&g, v.diff.at);
            put_interval(&g, &v.diff, true);
            put_real(&g, 1, cost.rows);
            put_real(&g, 2, cost.live / 1e6);
            put_real(&g, 2, cost.alloc / 1e6);
            put_real(&g, 2, cost.prefill);
            put_real(&g, 1, cost.tok_s);
            pair_free(&v);
        }
        free(l.task);
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

static void put_seconds(Grid *g, const Seconds *s) {
    double all = s->context + s->feeds + s->steps, policy = s->policy + s->shared_policy;
    put_real(g, 2, s->feeds);
    put_real(g, 2, s->steps);
    put_real(g, 2, policy);
    put_real(g, 2, all);
    put_real(g, 3, all / (all - policy));
}

// Where the time went: every arm with its contexts, then all arms of a mode, where a context that
// they share counts once. The ratio is to the same work without the policies' own passes.
static void table_cost(Printer *p) {
    const Results *d = p->d;
    Grid g = grid_make(label_cols(d, -1) + 1, "seconds, all sessions; policies: passes of their "
                       "own, within the rest; ratio: all / (all - policies)");
    label_head(d, &g, -1);
    grid_col(&g, "", "mode");
    static const char *const cols[] = { "contexts", "their s", "feeds", "steps", "policies", "all",
                                        "ratio" };
    for (size_t i = 0; i < COUNTOF(cols); i++) grid_col(&g, "", cols[i]);
    for (int m = 0; m < MODES; m++) {
        int arms = 0;
        Tasks l = tasks_seen(d, m);
        for (int a = 0; a < d->n_arms; a++) {
            if (!any_of(d, l, (Key){ a, m })) continue;
            Seconds s = seconds_of(d, a, m);
            arms++;
            label_put(d, &g, a, -1);
            put(&g, "%s", mode_names[m]);
            put(&g, "%d", s.contexts);
            put_real(&g, 2, s.context);
            put_seconds(&g, &s);
        }
        free(l.task);
        if (arms < 2) continue;
        Seconds s = seconds_of(d, -1, m);
        put(&g, "%d arms", arms);
        for (int i = 1; i < label_cols(d, -1); i++) put(&g, "%s", "");
        put(&g, "%s", mode_names[m]);
        put(&g, "%d", s.contexts);
        put_real(&g, 2, s.context);
        put_seconds(&g, &s);
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

static const char *query_of(const Results *d, Key k) {
    const char *set = d->arm[k.arm].field[F_QUERY];
    return *set ? set : query_default(k.mode);
}

// the same arm without the question in its first feed; nobody for that arm itself
static Key unaware_key(const Results *d, Key k) {
    const char *no = strcmp(query_default(k.mode), "no") ? "no" : "";
    if (!strcmp(query_of(d, k), "no")) return NOBODY;
    return (Key){ sibling(d, k.arm, k.mode, F_QUERY, no), k.mode };
}

// the same arm with golden answers as history; nobody for that arm itself
static Key golden_key(const Results *d, Key k) {
    if (strcmp(d->arm[k.arm].field[F_HISTORY], "own")) return NOBODY;
    return (Key){ sibling(d, k.arm, k.mode, F_HISTORY, ""), k.mode };
}

// the paper's table 5: with / without the question in the first feed
static void table_query(Printer *p) {
    const Results *d = p->d;
    int skip = F_QUERY;
    for (int m = 0; m < MODES; m++) {
        Tasks l = tasks_seen(d, m);
        Grid g = grid_make(label_cols(d, skip), "%s: score in %% with / without the question in "
                           "the first feed", mode_names[m]);
        label_head(d, &g, skip);
        grid_col(&g, "", "with");
        for (int c = 0; c < CATEGORIES; c++) {
            Tasks in = tasks_in(d, l, c);
            if (in.n) grid_col(&g, "", category_names[c]);
            free(in.task);
        }
        grid_col(&g, "", "AVG");
        grid_col(&g, "", "difference");
        grid_col(&g, "", "interval of it");
        for (int a = 0; a < d->n_arms; a++) {
            Key k = { a, m }, b = unaware_key(d, k);
            Tasks both = tasks_of_both(d, k, b);
            if (both.n) {
                label_put(d, &g, a, skip);
                put(&g, "%s", query_of(d, k));
                for (int c = 0; c <= CATEGORIES; c++) {
                    Tasks in = tasks_in(d, l, c), have = tasks_in(d, both, c);
                    bool avg = c == CATEGORIES;
                    Pair with = avg ? average(d, both, k, b, ALL_ROWS)
                                    : mean_over(d, have, k, b, ALL_ROWS);
                    Pair without = avg ? average(d, both, b, NOBODY, ALL_ROWS)
                                       : mean_over(d, have, b, NOBODY, ALL_ROWS);
                    if (!isnan(with.score.at))
                        put(&g, "%.1f / %.1f", 100 * with.score.at, 100 * without.score.at);
                    else if (in.n) put(&g, "-");
                    if (avg) put_diff(&g, with.diff.at);
                    if (avg) put_interval(&g, &with.diff, true);
                    pair_free(&with);
                    pair_free(&without);
                    free(in.task);
                    free(have.task);
                }
            }
            free(both.task);
        }
        free(l.task);
        grid_end(p->out, &g, p->format, &p->printed);
    }
}

// what reuse costs: the same turns asked alone, in a dialogue, and of a shared context
static void reuse_block(Printer *p, Tasks l, const char *what) {
    const Results *d = p->d;
    static const int order[MODES] = { SINGLE, MULTI_TURN, MULTI_REQUEST };
    bool single = mode_in(d, l, SINGLE);
    int from = single ? SINGLE : MULTI_TURN;
    Grid g = grid_make(label_cols(d, -1), "%s: score in %% by reuse, and the difference to %s, "
                       "paired by session", what, mode_names[from]);
    label_head(d, &g, -1);
    for (int i = 0; i < MODES; i++)
        if (mode_in(d, l, order[i])) grid_col(&g, "score", mode_names[order[i]]);
    for (int i = 0; i < MODES; i++) {
        if (order[i] == from || !mode_in(d, l, order[i])) continue;
        grid_col(&g, "difference", mode_names[order[i]]);
        grid_col(&g, "difference", "interval");
    }
    for (int a = 0; a < d->n_arms; a++) {
        int modes = 0;
        for (int m = 0; m < MODES; m++) modes += any_of(d, l, (Key){ a, m });
        if (modes < 2) continue;
        label_put(d, &g, a, -1);
        for (int i = 0; i < MODES; i++) {
            Pair v = average(d, l, (Key){ a, order[i] }, NOBODY, ALL_ROWS);
            if (mode_in(d, l, order[i])) put_percent(&g, v.score.at);
            pair_free(&v);
        }
        for (int i = 0; i < MODES; i++) {
            if (order[i] == from || !mode_in(d, l, order[i])) continue;
            Pair v = average(d, l, (Key){ a, order[i] }, (Key){ a, from }, ALL_ROWS);
            put_diff(&g, v.diff.at);
            put_interval(&g, &v.diff, true);
            pair_free(&v);
        }
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

static void table_reuse(Printer *p) {
    const Results *d = p->d;
    int modes = 0;
    for (int m = 0; m < MODES; m++) modes += mode_seen(d, m);
    if (modes < 2) return;
    Tasks l = all_tasks(d);
    for (int m = 0; m < MODES; m++) {           // an average compares the same tasks
        if (!mode_seen(d, m)) continue;
        Tasks here = list_in(d, l, m);
        free(l.task);
        l = here;
    }
    const char *what = l.n == 1 ? d->task[l.task[0]].name : "AVG of the tasks in all modes";
    if (l.n) reuse_block(p, l, what);
    for (int t = 0; t < d->n_tasks && d->n_tasks > 1; t++) {
        Tasks one = { 1, &t };
        reuse_block(p, one, d->task[t].name);
    }
    free(l.task);
}

// the paper's table 13: the model's own answers as history, and the difference to golden ones
static void history_block(Printer *p, Tasks l, const char *what) {
    const Results *d = p->d;
    int turns = turns_in(d, l);
    char name[16];
    Grid g = grid_make(label_cols(d, F_HISTORY), "%s: score in %% with the model's own answers as "
                       "history (difference to golden ones)", what);
    label_head(d, &g, F_HISTORY);
    for (int t = 1; t <= turns; t++) {
        snprintf(name, sizeof name, "t%d", t);
        grid_col(&g, "", name);
    }
    grid_col(&g, "", "mean");
    grid_col(&g, "", "interval of the difference");
    for (int a = 0; a < d->n_arms; a++) {
        Key k = { a, MULTI_TURN }, b = golden_key(d, k);
        Tasks both = tasks_of_both(d, k, b);
        bool whole = both.n > 0;
        for (int i = 0; i < l.n; i++) whole = whole && has(d, l.task[i], k) && has(d, l.task[i], b);
        if (whole) label_put(d, &g, a, F_HISTORY);
        for (int t = 1; whole && t <= turns + 1; t++) {
            Pick pick = ALL_ROWS;
            char diff[16];
            if (t <= turns) pick.turn = t;
            Pair v = mean_over(d, l, k, b, pick);
            signed_text(diff, v.diff.at);
            if (isnan(v.diff.at)) put(&g, "-");
            else put(&g, "%.1f (%s)", 100 * v.score.at, diff);
            if (t > turns) put_interval(&g, &v.diff, true);
            pair_free(&v);
        }
        free(both.task);
    }
    grid_end(p->out, &g, p->format, &p->printed);
}

static void table_history(Printer *p) {
    const Results *d = p->d;
    char what[32];
    Tasks l = all_tasks(d);
    snprintf(what, sizeof what, "mean of %d tasks", l.n);
    for (int t = 0; t < d->n_tasks; t++) {
        Tasks one = { 1, &t };
        history_block(p, one, d->task[t].name);
    }
    if (l.n > 1) history_block(p, l, what);
    free(l.task);
}

// score by where in the context the answer stands
static void table_depth(Printer *p) {
    const Results *d = p->d;
    char name[32];
    for (int t = 0; t < d->n_tasks; t++) {
        for (int m = 0; m < MODES; m++) {
            Grid g = grid_make(label_cols(d, -1), "%s, %s: score in %% by depth of the answer in "
                               "the context (0: its beginning)", d->task[t].name, mode_names[m]);
            label_head(d, &g, -1);
            for (int i = 0; i < BINS; i++) {
                snprintf(name, sizeof name, "%d-%d%%", 100 * i / BINS, 100 * (i + 1) / BINS);
                grid_col(&g, "", name);
            }
            for (int a = 0; a < d->n_arms; a++) {
                Key k = { a, m };
                int n = 0;
                Cell *c = cell_of(d, t, k);
                for (size_t i = c->from; i < c->from + c->n; i++) n += !isnan(d->rec[i].depth);
                if (n) label_put(d, &g, a, -1);
                for (int i = 0; n && i < BINS; i++) {
                    Pick pick = ALL_ROWS;
                    pick.bin = i;
                    Pair v = pair_of(d, t, k, NOBODY, pick);
                    put_percent(&g, v.score.at);
                    pair_free(&v);
                }
            }
            grid_end(p->out, &g, p->format, &p->printed);
        }
    }
}

// tokens before and after, and seconds, of the compressed contexts of a cell
static void put_compression(Grid *g, const Results *d, const Cell *c) {
    double before = 0, after = 0, seconds = 0;
    int n = 0;
    for (size_t i = c->from; i < c->from + c->n; i++) {
        const Rec *r = &d->rec[i];
        if (isnan(r->before) || isnan(r->after)) continue;
        before += r->before;
        after += r->after;
        seconds += r->compress;
        n++;
    }
    put_real(g, 0, before / n);
    put_real(g, 0, after / n);
    put_percent(g, after / before);
    put_real(g, 2, seconds / n);
}

static bool is_compressed(const Results *d, const Cell *c) {
    return c->n && !isnan(d->rec[c->from].before);
}

// Compressed contexts, and what became of the answers that stood in them: a needle that was
// compressed away is no fault of the model that reads
static void table_prompt(Printer *p) {
    const Results *d = p->d;
    Grid g = grid_make(label_cols(d, -1) + 2, "compressed contexts; answers that stood in them and "
                       "still do, in %% of the questions, and the score of these and of the "
                       "others");
    label_head(d, &g, -1);
    grid_col(&g, "", "mode");
    grid_col(&g, "", "task");
    grid_col(&g, "tokens", "before");
    grid_col(&g, "tokens", "after");
    grid_col(&g, "tokens", "%");
    grid_col(&g, "", "seconds");
    grid_col(&g, "answers", "questions");
    grid_col(&g, "answers", "kept");
    grid_col(&g, "answers", "interval");
    grid_col(&g, "score", "kept");
    grid_col(&g, "score", "left out");
    for (int m = 0; m < MODES; m++)
        for (int a = 0; a < d->n_arms; a++)
            for (int t = 0; t < d->n_tasks; t++) {
                Key k = { a, m };
                Pick pick = ALL_ROWS;
                if (!is_compressed(d, cell_of(d, t, k))) continue;
                label_put(d, &g, a, -1);
                put(&g, "%s", mode_names[m]);
                put_shown(&g, heading_of(d, t));
                put_compression(&g, d, cell_of(d, t, k));
                pick.kept = ANSWER_SHARE;
                Pair share = pair_of(d, t, k, NOBODY, pick);
                pick.kept = ANSWER_IN;
                Pair in = pair_of(d, t, k, NOBODY, pick);
                pick.kept = ANSWER_OUT;
                Pair out = pair_of(d, t, k, NOBODY, pick);
                put(&g, "%d", share.score.n);
                put_percent(&g, share.score.at);
                put_interval(&g, &share.score, false);
                put_percent(&g, in.score.at);
                put_percent(&g, out.score.at);
                pair_free(&share);
                pair_free(&in);
                pair_free(&out);
            }
    grid_end(p->out, &g, p->format, &p->printed);
}

// ---------------------------------------------------------------------------
// Tidy CSV: one line per mean, so that a figure is a filter and not a parser

static void csv_text(FILE *out, const char *s) {
    if (!strpbrk(s, ",\"\r\n")) {
        fputs(s, out);
        return;
    }
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"') fputc('"', out);
        fputc(*s, out);
    }
    fputc('"', out);
}

static void csv_real(FILE *out, double v) {
    fputc(',', out);
    if (isfinite(v)) fprintf(out, "%.6g", v);
}

typedef struct {                // what a line is a mean of; NULL and -1: everything
    const char *kind, *category, *task, *part, *against;
    Pick pick;
} CsvLine;

static void csv_head(FILE *out) {
    fputs("kind,model,ctx,preset,method,budget,sizes,positions,compress,group,chat,scorer,history,"
          "query_aware,mode,category,task,part,turn,depth_from,depth_to,language,threshold,"
          "sessions,n,mean,lo,hi,against,diff,diff_lo,diff_hi,rows,kv_live_bytes,kv_alloc_bytes,"
          "prefill_s,tok_s,tokens\n", out);
}

static void csv_line(const Printer *p, Key k, CsvLine l, Pair v, const Cost *cost) {
    static const Cost unknown = { NAN, NAN, NAN, NAN, NAN, NAN };
    const ArmRows *a = &p->d->arm[k.arm];
    const Cost *c = cost ? cost : &unknown;
    double lo, hi, diff_lo, diff_hi;
    char budget[32];
    FILE *out = p->out;
    interval(&v.score, &lo, &hi);
    interval(&v.diff, &diff_lo, &diff_hi);
    budget_text(a, budget);
    fputs(l.kind, out);
    for (int f = 0; f < FIELDS; f++) {
        const char *s = a->field[f];
        if (f == F_HISTORY) s = k.mode != MULTI_TURN ? "" : *s ? s : "golden";
        if (f == F_QUERY && !*s) s = query_default(k.mode);
        fputc(',', out);
        if (f == F_SIZES) fprintf(out, "%s,", strcmp(budget, "-") ? budget : "");
        csv_text(out, s);
    }
    fprintf(out, ",%s,%s,", mode_names[k.mode], l.category ? l.category : "");
    csv_text(out, l.task ? l.task : "");
    fputc(',', out);
    csv_text(out, l.part ? l.part : "");
    if (l.pick.turn > 0) fprintf(out, ",%d", l.pick.turn);
    else fputc(',', out);
    if (l.pick.bin >= 0)
        fprintf(out, ",%g,%g", (double)l.pick.bin / BINS, (l.pick.bin + 1.0) / BINS);
    else fputs(",,", out);
    fputc(',', out);
    if (l.pick.lang >= 0) csv_text(out, p->d->lang[l.pick.lang]);
    csv_real(out, l.pick.threshold);
    fprintf(out, ",%d,%d", v.score.sessions, v.score.n);
    csv_real(out, 100 * v.score.at);
    csv_real(out, 100 * lo);
    csv_real(out, 100 * hi);
    fprintf(out, ",%s", isnan(v.diff.at) ? "" : l.against ? l.against : "full");
    csv_real(out, 100 * v.diff.at);
    csv_real(out, 100 * diff_lo);
    csv_real(out, 100 * diff_hi);
    csv_real(out, c->rows);
    csv_real(out, c->live);
    csv_real(out, c->alloc);
    csv_real(out, c->prefill);
    csv_real(out, c->tok_s);
    csv_real(out, c->tokens);
    fputc('\n', out);
}

// one line where there is something to average
static void csv_put(const Printer *p, Key k, CsvLine l, Pair v, const Cost *cost) {
    if (v.score.n) csv_line(p, k, l, v, cost);
    pair_free(&v);
}

static void csv_task(const Printer *p, const char *kind, int task, Key k, Key against, Pick pick) {
    const Results *d = p->d;
    Tasks one = { 1, &task };
    CsvLine l = { kind, category_names[category_of(d, task)], d->task[task].name,
                  pick.part >= 0 ? d->task[task].part[pick.part] : NULL,
                  !strcmp(kind, "reuse") ? mode_names[against.mode] : !strcmp(kind, "history")
                  ? "golden" : !strcmp(kind, "query") ? "no" : NULL, pick };
    Cost cost = cost_of(d, one, k);
    csv_put(p, k, l, pair_of(d, task, k, against, pick), strcmp(kind, "task") ? NULL : &cost);
}

enum { T_TURNS, T_TASKS, T_CATEGORIES, T_METHODS, T_QUERY, T_REUSE, T_HISTORY, T_DEPTH,
       T_LONGBENCH, T_PROMPT, T_COST, TABLES };
static const char *const table_name[TABLES] = { "turns", "tasks", "categories", "methods", "query",
                                                "reuse", "history", "depth", "longbench",
                                                "prompt", "cost" };

static void csv_cell(const Printer *p, const bool *want, int task, Key k) {
    const Results *d = p->d;
    const TaskRows *t = &d->task[task];
    Key base = base_key(d, k), single = { k.arm, SINGLE };
    Key golden = golden_key(d, k), unaware = unaware_key(d, k);
    Pick pick = ALL_ROWS;
    if (want[T_TASKS] || want[T_TURNS]) csv_task(p, "task", task, k, base, pick);
    for (pick.turn = 1; want[T_TURNS] && pick.turn <= t->turns; pick.turn++)
        csv_task(p, "turn", task, k, base, pick);
    pick = ALL_ROWS;
    for (pick.part = 0; want[T_TASKS] && t->n_parts > 1 && pick.part < t->n_parts; pick.part++)
        csv_task(p, "part", task, k, base, pick);
    pick = ALL_ROWS;
    for (int i = 0; want[T_TASKS] && t->similarity && i < THRESHOLDS; i++) {
        pick.threshold = i / 10.0;
        csv_task(p, "threshold", task, k, base, pick);
    }
    pick = ALL_ROWS;
    for (pick.lang = 0; want[T_TASKS] && pick.lang < d->n_langs; pick.lang++)
        csv_task(p, "language", task, k, base, pick);
    pick = ALL_ROWS;
    for (pick.bin = 0; want[T_DEPTH] && pick.bin < BINS; pick.bin++)
        csv_task(p, "depth", task, k, base, pick);
    pick = ALL_ROWS;
    if (want[T_REUSE] && k.mode != SINGLE && has(d, task, single))
        csv_task(p, "reuse", task, k, single, pick);
    static const char *const kept[] = { "answer_left_out", "answer_kept", "answers" };
    for (pick.kept = 0; want[T_PROMPT] && pick.kept <= ANSWER_SHARE; pick.kept++)
        csv_task(p, kept[pick.kept], task, k, NOBODY, pick);
    pick = ALL_ROWS;
    if (want[T_QUERY] && has(d, task, unaware)) csv_task(p, "query", task, k, unaware, pick);
    bool both = has(d, task, golden);
    for (pick.turn = 1; want[T_HISTORY] && both && pick.turn <= t->turns; pick.turn++)
        csv_task(p, "history", task, k, golden, pick);
}

static void csv_print(const Printer *p, const bool *want) {
    const Results *d = p->d;
    csv_head(p->out);
    for (int m = 0; m < MODES; m++) {
        Tasks l = tasks_seen(d, m);
        for (int a = 0; a < d->n_arms; a++) {
            Key k = { a, m };
            for (int i = 0; i < l.n; i++)
                if (has(d, l.task[i], k)) csv_cell(p, want, l.task[i], k);
            for (int c = 0; want[T_CATEGORIES] && c < CATEGORIES; c++) {
                CsvLine line = { "category", category_names[c], NULL, NULL, NULL, ALL_ROWS };
                Tasks in = tasks_in(d, l, c);
                csv_put(p, k, line, mean_over(d, in, k, base_key(d, k), ALL_ROWS), NULL);
                free(in.task);
            }
            if (want[T_CATEGORIES] || want[T_METHODS]) {
                CsvLine line = { "average", NULL, NULL, NULL, NULL, ALL_ROWS };
                Cost cost = cost_of(d, l, k);
                csv_put(p, k, line, average(d, l, k, base_key(d, k), ALL_ROWS), &cost);
            }
        }
        free(l.task);
    }
}

// ---------------------------------------------------------------------------
// Cases: turns where an arm differs from full, prediction beside gold

typedef struct { const Rec *arm, *full; } Case;

// the greatest differences first, then the order of the rows
static int case_order(const void *x, const void *y) {
    const Case *a = (const Case *)x, *b = (const Case *)y;
    double da = fabs(a->arm->score - a->full->score), db = fabs(b->arm->score - b->full->score);
    if (da != db) return da > db ? -1 : 1;
    return rec_order(a->arm, b->arm);
}

static json_t *reread(const Results *d, const Rec *r) {
    char *line = NULL;
    size_t cap = 0;
    json_t *row = NULL;
    FILE *f = fopen(d->source[r->source].path, "rb");
    if (f && !fseeko(f, (off_t)r->at, SEEK_SET)) {
        ssize_t n = getline(&line, &cap, f);
        if (n > 0) row = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, NULL);
    }
    if (f) fclose(f);
    free(line);
    return row;
}

static void case_text(FILE *out, const char *label, const json_t *row, const char *key, bool tail) {
    const json_t *v = json_object_get(row, key);
    if (!json_is_string(v)) return;
    char *s = shown(json_string_value(v), json_string_length(v), 160, tail);
    fprintf(out, "    %-11s %s\n", label, s);
    free(s);
}

static void case_print(Printer *p, const Case *c) {
    const Results *d = p->d;
    json_t *row = reread(d, c->arm), *full = reread(d, c->full);
    char label[128];
    const char *name = d->task[c->arm->task].name;
    char *task = shown(name, strlen(name), 60, false);
    arm_label(d, c->arm->arm, label, sizeof label);
    fprintf(p->out, "%s, %s, %s, session %lld, turn %d: %.1f, full %.1f\n", label, task,
            mode_names[c->arm->mode], json_integer_value(json_object_get(row, "session")),
            c->arm->turn, 100 * c->arm->score, 100 * c->full->score);
    case_text(p->out, "question", row, "question", true);
    case_text(p->out, "gold", row, "gold", false);
    case_text(p->out, "prediction", row, "prediction", false);
    case_text(p->out, "full", full, "prediction", false);
    free(task);
    json_decref(row);
    json_decref(full);
}

// the row of full for the same turn
static const Rec *full_row(const Results *d, const Rec *r) {
    const Cell *c = cell_of(d, r->task, base_key(d, (Key){ r->arm, r->mode }));
    size_t lo = c->from, hi = c->from + c->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const Rec *at = &d->rec[mid];
        bool before = at->session == r->session ? at->turn < r->turn : at->session < r->session;
        if (before) lo = mid + 1;
        else hi = mid;
    }
    const Rec *at = &d->rec[lo];
    return lo < c->from + c->n && at->session == r->session && at->turn == r->turn ? at : NULL;
}

static void cases_print(Printer *p, int most) {
    const Results *d = p->d;
    Case *list = (Case *)xrealloc(NULL, (d->n + 1) * sizeof *list);
    char label[128];
    for (int a = 0; a < d->n_arms; a++) {
        size_t n = 0;
        if (d->arm[a].base < 0) continue;
        for (size_t i = 0; i < d->n; i++) {
            const Rec *r = &d->rec[i], *full = r->arm == a ? full_row(d, r) : NULL;
            if (full && r->score != full->score && !isnan(r->score - full->score))
                list[n++] = (Case){ r, full };
        }
        if (n) qsort(list, n, sizeof *list, case_order);
        if (p->printed++) fputc('\n', p->out);
        if (p->format == MD) fputs("```\n", p->out);
        arm_label(d, a, label, sizeof label);
        if (!n) fprintf(p->out, "%s: no turn scores otherwise than with full\n", label);
        for (size_t i = 0; i < n && i < (size_t)most; i++) case_print(p, &list[i]);
        if (p->format == MD) fputs("```\n", p->out);
    }
    free(list);
}

// ---------------------------------------------------------------------------
// Warnings, and the report as a whole

// a method that drops rows and beats the dense run by more than chance: more likely a fault
static void warn_better(const Results *d, StrBuf *notes) {
    enum { MOST = 8 };
    int found = 0;
    for (int t = 0; t < d->n_tasks; t++) {
        for (int a = 0; a < d->n_arms; a++) {
            for (int m = 0; m < MODES; m++) {
                Key k = { a, m };
                double lo, hi;
                char label[128];
                if (d->arm[a].base < 0) continue;
                Pair v = pair_of(d, t, k, base_key(d, k), ALL_ROWS);
                interval(&v.diff, &lo, &hi);
                arm_label(d, a, label, sizeof label);
                if (lo > 0 && found++ < MOST)
                    str_fmt(notes, "warning: %s beats full on %s, %s, by %.1f points (95 %% "
                            "interval %.1f to %.1f): see --cases before believing it\n", label,
                            heading_of(d, t), mode_names[m], 100 * v.diff.at, 100 * lo, 100 * hi);
                pair_free(&v);
            }
        }
    }
    if (found > MOST) str_fmt(notes, "warning: and %d more such cells\n", found - MOST);
}

// corm has no budget: what keep-last scores with the rows nearest to corm's
static void note_equal_rows(const Results *d, StrBuf *notes) {
    for (int m = 0; m < MODES; m++) {
        Tasks l = tasks_seen(d, m);
        for (int a = 0; a < d->n_arms; a++) {
            Key k = { a, m }, near = NOBODY;
            if (strcmp(d->arm[a].field[F_METHOD], "corm") || !any_of(d, l, k)) continue;
            double rows = cost_of(d, l, k).rows, least = INFINITY;
            for (int i = 0; i < d->n_arms; i++) {
                Key b = { i, m };
                if (strcmp(d->arm[i].field[F_METHOD], "keep-last") || !any_of(d, l, b) ||
                    d->arm[i].base != d->arm[a].base) continue;
                double off = fabs(cost_of(d, l, b).rows - rows);
                if (off < least) near = b, least = off;
            }
            if (near.arm < 0) continue;
            Pair own = average(d, l, k, NOBODY, ALL_ROWS);
            Pair last = average(d, l, near, NOBODY, ALL_ROWS);
            str_fmt(notes, "%s: corm scores %.1f with %.1f rows, keep-last %.1f with %.1f\n",
                    mode_names[m], 100 * own.score.at, rows, 100 * last.score.at,
                    cost_of(d, l, near).rows);
            pair_free(&own);
            pair_free(&last);
        }
        free(l.task);
    }
}

// one of names, by its index; -1 with a usage error
static int choice(const char *option, const char *value, const char *const *names, int n,
                  Err *err) {
    for (int i = 0; i < n; i++)
        if (!strcmp(value, names[i])) return i;
    int near = did_you_mean(value, names, n);
    if (near >= 0)
        return FAIL_CODE(err, EXIT_USAGE, "unknown %s '%s'; did you mean %s?", option, value,
                         names[near]);
    StrBuf all = { 0 };
    for (int i = 0; i < n; i++) str_fmt(&all, "%s%s", i ? ", " : "", names[i]);
    FAIL_CODE(err, EXIT_USAGE, "unknown %s '%s'; it is one of %s", option, value, all.p);
    free(all.p);
    return -1;
}

// what a table needs and the report may lack
static const char *const table_needs[TABLES] = {
    [T_QUERY] = "no method was run both with and without the question in the first feed; run with "
                "--query-aware first and with no, and report both directories",
    [T_REUSE] = "the rows have one mode; run with --mode single,multi-turn,multi-request",
    [T_HISTORY] = "no method was run with both histories; run with --history golden and with own, "
                  "and report both directories",
    [T_DEPTH] = "no row says how deep in the context its answer stands",
    [T_PROMPT] = "no row is of a compressed context; run with --method llmlingua2",
    [T_LONGBENCH] = "no row is of a LongBench task; run with --task longbench",
};

// Tasks of a mode that count in one of LongBench's overall scores: those of a language and the
// programs, which belong to both; zh -1: all of them
static Tasks longbench_tasks(const Results *d, int mode, int zh) {
    static const char *const chinese[] = { "1-4", "2-4", "3-4", "4-4", "5-3" };
    Tasks l = tasks_seen(d, mode);
    int n = 0;
    for (int i = 0; i < l.n; i++) {
        const Column *c = d->task[l.task[i]].column;
        bool is_zh = false;
        if (!c || c->category < LB_SINGLE) continue;
        for (size_t k = 0; k < COUNTOF(chinese); k++) is_zh |= !strcmp(c->heading, chinese[k]);
        if (zh < 0 || c->category == LB_PROGRAM || is_zh == (zh == 1)) l.task[n++] = l.task[i];
    }
    l.n = n;
    return l;
}

// LongBench-E: a set's score for records below 4,000 words, below 8,000, and longer ones
static void extended_block(Printer *p, int mode) {
    static const char *const length[] = { "0-4k", "4-8k", "8k+" };
    const Results *d = p->d;
    Tasks l = tasks_seen(d, mode);
    int n = 0;
    for (int i = 0; i < l.n; i++) {
        const char *name = d->task[l.task[i]].name, *end = name + strlen(name);
        bool e = !strncmp(name, "longbench/", 10) && end - name > 12 && !strcmp(end - 2, "_e");
        if (e) l.task[n++] = l.task[i];
    }
    l.n = n;
    Grid g = grid_make(label_cols(d, -1), "LongBench-E, %s: score per set in %% by words of the "
                       "record", mode_names[mode]);
    label_head(d, &g, -1);
    for (int i = 0; i < l.n; i++)
        for (size_t k = 0; k < COUNTOF(length); k++)
            grid_col(&g, d->task[l.task[i]].name + 10, length[k]);
    for (int a = 0; a < d->n_arms && l.n; a++) {
        Key key = { a, mode };
        if (!any_of(d, l, key)) continue;
        label_put(d, &g, a, -1);
        for (int i = 0; i < l.n; i++)
            for (size_t k = 0; k < COUNTOF(length); k++) {
                const TaskRows *t = &d->task[l.task[i]];
                Pick pick = ALL_ROWS;
                for (int j = 0; j < t->n_parts; j++)
                    if (!strcmp(t->part[j], length[k])) pick.part = j;
                Pair v = pick.part < 0 ? (Pair){ { NAN, NULL, 0, 0 }, { NAN, NULL, 0, 0 } }
                                       : pair_of(d, l.task[i], key, NOBODY, pick);
                put_percent(&g, v.score.at);
                pair_free(&v);
            }
    }
    grid_end(p->out, &g, p->format, &p->printed);
    free(l.task);
}

// the layout of CORM's tables 1 and 2 (Dai et al. 2024): the sets, then the overall scores, each
// the mean of its categories' means; beside them the rows kept and the share of the tokens without
static void table_longbench(Printer *p) {
    static const char *const overall[] = { "All", "EN", "ZH" };
    const Results *d = p->d;
    for (int m = 0; m < MODES; m++) {
        Tasks l = longbench_tasks(d, m, -1);
        Grid g = grid_make(label_cols(d, -1), "LongBench, %s: score per set in %%; EN, ZH, All: "
                           "mean of the categories", mode_names[m]);
        label_head(d, &g, -1);
        for (int i = 0; i < l.n; i++)
            grid_col(&g, category_names[category_of(d, l.task[i])], heading_of(d, l.task[i]));
        for (int z = 1; z <= 3; z++) grid_col(&g, "overall", overall[z % 3]);
        grid_col(&g, "cache", "rows");
        grid_col(&g, "cache", "dropped %");
        for (int a = 0; a < d->n_arms && l.n; a++) {
            Key k = { a, m };
            if (!any_of(d, l, k)) continue;
            label_put(d, &g, a, -1);
            for (int i = 0; i < l.n; i++) {
                Pair v = pair_of(d, l.task[i], k, NOBODY, ALL_ROWS);
                put_percent(&g, v.score.at);
                pair_free(&v);
            }
            for (int z = 1; z <= 3; z++) {
                Tasks in = longbench_tasks(d, m, z == 3 ? -1 : z - 1);
                Pair v = average(d, in, k, NOBODY, ALL_ROWS);
                put_percent(&g, v.score.at);
                pair_free(&v);
                free(in.task);
            }
            Cost cost = cost_of(d, l, k);
            put_real(&g, 1, cost.rows);
            put_percent(&g, 1 - cost.rows / cost.tokens);
        }
        grid_end(p->out, &g, p->format, &p->printed);
        free(l.task);
        extended_block(p, m);
    }
}

static int tables_print(Printer *p, const bool *want, Err *err) {
    static void (*const print[TABLES])(Printer *) = {
        table_turns, table_tasks, table_categories, table_methods, table_query, table_reuse,
        table_history, table_depth, table_longbench, table_prompt, table_cost,
    };
    for (int i = 0; i < TABLES; i++) {
        int before = p->printed;
        if (want[i]) print[i](p);
        if (want[i] && p->printed == before)
            return FAIL(err, "--table %s: %s", table_name[i], table_needs[i] ? table_needs[i]
                        : "every session is unfinished or has a failed turn");
    }
    return 0;
}

int report_print(FILE *out, const char *const *dirs, int n_dirs, const ReportOpts *o, Err *err) {
    static const char *const formats[] = { "text", "csv", "md" };
    Results d;
    bool want[TABLES] = { false };
    int table = o->table ? choice("--table", o->table, table_name, TABLES, err) : TABLES;
    int format = o->format ? choice("--format", o->format, formats, 3, err) : TEXT;
    if (table < 0 || format < 0) return -1;
    if (o->cases < 0) return FAIL_CODE(err, EXIT_USAGE, "--cases wants at least 0");
    int rc = results_read(&d, dirs, n_dirs, err);
    Printer p = { &d, out, (Format)format, 0 };
    if (table < TABLES) want[table] = true;
    else if (format == CSV) memset(want, 1, sizeof want);
    else {
        want[T_METHODS] = true;
        bool lb = d.n_tasks && !strncmp(d.task[0].name, "longbench/", 10);
        want[lb ? T_LONGBENCH : d.n_tasks > 1 ? T_TASKS : T_TURNS] = true;
        for (size_t i = 0; i < d.n; i++) want[T_PROMPT] |= !isnan(d.rec[i].before);
        for (int t = 1; t < d.n_tasks; t++)
            if (category_of(&d, t) != category_of(&d, 0)) want[T_CATEGORIES] = true;
    }
    if (!rc && format == CSV) csv_print(&p, want);
    else if (!rc && d.n) rc = tables_print(&p, want, err);
    if (!rc && o->cases && format != CSV) cases_print(&p, o->cases);
    if (!rc) {
        warn_better(&d, &d.notes);
        note_equal_rows(&d, &d.notes);
        FILE *to = format == CSV ? stderr : out;        // a table of numbers stays one
        if (d.notes.n && format != CSV) fputc('\n', to);
        fputs(d.notes.p, to);
    }
    results_free(&d);
    return rc;
}
