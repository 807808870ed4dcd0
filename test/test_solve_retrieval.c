// test_solve_retrieval.c - reads context and question of the list tasks and of icl as a person
// would, finds the answer in the text alone and demands that exactly one fits. Knows no generator.
#include "tasks/tasks.h"
#include <ctype.h>
#include <jansson.h>

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_solve_retrieval.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

enum { SEEDS = 200, WORD = 96 };

// the n-th quoted string of the text
static bool quoted(const char *text, int n, char out[WORD]) {
    for (; (text = strchr(text, '"')); text = strchr(text + 1, '"') + 1) {
        if (n-- == 0) return sscanf(text, "\"%95[^\"]\"", out) == 1;
    }
    return false;
}

static char *only(int fitting, const char *answer) {
    return fitting == 1 ? text_dup(answer) : NULL;
}

// ---------------------------------------------------------------------------
// Readers: the answer, or NULL where none or several fit

static char *read_json(const char *text, const char *question) {
    char key[WORD];
    json_error_t je;
    json_t *table = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    const char *value =
        quoted(question, 0, key) ? json_string_value(json_object_get(table, key)) : NULL;
    char *answer = value ? text_dup(value) : NULL;
    json_decref(table);
    return answer;
}

// identifiers come in pairs: the one behind the word key, then its value
static char *read_passage(const char *text, const char *question) {
    char key[WORD], value[WORD] = "", word[WORD];
    int fitting = 0, used;
    bool behind_key = false, wanted = false, open = false;
    if (!quoted(question, 0, key)) return NULL;
    for (; sscanf(text, " %95[^ ,.]%n", word, &used) == 1; behind_key = !strcmp(word, "key")) {
        text += used;
        text += strspn(text, ",.");
        if (strlen(word) != 36 || strspn(word, "0123456789abcdef-") != 36) continue;
        if (behind_key == open) return NULL;            // two keys or two values in a row
        if (open && wanted) fitting++, strcpy(value, word);
        wanted = behind_key && !strcmp(word, key);
        open = behind_key;
    }
    return *text ? NULL : only(fitting, value);
}

static char *read_strings(const char *text, const char *question) {
    char begin[WORD], end[WORD], found[WORD] = "", word[WORD];
    int fitting = 0, begins = 0, ends = 0, used;
    if (!quoted(question, 0, begin) || !quoted(question, 1, end)) return NULL;
    for (text++; sscanf(text, "\"%95[^\"]\"%n", word, &used) == 1; text += strspn(text, ", ")) {
        bool b = !strncmp(word, begin, strlen(begin));
        bool e = strlen(word) == 25 && !strcmp(word + 25 - strlen(end), end);
        text += used;
        begins += b && !e;
        ends += e && !b;
        if (b && e) fitting++, strcpy(found, word);
    }
    EXPECT(begins >= 3 && ends >= 3, "%d strings share only %s, %d only %s", begins, begin, ends,
           end);
    return strcmp(text, "]") ? NULL : only(fitting, found);
}

static char *read_variables(const char *text, const char *question) {
    static struct { char name[8]; int value; bool taken; } var[512];
    int n = 0, direct = 0, asked = atoi(question + strcspn(question, "0123456789"));
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        char name[8], other[8];
        int value;
        if (sscanf(line, "Let %5[A-Z] be %d.", name, &value) == 2) direct += value == asked;
        else if (sscanf(line, "Let %5[A-Z] be the same as %5[A-Z].", name, other) == 2) {
            int at = 0;
            while (at < n && strcmp(var[at].name, other)) at++;
            if (at == n || var[at].taken) return NULL;  // before it is set; not a chain
            value = var[at].value;
            var[at].taken = true;
        } else continue;
        for (int i = 0; i < n; i++)
            if (!strcmp(var[i].name, name)) return NULL;    // set twice
        CHECK(n < (int)COUNTOF(var), "too many variables");
        var[n].value = value;
        var[n].taken = false;
        strcpy(var[n++].name, name);
    }
    StrBuf names = { 0 };
    for (int i = 0; i < n; i++)
        if (var[i].value == asked) str_fmt(&names, "%s%s", names.n ? ", " : "", var[i].name);
    if (direct == 1) return names.p;
    free(names.p);
    return NULL;
}

