// longbench_make.c - generated stand-ins for LongBench's records, so that every data set runs
// without a download: the form of its contexts and answers, other contents.
//
//   facts      paragraphs about places; who, where, when is asked       1-*, 2-*, 4-2
//   minutes    discussions of which a few end in a decision             3-*
//   examples   labelled lines, or told conversations                    4-1, 4-3, 4-4
//   numbered   paragraphs, some twice; one is described                 5-*
//   code       functions of one repository, the last one cut            6-*
//
// A unit is a paragraph, a discussion, an example or a function. What is asked comes from streams
// that do not know how many units there are.
#include "longbench.h"

enum { STREAM_PLACE = 301, STREAM_ASKED, STREAM_FILL, STREAM_TALK, STREAM_LABEL, STREAM_COPY,
       STREAM_CODE };

typedef struct { TaskSession *s; uint64_t seed; bool zh; int n; } LbMaker;

static Rng stream(const LbMaker *m, int id, int i) {
    return session_rng(m->seed, m->s->number, ((uint64_t)id << 32) + (uint64_t)i);
}
static int below(Rng *r, int n) { return (int)rng_below(r, (uint64_t)n); }
#define PICK(r, list) (list)[below(r, (int)COUNTOF(list))]

static const char *text_of(const LbMaker *m, const char *en, const char *zh) {
    return m->zh ? zh : en;
}

// ---------------------------------------------------------------------------
// Places

typedef struct { char name[48], builder[48], town[32]; int year, metres, kind; } Place;

static const char *const kinds[] = { "bridge", "lighthouse", "mill", "station", "chapel", "tower",
                                     "market hall", "harbour" };
static const char *const kinds_zh[] = { "桥", "灯塔", "磨坊", "车站", "教堂", "塔", "市场", "港口" };

static void name_of(const LbMaker *m, Rng *r, char *out, size_t n) {
    static const char *const a[] = { "Bar", "Cor", "Dun", "Els", "Fen", "Gar", "Hol", "Ives", "Kel",
        "Lan", "Mar", "Nor", "Ost", "Pel", "Quor", "Ros", "Sel", "Tar", "Ul", "Ven", "Wex", "Yar" };
    static const char *const b[] = { "bury", "cott", "den", "field", "gate", "ham", "ley", "mere",
        "ness", "ridge", "stead", "ton", "vale", "wick", "worth", "by" };
    static const char *const c[] = { "安", "白", "长", "东", "风", "古", "河", "江", "金", "兰", "林",
        "梅", "南", "平", "青", "清", "石", "松", "天", "文", "溪", "新", "玉", "云" };
    if (m->zh) snprintf(out, n, "%s%s%s", PICK(r, c), PICK(r, c), PICK(r, c));
    else snprintf(out, n, "%s%s%s", PICK(r, a), below(r, 3) ? "" : "el", PICK(r, b));
}

static void person_of(const LbMaker *m, Rng *r, char *out, size_t n) {
    static const char *const first[] = { "Ada", "Bruno", "Clara", "Denis", "Edith", "Felix",
        "Greta", "Hugo", "Irene", "Jonas", "Karin", "Leo", "Mina", "Noel", "Olga", "Paul", "Rosa",
        "Theo" };
    static const char *const family[] = { "王", "李", "张", "刘", "陈", "杨", "黄", "赵", "吴", "周" };
    static const char *const given[] = { "明远", "思齐", "文清", "海生", "国栋", "丽华", "晓峰", "玉兰",
        "建平", "子恒", "秋实", "若水" };
    char last[32];
    if (m->zh) {
        snprintf(out, n, "%s%s", PICK(r, family), PICK(r, given));
        return;
    }
    name_of(m, r, last, sizeof last);
    snprintf(out, n, "%s %s", PICK(r, first), last);
}

