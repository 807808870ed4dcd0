// lingua_words.c - what LLMLingua-2 keeps of a prompt (Pan et al., arXiv 2403.12968), as the
// package llmlingua 0.2.2 does it.
//
//   prompt -> forced texts become placeholders -> tokens -> sequences that end at a sentence
//   sequence -> tokens again -> p(keep) of each -> words with one p -> those above a percentile
//
// The percentile is taken per sequence, every word counting as often as it has tokens in a second
// tokenizer, at q = int(100 (1 - rate) + 1). Texts between sequences are joined without a space.
#include "lingua.h"
#include <utf8proc.h>

static const char marker[] = "\xe2\x96\x81";            // U+2581: a word begins
enum { MARKER = 3 };

typedef struct {
    char *text;                 // the piece, placeholders put back
    double p, p_plain;          // forced words 1; p_plain without force
    double sum, sum_plain, first;
    int n, weight;
    bool forced, kept;          // forced: its text is one of the forced texts
} Word;

typedef struct { Word *p; int n; } Words;
typedef struct { char *text; Words words; int context; } Sequence;

typedef struct {
    const LinguaSource *src;
    const LinguaOpts *o;
    bool mapped[LINGUA_FORCED]; // forced text i is no single token: it stands as [NEWi]
    Sequence *seq;
    int n_seq;
    double network_s;
} Job;

// ---------------------------------------------------------------------------
// Pieces

static const char *placeholder_name(int i, char out[24]) {
    snprintf(out, 24, "[NEW%d]", i);
    return out;
}

// number of the placeholder that begins at s, and its length; -1: none
static int placeholder_at(const char *s, size_t n, size_t *len) {
    size_t i = 4;
    int v = 0;
    if (n < 6 || memcmp(s, "[NEW", 4)) return -1;
    while (i < n && s[i] >= '0' && s[i] <= '9' && i < 6) v = v * 10 + (s[i++] - '0');
    if (i == 4 || i >= n || s[i] != ']' || (s[4] == '0' && i > 5)) return -1;
    *len = i + 1;
    return v;
}

static void encode(const Job *j, const char *s, size_t n, IntVec *ids) {
    size_t from = 0, len;
    for (size_t i = 0; i < n; i++) {
        int k = placeholder_at(s + i, n - i, &len);
        if (k < 0) continue;
        if (i > from) j->src->encode(j->src->user, s + from, i - from, ids);
        ints_push(ids, j->src->placeholder + k);
        from = i + len;
        i = from - 1;
    }
    if (n > from) j->src->encode(j->src->user, s + from, n - from, ids);
}

static char *piece_of(const Job *j, int32_t id) {
    StrBuf s = { 0 };
    int k = id - j->src->placeholder;
    char name[24];
    str_add(&s, "", 0);
    if (k >= 0 && k < LINGUA_FORCED) str_puts(&s, placeholder_name(k, name));
    else j->src->piece(j->src->user, id, &s);
    return s.p;
}

static bool is_special(const LinguaSource *src, const char *t) {
    static const char *const sentence[] = { "<s>", "</s>", "<unk>", "<pad>", "<mask>" };
    static const char *const word[] = { "[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]" };
    for (int i = 0; i < 5; i++)
        if (!strcmp(t, src->wordpiece ? word[i] : sentence[i])) return true;
    return false;
}

// the piece without what marks beginnings or continuations
static const char *pure(const LinguaSource *src, const char *t) {
    if (src->wordpiece) while (*t == '#') t++;
    else while (!strncmp(t, marker, MARKER)) t += MARKER;
    return t;
}

static bool is_forced(const LinguaOpts *o, const char *t) {
    for (int i = 0; i < o->n_force; i++) if (!strcmp(o->force[i], t)) return true;
    return false;
}

// number of the placeholder in use that t is, -1: none
static int used_placeholder(const Job *j, const char *t) {
    size_t len = strlen(t), used;
    int k = placeholder_at(t, len, &used);
    return k >= 0 && used == len && k < j->o->n_force && j->mapped[k] ? k : -1;
}

static bool begins_word(const Job *j, const char *t) {
    static const char punctuation[] = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
    const char *p = pure(j->src, t);
    if (j->src->wordpiece)
        return is_forced(j->o, p) || used_placeholder(j, p) >= 0 || strncmp(t, "##", 2);
    return strstr(punctuation, t) || is_forced(j->o, t) || used_placeholder(j, t) >= 0 ||
           !strncmp(t, marker, MARKER);
}

