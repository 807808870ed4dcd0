// test_solve_novel.c - a reader that knows text and question only answers every question of 200
// seeds of en_qa, zh_qa, en_mc, en_sum and mix_sum_niah, and finds no second answer that fits.
//
// It reads by its own patterns: sentences that tell of a purchase, a meeting, ... become facts, a
// question becomes a search among them. Nothing of the world behind the text is looked at.
#include "tasks/tasks.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <ctype.h>
#include <pcre2.h>
#include <strings.h>

enum { SEEDS = 200, TEXT = 96 };

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    if (failures++ < 20) { \
        printf("test_solve_novel.c:%d: ", __LINE__); \
        printf(__VA_ARGS__); \
        putchar('\n'); } } } while (0)

// ---------------------------------------------------------------------------
// Patterns. <a> acts, <b> is the other person, <p> a place, <k> a colour, <o> a thing, <n> a price,
// <m> a means, <r> a relation, <j> a trade.

typedef enum { BUY, MEET, TRAVEL, LETTER, JOB, KIN, SEEN, N_KINDS } Kind;
typedef struct { int kind; const char *pattern; } Pattern;

// "A" etc. in capitals stand for the groups below
static const struct { char letter; const char *en, *zh; } group[] = {
    { 'A', "(?<a>[A-Z][a-z]+ [A-Z][a-z]+)", "(?<a>\\p{Han}{3})" },
    { 'B', "(?<b>[A-Z][a-z]+ [A-Z][a-z]+)", "(?<b>\\p{Han}{3})" },
    { 'P', "the (?<p>[A-Z][a-z]+ [A-Z][a-z]+)", "(?<p>\\p{Han}{3,5}?)" },
    { 'K', "(?:[Aa]n?|[Tt]he) (?<k>[a-z]+)", "(?<k>\\p{Han}{2})的" },
    { 'O', "(?<o>[a-z][a-z -]+?)", "(?<o>\\p{Han}{2,8}?)" },
    { 'N', "(?<n>[A-Za-z][a-z -]*?)", "(?<n>[一二三四五六七八九十百千零]+)" },
    { 'M', "(?<m>[a-z][a-z -]+?)", "(?<m>\\p{Han}{2,3})" },
    { 'R', "(?<r>[a-z-]+)", "(?<r>姐姐|妹妹|哥哥|弟弟|[姑姨舅]母|[叔舅]父|姑父|[表堂][姐妹哥弟]|"
      "外甥女?|侄[女子]|干[娘爹]|嫂子|姐夫)" },
    { 'J', "(?<j>[a-z][a-z -]+?)", "(?<j>\\p{Han}{2,7}?)" },
    { 'V', "[a-z-]+", "\\p{Han}" },             // an adverb
};

#define PREPOSITION \
    "above|across|along|around|behind|below|beside|beyond|by|near|over|past|through|under"

static const Pattern read_en[] = {
    { BUY, "At P, A V bought K O from B for N crowns" },
    { BUY, "A V paid B (?<n>[a-z][a-z -]*?) crowns for K O at P\\." },
    { BUY, "At P, B (?:sold|made over|parted with) K O to A; the price was N crowns" },
    { BUY, "For (?<n>[a-z][a-z -]*?) crowns A acquired K O which B had [a-z ]+ at P\\." },
    { BUY, "It was at P that A haggled B down to (?<n>[a-z][a-z -]*?) crowns for K O\\." },
    { BUY, "A counted (?<n>[a-z][a-z -]*?) crowns into B's [a-z]+ at P and V carried off K O\\." },
    { BUY, "“N crowns,” [a-z]+ B at P, and so K O passed to A\\." },
    { BUY, "B wanted more, but (?<n>[a-z][a-z -]*?) crowns it was, and A walked away from P with "
           "K O\\." },
    { BUY, "An? (?<k>[a-z]+) O caught the eye of A at P, and B let it go for N crowns" },
    { MEET, "A V met B at P" },
    { MEET, "At P, A ran into B" },
    { MEET, "A and B met at P" },
    { MEET, "B was the last person A expected to meet at P" },
    { MEET, "At P, under [^.]*?, A came face to face with B" },
    { MEET, "A had an appointment with B at P" },
    { MEET, "A bumped into B at P" },
    { MEET, "By chance A and B found themselves at P together" },
    { TRAVEL, "A travelled to P by M, " },
    { TRAVEL, "By M, A made the [a-z-]+ journey to P" },
    { TRAVEL, "A took the M to P and shared" },
    { TRAVEL, "The M carried A to P, past" },
    { TRAVEL, "A arrived at P by M, V, smelling" },
    { TRAVEL, "It was the M that brought A to P, " },
    { TRAVEL, "A set out for P by M and got there" },
    { LETTER, "A wrote to B, [^.]*? asked for the loan of an? O\\." },
    { LETTER, "letter from A reached B: [^.]*? begged for an? O\\." },
    { LETTER, "B opened a letter in which A asked, V, for an? O\\." },
    { LETTER, "wrote A to B, “send me an? O, and news" },
    { LETTER, "In a letter to B, A [a-z]+ of [a-z -]+ and requested an? O\\." },
    { LETTER, "A sealed a letter for B, (?:a request|asking) for an? O, and" },
    { JOB, "A had been an? J since the" },
    { JOB, "A earned a living as an? J (?:" PREPOSITION ") the" },
    { JOB, "As an? J, A knew" },
    { JOB, "A worked as an? J, " },
    { JOB, "Everybody agreed that A was the best J (?:" PREPOSITION ") the" },
    { JOB, "“I am an? J,” [a-z]+ A, " },
    { JOB, "Over the door of A hung [^.]*?, as befits an? J\\." },
    { KIN, "A and B were related: \\g{b} was \\g{a}'s R, " },
    { KIN, "B, A's R, was known for" },
    { KIN, "A had an? R, B by name" },
    { KIN, "The R of A was B, " },
    { KIN, "A took after B, (?:his|her) R, " },
    { SEEN, "(?:saw|noticed|spotted) A at P, " },
    { SEEN, "A was seen at P, " },
    { SEEN, "A stood at P and" },
    { SEEN, "At P, A waited V beside" },
    { SEEN, "Anyone who passed P could see A there" },
    { SEEN, "A had come to P alone and" },
    { SEEN, "A spent an hour at P, " },
};

