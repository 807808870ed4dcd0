// novel.c - en_qa, zh_qa, en_mc: a generated novel and questions about what happens in it.
//
// world.c decides what happens; the rules in data/words/novel_en.txt and novel_zh.txt tell it, one
// paragraph a scene, between scenery that changes no fact. A unit is a scene.
#include "world.h"
#include "grammar.h"

RULES(novel_en);
RULES(novel_zh);

typedef struct {
    bool zh;
    Grammar g;
    World w;
    int *first, *last, *place1, *place2, *material, *object;    // the lists, shuffled
    int n_female, n_first, n_last, n_place1, n_place2, n_material, n_object;
} Novel;

enum { PURPOSE_EN_QA = 101, PURPOSE_ZH_QA, PURPOSE_EN_MC };
enum { STREAM_WORDS = WORLD_STREAMS, STREAM_DATES, STREAM_CHAPTERS, STREAM_QUESTIONS,
       STREAM_OPTIONS, STREAM_PLANNED, STREAM_PLANNED_HOUR, STREAM_PROSE, STREAM_HOUR };

// ---------------------------------------------------------------------------
// Words for the numbers of the world. Pairs (first, last name), ... never repeat before k reaches
// the product of the lists: k -> (k mod n1, (k mod n1 + k / n1) mod n2).

static int *shuffled(int n, Rng *r) {
    int *x = (int *)xrealloc(NULL, (size_t)n * sizeof *x);
    for (int i = 0; i < n; i++) {
        int j = (int)rng_below(r, (uint64_t)i + 1);
        x[i] = x[j];
        x[j] = i;
    }
    return x;
}

static int *list_shuffled(const Grammar *g, const char *rule, Rng *r, int *n) {
    *n = grammar_count(g, rule);
    return shuffled(*n, r);
}

static void pair_of(int k, const int *a, int n_a, const int *b, int n_b, int *i, int *j) {
    *i = a[k % n_a];
    *j = b[(k % n_a + k / n_a) % n_b];
}

static void novel_open(Novel *v, const TaskSession *s, uint64_t seed, uint64_t purpose, int n_turns,
                       int n_units, bool zh) {
    memset(v, 0, sizeof *v);
    v->zh = zh;
    v->g = zh ? grammar_read(novel_zh_rules, (size_t)(novel_zh_rules_end - novel_zh_rules))
              : grammar_read(novel_en_rules, (size_t)(novel_en_rules_end - novel_en_rules));
    v->w = (World){ .seed = seed, .number = s->number, .purpose = purpose };
    Rng r = world_rng(&v->w, STREAM_WORDS, 0);
    v->n_female = grammar_count(&v->g, "female");
    v->n_first = v->n_female + grammar_count(&v->g, "male");     // female names come first
    v->first = shuffled(v->n_first, &r);
    v->last = list_shuffled(&v->g, zh ? "surname" : "last", &r, &v->n_last);
    v->place1 = list_shuffled(&v->g, "place1", &r, &v->n_place1);
    v->place2 = list_shuffled(&v->g, "place2", &r, &v->n_place2);
    v->material = list_shuffled(&v->g, "material", &r, &v->n_material);
    v->object = list_shuffled(&v->g, "object", &r, &v->n_object);
    int kin_f = grammar_count(&v->g, "kin_f"), kin_m = grammar_count(&v->g, "kin_m");
    WorldSizes size = { .colours = grammar_count(&v->g, "colour"),
                        .jobs = grammar_count(&v->g, "job"),
                        .means = grammar_count(&v->g, "means"),
                        .relations = kin_f < kin_m ? kin_f : kin_m,
                        .objects = v->n_material * v->n_object,
                        .places = v->n_place1 * v->n_place2 };
    world_make(&v->w, seed, s->number, purpose, n_turns, n_units, size);
}

static void novel_close(Novel *v) {
    int *lists[] = { v->first, v->last, v->place1, v->place2, v->material, v->object };
    for (size_t i = 0; i < COUNTOF(lists); i++) free(lists[i]);
    world_clear(&v->w);
    grammar_free(&v->g);
}

