// repo.c - the tasks over source code (Li et al. 2024, after RepoQA, Liu et al. 2024): a function
// of a repository is described without its name and has to be repeated.
//
// A session is one repository in one language. Its functions are renderings of the algorithms in
// data/code (code.h), each algorithm once before any returns with other constants and modifiers.
// No two drafts of a session have the same key, so a description fits one function only.
#include "code.h"

EMBED(code_text_nouns, "data/code/words.txt");

enum { STREAM_CODE = 0x636f6465, STREAM_ASKED = 0x61736b, STREAM_KEYS = 0x6b657973 };
enum {
    MAX_NOUNS = 600,
    UUID_CHARS = 36,
    PAPER_UNITS = 330,
    PAPER_PAIRS = 100,
    ARENA_BYTES = 1 << 18
};

typedef struct { size_t at, n; int entry; char *part[4]; } Unit;    // source text in the context
typedef struct { char key[UUID_CHARS + 1], value[UUID_CHARS + 1]; double depth; } Pair;

typedef struct {
    TaskSession *s;
    Rng rng;
    CodeStyle style;
    const char *noun[MAX_NOUNS];        // the session's own first
    char *noun_text;
    int n_nouns, n_pool;
    char *pack;                         // package or root folder
    CodeArena arena;
    int *order;                         // entries in the order of use
    uint64_t *keys, *names;             // open addressing, 0: free
    size_t key_cap;
    Unit *unit;
    bool *asked;
    StrBuf file;                        // functions of the file that is being filled
    int in_file, file_size, first_unit, uses, n_files;
    Pair *pair;
    int n_pairs, next_pair;
} Repo;

static const char *noun(Repo *r) { return r->noun[rng_below(&r->rng, (uint64_t)r->n_pool)]; }

static bool chance(Repo *r, int percent) { return (int)rng_below(&r->rng, 100) < percent; }

// true if the key was new; 0 stands for a free slot
static bool key_add(uint64_t *set, size_t cap, uint64_t key) {
    key = key ? key : 1;
    size_t i = key & (cap - 1);
    while (set[i] && set[i] != key) i = (i + 1) & (cap - 1);
    if (set[i] == key) return false;
    set[i] = key;
    return true;
}

static void shuffle(int *a, int n, Rng *rng) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)rng_below(rng, (uint64_t)i + 1), t = a[i];
        a[i] = a[j];
        a[j] = t;
    }
}

// ---------------------------------------------------------------------------
// Opening and closing

static void repo_nouns(Repo *r, int units) {
    size_t n = (size_t)(code_text_nouns_end - code_text_nouns_begin);
    r->noun_text = (char *)memcpy(xrealloc(NULL, n + 1), code_text_nouns_begin, n);
    r->noun_text[n] = 0;
    char *save = NULL;
    for (char *w = strtok_r(r->noun_text, " \n", &save); w && r->n_nouns < MAX_NOUNS;
         w = strtok_r(NULL, " \n", &save))
        r->noun[r->n_nouns++] = w;
    for (int i = r->n_nouns - 1; i > 0; i--) {
        int j = (int)rng_below(&r->rng, (uint64_t)i + 1);
        const char *t = r->noun[i];
        r->noun[i] = r->noun[j];
        r->noun[j] = t;
    }
    r->n_pool = 64 + units / 20 < r->n_nouns ? 64 + units / 20 : r->n_nouns;
}

static CodeStyle repo_style(CodeLang lang, Rng *rng) {
    CodeStyle s = { .lang = lang, .indent = 4 };
    bool narrow = lang == LANG_CPP || lang == LANG_TS;
    if (narrow && rng_below(rng, 2)) s.indent = 2;
    if (lang == LANG_GO) s.indent = 0;
    s.snake = lang == LANG_PYTHON || lang == LANG_RUST || (lang == LANG_CPP && rng_below(rng, 2));
    s.hints = rng_below(rng, 3) != 0;
    s.wide_int = rng_below(rng, 2);
    s.pre_inc = lang != LANG_GO && lang != LANG_PYTHON && rng_below(rng, 3) == 0;
    s.capital = lang == LANG_GO && rng_below(rng, 2);
    s.brace_line =
        lang == LANG_PHP || ((lang == LANG_CPP || lang == LANG_JAVA) && rng_below(rng, 3) == 0);
    return s;
}