static const Pattern read_zh[] = {
    { BUY, "在P，A(?:付给|交给|递给)BN块银元，(?:买下|换来|取走)KO。" },
    { BUY, "A花N块银元，在P从B手里买得KO。" },
    { BUY, "在P，B把KO卖给A，收了N块银元。" },
    { BUY, "“N块银元。”B在P(?:开了口|说|道|答道|笑道|叹道|嘟囔|插嘴|喊道|低声说|高声说|回答|接话|打岔|感叹|"
           "抱怨|劝道|辩解|自语)，A就买走了KO。" },
    { BUY, "A在P看中KO，向B买来，(?:花了|费去|付清)N块银元。" },
    { BUY, "B要价太高，A在P还到N块银元，(?:才|终于|总算|\\p{Han}{4}地)买下KO。" },
    { BUY, "KO到了A手里，是在P向B买的，\\p{Han}{2}N块银元。" },
    { MEET, "A在P遇见B，" },
    { MEET, "在P，A碰上了B，" },
    { MEET, "A和B约在P见面" },
    { MEET, "，A与B在P相逢，" },
    { MEET, "A赶到P会见B，" },
    { MEET, "A没想到在P撞见B，" },
    { TRAVEL, "A乘M到了P，" },
    { TRAVEL, "A坐着M前往P，" },
    { TRAVEL, "(?:^|[。”])M把A送到P，" },
    { TRAVEL, "A搭M去了P，一路" },
    { TRAVEL, "去P的路上，A坐的是M，" },
    { LETTER, "A写信给B，谈了\\p{Han}+，\\p{Han}{2}借O一用" },
    { LETTER, "A的信到了B手里，信上求借O，" },
    { LETTER, "B\\p{Han}{4}地拆开A的来信，(?:原来|果然|竟)是要借O。" },
    { LETTER, "A寄信给B，\\p{Han}{4}，要借O。" },
    { LETTER, "A托人带信给B，问能否借O，" },
    { JOB, "A是个J，" },
    { JOB, "A以J为业，" },
    { JOB, "做J的A，" },
    { JOB, "A靠当J过活，" },
    { JOB, "是个J。”A" },
    { JOB, "都说A是最好的J，" },
    { KIN, "B是A的R，" },
    { KIN, "A有个R，名叫B，" },
    { KIN, "A的R就是B，" },
    { KIN, "A喊B作R，" },
    { SEEN, "有人看见A在P，" },
    { SEEN, "A独自站在P，" },
    { SEEN, "A出现在P，" },
    { SEEN, "A在P待了半日，" },
    { SEEN, "路过P的人都看到了A，" },
};

typedef enum {
    Q_PRICE, Q_COLOUR, Q_SHOP, Q_SELLER, Q_SELLER_JOB, Q_KIN, Q_LETTER, Q_WRITER_JOB, Q_MEET_COUNT,
    Q_MEET_DATE, Q_MEET_WHERE, Q_SPEND, Q_SEEN, Q_DEAREST, Q_BOUGHT_AT, Q_BY_COLOUR, Q_MEANS,
    Q_JOURNEYS, Q_CHEAP
} Question;