static bool has_digit(const char *t) {
    utf8proc_int32_t c;
    for (utf8proc_ssize_t n; *t; t += n > 0 ? n : 1) {
        n = utf8proc_iterate((const utf8proc_uint8_t *)t, -1, &c);
        if (n > 0 && utf8proc_category(c) == UTF8PROC_CATEGORY_ND) return true;
    }
    return false;
}

// text with every placeholder in use turned back
static char *restored(const Job *j, const char *s) {
    StrBuf out = { 0 };
    size_t n = strlen(s), len;
    str_add(&out, "", 0);
    for (size_t i = 0; i < n;) {
        int k = placeholder_at(s + i, n - i, &len);
        if (k >= 0 && k < j->o->n_force && j->mapped[k]) {
            str_puts(&out, j->o->force[k]);
            i += len;
        } else str_add(&out, s + i++, 1);
    }
    return out.p;
}

// ---------------------------------------------------------------------------
// Decoding

static void replace_all(StrBuf *s, const char *from, const char *to) {
    StrBuf out = { 0 };
    size_t m = strlen(from);
    str_add(&out, "", 0);
    for (size_t i = 0; i < s->n;) {
        bool hit = s->n - i >= m && !memcmp(s->p + i, from, m);
        str_add(&out, hit ? to : s->p + i, hit ? strlen(to) : 1);
        i += hit ? m : 1;
    }
    free(s->p);
    *s = out;
}

// one token of a WordPiece decoder, tidied by itself
static void decode_wordpiece(const char *t, bool first, StrBuf *out) {
    static const char *const tidy[][2] = {
        { " .", "." }, { " ?", "?" }, { " !", "!" }, { " ,", "," }, { " ' ", "'" },
        { " n't", "n't" },
        { " 'm", "'m" }, { " do not", " don't" }, { " 's", "'s" }, { " 've", "'ve" },
        { " 're", "'re" },
    };
    StrBuf s = { 0 };
    if (first) str_puts(&s, t);
    else if (!strncmp(t, "##", 2)) str_puts(&s, t + 2);
    else str_fmt(&s, " %s", t);
    str_add(&s, "", 0);
    for (size_t i = 0; i < COUNTOF(tidy); i++) replace_all(&s, tidy[i][0], tidy[i][1]);
    str_add(out, s.p, s.n);
    free(s.p);
}

void lingua_decode(bool wordpiece, const char *const *token, int n, StrBuf *out) {
    str_add(out, "", 0);
    for (int i = 0; i < n; i++) {
        if (wordpiece) { decode_wordpiece(token[i], i == 0, out); continue; }
        for (const char *t = token[i]; *t;) {
            bool mark = !strncmp(t, marker, MARKER);
            if (!mark) str_add(out, t, 1);
            else if (i) str_add(out, " ", 1);
            t += mark ? MARKER : 1;
        }
    }
}

// ---------------------------------------------------------------------------
// Numbers

typedef struct { double value; int weight; } Weighed;
static int by_value(const void *x, const void *y) {
    double a = ((const Weighed *)x)->value, b = ((const Weighed *)y)->value;
    return (a > b) - (a < b);
}

static double value_at(const Weighed *w, int n, int64_t at) {
    int i = 0;
    while (i < n - 1 && at >= w[i].weight) at -= w[i++].weight;
    return w[i].value;
}

// v = q / 100 (n - 1), between entries floor(v) and the next by v's fraction, from the nearer end
double lingua_percentile(double *value, int *weight, int n, int q) {
    Weighed *w = (Weighed *)xrealloc(NULL, (size_t)n * sizeof *w);
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        w[i] = (Weighed){ value[i], weight[i] };
        total += weight[i];
    }
    qsort(w, (size_t)n, sizeof *w, by_value);
    double v = (double)(total - 1) * ((double)q / 100), t = v - floor(v);
    int64_t at = (int64_t)floor(v);
    double a = value_at(w, n, at), b = value_at(w, n, at + 1 < total ? at + 1 : at);
    free(w);
    return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
}

int lingua_quantile(double rate) {
    double reduce = 1 - rate > 0 ? 1 - rate : 0;
    return (int)(100 * reduce + 1);
}

// ---------------------------------------------------------------------------
// Sequences

// A sequence ends behind the last token of its room that may end one; the first one of the room
// is not looked at, and where none may, the room is one token longer than the encoder takes.
void lingua_chunks(const bool *end, int n, int sequence, IntVec *out) {
    int room = sequence - 2;
    for (int from = 0; from < n;) {
        int to = n - 1;
        if (from + room <= n - 1) {
            to = from + room;
            for (int j = 0; j < room; j++)
                if (end[to - j]) { to -= j; break; }
        }
        ints_push(out, from);
        ints_push(out, to + 1);
        from = to + 1;
    }
}