static void repo_open(Repo *r, TaskSession *s, uint64_t seed, int n_units) {
    memset(r, 0, sizeof *r);
    r->s = s;
    r->rng = session_rng(seed, s->number, STREAM_CODE);
    int lang = (int)(((uint64_t)s->number + mix64(seed) % N_LANGS) % N_LANGS);
    r->style = repo_style((CodeLang)lang, &r->rng);
    repo_nouns(r, n_units);
    r->pack = text_fmt("%s%s", r->noun[0], r->noun[1]);
    r->arena.cap = ARENA_BYTES;
    r->arena.p = (char *)xrealloc(NULL, r->arena.cap);
    r->order = (int *)xrealloc(NULL, (size_t)code_n_entries() * sizeof *r->order);
    for (int i = 0; i < code_n_entries(); i++) r->order[i] = i;
    for (r->key_cap = 64; r->key_cap < 4 * (size_t)n_units; r->key_cap *= 2) ;
    r->keys = (uint64_t *)memset(xrealloc(NULL, r->key_cap * 8), 0, r->key_cap * 8);
    r->names = (uint64_t *)memset(xrealloc(NULL, r->key_cap * 8), 0, r->key_cap * 8);
    size_t bytes = (size_t)n_units * sizeof *r->unit;
    r->unit = (Unit *)memset(xrealloc(NULL, bytes), 0, bytes);
    r->asked = (bool *)memset(xrealloc(NULL, (size_t)n_units), 0, (size_t)n_units);
    s->units = n_units;
    s->lang = text_dup(code_lang_name(r->style.lang));
    s->repo = text_fmt("%s/%s-%s", r->noun[2], r->noun[3], r->noun[4]);
    s->needles = (Needle *)xrealloc(NULL, (size_t)n_units * sizeof *s->needles);
    s->n_needles = n_units;
}

static void repo_close(Repo *r, int n_units) {
    for (int u = 0; u < n_units; u++)
        for (int i = 0; i < 4; i++) free(r->unit[u].part[i]);
    free(r->unit);
    free(r->asked);
    free(r->noun_text);
    free(r->pack);
    free(r->arena.p);
    free(r->order);
    free(r->keys);
    free(r->names);
    free(r->file.p);
    free(r->pair);
}

// ---------------------------------------------------------------------------
// Files: path, what the functions need, constants, one record type

static const char *remark(const Repo *r) { return r->style.lang == LANG_PYTHON ? "#" : "//"; }

static char *cased(const char *a, const char *b, bool snake, bool capital) {
    char *words = text_fmt("%s_%s", a, b), *name = code_case(words, snake, capital);
    free(words);
    return name;
}

static void put_path(Repo *r, StrBuf *out, const char *a, const char *b) {
    static const char *const ending[N_LANGS] = { "py", "cpp", "java", "php", "rs", "go", "ts" };
    static const char *const root[N_LANGS] = { "src", "src", "src/main/java", "src", "src",
                                               "pkg", "src" };
    bool type = r->style.lang == LANG_JAVA || r->style.lang == LANG_PHP;
    char *file = cased(a, b, !type && r->style.lang != LANG_TS, type);
    bool flat = r->style.lang == LANG_GO || r->style.lang == LANG_JAVA;
    if (flat)
        str_fmt(out, "%s path: %s/%s/%s.%s\n", remark(r), root[r->style.lang], r->pack, file,
                ending[r->style.lang]);
    else
        str_fmt(out, "%s path: %s/%s/%s/%s.%s\n", remark(r), root[r->style.lang], r->pack, noun(r),
                file, ending[r->style.lang]);
    free(file);
}