static const Pattern ask_en[] = {
    { Q_PRICE, "^How much did A pay for the O\\?$" },
    { Q_PRICE, "^What did the O cost A\\?$" },
    { Q_COLOUR, "^What colour was the O that A bought\\?$" },
    { Q_SHOP, "^At which place did A buy the O\\?$" },
    { Q_SELLER, "^From whom did A buy the O\\?$" },
    { Q_SELLER, "^Who sold A the O\\?$" },
    { Q_SELLER_JOB, "^What is the trade of the person who sold A the O\\?$" },
    { Q_KIN, "^What did A's R buy\\?$" },
    { Q_LETTER, "^What did A ask for in the letter to B\\?$" },
    { Q_WRITER_JOB, "^What is the trade of the person who wrote to B\\?$" },
    { Q_MEET_COUNT, "^How many different people did A meet at P\\?$" },
    { Q_MEET_DATE, "^On what date did A meet B\\?$" },
    { Q_MEET_WHERE, "^Where did A and B meet\\?$" },
    { Q_SPEND, "^How much did A spend in all\\?$" },
    { Q_SPEND, "^How many crowns did A pay for everything taken together\\?$" },
    { Q_SEEN, "^Where was A last seen\\?$" },
    { Q_DEAREST, "^What was the most expensive thing A bought\\?$" },
    { Q_BOUGHT_AT, "^What did A buy at P\\?$" },
    { Q_BY_COLOUR, "^Which of the things A bought was (?<k>[a-z]+)\\?$" },
    { Q_MEANS, "^By what means did A travel to P\\?$" },
    { Q_JOURNEYS, "^How many journeys did A make\\?$" },
    { Q_CHEAP, "^How many of the things A bought cost less than N crowns\\?$" },
};

static const Pattern ask_zh[] = {
    { Q_PRICE, "^A买(?!东西一共)O花了多少钱？$" },
    { Q_COLOUR, "^A买的O是什么颜色的？$" },
    { Q_SHOP, "^A是在什么地方买到O的？$" },
    { Q_SELLER, "^A的O是向谁买的？$" },
    { Q_SELLER_JOB, "^把O卖给A的人是做什么的？$" },
    { Q_KIN, "^A的R买了什么？$" },
    { Q_LETTER, "^A写信向B借什么？$" },
    { Q_WRITER_JOB, "^写信给B的人是做什么的？$" },
    { Q_MEET_COUNT, "^A在P一共见过几个不同的人？$" },
    { Q_MEET_DATE, "^A见到B是哪一天？$" },
    { Q_MEET_WHERE, "^A和B是在哪里见面的？$" },
    { Q_SPEND, "^A买东西一共花了多少钱？$" },
    { Q_SEEN, "^A最后一次被人看见是在哪里？$" },
    { Q_DEAREST, "^A买的东西里哪一样最贵？$" },
    { Q_BOUGHT_AT, "^A在P买了什么？$" },
    { Q_BY_COLOUR, "^A买的东西里哪一样是(?<k>\\p{Han}{2})的？$" },
    { Q_MEANS, "^A是怎么去P的？$" },
    { Q_JOURNEYS, "^A一共搭乘各种车船轿马出行几次？$" },
    { Q_CHEAP, "^A买的东西里有几样不到N块银元？$" },
};

// ---------------------------------------------------------------------------
// Reading

typedef struct { int kind; pcre2_code *re; } Reader;
typedef struct { Reader *r; int n; } Readers;

// a fact or a question: the named groups of one match
typedef struct {
    int kind;
    char a[TEXT], b[TEXT], p[TEXT], k[TEXT], o[TEXT], n[TEXT], m[TEXT], r[TEXT], j[TEXT];
    char date[TEXT];
} Fact;
typedef struct { Fact *p; int n, cap; } Facts;

// is s[0] of a pattern one of the capitals that stand for a group? Not within \\p{Han} or a word.
static int group_at(const char *pattern, const char *s, bool zh) {
    char before = s > pattern ? s[-1] : ' ';
    int k = 0, n = (int)COUNTOF(group);
    if (before == '\\' || before == '{') return -1;
    if (!zh && (isalpha((unsigned char)before) || isalpha((unsigned char)s[1]))) return -1;
    while (k < n && group[k].letter != *s) k++;
    return k < n ? k : -1;
}

