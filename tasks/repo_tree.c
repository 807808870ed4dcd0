// repo_tree.c - repoqa over a local source tree (--repo DIR): functions are cut with the scanner of
// the scorers, a question is the function's own comment without its name, and that comment is taken
// out of the context. Functions without a comment of some length are not asked.
#include "score.h"
#include <dirent.h>
#include <sys/stat.h>

enum { STREAM_TREE = 0x74726565, MAX_FILE_BYTES = 1 << 20, MAX_DEPTH = 32, MIN_DOC_WORDS = 6 };

typedef struct {
    char *name, *doc;               // doc NULL: not asked
    size_t at, n;                   // in the file
    size_t doc_at, doc_n;           // whole lines that go when it is asked
    bool asked;
    size_t out_at, out_n;           // in the context
} Fn;
typedef struct {
    char *path, *text;              // path below the tree
    size_t n;
    int lang;
    Fn *fn;
    int n_fn;
} File;
typedef struct { File *p; int n, cap; } Files;

static const struct { const char *lang, *endings, *remark;
} langs[] = {
    { "python", ".py", "#" },      { "cpp", ".cpp .cc .cxx .hpp .hh", "//" },
    { "java", ".java", "//" },     { "php", ".php", "//" },
    { "rust", ".rs", "//" },       { "go", ".go", "//" },
    { "typescript", ".ts", "//" },
};
enum { N_TREE_LANGS = COUNTOF(langs) };

static int lang_of(const char *path) {
    const char *dot = strrchr(path, '.');
    size_t n = dot ? strlen(dot) : 0;
    for (int i = 0; i < N_TREE_LANGS && n; i++)
        for (const char *p = langs[i].endings; (p = strstr(p, dot)); p += n)
            if (p[n] == 0 || p[n] == ' ') return i;
    return -1;
}

static bool is_utf8(const char *s, size_t n) {
    for (size_t i = 0; i < n; ) {
        int32_t c;
        i += text_next(s + i, n - i, &c);
        if (c <= 0) return false;
    }
    return true;
}

static bool word_char(char c) {
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (unsigned char)c >= 0x80;
}

// ---------------------------------------------------------------------------
// Files