static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static char *read_numbers(const char *text, const char *question) {
    const char *asked = strstr(question, "\nThe ");
    int n = 0, cap = (int)strlen(text), used, distinct = 0, rank = 1;
    int *list = (int *)calloc((size_t)cap, sizeof *list);
    char *answer = NULL;
    for (text++; sscanf(text, "%d%n", &list[n], &used) == 1; text += strspn(text, ", ")) {
        n++;
        text += used;
    }
    qsort(list, (size_t)n, sizeof *list, by_value);
    if (strstr(asked, "median")) {
        if (n && list[n / 2] == list[(n - 1) / 2]) answer = text_fmt("%d", list[n / 2]);
        free(list);
        return answer;
    }
    for (int i = 0; i < n; i++)
        if (!i || list[i] != list[i - 1]) list[distinct++] = list[i];
    if (strstr(asked, "second")) rank = 2;
    else if (strstr(asked, "third")) rank = 3;
    else if (isdigit((unsigned char)asked[5])) rank = atoi(asked + 5);
    bool largest = strstr(asked, "largest");
    if (rank <= distinct && largest != (strstr(asked, "smallest") != NULL))
        answer = text_fmt("%d", largest ? list[distinct - rank] : list[rank - 1]);
    free(list);
    return answer;
}

// ---------------------------------------------------------------------------
// Exercises with options. Each reader returns the text of the right option, malloc'd, or NULL

enum { MAX_WORDS = 400 };
typedef struct { char *copy, *word[MAX_WORDS]; int n; } Words;

// words without the punctuation around them
static Words words_of(const char *text) {
    Words w = { text_dup(text), { NULL }, 0 };
    for (char *p = strtok(w.copy, " \n"); p && w.n < MAX_WORDS; p = strtok(NULL, " \n")) {
        size_t n = strlen(p);
        while (n && strchr(".,?", p[n - 1])) p[--n] = 0;
        if (n) w.word[w.n++] = p;
    }
    return w;
}
static const char *word_at(const Words *w, int i) { return i >= 0 && i < w->n ? w->word[i] : ""; }
static int place_in(const char *word, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (!strcmp(word, list[i])) return i;
    return -1;
}

static void settle(struct tm *t) {                      // lets the C library do the calendar
    time_t s = timegm(t);
    gmtime_r(&s, t);
}

// the date that the words around the month at i mean
static bool date_at(const Words *w, int i, struct tm *t) {
    static const char *const days[] = { "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday",
                                        "Friday", "Saturday" };
    int before = atoi(word_at(w, i - 1)), after = atoi(word_at(w, i + 1));
    t->tm_mday = 1;
    if (before) {                                       // 14 March 1987
        t->tm_mday = before;
        t->tm_year = after - 1900;
        if (!strcmp(word_at(w, i - 3), "day"))
            t->tm_mday += !strcmp(word_at(w, i - 2), "after") ? 1 : -1;
        int day = place_in(word_at(w, i - 2), days, 7);
        settle(t);
        return day < 0 || day == t->tm_wday;
    }
    if (after <= 31) {                                  // March 14, 1987
        t->tm_mday = after;
        t->tm_year = atoi(word_at(w, i + 2)) - 1900;
        settle(t);
        return true;
    }
    t->tm_year = after - 1900;                          // last day, first Friday of March 1987
    const char *which = word_at(w, i - 3), *day = word_at(w, i - 2);
    if (!strcmp(which, "last") && !strcmp(day, "day")) t->tm_mon++, t->tm_mday = 0;
    settle(t);
    if (!strcmp(which, "last")) return true;
    int wanted = place_in(day, days, 7);
    t->tm_mday += (wanted - t->tm_wday + 7) % 7;
    settle(t);
    return !strcmp(which, "first") && wanted >= 0;
}

