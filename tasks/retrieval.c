// retrieval.c - the tasks over lists and lines (Li et al. 2024): values of keys, strings by their
// two ends, variables through assignments, extremes of numbers.
//
// What is asked and what fills the list come from streams of their own, and the filling is drawn in
// the order of the list: the questions stay the same at any length, and a longer context only gains
// units (the median of math_find apart).
#include "tasks.h"

// streams of session_rng; one number per task and role. retr_kv has 1 to 3
enum { KV_ASKED = 1, KV_OTHERS, KV_ORDER, PS_ASKED = 16, PS_OTHERS, PS_ORDER,
       MH_ASKED = 32, MH_NOISE, MH_ORDER, MATH_ASKED = 48, MATH_OTHERS, MATH_ORDER };

// 0 .. n-1 in a seeded order, malloc'd
static int *shuffled(Rng *rng, int n) {
    int *a = (int *)xrealloc(NULL, (size_t)n * sizeof *a);
    for (int i = 0; i < n; i++) {
        int j = (int)rng_below(rng, (uint64_t)i + 1);
        a[i] = a[j];
        a[j] = i;
    }
    return a;
}

// takes question and answer; the answer is what the scorer looks for
static void turn_set(TaskTurn *t, char *question, char *answer, double depth) {
    t->input = question;
    t->question = text_dup(question);
    t->answer = answer;
    t->depth = depth;
}

// ---------------------------------------------------------------------------
// retr_kv: one JSON object of random identifiers; each turn asks for the value of one key.
// retr_kv_compressible: the same pairs and questions over sentences that say little else.

enum { UUID_CHARS = 36 };

// a version 4 UUID from two random words
static void uuid_text(uint64_t a, uint64_t b, char out[UUID_CHARS + 1]) {
    a = (a & ~0xf000ull) | 0x4000ull;
    b = (b & 0x3fffffffffffffffull) | 0x8000000000000000ull;
    snprintf(out, UUID_CHARS + 1, "%08llx-%04llx-%04llx-%04llx-%012llx",
             (unsigned long long)(a >> 32), (unsigned long long)(a >> 16 & 0xffff),
             (unsigned long long)(a & 0xffff), (unsigned long long)(b >> 48),
             (unsigned long long)(b & 0xffffffffffffull));
}

typedef struct {
    char key[UUID_CHARS + 1], value[UUID_CHARS + 1];
    uint64_t form;              // random: which sentence states it
} Pair;

static Pair kv_pair(Rng stream, uint64_t i) {
    Pair p;
    uint64_t at = stream.s + 4 * i;
    uuid_text(mix64(at), mix64(at + 1), p.key);
    uuid_text(mix64(at + 2), mix64(at + 3), p.value);
    p.form = mix64(~at);
    return p;
}

static void kv_put_json(StrBuf *text, const Pair *p, bool first) {
    str_fmt(text, "%s\"%s\": \"%s\"", first ? "" : ", ", p->key, p->value);
}

// between two identifiers stand at most eleven words: no twelve words repeat
static void kv_put_sentence(StrBuf *text, const Pair *p, bool first) {
    static const char *const form[][3] = {      // before the key, before the value, end
        { "The register has an entry for the key ", ". The value of this entry is known to be ",
          "." },
        { "As can be read here, the key ", " is kept with a value, and that value is ", "." },
        { "It is also written that for the key ", " the value to be used is ", ", as before." },
        { "Then there is one more key, the key ", ", and the value that goes with it is ", "." },
        { "To whoever asks for the key ", " the register gives the value ", " and nothing more." },
    };
    const char *const *f = form[p->form % COUNTOF(form)];
    str_fmt(text, "%s%s%s%s%s%s", first ? "" : " ", f[0], p->key, f[1], p->value, f[2]);
}

typedef struct {
    const char *open, *close, *holder;          // holder: "JSON object hold", for the question
    void (*put)(StrBuf *text, const Pair *p, bool first);
} KvForm;