// place i of a record; the number in its name keeps names apart in very long records
static Place place_at(const LbMaker *m, int i) {
    Rng r = stream(m, STREAM_PLACE, i);
    Place p;
    char name[40];
    p.kind = below(&r, COUNTOF(kinds));
    name_of(m, &r, name, sizeof name);
    if (i >= 40) snprintf(p.name, sizeof p.name, m->zh ? "%.30s%d号%s" : "%.24s %d %s", name, i,
                          m->zh ? kinds_zh[p.kind] : kinds[p.kind]);
    else snprintf(p.name, sizeof p.name, m->zh ? "%.30s%s" : "%.24s %s", name,
                  m->zh ? kinds_zh[p.kind] : kinds[p.kind]);
    name_of(m, &r, p.town, sizeof p.town);
    person_of(m, &r, p.builder, sizeof p.builder);
    p.year = 1701 + below(&r, 290);
    p.metres = 12 + below(&r, 480);
    return p;
}

static void filler(const LbMaker *m, Rng *r, StrBuf *out) {
    static const char *const en[] = {
        " Visitors come in %s, when the weather allows it.", " A festival is held there every %s.",
        " It was closed for repairs one %s and opened again soon after.",
        " Photographs of it taken in %s hang in the town hall.",
        " The fee was raised in %s, which few people noticed.",
        " A storm in %s did it little harm.", " School classes see it each %s.",
        " Its keeper is chosen in %s, by lot.",
    };
    static const char *const month[] = { "January", "March", "April", "May", "June", "August",
                                         "September", "October", "November" };
    static const char *const zh[] = { "每年%s都有许多人来参观。", "%s的时候这里会举办庙会。",
        "有一年%s曾经关闭修缮，不久重新开放。", "镇上挂着%s拍的照片。", "%s起门票略有上涨。",
        "%s的一场大风没有损坏它。" };
    static const char *const month_zh[] = { "一月", "三月", "四月", "五月", "六月", "八月", "九月",
                                            "十月", "冬天" };
    if (m->zh) str_fmt(out, PICK(r, zh), PICK(r, month_zh));
    else str_fmt(out, PICK(r, en), PICK(r, month));
}

static void tell(const LbMaker *m, int i, const Place *p, StrBuf *out) {
    Rng r = stream(m, STREAM_FILL, i);
    if (m->zh) str_fmt(out, "%s位于%s，由%s主持修建，于%d年落成，全长%d米。", p->name, p->town,
                       p->builder, p->year, p->metres);
    else if (i % 2) str_fmt(out, "The %s stands in %s. %s built it, and it was finished in %d. It "
                            "measures %d metres.", p->name, p->town, p->builder, p->year,
                            p->metres);
    else str_fmt(out, "In %s there is the %s, %d metres long, which %s built; the work ended in "
                 "%d.", p->town, p->name, p->metres, p->builder, p->year);
    for (int k = 0; k < 3; k++) filler(m, &r, out);
}

// ---------------------------------------------------------------------------
// Questions about places

typedef struct { char *question, *answer, *variant; } Asked;    // variant: another right answer

static Asked ask(const LbMaker *m, const Place *p, int what) {
    Asked a = { NULL, NULL, NULL };
    switch (what % 3) {
    case 0:
        a.question = text_fmt(text_of(m, "When was the %s finished?", "%s是哪一年落成的？"), p->name);
        a.answer = text_fmt(text_of(m, "%d", "%d年"), p->year);
        a.variant = text_fmt(text_of(m, "in %d", "于%d年落成"), p->year);
        break;
    case 1:
        a.question = text_fmt(text_of(m, "Who built the %s?", "%s由谁主持修建？"), p->name);
        a.answer = text_dup(p->builder);
        break;
    default:
        a.question = text_fmt(text_of(m, "In which town does the %s stand?", "%s位于哪里？"), p->name);
        a.answer = text_dup(p->town);
        a.variant = text_fmt(text_of(m, "in %s", "位于%s"), p->town);
    }
    return a;
}

static void turn_of(TaskTurn *t, Asked a, double depth) {
    t->input = a.question;
    t->answer = a.answer;
    t->depth = depth;
    turn_label(t, a.answer);
    if (a.variant) turn_label(t, a.variant);
    free(a.variant);
}

// a passage of a multi-document context has a number and a title
static void passage(const LbMaker *m, int i, const Place *p, bool many, StrBuf *out) {
    if (i) str_puts(out, "\n\n");
    if (many) str_fmt(out, text_of(m, "Passage %d:\n%s\n", "文章%d：\n%s\n"), i + 1, p->name);
    tell(m, i, p, out);
}

