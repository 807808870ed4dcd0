// papers.c - en_sum and mix_sum_niah: a collection of generated research papers; a turn asks for a
// one-sentence summary of one of them, in the mix every other turn for a number hidden between.
//
// Each paper has facts (method, task, mechanism, data set, scores, baseline, cost) that its text
// states in three paragraphs and that the reference states in other words. A unit is a paragraph;
// the number of papers depends on the number of turns alone: a longer collection has longer papers.
#include "grammar.h"

RULES(papers);

enum { PURPOSE_EN_SUM = 201, PURPOSE_MIX };
enum { STREAM_FACTS, STREAM_SLOTS, STREAM_NEEDLES, STREAM_TITLE, STREAM_CORE, STREAM_EXTRA,
       STREAM_QUESTION };
enum { N_CORE = 3, MIN_NEEDLES = 5 };

enum { F_METHOD, F_TASK, F_MECHANISM, F_DATA, F_METRIC, F_BASELINE, F_SCORE, F_BASE_SCORE, F_GAIN,
       F_COST, F_TASK_UP, F_MECHANISM_UP, F_NAME, F_TITLE, N_FACTS };
static const char *const fact_var[N_FACTS] = {
    "M", "T", "X", "D", "Q", "W", "U", "V", "G", "C", "T^", "X^", "name", "title" };

typedef struct {
    char *fact[N_FACTS];
    Var var[N_FACTS + 1];
    size_t begin, end;              // bytes of its text: the contribution is all over it
} Paper;

typedef struct { char *key, *number; size_t at; } Hidden;

typedef struct {
    Grammar g;
    uint64_t seed, purpose;
    int number, n_papers, n_hidden;
    Paper *paper;
    Hidden *hidden;
} Collection;

static Rng stream(const Collection *c, int id, uint64_t i) {
    return session_rng(c->seed, c->number, mix64((c->purpose << 8) + (uint64_t)id) + i);
}

static int below(Rng *r, int n) { return (int)rng_below(r, (uint64_t)n); }

static char *word(const Collection *c, const char *rule, Rng *r) {
    return grammar_word(&c->g, rule, below(r, grammar_count(&c->g, rule)));
}

// one word of each rule, `gap` between them; r3 may be NULL
static char *words(const Collection *c, const char *r1, const char *r2, const char *r3,
                   const char *gap, Rng *r) {
    char *a = word(c, r1, r), *b = word(c, r2, r), *d = r3 ? word(c, r3, r) : text_dup("");
    char *text = text_fmt("%s%s%s%s%s", a, gap, b, r3 ? gap : "", d);
    free(a);
    free(b);
    free(d);
    return text;
}

static char *capital(const char *text) {
    char *t = text_dup(text);
    if (t[0] >= 'a' && t[0] <= 'z') t[0] = (char)(t[0] - 32);
    return t;
}

// ---------------------------------------------------------------------------
// Facts

// does another paper hold this text as any fact?
static bool taken(const Collection *c, int paper, const char *text) {
    for (int p = 0; p < paper; p++)
        for (int f = 0; f < N_FACTS; f++)
            if (f != F_METRIC && f != F_GAIN && f != F_COST && !strcmp(c->paper[p].fact[f], text))
                return true;
    return false;
}

static char *fact_draw(const Collection *c, int f, Rng *r) {
    int hundredths;
    switch (f) {
    case F_METHOD: return words(c, "name1", "name2", "name3", "", r);
    case F_TASK: return words(c, "task_adj", "task_noun", NULL, " ", r);
    case F_MECHANISM: return words(c, "mech_adj", "mech_noun", NULL, " ", r);
    case F_DATA: return words(c, "data1", "data2", NULL, "", r);
    case F_METRIC: return word(c, "metric", r);
    case F_BASELINE: return words(c, "name1", "name3", NULL, "", r);
    default:
        hundredths = 3500 + below(r, 4500);
        return text_fmt("%d.%02d", hundredths / 100, hundredths % 100);
    }
}