static void kv_fill(TaskSession *s, uint64_t seed, int n_turns, int n_units, const KvForm *form) {
    Rng asked = session_rng(seed, s->number, KV_ASKED);
    Rng others = session_rng(seed, s->number, KV_OTHERS);
    Rng order = session_rng(seed, s->number, KV_ORDER);
    int *slot_turn = shuffled(&order, n_turns);         // which turn asks for slot j
    s->units = n_units;
    session_turns(s, n_turns);
    s->context.n = 0;
    str_puts(&s->context, form->open);
    for (int i = 0, slot = 0, other = 0; i < n_units; i++) {
        bool here = slot < n_turns && i == even_slot(slot, n_turns, n_units);
        Pair p =
            here ? kv_pair(asked, (uint64_t)slot_turn[slot]) : kv_pair(others, (uint64_t)other++);
        form->put(&s->context, &p, i == 0);
        if (!here) continue;
        TaskTurn *turn = &s->turns[slot_turn[slot++]];
        turn_set(turn,
                 text_fmt("Which value does the %s for the key \"%s\"? Write only that value.\n"
                          "\"%s\":",
                          form->holder, p.key, p.key),
                 text_dup(p.value), (i + 0.5) / n_units);
        turn_label(turn, p.value);
    }
    str_puts(&s->context, form->close);
    free(slot_turn);
}

static void kv_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    static const KvForm json = { "{", "}", "JSON object hold", kv_put_json };
    kv_fill(s, seed, n_turns, n_units, &json);
}

static void kv_compressible_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    static const KvForm passage = { "", "", "passage give", kv_put_sentence };
    kv_fill(s, seed, n_turns, n_units, &passage);
}

const Task task_retr_kv = {
    "retr_kv", "scbench_kv", "retr.string",
    "find the value of a key in a JSON object of random pairs", 5, 2500, "pairs",
    { { "kv", 80, SCORE_SUBSTRING } }, 1,
    "Here is a JSON object. Its keys and values are random identifiers; questions about single "
    "keys follow.\n\n",
    "\n\n", 1, kv_make, NULL, NULL,
};

const Task task_retr_kv_compressible = {
    "retr_kv_compressible", "scbench_kv_compressible", "retr.string",
    "the same pairs, told in sentences that say little else", 5, 0, "pairs",
    { { "kv_compressible", 80, SCORE_SUBSTRING } }, 1,
    "Here is a passage about a register. Its keys and values are random identifiers; questions "
    "about single keys follow.\n\n",
    "\n\n", 1, kv_compressible_make, NULL, NULL,
};

// ---------------------------------------------------------------------------
// retr_ps: a list of random strings. Each turn gives both ends of one of them; other strings share
// one end with it, never both.

enum { PS_CHARS = 25, PS_END = 5, PS_SHARING = 4 };     // PS_SHARING strings share an end, per end

typedef struct { char s[PS_CHARS + 1]; } PsString;

static bool ps_begins_alike(const PsString *a, const PsString *b) {
    return !memcmp(a->s, b->s, PS_END);
}
static bool ps_ends_alike(const PsString *a, const PsString *b) {
    return !memcmp(a->s + PS_CHARS - PS_END, b->s + PS_CHARS - PS_END, PS_END);
}

// a random string that shares no end with the n targets
static PsString ps_draw(Rng *rng, const PsString *target, int n) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    PsString p;
    bool shares = true;
    while (shares) {
        for (int i = 0; i < PS_CHARS; i++) p.s[i] = letters[rng_below(rng, sizeof letters - 1)];
        p.s[PS_CHARS] = 0;
        shares = false;
        for (int t = 0; t < n; t++)
            shares |= ps_begins_alike(&p, &target[t]) || ps_ends_alike(&p, &target[t]);
    }
    return p;
}