static bool is_female(const Novel *v, int person) {
    int first, last;
    pair_of(person, v->last, v->n_last, v->first, v->n_first, &last, &first);
    return first < v->n_female;
}

// every text below is malloc'd
static char *given_name(const Novel *v, int person) {
    int first, last;
    pair_of(person, v->last, v->n_last, v->first, v->n_first, &last, &first);
    return first < v->n_female ? grammar_word(&v->g, "female", first)
                               : grammar_word(&v->g, "male", first - v->n_female);
}

static char *joined(char *a, const char *between, char *b) {
    char *text = text_fmt("%s%s%s", a, between, b);
    free(a);
    free(b);
    return text;
}

static char *full_name(const Novel *v, int person) {
    char *last = grammar_word(&v->g, v->zh ? "surname" : "last", v->last[person % v->n_last]);
    char *first = given_name(v, person);
    return v->zh ? joined(last, "", first) : joined(first, " ", last);
}

static char *place_name(const Novel *v, int place) {
    int i, j;
    pair_of(place, v->place1, v->n_place1, v->place2, v->n_place2, &i, &j);
    return joined(grammar_word(&v->g, "place1", i), v->zh ? "" : " ",
                  grammar_word(&v->g, "place2", j));
}

static char *object_name(const Novel *v, int object) {
    int i, j;
    pair_of(object, v->material, v->n_material, v->object, v->n_object, &i, &j);
    return joined(grammar_word(&v->g, "material", i), v->zh ? "" : " ",
                  grammar_word(&v->g, "object", j));
}

static char *relation_name(const Novel *v, int relation, int of_whom) {
    return grammar_word(&v->g, is_female(v, of_whom) ? "kin_f" : "kin_m", relation);
}

static char *number_words(const Novel *v, int n) {
    char buf[64];
    return text_dup(v->zh ? number_zh(n, buf) : number_en(n, buf));
}

// ---------------------------------------------------------------------------
// Dates: a chapter is a day, one to three days after the one before

typedef struct { int year, month, day, weekday; } Date;

// days since 1 March 1600 (a Wednesday) -> proleptic Gregorian date (400 years are 146097 days)
static Date date_of(int days) {
    int era = days / 146097, d = days % 146097;
    int y = (d - d / 1460 + d / 36524 - d / 146096) / 365, doy = d - (365 * y + y / 4 - y / 100);
    int m = (5 * doy + 2) / 153;
    return (Date){ 1600 + 400 * era + y + (m >= 10), m < 10 ? m + 3 : m - 9,
                   doy - (153 * m + 2) / 5 + 1, (days + 3) % 7 };
}

static Date chapter_date(const Novel *v, int chapter) {
    Rng r = world_rng(&v->w, STREAM_DATES, 0);
    int start = 73000 + (int)rng_below(&r, 20000);
    return date_of(start + 2 * chapter + (int)(mix64(r.s + (uint64_t)chapter) & 1));
}

