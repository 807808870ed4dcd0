// code_print.c - one tree, seven languages. Expressions are printed with the loosest level that
// needs no parentheses; what a language lacks (integer division, list equality of boxed numbers,
// string indexing) is written the way its users write it. Rust has i64 values and usize indices.
#include "code.h"

typedef struct {
    StrBuf *out;
    const CodeFn *f;
    const CodeStyle *s;
    CodeLang l;
    int depth, uses;
} Pr;

enum { P_OR, P_AND, P_NOT, P_CMP, P_BOR, P_XOR, P_BAND, P_SHIFT, P_ADD, P_MUL, P_UNARY, P_POST };

static void ex(Pr *p, const Node *e, int level);
static void put(Pr *p, const char *t) { str_puts(p->out, t); }

static const char *name_of(Pr *p, int var) { return p->f->var[var].name; }
static void put_var(Pr *p, int var) {
    if (p->l == LANG_PHP) put(p, "$");
    put(p, name_of(p, var));
}

// pieces of a pattern: %1 %2 %3 arguments as operands of a call, %a %b as operands of a postfix
static void pattern(Pr *p, const char *t, const Node *a) {
    const Node *b = a ? a->next : NULL, *c = b ? b->next : NULL;
    for (; *t; t++) {
        if (*t != '%' || !t[1]) { str_add(p->out, t, 1); continue; }
        switch (*++t) {
        case '1': ex(p, a, P_OR); break;
        case '2': ex(p, b, P_OR); break;
        case '3': ex(p, c, P_OR); break;
        case 'a': ex(p, a, P_POST); break;
        case 'b': ex(p, b, P_POST); break;
        case '%': put(p, "%"); break;
        default: CHECK(false, "code printer: pattern '%s'", t);
        }
    }
}

// Rust: an index or length as usize
static void rust_usize(Pr *p, const Node *e) {
    if (e->kind == E_INT) { ex(p, e, P_OR); return; }
    ex(p, e, P_POST);
    put(p, " as usize");
}

// Rust: a value that the receiver may keep
static void rust_own(Pr *p, const Node *e) {
    bool place = e->kind == E_VAR || e->kind == E_INDEX || e->kind == E_STR ||
                 (e->kind == E_CALL && (e->op == F_LAST));
    if (p->l != LANG_RUST || !place || (e->type != T_STR && e->type != T_LIST)) {
        ex(p, e, P_OR);
        return;
    }
    if (e->type == T_LIST && (e->kind == E_VAR && !p->f->var[e->var].param)) {
        ex(p, e, P_OR);
        return;
    }
    ex(p, e, P_POST);
    put(p, e->type == T_STR ? ".to_string()" : ".to_vec()");
}

static void put_char(Pr *p, long c) {
    const char *q = p->l == LANG_PYTHON || p->l == LANG_TS ? "\"" : "'";
    str_fmt(p->out, "%s%s%c%s", q, c == '\\' ? "\\" : "", (char)c, q);
}
static void put_text(Pr *p, const char *t) {
    const char *q = p->l == LANG_PHP ? "'" : "\"";
    if (p->l == LANG_CPP) str_fmt(p->out, "std::string(\"%s\")", t);
    else str_fmt(p->out, "%s%s%s", q, t, q);
}

// ---------------------------------------------------------------------------
// Calls

static const char *const int_calls[N_LANGS][5] = {
    // abs, min, max, maxof, minof
    { "abs(%1)", "min(%1, %2)", "max(%1, %2)", "max(%1)", "min(%1)" },
    { "std::abs(%1)", "std::min<@>(%1, %2)", "std::max<@>(%1, %2)",
      "*std::max_element(%a.begin(), %a.end())", "*std::min_element(%a.begin(), %a.end())" },
    { "Math.abs(%1)", "Math.min(%1, %2)", "Math.max(%1, %2)", "Collections.max(%1)",
      "Collections.min(%1)" },
    { "abs(%1)", "min(%1, %2)", "max(%1, %2)", "max(%1)", "min(%1)" },
    { "i64::abs(%1)", "std::cmp::min(%1, %2)", "std::cmp::max(%1, %2)", "*%a.iter().max().unwrap()",
      "*%a.iter().min().unwrap()" },
    { "absInt(%1)", "min(%1, %2)", "max(%1, %2)", "slices.Max(%1)", "slices.Min(%1)" },
    { "Math.abs(%1)", "Math.min(%1, %2)", "Math.max(%1, %2)", "Math.max(...%1)",
      "Math.min(...%1)" },
};

static const char *const char_calls[N_LANGS][8] = {    // ord chr digit str isdigit .. islower
    { "ord(%1)", "chr(%1)", "int(%1)", "str(%1)", "%a.isdigit()", "%a.isalpha()",
      "%a.isupper()", "%a.islower()" },
    { "static_cast<int>(%1)", "static_cast<char>(%1)", "(%1 - '0')", "std::to_string(%1)",
      "std::isdigit(%1)", "std::isalpha(%1)", "std::isupper(%1)", "std::islower(%1)" },
    { "(int) %a", "(char) (%1)", "Character.getNumericValue(%1)", "String.valueOf(%1)",
      "Character.isDigit(%1)", "Character.isLetter(%1)", "Character.isUpperCase(%1)",
      "Character.isLowerCase(%1)" },
    { "ord(%1)", "chr(%1)", "(int) %a", "(string) %a", "ctype_digit(%1)", "ctype_alpha(%1)",
      "ctype_upper(%1)", "ctype_lower(%1)" },
    { "(%a as i64)", "((%1) as u8 as char)", "(%a as i64 - 48)", "(%1).to_string()",
      "%a.is_ascii_digit()", "%a.is_ascii_alphabetic()",
      "%a.is_ascii_uppercase()", "%a.is_ascii_lowercase()" },
    { "int(%1)", "byte(%1)", "int(%1 - '0')", "strconv.Itoa(%1)", "unicode.IsDigit(rune(%1))",
      "unicode.IsLetter(rune(%1))", "unicode.IsUpper(rune(%1))", "unicode.IsLower(rune(%1))" },
    { "%a.charCodeAt(0)", "String.fromCharCode(%1)", "Number(%1)", "String(%1)",
      "/[0-9]/.test(%1)", "/[A-Za-z]/.test(%1)", "/[A-Z]/.test(%1)", "/[a-z]/.test(%1)" },
};

