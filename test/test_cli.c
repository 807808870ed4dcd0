// test_cli.c - option tables, names that nearly match, lists, strict numbers.
#include "scb.h"

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_cli.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

typedef struct { const char *task; int ctx; int64_t seed; double keep; bool quiet; StrList set; } Fields;
#define AT(field) offsetof(Fields, field)
static const OptSpec spec[] = {
    { "--task", "-t", OPT_STR, AT(task), "retr_kv", "LIST", "tasks" },
    { "--ctx", NULL, OPT_INT, AT(ctx), "12", "TOKENS", "length" },
    { "--seed", NULL, OPT_INT64, AT(seed), NULL, "S", "seed" },
    { "--keep", NULL, OPT_REAL, AT(keep), NULL, "F", "share" },
    { "--quiet", NULL, OPT_FLAG, AT(quiet), NULL, NULL, "no progress" },
    { "--set", NULL, OPT_LIST, AT(set), NULL, "M.n=v", "sizes" },
};
static Fields f;
static StrList pos;
static bool parsed;

// parses a line of words; "" or the sentence
static const char *parse(const char *line) {
    static Err err;
    static char text[256];
    char *argv[32] = { (char *)"prog" };
    int argc = 1;
    snprintf(text, sizeof text, "%s", line);
    for (char *w = strtok(text, " "); w; w = strtok(NULL, " ")) argv[argc++] = w;
    free(pos.p);
    if (parsed) free(f.set.p);
    parsed = true;
    memset(&err, 0, sizeof err);
    memset(&f, 0xff, sizeof f);
    if (!opts_parse(spec, COUNTOF(spec), argc, argv, &f, &pos, &err)) return "";
    EXPECT(err.code == EXIT_USAGE, "'%s' exits with %d", line, err.code);
    return err.msg;
}

static void refused(const char *line, const char *words) {
    const char *said = parse(line);
    EXPECT(*said && strstr(said, words), "'%s': '%s' expected, got '%s'", line, words, said);
}

static void test_options(void) {
    EXPECT(!*parse(""), "no options");
    EXPECT(!strcmp(f.task, "retr_kv") && f.ctx == 12 && f.seed == 0 && f.keep == 0 && !f.quiet &&
           f.set.n == 0 &&
           pos.n == 0, "defaults");
    EXPECT(!*parse("a --ctx=5 -t x --seed 9007199254740993 --keep .5 --quiet --set p --set=q=1 -- --b"), "all kinds");
    EXPECT(f.ctx == 5 && !strcmp(f.task, "x") && f.seed == 9007199254740993 && f.keep == 0.5 &&
           f.quiet, "values");
    EXPECT(f.set.n == 2 && !strcmp(f.set.p[0], "p") && !strcmp(f.set.p[1], "q=1"),
           "a list in order");
    EXPECT(pos.n == 2 && !strcmp(pos.p[0], "a") && !strcmp(pos.p[1], "--b"), "positionals");
    EXPECT(!*parse("--ctx -3") && f.ctx == -3, "a negative value");
    EXPECT(!*parse("--task=--odd") && !strcmp(f.task, "--odd"),
           "a value that looks like an option");
    EXPECT(!*parse("-") && pos.n == 1, "a lone dash is a name");
    refused("--ctxx 3", "did you mean --ctx?");
    refused("--qiuet", "did you mean --quiet?");
    refused("--nothing-like-it", "unknown option '--nothing-like-it'");
    refused("-z", "unknown option '-z'");
    refused("--ctx", "needs a value: --ctx TOKENS");
    refused("--ctx --seed 3", "--ctx needs a value");
    refused("--ctx 3 --ctx 3", "--ctx is given twice");
    refused("--quiet --quiet", "--quiet is given twice");
    refused("--quiet=1", "--quiet takes no value");
    for (const char *const *bad = (const char *const[]){ "3q", "q", "0x3", "3.0", "1e3", "+-3", "",
                                                         NULL }; *bad; bad++) {
        char line[32];
        snprintf(line, sizeof line, "--ctx=%s", *bad);
        refused(line, "--ctx wants an integer");
    }
    refused("--ctx 2147483648", "from -2147483648 to 2147483647");
    refused("--seed 9223372036854775808", "--seed wants an integer from");
    refused("--keep nan", "--keep wants a number");
    refused("--keep inf", "--keep wants a number");
    refused("--keep 0.5x", "--keep wants a number");
}

static void test_names(void) {
    static const char *const names[] = { "full", "keep-last", "streamingllm", "corm", "snapkv",
                                         "pyramidkv" };
    static const struct { const char *word; int at; } cases[] = {
        { "ful", 0 }, { "fulll", 0 }, { "FULL", 0 }, { "fulk", 0 }, { "flul", 0 },
        { "keeplast", 1 }, { "keep_last", 1 },
        { "streaming-llm", 2 }, { "stream", 2 }, { "streamlingllm", 2 }, { "crom", 3 },
        { "snap", 4 },
        { "snapvk", 4 }, { "pyramid", 5 }, { "quest", -1 }, { "", -1 }, { "x", -1 }, { "kv", -1 },
    };
    for (size_t i = 0; i < COUNTOF(cases); i++) {
        int got = did_you_mean(cases[i].word, names, COUNTOF(names));
        EXPECT(got == cases[i].at, "'%s' is nearest to %s", cases[i].word,
               got < 0 ? "nothing" : names[got]);
    }
    static const char *const two[] = { "kv" };
    EXPECT(did_you_mean("vk", two, 1) == 0, "a swap is one edit");
    char longer[200];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    EXPECT(did_you_mean(longer, names, COUNTOF(names)) == -1, "a very long word");
    EXPECT(did_you_mean("full", names, 0) == -1, "no names");
}

static void test_lists(void) {
    static const char *const wanted[] = { "a", "", "bcd", "" };
    const char *cursor = "a,,bcd,";
    char item[4];
    for (int i = 0; i < 4; i++)
        EXPECT(list_next(&cursor, item, sizeof item) && !strcmp(item, wanted[i]), "item %d is '%s'",
               i, item);
    EXPECT(!list_next(&cursor, item, sizeof item), "a fifth item");
    cursor = "abcd,e";
    EXPECT(list_next(&cursor, item, sizeof item) && !*item,
           "an item that does not fit comes out empty");
    EXPECT(list_next(&cursor, item, sizeof item) && !strcmp(item, "e"), "the next one is whole");
    int64_t v;
    double x;
    Err err = { "", 0 };
    EXPECT(!parse_int("--n", "-7", -7, 7, &v, &err) && v == -7, "lower border");
    EXPECT(parse_int("--n", "8", -7, 7, &v, &err) && strstr(err.msg, "from -7 to 7"), "beyond: %s",
           err.msg);
    EXPECT(!parse_real("--f", "1e-3", 0, 1, &x, &err) && x == 1e-3, "a real");
    EXPECT(parse_real("--f", "1.5", 0, 1, &x, &err) && strstr(err.msg, "from 0 to 1"), "beyond: %s",
           err.msg);
}

static void test_help(void) {
    char *text;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    opts_help(out, spec, COUNTOF(spec));
    fclose(out);
    for (size_t i = 0; i < COUNTOF(spec); i++)
        EXPECT(strstr(text, spec[i].name), "%s is not in the help", spec[i].name);
    EXPECT(strstr(text, "(default retr_kv)") && strstr(text, "-t, --task LIST"), "help:\n%s", text);
    free(text);
}

int main(void) {
    test_options();
    test_names();
    test_lists();
    test_help();
    free(pos.p);
    free(f.set.p);
    printf("%d failures\n", failures);
    return failures != 0;
}