static Readers readers(const Pattern *table, size_t n, bool zh) {
    Readers rs = { (Reader *)xrealloc(NULL, n * sizeof *rs.r), (int)n };
    for (size_t i = 0; i < n; i++) {
        StrBuf b = { NULL, 0, 0 };
        for (const char *s = table[i].pattern; *s; s++) {
            int k = group_at(table[i].pattern, s, zh);
            if (k >= 0) str_puts(&b, zh ? group[k].zh : group[k].en);
            else str_add(&b, s, 1);
        }
        int code;
        size_t at;
        rs.r[i].kind = table[i].kind;
        rs.r[i].re = pcre2_compile((PCRE2_SPTR)b.p, b.n, PCRE2_UTF, &code, &at, NULL);
        if (!rs.r[i].re) die_code(1, "pattern %s: error %d at %zu", b.p, code, at);
        pcre2_jit_compile(rs.r[i].re, PCRE2_JIT_COMPLETE);
        free(b.p);
    }
    return rs;
}

static void readers_free(Readers *rs) {
    for (int i = 0; i < rs->n; i++) pcre2_code_free(rs->r[i].re);
    free(rs->r);
}

static void take(pcre2_match_data *m, const char *name, char *out) {
    size_t n = TEXT;
    out[0] = 0;
    if (pcre2_substring_copy_byname(m, (PCRE2_SPTR)name, (PCRE2_UCHAR *)out, &n)) out[0] = 0;
}

static bool match(const Reader *r, const char *s, size_t n, size_t from, Fact *f, size_t *end) {
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(r->re, NULL);
    bool found = pcre2_match(r->re, (PCRE2_SPTR)s, n, from, 0, m, NULL) > 0;
    if (found) {
        memset(f, 0, sizeof *f);
        f->kind = r->kind;
        take(m, "a", f->a), take(m, "b", f->b), take(m, "p", f->p), take(m, "k", f->k);
        take(m, "o", f->o), take(m, "n", f->n), take(m, "m", f->m), take(m, "r", f->r);
        take(m, "j", f->j);
        *end = pcre2_get_ovector_pointer(m)[1];
    }
    pcre2_match_data_free(m);
    return found;
}

static void facts_add(Facts *fs, const Fact *f) {
    if (fs->n == fs->cap) {
        fs->cap = fs->cap ? 2 * fs->cap : 64;
        fs->p = (Fact *)xrealloc(fs->p, (size_t)fs->cap * sizeof *fs->p);
    }
    fs->p[fs->n++] = *f;
}

// every fact of the novel in the order of the text, with the date above its chapter
static Facts read_novel(const Readers *rs, const StrBuf *text, bool zh) {
    Facts fs = { NULL, 0, 0 };
    char date[TEXT] = "";
    for (const char *s = text->p, *end = s + text->n, *e; s < end; s = e + 2) {
        e = (const char *)memmem(s, (size_t)(end - s), "\n\n", 2);
        if (!e) e = end;
        const char *line = (const char *)memchr(s, '\n', (size_t)(e - s));
        if (line) {                             // heading: title, date
            const char *d = line + 1;
            if (!zh) d = strstr(d, ", ") + 2;
            snprintf(date, sizeof date, "%.*s", (int)(e - d), d);
            continue;
        }
        int told = 0;
        for (int i = 0; i < rs->n; i++) {
            Fact f;
            size_t from = 0, n = (size_t)(e - s);
            while (match(&rs->r[i], s, n, from, &f, &from)) {
                snprintf(f.date, sizeof f.date, "%s", date);
                facts_add(&fs, &f);
                told++;
            }
        }
        EXPECT(told <= 1, "one scene tells %d facts: %.*s", told, (int)(e - s), s);
    }
    return fs;
}

// ---------------------------------------------------------------------------
// Numbers as the novels write them, alone or with what they count; -1 if it is none

static bool is_unit(const char *s) {
    static const char *const unit[] = { "", "crowns", "块银元", "个", "次", "样" };
    for (size_t i = 0; i < COUNTOF(unit); i++) if (!strcmp(s, unit[i])) return true;
    return false;
}

static int number_of_en(const char *s) {
    static const char *const word[] = {
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
        "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety" };
    int sum = 0, part = 0;
    for (const char *from = s; *s; s += strspn(s, " -")) {
        size_t n = strcspn(s, " -");
        int k = 0, all = (int)COUNTOF(word);
        while (k < all && (strlen(word[k]) != n || strncasecmp(s, word[k], n))) k++;
        if (k < 20) part += k;
        else if (k < all) part += 10 * (k - 18);
        else if (!strncmp(s, "hundred", n)) part *= 100;
        else if (!strncmp(s, "thousand", n)) sum += 1000 * part, part = 0;
        else if (strncmp(s, "and ", 4)) return s > from && is_unit(s) ? sum + part : -1;
        s += n;
    }
    return sum + part;
}