static void call_case(Pr *p, const Node *e) {
    static const char *const one[N_LANGS][2] = {
        { "%a.lower()", "%a.upper()" },
        { "static_cast<char>(std::tolower(%1))", "static_cast<char>(std::toupper(%1))" },
        { "Character.toLowerCase(%1)", "Character.toUpperCase(%1)" },
        { "strtolower(%1)", "strtoupper(%1)" },
        { "%a.to_ascii_lowercase()", "%a.to_ascii_uppercase()" },
        { "byte(unicode.ToLower(rune(%1)))", "byte(unicode.ToUpper(rune(%1)))" },
        { "%a.toLowerCase()", "%a.toUpperCase()" }
    };
    p->uses |= USES_CTYPE;
    pattern(p, one[p->l][e->op == F_UPPER], e->a);
}

static void call_contains(Pr *p, const Node *e) {    // has(list, v), contains(text, text or char)
    static const char *const in_list[N_LANGS] = {
        "%2 in %1",           "std::count(%a.begin(), %a.end(), %2) > 0",
        "%a.contains(%2)",    "in_array(%2, %1, true)",
        "%a.contains(&(%2))", "slices.Contains(%1, %2)",
        "%a.includes(%2)"
    };
    static const char *const in_text[N_LANGS] = { "%2 in %1",
                                                  "%a.find(%2) != std::string::npos",
                                                  "%a.contains(%2)",
                                                  "str_contains(%1, %2)",
                                                  "%a.contains(&%b[..])",
                                                  "strings.Contains(%1, %2)",
                                                  "%a.includes(%2)" };
    bool chr = e->op == F_CONTAINS && e->a->next->type == T_CHAR;
    const char *t = e->op == F_HAS ? in_list[p->l] : in_text[p->l];
    if (chr && p->l == LANG_JAVA) t = "%a.indexOf(%2) >= 0";
    if (chr && p->l == LANG_RUST) t = "%a.contains(%2)";
    if (chr && p->l == LANG_GO) t = "strings.IndexByte(%1, %2) >= 0";
    if (e->op == F_CONTAINS && e->a->next->kind == E_STR && p->l == LANG_RUST)
        t = "%a.contains(%2)";
    if (e->op == F_HAS && e->a->type == T_STRS && p->l == LANG_RUST)
        t = "%a.iter().any(|w| w == &%2[..])";
    p->uses |= e->op == F_HAS ? USES_SLICES | USES_ALGO : USES_CONTAINS | USES_STRING;
    pattern(p, t, e->a);
}

static bool contains_is_cmp(const Pr *p, const Node *e) {
    if (e->kind != E_CALL || (e->op != F_HAS && e->op != F_CONTAINS)) return false;
    if (p->l == LANG_PYTHON || p->l == LANG_CPP) return true;
    return e->op == F_CONTAINS && e->a->next->type == T_CHAR &&
           (p->l == LANG_JAVA || p->l == LANG_GO);
}

static const char *int_name(const Pr *p) {
    static const char *const name[N_LANGS] = { "int", "int", "int", "int", "i64", "int", "number" };
    return p->l == LANG_CPP && p->s->wide_int ? "long" : name[p->l];
}

static void call_len(Pr *p, const Node *e) {
    static const char *const text[N_LANGS] = {
        "len(%1)", "", "%a.length()", "strlen(%1)", "(%a.len() as i64)", "len(%1)", "%a.length"
    };
    if (p->l == LANG_CPP) {
        str_fmt(p->out, "static_cast<%s>(", int_name(p));
        pattern(p, "%a.size())", e->a);
    } else if (p->l == LANG_JAVA && e->a->type != T_STR) pattern(p, "%a.size()", e->a);
    else if (p->l == LANG_PHP && e->a->type != T_STR) pattern(p, "count(%1)", e->a);
    else pattern(p, text[p->l], e->a);
}

static void call_last(Pr *p, const Node *e) {
    static const char *const text[N_LANGS] = { "%a[-1]", "%a.back()", "%a.get(%a.size() - 1)",
        "%a[count(%1) - 1]", "%a[%a.len() - 1]", "%1[len(%1)-1]", "%a[%a.length - 1]" };
    pattern(p, text[p->l], e->a);
}

static void call_make(Pr *p, const Node *e) {           // empty containers, filled lists, copies
    static const char *const map[N_LANGS] = {
        "{}", "", "new HashMap<>()", "[]", "HashMap::new()", "", "new Map<number, number>()"
    };
    static const char *const fill[N_LANGS] = { "",
                                               "",
                                               "new ArrayList<>(Collections.nCopies(%1, %2))",
                                               "array_fill(0, %1, %2)",
                                               "",
                                               "slices.Repeat([]int{%2}, %1)",
                                               "new Array<number>(%1).fill(%2)" };
    static const char *const copy[N_LANGS] = {
        "list(%1)",    "", "new ArrayList<>(%1)", "%1",
        "%a.to_vec()", "slices.Clone(%1)",   "%a.slice()"
    };
    p->uses |= USES_LIST;
    if (e->op == F_COPY) {
        p->uses |= USES_SLICES;
        if (p->l == LANG_CPP) {
            str_fmt(p->out, "std::vector<%s>", int_name(p));
            pattern(p, "(%1)", e->a);
        } else pattern(p, copy[p->l], e->a);
    } else if (e->op == F_FILL) {
        p->uses |= USES_SLICES;
        if (p->l == LANG_PYTHON) {
            put(p, "[");
            ex(p, e->a->next, P_OR);
            put(p, "] * ");
            ex(p, e->a, P_UNARY);
        } else if (p->l == LANG_CPP) {
            str_fmt(p->out, "std::vector<%s>", int_name(p));
            pattern(p, "(%1, %2)", e->a);
        } else if (p->l == LANG_RUST) {
            pattern(p, "vec![", e->a);
            ex(p, e->a->next, P_OR);
            put(p, "; ");
            rust_usize(p, e->a);
            put(p, "]");
        } else pattern(p, fill[p->l], e->a);
    } else if (e->op == F_MAP || e->op == F_SMAP) {
        p->uses |= USES_MAP;
        if (p->l == LANG_CPP || p->l == LANG_GO) {
            put(p, code_type_name(p->s, e->type, false));
            put(p, "{}");
        } else if (p->l == LANG_TS && e->op == F_SMAP) put(p, "new Map<string, number>()");
        else put(p, map[p->l]);
    } else {                                            // strs(), grid()
        static const char *const empty[N_LANGS] = { "[]", "",           "new ArrayList<>()",
                                                    "[]", "Vec::new()", "",
                                                    "[]" };
        if (p->l == LANG_CPP || p->l == LANG_GO) {
            put(p, code_type_name(p->s, e->type, false));
            put(p, "{}");
        } else put(p, empty[p->l]);
    }
}