static void put_imports(Repo *r, StrBuf *out) {
    static const struct { int use; const char *text; } cpp[] = {
        { USES_ALGO, "#include <algorithm>\n" }, { USES_CTYPE, "#include <cctype>\n" },
        { USES_ABS, "#include <cstdlib>\n" }, { USES_MAP, "#include <map>\n" },
        { USES_STRING | USES_LIST, "#include <string>\n" }, { USES_LIST, "#include <vector>\n" } };
    static const struct { int use; const char *text;
    } go[] = { { USES_SLICES, "slices" },
               { USES_SORT, "sort" },
               { USES_ITOA, "strconv" },
               { USES_CONTAINS, "strings" },
               { USES_CTYPE, "unicode" } };
    switch (r->style.lang) {
    case LANG_PYTHON: str_puts(out, "from dataclasses import dataclass\n"); break;
    case LANG_CPP:
        for (size_t i = 0; i < COUNTOF(cpp); i++)
            if (r->uses & cpp[i].use) str_puts(out, cpp[i].text);
        if (!(r->uses & (USES_STRING | USES_LIST))) str_puts(out, "#include <string>\n");
        break;
    case LANG_JAVA:
        str_fmt(out, "package %s;\n\nimport java.util.*;\n", r->pack);
        break;
    case LANG_PHP: str_fmt(out, "<?php\n\nnamespace %c%s;\n", r->pack[0] - 32, r->pack + 1); break;
    case LANG_RUST:
        if (r->uses & USES_MAP) str_puts(out, "use std::collections::HashMap;\n");
        break;
    case LANG_GO: {
        str_fmt(out, "package %s\n", r->pack);
        int n = 0;
        for (size_t i = 0; i < COUNTOF(go); i++)
            if (r->uses & go[i].use)
                str_fmt(out, "%s\t\"%s\"\n", n++ ? "" : "\nimport (\n", go[i].text);
        if (n) str_puts(out, ")\n");
        break;
    }
    default: break;
    }
}

static void put_constants(Repo *r, StrBuf *out) {
    static const char *const form[N_LANGS] = { "%s = %d\n",
                                               "constexpr int %s = %d;\n",
                                               "    static final int %s = %d;\n",
                                               "const %s = %d;\n",
                                               "pub const %s: i64 = %d;\n",
                                               "const %s = %d\n",
                                               "export const %s = %d;\n" };
    static const char *const what[] = { "LIMIT", "QUOTA", "BUDGET", "RETRIES",
                                        "PORT",  "DELAY", "WEIGHT", "DEPTH" };
    int n = 1 + (int)rng_below(&r->rng, 3);
    for (int i = 0; i < n; i++) {
        char *name =
            text_fmt("%s_%s_%s", noun(r), noun(r), what[rng_below(&r->rng, COUNTOF(what))]);
        for (char *c = name; *c; c++) if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 32);
        str_fmt(out, form[r->style.lang], name, 10 + (int)rng_below(&r->rng, 9000));
        free(name);
    }
}

static void put_record(Repo *r, StrBuf *out, const char *type) {
    static const char *const open[N_LANGS] = {
        "@dataclass\nclass %s:\n", "struct %s {\n",     "    static final class %s {\n",
        "final class %s\n{\n",     "pub struct %s {\n", "type %s struct {\n",
        "export interface %s {\n"
    };
    static const char *const field[N_LANGS][2] = {
        { "    %s: int = 0\n", "    %s: str = \"\"\n" },
        { "    int %s = 0;\n", "    std::string %s;\n" },
        { "        int %s;\n", "        String %s;\n" },
        { "    public int $%s = 0;\n", "    public string $%s = '';\n" },
        { "    pub %s: i64,\n", "    pub %s: String,\n" },
        { "\t%s int\n", "\t%s string\n" },
        { "    %s: number;\n", "    %s: string;\n" }
    };
    static const char *const close[N_LANGS] = { "", "};\n", "    }\n", "}\n", "}\n", "}\n", "}\n" };
    CodeLang l = r->style.lang;
    int n = 2 + (int)rng_below(&r->rng, 4), from = (int)rng_below(&r->rng, (uint64_t)r->n_nouns);
    str_fmt(out, open[l], type);
    for (int i = 0; i < n; i++) {
        char *name = cased(r->noun[(from + i) % r->n_nouns], noun(r), r->style.snake, false);
        str_fmt(out, field[l][rng_below(&r->rng, 2)], name);
        free(name);
    }
    str_puts(out, close[l]);
}