static int number_of_zh(const char *s) {
    static const struct { const char *s; int value; } sign[] = {
        { "零", 0 }, { "一", 1 }, { "二", 2 }, { "两", 2 }, { "三", 3 }, { "四", 4 }, { "五", 5 },
        { "六", 6 }, { "七", 7 }, { "八", 8 }, { "九", 9 }, { "十", -10 }, { "百", -100 },
        { "千", -1000 } };
    int sum = 0, part = 0;
    for (const char *from = s; *s; s += 3) {
        size_t k = 0;
        while (k < COUNTOF(sign) && strncmp(s, sign[k].s, 3)) k++;
        if (k == COUNTOF(sign)) return s > from && is_unit(s) ? sum + part : -1;
        if (sign[k].value >= 0) part = sign[k].value;
        else sum += (part ? part : 1) * -sign[k].value, part = 0;
    }
    return sum + part;
}

static int number_of(const char *s) {
    char *end;
    long n = strtol(s, &end, 10);
    if (end > s) return is_unit(end + strspn(end, " ")) ? (int)n : -1;
    return !*s ? -1 : (unsigned char)*s < 128 ? number_of_en(s) : number_of_zh(s);
}

// ---------------------------------------------------------------------------
// Answering: the different answers that fit

typedef struct { char text[8][TEXT]; int n; } Found;

static void found_add(Found *f, const char *text) {
    for (int i = 0; i < f->n; i++) if (!strcmp(f->text[i], text)) return;
    if (f->n < 8) snprintf(f->text[f->n++], TEXT, "%s", text);
}

static bool is(const char *a, const char *b) { return *a && !strcmp(a, b); }

static void jobs_of(const Facts *fs, const char *who, Found *out) {
    for (int i = 0; i < fs->n; i++)
        if (fs->p[i].kind == JOB && is(fs->p[i].a, who)) found_add(out, fs->p[i].j);
}

static void answer_purchase(const Facts *fs, const Fact *q, Found *out) {
    int sum = 0, cheap = 0, best = -1;
    for (int i = 0; i < fs->n; i++) {
        const Fact *f = &fs->p[i];
        if (f->kind != BUY || !is(f->a, q->a)) continue;
        int n = number_of(f->n);
        sum += n;
        cheap += n < number_of(q->n);
        if (best < 0 || n > number_of(fs->p[best].n)) best = i;
        bool it = is(f->o, q->o);
        if (q->kind == Q_PRICE && it) found_add(out, f->n);
        if (q->kind == Q_COLOUR && it) found_add(out, f->k);
        if (q->kind == Q_SHOP && it) found_add(out, f->p);
        if (q->kind == Q_SELLER && it) found_add(out, f->b);
        if (q->kind == Q_SELLER_JOB && it) jobs_of(fs, f->b, out);
        if (q->kind == Q_BOUGHT_AT && is(f->p, q->p)) found_add(out, f->o);
        if (q->kind == Q_BY_COLOUR && is(f->k, q->k)) found_add(out, f->o);
    }
    char text[TEXT];
    snprintf(text, sizeof text, "%d", q->kind == Q_SPEND ? sum : cheap);
    if (q->kind == Q_SPEND || q->kind == Q_CHEAP) found_add(out, text);
    if (q->kind != Q_DEAREST || best < 0) return;
    for (int i = 0; i < fs->n; i++)
        if (fs->p[i].kind == BUY && is(fs->p[i].a, q->a) &&
            number_of(fs->p[i].n) == number_of(fs->p[best].n)) found_add(out, fs->p[i].o);
}

static void answer_meeting(const Facts *fs, const Fact *q, Found *out) {
    Found met = { { "" }, 0 };
    char text[TEXT];
    for (int i = 0; i < fs->n; i++) {
        const Fact *f = &fs->p[i];
        if (f->kind != MEET || (!is(f->a, q->a) && !is(f->b, q->a))) continue;
        const char *other = is(f->a, q->a) ? f->b : f->a;
        if (is(f->p, q->p)) found_add(&met, other);
        if (!is(other, q->b)) continue;
        if (q->kind == Q_MEET_DATE) found_add(out, f->date);
        if (q->kind == Q_MEET_WHERE) found_add(out, f->p);
    }
    snprintf(text, sizeof text, "%d", met.n);
    if (q->kind == Q_MEET_COUNT) found_add(out, text);
}