static void ps_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    Rng asked = session_rng(seed, s->number, PS_ASKED);
    Rng others = session_rng(seed, s->number, PS_OTHERS);
    Rng order = session_rng(seed, s->number, PS_ORDER);
    int n_sharing = 2 * PS_SHARING * n_turns;
    PsString *target = (PsString *)xrealloc(NULL, (size_t)n_turns * sizeof *target);
    PsString *sharing = (PsString *)xrealloc(NULL, (size_t)n_sharing * sizeof *sharing);
    for (int t = 0; t < n_turns; t++) target[t] = ps_draw(&asked, target, t);
    for (int d = 0; d < n_sharing; d++) {
        const PsString *of = &target[d / (2 * PS_SHARING)];
        size_t at = d % 2 ? PS_CHARS - PS_END : 0;
        sharing[d] = ps_draw(&asked, target, n_turns);
        memcpy(sharing[d].s + at, of->s + at, PS_END);
    }
    int *slot_turn = shuffled(&order, n_turns), *slot_sharing = shuffled(&order, n_sharing);
    s->units = n_units;
    session_turns(s, n_turns);
    s->context.n = 0;
    str_puts(&s->context, "[");
    for (int i = 0, slot = 0, d = 0; i < n_units; i++) {
        bool here = slot < n_turns && i == even_slot(slot, n_turns, n_units);
        PsString p;
        if (here) p = target[slot_turn[slot]];
        else if (d < n_sharing && i - slot == even_slot(d, n_sharing, n_units - n_turns))
            p = sharing[slot_sharing[d++]];
        else p = ps_draw(&others, target, n_turns);
        str_fmt(&s->context, "%s\"%s\"", i ? ", " : "", p.s);
        if (!here) continue;
        TaskTurn *turn = &s->turns[slot_turn[slot++]];
        turn_set(turn,
                 text_fmt("One string of the list begins with \"%.*s\" and ends with \"%s\". Which "
                          "one is it? Write only that string.\nThe string:",
                          PS_END, p.s, p.s + PS_CHARS - PS_END),
                 text_dup(p.s), (i + 0.5) / n_units);
        turn_label(turn, p.s);
    }
    str_puts(&s->context, "]");
    free(target);
    free(sharing);
    free(slot_turn);
    free(slot_sharing);
}

const Task task_retr_ps = {
    "retr_ps", "scbench_prefix_suffix", "retr.string",
    "find the string with a given beginning and end in a list of random strings", 5, 6000,
    "strings", { { "ps", 150, SCORE_SUBSTRING } }, 1,
    "Here is a list of random strings; questions about single strings of it follow.\n\n",
    "\n\n", 1 + 2 * PS_SHARING, ps_make, NULL, NULL,
};

// ---------------------------------------------------------------------------
// retr_mh: variables that take over each other's value, MH_HOPS times in a chain, between lines of
// noise (variable tracking of RULER, Hsieh et al. 2024). Each turn asks for all names of a chain.

enum { MH_HOPS = 4, MH_NAMES = MH_HOPS + 1, MH_NAME = 5 };