static void rust_key(Pr *p, const Node *k, bool keep) {
    if (k->type == T_STR && !keep) {
        put(p, "&");
        ex(p, k, P_POST);
        put(p, "[..]");
    } else if (k->type == T_STR) rust_own(p, k);
    else { if (!keep) put(p, "&"); ex(p, k, keep ? P_OR : P_POST); }
}

static void call_get(Pr *p, const Node *e) {
    static const char *const text[N_LANGS] = { "%a.get(%2, 0)", "%a[%2]", "%a.getOrDefault(%2, 0)",
        "(%a[%2] ?? 0)", "", "%a[%2]", "(%a.get(%2) ?? 0)" };
    p->uses |= USES_MAP;
    if (p->l != LANG_RUST) { pattern(p, text[p->l], e->a); return; }
    pattern(p, "*%a.get(", e->a);
    rust_key(p, e->a->next, false);
    put(p, ").unwrap_or(&0)");
}

static void call(Pr *p, const Node *e) {
    switch (e->op) {
    case F_LEN: call_len(p, e); break;
    case F_LOWER: case F_UPPER: call_case(p, e); break;
    case F_HAS: case F_CONTAINS: call_contains(p, e); break;
    case F_LAST: call_last(p, e); break;
    case F_GET: call_get(p, e); break;
    case F_COPY:
    case F_FILL:
    case F_MAP:
    case F_SMAP:
    case F_STRS:
    case F_GRID: call_make(p, e); break;
    case F_ABS: case F_MIN: case F_MAX: case F_MAXOF: case F_MINOF: {
        int at = e->op == F_ABS     ? 0
                 : e->op == F_MIN   ? 1
                 : e->op == F_MAX   ? 2
                 : e->op == F_MAXOF ? 3
                                    : 4;
        const char *t = int_calls[p->l][at], *cut = strchr(t, '@');
        p->uses |= e->op == F_ABS ? USES_ABS : USES_ALGO;
        if (at >= 3) p->uses |= USES_SLICES | USES_LIST;
        if (cut) {                                      // std::min<@>: the type of the arguments
            str_add(p->out, t, (size_t)(cut - t));
            put(p, int_name(p));
            t = cut + 1;
        }
        pattern(p, t, e->a);
        break;
    }
    default:
        if (e->op >= F_ORD && e->op <= F_ISLOWER) {
            p->uses |= e->op == F_STR ? USES_ITOA | USES_STRING : 0;
            if (e->op >= F_ISDIGIT) p->uses |= USES_CTYPE;
            pattern(p, char_calls[p->l][e->op - F_ORD], e->a);
        } else CHECK(false, "code printer: builtin %d used as a value", e->op);
    }
}

// ---------------------------------------------------------------------------
// Expressions

static void index_of(Pr *p, const Node *e) {
    ex(p, e->a, P_POST);
    if (p->l == LANG_RUST && e->a->type == T_STR) {
        put(p, ".as_bytes()[");
        rust_usize(p, e->b);
        put(p, "] as char");
    } else if (p->l == LANG_JAVA) {
        put(p, e->a->type == T_STR ? ".charAt(" : ".get(");
        ex(p, e->b, P_OR);
        put(p, ")");
    } else {
        put(p, "[");
        if (p->l == LANG_RUST) rust_usize(p, e->b);
        else ex(p, e->b, P_OR);
        put(p, "]");
    }
}

static void slice(Pr *p, const Node *e) {
    bool text = e->type == T_STR;
    const char *open[N_LANGS] = {
        "[", text ? ".substr(" : "", text ? ".substring(" : ".subList(", "", "[", "[", ".slice("
    };
    if (!text) p->uses |= USES_LIST | USES_SLICES;
    switch (p->l) {
    case LANG_CPP:
        if (!text) {
            str_fmt(p->out, "std::vector<%s>(", int_name(p));
            ex(p, e->a, P_POST);
            put(p, ".begin() + ");
            ex(p, e->b, P_MUL);
            put(p, ", ");
            ex(p, e->a, P_POST);
            put(p, ".begin() + ");
            ex(p, e->c, P_MUL);
            put(p, ")");
            break;
        }
        ex(p, e->a, P_POST);
        put(p, ".substr(");
        ex(p, e->b, P_OR);
        put(p, ", ");
        ex(p, e->c, P_ADD);
        put(p, " - ");
        ex(p, e->b, P_MUL);
        put(p, ")");
        break;
    case LANG_PHP:
        put(p, text ? "substr(" : "array_slice(");
        ex(p, e->a, P_OR);
        put(p, ", ");
        ex(p, e->b, P_OR);
        put(p, ", ");
        ex(p, e->c, P_ADD);
        put(p, " - ");
        ex(p, e->b, P_MUL);
        put(p, ")");
        break;
    default:
        if (p->l == LANG_GO && !text) put(p, "slices.Clone(");
        if (p->l == LANG_JAVA && !text) put(p, "new ArrayList<>(");
        ex(p, e->a, P_POST);
        put(p, open[p->l]);
        if (p->l == LANG_RUST) rust_usize(p, e->b);
        else ex(p, e->b, P_OR);
        put(p, p->l == LANG_RUST ? ".." : p->l == LANG_JAVA || p->l == LANG_TS ? ", " : ":");
        if (p->l == LANG_RUST) rust_usize(p, e->c);
        else ex(p, e->c, P_OR);
        put(p, p->l == LANG_JAVA || p->l == LANG_TS ? ")" : "]");
        if (p->l == LANG_RUST) put(p, text ? ".to_string()" : ".to_vec()");
        if ((p->l == LANG_GO || p->l == LANG_JAVA) && !text) put(p, ")");
    }
}

