// icl.c - many-shot learning in the context: solved exercises of one kind, then exercises to solve.
//
// Three kinds, one per session, in the manner of the BIG-bench tasks that the paper took
// (Srivastava et al. 2022): date arithmetic, seven shuffled objects, errors in translations from
// German. Every exercise is made from its solution; no other option fits.
#include "tasks.h"

enum { ICL_ASKED = 64, ICL_SHOTS };             // streams of session_rng

enum { MAX_OPTIONS = 7, OPTION_CHARS = 80 };

typedef struct {
    StrBuf text;                                // of the exercise without its options
    char option[MAX_OPTIONS][OPTION_CHARS];     // the right one first until options_mix
    int n_options, answer;
} Item;

#define PICK(rng, list) ((list)[rng_below(rng, COUNTOF(list))])
static int below(Rng *rng, int n) { return (int)rng_below(rng, (uint64_t)n); }

// n different numbers below m
static void choose(Rng *rng, int *a, int n, int m) {
    for (int i = 0; i < n; i++) {
        bool fresh = false;
        while (!fresh) {
            a[i] = below(rng, m);
            fresh = true;
            for (int j = 0; j < i; j++) fresh &= a[j] != a[i];
        }
    }
}

static void put_capital(StrBuf *text, const char *s) {
    size_t at = text->n;
    str_puts(text, s);
    if (text->p[at] >= 'a' && text->p[at] <= 'z') text->p[at] -= 'a' - 'A';
}

// appends the option unless the item has it; returns whether it did
__attribute__((format(printf, 2, 3)))
static bool option_add(Item *it, const char *fmt, ...) {
    char *at = it->option[it->n_options];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(at, OPTION_CHARS, fmt, ap);
    va_end(ap);
    for (int i = 0; i < it->n_options; i++)
        if (!strcmp(it->option[i], at)) return false;
    it->n_options++;
    return true;
}

static void options_mix(Item *it, Rng *rng) {
    it->answer = 0;
    for (int i = it->n_options - 1; i > 0; i--) {
        int j = below(rng, i + 1);
        char t[OPTION_CHARS];
        memcpy(t, it->option[i], sizeof t);
        memcpy(it->option[i], it->option[j], sizeof t);
        memcpy(it->option[j], t, sizeof t);
        it->answer = it->answer == i ? j : it->answer == j ? i : it->answer;
    }
}

static const char *const given_names[] = {
    "Ada", "Anton", "Beatrix", "Bruno", "Carla", "Casper", "Delia", "Dora", "Edgar", "Elsa",
    "Emil", "Fanny", "Felix", "Frieda", "Georg", "Greta", "Hanna", "Hugo", "Ida", "Igor", "Irma",
    "Jakob", "Jonas", "Julia", "Karl", "Klara", "Konrad", "Laura", "Leon", "Lotte", "Ludwig",
    "Magda", "Marius", "Marta", "Moritz", "Nadia", "Nils", "Nora", "Olga", "Oskar", "Otto",
    "Paula", "Petra", "Philipp", "Quentin", "Rosa", "Rudolf", "Ruth", "Samuel", "Sofia", "Stefan",
    "Sven", "Tilda", "Tobias", "Ursula", "Valentin", "Vera", "Viktor", "Wanda", "Xenia", "Yvonne",
    "Zacharias",
};
static const char *const surnames[] = {
    "Albrecht", "Bergmann", "Claasen", "Dietrich", "Ebert", "Fuchs", "Gruber", "Hartwig", "Imhof",
    "Jansen", "Kessler", "Lindner", "Meurer", "Niemann", "Ostermann", "Pfeiffer", "Quandt",
    "Reuter", "Sandmann", "Tietz", "Uhlig", "Vogt", "Wagner", "Ziegler", "Arnold", "Bachmann",
    "Dorn", "Engel", "Falk", "Gerlach", "Holm", "Jost", "Krause", "Lorenz", "Mertens", "Noll",
    "Petersen", "Rasch", "Seidel", "Thoma",
};

// ---------------------------------------------------------------------------
// Date arithmetic: a date, an amount of time, the date on the other side of it.

static const char *const months[] = {
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
};
static const char *const weekdays[] = { "Monday", "Tuesday", "Wednesday", "Thursday", "Friday",
                                        "Saturday", "Sunday" };