static const char *const month_name[] = {
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December" };
static const char *const weekday_name[] = {
    "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday" };

static char *date_text(const Novel *v, int chapter) {
    Date d = chapter_date(v, chapter);
    char month[64], day[64], year[64] = "";
    if (!v->zh) return text_fmt("%d %s %d", d.day, month_name[d.month - 1], d.year);
    for (int div = 1000; div; div /= 10) {
        char digit[64];
        strcat(year, d.year / div % 10 ? number_zh(d.year / div % 10, digit) : "〇");
    }
    return text_fmt("%s年%s月%s日", year, number_zh(d.month, month), number_zh(d.day, day));
}

// ---------------------------------------------------------------------------
// Telling

enum { N_VARS = 14 };
typedef struct { Var var[N_VARS + 1]; char *text[N_VARS]; int n; } Vars;

static void vars_add(Vars *s, const char *name, char *text) {
    CHECK(s->n < N_VARS, "too many variables");
    s->text[s->n] = text;
    s->var[s->n++] = (Var){ name, text };
    s->var[s->n] = (Var){ NULL, NULL };
}

static void vars_free(Vars *s) { while (s->n) free(s->text[--s->n]); }

static void vars_event(const Novel *v, const Event *e, Vars *s) {
    bool she = is_female(v, e->a);
    s->n = 0;
    vars_add(s, "A", full_name(v, e->a));
    vars_add(s, "A1", given_name(v, e->a));
    vars_add(s, "B", full_name(v, e->b));
    vars_add(s, "B1", given_name(v, e->b));
    vars_add(s, "he", text_dup(v->zh ? (she ? "她" : "他") : she ? "she" : "he"));
    vars_add(s, "his", text_dup(v->zh ? (she ? "她的" : "他的") : she ? "her" : "his"));
    char *place = place_name(v, e->place);
    vars_add(s, "P", v->zh ? place : joined(text_dup("the"), " ", place));
    vars_add(s, "O", object_name(v, e->object));
    vars_add(s, "K", grammar_word(&v->g, "colour", e->colour));
    vars_add(s, "N", number_words(v, e->price));
    vars_add(s, "M", grammar_word(&v->g, "means", e->means));
    vars_add(s, "R", relation_name(v, e->relation, e->b));
    vars_add(s, "J", grammar_word(&v->g, "job", world_job(&v->w, e->a)));
}

static void tell_chapter(const Novel *v, int chapter, StrBuf *out) {
    static const Var none = { NULL, NULL };
    StrBuf title = { NULL, 0, 0 };
    char *date = date_text(v, chapter), number[64];
    Rng r = world_rng(&v->w, STREAM_CHAPTERS, (uint64_t)chapter);
    grammar_expand(&v->g, "chapter", &none, &r, &title);
    if (!v->zh) prose_polish(&title, 0);
    if (v->zh && chapter + 1 < 10000)
        str_fmt(out, "第%s回 %s\n%s\n\n", number_zh(chapter + 1, number), title.p, date);
    else if (v->zh) str_fmt(out, "第%d回 %s\n%s\n\n", chapter + 1, title.p, date);
    else str_fmt(out, "Chapter %d: %s\n%s, %s\n\n", chapter + 1, title.p,
                 weekday_name[chapter_date(v, chapter).weekday], date);
    free(date);
    free(title.p);
}

// a scene's prose depends on the scene alone; its hour on where in the chapter it stands
static void tell_scene(const Novel *v, int at, StrBuf *out) {
    static const char *const rule[N_EVENTS] = {
        "scene_none", "scene_buy", "scene_meet", "scene_travel", "scene_letter", "scene_job",
        "scene_kin", "scene_seen" };
    static const char *const hour[] = { "time_0", "time_1", "time_2", "time_3", "time_4" };
    const Scene *sc = &v->w.scene[at];
    bool planned = sc->ask >= 0;
    uint64_t id = planned ? (uint64_t)sc->ask * BUNDLE + (uint64_t)sc->part : (uint64_t)sc->other;
    Rng r = world_rng(&v->w, planned ? STREAM_PLANNED : STREAM_PROSE, id);
    Rng when = world_rng(&v->w, planned ? STREAM_PLANNED_HOUR : STREAM_HOUR, id);
    const char *time_rule = hour[at % SCENES_A_CHAPTER * (int)COUNTOF(hour) / SCENES_A_CHAPTER];
    size_t from = out->n;
    Vars s;
    vars_event(v, &sc->event, &s);
    int hours = grammar_count(&v->g, time_rule);
    vars_add(&s, "time", grammar_word(&v->g, time_rule, (int)rng_below(&when, (uint64_t)hours)));
    grammar_expand(&v->g, rule[sc->event.kind], s.var, &r, out);
    while (out->n > from && out->p[out->n - 1] == ' ') out->n--;
    out->p[out->n] = 0;
    if (!v->zh) prose_polish(out, from);
    vars_free(&s);
}

// ---------------------------------------------------------------------------
// Questions and answers

static const char *const ask_rule[N_ASKS] = {
    "ask_price", "ask_colour", "ask_shop", "ask_seller", "ask_seller_job", "ask_kin_bought",
    "ask_letter", "ask_writer_job", "ask_meet_count", "ask_meet_date", "ask_meet_where",
    "ask_spend", "ask_last_seen", "ask_dearest", "ask_bought_at", "ask_by_colour", "ask_means",
    "ask_journeys",
    "ask_cheap_count" };

// the answer `value` of kind `is` in words
static char *answer_text(const Novel *v, AnswerKind is, AskKind ask, int value) {
    switch (is) {
    case IS_PRICE: return v->zh ? joined(number_words(v, value), "", text_dup("块银元"))
                                : text_fmt("%d crowns", value);
    case IS_COUNT: return v->zh ? joined(value == 2 ? text_dup("两") : number_words(v, value), "",
                                         text_dup(ask == ASK_JOURNEYS ? "次" :
                                                  ask == ASK_MEET_COUNT ? "个" : "样"))
                                : number_words(v, value);
    case IS_COLOUR: return grammar_word(&v->g, "colour", value);
    case IS_PLACE: return place_name(v, value);
    case IS_PERSON: return full_name(v, value);
    case IS_JOB: return grammar_word(&v->g, "job", value);
    case IS_OBJECT: return object_name(v, value);
    case IS_MEANS: return grammar_word(&v->g, "means", value);
    default: return date_text(v, value / SCENES_A_CHAPTER);
    }
}

static void label_take(TaskTurn *t, char *text) {
    for (int i = 0; i < t->n_labels; i++)
        if (!strcmp(t->label[i], text)) {
            free(text);
            return;
        }
    turn_label(t, text);
    free(text);
}

// other ways to write the answer
static void label_variants(const Novel *v, const Ask *q, TaskTurn *t) {
    if (q->is == IS_PRICE) {
        label_take(t, v->zh ? joined(number_words(v, q->answer), "块", text_dup(""))
                            : joined(number_words(v, q->answer), " crowns", text_dup("")));
        label_take(t, number_words(v, q->answer));
        label_take(t, text_fmt("%d", q->answer));
        if (v->zh) label_take(t, text_fmt("%d块银元", q->answer));
        if (v->zh) label_take(t, text_fmt("%d块", q->answer));
    } else if (q->is == IS_COUNT) {
        label_take(t, number_words(v, q->answer));
        label_take(t, text_fmt("%d", q->answer));
        if (v->zh && q->answer == 2) label_take(t, text_dup("两"));
    } else if (q->is == IS_DATE) {
        Date d = chapter_date(v, q->answer / SCENES_A_CHAPTER);
        char month[64], day[64];
        if (v->zh) {
            label_take(t, text_fmt("%d年%d月%d日", d.year, d.month, d.day));
            label_take(t, text_fmt("%s月%s日", number_zh(d.month, month), number_zh(d.day, day)));
            label_take(t, text_fmt("%d月%d日", d.month, d.day));
        } else {
            label_take(t, text_fmt("%d %s", d.day, month_name[d.month - 1]));
            label_take(t, text_fmt("%s %d, %d", month_name[d.month - 1], d.day, d.year));
            label_take(t, text_fmt("%s %d", month_name[d.month - 1], d.day));
        }
    } else if (q->is == IS_OBJECT && q->event[0].kind == EV_BUY) {
        for (int i = 0; i < q->n_relevant; i++) {
            if (q->event[i].kind != EV_BUY || q->event[i].object != q->answer) continue;
            char *colour = grammar_word(&v->g, "colour", q->event[i].colour);
            label_take(t, joined(colour, v->zh ? "的" : " ", object_name(v, q->answer)));
        }
    }
}

char *reader_question(const TaskTurn *t, bool zh) {
    if (t->options[0])
        return text_fmt("A reader asks: %s\nFour replies stand to choose from.\n"
                        "A. %s\nB. %s\nC. %s\nD. %s\n\nThe fitting reply:", t->input,
                        t->options[0], t->options[1], t->options[2], t->options[3]);
    return text_fmt(zh ? "读者提问：%s\n简短作答：" : "A reader asks: %s\nReply in brief:",
                    t->input);
}

static void make_question(const Novel *v, int turn, TaskTurn *t) {
    const Ask *q = &v->w.ask[turn];
    Rng r = world_rng(&v->w, STREAM_QUESTIONS, (uint64_t)turn);
    StrBuf text = { NULL, 0, 0 };
    Vars s;
    vars_event(v, &q->about, &s);
    grammar_expand(&v->g, ask_rule[q->kind], s.var, &r, &text);
    vars_free(&s);
    t->input = text.p;
    t->answer = answer_text(v, q->is, q->kind, q->answer);
    t->question = reader_question(t, v->zh);
}

// ---------------------------------------------------------------------------
// Options of en_mc: three more answers of the same kind that occur in the novel

// the value of that kind an event holds, or -1
static int value_in(const Novel *v, const Event *e, AnswerKind is) {
    bool buy = e->kind == EV_BUY;
    switch (is) {
    case IS_PRICE: return buy ? e->price : -1;
    case IS_COLOUR: return buy ? e->colour : -1;
    case IS_PLACE: return buy || e->kind == EV_MEET || e->kind == EV_TRAVEL || e->kind == EV_SEEN ?
                          e->place : -1;
    case IS_PERSON: return buy || e->kind == EV_MEET ? e->b : -1;
    case IS_JOB: return e->kind == EV_JOB ? world_job(&v->w, e->a) : -1;
    case IS_OBJECT: return buy || e->kind == EV_LETTER ? e->object : -1;
    case IS_MEANS: return e->kind == EV_TRAVEL ? e->means : -1;
    default: return -1;
    }
}

// candidate number i: first what the question's own events hold, then other scenes, then anything
// of that kind
static int candidate(const Novel *v, const Ask *q, int i, Rng *r) {
    const World *w = &v->w;
    int range = q->is == IS_COLOUR ? w->size.colours : q->is == IS_MEANS ? w->size.means :
                q->is == IS_JOB ? w->size.jobs : q->is == IS_OBJECT ? w->size.objects : 24;
    if (q->is == IS_COUNT) return 1 + (int)rng_below(r, 6);
    if (q->is == IS_DATE) {
        int chapters = CEIL_DIV(w->n_units, SCENES_A_CHAPTER);
        return SCENES_A_CHAPTER * (int)rng_below(r, (uint64_t)(chapters < 6 ? 6 : chapters));
    }
    if (q->kind == ASK_SPEND) {                 // sums that leave out or add purchases
        const Event *e = &q->event[rng_below(r, (uint64_t)q->n_events)];
        int other = (int)rng_below(r, 40) + 3;
        return rng_below(r, 2) ? q->answer + (rng_below(r, 2) ? other : e->price) :
               q->answer > e->price ? q->answer - e->price : q->answer + other;
    }
    if (i < q->n_events) return value_in(v, &q->event[i], q->is);
    if (i < q->n_events + 200)
        return value_in(v, &w->scene[rng_below(r, (uint64_t)w->n_units)].event, q->is);
    if (q->is == IS_PRICE) return 4 + (int)rng_below(r, 480);
    if (q->is == IS_PERSON) return w->planned_people + (int)rng_below(r, 16);
    return (int)rng_below(r, (uint64_t)range);
}

static void make_options(const Novel *v, int turn, TaskTurn *t) {
    const Ask *q = &v->w.ask[turn];
    Rng r = world_rng(&v->w, STREAM_OPTIONS, (uint64_t)turn);
    int right = (int)rng_below(&r, 4), n = 0;
    char *wrong[3], letter[2] = { (char)('A' + right), 0 };
    for (int i = 0; n < 3; i++) {
        int value = candidate(v, q, i, &r);
        if (value < 0) continue;
        char *text = answer_text(v, q->is, q->kind, value);
        bool known = !strcmp(text, t->answer);
        for (int k = 0; k < n; k++) known |= !strcmp(text, wrong[k]);
        if (known) free(text);
        else wrong[n++] = text;
    }
    for (int i = 0, k = 0; i < 4; i++)
        t->options[i] = i == right ? text_dup(t->answer) : wrong[k++];
    free(t->question);
    t->question = reader_question(t, false);
    turn_label(t, t->answer);
    turn_label(t, letter);
}

// ---------------------------------------------------------------------------

static void novel_make(TaskSession *s, uint64_t seed, int n_turns, int n_units, uint64_t purpose) {
    Novel v;
    size_t *start = (size_t *)xrealloc(NULL, ((size_t)n_units + 1) * sizeof *start);
    novel_open(&v, s, seed, purpose, n_turns, n_units, purpose == PURPOSE_ZH_QA);
    s->units = n_units;
    session_turns(s, n_turns);
    str_add(&s->context, NULL, 0);
    for (int i = 0; i < n_units; i++) {
        if (i) str_puts(&s->context, "\n\n");
        if (i % SCENES_A_CHAPTER == 0) tell_chapter(&v, i / SCENES_A_CHAPTER, &s->context);
        start[i] = s->context.n;
        tell_scene(&v, i, &s->context);
    }
    start[n_units] = s->context.n;
    for (int t = 0; t < n_turns; t++) {
        int at = v.w.ask[t].at[0];
        TaskTurn *turn = &s->turns[t];
        make_question(&v, t, turn);
        turn->depth = 0.5 * (double)(start[at] + start[at + 1]) / (double)s->context.n;
        if (purpose == PURPOSE_EN_MC) {
            make_options(&v, t, turn);
            continue;
        }
        turn_label(turn, turn->answer);
        label_variants(&v, &v.w.ask[t], turn);
    }
    novel_close(&v);
    free(start);
}

static void en_qa_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    novel_make(s, seed, n_turns, n_units, PURPOSE_EN_QA);
}
static void zh_qa_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    novel_make(s, seed, n_turns, n_units, PURPOSE_ZH_QA);
}
static void en_mc_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    novel_make(s, seed, n_turns, n_units, PURPOSE_EN_MC);
}