static void literal_list(Pr *p, const Node *e) {
    const char *open = "[", *close = "]";
    p->uses |= USES_LIST;
    if (p->l == LANG_CPP || p->l == LANG_GO) {
        put(p, code_type_name(p->s, e->type, false));
        open = "{";
        close = "}";
    } else if (p->l == LANG_JAVA) {
        open = e->a ? "new ArrayList<>(List.of(" : "new ArrayList<>(";
        close = e->a ? "))" : ")";
    } else if (p->l == LANG_RUST) {
        open = e->a ? "vec![" : "Vec::new(";
        close = e->a ? "]" : ")";
    }
    put(p, open);
    for (const Node *x = e->a; x; x = x->next) {
        if (p->l == LANG_RUST) rust_own(p, x);
        else ex(p, x, P_OR);
        if (x->next) put(p, ", ");
    }
    put(p, close);
}

// text + text: flat list of pieces for Rust's format and for Go's conversions
static void concat(Pr *p, const Node *e, bool braces) {
    if (e->kind == E_BIN && e->op == OP_ADD && e->type == T_STR) {
        concat(p, e->a, braces);
        if (!braces) put(p, ", ");
        concat(p, e->b, braces);
    } else if (braces) put(p, "{}");
    else ex(p, e, P_OR);
}

static bool boxed(const Node *e) {                      // a Java Integer
    return (e->kind == E_INDEX && e->type == T_INT) ||
           (e->kind == E_CALL &&
            (e->op == F_LAST || e->op == F_GET || e->op == F_MAXOF || e->op == F_MINOF));
}

static void java_equals(Pr *p, const Node *e) {
    if (e->op == OP_NE) put(p, "!");
    ex(p, e->a, P_POST);
    put(p, ".equals(");
    ex(p, e->b, P_OR);
    put(p, ")");
}

static int op_level(int op) {
    static const int level[] = { P_OR,  P_OR,  P_AND, P_CMP, P_CMP,  P_CMP,   P_CMP,
                                 P_CMP, P_CMP, P_BOR, P_XOR, P_BAND, P_SHIFT, P_SHIFT,
                                 P_ADD, P_ADD, P_MUL, P_MUL, P_MUL };
    return level[op];
}

static void binary(Pr *p, const Node *e, int at) {
    static const char *const sign[] = { "",    " || ", " && ", " == ", " != ", " < ",  " <= ",
                                        " > ", " >= ", " | ",  " ^ ",  " & ",  " << ", " >> ",
                                        " + ", " - ",  " * ",  " / ",  " % " };
    const char *t = sign[e->op];
    if (e->op == OP_DIV && p->l == LANG_PHP) {
        put(p, "intdiv(");
        ex(p, e->a, P_OR);
        put(p, ", ");
        ex(p, e->b, P_OR);
        put(p, ")");
        return;
    }
    if (e->op == OP_DIV && p->l == LANG_TS) {
        put(p, "Math.floor(");
        ex(p, e->a, P_MUL);
        put(p, " / ");
        ex(p, e->b, P_UNARY);
        put(p, ")");
        return;
    }
    if (e->type == T_STR && p->l == LANG_RUST) {
        put(p, "format!(\"");
        concat(p, e, true);
        put(p, "\", ");
        concat(p, e, false);
        put(p, ")");
        return;
    }
    if (p->l == LANG_PYTHON && e->op <= OP_AND) t = e->op == OP_OR ? " or " : " and ";
    if (p->l == LANG_PYTHON && e->op == OP_DIV) t = " // ";
    if ((p->l == LANG_PHP || p->l == LANG_TS) && (e->op == OP_EQ || e->op == OP_NE))
        t = e->op == OP_EQ ? " === " : " !== ";
    if (p->l == LANG_PHP && e->type == T_STR) t = " . ";
    bool bits = at >= P_BOR && at <= P_SHIFT;           // their levels differ between languages
    ex(p, e->a, bits ? P_UNARY : at == P_CMP ? P_ADD : at);
    put(p, t);
    ex(p, e->b, bits ? P_UNARY : at == P_CMP ? P_ADD : at + 1);
}