static void answer_rest(const Facts *fs, const Fact *q, Found *out) {
    int journeys = 0;
    char text[TEXT] = "";
    for (int i = 0; i < fs->n; i++) {
        const Fact *f = &fs->p[i];
        if (q->kind == Q_LETTER && f->kind == LETTER && is(f->a, q->a) && is(f->b, q->b))
            found_add(out, f->o);
        if (q->kind == Q_WRITER_JOB && f->kind == LETTER && is(f->b, q->b)) jobs_of(fs, f->a, out);
        if (q->kind == Q_MEANS && f->kind == TRAVEL && is(f->a, q->a) && is(f->p, q->p))
            found_add(out, f->m);
        if (q->kind == Q_JOURNEYS && f->kind == TRAVEL && is(f->a, q->a)) journeys++;
        if (q->kind == Q_SEEN && f->kind == SEEN && is(f->a, q->a))
            snprintf(text, TEXT, "%s", f->p);
        if (q->kind == Q_KIN && f->kind == KIN && is(f->a, q->a) && is(f->r, q->r))
            for (int j = 0; j < fs->n; j++)
                if (fs->p[j].kind == BUY && is(fs->p[j].a, f->b)) found_add(out, fs->p[j].o);
    }
    if (q->kind == Q_JOURNEYS) snprintf(text, TEXT, "%d", journeys);
    if (*text) found_add(out, text);
}

static void answer(const Facts *fs, const Fact *q, Found *out) {
    out->n = 0;
    switch (q->kind) {
    case Q_MEET_COUNT: case Q_MEET_DATE: case Q_MEET_WHERE: answer_meeting(fs, q, out); break;
    case Q_LETTER: case Q_WRITER_JOB: case Q_MEANS: case Q_JOURNEYS: case Q_SEEN: case Q_KIN:
        answer_rest(fs, q, out);
        break;
    default: answer_purchase(fs, q, out);
    }
}

// the same answer, numbers by their value
static bool same(const char *a, const char *b) {
    return !strcmp(a, b) || (number_of(a) >= 0 && number_of(a) == number_of(b));
}

static void check_options(const TaskTurn *t, const char *found, const char *where) {
    int fits = 0, right = -1;
    for (int i = 0; i < 4; i++) {
        if (!strcmp(t->options[i], t->answer)) right = i;
        fits += same(found, t->options[i]);
        for (int j = 0; j < i; j++)
            EXPECT(strcmp(t->options[i], t->options[j]), "%s: options %d and %d are the same",
                   where, j, i);
    }
    EXPECT(fits == 1 && right >= 0 && same(found, t->options[right]),
           "%s: %d options fit '%s' of %s", where, fits, found, t->input);
    EXPECT(t->n_labels == 2 && right >= 0 && t->label[1][0] == 'A' + right && !t->label[1][1] &&
           !strcmp(t->label[0], t->answer), "%s: labels are not text and letter", where);
}

static void solve_novel(const Task *task, int n_turns, int n_units, bool zh) {
    Readers rs = zh ? readers(read_zh, COUNTOF(read_zh), zh)
                    : readers(read_en, COUNTOF(read_en), zh);
    Readers qs = zh ? readers(ask_zh, COUNTOF(ask_zh), zh) : readers(ask_en, COUNTOF(ask_en), zh);
    int solved = 0, asked[Q_CHEAP + 1] = { 0 };
    for (int seed = 1; seed <= SEEDS; seed++) {
        TaskSession s;
        memset(&s, 0, sizeof s);
        s.number = seed % 7;
        task->make(&s, (uint64_t)seed, n_turns, n_units);
        Facts fs = read_novel(&rs, &s.context, zh);
        for (int t = 0; t < n_turns; t++) {
            const TaskTurn *turn = &s.turns[t];
            Fact q;
            Found found = { { "" }, 0 };
            char where[64];
            size_t end;
            int i = 0;
            snprintf(where, sizeof where, "%s seed %d turn %d", task->name, seed, t);
            while (i < qs.n && !match(&qs.r[i], turn->input, strlen(turn->input), 0, &q, &end)) i++;
            EXPECT(i < qs.n, "%s: cannot read %s", where, turn->input);
            if (i == qs.n) continue;
            answer(&fs, &q, &found);
            EXPECT(found.n == 1, "%s: %d answers to %s (%s | %s), golden %s", where, found.n,
                   turn->input, found.text[0], found.n > 1 ? found.text[1] : "", turn->answer);
            if (found.n != 1) continue;
            EXPECT(same(found.text[0], turn->answer), "%s: read '%s', golden '%s': %s", where,
                   found.text[0], turn->answer, turn->input);
            asked[q.kind]++;
            solved++;
            if (task == &task_en_mc) check_options(turn, found.text[0], where);
        }
        free(fs.p);
        session_clear(&s);
    }
    for (int k = 0; k <= Q_CHEAP; k++)
        EXPECT(asked[k] > 0, "%s: kind %d was never asked", task->name, k);
    printf("%s: %d of %d questions solved from the text\n", task->name, solved, SEEDS * n_turns);
    readers_free(&rs);
    readers_free(&qs);
}