// the file's text goes to the context; offsets of its units become offsets in the context
static void flush_file(Repo *r, int next_unit) {
    if (!r->in_file) return;
    StrBuf *out = &r->s->context;
    // two nouns by the file's number: no two files of a session share a name
    const char *a = r->noun[r->n_files % r->n_nouns],
               *b = r->noun[(r->n_files / r->n_nouns + 7 * r->n_files + 1) % r->n_nouns];
    char *type = cased(a, b, false, true);
    CodeLang l = r->style.lang;
    bool go_help = l == LANG_GO && r->n_files == 0;
    put_path(r, out, a, b);
    put_imports(r, out);
    str_puts(out, "\n");
    if (l == LANG_JAVA) str_fmt(out, "public final class %s {\n", type);
    put_constants(r, out);
    str_puts(out, "\n");
    char *record = text_fmt("%s%s", type, l == LANG_JAVA ? "Row" : "Record");
    if (chance(r, 60)) {
        put_record(r, out, record);
        str_puts(out, "\n");
    }
    if (go_help)
        str_puts(out,
                 "func absInt(v int) int {\n\tif v < 0 {\n\t\treturn -v\n\t}\n\treturn v\n}\n\n");
    for (int u = r->first_unit; u < next_unit; u++) r->unit[u].at += out->n;
    str_add(out, r->file.p, r->file.n);
    if (l == LANG_JAVA) str_puts(out, "}\n\n");
    free(type);
    free(record);
    r->file.n = 0;
    r->in_file = r->uses = 0;
    r->first_unit = next_unit;
    r->n_files++;
}

// ---------------------------------------------------------------------------
// Functions

// a draft nobody in the session has; more modifiers the longer that takes
static void new_draft(Repo *r, CodeDraft *d, int u) {
    int n = code_n_entries(), round = u / n, at = u % n;
    if (at == 0) shuffle(r->order, n, &r->rng);
    const CodeEntry *e = code_entry(r->order[at]);
    for (int tries = 0; ; tries++) {
        int roll = (int)rng_below(&r->rng, 100);
        int mods = round == 0 && tries < 20 ? (roll < 50 ? 0 : roll < 85 ? 1 : 2) : 1 + roll % 3;
        code_draft(d, e, &r->rng, mods);
        if (key_add(r->keys, r->key_cap, d->key)) return;
        code_draft_free(d);
        // small entries run out of variants in very long repositories: another one takes the place
        if (tries > 40) e = code_entry((int)rng_below(&r->rng, (uint64_t)n));
        CHECK(tries < 4000, "repository: no new function after %d units", u);
    }
}

static void doc_comment(Repo *r, StrBuf *out) {
    static const char *const form[] = {
        "Part of the %s and %s reports.",
        "Shared between %s and %s.",
        "The %s view calls this for every %s.",
        "Moved here from the %s code; %s still imports it.",
        "Used when a %s is attached to the %s.",
        "Called once per %s from %s.",
        "Stable since the %s work; ask the %s owners before a change.",
        "Helper of the %s screens, see also %s.",
        "Runs on every %s that reaches the %s.",
        "The %s job and the %s job both need it.",
        "Written for %s, later taken over by %s.",
        "Nothing here depends on the %s of a %s.",
        "Reviewed together with the %s change in %s."
    };
    if (!chance(r, 40)) return;
    const char *f = form[rng_below(&r->rng, COUNTOF(form))];
    if (r->style.lang == LANG_JAVA) str_puts(out, "    ");
    str_fmt(out, "%s ", r->style.lang == LANG_RUST ? "///" : remark(r));
    for (; *f; f++)
        if (*f == '%') {
            str_puts(out, noun(r));
            f++;
        } else str_add(out, f, 1);
    str_puts(out, "\n");
}