static char *read_date(const char *text) {
    static const char *const months[] = { "January", "February", "March", "April", "May", "June",
        "July", "August", "September", "October", "November", "December" };
    static const char *const units[] = { "days", "weeks", "months", "years" };
    struct tm t;
    int dates = 0, spans = 0, unit = 0, n = 0;
    bool sound = true;
    memset(&t, 0, sizeof t);
    Words w = words_of(text);
    for (int i = 0; i < w.n; i++) {
        int month = place_in(w.word[i], months, 12), u = place_in(w.word[i], units, 4);
        if (month >= 0) {
            dates++;
            t.tm_mon = month;
            sound &= date_at(&w, i, &t);
        }
        if (u < 0) continue;
        spans++;
        unit = u;
        n = atoi(word_at(&w, i - 1)) * (strcmp(word_at(&w, i + 1), "later") ? -1 : 1);
    }
    free(w.copy);
    if (!sound || dates != 1 || spans != 1) return NULL;
    if (unit == 0) t.tm_mday += n;
    if (unit == 1) t.tm_mday += 7 * n;
    if (unit > 1 && t.tm_mday > 27) return NULL;        // a month after the 31st
    if (unit == 2) t.tm_mon += n;
    if (unit == 3) t.tm_year += n;
    settle(&t);
    return text_fmt("%d-%02d-%02d", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday);
}

// "Ada has the red kite, Bo the ... and Cy the ... . Ada and Bo swap. ... What does Cy have now?"
static char *read_objects(const char *text) {
    Words w = words_of(text);
    const char *who[7] = { NULL };
    char has[7][WORD], *answer = NULL;
    int n = 0, i = 0;
    for (; i < w.n && n < 7; i++) {
        if (strcmp(w.word[i], "the")) continue;
        snprintf(has[n], WORD, "the %s %s", word_at(&w, i + 1), word_at(&w, i + 2));
        who[n++] = word_at(&w, strcmp(word_at(&w, i - 1), "has") ? i - 1 : i - 2);
    }
    for (int first = -1; i < w.n && !answer; i++) {
        int p = place_in(w.word[i], who, n);
        bool asked = !strcmp(word_at(&w, i - 1), "does");
        if (p < 0) continue;
        if (asked) answer = first < 0 ? text_dup(has[p]) : NULL;
        else if (first < 0) first = p;
        else {
            char t[WORD];
            if (first == p) break;
            memcpy(t, has[p], WORD);
            memcpy(has[p], has[first], WORD);
            memcpy(has[first], t, WORD);
            first = -1;
        }
    }
    free(w.copy);
    return answer;
}