// ---------------------------------------------------------------------------
// Papers: the one with the asked title holds every fact of the reference, no other holds any

#define NUM(name) "(?<" #name ">[\\d.]+)"
#define WORD(name) "(?<" #name ">\\w+)"
#define TERM(name) "(?<" #name ">.+)"

static const char *const reference[] = {
    "introduces " WORD(M) ", a system for " TERM(T) " based on " TERM(X) ", which raises " TERM(Q)
    " on " WORD(D) " from the " NUM(V) " of " WORD(W) " to " NUM(U) " with costs cut "
    NUM(C) "-fold",
    "proposes to use " TERM(X) " for " TERM(T) "; the resulting method, " WORD(M) ", beats " WORD(W)
    " on " WORD(D) " by " NUM(G) " points of " TERM(Q) " \\(" NUM(U) " versus " NUM(V) "\\) and is "
    NUM(C) " times cheaper",
    "tackles " TERM(T) " with " WORD(M) ", a method whose central idea is " TERM(X)
    "; it improves the " TERM(Q) " of " WORD(W) " on " WORD(D) " by " NUM(G) " points to " NUM(U)
    " while costing " NUM(C) " times less",
    "shows that " TERM(X) ", realised in " WORD(M) ", helps " TERM(T) ": compared with " WORD(W)
    ", " TERM(Q) " on " WORD(D) " rises by " NUM(G) " points, from " NUM(V) " to " NUM(U) ", for a "
    NUM(C) "-fold lower cost",
};

static pcre2_code *compiled(const char *pattern) {
    int code;
    size_t at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_MULTILINE, &code, &at, NULL);
    if (!re) die_code(1, "pattern %s: error %d at %zu", pattern, code, at);
    return re;
}

typedef struct { const char *s; size_t n; } Slice;

// papers begin at a title line, which stands above a line "X. Name and Y. Name"
static int split_papers(const StrBuf *text, Slice *out, int most) {
    int n = 0;
    size_t from = 0;
    pcre2_code *re =
        compiled("^[^\\n]+\\n[A-Z]\\. [A-Z][a-z]+ and [A-Z]\\. [A-Z][a-z]+\\n\\n");
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(re, NULL);
    while (n < most && pcre2_match(re, (PCRE2_SPTR)text->p, text->n, from, 0, m, NULL) > 0) {
        const size_t *o = pcre2_get_ovector_pointer(m);
        out[n].s = text->p + o[0];
        if (n) out[n - 1].n = (size_t)(out[n].s - out[n - 1].s);
        out[n].n = text->n - o[0];
        n++;
        from = o[1];
    }
    pcre2_match_data_free(m);
    pcre2_code_free(re);
    return n;
}

// as a whole word or number, whatever its capitals
static bool holds(Slice p, const char *word) {
    size_t k = strlen(word);
    for (size_t i = 0; i + k <= p.n; i++) {
        if (strncasecmp(p.s + i, word, k)) continue;
        char before = i ? p.s[i - 1] : ' ', after = i + k < p.n ? p.s[i + k] : ' ';
        bool number_goes_on =
            after == '.' && i + k + 1 < p.n && isdigit((unsigned char)p.s[i + k + 1]);
        if (!isalnum((unsigned char)before) && before != '.' && !isalnum((unsigned char)after) &&
            !number_goes_on) return true;
    }
    return false;
}