static void put_pairs(Repo *r, int u, int n_units) {
    for (; r->next_pair < r->n_pairs && even_slot(r->next_pair, r->n_pairs, n_units) == u;
         r->next_pair++) {
        Pair *p = &r->pair[r->next_pair];
        if (r->style.lang == LANG_JAVA) str_puts(&r->file, "    ");
        str_fmt(&r->file, "%s %s -> %s\n\n", remark(r), p->key, p->value);
        p->depth = (u + 0.5) / n_units;
    }
}

static void add_unit(Repo *r, int u, int n_units) {
    static const char *const before[N_LANGS] = { "", "", "    ", "", "", "", "export " };
    CodeLang l = r->style.lang;
    if (r->in_file == r->file_size) flush_file(r, u);
    if (r->in_file == 0) r->file_size = 5 + (int)rng_below(&r->rng, 8);
    put_pairs(r, u, n_units);
    CodeDraft d;
    CodeFn f;
    new_draft(r, &d, u);
    code_parse(&f, &d, &r->arena);
    CHECK(!f.fault, "code corpus: %.*s: %s", (int)d.entry->names_n, d.entry->names, f.fault);
    code_vary(&f, &r->rng);
    size_t tree = r->arena.n;
    uint64_t hash;
    do {
        r->arena.n = tree;
        code_name(&f, &r->style, r->noun, r->n_pool, &r->rng);
        hash = 0xcbf29ce484222325ull;
        for (const char *c = f.name; *c; c++) hash = mix64(hash ^ (uint64_t)*c);
    } while (!key_add(r->names, r->key_cap, hash));
    doc_comment(r, &r->file);
    str_puts(&r->file, before[l]);
    Unit *unit = &r->unit[u];
    unit->at = r->file.n;
    code_print(&r->file, &f, &r->style, l == LANG_JAVA, &r->uses);
    unit->n = r->file.n - unit->at;
    str_puts(&r->file, l == LANG_PYTHON ? "\n\n\n" : "\n\n");
    r->in_file++;
    Needle *needle = &r->s->needles[u];
    needle->name = text_dup(f.name);
    needle->lang = text_dup(r->s->lang);
    needle->source = (char *)memcpy(xrealloc(NULL, unit->n + 1), r->file.p + unit->at, unit->n);
    needle->source[unit->n] = 0;
    for (int i = 0; i < 4 && r->asked[u]; i++) {
        StrBuf text = { 0 };
        code_rephrase(&text, d.part[i].p, &r->rng);
        unit->part[i] = text.p;
    }
    code_draft_free(&d);
}

// ---------------------------------------------------------------------------
// Questions

static void ask_function(Repo *r, TaskTurn *t, int u) {
    static const char *const head[4] = { "Purpose", "Input", "Output", "Procedure" };
    StrBuf q = { 0 };
    str_puts(&q, "One function of the repository is described here.\n");
    for (int i = 0; i < 4; i++) str_fmt(&q, "%d. %s: %s\n", i + 1, head[i], r->unit[u].part[i]);
    str_puts(&q, "Write down this function exactly as the repository has it, and nothing else, "
                 "between two lines of three backticks.");
    t->input = q.p;
    t->question = text_dup(q.p);
    t->answer = text_dup(r->s->needles[u].source);
    t->name = text_dup(r->s->needles[u].name);
    t->depth = r->s->context.n ? (double)r->unit[u].at / (double)r->s->context.n : 0;
    turn_label(t, r->s->needles[u].source);
}

static void ask_value(TaskTurn *t, const Pair *p, int part) {
    t->input = text_fmt("A remark in the code has an arrow from the key %s to a value. "
                        "Reply with that value alone.", p->key);
    t->question = text_dup(t->input);
    t->answer = text_dup(p->value);
    t->depth = p->depth;
    t->part = part;
    turn_label(t, p->value);
}

static void uuid_text(Rng *rng, char out[UUID_CHARS + 1]) {
    uint64_t a = rng_next(rng), b = rng_next(rng);
    snprintf(out, UUID_CHARS + 1, "%08x-%04x-4%03x-%04x-%012llx", (unsigned)(a >> 32),
             (unsigned)(a >> 16 & 0xffff), (unsigned)(a & 0xfff),
             (unsigned)(0x8000 | (b >> 48 & 0x3fff)), (unsigned long long)(b & 0xffffffffffffull));
}

