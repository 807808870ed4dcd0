// world.c - plans the events that questions are about, spreads them over the novel, and fills the
// scenes between with events of other people
#include "world.h"

enum { STREAM_JOBS, STREAM_SLOTS, STREAM_LAYOUT, STREAM_KIN, STREAM_PLAN, STREAM_SCENES };

Rng world_rng(const World *w, int stream, uint64_t i) {
    return session_rng(w->seed, w->number, mix64((w->purpose << 8) + (uint64_t)stream) + i);
}

int world_job(const World *w, int person) {
    Rng r = world_rng(w, STREAM_JOBS, 0);
    return (int)(mix64(r.s + (uint64_t)person) % (uint64_t)w->size.jobs);
}

static int below(Rng *r, int n) { return (int)rng_below(r, (uint64_t)n); }

static void shuffle(Rng *r, int *x, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = below(r, i + 1), t = x[i];
        x[i] = x[j], x[j] = t;
    }
}

// n different numbers below `below_n`
static void distinct(Rng *r, int *x, int n, int below_n) {
    for (int i = 0; i < n; i++) {
        x[i] = below(r, below_n);
        for (int j = 0; j < i; j++) if (x[j] == x[i]) { i--; break; }
    }
}

// ---------------------------------------------------------------------------
// One bundle: the events behind one question. Whoever the question names takes part in no other
// event of the novel; buyers never buy, travellers never travel in the background.

// people the novel always holds besides those asked about: with whom they meet and trade
enum { REGULARS = 16, MARKET_PLACES = 24 };

typedef struct {
    World *w;
    Ask *q;
    Rng rng;
    int person, object;             // next new ones
    int place[BUNDLE], colour[BUNDLE], price[BUNDLE], regular[BUNDLE], means[BUNDLE],
        relation[BUNDLE];
} Bundle;

static int regular(const World *w, int i) { return w->planned_people + i; }

static Event *add(Bundle *b, EventKind kind, int a) {
    CHECK(b->q->n_events < BUNDLE, "a question with too many events");
    int i = b->q->n_events++;
    Event *e = &b->q->event[i];
    *e = (Event){ .kind = kind, .a = a, .place = b->place[i], .b = regular(b->w, b->regular[i]) };
    if (kind == EV_BUY) e->object = b->object++, e->colour = b->colour[i], e->price = b->price[i];
    if (kind == EV_LETTER) e->object = b->object++;
    if (kind == EV_TRAVEL) e->means = b->means[i];
    if (kind == EV_KIN) e->relation = b->relation[i];
    return e;
}

static Event *add_person(Bundle *b, EventKind kind, int a, int with) {
    Event *e = add(b, kind, a);
    e->b = with;
    return e;
}

static void ask_is(Ask *q, AnswerKind is, int answer) { q->is = is, q->answer = answer; }

// one purchase is asked about, x's others lead astray
static void plan_purchase(Bundle *b, int x) {
    Ask *q = b->q;
    const Event e = *add(b, EV_BUY, x);
    q->n_relevant = 1;
    q->about = e;
    add(b, EV_BUY, x);
    add(b, EV_BUY, x);
    if (q->kind == ASK_PRICE) ask_is(q, IS_PRICE, e.price);
    else if (q->kind == ASK_COLOUR) ask_is(q, IS_COLOUR, e.colour);
    else if (q->kind == ASK_SHOP) ask_is(q, IS_PLACE, e.place);
    else if (q->kind == ASK_SELLER) ask_is(q, IS_PERSON, e.b);
    else ask_is(q, IS_OBJECT, e.object);
}