// hop: two places share a builder; the second one is asked for by way of the first
static void make_facts(const LbMaker *m, bool many, bool hop, bool sentence) {
    TaskSession *s = m->s;
    Rng r = stream(m, STREAM_ASKED, 0);
    int what = below(&r, 3), order = below(&r, 2), first = even_slot(order, 2, m->n),
        second = even_slot(1 - order, 2, m->n);
    Place a = place_at(m, first), b = place_at(m, second);
    if (hop) memcpy(b.builder, a.builder, sizeof b.builder);
    for (int i = 0; i < m->n; i++) {
        Place p = i == first ? a : i == second ? b : place_at(m, i);
        passage(m, i, &p, many, &s->context);
    }
    Asked q = ask(m, hop ? &b : &a, hop ? 2 * (what & 1) : what);
    if (hop) {
        free(q.question);
        q.question = text_fmt(what & 1 ? "In which town does the other work of the builder of the "
                                         "%s stand?"
                                       : "When was the other work of the builder of the %s "
                                         "finished?", a.name);
    }
    if (sentence) {
        free(q.answer);
        q.answer = text_fmt("%s位于%s，由%s主持修建，于%d年落成。", a.name, a.town, a.builder, a.year);
        free(q.question);
        q.question = text_fmt("请介绍一下%s。", a.name);
    }
    turn_of(&s->turns[0], q, ((hop ? second : first) + 0.5) / m->n);
}

static void make_trivia(const LbMaker *m) {
    TaskSession *s = m->s;
    for (int i = 0; i <= m->n; i++) {
        StrBuf text = { 0 };
        Rng r = stream(m, STREAM_ASKED, i == m->n ? 0 : i + 1);
        Place p = place_at(m, i == m->n ? 0 : i + 1);
        Asked q = ask(m, &p, below(&r, 3));
        str_puts(&text, "Passage:\n");
        tell(m, i == m->n ? 0 : i + 1, &p, &text);
        str_fmt(&text, "\nQuestion:\n%s\nAnswer:", q.question);
        free(q.question);
        if (i == m->n) {
            q.question = text.p;
            turn_of(&s->turns[0], q, NAN);
            break;
        }
        str_fmt(&s->context, "%s%s %s", i ? "\n" : "", text.p, q.answer);
        free(text.p);
        free(q.answer);
        free(q.variant);
    }
}

// ---------------------------------------------------------------------------
// Minutes: DECISIONS discussions end in one, spread over the record

enum { DECISIONS = 5 };

static void decision(const LbMaker *m, int i, char **topic, char **text) {
    static const char *const what[] = { "the library roof", "the night bus", "the school kitchen",
        "the ferry timetable", "the swimming pool", "the town archive", "the east road",
        "the water tariff", "the youth centre", "the market square" };
    static const char *const verb[] = { "repair", "extend", "close", "rent out", "postpone", "test",
                                        "pay for", "review" };
    static const char *const when[] = { "before the winter", "in the spring", "next year",
                                        "within two months", "after the election",
                                        "by the summer" };
    static const char *const what_zh[] = { "图书馆屋顶", "夜间公交", "学校食堂", "轮渡时刻", "游泳馆",
        "档案室", "东环路", "水费", "青年中心", "菜市场" };
    static const char *const verb_zh[] = { "维修", "扩建", "关闭", "出租", "推迟", "试行", "拨款", "审查" };
    static const char *const when_zh[] = { "入冬之前", "明年春天", "明年", "两个月之内", "换届之后",
                                           "夏天以前" };
    Rng r = stream(m, STREAM_TALK, 1000);
    uint64_t from = rng_below(&r, 10);
    Rng q = stream(m, STREAM_TALK, i);
    size_t k = (size_t)(from + (uint64_t)i) % COUNTOF(what);
    *topic = text_dup(m->zh ? what_zh[k] : what[k]);
    *text = m->zh ? text_fmt("会议决定%s%s%s。", PICK(&q, when_zh), PICK(&q, verb_zh), *topic)
                  : text_fmt("It was decided to %s %s %s.", PICK(&q, verb), *topic, PICK(&q, when));
}