static bool ends_sequence(const Job *j, const char *t) {
    static const char *const usual[] = { ".", "\n" };
    const char *const *list = j->o->n_chunk_end ? j->o->chunk_end : usual;
    int n = j->o->n_chunk_end ? j->o->n_chunk_end : (int)COUNTOF(usual), k = used_placeholder(j, t);
    for (int i = 0; i < n; i++)
        if (!strcmp(list[i], t) || (k >= 0 && !strcmp(list[i], j->o->force[k]))) return true;
    return false;
}

// forced texts that are not one token become placeholders, earlier ones first
static void map_forced(Job *j) {
    for (int i = 0; i < j->o->n_force; i++) {
        IntVec ids = { 0 };
        encode(j, j->o->force[i], strlen(j->o->force[i]), &ids);
        j->mapped[i] = ids.n != 1;
        free(ids.p);
    }
}

static void add_context(Job *j, int number, const char *s, size_t n) {
    int size = j->o->sequence ? j->o->sequence : LINGUA_SEQUENCE;
    StrBuf text = { 0 };
    IntVec ids = { 0 }, cut = { 0 };
    char name[24];
    str_add(&text, s, n);
    for (int i = 0; i < j->o->n_force; i++)
        if (j->mapped[i]) replace_all(&text, j->o->force[i], placeholder_name(i, name));
    encode(j, text.p, text.n, &ids);
    char **piece = (char **)xrealloc(NULL, (ids.n + 1) * sizeof *piece);
    bool *end = (bool *)xrealloc(NULL, (ids.n + 1) * sizeof *end);
    for (size_t i = 0; i < ids.n; i++) {
        piece[i] = piece_of(j, ids.p[i]);
        end[i] = ends_sequence(j, piece[i]);
    }
    lingua_chunks(end, (int)ids.n, size, &cut);
    for (size_t k = 0; k < cut.n; k += 2) {
        StrBuf out = { 0 };
        lingua_decode(j->src->wordpiece, (const char *const *)piece + cut.p[k],
                      cut.p[k + 1] - cut.p[k], &out);
        j->seq = (Sequence *)xrealloc(j->seq, ((size_t)j->n_seq + 1) * sizeof *j->seq);
        j->seq[j->n_seq++] = (Sequence){ out.p, { NULL, 0 }, number };
    }
    for (size_t i = 0; i < ids.n; i++) free(piece[i]);
    free((void *)piece);
    free(end);
    free(ids.p);
    free(cut.p);
    free(text.p);
}

// ---------------------------------------------------------------------------
// Words

static void word_begin(const Job *j, Words *w, const char *t, double p) {
    const char *plain = pure(j->src, t);
    int k = used_placeholder(j, plain);
    bool forced = is_forced(j->o, plain) || k >= 0;
    double q = j->o->reserve_digits && has_digit(t) ? 1.0 : forced ? 1.0 : p;
    w->p = (Word *)xrealloc(w->p, ((size_t)w->n + 1) * sizeof *w->p);
    Word *x = &w->p[w->n++];
    memset(x, 0, sizeof *x);
    x->text = k >= 0 ? restored(j, t) : (char *)memcpy(xrealloc(NULL, strlen(t) + 1), t,
                                                       strlen(t) + 1);
    x->sum = x->first = q;
    x->sum_plain = x->p_plain = p;
    x->n = 1;
}

static void word_go_on(const Job *j, Word *x, const char *t, double p) {
    const char *plain = pure(j->src, t);
    size_t a = strlen(x->text), b = strlen(plain) + 1;
    x->text = (char *)xrealloc(x->text, a + b);
    memcpy(x->text + a, plain, b);
    x->sum += j->o->reserve_digits && has_digit(t) ? 1.0 : p;
    x->sum_plain += x->p_plain;         // the package adds the first token's again
    x->n++;
}

static void words_of(const Job *j, const IntVec *ids, const float *p, Words *w) {
    for (size_t i = 0; i < ids->n; i++) {
        char *t = piece_of(j, ids->p[i]);
        if (!is_special(j->src, t)) {
            if (!w->n || begins_word(j, t)) word_begin(j, w, t, (double)p[i]);
            else word_go_on(j, &w->p[w->n - 1], t, (double)p[i]);
        }
        free(t);
    }
    for (int i = 0; i < w->n; i++) {
        Word *x = &w->p[i];
        x->p = j->o->first_token ? x->first : x->sum / x->n;
        x->p_plain = x->sum_plain / x->n;
        x->forced = is_forced(j->o, x->text);
        x->weight = j->src->weight(j->src->user, x->text, strlen(x->text));
    }
}