static void repo_make_with(TaskSession *s, uint64_t seed, int n_turns, int n_units, bool keys) {
    Repo r;
    repo_open(&r, s, seed, n_units);
    int n_code = keys ? (n_turns + 1) / 2 : n_turns, n_keys = n_turns - n_code;
    if (keys) {
        Rng rng = session_rng(seed, s->number, STREAM_KEYS);
        r.n_pairs = (int)((int64_t)n_units * PAPER_PAIRS / PAPER_UNITS);
        if (r.n_pairs < n_turns) r.n_pairs = n_turns;
        r.pair = (Pair *)xrealloc(NULL, (size_t)r.n_pairs * sizeof *r.pair);
        for (int i = 0; i < r.n_pairs; i++) {
            uuid_text(&rng, r.pair[i].key);
            uuid_text(&rng, r.pair[i].value);
        }
    }
    Rng asked = session_rng(seed, s->number, STREAM_ASKED);
    int *slot = (int *)xrealloc(NULL, (size_t)(n_turns + 1) * sizeof *slot), *kslot = slot + n_code;
    for (int i = 0; i < n_code; i++) slot[i] = i;
    for (int i = 0; i < n_keys; i++) kslot[i] = i;
    shuffle(slot, n_code, &asked);
    shuffle(kslot, n_keys, &asked);
    for (int i = 0; i < n_code; i++) r.asked[even_slot(i, n_code, n_units)] = true;
    for (int u = 0; u < n_units; u++) add_unit(&r, u, n_units);
    flush_file(&r, n_units);
    while (s->context.n && s->context.p[s->context.n - 1] == '\n') s->context.p[--s->context.n] = 0;
    session_turns(s, n_turns);
    for (int t = 0; t < n_turns; t++) {
        if (!keys) ask_function(&r, &s->turns[t], even_slot(slot[t], n_code, n_units));
        else if (t % 2 == 0)
            ask_function(&r, &s->turns[t], even_slot(slot[t / 2], n_code, n_units));
        else ask_value(&s->turns[t], &r.pair[even_slot(kslot[t / 2], n_keys, r.n_pairs)], 1);
    }
    free(slot);
    repo_close(&r, n_units);
}

static void repoqa_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    repo_make_with(s, seed, n_turns, n_units, false);
}
static void repoqa_kv_make(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    repo_make_with(s, seed, n_turns, n_units, true);
}

const Task task_repoqa = {
    .name = "repoqa",
    .official = "scbench_repoqa",
    .category = "retr.semantic",
    .help = "repeat the function of a repository that a description without names fits",
    .turns = 5,
    .paper_units = PAPER_UNITS,
    .unit = "functions",
    .parts = { { "scbench_repoqa", 1024, SCORE_REPOQA } },
    .n_parts = 1,
    .instruction =
        "What follows is the source code of a repository, file by file. After it you get "
        "descriptions of single functions; for each one, look up the function that is meant "
        "and copy it unchanged.\n\n",
    .separator = "\n\n",
    .min_units = 1,
    .make = repoqa_make,
};
const Task task_mix_repoqa_kv = {
    .name = "mix_repoqa_kv",
    .official = "scbench_repoqa_and_kv",
    .category = "multi",
    .help = "repoqa and values of keys from remarks in the same repository, by turns",
    .turns = 8,
    .paper_units = PAPER_UNITS,
    .unit = "functions",
    .parts = { { "scbench_repoqa", 1024, SCORE_REPOQA }, { "scbench_kv", 80, SCORE_SUBSTRING } },
    .n_parts = 2,
    .instruction =
        "What follows is the source code of a repository, file by file; some remarks in it "
        "connect a key with a value. After it you are asked by turns for a function that fits "
        "a description, to be copied unchanged, and for the value of a key.\n\n",
    .separator = "\n\n",
    .min_units = 1,
    .make = repoqa_kv_make,
};