// one discussion; end: its decision or NULL
static void discuss(const LbMaker *m, int i, const char *topic, const char *end, StrBuf *out) {
    static const char *const say[] = { "%s asks what %s has cost so far.",
        "%s reports two letters about %s.", "%s would rather speak about %s another day.",
        "%s has seen how a neighbouring town deals with %s.", "%s thinks that %s can wait.",
        "%s reads out last year's figures on %s.", "%s doubts the figures on %s." };
    static const char *const say_zh[] = { "%s询问%s至今的花费。", "%s报告收到两封关于%s的来信。",
        "%s希望改日再谈%s。", "%s介绍了邻镇处理%s的办法。", "%s认为%s可以再等等。",
        "%s宣读了去年%s的数据。" };
    Rng r = stream(m, STREAM_FILL, i);
    str_fmt(out, text_of(m, "%s%d. On %s\n", "%s%d、关于%s\n"), i ? "\n" : "", i + 1, topic);
    for (int k = 0, n = 3 + below(&r, 3); k < n; k++) {
        char who[48];
        person_of(m, &r, who, sizeof who);
        str_fmt(out, m->zh ? PICK(&r, say_zh) : PICK(&r, say), who, topic);
        str_puts(out, m->zh ? "" : " ");
    }
    str_fmt(out, "%s\n", end ? end : text_of(m, "Nothing was decided.", "没有作出决定。"));
}

static void make_minutes(const LbMaker *m, bool query) {
    static const char *const open_topic[] = { "the parking places", "the old mill", "the choir",
        "the bicycle stands", "the street lamps", "the post office", "the fountain",
        "the archive" };
    static const char *const open_zh[] = { "停车位", "老磨坊", "合唱团", "自行车棚", "路灯", "邮局",
                                           "喷泉", "花园" };
    TaskSession *s = m->s;
    StrBuf all = { 0 };
    char *topic[DECISIONS], *text[DECISIONS];
    int planned = m->n < DECISIONS ? m->n : DECISIONS, next = 0;
    for (int k = 0; k < planned; k++) {
        decision(m, k, &topic[k], &text[k]);
        str_fmt(&all, "%s%s", k && !m->zh ? " " : "", text[k]);
    }
    for (int i = 0; i < m->n; i++) {
        Rng r = stream(m, STREAM_COPY, i);
        bool decided = next < planned && even_slot(next, planned, m->n) == i;
        discuss(m, i, decided ? topic[next] : m->zh ? PICK(&r, open_zh) : PICK(&r, open_topic),
                decided ? text[next] : NULL, &s->context);
        next += decided;
    }
    Rng r = stream(m, STREAM_ASKED, 0);
    int k = below(&r, planned);
    Asked q = { query ? text_fmt("What was decided about %s?", topic[k]) : text_dup(""),
                query ? text_dup(text[k]) : text_dup(all.p), NULL };
    turn_of(&s->turns[0], q, query ? (even_slot(k, planned, m->n) + 0.5) / m->n : NAN);
    for (int i = 0; i < planned; i++) {
        free(topic[i]);
        free(text[i]);
    }
    free(all.p);
}

// ---------------------------------------------------------------------------
// Labelled examples. Some class names are part of others, as in the original.