// what a reader of both languages knows
static const char *const known_adjectives[] = {
    "rote=red", "blaue=blue", "grüne=green", "gelbe=yellow", "graue=grey", "braune=brown",
    "hölzerne=wooden", "eiserne=iron", "silberne=silver", "runde=round", "eckige=angular",
    "gestreifte=striped", "französische=French", "dänische=Danish", "polnische=Polish",
    "spanische=Spanish", "gläserne=glass", "lederne=leather", "vergoldete=gilded",
    "bemalte=painted", "staubige=dusty", "rostige=rusty", "zerbrochene=broken",
    "geschnitzte=carved", NULL
};
static const char *const known_nouns[] = {
    "Boote=boats", "Lampen=lamps", "Stühle=chairs", "Uhren=clocks", "Bilder=pictures",
    "Koffer=suitcases", "Flaschen=bottles", "Teller=plates", "Schlüssel=keys", "Spiegel=mirrors",
    "Hüte=hats", "Trommeln=drums", "Glocken=bells", "Fahnen=flags", "Kisten=crates",
    "Löffel=spoons", "Messer=knives", "Masken=masks", "Münzen=coins", "Ringe=rings",
    "Teppiche=carpets", "Türen=doors", "Vasen=vases", "Zelte=tents", "Schuhe=shoes",
    "Puppen=dolls", "Landkarten=maps", "Körbe=baskets", "Leitern=ladders", "Fässer=barrels",
    "Briefmarken=stamps", "Knöpfe=buttons", "Hafen=harbour", "Brücke=bridge", "Tor=gate",
    "Garten=garden", "Straße=street", "Markt=market", "Bäckerei=bakery", "Saal=hall",
    "Keller=cellar", "Werkstatt=workshop", "Zimmer=room", "Weg=path", "Platz=square",
    "Kirche=church", "Museum=museum", "Bibliothek=library", "Bahnhof=station", "Höhle=cave",
    "Turm=tower", "Schloss=castle", "Schwimmbad=pool", "Flughafen=airport", "Fabrik=factory",
    "Theater=theatre", "Schule=school", "Wald=forest", "Insel=island", "Tunnel=tunnel",
    "Dorf=village", "Küche=kitchen", "Hof=courtyard", "Dach=roof", "Treppe=staircase",
    "Stall=stable", "Mühle=mill", "Gasthaus=inn", "Laden=shop", "Garage=garage", "Lager=warehouse",
    "Park=park", NULL
};
static const char *const known_states[] = {             // opposites are neighbours
    "offen=open", "geschlossen=closed", "leer=empty", "voll=full", "hell=bright", "dunkel=dark",
    "warm=warm", "kalt=cold", "laut=noisy", "still=quiet", "nass=wet", "trocken=dry",
    "sauber=clean", "schmutzig=dirty", "sicher=safe", "gefährlich=dangerous", "schön=beautiful",
    "hässlich=ugly", NULL
};
static const char *const known_phrases[] = {
    "am frühen Morgen=early in the morning", "trotz des Regens=despite the rain",
    "nach langer Suche=after a long search", "ohne fremde Hilfe=without any help",
    "vor dem Mittagessen=before lunch", "mit großer Geduld=with great patience",
    "auf dem Heimweg=on the way home", "während der Ferien=during the holidays",
    "aus reiner Neugier=out of pure curiosity", "nach dem Konzert=after the concert",
    "unter den Augen der Nachbarn=under the eyes of the neighbours",
    "gegen den Rat der Ärzte=against the advice of the doctors",
    "im Auftrag der Universität=on behalf of the university",
    "an einem Feiertag=on a public holiday", "mit Tränen in den Augen=with tears in the eyes",
    "kurz vor Mitternacht=shortly before midnight", "bei dichtem Nebel=in thick fog",
    "zur Freude der Kinder=to the delight of the children",
    "mit der linken Hand=with the left hand", "auf einer Auktion=at an auction",
    "im Schein einer Kerze=by the light of a candle",
    "ohne ein einziges Wort=without a single word",
    "im Schatten eines Baumes=in the shade of a tree",
    "zum Geburtstag der Tante=for the aunt's birthday", NULL
};
static const char *const known_verbs[] = {
    "kaufte=bought", "gekauft=bought", "fand=found", "gefunden=found", "stahl=stole",
    "gestohlen=stolen", "zählte=counted", "gezählt=counted", "reparierte=repaired",
    "repariert=repaired", "fotografierte=photographed", "fotografiert=photographed",
    "verschenkte=gave away", "verschenkt=given away", "versteckte=hid", "versteckt=hidden",
    "reinigte=cleaned", "gereinigt=cleaned", "bestellte=ordered", "bestellt=ordered",
    "zeichnete=drew", "gezeichnet=drawn", "sortierte=sorted", "sortiert=sorted",
    "prüfte=checked", "geprüft=checked", "verkaufte=sold", "verkauft=sold", "weil=because",
    "obwohl=although", "solange=as long as", "während=while", "bevor=before",
    "sobald=as soon as", NULL
};
static const char *const known_little[] = { "in", "von", "wurden", "war",
                                            "der", "die", "das", "nicht" };

// where words stand in the text, not inside longer ones; the first letter's case is free
static char *find_words(char *text, const char *words) {
    size_t n = strlen(words);
    for (char *p = text; *p; p++) {
        bool starts = p == text || p[-1] == ' ';
        if (starts && tolower((unsigned char)*p) == tolower((unsigned char)*words) &&
            !strncmp(p + 1, words + 1, n - 1) && strchr(" ,.", p[n]))
            return p;
    }
    return NULL;
}

typedef struct { char de[WORD], en[WORD]; } Entry;

static Entry entry_of(const char *line) {
    Entry e;
    CHECK(sscanf(line, "%95[^=]=%95[^\n]", e.de, e.en) == 2, "no entry: %s", line);
    return e;
}

typedef struct { char *german, *english, found[2 * WORD]; int n_found, n_words; } Reading;

static void wrong(Reading *r, const char *kind, const char *words) {
    snprintf(r->found, sizeof r->found, "%s: %s", kind, words);
    r->n_found++;
}