static void ex(Pr *p, const Node *e, int level) {
    int at = P_POST;
    bool byte_text = p->l == LANG_GO && e->kind == E_BIN && e->type == T_STR;
    switch (e->kind) {
    case E_BIN:
        at = op_level(e->op);
        if (p->l == LANG_JAVA && (e->op == OP_EQ || e->op == OP_NE) &&
            (e->a->type == T_STR || (boxed(e->a) && boxed(e->b))))
            at = e->op == OP_NE ? P_UNARY : P_POST + 1;
        if ((e->op == OP_DIV && (p->l == LANG_PHP || p->l == LANG_TS)) ||
            (p->l == LANG_RUST && e->type == T_STR))
            at = P_POST;
        break;
    case E_NOT: at = p->l == LANG_PYTHON ? P_NOT : P_UNARY; break;
    case E_NEG: at = P_UNARY; break;
    case E_INT: at = e->value < 0 ? P_UNARY : P_POST; break;
    case E_INDEX: at = p->l == LANG_RUST && e->a->type == T_STR ? P_NOT : P_POST; break;
    case E_CALL:
        if (contains_is_cmp(p, e)) at = P_CMP;
        else if (p->l == LANG_PYTHON && e->op == F_FILL) at = P_MUL;
        else if (p->l == LANG_RUST && (e->op == F_GET || e->op == F_MAXOF || e->op == F_MINOF))
            at = P_UNARY;
        else if (p->l == LANG_CPP && (e->op == F_MAXOF || e->op == F_MINOF)) at = P_UNARY;
        else if ((p->l == LANG_PHP && (e->op == F_DIGIT || e->op == F_STR)) ||
                 (p->l == LANG_JAVA && (e->op == F_ORD || e->op == F_CHR))) at = P_UNARY;
        break;
    default: break;
    }
    bool paren = at < level;
    if (paren) put(p, "(");
    switch (e->kind) {
    case E_INT: str_fmt(p->out, "%ld", e->value); break;
    case E_CHAR: put_char(p, e->value); break;
    case E_STR: put_text(p, e->text); break;
    case E_BOOL:
        put(p, p->l == LANG_PYTHON ? (e->value ? "True" : "False") : e->value ? "true" : "false");
        break;
    case E_VAR: put_var(p, e->var); break;
    case E_NEG: put(p, "-"); ex(p, e->a, P_POST); break;
    case E_NOT:
        put(p, p->l == LANG_PYTHON ? "not " : "!");
        ex(p, e->a, p->l == LANG_PYTHON ? P_NOT : P_POST);
        break;
    case E_INDEX: index_of(p, e); break;
    case E_SLICE: slice(p, e); break;
    case E_LITERAL: literal_list(p, e); break;
    case E_CALL: call(p, e); break;
    case E_BIN:
        if (p->l == LANG_JAVA && at > P_MUL) java_equals(p, e);
        else if (byte_text) {
            bool a = e->a->type == T_CHAR, b = e->b->type == T_CHAR;
            if (a) put(p, "string(");
            ex(p, e->a, P_ADD);
            put(p, a ? ") + " : " + ");
            if (b) put(p, "string(");
            ex(p, e->b, P_MUL);
            if (b) put(p, ")");
        } else binary(p, e, op_level(e->op));
        break;
    default: CHECK(false, "code printer: statement %d used as a value", (int)e->kind);
    }
    if (paren) put(p, ")");
}

// ---------------------------------------------------------------------------
// Types

const char *code_type_name(const CodeStyle *s, CodeType t, bool param) {
    static const char *const name[N_LANGS][T_SMAP + 1] = {
        { "", "int", "bool", "str", "str", "list[int]", "list[str]", "list[list[int]]",
          "dict[int, int]", "dict[str, int]" },
        { "", "int", "bool", "char", "std::string", "std::vector<int>", "std::vector<std::string>",
          "std::vector<std::vector<int>>", "std::map<int, int>", "std::map<std::string, int>" },
        { "", "int", "boolean", "char", "String", "List<Integer>", "List<String>",
          "List<List<Integer>>", "Map<Integer, Integer>", "Map<String, Integer>" },
        { "", "int", "bool", "string", "string", "array", "array", "array", "array", "array" },
        { "", "i64", "bool", "char", "String", "Vec<i64>", "Vec<String>", "Vec<Vec<i64>>",
          "HashMap<i64, i64>", "HashMap<String, i64>" },
        { "", "int", "bool", "byte", "string", "[]int", "[]string", "[][]int", "map[int]int",
          "map[string]int" },
        { "", "number", "boolean", "string", "string", "number[]", "string[]", "number[][]",
          "Map<number, number>", "Map<string, number>" },
    };
    static const char *const cpp_long[T_SMAP + 1] = { "", "long", "bool", "char", "std::string",
        "std::vector<long>", "std::vector<std::string>", "std::vector<std::vector<long>>",
        "std::map<long, long>", "std::map<std::string, long>" };
    static const char *const cpp_param[2][3] = {
        { "const std::vector<int> &", "const std::vector<std::string> &",
          "const std::vector<std::vector<int>> &" },
        { "const std::vector<long> &", "const std::vector<std::string> &",
          "const std::vector<std::vector<long>> &" }
    };
    static const char *const rust_param[] = { "&[i64]", "&[String]", "&[Vec<i64>]" };
    if (param && s->lang == LANG_CPP && t >= T_LIST && t <= T_GRID)
        return cpp_param[s->wide_int][t - T_LIST];
    if (param && s->lang == LANG_CPP && t == T_STR) return "const std::string &";
    if (param && s->lang == LANG_RUST && t >= T_LIST && t <= T_GRID) return rust_param[t - T_LIST];
    if (param && s->lang == LANG_RUST && t == T_STR) return "&str";
    if (s->lang == LANG_CPP && s->wide_int) return cpp_long[t];
    return name[s->lang][t];
}

// ---------------------------------------------------------------------------
// Statements

static void indent(Pr *p) {
    for (int i = 0; i < p->depth; i++)
        if (p->s->indent == 0) put(p, "\t");
        else str_fmt(p->out, "%*s", p->s->indent, "");
}
static const char *semi(const Pr *p) {
    return p->l == LANG_PYTHON || p->l == LANG_GO ? "\n" : ";\n";
}

static void body(Pr *p, const Node *s);

static void open_block(Pr *p) {
    put(p, p->l == LANG_PYTHON ? ":\n" : " {\n");
    p->depth++;
}
static void close_block(Pr *p, const char *after) {
    p->depth--;
    if (p->l == LANG_PYTHON) return;
    indent(p);
    put(p, "}");
    put(p, after);
}
static bool bare_condition(const Pr *p) {
    return p->l == LANG_PYTHON || p->l == LANG_GO || p->l == LANG_RUST;
}

static void condition(Pr *p, const Node *e) {
    if (!bare_condition(p)) put(p, "(");
    ex(p, e, P_OR);
    if (!bare_condition(p)) put(p, ")");
}