typedef struct { const char *label, *form[3]; } Class;
static const Class types[] = {
    { "Person", { "Who painted the ceiling of %s?", "Who was the first mayor of %s?",
                  "What singer came from %s?" } },
    { "Group of people", { "Which team plays in %s?", "What company owns %s?",
                           "Which family ruled %s?" } },
    { "City", { "What city lies north of %s?", "Which city is twinned with %s?",
                "What is the nearest city to %s?" } },
    { "Location", { "Where is %s?", "What sea does %s face?",
                    "Where does the road to %s begin?" } },
    { "Other location", { "What valley runs past %s?", "What island can be seen from %s?",
                          "Which street leads out of %s?" } },
    { "Date", { "When was %s founded?", "What day is the fair of %s?", "When did %s burn down?" } },
    { "Number", { "How many people live in %s?", "How many bridges has %s?",
                  "How many miles is it to %s?" } },
    { "Other number", { "What is the postal code of %s?",
                        "What is the house number of the inn of %s?",
                        "What is the bus line to %s?" } },
    { "Definition", { "What does the word %s mean?", "What is a %s?", "Define %s." } },
    { "Reason", { "Why was %s given up?", "Why is %s so quiet?", "Why do birds avoid %s?" } },
};
static const Class news[] = {
    { "体育", { "%s队昨晚以两球取胜。", "%s马拉松今晨开跑。", "%s举行了乒乓球公开赛。" } },
    { "财经", { "%s银行公布了季度利润。", "%s的房价连续三月下跌。", "%s新设一处贸易市场。" } },
    { "财经新闻", { "%s证券交易所今日停牌。", "%s公司发行了新债券。", "%s的税率将作调整。" } },
    { "科技", { "%s大学研制出新型电池。", "%s发射了一颗小卫星。", "%s的实验室公布了新算法。" } },
    { "天气", { "%s今夜有大雨。", "%s迎来入秋最强冷空气。", "%s连续一周高温。" } },
    { "文化", { "%s剧院上演新戏。", "%s出土了一批青铜器。", "%s图书节开幕。" } },
};

static void make_labels(const LbMaker *m) {
    const Class *list = m->zh ? news : types;
    int n = m->zh ? (int)COUNTOF(news) : (int)COUNTOF(types);
    TaskSession *s = m->s;
    s->classes = (char **)xrealloc(NULL, (size_t)n * sizeof *s->classes);
    for (s->n_classes = 0; s->n_classes < n; s->n_classes++)
        s->classes[s->n_classes] = text_dup(list[s->n_classes].label);
    for (int i = 0; i <= m->n; i++) {
        Rng r = stream(m, STREAM_LABEL, i == m->n ? 0 : i + 1);
        const Class *c = &list[below(&r, n)];
        char name[40];
        StrBuf text = { 0 };
        name_of(m, &r, name, sizeof name);
        str_puts(&text, text_of(m, "Question: ", "新闻："));
        str_fmt(&text, PICK(&r, c->form), name);
        str_puts(&text, text_of(m, "\nType:", "\n类别："));
        if (i == m->n) {
            Asked q = { text.p, text_dup(c->label), NULL };
            turn_of(&s->turns[0], q, NAN);
            break;
        }
        str_fmt(&s->context, "%s%s%s%s", i ? "\n" : "", text.p, text_of(m, " ", ""), c->label);
        free(text.p);
    }
}

// ---------------------------------------------------------------------------
// Conversations and their summaries

static void make_talks(const LbMaker *m) {
    static const char *const thing[] = { "the concert", "the lake", "the dentist", "the bakery",
        "the new film", "the garden show", "grandmother's", "the football match" };
    static const char *const day[] = { "Monday", "Tuesday", "Thursday", "Friday", "Sunday" };
    static const char *const no[] = { "the car is broken", "there is too much work",
                                      "the children are ill", "money is short" };
    TaskSession *s = m->s;
    for (int i = 0; i <= m->n; i++) {
        Rng r = stream(m, STREAM_TALK, i == m->n ? 0 : i + 1);
        char a[48], b[48];
        StrBuf text = { 0 };
        person_of(m, &r, a, sizeof a);
        person_of(m, &r, b, sizeof b);
        *strchr(a, ' ') = *strchr(b, ' ') = 0;
        const char *where = PICK(&r, thing), *when = PICK(&r, day), *why = PICK(&r, no);
        bool yes = below(&r, 2);
        str_fmt(&text, "Dialogue: %s: Shall we go to %s on %s?\n%s: ", a, where, when, b);
        if (yes) str_fmt(&text, "Gladly. What time?\n%s: At %d.\n%s: Good, see you there.\n"
                         "Summary:", a, 1 + below(&r, 11), b);
        else str_fmt(&text, "I am afraid not, %s.\n%s: A pity. Another time then.\nSummary:", why,
                     a);
        char *told = yes ? text_fmt("%s and %s will go to %s on %s.", a, b, where, when)
                         : text_fmt("%s cannot go to %s with %s on %s because %s.", b, where, a,
                                    when, why);
        if (i == m->n) {
            Asked q = { text.p, told, NULL };
            turn_of(&s->turns[0], q, NAN);
            break;
        }
        str_fmt(&s->context, "%s%s %s", i ? "\n" : "", text.p, told);
        free(text.p);
        free(told);
    }
}