static const char *const noise_words[][48] = {
    { "quiet", "tired", "cheerful", "stubborn", "elderly", "careful", "hungry", "curious", "shy",
      "patient", "clumsy", "generous", "grumpy", "lonely", "polite", "restless", "sleepy",
      "talkative", "thoughtful", "young", "brave", "absent-minded", "barefoot", "bearded",
      "bored", "busy", "drowsy", "eager", "famous", "forgetful", "gentle", "homesick", "humble",
      "idle", "jealous", "kindly", "lazy", "merry", "nervous", "proud", "puzzled", "rich",
      "silent", "suspicious", "tall", "weary", "wise", "worried" },
    { "gardener", "baker", "sailor", "teacher", "miller", "shepherd", "clerk", "painter", "cook",
      "postman", "tailor", "carpenter", "fisherman", "librarian", "musician", "nurse", "porter",
      "printer", "sculptor", "smith", "student", "surgeon", "traveller", "waiter", "weaver",
      "widow", "witness", "apprentice", "archer", "butcher", "captain", "driver", "farmer",
      "ferryman", "hunter", "juggler", "lawyer", "mason", "merchant", "neighbour", "notary",
      "pilot", "plumber", "potter", "soldier", "tinker", "tourist", "watchman" },
    { "carried", "painted", "repaired", "forgot", "hid", "bought", "sold", "found", "dropped",
      "examined", "polished", "borrowed", "admired", "wrapped", "lost", "weighed", "drew",
      "washed", "counted", "covered", "described", "displayed", "emptied", "fetched", "filled",
      "guarded", "inherited", "inspected", "kept", "lifted", "measured", "mended", "moved",
      "noticed", "opened", "packed", "praised", "pushed", "received", "returned", "sketched",
      "stole", "stored", "touched", "traded", "unpacked", "used", "wanted" },
    { "copper", "broken", "wooden", "heavy", "striped", "dusty", "crooked", "enormous", "faded",
      "folding", "fragile", "golden", "green", "hollow", "leather", "little", "marble", "mossy",
      "narrow", "oval", "painted", "plain", "purple", "rusty", "scratched", "shiny", "silver",
      "square", "stolen", "straw", "tin", "transparent", "velvet", "wet", "woollen", "worn",
      "yellow", "blue", "brass", "burnt", "carved", "cheap", "clay", "cracked", "crimson",
      "curious-looking", "dented", "paper" },
    { "lantern", "kettle", "basket", "umbrella", "violin", "ladder", "clock", "mirror", "barrel",
      "blanket", "bottle", "bucket", "candle", "carpet", "chair", "chest", "comb", "cup", "drum",
      "fence", "flag", "flute", "globe", "hammer", "hat", "key", "kite", "lamp", "map", "needle",
      "oar", "pillow", "plate", "purse", "rope", "saddle", "scarf", "shovel", "spoon", "statue",
      "stool", "sundial", "suitcase", "telescope", "towel", "trumpet", "vase", "wheelbarrow" },
    { "along the harbour", "behind the mill", "at the market", "near the old bridge",
      "in the attic", "by the river", "under the lime tree", "in the empty theatre",
      "at the station", "on the stairs", "beside the well", "in the workshop",
      "outside the chapel", "at the crossroads", "in the back garden", "on the terrace",
      "between two barns", "in the courtyard", "at the edge of the forest", "on the island",
      "in the cellar", "opposite the bank", "in a narrow lane", "on the hill", "at the fair",
      "in the waiting room", "near the quarry", "in the vineyard", "by the fountain",
      "at the ferry", "in the kitchen", "on the balcony", "behind the stage", "in the orchard",
      "near the lighthouse", "at the border", "in the stable", "on the roof", "by the fireplace",
      "in the tunnel", "at the tailor's", "on the jetty", "in the museum", "under the arcade",
      "at the inn", "in the greenhouse", "beside the railway", "on the meadow" },
    { "before noon", "after supper", "last winter", "on a rainy evening", "without a word",
      "as usual", "for a friend", "at midnight", "in a hurry", "during the storm",
      "on the first day of spring", "against all advice", "by mistake", "in secret",
      "long before sunrise", "to everyone's surprise", "out of habit", "on the way home",
      "in the end", "for no reason", "with great care", "twice in one week", "after the concert",
      "while it snowed", "in late autumn", "despite the heat", "just in time", "with a sigh",
      "for the second time", "every other day", "on a whim", "after a long talk",
      "in broad daylight", "at low tide", "before the guests came", "with some help",
      "once again", "in spite of the noise", "shortly after the fire", "on market day",
      "with a smile", "during the holidays", "after all", "in the thick fog",
      "at the last moment", "under protest", "for a bet", "when nobody looked" },
};