// takes the list's words out of the German sentence; those whose translation is missing are errors
static void compare_words(Reading *r, const char *const *list, const char *kind) {
    for (; *list; list++) {
        Entry e = entry_of(*list);
        char *de = find_words(r->german, e.de), *en = find_words(r->english, e.en);
        if (!de) continue;
        if (!en && !strcmp(kind, "fact")) {             // the option has a place with its article
            char *article = de - 4 >= r->german ? de - 4 : de;
            bool has = !strncmp(article, "der ", 4) || !strncmp(article, "die ", 4) ||
                       !strncmp(article, "das ", 4);
            char words[WORD + 8];
            snprintf(words, sizeof words, "%.*s%s", has ? 4 : 0, article, e.de);
            wrong(r, kind, words);
        } else if (!en) wrong(r, kind, e.de);
        memset(de, ' ', strlen(e.de));
        r->n_words++;
    }
}

// state and negation together: "not open" for "offen" is the opposite, so is "closed"
static void compare_states(Reading *r) {
    bool not_de = find_words(r->german, "nicht"), not_en = find_words(r->english, "not");
    for (int i = 0; known_states[i]; i++) {
        Entry e = entry_of(known_states[i]), opposite = entry_of(known_states[i ^ 1]);
        char *de = find_words(r->german, e.de), words[WORD + 8];
        if (!de) continue;
        bool same = find_words(r->english, e.en), turned = find_words(r->english, opposite.en);
        snprintf(words, sizeof words, "%s%s", not_de ? "nicht " : "", e.de);
        if (same == turned) r->n_found += 2;            // neither or both: cannot be understood
        else if (same != (not_de == not_en)) wrong(r, "opposite", words);
        memset(de, ' ', strlen(e.de));
        r->n_words++;
    }
}

// what is left of the German sentence is numbers, names and little words
static void compare_rest(Reading *r) {
    Words w = words_of(r->german);
    for (int i = 0; i < w.n; i++) {
        char lower[WORD];
        snprintf(lower, WORD, "%s", w.word[i]);
        lower[0] = (char)tolower((unsigned char)lower[0]);
        if (place_in(lower, known_little, COUNTOF(known_little)) >= 0) continue;
        bool number = isdigit((unsigned char)*w.word[i]), name = isupper((unsigned char)*w.word[i]);
        EXPECT(number || name, "a word that nobody knows: %s", w.word[i]);
        if (!find_words(r->english, w.word[i])) wrong(r, number ? "number" : "name", w.word[i]);
        r->n_words++;
    }
    free(w.copy);
}

static char *read_translation(const char *text) {
    char de[1024], en[1024];
    if (sscanf(text, "German: %1023[^\n]\nEnglish: %1023[^\n]", de, en) != 2) return NULL;
    Reading r = { de, en, "", 0, 0 };
    compare_words(&r, known_phrases, "omission");
    compare_words(&r, known_verbs, "verb");
    compare_words(&r, known_adjectives, "adjective");
    compare_words(&r, known_nouns, "fact");
    compare_states(&r);
    compare_rest(&r);
    // phrase, verb, conjunction, adjective, two nouns, state, number, two names, town
    EXPECT(r.n_words == 11, "%d words understood in %s", r.n_words, text);
    return only(r.n_found, r.found);
}

// the letter of the right option of an exercise that ends with "Answer:"
static char *read_exercise(const char *text) {
    const char *options = strstr(text, "\n(A) ");
    if (!options) return NULL;
    char *body = strndup(text, (size_t)(options - text)), letter = 0, fits = 0, answer[2] = "";
    char *right = !strncmp(body, "German: ", 8) ? read_translation(body)
                  : strstr(body, " has the ")   ? read_objects(body) : read_date(body);
    int fitting = 0, used, n = 0;
    char option[WORD];
    for (; sscanf(options, "\n(%c) %95[^\n]%n", &letter, option, &used) == 2; options += used) {
        EXPECT(letter == 'A' + n, "option (%c) out of order", letter);
        n++;
        if (right && !strcmp(option, right)) fitting++, fits = letter;
    }
    EXPECT(n >= 4 && n <= 7, "%d options", n);
    EXPECT(!strncmp(options, "\nAnswer:", 8), "no cue behind the options: %s", options);
    answer[0] = fits;
    free(right);
    free(body);
    return only(fitting, answer);
}