// ---------------------------------------------------------------------------
// Numbered paragraphs

static void make_numbered(const LbMaker *m, bool count) {
    TaskSession *s = m->s;
    Rng r = stream(m, STREAM_ASKED, 0);
    int copies = count ? (m->n + 3) / 4 : 0, different = m->n - copies,
        asked = even_slot(below(&r, 5), 5, m->n);
    for (int i = 0; i < m->n; i++) {
        Rng c = stream(m, STREAM_COPY, i);
        int of = i < different ? i : below(&c, different);
        Place p = place_at(m, of);
        str_fmt(&s->context, text_of(m, "%sParagraph %d: ", "%s段落%d："), i ? "\n\n" : "", i + 1);
        tell(m, of, &p, &s->context);
    }
    Asked q = { text_dup(""), NULL, NULL };
    if (count) q.answer = text_fmt("%d", different);
    else {
        Place p = place_at(m, asked);
        free(q.question);
        q.question = m->zh ? text_fmt("这段文字介绍一处%d年由%s修建的建筑。", p.year, p.builder)
                           : text_fmt("The paragraph tells of a work of the year %d by %s.", p.year,
                                      p.builder);
        q.answer = text_fmt(text_of(m, "Paragraph %d", "段落%d"), asked + 1);
    }
    turn_of(&s->turns[0], q, count ? NAN : (asked + 0.5) / m->n);
}

// ---------------------------------------------------------------------------
// Code: the functions of one repository; the last one ends before the line that is asked for

static bool fit_for_answer(const char *line, size_t n) {
    size_t left = n;
    text_strip(line, &left);
    return left >= 8 && !memchr(line, '`', n) && !memchr(line, '#', n) && !memmem(line, n, "//", 2);
}

static void make_code(const LbMaker *m, bool repository) {
    TaskSession *s = m->s, code = { .number = s->number };
    task_repoqa.make(&code, m->seed ^ STREAM_CODE, 1, m->n);
    const char *last = code.needles[m->n - 1].source, *cut = NULL, *line = last;
    for (int k = 0; *line; k++) {                       // the last fitting line, the first aside
        size_t n = strcspn(line, "\n");
        if (k > 0 && fit_for_answer(line, n)) cut = line;
        line += n + (line[n] == '\n');
    }
    if (!cut) cut = strchr(last, '\n') ? strchr(last, '\n') + 1 : last;
    for (int i = 0; i < m->n - 1; i++) str_fmt(&s->context, "%s\n\n", code.needles[i].source);
    char *begun = text_fmt("%.*s", (int)(cut - last), last);
    if (!repository) str_puts(&s->context, begun);
    Asked q = { repository ? begun : text_dup(""), text_fmt("%.*s", (int)strcspn(cut, "\n"), cut),
                NULL };
    if (!repository) free(begun);
    turn_of(&s->turns[0], q, NAN);
    session_clear(&code);
}

// ---------------------------------------------------------------------------

void lb_make(const LbSet *set, TaskSession *s, uint64_t seed, int n_units) {
    // sets made in the same way have other records
    LbMaker m = { s, seed ^ text_hash(set->key, strlen(set->key)), !strcmp(set->lang, "zh"),
                  n_units };
    s->units = n_units;
    session_turns(s, 1);
    str_add(&s->context, NULL, 0);
    switch (set->id[0]) {
    case '1': make_facts(&m, false, false, false); return;
    case '2': make_facts(&m, true, !m.zh, m.zh); return;
    case '3': make_minutes(&m, !strcmp(set->key, "qmsum")); return;
    case '4':
        if (set->metric == LB_CLASS) make_labels(&m);
        else if (set->newline_stops) make_talks(&m);
        else make_trivia(&m);
        return;
    case '5': make_numbered(&m, set->metric == LB_COUNT); return;
    default: make_code(&m, !strcmp(set->key, "repobench-p"));
    }
}