// all purchases of x count
static void plan_purchases(Bundle *b, int x) {
    Ask *q = b->q;
    int n = q->kind == ASK_SPEND ? 2 + below(&b->rng, 3) : q->kind == ASK_DEAREST ? 3 : 4;
    int sum = 0, best = 0, cheap = 0;
    q->about.a = x;
    q->n_relevant = n;
    for (int i = 0; i < n; i++) add(b, EV_BUY, x);
    for (int i = 0; i < n; i++) {
        sum += q->event[i].price;
        if (q->event[i].price > q->event[best].price) best = i;
    }
    if (q->kind == ASK_SPEND) ask_is(q, IS_PRICE, sum);
    if (q->kind == ASK_DEAREST) ask_is(q, IS_OBJECT, q->event[best].object);
    if (q->kind != ASK_CHEAP_COUNT) return;
    // a border that one to three of the four prices stay below, no price on it
    int sorted[4];
    for (int i = 0; i < 4; i++) {
        int j = i;
        for (; j > 0 && sorted[j - 1] > q->event[i].price; j--) sorted[j] = sorted[j - 1];
        sorted[j] = q->event[i].price;
    }
    cheap = 1 + below(&b->rng, 3);
    q->about.price = (sorted[cheap - 1] + sorted[cheap] + 1) / 2;
    ask_is(q, IS_COUNT, cheap);
}

static void plan_hop(Bundle *b, int x) {
    Ask *q = b->q;
    int y = b->person++, z = b->person++, other = b->person++;
    q->n_relevant = 2;
    q->about.a = x;
    if (q->kind == ASK_SELLER_JOB) {
        q->about.object = add_person(b, EV_BUY, x, y)->object;
        add_person(b, EV_JOB, y, 0);
        add_person(b, EV_BUY, x, z);
        add_person(b, EV_JOB, z, 0);
        ask_is(q, IS_JOB, world_job(b->w, y));
    } else if (q->kind == ASK_KIN_BOUGHT) {
        ask_is(q, IS_OBJECT, add(b, EV_BUY, y)->object);
        q->about.b = y;
        q->about.relation = add_person(b, EV_KIN, x, y)->relation;
        add(b, EV_BUY, z);
        add_person(b, EV_KIN, x, z);
    } else {
        add_person(b, EV_LETTER, x, y);
        q->about.b = y;
        add_person(b, EV_JOB, x, 0);
        add_person(b, EV_LETTER, z, other);
        add_person(b, EV_JOB, z, 0);
        ask_is(q, IS_JOB, world_job(b->w, x));
    }
}

static void plan_letter(Bundle *b, int x) {
    int y = b->person++, z = b->person++;
    b->q->n_relevant = 1;
    b->q->about = *add_person(b, EV_LETTER, x, y);
    add_person(b, EV_LETTER, x, z);
    ask_is(b->q, IS_OBJECT, b->q->about.object);
}

static void plan_meeting(Bundle *b, int x) {
    Ask *q = b->q;
    q->n_relevant = 1;
    q->about = *add(b, EV_MEET, x);
    add(b, EV_MEET, x);
    add(b, EV_MEET, x);
    if (q->kind == ASK_MEET_WHERE) ask_is(q, IS_PLACE, q->about.place);
    else ask_is(q, IS_DATE, 0);                 // the scene, known after the layout
}

// two to four meetings at one place, perhaps one person twice; two more elsewhere
static void plan_meet_count(Bundle *b, int x) {
    Ask *q = b->q;
    int n = q->n_relevant = 2 + below(&b->rng, 3);
    bool again = n == 4 || (n == 3 && below(&b->rng, 2));
    q->about.a = x;
    q->about.place = b->place[0];
    for (int i = 0; i < n; i++) add(b, EV_MEET, x)->place = b->place[0];
    if (again) q->event[n - 1].b = q->event[0].b;
    add(b, EV_MEET, x);
    add(b, EV_MEET, x);
    ask_is(q, IS_COUNT, again ? n - 1 : n);
}

static void plan_moves(Bundle *b, int x) {
    Ask *q = b->q;
    q->about.a = x;
    if (q->kind == ASK_LAST_SEEN) {
        q->n_relevant = 4;
        for (int i = 0; i < 4; i++) add(b, EV_SEEN, x);
        ask_is(q, IS_PLACE, q->event[0].place);
    } else if (q->kind == ASK_MEANS) {
        q->n_relevant = 1;
        q->about = *add(b, EV_TRAVEL, x);
        add(b, EV_TRAVEL, x);
        add(b, EV_TRAVEL, x);
        ask_is(q, IS_MEANS, q->about.means);
    } else {
        int n = q->n_relevant = 2 + below(&b->rng, 3);
        for (int i = 0; i < n; i++) add(b, EV_TRAVEL, x);
        add(b, EV_MEET, x);
        ask_is(q, IS_COUNT, n);
    }
}