static void paper_facts(Collection *c, int p) {
    Paper *a = &c->paper[p];
    Rng r = stream(c, STREAM_FACTS, (uint64_t)p), title = stream(c, STREAM_TITLE, (uint64_t)p);
    for (int f = F_METHOD; f <= F_SCORE; f++) {
        if (f == F_SCORE) f = F_BASE_SCORE;
        for (;;) {
            a->fact[f] = fact_draw(c, f, &r);
            if (f == F_METRIC || !taken(c, p, a->fact[f])) break;
            free(a->fact[f]);
        }
    }
    int base = (int)(atof(a->fact[F_BASE_SCORE]) * 100 + 0.5), gain;
    do {
        gain = 103 + below(&r, 1500);
        free(a->fact[F_SCORE]);
        a->fact[F_SCORE] = text_fmt("%d.%02d", (base + gain) / 100, (base + gain) % 100);
    } while (taken(c, p, a->fact[F_SCORE]));
    a->fact[F_GAIN] = text_fmt("%d.%02d", gain / 100, gain % 100);
    a->fact[F_COST] = text_fmt("%d.%d", 1 + below(&r, 6), 1 + below(&r, 9));
    a->fact[F_TASK_UP] = capital(a->fact[F_TASK]);
    a->fact[F_MECHANISM_UP] = capital(a->fact[F_MECHANISM]);
    a->fact[F_NAME] = text_dup(a->fact[F_METHOD]);
    StrBuf t = { NULL, 0, 0 };
    for (int f = 0; f < F_TITLE; f++) a->var[f] = (Var){ fact_var[f], a->fact[f] };
    grammar_expand(&c->g, "title", a->var, &title, &t);
    a->fact[F_TITLE] = t.p;
    a->var[F_TITLE] = (Var){ fact_var[F_TITLE], t.p };
}

// ---------------------------------------------------------------------------
// Text. A paper of n paragraphs has its three core paragraphs and n - 3 others, dealt to its
// sections in a fixed rotation, so that a longer paper holds every paragraph of a shorter one.

static const struct { const char *title, *core, *extra; } section[] = {
    { "Introduction", "intro_core", "intro_extra" },
    { "Related work", NULL, "related_extra" },
    { "Method", "method_core", "method_extra" },
    { "Experiments", "result_core", "exp_extra" },
    { "Analysis", NULL, "analysis_extra" },
    { "Limitations and outlook", NULL, "outlook_extra" },
};
enum { N_SECTIONS = 6, SENTENCES = 3 };
static const int rotation[] = { 1, 4, 2, 3, 5, 3, 4, 2, 0, 1 };

static void tell_title(const Collection *c, int p, StrBuf *out) {
    Rng r = stream(c, STREAM_TITLE, ((uint64_t)p << 20) + 1);
    char *a = word(c, "author", &r), *b = word(c, "author", &r);
    str_fmt(out, "%s\n%c. %s and %c. %s\n\n", c->paper[p].fact[F_TITLE], 'A' + below(&r, 26), a,
            'A' + below(&r, 26), b);
    free(a);
    free(b);
}

static void tell_core(const Collection *c, int p, int s, StrBuf *out) {
    Rng r = stream(c, STREAM_CORE, (uint64_t)p * N_SECTIONS + (uint64_t)s);
    size_t from = out->n;
    grammar_expand(&c->g, section[s].core, c->paper[p].var, &r, out);
    prose_polish(out, from);
}

static void tell_extra(const Collection *c, int p, int s, int k, StrBuf *out) {
    Rng r = stream(c, STREAM_EXTRA, ((uint64_t)p << 32) + (uint64_t)k);
    size_t from = out->n;
    for (int i = 0; i < SENTENCES; i++) {
        if (i) str_puts(out, " ");
        grammar_expand(&c->g, section[s].extra, c->paper[p].var, &r, out);
    }
    prose_polish(out, from);
}