static int probabilities(Job *j, Err *err) {
    size_t room = (size_t)(j->o->sequence ? j->o->sequence : LINGUA_SEQUENCE);
    IntVec *ids = (IntVec *)calloc((size_t)j->n_seq + 1, sizeof *ids);
    float **p = (float **)calloc((size_t)j->n_seq + 1, sizeof *p);
    CHECK(ids && p, "no memory for %d sequences", j->n_seq);
    for (int i = 0; i < j->n_seq; i++) {
        ints_push(&ids[i], j->src->open);
        encode(j, j->seq[i].text, strlen(j->seq[i].text), &ids[i]);
        ints_push(&ids[i], j->src->close);
        if (ids[i].n > room) ids[i].n = room;
        p[i] = (float *)xrealloc(NULL, ids[i].n * sizeof **p);
    }
    double t = now_s();
    int rc = j->src->keep(j->src->user, ids, j->n_seq, p, err);
    j->network_s += now_s() - t;
    for (int i = 0; i < j->n_seq; i++) {
        if (!rc) words_of(j, &ids[i], p[i], &j->seq[i].words);
        free(ids[i].p);
        free(p[i]);
    }
    free(ids);
    free((void *)p);
    return rc;
}

// ---------------------------------------------------------------------------
// Thresholds

static double threshold(const Words *w, int q, bool weighed) {
    double *value = (double *)xrealloc(NULL, (size_t)w->n * sizeof *value);
    int *weight = (int *)xrealloc(NULL, (size_t)w->n * sizeof *weight);
    for (int i = 0; i < w->n; i++) {
        value[i] = w->p[i].p;
        weight[i] = weighed ? w->p[i].weight : 1;
    }
    double t = lingua_percentile(value, weight, w->n, q);
    free(value);
    free(weight);
    return t;
}

// forced words that follow each other with nothing kept between them lose their force
static void drop_repeats(Words *w, double rate) {
    double bound = threshold(w, (int)(100 * (1 - rate > 0 ? 1 - rate : 0)), false);
    const char *last = NULL;
    bool between = false;
    for (int i = 0; i < w->n; i++) {
        Word *x = &w->p[i];
        if (!x->forced) { between = between || x->p > bound; continue; }
        if (between) between = false;
        else if (last && !strcmp(last, x->text)) x->p = 0;
        last = x->text;
    }
}

static void select_words(const Job *j, Sequence *s, double rate, StrBuf *out) {
    Words *w = &s->words;
    if (!w->n) return;
    if (j->o->drop_consecutive) drop_repeats(w, rate);
    double t = threshold(w, lingua_quantile(rate), true);
    const char **kept = (const char **)xrealloc(NULL, (size_t)w->n * sizeof *kept);
    int n = 0;
    for (int i = 0; i < w->n; i++) {
        Word *x = &w->p[i];
        bool again = j->o->drop_consecutive && x->forced && n && !strcmp(kept[n - 1], x->text);
        x->kept = (x->p > t || (t == 1.0 && x->p == t)) && !again;
        if (x->kept) kept[n++] = x->text;
    }
    lingua_decode(j->src->wordpiece, kept, n, out);
    free((void *)kept);
}

// ---------------------------------------------------------------------------
// Contexts: whole ones go first, by the mean of their words without force

static void context_filter(Job *j, int n, int tokens, double *rate, bool *stays) {
    const LinguaOpts *o = j->o;
    double share = o->context_rate;
    int target = o->context_target_tokens;
    double *score = (double *)xrealloc(NULL, (size_t)n * sizeof *score);
    int *one = (int *)xrealloc(NULL, (size_t)n * sizeof *one);
    if (o->target_contexts <= 0 && !(share > 0 && share < 1) && target <= 0) {
        if (o->target_tokens > 0) target = 2 * o->target_tokens;
        else share = (*rate + 1) / 2;
    }
    if (o->target_contexts > 0) share = fmin((double)o->target_contexts / n, 1);
    if (target > 0) share = fmin((double)target / tokens, 1);
    for (int c = 0; c < n; c++) {
        double sum = 0;
        int count = 0;
        for (int i = 0; i < j->n_seq; i++)
            for (int k = 0; j->seq[i].context == c && k < j->seq[i].words.n; k++, count++)
                sum += j->seq[i].words.p[k].p_plain;
        score[c] = count ? sum / count : 0;
        one[c] = 1;
    }
    double t = lingua_percentile(score, one, n, (int)(100 * (1 - share)));
    int left = 0;
    for (int c = 0; c < n; c++) {
        stays[c] = score[c] >= t;
        for (int i = 0; i < o->n_force_context; i++) stays[c] |= o->force_context[i] == c;
        for (int i = 0; i < j->n_seq; i++)
            if (stays[c] && j->seq[i].context == c)
                left += j->src->weight(j->src->user, j->seq[i].text, strlen(j->seq[i].text));
    }
    if (o->target_tokens > 0) *rate = fmin((double)o->target_tokens / left, 1);
    free(score);
    free(one);
}