static void declaration(Pr *p, const Node *s) {
    const CodeVar *v = &p->f->var[s->a->var];
    bool empty = (s->b->kind == E_LITERAL && !s->b->a) ||
                 (s->b->kind == E_CALL && (s->b->op >= F_MAP && s->b->op <= F_GRID));
    const char *type = code_type_name(p->s, v->type, false);
    p->uses |= v->type == T_STR ? USES_STRING : v->type >= T_LIST ? USES_LIST : 0;
    switch (p->l) {
    case LANG_PYTHON:
        put(p, v->name);
        if (empty && p->s->hints) str_fmt(p->out, ": %s", type);
        put(p, " = ");
        break;
    case LANG_CPP: case LANG_JAVA: str_fmt(p->out, "%s %s = ", type, v->name); break;
    case LANG_PHP: str_fmt(p->out, "$%s = ", v->name); break;
    case LANG_RUST:
        str_fmt(p->out, "let %s%s: %s = ", v->mutated ? "mut " : "", v->name, type);
        break;
    case LANG_GO: str_fmt(p->out, "%s := ", v->name); break;
    case LANG_TS: {
        bool rebinds = v->mutated && v->type != T_LIST && v->type != T_STRS && v->type != T_GRID &&
                       v->type != T_MAP && v->type != T_SMAP;
        str_fmt(p->out, "%s %s", rebinds || v->mutated ? "let" : "const", v->name);
        if (empty && s->b->kind == E_LITERAL) str_fmt(p->out, ": %s", type);
        else if (empty && v->type != T_MAP && v->type != T_SMAP) str_fmt(p->out, ": %s", type);
        put(p, " = ");
        break;
    }
    default: break;
    }
    bool byte = p->l == LANG_GO && s->b->kind == E_CHAR;
    if (byte) put(p, "byte(");
    if (p->l == LANG_RUST) rust_own(p, s->b);
    else ex(p, s->b, P_OR);
    if (byte) put(p, ")");
    put(p, semi(p));
}

static void assignment(Pr *p, const Node *s) {
    static const char *const sign[] = { " = ",  "",     "",     "",     "",     "", "",
                                        "",     "",     " |= ", " ^= ", " &= ", "", "",
                                        " += ", " -= ", " *= ", " /= ", " %= " };
    const Node *t = s->a, *v = s->b;
    bool text = t->type == T_STR && s->op == OP_ADD;
    Node whole = { .kind = E_BIN,
                   .type = T_INT,
                   .op = s->op,
                   .var = -1,
                   .a = (Node *)(uintptr_t)t,
                   .b = (Node *)(uintptr_t)v };
    bool divides = s->op == OP_DIV && (p->l == LANG_PHP || p->l == LANG_TS);
    if (p->l == LANG_JAVA && t->kind == E_INDEX) {
        ex(p, t->a, P_POST);
        put(p, ".set(");
        ex(p, t->b, P_OR);
        put(p, ", ");
        ex(p, s->op ? &whole : v, P_OR);
        put(p, ")");
    } else if (p->l == LANG_RUST && text) {
        ex(p, t, P_POST);
        bool push = v->type == T_CHAR;
        put(p, push ? ".push(" : v->kind == E_STR ? ".push_str(" : ".push_str(&");
        ex(p, v, push || v->kind == E_STR ? P_OR : P_POST);
        put(p, ")");
    } else if (s->op == OP_ADD && !text && v->kind == E_INT && v->value == 1 &&
               p->l != LANG_PYTHON && p->l != LANG_RUST) {
        bool pre = p->s->pre_inc && p->l != LANG_GO;
        if (pre) put(p, "++");
        ex(p, t, P_OR);
        if (!pre) put(p, "++");
    } else {
        ex(p, t, P_OR);
        put(p, divides                                  ? " = "
               : p->l == LANG_PYTHON && s->op == OP_DIV ? " //= "
               : p->l == LANG_PHP && text               ? " .= "
                                                        : sign[s->op]);
        bool byte_text = p->l == LANG_GO && text && v->type == T_CHAR;
        if (byte_text) put(p, "string(");
        if (divides) ex(p, &whole, P_OR);
        else if (p->l == LANG_RUST && !s->op) rust_own(p, v);
        else ex(p, v, P_OR);
        if (byte_text) put(p, ")");
    }
    put(p, semi(p));
}