// one sentence of noise; a digit in a frame stands for a word of that list
static void noise_line(StrBuf *text, Rng *rng) {
    static const char *const frames[] = {
        "the 0 1 2 the 3 4 5 6", "6 the 1 2 the 3 4 and the 4 5",
        "5 the 0 1 2 the 3 4 of the 1", "nobody knew why the 0 1 2 the 4 5 6",
        "6 the 1 2 the 4 that the 0 1 2 5", "the 1 and the 0 1 2 the 3 4 6",
        "the 3 4 5 was the one that the 1 2 6", "while the 1 2 the 4 5, the 0 1 2 the 4 6",
    };
    size_t start = text->n;
    for (const char *f = frames[rng_below(rng, COUNTOF(frames))]; *f; f++) {
        if (*f >= '0' && *f <= '6') str_puts(text, noise_words[*f - '0'][rng_below(rng, 48)]);
        else str_add(text, f, 1);
    }
    text->p[start] -= 'a' - 'A';
    str_puts(text, ".");
}

typedef struct { char name[MH_NAMES][MH_NAME + 1]; int value, said; double depth; } Chain;

// names and values that no earlier chain has
static void mh_draw(Rng *rng, Chain *chain, int n) {
    for (int c = 0; c < n; c++) {
        bool fresh = false;
        while (!fresh) {
            fresh = true;
            chain[c].value = 10000 + (int)rng_below(rng, 90000);
            for (int b = 0; b < c; b++) fresh &= chain[b].value != chain[c].value;
        }
    }
    for (int i = 0; i < n * MH_NAMES; i++) {
        char *at = chain[i / MH_NAMES].name[i % MH_NAMES];
        bool fresh = false;
        while (!fresh) {
            fresh = true;
            for (int k = 0; k < MH_NAME; k++) at[k] = (char)('A' + rng_below(rng, 26));
            at[MH_NAME] = 0;
            for (int b = 0; b < i; b++)
                fresh &= strcmp(chain[b / MH_NAMES].name[b % MH_NAMES], at) != 0;
        }
    }
}

static void mh_statement(StrBuf *text, Chain *c, double depth) {
    const char *name = c->name[c->said];
    if (c->said == 0) str_fmt(text, "Let %s be %d.", name, c->value);
    else str_fmt(text, "Let %s be the same as %s.", name, c->name[c->said - 1]);
    c->depth += depth / MH_NAMES;
    c->said++;
}

static void mh_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    Rng asked = session_rng(seed, s->number, MH_ASKED);
    Rng noise = session_rng(seed, s->number, MH_NOISE);
    Rng order = session_rng(seed, s->number, MH_ORDER);
    int n_said = MH_NAMES * n_turns;
    Chain *chain = (Chain *)xrealloc(NULL, (size_t)n_turns * sizeof *chain);
    memset(chain, 0, (size_t)n_turns * sizeof *chain);
    mh_draw(&asked, chain, n_turns);
    int *whose = shuffled(&order, n_said);      // slot -> chain, modulo n_turns: chains interleave
    s->units = n_units;
    s->context.n = 0;
    for (int i = 0, slot = 0; i < n_units; i++) {
        if (i) str_puts(&s->context, "\n");
        if (slot < n_said && i == even_slot(slot, n_said, n_units))
            mh_statement(&s->context, &chain[whose[slot++] % n_turns], (i + 0.5) / n_units);
        else noise_line(&s->context, &noise);
    }
    session_turns(s, n_turns);
    for (int t = 0; t < n_turns; t++) {
        TaskTurn *turn = &s->turns[t];
        StrBuf names = { 0 };
        for (int k = 0; k < MH_NAMES; k++) {
            str_fmt(&names, "%s%s", k ? ", " : "", chain[t].name[k]);
            turn_label(turn, chain[t].name[k]);
        }
        turn_set(turn,
                 text_fmt("Which variables have the value %d, whether given directly or taken over "
                          "from another variable? Write their names only, in the order of the "
                          "text, separated by commas.\nThe variables:",
                          chain[t].value),
                 names.p, chain[t].depth);
    }
    free(chain);
    free(whose);
}