static void solve_summary(const TaskSession *s, const TaskTurn *t, const Slice *paper, int n,
                          pcre2_code *const *res, const char *where) {
    static const char *const only[] = { "M", "T", "X", "D", "U", "W" };
    static const char *const also[] = { "V", "Q", "C" };
    const char *open = strstr(t->input, "“"), *close = strstr(t->input, "”");
    char title[256], fact[TEXT], u[TEXT], v[TEXT], g[TEXT];
    int it = -1;
    EXPECT(open && close, "%s: no title in %s", where, t->input);
    if (!open || !close) return;
    snprintf(title, sizeof title, "%.*s\n", (int)(close - open - 3), open + 3);
    for (int i = 0; i < n; i++) {
        if (strncmp(paper[i].s, title, strlen(title))) continue;
        EXPECT(it < 0, "%s: two papers are called %s", where, title);
        it = i;
    }
    EXPECT(it >= 0, "%s: no paper is called %s", where, title);
    EXPECT(!strstr(s->context.p, t->answer), "%s: the reference stands in the text", where);
    EXPECT(!strcmp(t->label[0], t->answer), "%s: label and answer differ", where);
    bool read = false;
    for (size_t k = 0; k < COUNTOF(reference) && it >= 0; k++) {
        pcre2_match_data *m = pcre2_match_data_create_from_pattern(res[k], NULL);
        if (pcre2_match(res[k], (PCRE2_SPTR)t->answer, strlen(t->answer), 0, 0, m, NULL) > 0) {
            read = true;
            for (size_t f = 0; f < COUNTOF(only); f++) {
                take(m, only[f], fact);
                for (int i = 0; i < n; i++)
                    EXPECT(holds(paper[i], fact) == (i == it), "%s: '%s' of paper %d and paper %d",
                           where, fact, it, i);
            }
            for (size_t f = 0; f < COUNTOF(also); f++) {
                take(m, also[f], fact);
                EXPECT(!*fact || holds(paper[it], fact), "%s: '%s' is not in the paper", where,
                       fact);
            }
            take(m, "U", u), take(m, "V", v), take(m, "G", g);
            EXPECT(!*g || !*v || fabs(atof(u) - atof(v) - atof(g)) < 0.001,
                   "%s: %s - %s is not %s", where, u, v, g);
        }
        pcre2_match_data_free(m);
    }
    EXPECT(read, "%s: cannot read %s", where, t->answer);
}

static void solve_number(const TaskSession *s, const TaskTurn *t, const char *where) {
    char key[TEXT], number[8] = "";
    int paragraphs = 0, different = 0;
    const char *from = strstr(t->input, "to the "), *end = strchr(t->input, '?');
    if (!from) from = strstr(t->input, "of the ");
    EXPECT(from && end > from, "%s: cannot read %s", where, t->input);
    if (!from || end <= from) return;
    from += strlen("of the ");
    snprintf(key, sizeof key, "%.*s", (int)(end - from), from);
    for (const char *p = s->context.p, *e; *p; p = *e ? e + 2 : e) {
        e = strstr(p, "\n\n");
        if (!e) e = p + strlen(p);
        Slice para = { p, (size_t)(e - p) };
        if (!holds(para, key)) continue;
        paragraphs++;
        for (const char *d = p; d < e; d++) {
            size_t run = strspn(d, "0123456789");
            if (run == 5 && (!*number || strncmp(d, number, 5))) {
                different++;
                snprintf(number, sizeof number, "%.5s", d);
            }
            if (run) d += run - 1;
        }
    }
    EXPECT(paragraphs == 1 && different == 1 && !strcmp(number, t->answer) &&
           !strcmp(t->label[0], number),
           "%s: %d paragraphs, %d numbers for the %s: read %s, golden %s", where, paragraphs,
           different, key, number, t->answer);
}

static void solve_papers(const Task *task, int n_turns, int n_units) {
    pcre2_code *res[COUNTOF(reference)];
    int solved = 0;
    for (size_t k = 0; k < COUNTOF(reference); k++) res[k] = compiled(reference[k]);
    for (int seed = 1; seed <= SEEDS; seed++) {
        TaskSession s;
        Slice paper[64];
        memset(&s, 0, sizeof s);
        s.number = seed % 5;
        task->make(&s, (uint64_t)seed, n_turns, n_units);
        int n = split_papers(&s.context, paper, COUNTOF(paper));
        for (int t = 0; t < n_turns; t++, solved++) {
            char where[64];
            snprintf(where, sizeof where, "%s seed %d turn %d", task->name, seed, t);
            EXPECT(s.turns[t].part == (task->n_parts == 2 ? t % 2 : 0), "%s: part %d", where,
                   s.turns[t].part);
            if (s.turns[t].part == 1) solve_number(&s, &s.turns[t], where);
            else solve_summary(&s, &s.turns[t], paper, n, res, where);
        }
        session_clear(&s);
    }
    for (size_t k = 0; k < COUNTOF(reference); k++) pcre2_code_free(res[k]);
    printf("%s: %d turns looked up\n", task->name, solved);
}

int main(void) {
    solve_novel(&task_en_qa, 5, 90, false);
    solve_novel(&task_en_qa, 19, 114, false);
    solve_novel(&task_en_mc, 5, 60, false);
    solve_novel(&task_zh_qa, 5, 90, true);
    solve_novel(&task_zh_qa, 19, 114, true);
    solve_papers(&task_en_sum, 5, 60);
    solve_papers(&task_mix_sum_niah, 8, 48);
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
