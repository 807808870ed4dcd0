// code_vary.c - variations of a tree that keep its meaning, and the last pass before printing:
// which statement declares a variable, which variables are changed or never read.
#include "code.h"

static bool chance(Rng *rng, int percent) { return (int)rng_below(rng, 100) < percent; }

static Node *make(CodeFn *f, NodeKind kind, Node *a, Node *b) {
    CHECK(f->arena->n + sizeof(Node) <= f->arena->cap, "code notation: tree too large");
    Node *n = (Node *)(void *)(f->arena->p + f->arena->n);
    f->arena->n += sizeof *n;
    memset(n, 0, sizeof *n);
    n->kind = kind;
    n->a = a;
    n->b = b;
    n->var = -1;
    return n;
}

static Node *var_node(CodeFn *f, int var) {
    Node *n = make(f, E_VAR, NULL, NULL);
    n->var = var;
    n->type = f->var[var].type;
    return n;
}
static Node *int_node(CodeFn *f, long value) {
    Node *n = make(f, E_INT, NULL, NULL);
    n->value = value;
    n->type = T_INT;
    return n;
}
static Node *bin_node(CodeFn *f, CodeOp op, Node *a, Node *b) {
    Node *n = make(f, E_BIN, a, b);
    n->op = op;
    n->type = op <= OP_GE ? T_BOOL : T_INT;
    return n;
}
static int fresh(CodeFn *f, const char *base, CodeType type) {
    if (f->n_vars == MAX_VARS) return -1;
    CodeVar *v = &f->var[f->n_vars];
    memset(v, 0, sizeof *v);
    snprintf(v->base, sizeof v->base, "%s", base);
    v->type = type;
    return f->n_vars++;
}

// ---------------------------------------------------------------------------
// Expressions

static CodeOp flipped(int op) {
    switch (op) {
    case OP_LT: return OP_GT;
    case OP_GT: return OP_LT;
    case OP_LE: return OP_GE;
    case OP_GE: return OP_LE;
    default: return (CodeOp)op;
    }
}

static Node *negated(CodeFn *f, Node *e) {
    if (e->kind == E_NOT) return e->a;
    if (e->kind == E_BIN && e->op >= OP_EQ && e->op <= OP_GE) {
        static const CodeOp opposite[] = { OP_NE, OP_EQ, OP_GE, OP_GT, OP_LE, OP_LT };
        Node *n = bin_node(f, opposite[e->op - OP_EQ], e->a, e->b);
        return n;
    }
    Node *n = make(f, E_NOT, e, NULL);
    n->type = T_BOOL;
    return n;
}

// comparisons turned round; len(parameter) through a local variable
static void vary_expr(CodeFn *f, Node *e, Rng *rng, const int *len_var) {
    if (!e) return;
    vary_expr(f, e->a, rng, len_var);
    vary_expr(f, e->b, rng, len_var);
    vary_expr(f, e->c, rng, len_var);
    if (e->kind == E_CALL || e->kind == E_LITERAL)
        for (Node *x = e->a ? e->a->next : NULL; x; x = x->next) vary_expr(f, x, rng, len_var);
    if (e->kind == E_CALL && e->op == F_LEN && e->a->kind == E_VAR && len_var[e->a->var] >= 0) {
        e->var = len_var[e->a->var];
        e->kind = E_VAR;
        e->a = NULL;
    }
    bool order = e->kind == E_BIN && e->op >= OP_EQ && e->op <= OP_GE;
    if (order && chance(rng, 20)) {
        Node *a = e->a;
        e->a = e->b;
        e->b = a;
        e->op = flipped(e->op);
    }
    if (e->kind == E_BIN && (e->op == OP_ADD || e->op == OP_MUL) && e->a->type == T_INT &&
        e->b->type == T_INT && e->a->kind == E_VAR && e->b->kind == E_VAR && chance(rng, 30)) {
        Node *a = e->a;
        e->a = e->b;
        e->b = a;
    }
}

static int count_len(const CodeFn *f, const Node *e, int var) {
    int n = 0;
    for (; e; e = e->next) {
        n += e->kind == E_CALL && e->op == F_LEN && e->a->kind == E_VAR && e->a->var == var;
        n += count_len(f, e->a, var) + count_len(f, e->b, var) + count_len(f, e->c, var);
    }
    return n;
}

// ---------------------------------------------------------------------------
// Statements

static bool holds(const Node *s, NodeKind kind) {       // in this loop, not in inner ones
    for (; s; s = s->next) {
        if (s->kind == kind) return true;
        if (s->kind == S_IF && (holds(s->b, kind) || holds(s->c, kind))) return true;
    }
    return false;
}

static void count_loops(CodeFn *f, const Node *s) {
    for (; s; s = s->next) {
        if (s->kind == S_RANGE || s->kind == S_EACH) f->var[s->var].loops++;
        if (s->kind == S_IF) count_loops(f, s->b);
        if (s->kind >= S_IF && s->kind <= S_EACH) count_loops(f, s->c);
    }
}