static int check_options(const LinguaOpts *o, Err *err) {
    if (o->n_force > LINGUA_FORCED)
        return FAIL(err, "at most %d forced texts, not %d", LINGUA_FORCED, o->n_force);
    if (o->target_tokens <= 0 && !(o->rate > 0 && o->rate <= 1))
        return FAIL_CODE(err, EXIT_USAGE, "a compression rate is above 0 and at most 1, not %g",
                         o->rate);
    if (o->sequence && o->sequence < 4)
        return FAIL(err, "a sequence of %d tokens is too short", o->sequence);
    for (int i = 0; i < o->n_force; i++)
        if (!*o->force[i]) return FAIL_CODE(err, EXIT_USAGE, "a forced text is empty");
    return 0;
}

// the words of a context, kept or not, into the list; they change owner
static void list_words(Job *j, int c, LinguaResult *out) {
    for (int i = 0; i < j->n_seq; i++) {
        Words *w = &j->seq[i].words;
        if (j->seq[i].context != c) continue;
        out->word = (LinguaWord *)xrealloc(out->word, (size_t)(out->n_words + w->n + 1) *
                                           sizeof *out->word);
        for (int k = 0; k < w->n; k++) {
            out->word[out->n_words++] = (LinguaWord){ w->p[k].text, w->p[k].kept };
            w->p[k].text = NULL;
        }
    }
}

// what is left of one context
static void put_context(Job *j, int c, double rate, LinguaResult *out) {
    StrBuf text = { 0 };
    str_add(&text, "", 0);
    for (int i = 0; i < j->n_seq; i++) {
        Sequence *s = &j->seq[i];
        if (s->context != c) continue;
        if (rate >= 1) {
            char *whole = restored(j, s->text);
            str_puts(&text, whole);
            free(whole);
            for (int k = 0; k < s->words.n; k++) s->words.p[k].kept = true;
            continue;
        }
        select_words(j, s, rate, &text);
    }
    out->tokens_after += j->src->weight(j->src->user, text.p, text.n);
    str_add(&out->text, text.p, text.n);
    free(text.p);
}

int lingua_compress(const LinguaSource *src, const LinguaOpts *o, const char *const *context,
                    const size_t *len, int n, LinguaResult *out, Err *err) {
    Job j = { .src = src, .o = o };
    double t = now_s(), rate = o->rate;
    memset(out, 0, sizeof *out);
    if (check_options(o, err)) return -1;
    map_forced(&j);
    for (int c = 0; c < n; c++) {
        out->tokens_before += src->weight(src->user, context[c], len[c]);
        add_context(&j, c, context[c], len[c]);
    }
    if (o->target_tokens > 0)
        rate = out->tokens_before ? fmin((double)o->target_tokens / out->tokens_before, 1) : 1;
    bool *stays = (bool *)xrealloc(NULL, ((size_t)n + 1) * sizeof *stays);
    memset(stays, 1, (size_t)n * sizeof *stays);
    bool filter = o->context_filter && n > 1;
    int rc = rate < 1 || filter ? probabilities(&j, err) : 0, put = 0;
    if (!rc && filter) context_filter(&j, n, out->tokens_before, &rate, stays);
    str_add(&out->text, "", 0);
    for (int c = 0; c < n && !rc; c++) {
        if (stays[c]) {
            if (put++) str_puts(&out->text, "\n\n");
            put_context(&j, c, rate, out);
        }
        list_words(&j, c, out);
    }
    for (int i = 0; i < j.n_seq; i++) {
        for (int k = 0; k < j.seq[i].words.n; k++) free(j.seq[i].words.p[k].text);
        free(j.seq[i].words.p);
        free(j.seq[i].text);
    }
    free(j.seq);
    free(stays);
    out->network_s = j.network_s;
    out->total_s = now_s() - t;
    if (rc) lingua_result_free(out);
    return rc;
}

void lingua_result_free(LinguaResult *r) {
    for (int i = 0; i < r->n_words; i++) free(r->word[i].text);
    free(r->word);
    free(r->text.p);
    memset(r, 0, sizeof *r);
}