// 5,500 lines are the 473 kB that a record of the released data holds
const Task task_retr_mh = {
    "retr_mh", "scbench_vt", "retr.string",
    "name all variables that got one value through a chain of assignments", 5, 5500, "lines",
    { { "mh", 30, SCORE_NAMES } }, 1,
    "In the lines below, variables are set now and then: to a number, or to the value of another "
    "variable. Questions about the variables follow.\n\n",
    "\n\n", 2 * MH_NAMES, mh_make, NULL, NULL,
};

// ---------------------------------------------------------------------------
// math_find: a list of integers of up to three digits; each turn asks for one order statistic.
// A number that occurs several times counts once among the largest and smallest. The largest and
// smallest are drawn with gaps, so that no rank can be guessed from another one, and the median
// has as many numbers below as above: it is an integer at every length.

enum { MATH_KINDS = 61, MATH_RANKS = 30 };      // kinds of questions; ranks from either end

// kind 0 .. MATH_KINDS-1 -> rank: k the k-th largest, -k the k-th smallest, 0 the median
static int math_rank(int kind, bool low_third) {
    static const int first[] = { 1, -1, 2, -2, 3, 0, -3 };
    if (kind >= 7) return (4 + (kind - 7) / 2) * (kind % 2 ? 1 : -1);
    return low_third && first[kind] % 3 == 0 ? -first[kind] : first[kind];
}

static char *math_question(int rank) {
    static const char *const word[] = { "", "", "second ", "third " };
    static const char *const ending[] = { "th", "st", "nd", "rd" };
    if (!rank)
        return text_dup("Let every occurrence of a number count.\nThe median of the list is");
    int k = abs(rank), last = k / 10 % 10 == 1 || k % 10 > 3 ? 0 : k % 10;
    char place[16];
    if (k <= 3) snprintf(place, sizeof place, "%s", word[k]);
    else snprintf(place, sizeof place, "%d%s ", k, ending[last]);
    return text_fmt("Count a number that occurs several times once.\n"
                    "The %s%s number in the list is",
                    place, rank > 0 ? "largest" : "smallest");
}

typedef struct {
    int n_ranks;                // planted from either end
    int value[2 * MATH_RANKS + 1];      // by rank + MATH_RANKS
    int at[2 * MATH_RANKS + 1];         // cell of the list, -1 while it has none
} MathPlan;

// ranks of the first n_kinds kinds, values with random gaps, the median between them
static void math_plan(MathPlan *p, Rng *rng, int n_kinds) {
    p->n_ranks = 3;
    for (int k = 0; k < n_kinds; k++)
        if (abs(math_rank(k, false)) > p->n_ranks) p->n_ranks = abs(math_rank(k, false));
    int gap = 300 / p->n_ranks, high = 1000, low = -1;
    for (int k = 1; k <= p->n_ranks; k++) {
        p->value[MATH_RANKS + k] = high -= 1 + (int)rng_below(rng, (uint64_t)gap);
        p->value[MATH_RANKS - k] = low += 1 + (int)rng_below(rng, (uint64_t)gap);
    }
    p->value[MATH_RANKS] = 400 + (int)rng_below(rng, 200);
    for (size_t i = 0; i < COUNTOF(p->at); i++) p->at[i] = -1;
}

// writes v to a random free cell of list[from .. to), which has one, and returns the cell
static int math_put(int64_t *list, int from, int to, int v, Rng *rng) {
    int at;
    do at = from + (int)rng_below(rng, (uint64_t)(to - from));
    while (list[at] >= 0);
    list[at] = v;
    return at;
}