const Task task_en_qa = {
    .name = "en_qa", .official = "scbench_qa_eng", .category = "retr.semantic",
    .help = "questions about a generated English novel", .turns = 5, .paper_units = 2640,
    .unit = "scenes", .parts = { { "scbench_qa_eng", 40, SCORE_QA_EN } }, .n_parts = 1,
    .instruction = "A novel follows. Questions about its people come after it; a few words are "
                   "enough for each of them.\n\n",
    .separator = "\n\n", .min_units = WORLD_MIN_UNITS, .make = en_qa_make,
};

const Task task_zh_qa = {
    .name = "zh_qa", .official = "scbench_qa_chn", .category = "retr.semantic",
    .help = "questions about a generated Chinese novel", .turns = 5, .paper_units = 38000,
    .unit = "scenes", .parts = { { "scbench_qa_chn", 40, SCORE_QA_ZH } }, .n_parts = 1,
    .instruction = "下面是一部小说。读完之后会有几个关于书中人物的问题，每题用几个字作答即可。\n\n",
    .separator = "\n\n", .min_units = WORLD_MIN_UNITS, .make = zh_qa_make,
};

const Task task_en_mc = {
    .name = "en_mc", .official = "scbench_choice_eng", .category = "retr.semantic",
    .help = "questions with four options about a generated English novel", .turns = 5,
    .paper_units = 2500, .unit = "scenes",
    .parts = { { "scbench_choice_eng", 40, SCORE_CHOICE } }, .n_parts = 1,
    .instruction = "A novel follows, and after it questions about its people. Each offers four "
                   "replies, of which one fits.\n\n",
    .separator = "\n\n", .min_units = WORLD_MIN_UNITS, .make = en_mc_make,
};