static char *read_exercises(const char *text, const char *question) {
    (void)text;
    return read_exercise(question);
}

static void check_solved(const char *text) {
    for (const char *p = text; p; p = strstr(p, "\n\n") ? strstr(p, "\n\n") + 2 : NULL) {
        char *answer = read_exercise(p), *cue = strstr(p, "\nAnswer: ");
        EXPECT(answer && cue && answer[0] == cue[9] && (!cue[10] || cue[10] == '\n'),
               "solved wrongly: %.600s", p);
        free(answer);
    }
}

// ---------------------------------------------------------------------------

static void solve(const Task *task, char *(*reader)(const char *text, const char *question)) {
    bool exercises = reader == read_exercises;
    int asked = 0;
    for (int seed = 0; seed < SEEDS; seed++) {
        TaskSession s;
        int turns = seed % 4 == 3 ? 1 + seed / 4 % 13 : task->turns;
        int least = task->min_units * turns, units = least + seed * (seed % 8 ? 1 : 3) % 307;
        if (seed % 10 == 0) units = least;
        memset(&s, 0, sizeof s);
        s.number = seed % 7;
        task->make(&s, (uint64_t)seed, turns, units);
        if (exercises) check_solved(s.context.p);
        for (int t = 0; t < s.n_turns; t++, asked++) {
            char *answer = reader(s.context.p, s.turns[t].question);
            EXPECT(answer && !strcmp(answer, s.turns[t].answer),
                   "%s, seed %d, session %d, %d units, turn %d: read %s, golden %s\n%s", task->name,
                   seed, s.number, units, t + 1, answer ? answer : "nothing, or two answers",
                   s.turns[t].answer, s.turns[t].question);
            free(answer);
        }
        session_clear(&s);
    }
    printf("%s: %d questions of %d sessions\n", task->name, asked, SEEDS);
}

// readers refuse what cannot be answered, so that the agreement above means something
static void refuse(void) {
    static const struct {
        char *(*reader)(const char *text, const char *question);
        const char *text, *question;
    } bad[] = {
        { read_json, "{\"a\": \"1\", \"a\": \"2\"}", "Value of \"a\"?" },
        { read_variables, "Let AAAAA be 10000.\nLet BBBBB be 10000.", "value 10000?" },
        { read_variables, "Let BBBBB be the same as AAAAA.\nLet AAAAA be 10000.", "value 10000?" },
        { read_variables, "Let AAAAA be 10000.\nLet BBBBB be the same as AAAAA.\nLet CCCCC be the "
                          "same as AAAAA.", "value 10000?" },
        { read_numbers, "[1, 2, 3, 4]", "\nThe median of the list is" },
        { read_exercises, "",
          "Ada has the red kite. What does Bo have?\n(A) the red kite\n(B) x\n(C) y\n(D) z\n"
          "Answer:" },
        { read_exercises, "",
          "Ada left on 31 May 1990. Bo left 3 months later.\n(A) 1990-08-31\n(B) x\n(C) y\n(D) z\n"
          "Answer:" },
        { read_exercises, "",
          "Ada left on 3 May 1990. Bo left 3 days later.\n(A) 1990-05-06\n(B) 1990-05-06\n(C) y\n"
          "(D) z\nAnswer:" },
    };
    for (size_t i = 0; i < COUNTOF(bad); i++) {
        char *answer = bad[i].reader(bad[i].text, bad[i].question);
        EXPECT(!answer, "case %zu was answered with %s", i, answer);
        free(answer);
    }
}

int main(void) {
    solve(&task_retr_kv, read_json);
    solve(&task_retr_kv_compressible, read_passage);
    solve(&task_retr_ps, read_strings);
    solve(&task_retr_mh, read_variables);
    solve(&task_math_find, read_numbers);
    solve(&task_icl, read_exercises);
    solve(&task_icl_wide, read_exercises);
    refuse();
    printf("%d failures\n", failures);
    return failures != 0;
}