// everything but the filling: asked numbers at their slots, the others anywhere, then some repeats,
// always behind the first occurrence
static void math_plant(TaskSession *s, MathPlan *p, const int *turn_rank, Rng *order) {
    int n = s->units;
    int64_t *list = s->numbers;
    int *turn_slot = shuffled(order, s->n_turns);
    for (int i = 0; i < n; i++) list[i] = -1;
    for (int t = 0; t < s->n_turns; t++) {
        int r = MATH_RANKS + turn_rank[t], slot = even_slot(turn_slot[t], s->n_turns, n);
        if (p->at[r] < 0) list[p->at[r] = slot] = p->value[r];
    }
    for (int r = MATH_RANKS - p->n_ranks; r <= MATH_RANKS + p->n_ranks; r++)
        if (p->at[r] < 0) p->at[r] = math_put(list, 0, n / 2, p->value[r], order);
    for (int k = -2; k <= 2; k++) {             // an even list has the median twice
        int r = MATH_RANKS + k;
        if (k || n % 2 == 0) math_put(list, p->at[r] + 1, n, p->value[r], order);
    }
    free(turn_slot);
}

// pairs of one number below and one above the median, within the planted extremes
static void math_fill(TaskSession *s, const MathPlan *p, Rng *others) {
    int low = p->value[MATH_RANKS - p->n_ranks] + 1, mid = p->value[MATH_RANKS];
    int high = p->value[MATH_RANKS + p->n_ranks];
    bool above = false;
    for (int i = 0, k = 0; i < s->units; i++) {
        if (s->numbers[i] >= 0) continue;
        above = k++ % 2 ? !above : rng_below(others, 2);
        s->numbers[i] = above ? mid + 1 + (int)rng_below(others, (uint64_t)(high - mid - 1))
                              : low + (int)rng_below(others, (uint64_t)(mid - low));
    }
}

static void math_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    Rng asked = session_rng(seed, s->number, MATH_ASKED);
    Rng others = session_rng(seed, s->number, MATH_OTHERS);
    Rng order = session_rng(seed, s->number, MATH_ORDER);
    int n_kinds = n_turns < 6 ? 6 : n_turns < MATH_KINDS ? n_turns : MATH_KINDS;
    MathPlan plan;
    math_plan(&plan, &asked, n_kinds);
    bool low_third = rng_below(&asked, 2);
    int *kind = shuffled(&asked, n_kinds);
    int *turn_rank = (int *)xrealloc(NULL, (size_t)n_turns * sizeof *turn_rank);
    for (int t = 0; t < n_turns; t++) turn_rank[t] = math_rank(kind[t % n_kinds], low_third);
    session_turns(s, n_turns);
    s->units = s->n_numbers = n_units;
    s->numbers = (int64_t *)xrealloc(NULL, (size_t)n_units * sizeof *s->numbers);
    math_plant(s, &plan, turn_rank, &order);
    math_fill(s, &plan, &others);
    s->context.n = 0;
    for (int i = 0; i < n_units; i++)
        str_fmt(&s->context, "%s%d", i ? ", " : "[", (int)s->numbers[i]);
    str_puts(&s->context, "]");
    for (int t = 0; t < n_turns; t++) {
        int r = MATH_RANKS + turn_rank[t];
        turn_set(&s->turns[t], math_question(turn_rank[t]), text_fmt("%d", plan.value[r]),
                 (plan.at[r] + 0.5) / n_units);
        turn_label(&s->turns[t], s->turns[t].answer);
    }
    free(kind);
    free(turn_rank);
}

const Task task_math_find = {
    "math_find", "scbench_mf", "global", "find extremes and the median of a list of integers", 6,
    30000, "numbers", { { "math", 20, SCORE_NUMBER } }, 1,
    "Here is a list of integers; questions about the whole list follow.\n\n",
    "\n\n", 16, math_make, NULL, NULL,
};