// for x in xs  ->  for i in 0..len(xs) { x = xs[i]; .. }
static void each_to_range(CodeFn *f, Node *s) {
    int i = fresh(f, "i", T_INT);
    if (i < 0) return;
    Node *len = make(f, E_CALL, var_node(f, s->a->var), NULL);
    len->op = F_LEN;
    len->type = T_INT;
    Node *at = make(f, E_INDEX, var_node(f, s->a->var), var_node(f, i));
    at->type = f->var[s->var].type;
    Node *set = make(f, S_SET, var_node(f, s->var), at);
    set->next = s->c;
    f->var[s->var].loops--;
    f->var[i].loops = 1;
    s->kind = S_RANGE;
    s->a = int_node(f, 0);
    s->b = len;
    s->c = set;
    s->value = 1;
    s->var = i;
}

// for i in a..b  ->  i = a; while i < b { ..; i += 1 }
static void range_to_while(CodeFn *f, Node *s) {
    Node *loop = make(f, S_WHILE,
                      bin_node(f, s->value > 0 ? OP_LT : OP_GE, var_node(f, s->var), s->b), NULL);
    Node *step = make(f, S_SET, var_node(f, s->var), int_node(f, s->value > 0 ? s->value : 1));
    step->op = s->value > 0 ? OP_ADD : OP_SUB;
    Node **tail = &s->c;
    while (*tail) tail = &(*tail)->next;
    *tail = step;
    loop->c = s->c;
    loop->next = s->next;
    s->kind = S_SET;
    s->b = s->a;
    s->a = var_node(f, s->var);
    s->c = NULL;
    s->next = loop;
    s->var = -1;
}

static bool returns(const Node *s) {
    for (; s; s = s->next) {
        if (s->kind == S_RETURN) return true;
        if (s->kind == S_IF && s->c && returns(s->b) && returns(s->c)) return true;
    }
    return false;
}

static void vary_block(CodeFn *f, Node **first, Rng *rng, const int *len_var) {
    for (Node **at = first; *at; at = &(*at)->next) {
        Node *s = *at;
        bool plain_each = s->kind == S_EACH && s->a->kind == E_VAR &&
                          (f->var[s->a->var].type == T_LIST || f->var[s->a->var].type == T_STR);
        if (plain_each && f->var[s->var].loops == 1 && chance(rng, 30)) each_to_range(f, s);
        if (s->kind >= S_IF && s->kind <= S_EACH) {
            if (s->kind == S_IF) vary_block(f, &s->b, rng, len_var);
            vary_block(f, &s->c, rng, len_var);
        }
        if (s->kind <= S_RETURN && s->kind >= S_SET) vary_expr(f, s->a, rng, len_var);
        if (s->kind == S_SET || s->kind == S_RANGE) vary_expr(f, s->b, rng, len_var);
        if (s->kind == S_CALL) vary_expr(f, s->a, rng, len_var);
        if (s->kind == S_RANGE && f->var[s->var].loops == 1 && !holds(s->c, S_CONTINUE) &&
            chance(rng, 30)) {
            range_to_while(f, s);
            at = &s->next;
        }
        if (s->kind == S_SET && s->op && s->a->kind == E_VAR && s->a->type == T_INT &&
            chance(rng, 25)) {
            s->b = bin_node(f, (CodeOp)s->op, var_node(f, s->a->var), s->b);
            s->op = OP_NONE;
        }
        bool work = s->kind == S_RETURN && (s->a->kind == E_BIN || s->a->kind == E_CALL);
        int r = work && chance(rng, 30) ? fresh(f, "zret", s->a->type) : -1;
        if (r >= 0) {
            Node *ret = make(f, S_RETURN, var_node(f, r), NULL);
            s->kind = S_SET;
            s->b = s->a;
            s->a = var_node(f, r);
            ret->next = s->next;
            s->next = ret;
            at = &s->next;
        }
    }
}

// if c { return x } rest  ->  if c { return x } else { rest }, or if not c { rest } return x
static void vary_guard(CodeFn *f, Node **first, Rng *rng) {
    for (Node **at = first; *at; at = &(*at)->next) {
        Node *s = *at;
        bool guard = s->kind == S_IF && !s->c && s->b && s->b->kind == S_RETURN && s->next &&
                     returns(s->next);
        if (!guard || !chance(rng, 35)) continue;
        Node *rest = s->next;
        s->next = NULL;
        if (chance(rng, 50)) {
            s->c = rest;
            vary_guard(f, &s->c, rng);
        } else {
            s->next = s->b;
            s->a = negated(f, s->a);
            s->b = rest;
            vary_guard(f, &s->b, rng);
        }
        return;
    }
}