static void call_statement(Pr *p, const Node *e) {
    static const char *const push[N_LANGS] = {
        "%a.append(%2)",       "%a.push_back(%2)", "%a.add(%2)", "%a[] = %2", "",
        "%1 = append(%1, %2)", "%a.push(%2)"
    };
    static const char *const drop[N_LANGS] = {
        "%a.pop()",      "%a.pop_back()", "%a.remove(%a.size() - 1)",
        "array_pop(%1)", "%a.pop()",      "%1 = %1[:len(%1)-1]",
        "%a.pop()"
    };
    static const char *const sort[N_LANGS] = { "%a.sort()",
                                               "std::sort(%a.begin(), %a.end())",
                                               "Collections.sort(%1)",
                                               "sort(%1)",
                                               "%a.sort()",
                                               "sort.Ints(%1)",
                                               "%a.sort((p, q) => p - q)" };
    static const char *const put_[N_LANGS] = {
        "%a[%2] = %3", "%a[%2] = %3",   "%a.put(%2, %3)", "%a[%2] = %3", "",
        "%a[%2] = %3", "%a.set(%2, %3)"
    };
    static const char *const inc[N_LANGS] = { "%a[%2] = %a.get(%2, 0) + %3", "%a[%2] += %3",
        "%a.merge(%2, %3, Integer::sum)", "%a[%2] = (%a[%2] ?? 0) + %3", "", "%a[%2] += %3",
        "%a.set(%2, (%a.get(%2) ?? 0) + %3)" };
    static const char *const swap[N_LANGS] = { "%a[%2], %a[%3] = %a[%3], %a[%2]",
                                               "std::swap(%a[%2], %a[%3])",
                                               "Collections.swap(%1, %2, %3)",
                                               "[%a[%2], %a[%3]] = [%a[%3], %a[%2]]",
                                               "",
                                               "%a[%2], %a[%3] = %a[%3], %a[%2]",
                                               "[%a[%2], %a[%3]] = [%a[%3], %a[%2]]" };
    const Node *k = e->a->next;
    bool words = e->a->type == T_STRS;
    if (e->op == F_SORT || e->op == F_SWAP)
        p->uses |= USES_ALGO | (e->op == F_SORT ? USES_SORT : 0);
    if (e->op == F_PUSH && p->l == LANG_RUST) {
        pattern(p, "%a.push(", e->a);
        rust_own(p, k);
        put(p, ")");
    } else if (e->op == F_PUT && p->l == LANG_RUST) {
        pattern(p, "%a.insert(", e->a);
        rust_key(p, k, true);
        pattern(p, ", %3)", e->a);
    } else if (e->op == F_INC && p->l == LANG_RUST) {
        pattern(p, "*%a.entry(", e->a);
        rust_key(p, k, true);
        pattern(p, ").or_insert(0) += %3", e->a);
    } else if (e->op == F_SWAP && p->l == LANG_RUST) {
        pattern(p, "%a.swap(", e->a);
        rust_usize(p, k);
        put(p, ", ");
        rust_usize(p, k->next);
        put(p, ")");
    } else if (e->op == F_SORT && words && (p->l == LANG_GO || p->l == LANG_TS)) {
        pattern(p, p->l == LANG_GO ? "sort.Strings(%1)" : "%a.sort()", e->a);
    } else {
        const char *const *t = e->op == F_PUSH   ? push
                               : e->op == F_DROP ? drop
                               : e->op == F_SORT ? sort
                               : e->op == F_PUT  ? put_
                               : e->op == F_INC  ? inc
                                                 : swap;
        pattern(p, t[p->l], e->a);
    }
    put(p, semi(p));
}

static void range_loop(Pr *p, const Node *s) {
    const char *v = name_of(p, s->var), *d = p->l == LANG_PHP ? "$" : "";
    const char *rel = s->value > 0 ? "<" : ">=";
    switch (p->l) {
    case LANG_PYTHON:
        str_fmt(p->out, "for %s in range(", v);
        if (!(s->a->kind == E_INT && s->a->value == 0 && s->value == 1)) {
            ex(p, s->a, P_OR);
            put(p, ", ");
        }
        ex(p, s->b, s->value < 0 ? P_ADD : P_OR);
        if (s->value < 0) put(p, " - 1, -1");
        else if (s->value > 1) str_fmt(p->out, ", %ld", s->value);
        put(p, ")");
        break;
    case LANG_RUST: {
        if (s->value < 0) str_fmt(p->out, "for %s in (", v);
        else str_fmt(p->out, s->value > 1 ? "for %s in (" : "for %s in ", v);
        ex(p, s->value < 0 ? s->b : s->a, P_ADD);
        put(p, s->value < 0 ? "..=" : "..");
        const Node *end = s->value < 0 ? s->a : s->b;
        ex(p, end, P_ADD);
        if (s->value < 0) put(p, ").rev()");
        else if (s->value > 1) str_fmt(p->out, ").step_by(%ld)", s->value);
        break;
    }
    default: {
        const char *type = p->l == LANG_GO    ? ""
                           : p->l == LANG_TS  ? "let "
                           : p->l == LANG_PHP ? ""
                                              : int_name(p);
        put(p, p->l == LANG_GO ? "for " : "for (");
        str_fmt(p->out, "%s%s%s%s%s ", type, p->l == LANG_CPP || p->l == LANG_JAVA ? " " : "", d, v,
                p->l == LANG_GO ? " :=" : " =");
        ex(p, s->a, P_OR);
        str_fmt(p->out, "; %s%s %s ", d, v, rel);
        ex(p, s->b, P_CMP + 1);
        const char *step = s->value > 0 ? "++" : "--";
        if (s->value > 1) str_fmt(p->out, "; %s%s += %ld", d, v, s->value);
        else if (p->s->pre_inc && p->l != LANG_GO) str_fmt(p->out, "; %s%s%s", step, d, v);
        else str_fmt(p->out, "; %s%s%s", d, v, step);
        if (p->l != LANG_GO) put(p, ")");
    }
    }
}

static void each_loop(Pr *p, const Node *s) {
    const char *v = name_of(p, s->var);
    CodeType t = p->f->var[s->var].type;
    switch (p->l) {
    case LANG_PYTHON: str_fmt(p->out, "for %s in ", v); ex(p, s->a, P_OR); break;
    case LANG_CPP:
        str_fmt(p->out, "for (%s%s%s%s : ", t >= T_STR ? "const " : "",
                code_type_name(p->s, t, false), t >= T_STR ? " &" : " ", v);
        ex(p, s->a, P_OR);
        put(p, ")");
        break;
    case LANG_JAVA:
        str_fmt(p->out, "for (%s %s : ", code_type_name(p->s, t, false), v);
        ex(p, s->a, P_POST);
        put(p, s->a->type == T_STR ? ".toCharArray())" : ")");
        break;
    case LANG_PHP:
        put(p, "foreach (");
        if (s->a->type == T_STR) put(p, "str_split(");
        ex(p, s->a, P_OR);
        str_fmt(p->out, "%s as $%s)", s->a->type == T_STR ? ")" : "", v);
        break;
    case LANG_RUST:
        str_fmt(p->out, "for %s%s in ", t == T_INT ? "&" : "", v);
        ex(p, s->a, P_POST);
        put(p, s->a->type == T_STR ? ".chars()" : t == T_STR ? ".iter().cloned()" : ".iter()");
        break;
    case LANG_GO:
        if (p->f->var[s->var].used) str_fmt(p->out, "for _, %s := range ", v);
        else put(p, "for range ");
        if (s->a->type == T_STR) put(p, "[]byte(");
        ex(p, s->a, P_OR);
        if (s->a->type == T_STR) put(p, ")");
        break;
    case LANG_TS:
        str_fmt(p->out, "for (const %s of ", v);
        ex(p, s->a, P_OR);
        put(p, ")");
        break;
    default: break;
    }
}