static void file_add(Files *all, const char *root, const char *path, int lang, size_t size) {
    FILE *f = fopen(path, "rb");
    if (!f) return;
    char *text = (char *)xrealloc(NULL, size + 1);
    size_t n = fread(text, 1, size, f);
    fclose(f);
    text[n] = 0;
    if (n == 0 || !is_utf8(text, n)) {
        free(text);
        return;
    }
    if (all->n == all->cap)
        all->p = (File *)xrealloc(all->p, (size_t)(all->cap = all->cap * 2 + 64) * sizeof *all->p);
    File *file = &all->p[all->n++];
    memset(file, 0, sizeof *file);
    file->path = text_dup(path + strlen(root) + 1);
    file->text = text;
    file->n = n;
    file->lang = lang;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

// hidden entries and links are left out, and folders of generated or foreign code
static bool skipped(const char *name) {
    static const char *const skip[] = {
        "node_modules", "target", "build", "vendor", "dist", "out"
    };
    for (size_t i = 0; i < COUNTOF(skip); i++) if (!strcmp(name, skip[i])) return true;
    return name[0] == '.';
}

static void walk(Files *all, const char *root, const char *dir, int depth) {
    struct dirent **entry;
    int n = scandir(dir, &entry, NULL, by_name);
    for (int i = 0; i < n; i++) {
        char *path = text_fmt("%s/%s", dir, entry[i]->d_name);
        struct stat st;
        int lang = lang_of(path);
        if (!skipped(entry[i]->d_name) && !lstat(path, &st)) {
            if (S_ISDIR(st.st_mode) && depth < MAX_DEPTH) walk(all, root, path, depth + 1);
            else if (S_ISREG(st.st_mode) && lang >= 0 && st.st_size <= MAX_FILE_BYTES)
                file_add(all, root, path, lang, (size_t)st.st_size);
        }
        free(path);
        free(entry[i]);
    }
    if (n >= 0) free(entry);
}

static void files_free(Files *all) {
    for (int i = 0; i < all->n; i++) {
        File *f = &all->p[i];
        for (int k = 0; k < f->n_fn; k++) {
            free(f->fn[k].name);
            free(f->fn[k].doc);
        }
        free(f->fn);
        free(f->path);
        free(f->text);
    }
    free(all->p);
}

// ---------------------------------------------------------------------------
// Functions and their comments

// the word after def, fn, func, function; else the word before the first parenthesis
static char *function_name(const char *s, size_t n) {
    static const char *const key[] = { "def", "fn", "func", "function" };
    const char *end = s + n;
    for (const char *p = s; p < end && *p != '(' && *p != '{'; ) {
        const char *q = p;
        while (q < end && word_char(*q)) q++;
        for (size_t i = 0; i < COUNTOF(key); i++) {
            if ((size_t)(q - p) != strlen(key[i]) || memcmp(p, key[i], strlen(key[i]))) continue;
            while (q < end && !word_char(*q) && *q != '(') q++;
            const char *w = q;
            while (w < end && word_char(*w)) w++;
            return text_fmt("%.*s", (int)(w - q), q);
        }
        p = q + (q == p);
    }
    const char *p = (const char *)memchr(s, '(', n), *q;
    if (!p) return text_dup("");
    while (p > s && p[-1] == ' ') p--;
    for (q = p; q > s && word_char(q[-1]); q--) ;
    return text_fmt("%.*s", (int)(p - q), q);
}

static size_t line_start(const char *t, size_t i) {
    while (i && t[i - 1] != '\n') i--;
    return i;
}
static size_t next_line(const char *t, size_t n, size_t i) {
    const char *e = (const char *)memchr(t + i, '\n', n - i);
    return e ? (size_t)(e - t) + 1 : n;
}
static const char *trimmed(const char *t, size_t i) {
    while (t[i] == ' ' || t[i] == '\t') i++;
    return t + i;
}
static bool begins(const char *p, const char *with) { return !strncmp(p, with, strlen(with)); }

// the comment lines right above a function, attributes between them skipped
static void doc_above(const File *f, Fn *fn) {
    bool hash = f->lang == 0;
    size_t top = line_start(f->text, fn->at), end = top;
    while (top > 0) {
        size_t up = line_start(f->text, top - 1);
        const char *p = trimmed(f->text, up);
        if (begins(p, "@") || begins(p, "#[") || begins(p, "template")) {
            if (top == end) end = up;
            else break;
        } else {
            bool remark = hash ? *p == '#' : begins(p, "//") || begins(p, "/*") || begins(p, "*");
            if (!remark) break;
        }
        top = up;
        if (!hash && begins(p, "/*")) break;
    }
    if (top < end) {
        fn->doc_at = top;
        fn->doc_n = end - top;
    }
}

// python: the text that is the first statement of the body, if more follows it
static void doc_inside(const File *f, Fn *fn) {
    size_t end = fn->at + fn->n, i = next_line(f->text, end, fn->at);
    while (i < end && f->text[line_start(f->text, i)] && !memchr("\"'r", *trimmed(f->text, i), 3)) {
        const char *p = trimmed(f->text, i);
        const char *before = f->text + i - 1;                   // a signature over several lines
        while (before > f->text && memchr(" \t\r\n", *before, 4)) before--;
        if (*before == ':' || *p == '#') return;
        i = next_line(f->text, end, i);
    }
    if (i >= end) return;
    const char *p = trimmed(f->text, i);
    if (*p == 'r') p++;
    if (!begins(p, "\"\"\"") && !begins(p, "'''")) return;
    char quote[4] = { p[0], p[0], p[0], 0 };
    const char *close = strstr(p + 3, quote);
    if (!close || (size_t)(close - f->text) >= end) return;
    size_t stop = next_line(f->text, end, (size_t)(close - f->text));
    const char *tail = close + 3;
    while (tail < f->text + stop && memchr(" \t\r\n", *tail, 4)) tail++;
    if (tail < f->text + stop || stop >= end) return;
    fn->doc_at = i;
    fn->doc_n = stop - i;
}

// the comment as one paragraph: marks and the function's name taken out
static char *doc_text(const File *f, const Fn *fn) {
    const char *p = f->text + fn->doc_at, *end = p + fn->doc_n;
    size_t k = strlen(fn->name);
    StrBuf out = { 0 };
    int words = 0;
    while (p < end) {
        bool head = p == f->text || p[-1] == '\n' || (out.n == 0 && p[-1] == ' ');
        if (head) while (p < end && memchr(" \t/*#!\"'", *p, 8)) p++;
        if (p == end) break;
        bool free_end = p == f->text || !word_char(p[-1]);
        if (k && free_end && (size_t)(end - p) > k && !memcmp(p, fn->name, k) && !word_char(p[k])) {
            str_puts(&out, "it");
            p += k;
        } else if (memchr(" \t\r\n", *p, 4)) {
            if (out.n && out.p[out.n - 1] != ' ') {
                str_puts(&out, " ");
                words++;
            }
            p++;
        } else str_add(&out, p++, 1);
    }
    while (out.n && memchr(" */\"'", out.p[out.n - 1], 5)) out.p[--out.n] = 0;
    if (words + 1 >= MIN_DOC_WORDS) return out.p;
    free(out.p);
    return NULL;
}

// found functions are blanked and the scan repeated, so that the classes around them stay
static void file_functions(File *f) {
    char *copy = (char *)memcpy(xrealloc(NULL, f->n + 1), f->text, f->n + 1);
    Span span;
    int cap = 0;
    while (first_function(langs[f->lang].lang, copy, f->n, &span) && span.len) {
        if (f->n_fn == cap)
            f->fn = (Fn *)xrealloc(f->fn, (size_t)(cap = cap * 2 + 16) * sizeof *f->fn);
        Fn *fn = &f->fn[f->n_fn++];
        memset(fn, 0, sizeof *fn);
        fn->at = span.at;
        fn->n = span.len;
        fn->name = function_name(f->text + span.at, span.len);
        doc_above(f, fn);
        if (f->lang == 0 && !fn->doc_n) doc_inside(f, fn);
        if (fn->doc_n) fn->doc = doc_text(f, fn);
        for (size_t i = span.at; i < span.at + span.len; i++) if (copy[i] != '\n') copy[i] = ' ';
    }
    free(copy);
}

// ---------------------------------------------------------------------------
// Session

// how many lines a name stands for among all functions: overloads are not asked
static int namesakes(const File *const *file, int n, const char *name) {
    int count = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < file[i]->n_fn; k++) count += !strcmp(file[i]->fn[k].name, name);
    return count;
}