// the hidden sentences that stand before paragraph `at` of the collection
static void tell_hidden(Collection *c, int at, int units, StrBuf *out) {
    for (int k = 0; k < c->n_hidden; k++) {
        if (even_slot(k, c->n_hidden, units) != at) continue;
        Hidden *h = &c->hidden[k];
        Var var[] = { { "key", h->key }, { "number", h->number }, { NULL, NULL } };
        Rng r = stream(c, STREAM_NEEDLES, (uint64_t)k + 1);
        h->at = out->n;
        grammar_expand(&c->g, "needle", var, &r, out);
        prose_polish(out, h->at);
        str_puts(out, "\n\n");
    }
}

// n paragraphs of paper p; `at` counts those of the whole collection
static void tell_paper(Collection *c, int p, int n, int *at, int units, StrBuf *out) {
    if (p) str_puts(out, "\n\n");
    c->paper[p].begin = out->n;
    tell_title(c, p, out);
    for (int s = 0, heading = 0, shown = 0; s < N_SECTIONS; s++) {
        bool headed = false;
        for (int k = -1; k < n - N_CORE; k++) {
            if (k < 0 ? !section[s].core : rotation[k % (int)COUNTOF(rotation)] != s) continue;
            if (shown++) str_puts(out, "\n\n");
            tell_hidden(c, (*at)++, units, out);
            if (!headed) str_fmt(out, "%d %s\n", ++heading, section[s].title);
            headed = true;
            if (k < 0) tell_core(c, p, s, out);
            else tell_extra(c, p, s, k, out);
        }
    }
    c->paper[p].end = out->n;
}

// ---------------------------------------------------------------------------

static void hidden_make(Collection *c) {
    Rng r = stream(c, STREAM_NEEDLES, 0);
    for (int k = 0; k < c->n_hidden; k++) {
        Hidden *h = &c->hidden[k];
        h->key = words(c, "colour", "keeper", NULL, " ", &r);
        h->number = text_fmt("%d", 10000 + below(&r, 90000));
        for (int j = 0; j < k; j++) {
            const Hidden *other = &c->hidden[j];
            if (strcmp(other->key, h->key) && strcmp(other->number, h->number)) continue;
            free(h->key);
            free(h->number);
            k--;
            break;
        }
    }
}

static void ask_summary(const Collection *c, int p, int t, TaskSession *s) {
    TaskTurn *turn = &s->turns[t];
    const Paper *a = &c->paper[p];
    Rng r = stream(c, STREAM_QUESTION, (uint64_t)t);
    StrBuf q = { NULL, 0, 0 }, ref = { NULL, 0, 0 };
    grammar_expand(&c->g, "ask_summary", a->var, &r, &q);
    grammar_expand(&c->g, "summary", a->var, &r, &ref);
    turn->input = q.p;
    turn->question = text_dup(q.p);
    turn->answer = ref.p;
    turn_label(turn, ref.p);
    turn->depth = 0.5 * (double)(a->begin + a->end) / (double)s->context.n;
}

static void ask_hidden(const Collection *c, int k, int t, TaskSession *s) {
    TaskTurn *turn = &s->turns[t];
    const Hidden *h = &c->hidden[k];
    Var var[] = { { "key", h->key }, { "number", h->number }, { NULL, NULL } };
    Rng r = stream(c, STREAM_QUESTION, (uint64_t)t);
    StrBuf q = { NULL, 0, 0 };
    grammar_expand(&c->g, "ask_needle", var, &r, &q);
    turn->input = q.p;
    turn->question = text_dup(q.p);
    turn->answer = text_dup(h->number);
    turn_label(turn, h->number);
    turn->part = 1;
    turn->depth = (double)h->at / (double)s->context.n;
}

static void shuffle(Rng *r, int *x, int n) {
    for (int i = 0; i < n; i++) {
        int j = below(r, i + 1);
        x[i] = x[j];
        x[j] = i;
    }
}