enum { NEW_PEOPLE = 4, NEW_OBJECTS = 4 };       // most a bundle can use

static void plan(World *w, int turn) {
    Bundle b = { .w = w, .q = &w->ask[turn], .rng = world_rng(w, STREAM_PLAN, (uint64_t)turn) };
    b.person = NEW_PEOPLE * turn;
    b.object = NEW_OBJECTS * turn % w->planned_objects;
    distinct(&b.rng, b.place, BUNDLE, MARKET_PLACES);
    distinct(&b.rng, b.colour, BUNDLE, w->size.colours);
    distinct(&b.rng, b.price, BUNDLE, 240);
    distinct(&b.rng, b.regular, BUNDLE, REGULARS);
    distinct(&b.rng, b.means, BUNDLE, w->size.means);
    distinct(&b.rng, b.relation, BUNDLE, w->size.relations);
    for (int i = 0; i < BUNDLE; i++) b.price[i] = 4 + 2 * b.price[i] + below(&b.rng, 2);
    int x = b.person++;
    switch (b.q->kind) {
    case ASK_PRICE: case ASK_COLOUR: case ASK_SHOP: case ASK_SELLER: case ASK_BOUGHT_AT:
    case ASK_BY_COLOUR: plan_purchase(&b, x); break;
    case ASK_SPEND: case ASK_DEAREST: case ASK_CHEAP_COUNT: plan_purchases(&b, x); break;
    case ASK_SELLER_JOB: case ASK_KIN_BOUGHT: case ASK_WRITER_JOB: plan_hop(&b, x); break;
    case ASK_LETTER: plan_letter(&b, x); break;
    case ASK_MEET_DATE: case ASK_MEET_WHERE: plan_meeting(&b, x); break;
    case ASK_MEET_COUNT: plan_meet_count(&b, x); break;
    default: plan_moves(&b, x); break;
    }
    CHECK(b.person <= NEW_PEOPLE * (turn + 1) && b.q->n_relevant <= RELEVANT,
          "question kind %d outgrows its bundle", b.q->kind);
}

// ---------------------------------------------------------------------------
// Layout. Event 0 of the question with slot j stands in scene even_slot(j); the other relevant ones
// anywhere before it, those that lead astray anywhere.

// the free scene nearest below `want` in 0 .. end - 1, else the nearest above
static int free_scene(const World *w, int want, int end) {
    for (int i = want; i >= 0; i--) if (w->scene[i].ask < 0) return i;
    for (int i = want + 1; i < end; i++) if (w->scene[i].ask < 0) return i;
    CHECK(false, "no scene left for an event");
    return 0;
}

static void put(World *w, int turn, int part, int at) {
    w->ask[turn].at[part] = at;
    w->scene[at] = (Scene){ w->ask[turn].event[part], turn, part, 0 };
}

static void layout(World *w, const int *slot_turn) {
    Rng r = world_rng(w, STREAM_LAYOUT, 0);
    for (int i = 0; i < w->n_units; i++) w->scene[i].ask = -1;
    for (int j = 0; j < w->n_turns; j++)
        put(w, slot_turn[j], 0, even_slot(j, w->n_turns, w->n_units));
    for (int pass = 0; pass < 2; pass++)
        for (int j = 0; j < w->n_turns; j++) {
            const Ask *q = &w->ask[slot_turn[j]];
            int from = pass ? q->n_relevant : 1, to = pass ? q->n_events : q->n_relevant;
            int end = pass ? w->n_units : q->at[0];
            for (int i = from; i < to; i++) {
                uint64_t u = rng_next(&r) >> 32;
                put(w, slot_turn[j], i, free_scene(w, (int)((u * (uint64_t)end) >> 32), end));
            }
        }
    for (int t = 0; t < w->n_turns; t++)
        if (w->ask[t].is == IS_DATE) w->ask[t].answer = w->ask[t].at[0];
}