static void if_chain(Pr *p, const Node *s) {
    for (bool first = true; ; first = false) {
        put(p, first                 ? "if "
               : p->l == LANG_PYTHON ? "elif "
               : p->l == LANG_PHP    ? " elseif "
                                     : " else if ");
        condition(p, s->a);
        open_block(p);
        body(p, s->b);
        close_block(p, "");
        if (!s->c) break;
        bool chained = s->c->kind == S_IF && !s->c->next;
        if (p->l == LANG_PYTHON) indent(p);
        if (chained) { s = s->c; continue; }
        put(p, p->l == LANG_PYTHON ? "else" : " else");
        open_block(p);
        body(p, s->c);
        close_block(p, "");
        break;
    }
    if (p->l != LANG_PYTHON) put(p, "\n");
}

static void statement(Pr *p, const Node *s) {
    indent(p);
    switch (s->kind) {
    case S_SET: if (s->decl) declaration(p, s); else assignment(p, s); break;
    case S_IF: if_chain(p, s); break;
    case S_WHILE:
        put(p, p->l == LANG_GO ? "for " : "while ");
        condition(p, s->a);
        open_block(p);
        body(p, s->c);
        close_block(p, "\n");
        break;
    case S_RANGE: case S_EACH:
        if (s->kind == S_RANGE) range_loop(p, s);
        else each_loop(p, s);
        open_block(p);
        body(p, s->c);
        close_block(p, "\n");
        break;
    case S_RETURN:
        put(p, "return ");
        if (p->l == LANG_RUST) rust_own(p, s->a);
        else ex(p, s->a, P_OR);
        put(p, semi(p));
        break;
    case S_BREAK: put(p, "break"); put(p, semi(p)); break;
    case S_CONTINUE: put(p, "continue"); put(p, semi(p)); break;
    case S_CALL: call_statement(p, s->a); break;
    case S_NOTE: str_fmt(p->out, "%s %s\n", p->l == LANG_PYTHON ? "#" : "//", s->text); break;
    default: CHECK(false, "code printer: value %d used as a statement", (int)s->kind);
    }
}

static void body(Pr *p, const Node *s) {
    for (; s; s = s->next) statement(p, s);
}

// ---------------------------------------------------------------------------
// Functions

static void signature(Pr *p) {
    const CodeFn *f = p->f;
    const char *ret = code_type_name(p->s, f->entry->ret, false);
    bool after = p->l == LANG_PYTHON || p->l == LANG_PHP || p->l == LANG_RUST || p->l == LANG_GO ||
                 p->l == LANG_TS;
    if (after) {
        static const char *const head[N_LANGS] = { "def ",    "",      "",         "function ",
                                                   "pub fn ", "func ", "function " };
        put(p, head[p->l]);
    } else str_fmt(p->out, "%s%s ", p->l == LANG_JAVA ? "public static " : "", ret);
    str_fmt(p->out, "%s(", f->name);
    for (int i = 0; i < f->entry->n_params; i++) {
        const CodeVar *v = &f->var[i];
        const char *type = code_type_name(p->s, v->type, true), *sep = i ? ", " : "";
        p->uses |= v->type == T_STR ? USES_STRING : v->type >= T_LIST ? USES_LIST : 0;
        switch (p->l) {
        case LANG_PYTHON:
            if (p->s->hints) str_fmt(p->out, "%s%s: %s", sep, v->name, type);
            else str_fmt(p->out, "%s%s", sep, v->name);
            break;
        case LANG_CPP:
            str_fmt(p->out, "%s%s%s%s", sep, type, type[strlen(type) - 1] == '&' ? "" : " ",
                    v->name);
            break;
        case LANG_JAVA: str_fmt(p->out, "%s%s %s", sep, type, v->name); break;
        case LANG_PHP: str_fmt(p->out, "%s%s $%s", sep, type, v->name); break;
        case LANG_RUST:
            str_fmt(p->out, "%s%s%s: %s", sep, v->mutated ? "mut " : "", v->name, type);
            break;
        case LANG_GO: str_fmt(p->out, "%s%s %s", sep, v->name, type); break;
        default: str_fmt(p->out, "%s%s: %s", sep, v->name, type);
        }
    }
    put(p, ")");
    if (p->l == LANG_PYTHON && p->s->hints) str_fmt(p->out, " -> %s", ret);
    if (p->l == LANG_PHP || p->l == LANG_TS) str_fmt(p->out, ": %s", ret);
    if (p->l == LANG_RUST) str_fmt(p->out, " -> %s", ret);
    if (p->l == LANG_GO) str_fmt(p->out, " %s", ret);
}

void code_print(StrBuf *out, const CodeFn *f, const CodeStyle *style, int depth, int *uses) {
    Pr p = { .out = out, .f = f, .s = style, .l = style->lang, .depth = depth };
    signature(&p);
    if (style->brace_line && p.l != LANG_PYTHON) {
        put(&p, "\n");
        indent(&p);
        put(&p, "{\n");
        p.depth++;
    } else open_block(&p);
    body(&p, f->body);
    close_block(&p, "");
    if (p.l == LANG_PYTHON && out->n && out->p[out->n - 1] == '\n') out->p[--out->n] = 0;
    if (f->entry->ret == T_STR) p.uses |= USES_STRING;
    if (f->entry->ret >= T_LIST) p.uses |= USES_LIST;
    *uses |= p.uses;
}

char *code_case(const char *words, bool snake, bool capital) {
    char *out = (char *)xrealloc(NULL, strlen(words) + 1), *o = out;
    bool up = capital;
    for (const char *w = words; *w; w++) {
        if (*w == '_' && !snake) { up = true; continue; }
        *o++ = up && *w >= 'a' && *w <= 'z' ? (char)(*w - 32) : *w;
        up = false;
    }
    *o = 0;
    return out;
}