static void collection_free(Collection *c) {
    for (int p = 0; p < c->n_papers; p++)
        for (int f = 0; f < N_FACTS; f++) free(c->paper[p].fact[f]);
    for (int k = 0; k < c->n_hidden; k++) {
        free(c->hidden[k].key);
        free(c->hidden[k].number);
    }
    free(c->paper);
    free(c->hidden);
    grammar_free(&c->g);
}

// n_sums turns of n_turns ask for a summary: all, or those of even number
static void papers_make(TaskSession *s, uint64_t seed, int n_turns, int n_units, bool mix) {
    int n_sums = mix ? (n_turns + 1) / 2 : n_turns, n_numbers = n_turns - n_sums, at = 0;
    Collection c = { .seed = seed, .purpose = mix ? PURPOSE_MIX : PURPOSE_EN_SUM,
                     .number = s->number, .n_papers = mix ? n_turns : (8 * n_turns + 4) / 5 };
    if (mix) c.n_hidden = n_numbers > MIN_NEEDLES ? n_numbers : MIN_NEEDLES;
    CHECK(n_units >= N_CORE * c.n_papers, "%d paragraphs for %d papers", n_units, c.n_papers);
    c.g = grammar_read(papers_rules, (size_t)(papers_rules_end - papers_rules));
    c.paper = (Paper *)calloc((size_t)c.n_papers, sizeof *c.paper);
    c.hidden = (Hidden *)calloc((size_t)c.n_hidden + 1, sizeof *c.hidden);
    int *sum_slot = (int *)calloc((size_t)n_turns, sizeof *sum_slot);
    int *number_slot = (int *)calloc((size_t)n_turns, sizeof *number_slot);
    if (!c.paper || !c.hidden || !sum_slot || !number_slot)
        die_code(EXIT_MEMORY, "not enough memory for %d papers", c.n_papers);
    for (int p = 0; p < c.n_papers; p++) paper_facts(&c, p);
    hidden_make(&c);
    s->units = n_units;
    session_turns(s, n_turns);
    for (int p = 0; p < c.n_papers; p++) {
        int n = n_units / c.n_papers + (p < n_units % c.n_papers);
        tell_paper(&c, p, n, &at, n_units, &s->context);
    }
    Rng r = stream(&c, STREAM_SLOTS, 0);
    shuffle(&r, sum_slot, n_sums);
    shuffle(&r, number_slot, n_numbers);
    for (int t = 0; t < n_turns; t++) {
        int i = mix ? t / 2 : t;
        if (mix && t % 2) ask_hidden(&c, even_slot(number_slot[i], n_numbers, c.n_hidden), t, s);
        else ask_summary(&c, even_slot(sum_slot[i], n_sums, c.n_papers), t, s);
        s->turns[t].forced = !mix && t > 0;
    }
    free(sum_slot);
    free(number_slot);
    collection_free(&c);
}

static void en_sum_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    papers_make(s, seed, n_turns, n_units, false);
}
static void mix_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    papers_make(s, seed, n_turns, n_units, true);
}

const Task task_en_sum = {
    .name = "en_sum", .official = "scbench_summary", .category = "global",
    .help = "one-sentence summaries of generated research papers", .turns = 5, .paper_units = 1500,
    .unit = "paragraphs", .parts = { { "scbench_summary", 800, SCORE_ROUGE_LSUM } }, .n_parts = 1,
    .instruction = "", .separator = "\n\n", .min_units = 6, .make = en_sum_make,
};

const Task task_mix_sum_niah = {
    .name = "mix_sum_niah", .official = "scbench_summary_with_needles", .category = "multi",
    .help = "summaries of generated papers in turn with numbers hidden between their paragraphs",
    .turns = 8, .paper_units = 1500, .unit = "paragraphs",
    .parts = { { "scbench_summary", 800, SCORE_ROUGE_LSUM },
               { "scbench_passkey", 15, SCORE_PASSKEY } },
    .n_parts = 2,
    .instruction = "Several research papers follow one after the other. Some paragraphs between "
                   "them give the number of an animal. Both are asked about afterwards.\n\n",
    .separator = "\n\n", .min_units = N_CORE, .make = mix_make,
};