static int by_path(const void *a, const void *b) {
    return strcmp((*(File *const *)a)->path, (*(File *const *)b)->path);
}

// keeps at most n functions of a file and the text up to their end
static void file_cut(File *f, int n) {
    if (f->n_fn <= n) return;
    for (int k = n; k < f->n_fn; k++) {
        free(f->fn[k].name);
        free(f->fn[k].doc);
    }
    f->n_fn = n;
    f->n = f->fn[n - 1].at + f->fn[n - 1].n;
    f->text[f->n] = 0;
}

// marks the askable function nearest to each even slot; returns how many were found
static int choose(File **file, int n, int n_turns, int n_units) {
    Fn **all = (Fn **)xrealloc(NULL, (size_t)n_units * sizeof *all);
    int units = 0, chosen = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < file[i]->n_fn; k++) all[units++] = &file[i]->fn[k];
    for (int j = 0; j < n_turns; j++) {
        int slot = even_slot(j, n_turns, units), best = -1;
        for (int u = 0; u < units; u++) {
            bool fits = all[u]->doc && !all[u]->asked && all[u]->name[0];
            if (!fits || (best >= 0 && abs(u - slot) >= abs(best - slot))) continue;
            if (namesakes((const File *const *)file, n, all[u]->name) == 1) best = u;
        }
        if (best < 0) continue;
        all[best]->asked = true;
        chosen++;
    }
    free(all);
    return chosen;
}

// the file's text without the comments of asked functions; notes where functions stand
static void put_file(StrBuf *out, File *f) {
    str_fmt(out, "%s path: %s\n", langs[f->lang].remark, f->path);
    size_t base = out->n, gone = 0, at = 0;
    for (int k = 0; k < f->n_fn; k++) {
        Fn *fn = &f->fn[k];
        bool cut = fn->asked && fn->doc_n, inside = fn->doc_at >= fn->at;
        if (cut && !inside) {
            str_add(out, f->text + at, fn->doc_at - at);
            at = fn->doc_at + fn->doc_n;
            gone += fn->doc_n;
        }
        fn->out_at = base + fn->at - gone;
        fn->out_n = fn->n;
        if (cut && inside) {
            str_add(out, f->text + at, fn->doc_at - at);
            at = fn->doc_at + fn->doc_n;
            gone += fn->doc_n;
            fn->out_n -= fn->doc_n;
        }
    }
    str_add(out, f->text + at, f->n - at);
    while (out->n && out->p[out->n - 1] == '\n') out->p[--out->n] = 0;
    str_puts(out, "\n\n");
}