static bool constant_set(const Node *s) {
    if (s->kind != S_SET || s->op || s->a->kind != E_VAR) return false;
    NodeKind k = s->b->kind;
    bool empty = (k == E_LITERAL || k == E_CALL) && !s->b->a;
    return k == E_INT || k == E_STR || k == E_BOOL || k == E_CHAR || empty;
}

// runs of "x = constant" in any order
static void vary_order(Node **first, Rng *rng) {
    for (Node **at = first; *at; at = &(*at)->next) {
        Node *run[8], *s = *at;
        int n = 0;
        for (; s && n < 8 && constant_set(s); s = s->next) {
            for (int i = 0; i < n; i++) if (run[i]->a->var == s->a->var) goto stop;
            run[n++] = s;
        }
    stop:
        if (n < 2) continue;
        for (int i = n - 1; i > 0; i--) {
            int j = (int)rng_below(rng, (uint64_t)i + 1);
            Node *t = run[i];
            run[i] = run[j];
            run[j] = t;
        }
        for (int i = 0; i < n; i++) {
            *at = run[i];
            at = &run[i]->next;
        }
        *at = s;
        if (!s) return;
    }
}

static void vary_notes(CodeFn *f, Node **first, Rng *rng, int depth) {
    for (Node **at = first; *at; at = &(*at)->next) {
        Node *s = *at;
        if (s->kind >= S_IF && s->kind <= S_EACH) {
            if (s->kind == S_IF) vary_notes(f, &s->b, rng, depth + 1);
            vary_notes(f, &s->c, rng, depth + 1);
        }
        if (!chance(rng, s->kind == S_SET || s->kind == S_RETURN ? 4 : 9)) continue;
        Node *note = make(f, S_NOTE, NULL, NULL);
        note->value = (long)(rng_next(rng) >> 2);
        note->next = s;
        *at = note;
        at = &note->next;
    }
}

// ---------------------------------------------------------------------------
// Last pass: declarations by scope, changes, reads

static int root_var(const Node *e) {
    while (e->kind == E_INDEX) e = e->a;
    return e->kind == E_VAR ? e->var : -1;
}

static void note_reads(CodeFn *f, const Node *e) {
    for (; e; e = e->next) {
        if (e->kind == E_VAR) f->var[e->var].used = true;
        if (e->kind == E_CALL && e->op >= F_PUSH && root_var(e->a) >= 0)
            f->var[root_var(e->a)].mutated = true;
        note_reads(f, e->a);
        note_reads(f, e->b);
        note_reads(f, e->c);
    }
}

static void declare(CodeFn *f, Node *s, uint64_t visible) {
    for (; s; s = s->next) {
        switch (s->kind) {
        case S_SET:
            if (s->a->kind == E_VAR) {
                s->decl = !(visible >> s->a->var & 1);
                visible |= 1ull << s->a->var;
                if (!s->decl) f->var[s->a->var].mutated = true;
            } else {
                f->var[root_var(s->a)].mutated = true;
                note_reads(f, s->a);
            }
            note_reads(f, s->b);
            break;
        case S_RANGE: case S_EACH:
            note_reads(f, s->a);
            if (s->b) note_reads(f, s->b);
            declare(f, s->c, visible | 1ull << s->var);
            break;
        case S_IF:
            note_reads(f, s->a);
            declare(f, s->b, visible);
            declare(f, s->c, visible);
            break;
        case S_WHILE:
            note_reads(f, s->a);
            declare(f, s->c, visible);
            break;
        case S_RETURN: case S_CALL:
            note_reads(f, s->a);
            break;
        default:
            break;
        }
    }
}

void code_vary(CodeFn *f, Rng *rng) {
    int len_var[MAX_VARS];
    for (int i = 0; i < MAX_VARS; i++) len_var[i] = -1;
    count_loops(f, f->body);
    if (rng) {
        Node *front = NULL;
        for (int i = 0, n = f->n_vars; i < n; i++) {
            CodeVar *v = &f->var[i];
            bool sized = v->param && (v->type == T_LIST || v->type == T_STR || v->type == T_GRID);
            if (!sized || count_len(f, f->body, i) < 1 || !chance(rng, 35)) continue;
            int at = fresh(f, "zlen", T_INT);
            if (at < 0) break;
            Node *len = make(f, E_CALL, var_node(f, i), NULL);
            len->op = F_LEN;
            len->type = T_INT;
            Node *set = make(f, S_SET, var_node(f, at), len);
            set->next = front;
            front = set;
            len_var[i] = at;
        }
        vary_block(f, &f->body, rng, len_var);
        Node **tail = &front;
        while (*tail) tail = &(*tail)->next;
        *tail = f->body;
        f->body = front;
        vary_order(&f->body, rng);
        vary_guard(f, &f->body, rng);
        vary_notes(f, &f->body, rng, 0);
    }
    uint64_t visible = 0;
    for (int i = 0; i < f->n_vars; i++) if (f->var[i].param) visible |= 1ull << i;
    declare(f, f->body, visible);
}