// ---------------------------------------------------------------------------
// Background: event number i of people nobody asks about. The cast grows as the novel goes on.

static Event background(const World *w, int i) {
    static const EventKind deck[] = {
        EV_NONE, EV_NONE, EV_NONE, EV_BUY, EV_BUY, EV_BUY, EV_BUY, EV_MEET, EV_MEET, EV_MEET,
        EV_TRAVEL, EV_TRAVEL, EV_LETTER, EV_LETTER, EV_JOB, EV_KIN, EV_SEEN, EV_SEEN };
    Rng r = world_rng(w, STREAM_SCENES, (uint64_t)i);
    Event e = { .kind = deck[below(&r, COUNTOF(deck))] };
    int cast = REGULARS + i / 5 < 2000 ? REGULARS + i / 5 : 2000, who[2];
    int n_places = MARKET_PLACES + i / 8, n_objects = w->size.objects - w->planned_objects;
    if (n_places > w->size.places) n_places = w->size.places;
    distinct(&r, who, 2, cast);
    if (e.kind == EV_KIN) {                     // pairs for life: 0 and 1, 2 and 3, ...
        Rng kin = world_rng(w, STREAM_KIN, 0);
        who[0] &= ~1;
        who[1] = who[0] + 1;
        e.relation = (int)(mix64(kin.s + (uint64_t)who[0]) % (uint64_t)w->size.relations);
    }
    e.a = regular(w, who[0]);
    e.b = regular(w, who[1]);
    e.place = below(&r, n_places);
    e.object = w->planned_objects + (i < n_objects ? i : below(&r, n_objects));
    e.colour = below(&r, w->size.colours);
    e.price = 4 + below(&r, 480);
    e.means = below(&r, w->size.means);
    return e;
}

void world_make(World *w, uint64_t seed, int number, uint64_t purpose, int n_turns, int n_units,
                WorldSizes size) {
    memset(w, 0, sizeof *w);
    w->seed = seed, w->number = number, w->purpose = purpose;
    w->n_turns = n_turns, w->n_units = n_units, w->size = size;
    w->planned_people = NEW_PEOPLE * n_turns;
    int sets = size.objects / 2 / NEW_OBJECTS;      // beyond, different people own things alike
    w->planned_objects = NEW_OBJECTS * (n_turns < sets ? n_turns : sets);
    CHECK(n_units >= WORLD_MIN_UNITS * n_turns, "%d scenes for %d questions", n_units, n_turns);
    w->ask = (Ask *)xrealloc(NULL, (size_t)n_turns * sizeof *w->ask);
    w->scene = (Scene *)xrealloc(NULL, (size_t)n_units * sizeof *w->scene);
    memset(w->ask, 0, (size_t)n_turns * sizeof *w->ask);
    memset(w->scene, 0, (size_t)n_units * sizeof *w->scene);
    int kinds[N_ASKS], *slot_turn = (int *)xrealloc(NULL, (size_t)n_turns * sizeof *slot_turn);
    Rng r = world_rng(w, STREAM_SLOTS, 0);
    for (int i = 0; i < N_ASKS; i++) kinds[i] = i;
    for (int t = 0; t < n_turns; t++) slot_turn[t] = t;
    shuffle(&r, kinds, N_ASKS);
    shuffle(&r, slot_turn, n_turns);
    for (int t = 0; t < n_turns; t++) {
        w->ask[t].kind = (AskKind)kinds[t % N_ASKS];
        plan(w, t);
    }
    for (int j = 0; j < n_turns; j++) w->ask[slot_turn[j]].slot = j;
    layout(w, slot_turn);
    for (int i = 0, other = 0; i < n_units; i++) {
        if (w->scene[i].ask >= 0) continue;
        w->scene[i].other = other;
        w->scene[i].event = background(w, other++);
    }
    free(slot_turn);
}

void world_clear(World *w) {
    free(w->ask);
    free(w->scene);
    memset(w, 0, sizeof *w);
}