static void put_turns(TaskSession *s, File **file, int n, int n_turns, Rng *rng) {
    int *order = (int *)xrealloc(NULL, (size_t)n_turns * sizeof *order), at = 0;
    for (int i = 0; i < n_turns; i++) {
        int j = (int)rng_below(rng, (uint64_t)i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    session_turns(s, n_turns);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < file[i]->n_fn; k++) {
            const Fn *fn = &file[i]->fn[k];
            Needle *needle = &s->needles[s->n_needles++];
            needle->name = text_dup(fn->name);
            needle->lang = text_dup(s->lang);
            needle->source = text_fmt("%.*s", (int)fn->out_n, s->context.p + fn->out_at);
            if (!fn->asked) continue;
            TaskTurn *t = &s->turns[order[at++]];
            t->input = text_fmt(
                "A comment that is left out of the code above describes one function of the "
                "repository:\n%s\nWrite down this function exactly as the repository has it, "
                "and nothing else, between two lines of three backticks.",
                fn->doc);
            t->question = text_dup(t->input);
            t->answer = text_dup(needle->source);
            t->name = text_dup(fn->name);
            t->depth = (double)fn->out_at / (double)s->context.n;
            turn_label(t, needle->source);
        }
    free(order);
}

// the language of most functions; *n of them
static int main_lang(const Files *all, int *n) {
    int count[N_TREE_LANGS] = { 0 }, best = 0;
    for (int i = 0; i < all->n; i++) count[all->p[i].lang] += all->p[i].n_fn;
    for (int l = 1; l < N_TREE_LANGS; l++) if (count[l] > count[best]) best = l;
    *n = count[best];
    return best;
}

int repo_from_tree(TaskSession *s, const char *dir, uint64_t seed, int n_turns, int n_units,
                   Err *err) {
    Files all = { 0 };
    char *root = text_dup(dir);
    for (size_t n = strlen(root); n > 1 && root[n - 1] == '/'; n--) root[n - 1] = 0;
    Rng rng = session_rng(seed, s->number, STREAM_TREE);
    int have, rc = -1, n = 0, units = 0;
    walk(&all, root, root, 0);
    for (int i = 0; i < all.n; i++) file_functions(&all.p[i]);
    int lang = main_lang(&all, &have);
    File **file = (File **)xrealloc(NULL, (size_t)(all.n + 1) * sizeof *file);
    for (int i = 0; i < all.n; i++)
        if (all.p[i].lang == lang && all.p[i].n_fn) file[n++] = &all.p[i];
    for (int i = n - 1; i > 0; i--) {
        int j = (int)rng_below(&rng, (uint64_t)i + 1);
        File *t = file[i];
        file[i] = file[j];
        file[j] = t;
    }
    int used = 0;
    for (; used < n && units < n_units; used++) {
        file_cut(file[used], n_units - units);
        units += file[used]->n_fn;
    }
    qsort(file, (size_t)used, sizeof *file, by_path);
    if (have == 0) {
        FAIL(err, "--repo %s: no functions in Python, C++, Java, PHP, Rust, Go or TypeScript; "
                  "name a folder with source files", dir);
    } else if (units < n_units) {
        FAIL(err, "--repo %s: %d functions in %s, %d are wanted; use a smaller --ctx", dir, have,
             langs[lang].lang, n_units);
    } else if (choose(file, used, n_turns, units) < n_turns) {
        FAIL(err,
             "--repo %s: fewer than %d of %d functions have a comment of at least %d words and a "
             "name of their own; use fewer --turns or a larger --ctx",
             dir, n_turns, units, MIN_DOC_WORDS);
    } else {
        const char *slash = strrchr(root, '/');
        s->units = units;
        s->lang = text_dup(langs[lang].lang);
        s->repo = text_dup(slash && slash[1] ? slash + 1 : root);
        s->needles = (Needle *)xrealloc(NULL, (size_t)units * sizeof *s->needles);
        for (int i = 0; i < used; i++) put_file(&s->context, file[i]);
        put_turns(s, file, used, n_turns, &rng);
        rc = 0;
    }
    files_free(&all);
    free(file);
    free(root);
    return rc;
}