typedef struct { int y, m, d; } Date;           // m and d from 1

static int month_days(int y, int m) {
    static const int days[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    return days[m - 1] + (m == 2 && y % 4 == 0 && (y % 100 || y % 400 == 0));
}

static Date date_days(Date t, int n) {          // n days later, or earlier
    for (; n > 0; n--)
        if (++t.d > month_days(t.y, t.m)) {
            t.d = 1;
            if (++t.m > 12) t.m = 1, t.y++;
        }
    for (; n < 0; n++)
        if (--t.d < 1) {
            if (--t.m < 1) t.m = 12, t.y--;
            t.d = month_days(t.y, t.m);
        }
    return t;
}

static Date date_months(Date t, int n) {        // the day is cut to the month's last
    int m = t.y * 12 + t.m - 1 + n;
    t.y = m / 12;
    t.m = m % 12 + 1;
    if (t.d > month_days(t.y, t.m)) t.d = month_days(t.y, t.m);
    return t;
}

static int date_weekday(Date t) {               // 0 Monday; 1 January 1900 was one
    int days = t.d - 1;
    for (int y = 1900; y < t.y; y++) days += 337 + month_days(y, 2);
    for (int m = 1; m < t.m; m++) days += month_days(t.y, m);
    return days % 7;
}

// one way of saying a date, seeded; returns the date meant
static Date date_say(StrBuf *out, Rng *rng) {
    Date t;
    t.y = 1950 + below(rng, 100);
    t.m = 1 + below(rng, 12);
    t.d = 1 + below(rng, month_days(t.y, t.m));
    int way = below(rng, 12);
    if (way == 0) {
        t.d = month_days(t.y, t.m);
        str_fmt(out, "the last day of %s %d", months[t.m - 1], t.y);
    } else if (way == 1) {
        str_fmt(out, "the day after %d %s %d", t.d, months[t.m - 1], t.y);
        t = date_days(t, 1);
    } else if (way == 2) {
        str_fmt(out, "the day before %d %s %d", t.d, months[t.m - 1], t.y);
        t = date_days(t, -1);
    } else if (way == 3) {
        t.d = 1 + below(rng, 7);
        str_fmt(out, "the first %s of %s %d", weekdays[date_weekday(t)], months[t.m - 1], t.y);
    } else if (way < 8) str_fmt(out, "%d %s %d", t.d, months[t.m - 1], t.y);
    else if (way < 10) str_fmt(out, "%s %d, %d", months[t.m - 1], t.d, t.y);
    else str_fmt(out, "%s, %d %s %d", weekdays[date_weekday(t)], t.d, months[t.m - 1], t.y);
    return t;
}

typedef struct { int n, unit; } Span;           // unit: 0 days, 1 weeks, 2 months, 3 years

// what a month after the end of a month is depends on whom one asks: days and weeks only
static Span span_draw(Rng *rng, Date from) {
    Span s = { 0, below(rng, from.d > 27 ? 2 : 4) };
    s.n = 2 + below(rng, s.unit == 0 ? 79 : s.unit == 1 ? 19 : 10);
    return s;
}
static Date span_move(Date from, Span s, int sign) {
    if (s.unit < 2) return date_days(from, sign * s.n * (s.unit ? 7 : 1));
    return date_months(from, sign * s.n * (s.unit == 3 ? 12 : 1));
}

static bool option_date(Item *it, Date t) {
    return option_add(it, "%d-%02d-%02d", t.y, t.m, t.d);
}

static void date_options(Item *it, Rng *rng, Date from, Date right, Span span, int sign, int n) {
    static const int near[] = { 1, -1, 2, -2, 7, -7, 10, -10, 30, -30 };
    option_date(it, right);
    while (it->n_options < n) {
        int kind = below(rng, 8);
        if (kind == 0) option_date(it, span_move(from, span, -sign));
        else if (kind == 1) option_date(it, from);
        else if (kind == 2) option_date(it, date_months(right, below(rng, 2) ? 1 : -1));
        else if (kind == 3) option_date(it, date_months(right, below(rng, 2) ? 12 : -12));
        else option_date(it, date_days(right, PICK(rng, near)));
    }
}

static void date_item(Item *it, Rng *rng, bool wide) {
    static const char *const events[][2] = {    // what somebody did, what followed
        { "ordered a bicycle", "the bicycle arrived" },
        { "sent a letter", "the reply came" },
        { "planted beans", "the first bean sprouted" },
        { "lent out a book", "the book was given back" },
        { "handed in a report", "the report was marked" },
        { "bought a lottery ticket", "the draw took place" },
        { "booked a flight", "the plane took off" },
        { "sowed lettuce", "the lettuce was ripe" },
        { "broke a leg", "the plaster came off" },
        { "started a course", "the exam took place" },
        { "signed a contract", "the work began" },
        { "asked for a passport", "the passport was ready" },
        { "dropped a watch", "the watch was repaired" },
        { "asked for a loan", "the bank agreed" },
        { "sold a house", "the money came in" },
        { "entered a race", "the race was held" },
        { "reported a leak", "the plumber came" },
        { "wrote a complaint", "the council answered" },
        { "found an egg", "the chick hatched" },
        { "applied for a job", "the interview took place" },
        { "took in a stray cat", "the owner called" },
        { "began to knit a scarf", "the scarf was done" },
        { "adopted a puppy", "the puppy obeyed" },
        { "lost a ring", "the ring turned up" },
    };
    static const char *const units[] = { "days", "weeks", "months", "years" };
    const char *const *e = PICK(rng, events);
    const char *name = PICK(rng, given_names), *surname = PICK(rng, surnames);
    int frame = below(rng, 4), sign = frame < 2 ? 1 : -1;
    StrBuf when = { 0 }, ago = { 0 }, *text = &it->text;
    Date from = date_say(&when, rng);
    Span span = span_draw(rng, from);
    str_fmt(&ago, "%d %s", span.n, units[span.unit]);
    if (frame == 0)
        str_fmt(text, "%s %s on %s, and %s %s later. When did %s %s see that?", name, e[0], when.p,
                e[1], ago.p, name, surname);
    else if (frame == 1)
        str_fmt(text, "On %s %s %s. Then, %s later, %s. When did %s %s hear that?", when.p, name,
                e[0], ago.p, e[1], name, surname);
    else if (frame == 2) {
        put_capital(text, e[1]);
        str_fmt(text, " on %s, %s after %s %s %s. When was the earlier event?", when.p, ago.p, name,
                surname, e[0]);
    } else
        str_fmt(text, "On %s %s. That %s %s %s was %s earlier. On what date?", when.p, e[1], name,
                surname, e[0], ago.p);
    Date right = span_move(from, span, sign);
    date_options(it, rng, from, right, span, sign, wide ? 5 + below(rng, 2) : 4);
    free(when.p);
    free(ago.p);
}

// ---------------------------------------------------------------------------
// Seven people with one thing each, who swap pairwise.

enum { PEOPLE = 7 };

static void objects_item(Item *it, Rng *rng, bool wide) {
    static const char *const looks[] = { "red", "blue", "green", "yellow", "old", "new",
                                         "small", "big", "wooden", "silver", "broken", "striped" };
    static const char *const things[] = {
        "kite", "drum", "lamp", "ball", "book", "hat", "scarf", "clock", "vase", "spoon", "flute",
        "basket", "mirror", "candle", "kettle", "ladder", "pillow", "teapot", "bucket", "globe",
        "whistle", "puzzle", "compass", "helmet", "wallet", "blanket", "hammer", "trumpet",
        "bell", "camera", "comb", "saddle", "map", "puppet", "jar", "key", "ring", "tray",
        "sledge", "violin",
    };
    static const char *const swaps[][3] = {
        { "", " and ", " swap." }, { "Then ", " trades with ", "." },
        { "After that ", " and ", " change over." }, { "", " makes an exchange with ", "." },
        { "Next ", " and ", " swap things." },
    };
    const char *name[PEOPLE];
    int who[PEOPLE], what[PEOPLE], has[PEOPLE], option[PEOPLE];     // has: person -> thing
    char thing[PEOPLE][32];
    StrBuf *text = &it->text;
    choose(rng, who, PEOPLE, COUNTOF(given_names));
    choose(rng, what, PEOPLE, COUNTOF(things));
    for (int i = 0; i < PEOPLE; i++) {
        name[i] = given_names[who[i]];
        has[i] = i;
        snprintf(thing[i], sizeof thing[i], "the %s %s", PICK(rng, looks), things[what[i]]);
        str_fmt(text, "%s%s %s%s", i == 0 ? "" : i < PEOPLE - 1 ? ", " : " and ", name[i],
                i == 0 ? "has " : "", thing[i]);
    }
    str_puts(text, ".");
    for (int n = 5 + below(rng, 5); n > 0; n--) {
        int pair[2];
        choose(rng, pair, 2, PEOPLE);
        const char *const *say = PICK(rng, swaps);
        str_fmt(text, " %s%s%s%s%s", say[0], name[pair[0]], say[1], name[pair[1]], say[2]);
        int t = has[pair[0]];
        has[pair[0]] = has[pair[1]];
        has[pair[1]] = t;
    }
    int asked = below(rng, PEOPLE);
    str_fmt(text, " What does %s have now?", name[asked]);
    option_add(it, "%s", thing[has[asked]]);
    choose(rng, option, PEOPLE, PEOPLE);
    for (int i = 0; it->n_options < (wide ? PEOPLE : 4); i++)
        option_add(it, "%s", thing[option[i]]);
}

// ---------------------------------------------------------------------------
// A German sentence and its translation, in which one thing is wrong. Options name the kind of the
// error and the German words that it would concern.

typedef struct { const char *de, *en; } Word;
typedef struct { const char *de, *en, *de_done, *en_done; } Verb;   // past tense, past participle

static const char *const cities[] = {
    "Aachen", "Augsburg", "Basel", "Berlin", "Bern", "Bonn", "Bremen", "Celle", "Chemnitz",
    "Cottbus", "Dessau", "Dortmund", "Dresden", "Emden", "Erfurt", "Essen", "Freiburg", "Gotha",
    "Graz", "Halle", "Hamburg", "Jena", "Kassel", "Kiel", "Leipzig", "Linz", "Mainz", "Passau",
    "Potsdam", "Rostock", "Salzburg", "Schwerin", "Stuttgart", "Trier", "Ulm", "Weimar",
};
static const Word adjectives[] = {              // as they stand after a number
    { "rote", "red" }, { "blaue", "blue" }, { "grüne", "green" }, { "gelbe", "yellow" },
    { "graue", "grey" }, { "braune", "brown" }, { "hölzerne", "wooden" }, { "eiserne", "iron" },
    { "silberne", "silver" }, { "runde", "round" }, { "eckige", "angular" },
    { "gestreifte", "striped" }, { "französische", "French" }, { "dänische", "Danish" },
    { "polnische", "Polish" }, { "spanische", "Spanish" }, { "gläserne", "glass" },
    { "lederne", "leather" }, { "vergoldete", "gilded" }, { "bemalte", "painted" },
    { "staubige", "dusty" }, { "rostige", "rusty" }, { "zerbrochene", "broken" },
    { "geschnitzte", "carved" },
};
static const Word objects[] = {
    { "Boote", "boats" }, { "Lampen", "lamps" }, { "Stühle", "chairs" }, { "Uhren", "clocks" },
    { "Bilder", "pictures" }, { "Koffer", "suitcases" }, { "Flaschen", "bottles" },
    { "Teller", "plates" }, { "Schlüssel", "keys" }, { "Spiegel", "mirrors" }, { "Hüte", "hats" },
    { "Trommeln", "drums" }, { "Glocken", "bells" }, { "Fahnen", "flags" }, { "Kisten", "crates" },
    { "Löffel", "spoons" }, { "Messer", "knives" }, { "Masken", "masks" }, { "Münzen", "coins" },
    { "Ringe", "rings" }, { "Teppiche", "carpets" }, { "Türen", "doors" }, { "Vasen", "vases" },
    { "Zelte", "tents" }, { "Schuhe", "shoes" }, { "Puppen", "dolls" }, { "Landkarten", "maps" },
    { "Körbe", "baskets" }, { "Leitern", "ladders" }, { "Fässer", "barrels" },
    { "Briefmarken", "stamps" }, { "Knöpfe", "buttons" },
};
static const Word places[] = {
    { "der Hafen", "the harbour" }, { "die Brücke", "the bridge" }, { "das Tor", "the gate" },
    { "der Garten", "the garden" }, { "die Straße", "the street" }, { "der Markt", "the market" },
    { "die Bäckerei", "the bakery" }, { "der Saal", "the hall" }, { "der Keller", "the cellar" },
    { "die Werkstatt", "the workshop" }, { "das Zimmer", "the room" }, { "der Weg", "the path" },
    { "der Platz", "the square" }, { "die Kirche", "the church" }, { "das Museum", "the museum" },
    { "die Bibliothek", "the library" }, { "der Bahnhof", "the station" },
    { "die Höhle", "the cave" }, { "der Turm", "the tower" }, { "das Schloss", "the castle" },
    { "das Schwimmbad", "the pool" }, { "der Flughafen", "the airport" },
    { "die Fabrik", "the factory" }, { "das Theater", "the theatre" },
    { "die Schule", "the school" }, { "der Wald", "the forest" }, { "die Insel", "the island" },
    { "der Tunnel", "the tunnel" }, { "das Dorf", "the village" }, { "die Küche", "the kitchen" },
    { "der Hof", "the courtyard" }, { "das Dach", "the roof" }, { "die Treppe", "the staircase" },
    { "der Stall", "the stable" }, { "die Mühle", "the mill" }, { "das Gasthaus", "the inn" },
    { "der Laden", "the shop" }, { "die Garage", "the garage" }, { "das Lager", "the warehouse" },
    { "der Park", "the park" },
};
static const Word states[] = {                  // opposites are neighbours
    { "offen", "open" }, { "geschlossen", "closed" }, { "leer", "empty" }, { "voll", "full" },
    { "hell", "bright" }, { "dunkel", "dark" }, { "warm", "warm" }, { "kalt", "cold" },
    { "laut", "noisy" }, { "still", "quiet" }, { "nass", "wet" }, { "trocken", "dry" },
    { "sauber", "clean" }, { "schmutzig", "dirty" }, { "sicher", "safe" },
    { "gefährlich", "dangerous" }, { "schön", "beautiful" }, { "hässlich", "ugly" },
};
static const Word joins[] = {
    { "weil", "because" }, { "obwohl", "although" }, { "solange", "as long as" },
    { "während", "while" }, { "bevor", "before" }, { "sobald", "as soon as" },
};
static const Word manners[] = {                 // what a translation can leave out
    { "am frühen Morgen", "early in the morning" }, { "trotz des Regens", "despite the rain" },
    { "nach langer Suche", "after a long search" }, { "ohne fremde Hilfe", "without any help" },
    { "vor dem Mittagessen", "before lunch" }, { "mit großer Geduld", "with great patience" },
    { "auf dem Heimweg", "on the way home" }, { "während der Ferien", "during the holidays" },
    { "aus reiner Neugier", "out of pure curiosity" }, { "nach dem Konzert", "after the concert" },
    { "unter den Augen der Nachbarn", "under the eyes of the neighbours" },
    { "gegen den Rat der Ärzte", "against the advice of the doctors" },
    { "im Auftrag der Universität", "on behalf of the university" },
    { "an einem Feiertag", "on a public holiday" },
    { "mit Tränen in den Augen", "with tears in the eyes" },
    { "kurz vor Mitternacht", "shortly before midnight" }, { "bei dichtem Nebel", "in thick fog" },
    { "zur Freude der Kinder", "to the delight of the children" },
    { "mit der linken Hand", "with the left hand" }, { "auf einer Auktion", "at an auction" },
    { "im Schein einer Kerze", "by the light of a candle" },
    { "ohne ein einziges Wort", "without a single word" },
    { "im Schatten eines Baumes", "in the shade of a tree" },
    { "zum Geburtstag der Tante", "for the aunt's birthday" },
};
static const Verb verbs[] = {
    { "kaufte", "bought", "gekauft", "bought" }, { "fand", "found", "gefunden", "found" },
    { "stahl", "stole", "gestohlen", "stolen" }, { "zählte", "counted", "gezählt", "counted" },
    { "reparierte", "repaired", "repariert", "repaired" },
    { "fotografierte", "photographed", "fotografiert", "photographed" },
    { "verschenkte", "gave away", "verschenkt", "given away" },
    { "versteckte", "hid", "versteckt", "hidden" },
    { "reinigte", "cleaned", "gereinigt", "cleaned" },
    { "bestellte", "ordered", "bestellt", "ordered" },
    { "zeichnete", "drew", "gezeichnet", "drawn" },
    { "sortierte", "sorted", "sortiert", "sorted" }, { "prüfte", "checked", "geprüft", "checked" },
    { "verkaufte", "sold", "verkauft", "sold" },
};

enum { ERR_NAME, ERR_NUMBER, ERR_ADJECTIVE, ERR_OPPOSITE, ERR_FACT, ERR_OMISSION, N_ERRORS };

// what a sentence says; the translation is of a copy with one thing changed
typedef struct {
    int frame, count;
    bool negated;
    const char *given, *surname, *city;
    const Verb *verb;
    const Word *adjective, *object, *join, *place, *state;
    const Word *manner;                         // NULL: left out
} Saying;

static Saying saying_draw(Rng *rng) {
    Saying s;
    s.frame = below(rng, 4);
    s.count = 2 + below(rng, 97);
    s.negated = below(rng, 2);
    s.given = PICK(rng, given_names);
    s.surname = PICK(rng, surnames);
    s.city = PICK(rng, cities);
    s.verb = &PICK(rng, verbs);
    s.adjective = &PICK(rng, adjectives);
    s.object = &PICK(rng, objects);
    s.join = &PICK(rng, joins);
    s.place = &PICK(rng, places);
    s.state = &PICK(rng, states);
    s.manner = &PICK(rng, manners);
    return s;
}

static void say_german(StrBuf *out, const Saying *s) {
    StrBuf who = { 0 }, things = { 0 };
    str_fmt(&who, "%s %s", s->given, s->surname);
    str_fmt(&things, "%d %s %s", s->count, s->adjective->de, s->object->de);
    const char *did = s->verb->de, *manner = s->manner->de, *city = s->city;
    if (s->frame == 0) str_fmt(out, "%s %s %s in %s %s", who.p, did, manner, city, things.p);
    else if (s->frame == 1)
        str_fmt(out, "In %s wurden %s %s von %s %s", city, manner, things.p, who.p,
                s->verb->de_done);
    else if (s->frame == 2) {
        put_capital(out, manner);
        str_fmt(out, " %s %s in %s %s", did, who.p, city, things.p);
    } else str_fmt(out, "%s %s %s %s in %s", things.p, did, who.p, manner, city);
    str_fmt(out, ", %s %s %s%s war.", s->join->de, s->place->de, s->negated ? "nicht " : "",
            s->state->de);
    free(who.p);
    free(things.p);
}

static void say_english(StrBuf *out, const Saying *s) {
    StrBuf who = { 0 }, things = { 0 };
    str_fmt(&who, "%s %s", s->given, s->surname);
    str_fmt(&things, "%d %s %s", s->count, s->adjective->en, s->object->en);
    const char *did = s->verb->en, *city = s->city;
    const char *gap = s->manner ? " " : "", *manner = s->manner ? s->manner->en : "";
    if (s->frame == 1)
        str_fmt(out, "In %s, %s were %s by %s%s%s", city, things.p, s->verb->en_done, who.p, gap,
                manner);
    else if (s->frame == 2 && s->manner) {
        put_capital(out, manner);
        str_fmt(out, ", %s %s %s in %s", who.p, did, things.p, city);
    } else str_fmt(out, "%s %s %s in %s%s%s", who.p, did, things.p, city, gap, manner);
    str_fmt(out, " %s %s was %s%s.", s->join->en, s->place->en, s->negated ? "not " : "",
            s->state->en);
    free(who.p);
    free(things.p);
}

// other: the second of the two things that a wrong name or fact can befall
static void option_error(Item *it, const Saying *s, int error, bool other) {
    switch (error) {
    case ERR_NAME: option_add(it, "name: %s", other ? s->city : s->surname); break;
    case ERR_NUMBER: option_add(it, "number: %d", s->count); break;
    case ERR_ADJECTIVE: option_add(it, "adjective: %s", s->adjective->de); break;
    case ERR_OPPOSITE:
        option_add(it, "opposite: %s%s", s->negated ? "nicht " : "", s->state->de);
        break;
    case ERR_FACT: option_add(it, "fact: %s", other ? s->place->de : s->object->de); break;
    case ERR_OMISSION: option_add(it, "omission: %s", s->manner->de); break;
    }
}

static Saying saying_spoil(const Saying *right, int error, bool other, Rng *rng) {
    Saying s = *right, n;
    do n = saying_draw(rng);                    // until everything that can be replaced differs
    while (n.surname == s.surname || n.city == s.city || n.count == s.count ||
           n.adjective == s.adjective || n.object == s.object || n.place == s.place);
    switch (error) {
    case ERR_NAME:
        if (other) s.city = n.city;
        else s.surname = n.surname;
        break;
    case ERR_NUMBER: s.count = n.count; break;
    case ERR_ADJECTIVE: s.adjective = n.adjective; break;
    case ERR_OPPOSITE:
        if (other) s.negated = !s.negated;
        else s.state = &states[(s.state - states) ^ 1];
        break;
    case ERR_FACT:
        if (other) s.place = n.place;
        else s.object = n.object;
        break;
    case ERR_OMISSION: s.manner = NULL; break;
    }
    return s;
}

static void translation_item(Item *it, Rng *rng, bool wide) {
    int error[N_ERRORS];                        // the first one is made
    bool other = below(rng, 2);
    Saying right = saying_draw(rng);
    choose(rng, error, N_ERRORS, N_ERRORS);
    Saying wrong = saying_spoil(&right, error[0], other, rng);
    str_puts(&it->text, "German: ");
    say_german(&it->text, &right);
    str_puts(&it->text, "\nEnglish: ");
    say_english(&it->text, &wrong);
    str_puts(&it->text, "\nWrong part:");
    for (int i = 0; i < (wide ? N_ERRORS : 4); i++)
        option_error(it, &right, error[i], i ? below(rng, 2) : other);
}

// ---------------------------------------------------------------------------
// Sessions

typedef struct { const char *name; void (*make)(Item *it, Rng *rng, bool wide); } Family;

static const Family families[] = {
    { "date_arithmetic", date_item },
    { "shuffled_objects", objects_item },
    { "translation_errors", translation_item },
};

// the next exercise of the stream, ending where its answer goes; returns the answer
static char item_put(StrBuf *out, const Family *f, Rng *rng, bool wide) {
    Item it;
    memset(&it, 0, sizeof it);
    f->make(&it, rng, wide);
    options_mix(&it, rng);
    str_puts(out, it.text.p);
    for (int i = 0; i < it.n_options; i++) str_fmt(out, "\n(%c) %s", 'A' + i, it.option[i]);
    str_puts(out, "\nAnswer:");
    free(it.text.p);
    return (char)('A' + it.answer);
}

static void icl_fill(TaskSession *s, uint64_t seed, int n_turns, int n_units, bool wide) {
    Rng asked = session_rng(seed, s->number, ICL_ASKED);
    Rng shots = session_rng(seed, s->number, ICL_SHOTS);
    const Family *f = &families[(mix64(seed) % 3 + (uint64_t)s->number) % COUNTOF(families)];
    s->family = text_dup(f->name);
    s->units = n_units;
    s->context.n = 0;
    for (int i = 0; i < n_units; i++) {
        char answer = item_put(&s->context, f, &shots, wide);
        str_fmt(&s->context, " %c%s", answer, i < n_units - 1 ? "\n\n" : "");
    }
    session_turns(s, n_turns);
    for (int t = 0; t < n_turns; t++) {
        TaskTurn *turn = &s->turns[t];
        StrBuf question = { 0 };
        turn->answer = text_fmt("%c", item_put(&question, f, &asked, wide));
        turn->input = question.p;
        turn->question = text_dup(question.p);
        turn->depth = NAN;                      // the answer stands nowhere
        turn_label(turn, turn->answer);
    }
}

static void icl_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    icl_fill(s, seed, n_turns, n_units, false);
}
static void icl_wide_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    icl_fill(s, seed, n_turns, n_units, true);
}

static const char icl_instruction[] =
    "Below are solved exercises of one kind. Each has options, and its answer is one letter. Solve "
    "the exercises that follow them in the same way.\n\n";

const Task task_icl = {
    "icl", "scbench_many_shot", "global", "choose the right option after many solved exercises", 5,
    150, "exercises", { { "icl", 10, SCORE_LETTER } }, 1, icl_instruction, "\n\n", 1, icl_make,
    NULL, NULL,
};

const Task task_icl_wide = {
    "icl", "scbench_many_shot", "global", "the same with 5 to 7 options", 5, 150, "exercises",
    { { "icl", 10, SCORE_LETTER } }, 1, icl_instruction, "\n\n", 1, icl_wide_make, NULL, NULL,
};
