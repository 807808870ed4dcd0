// cuda_emu.cpp - runs the grids of cuda_emu.h: block after block, the threads of a block as fibers
// that change at barriers and warp operations alone, every access checked against a shadow of the
// memory. A race is two accesses that nothing orders, not two that happened to collide, so the
// order in which the fibers run does not matter.
//
// Memory. Each device owns a range of addresses that is never used twice (what is freed stays
// freed); one byte of state and, per 4 bytes, the last writer and reader of the running launch
// shadow it. Shared memory has state, the last writer and two readers per byte.
//
// Order. A thread's clock counts the barriers it has passed. known[u][t] of a warp is how far lane
// u has seen lane t, at_barrier[t] how far the whole block has seen thread t. An access of t at
// clock c comes before one of u if t is u or c is not beyond what u has seen of t.
#include "cuda_emu.h"
#include "../base.h"
#include <algorithm>
#include <cxxabi.h>
#include <deque>
#include <elf.h>
#include <functional>
#include <link.h>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace {

enum : size_t {
    STACK = 256 << 10,                  // of one fiber
    DEVICE_SPAN = (size_t)8 << 30,      // addresses of one device, and of pinned host memory
    RED = 512,                          // unused bytes after every allocation
    SHARED_STATIC = 48 << 10,           // without an attribute
    SHARED_MOST = 163 << 10,            // of an A100, static and dynamic together
    SHARED_SPAN = 512 << 10             // with the red zones between the arrays
};
enum { MAX_DEVICES = 4, MAX_BLOCK = 1024, WARP = 32 };
enum { SPANS = MAX_DEVICES + 1, PINNED = MAX_DEVICES };     // ranges: devices, pinned host memory

// state of a byte
enum : uint8_t { OUTSIDE, UNSET, SET, FREED, UNDER_WAY };

// ---------------------------------------------------------------------------
// Fibers

#ifdef __x86_64__
// saves the callee-saved registers on the old stack, takes them from the new one
extern "C" void emu_switch(void **save_sp, void *to_sp);
__asm__(".text\n.globl emu_switch\n.type emu_switch, @function\nemu_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n.size emu_switch, .-emu_switch\n");

struct Context { void *sp; };

void context_make(Context *c, char *stack, size_t bytes, void (*entry)()) {
    void **top = (void **)(stack + bytes) - 2;      // the entry finds sp = 8 mod 16
    top[0] = (void *)entry;
    top[1] = nullptr;
    for (int i = 1; i <= 6; i++) top[-i] = nullptr;
    c->sp = top - 6;
}
void context_switch(Context *from, Context *to) { emu_switch(&from->sp, to->sp); }
#else
struct Context { ucontext_t u; };
void context_make(Context *c, char *stack, size_t bytes, void (*entry)()) {
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stack;
    c->u.uc_stack.ss_size = bytes;
    c->u.uc_link = nullptr;
    makecontext(&c->u, entry, 0);
}
void context_switch(Context *from, Context *to) { swapcontext(&from->u, &to->u); }
#endif

enum ThreadState { READY, AT_BARRIER, AT_WARP_OP, DONE };

// what a warp operation is given; the last lane to come works for all
struct WarpCall {
    void (*op)(struct Warp *w, uint32_t mask);
    const char *name;
    uint32_t mask;
    int kind, from;
    uint64_t in, out;
    void *r;                            // mma: d; ldmatrix: r
    const void *a, *b;                  // mma: a, b; ldmatrix: row
};

struct Copy { char *to; const char *from; bool wanted; };

struct Thread {
    Context context;
    ThreadState state;
    int id, lane;
    struct Warp *warp;
    uint3 idx;
    char *stack;
    uint32_t clock;
    WarpCall call;
    int vote;
    std::vector<std::vector<Copy>> groups;      // cp.async: committed ones, oldest first
    std::vector<Copy> open;
};

struct Warp {
    Thread *lane[WARP];
    int lanes;
    uint32_t waiting;                   // lanes in a warp operation
    uint32_t known[WARP][WARP];
};

struct Launch {
    const void *kernel;
    std::string name;
    dim3 grid, block;
    size_t shared_bytes;
    int device;
    void (*run)(const void *);
    std::vector<char> call;
};

// who touched a byte of shared memory: thread + 1 (11 bits), clock (20), by an atomic (1)
typedef uint32_t Who;
enum : uint32_t { CLOCK_MOST = (1 << 20) - 1 };
struct SharedCell { Who writer, reader[2]; };       // readers of two different threads
// who touched 4 bytes of device memory in this launch, and which of them
struct Touch { uint32_t launch, block; Who who; uint32_t bytes; };
struct Cell { Touch writer, reader; };

struct SharedArray { const void *site; std::string name; size_t at, bytes; };

__thread Thread *current;               // NULL: host code
Launch *launch;
uint32_t launch_id;
uint3 block_idx;
uint32_t block_number;
Context scheduler;
std::vector<Thread> threads(MAX_BLOCK);
std::vector<Warp> warps(MAX_BLOCK / WARP);
int n_threads, n_done, n_waiting;
std::deque<Thread *> ready;
uint32_t at_barrier[MAX_BLOCK];
const char *barrier_file;
int barrier_line, barrier_vote;
bool abandoned;

char *stacks, *shared_base, *span_base;             // span_base: SPANS ranges, one after another
uint8_t *shared_state, *span_state;
SharedCell *shared_cell;
Cell *span_cell;
size_t shared_used, shared_arrays_bytes;
std::vector<SharedArray> shared_arrays;

struct Block { size_t bytes; int nth; bool freed; };
std::map<char *, Block> blocks;
size_t span_used[SPANS], live[SPANS], capacity[SPANS];
int n_devices = 2, device_now, n_allocations;

bool catching;
std::string caught;
std::set<std::string> launched;
typedef std::pair<const char *, int> Site;
std::map<Site, bool> barriers;          // passed so far; true: it orders nothing (EMU_IGNORE)
const char *ignored;
std::map<const void *, std::string> kernel_names;
std::map<const void *, size_t> dynamic_limit;
std::vector<std::pair<const char *, const char *>> readonly;       // of the program itself

// ---------------------------------------------------------------------------
// Violations

std::string format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return text;
}

std::string where() {
    if (!current) return "host code";
    uint3 t = current->idx, b = block_idx;
    return format("kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", launch->name.c_str(), b.x,
                  b.y, b.z, t.x, t.y, t.z);
}

// ends the process, or while catching the launch: a fiber that fails is never resumed
void violation(const std::string &what) {
    std::string text = where() + ": " + what;
    if (!catching) {
        fflush(stdout);
        fprintf(stderr, "cuda_emu: %s\n", text.c_str());
        exit(1);
    }
    if (caught.empty()) caught = text;
    if (!current) return;
    abandoned = true;
    context_switch(&current->context, &scheduler);
}

std::string ordinal(int n) {
    const char *end = n % 100 / 10 == 1 ? "th" : n % 10 == 1 ? "st" : n % 10 == 2 ? "nd"
                    : n % 10 == 3 ? "rd" : "th";
    return format("%d%s", n, end);
}

bool in_spans(const void *p) { return (size_t)((char *)p - span_base) < SPANS * DEVICE_SPAN; }
bool in_shared(const void *p) { return (size_t)((char *)p - shared_base) < SHARED_SPAN; }
int span_of(const void *p) { return (int)((size_t)((char *)p - span_base) / DEVICE_SPAN); }

std::string describe_shared(const char *p) {
    size_t at = (size_t)(p - shared_base);
    const SharedArray *near = nullptr;
    for (const SharedArray &a : shared_arrays)
        if (at >= a.at) near = &a;
    if (!near) return "shared memory before the first array";
    return format("byte %zu of the shared array %s (%zu bytes)", at - near->at, near->name.c_str(),
                  near->bytes);
}

std::string describe_block(const char *p) {
    auto i = blocks.upper_bound((char *)p);
    if (i == blocks.begin()) return format("address %p", (const void *)p);
    --i;
    int span = span_of(i->first);
    return format("byte %zu of the %s%zu bytes of %s allocation%s", (size_t)(p - i->first),
                  i->second.freed ? "freed " : "", i->second.bytes,
                  ordinal(i->second.nth).c_str(),
                  span == PINNED ? " (pinned host memory)"
                                 : n_devices > 1 ? format(" (device %d)", span).c_str() : "");
}

std::string describe(const char *p) {
    return in_shared(p) ? describe_shared(p) : in_spans(p) ? describe_block(p)
                                                           : format("address %p", (const void *)p);
}

std::string thread_name(int id) {
    dim3 b = launch->block;
    return format("thread (%u, %u, %u)", (unsigned)id % b.x, (unsigned)id / b.x % b.y,
                  (unsigned)id / (b.x * b.y));
}

// ---------------------------------------------------------------------------
// The shadow

Who who_is(const Thread *t, bool atomic) {
    return (uint32_t)(t->id + 1) | t->clock << 11 | (uint32_t)atomic << 31;
}
int who_id(Who w) { return (int)(w & 2047) - 1; }
bool who_atomic(Who w) { return w >> 31; }

// does what w did come before what t does now?
bool before(Who w, const Thread *t) {
    int id = who_id(w);
    uint32_t clock = w >> 11 & CLOCK_MOST;
    if (id == t->id) return true;
    if (id / WARP == t->id / WARP) return clock <= t->warp->known[t->lane][id % WARP];
    return clock <= at_barrier[id];
}

void race(const char *p, bool write, bool other_wrote, const std::string &other,
          const char *order) {
    violation(format("%s %s, which %s %s, and %s", write ? "writes" : "reads",
                     describe(p).c_str(), other.c_str(), other_wrote ? "wrote" : "read", order));
}

const char *const NO_ORDER = "no barrier is between the two";

void shared_access(Thread *t, char *p, size_t bytes, bool write, bool atomic) {
    size_t at = (size_t)(p - shared_base);
    Who me = who_is(t, atomic);
    for (size_t i = at; i < at + bytes; i++) {
        if (i >= SHARED_SPAN || shared_state[i] == OUTSIDE)
            violation(format("%s %zu bytes at %s, outside of it", write ? "writes" : "reads", bytes,
                             describe(shared_base + std::min(i, SHARED_SPAN - 1)).c_str()));
        if (shared_state[i] == UNDER_WAY)
            violation(format("%s %s, where a cp_async16 is still under way: cp_async_wait, and a "
                             "barrier for other threads, come first",
                             write ? "writes" : "reads", describe(shared_base + i).c_str()));
        if (shared_state[i] == UNSET && (!write || atomic))
            violation(format("reads %s, which nobody wrote", describe(shared_base + i).c_str()));
        SharedCell *c = &shared_cell[i];
        if (c->writer && !before(c->writer, t) && !(atomic && who_atomic(c->writer)))
            race(shared_base + i, write, true, thread_name(who_id(c->writer)), NO_ORDER);
        if (write) {
            for (Who r : c->reader)
                if (r && !before(r, t) && !(atomic && who_atomic(r)))
                    race(shared_base + i, true, false, thread_name(who_id(r)), NO_ORDER);
            c->writer = me;
            c->reader[0] = c->reader[1] = 0;
            shared_state[i] = SET;
        } else if (who_id(c->reader[0]) == t->id) {
            c->reader[0] = me;
        } else if (!c->reader[0] || before(c->reader[0], t)) {
            c->reader[0] = me;          // what comes before the last reader, comes before it too
        } else {
            c->reader[1] = c->reader[0];
            c->reader[0] = me;
        }
    }
}

bool touch_before(const Touch &o, const Thread *t) {
    return o.launch != launch_id || (o.block == block_number && before(o.who, t));
}

void touch_conflict(const char *p, bool write, const Touch &o, bool other_wrote) {
    if (o.block == block_number)
        race(p, write, other_wrote, thread_name(who_id(o.who)), NO_ORDER);
    else
        race(p, write, other_wrote,
             format("%s of block %u", thread_name(who_id(o.who)).c_str(), o.block),
             "nothing orders the blocks of one launch");
}

// state, bounds and owner of a piece of device or pinned memory
void span_check(const char *p, size_t bytes, bool reads, const char *verb) {
    int span = span_of(p), device = launch ? launch->device : device_now;
    size_t at = (size_t)(p - span_base);
    for (size_t i = at; i < at + bytes; i++) {
        if (i >= SPANS * DEVICE_SPAN || span_state[i] == OUTSIDE)
            violation(format("%s %zu bytes at %s, outside of it", verb, bytes,
                             describe_block(span_base + i).c_str()));
        if (span_state[i] == FREED)
            violation(format("%s %s", verb, describe_block(span_base + i).c_str()));
        if (reads && span_state[i] == UNSET && span != PINNED)
            violation(format("%s %s, which nobody wrote", verb,
                             describe_block(span_base + i).c_str()));
    }
    if (span != PINNED && span != device && current)
        violation(format("%s %s, but runs on device %d", verb, describe_block(p).c_str(), device));
}

void span_access(Thread *t, char *p, size_t bytes, bool write, bool atomic) {
    span_check(p, bytes, !write || atomic, write ? "writes" : "reads");
    size_t at = (size_t)(p - span_base);
    Who me = who_is(t, atomic);
    for (size_t i = at; i < at + bytes;) {
        size_t end = std::min(at + bytes, (i | 3) + 1);
        uint32_t mask = ((1u << (end - i)) - 1) << (i & 3);
        Cell *c = &span_cell[i / 4];
        if ((c->writer.bytes & mask) && !touch_before(c->writer, t) &&
            !(atomic && who_atomic(c->writer.who)))
            touch_conflict(span_base + i, write, c->writer, true);
        if (write && (c->reader.bytes & mask) && !touch_before(c->reader, t) &&
            !(atomic && who_atomic(c->reader.who)))
            touch_conflict(span_base + i, write, c->reader, false);
        (write ? c->writer : c->reader) = { launch_id, block_number, me, mask };
        if (write) memset(span_state + i, SET, end - i);
        i = end;
    }
}

bool readonly_program(const void *p, size_t bytes) {
    for (auto &r : readonly)
        if ((const char *)p >= r.first && (const char *)p + bytes <= r.second) return true;
    return false;
}

// every access of an instrumented file arrives here
void check_access(const void *address, size_t bytes, bool write, bool atomic = false) {
    char *p = (char *)address;
    Thread *t = current;
    if (!t) {
        if (in_spans(p) && span_of(p) != PINNED)
            violation(format("%s %s: host code can only copy it", write ? "writes" : "reads",
                             describe_block(p).c_str()));
        return;
    }
    if ((size_t)(p - t->stack) < STACK) return;
    if (in_shared(p)) shared_access(t, p, bytes, write, atomic);
    else if (in_spans(p)) span_access(t, p, bytes, write, atomic);
    else if (write || !readonly_program(p, bytes))
        violation(format("%s %zu bytes at %p, which is host memory%s", write ? "writes" : "reads",
                         bytes, address,
                         (size_t)(p - stacks) < MAX_BLOCK * STACK ? ": the stack of another thread"
                                                                  : ""));
}

void check_aligned(const void *p, size_t bytes, const char *what) {
    if (current && (uintptr_t)p % bytes)
        violation(format("%s of %zu bytes at %s, which is not aligned to that", what, bytes,
                         describe((const char *)p).c_str()));
}

// ---------------------------------------------------------------------------
// Running a grid

void next_thread(Thread *t) { context_switch(&t->context, &scheduler); }

void thread_entry() {
    Thread *t = current;
    {
        // the arguments lie on the thread's own stack, as if it had been called with them
        alignas(16) char call[4096];
        memcpy(call, launch->call.data(), launch->call.size());
        launch->run(call);
    }
    t->state = DONE;
    n_done++;
    if (n_waiting)
        violation(format("returns, while %d threads wait at the barrier %s:%d", n_waiting,
                         barrier_file, barrier_line));
    if (t->warp->waiting)
        for (Thread *o : t->warp->lane)
            if (o && o->state == AT_WARP_OP && (o->call.mask >> t->lane & 1))
                violation(format("returns, while %s waits for it in %s", thread_name(o->id).c_str(),
                                 o->call.name));
    next_thread(t);
}

// what every thread of the block did before, all know now
void order_block() {
    for (int i = 0; i < n_threads; i++) at_barrier[i] = threads[(size_t)i].clock;
    for (int i = 0; i < n_threads; i++) {
        Thread *t = &threads[(size_t)i];
        if (t->clock++ == CLOCK_MOST) violation("passed too many barriers for the shadow's clock");
        for (int l = 0; l < t->warp->lanes; l++)
            t->warp->known[t->lane][l] = at_barrier[t->id - t->lane + l];
    }
}

void order_lanes(Warp *w, uint32_t mask) {
    uint32_t all[WARP] = { 0 };
    for (int l = 0; l < w->lanes; l++)
        if (mask >> l & 1) {
            w->known[l][l] = w->lane[l]->clock;
            for (int k = 0; k < WARP; k++) all[k] = std::max(all[k], w->known[l][k]);
        }
    for (int l = 0; l < w->lanes; l++)
        if (mask >> l & 1) {
            memcpy(w->known[l], all, sizeof all);
            if (w->lane[l]->clock++ == CLOCK_MOST)
                violation("passed too many barriers for the shadow's clock");
        }
}

void stuck() {
    for (int i = 0; i < n_threads; i++) {
        Thread *t = &threads[(size_t)i];
        if (t->state == DONE) continue;
        current = t;
        std::string text =
            t->state == AT_BARRIER
                ? format("waits at the barrier %s:%d for threads that never come", barrier_file,
                         barrier_line)
                : format("waits in %s for lanes that never come (mask %08x)", t->call.name,
                         t->call.mask);
        if (!catching) violation(text);
        if (caught.empty()) caught = where() + ": " + text;
        abandoned = true;
        return;
    }
}

void run_block() {
    n_done = n_waiting = 0;
    ready.clear();
    shared_arrays.clear();
    memset(shared_state, OUTSIDE, shared_used);
    memset(shared_cell, 0, shared_used * sizeof *shared_cell);
    shared_used = RED;
    shared_arrays_bytes = 0;
    memset(at_barrier, 0, sizeof at_barrier);
    dim3 b = launch->block;
    n_threads = (int)(b.x * b.y * b.z);
    for (int i = 0; i < n_threads; i++) {
        Thread *t = &threads[(size_t)i];
        t->id = i;
        t->lane = i % WARP;
        t->warp = &warps[(size_t)i / WARP];
        t->idx = { (unsigned)i % b.x, (unsigned)i / b.x % b.y, (unsigned)i / (b.x * b.y) };
        t->stack = stacks + (size_t)i * STACK;
        t->state = READY;
        t->clock = 1;
        t->groups.clear();
        t->open.clear();
        t->warp->lane[t->lane] = t;
        t->warp->lanes = t->lane + 1;
        t->warp->waiting = 0;
        if (t->lane == 0) memset(t->warp->known, 0, sizeof t->warp->known);
        // the lowest page is a guard
        context_make(&t->context, t->stack + 4096, STACK - 4096, thread_entry);
        ready.push_back(t);
    }
    while (!ready.empty() && !abandoned) {
        current = ready.front();
        ready.pop_front();
        context_switch(&scheduler, &current->context);
    }
    if (!abandoned && n_done < n_threads) stuck();
    current = nullptr;
}

void run_launch(Launch *l) {
    launch = l;
    launch_id++;
    abandoned = false;
    launched.insert(l->name);
    for (unsigned z = 0; z < l->grid.z; z++)
        for (unsigned y = 0; y < l->grid.y; y++)
            for (unsigned x = 0; x < l->grid.x && !abandoned; x++) {
                block_idx = { x, y, z };
                block_number = (z * l->grid.y + y) * l->grid.x + x;
                run_block();
            }
    launch = nullptr;
}

void wait_in_warp(Thread *t) {
    Warp *w = t->warp;
    uint32_t mask = t->call.mask;
    if (!(mask >> t->lane & 1))
        violation(format("calls %s with the mask %08x, which lacks its own lane %d", t->call.name,
                         mask, t->lane));
    if (w->lanes < WARP && mask >> w->lanes && ~mask)
        violation(format("calls %s with the mask %08x, but its warp has %d lanes", t->call.name,
                         mask, w->lanes));
    uint32_t here = w->lanes < WARP ? mask & ((1u << w->lanes) - 1) : mask;
    w->waiting |= 1u << t->lane;
    for (int l = 0; l < w->lanes; l++) {
        if (!(here >> l & 1)) continue;
        Thread *o = w->lane[l];
        if (o->state == DONE)
            violation(format("calls %s, which waits for lane %d, but that has returned",
                             t->call.name, l));
        if (o->state == AT_WARP_OP &&
            (o->call.mask != mask || o->call.op != t->call.op || o->call.kind != t->call.kind))
            violation(format("calls %s with the mask %08x, but lane %d is in %s with the mask %08x",
                             t->call.name, mask, l, o->call.name, o->call.mask));
    }
    t->state = AT_WARP_OP;
    if ((w->waiting & here) != here) {
        next_thread(t);
        return;
    }
    t->call.op(w, here);
    w->waiting &= ~here;
    for (int l = 0; l < w->lanes; l++)
        if (here >> l & 1) {
            w->lane[l]->state = READY;
            if (w->lane[l] != t) ready.push_back(w->lane[l]);
        }
}

// ---------------------------------------------------------------------------
// Warp operations: op(w, mask) sets out of every lane in the mask

void op_value(Warp *w, uint32_t mask) {
    uint32_t votes = 0, all = mask;
    int kind = -1;
    for (int l = 0; l < w->lanes; l++)
        if (mask >> l & 1) {
            kind = w->lane[l]->call.kind;
            if (w->lane[l]->call.in) votes |= 1u << l;
        }
    uint32_t sum = 0, least = UINT32_MAX, most = 0, both = UINT32_MAX, any = 0, odd = 0;
    int32_t sleast = INT32_MAX, smost = INT32_MIN;
    for (int l = 0; l < w->lanes; l++) {
        if (!(mask >> l & 1)) continue;
        uint32_t v = (uint32_t)w->lane[l]->call.in;
        sum += v; both &= v; any |= v; odd ^= v;
        least = std::min(least, v); most = std::max(most, v);
        sleast = std::min(sleast, (int32_t)v); smost = std::max(smost, (int32_t)v);
    }
    for (int l = 0; l < w->lanes; l++) {
        if (!(mask >> l & 1)) continue;
        WarpCall *c = &w->lane[l]->call;
        switch (kind) {
        case EMU_SHUFFLE:
            if (c->from >= w->lanes || !(mask >> c->from & 1)) {
                current = w->lane[l];
                violation(format("shuffles from lane %d, which is not in the mask %08x", c->from,
                                 mask));
            }
            c->out = w->lane[c->from]->call.in;
            break;
        case EMU_BALLOT:  c->out = votes; break;
        case EMU_ANY:     c->out = votes != 0; break;
        case EMU_ALL:     c->out = votes == all; break;
        case EMU_MATCH:
            c->out = 0;
            for (int k = 0; k < w->lanes; k++)
                if ((mask >> k & 1) && w->lane[k]->call.in == c->in) c->out |= 1u << k;
            break;
        case EMU_ADD_U32: c->out = sum; break;
        case EMU_MIN_U32: c->out = least; break;
        case EMU_MAX_U32: c->out = most; break;
        case EMU_MIN_S32: c->out = (uint32_t)sleast; break;
        case EMU_MAX_S32: c->out = (uint32_t)smost; break;
        case EMU_AND_U32: c->out = both; break;
        case EMU_OR_U32:  c->out = any; break;
        case EMU_XOR_U32: c->out = odd; break;
        }
    }
}

// from: this __syncwarp orders nothing
void op_sync(Warp *w, uint32_t mask) {
    for (int l = 0; l < w->lanes; l++)
        if ((mask >> l & 1) && w->lane[l]->call.from) return;
    order_lanes(w, mask);
}

float half_pair(const uint32_t *regs, int r, int high) {
    return bf16_f32((uint16_t)(regs[r] >> (16 * high)));
}

// D += A B on the fragments of device.h
void op_mma(Warp *w, uint32_t) {
    float A[16][16], B[16][8];
    for (int l = 0; l < WARP; l++) {
        const uint32_t *a = (const uint32_t *)w->lane[l]->call.a;
        const uint32_t *b = (const uint32_t *)w->lane[l]->call.b;
        int g = l / 4, c = l % 4;
        for (int h = 0; h < 2; h++) {
            A[g][2 * c + h] = half_pair(a, 0, h);
            A[g + 8][2 * c + h] = half_pair(a, 1, h);
            A[g][2 * c + 8 + h] = half_pair(a, 2, h);
            A[g + 8][2 * c + 8 + h] = half_pair(a, 3, h);
            B[2 * c + h][g] = half_pair(b, 0, h);
            B[2 * c + 8 + h][g] = half_pair(b, 1, h);
        }
    }
    for (int l = 0; l < WARP; l++) {
        float *d = (float *)w->lane[l]->call.r;
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + (i / 2) * 8, col = l % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) d[i] = fmaf(A[row][k], B[k][col], d[i]);
        }
    }
}

// the receiving lane reads: a row must be in order before whoever gets a part of it
void op_ldmatrix(Warp *w, uint32_t) {
    int n = w->lane[0]->call.kind & 7;
    bool trans = w->lane[0]->call.kind & 8;
    Thread *last = current;
    for (int i = 0; i < 8 * n; i++) {
        const char *row = (const char *)w->lane[i]->call.a;
        current = w->lane[i];
        if (!in_shared(row)) violation("ldmatrix names a row that is not in shared memory");
        check_aligned(row, 16, "ldmatrix of a row");
    }
    for (int t = 0; t < WARP; t++) {
        current = w->lane[t];
        for (int m = 0; m < n; m++) {
            uint16_t e[2];
            for (int h = 0; h < 2; h++) {
                int row = trans ? 2 * (t % 4) + h : t / 4, col = trans ? t / 4 : 2 * (t % 4) + h;
                const char *p = (const char *)w->lane[8 * m + row]->call.a + 2 * col;
                shared_access(w->lane[t], (char *)p, 2, false, false);
                memcpy(&e[h], p, 2);
            }
            ((uint32_t *)w->lane[t]->call.r)[m] = e[0] | (uint32_t)e[1] << 16;
        }
    }
    current = last;
}

void warp_call(const char *name, void (*op)(Warp *, uint32_t), int kind, void *r, const void *a,
               const void *b) {
    Thread *t = current;
    t->call = { op, name, UINT32_MAX, kind, 0, 0, 0, r, a, b };
    if (t->warp->lanes < WARP) violation(format("calls %s in a warp that is not whole", name));
    wait_in_warp(t);
}

// ---------------------------------------------------------------------------
// Streams. An operation waits in its stream until something waits for it.

typedef std::function<void()> Op;

void drain_all();
} // namespace

struct EmuGraph {
    std::vector<Op> ops;
    std::map<EmuStream *, bool> joined; // streams that the capture forked into
};

struct EmuStream {
    int device;
    std::deque<Op> ops;
    size_t queued, done;
    EmuGraph *capture;
    bool origin;                        // of the capture
};

struct EmuEvent {
    EmuStream *stream;
    size_t at;                          // operations of the stream that come before it
    EmuGraph *capture;
    double time;
};

namespace {
std::set<EmuStream *> streams;
std::set<EmuEvent *> events;

// Runs what the stream holds up to its at-th operation; a wait for an event drains the other stream
void drain(EmuStream *s, size_t at) {
    while (s->done < at && !s->ops.empty()) {
        Op op = std::move(s->ops.front());
        s->ops.pop_front();
        s->done++;
        op();
    }
}
void drain_all() {
    for (EmuStream *s : streams) drain(s, s->queued);
}

bool capturing() {
    for (EmuStream *s : streams)
        if (s->capture) return true;
    return false;
}

// false, and a violation, while a stream is being captured
bool may_wait(const char *what) {
    if (!capturing()) return true;
    violation(format("%s while a stream is being captured", what));
    return false;
}

// the default stream waits for all others, and they for it
void enqueue(EmuStream *s, Op op) {
    if (!s) {
        if (!may_wait("uses the default stream")) return;
        drain_all();
        op();
        return;
    }
    if (!streams.count(s)) { violation("uses a stream that does not exist"); return; }
    if (s->capture) {
        s->capture->ops.push_back(std::move(op));
        if (!s->origin) s->capture->joined[s] = false;
        return;
    }
    s->ops.push_back(std::move(op));
    s->queued++;
}

int device_of(EmuStream *s) { return s ? s->device : device_now; }

void *reserve(size_t bytes, const char *what) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die_code(EXIT_MEMORY, "cuda_emu: no addresses for %s", what);
    return p;
}

// ---------------------------------------------------------------------------
// Start and end

void read_symbols() {
    uintptr_t base = 0;
    dl_iterate_phdr([](dl_phdr_info *info, size_t, void *out) {
        *(uintptr_t *)out = info->dlpi_addr;
        for (int i = 0; i < info->dlpi_phnum; i++) {
            const ElfW(Phdr) *h = &info->dlpi_phdr[i];
            const char *p = (const char *)info->dlpi_addr + h->p_vaddr;
            if ((h->p_type == PT_LOAD && !(h->p_flags & PF_W)) || h->p_type == PT_GNU_RELRO)
                readonly.push_back({ p, p + h->p_memsz });
        }
        return 1;                       // the first entry is the program itself
    }, &base);
    FILE *f = fopen("/proc/self/exe", "rb");
    if (!f) return;
    ElfW(Ehdr) head;
    std::vector<ElfW(Shdr)> sections;
    auto load = [f](void *to, size_t at, size_t bytes) {
        return fseek(f, (long)at, SEEK_SET) == 0 && fread(to, 1, bytes, f) == bytes;
    };
    if (load(&head, 0, sizeof head)) {
        sections.resize(head.e_shnum);
        if (!load(sections.data(), head.e_shoff, sections.size() * sizeof sections[0]))
            sections.clear();
    }
    for (auto &s : sections) {
        if (s.sh_type != SHT_SYMTAB) continue;
        std::vector<ElfW(Sym)> symbols(s.sh_size / sizeof(ElfW(Sym)));
        std::vector<char> names(sections[s.sh_link].sh_size);
        if (!load(symbols.data(), s.sh_offset, s.sh_size) ||
            !load(names.data(), sections[s.sh_link].sh_offset, names.size()))
            break;
        for (auto &y : symbols)
            if (ELF64_ST_TYPE(y.st_info) == STT_FUNC)
                kernel_names[(const void *)(base + y.st_value)] = &names[y.st_name];
    }
    fclose(f);
}

// "name<arguments>" without return type, parameters and file-local scopes
std::string plain_name(const std::string &mangled) {
    int status;
    char *text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    std::string s = text && !status ? text : mangled;
    free(text);
    int depth = 0;
    size_t end = s.size(), start = 0;
    for (size_t i = 0; i < s.size(); i++) {
        if (s[i] == '<') depth++;
        if (s[i] == '>') depth--;
        if (s[i] == ' ' && depth == 0) start = i + 1;
        if (s[i] == '(' && depth == 0 && i > start) { end = i; break; }
    }
    return s.substr(start, end - start);
}

// a file beside the program, one line each
void save_lines(const char *ending, const std::set<std::string> &lines) {
    char path[PATH_MAX + 16];
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
    if (n <= 0) return;
    snprintf(path + n, sizeof path - (size_t)n, "%s", ending);
    FILE *f = fopen(path, "w");
    if (!f) return;
    for (const std::string &line : lines) fprintf(f, "%s\n", line.c_str());
    fclose(f);
}

void save_passed() {
    std::set<std::string> sites;
    for (auto &b : barriers) sites.insert(format("%s:%d", b.first.first, b.first.second));
    if (ignored) return;
    save_lines(".launched", launched);
    save_lines(".barriers", sites);
}

// host code of other threads must not see fibers; everything else is set up once
struct Start {
    Start() {
        stacks = (char *)reserve(MAX_BLOCK * STACK, "stacks");
        for (int i = 0; i < MAX_BLOCK; i++) mprotect(stacks + (size_t)i * STACK, 4096, PROT_NONE);
        shared_base = (char *)reserve(SHARED_SPAN, "shared memory");
        shared_state = (uint8_t *)reserve(SHARED_SPAN, "a shadow");
        shared_cell = (SharedCell *)reserve(SHARED_SPAN * sizeof(SharedCell), "a shadow");
        span_base = (char *)reserve(SPANS * DEVICE_SPAN, "device memory");
        span_state = (uint8_t *)reserve(SPANS * DEVICE_SPAN, "a shadow");
        span_cell = (Cell *)reserve(SPANS * DEVICE_SPAN / 4 * sizeof(Cell), "a shadow");
        const char *mb = getenv("EMU_MEMORY"), *n = getenv("EMU_DEVICES");
        for (size_t &c : capacity) c = (size_t)2 << 30;
        for (int i = 0; mb && i < MAX_DEVICES; i++) capacity[i] = (size_t)atoi(mb) << 20;
        if (n) n_devices = atoi(n) < MAX_DEVICES ? atoi(n) : (int)MAX_DEVICES;
        read_symbols();
        ignored = getenv("EMU_IGNORE");
        atexit(save_passed);
    }
} start;

cudaError_t pending = cudaSuccess;      // cudaGetLastError

cudaError_t fail(cudaError_t e) { return pending = e; }
} // namespace

// ---------------------------------------------------------------------------
// What kernels call

uint3 emu_thread_idx() { return current->idx; }
uint3 emu_block_idx() { return block_idx; }
uint3 emu_block_dim() { return { launch->block.x, launch->block.y, launch->block.z }; }
uint3 emu_grid_dim() { return { launch->grid.x, launch->grid.y, launch->grid.z }; }
int emu_lane() { return current->lane; }

void emu_vector(const void *p, size_t bytes) { check_aligned(p, bytes, "a vector"); }

static void *shared_place(const void *site, size_t bytes, const char *name) {
    for (const SharedArray &a : shared_arrays)
        if (a.site == site) return shared_base + a.at;
    size_t at = (shared_used + 127) / 128 * 128;
    shared_arrays_bytes += (bytes + 15) / 16 * 16;
    if (shared_arrays_bytes > SHARED_MOST || at + bytes + RED > SHARED_SPAN)
        violation(format("has %zu bytes of shared memory: a block can have %zu",
                         shared_arrays_bytes, (size_t)SHARED_MOST));
    shared_arrays.push_back({ site, name, at, bytes });
    memset(shared_state + at, UNSET, bytes);
    shared_used = at + bytes + RED;
    return shared_base + at;
}
void *emu_shared(const void *site, size_t bytes, const char *name) {
    void *p = shared_place(site, bytes, name);
    size_t fixed = shared_arrays_bytes;
    for (const SharedArray &a : shared_arrays)
        if (!a.site) fixed -= (a.bytes + 15) / 16 * 16;
    if (fixed > SHARED_STATIC)
        violation(format("has %zu bytes of SHARED arrays: beyond %zu use DYN_SHARED", fixed,
                         (size_t)SHARED_STATIC));
    return p;
}
void *emu_dyn_shared() { return shared_place(nullptr, launch->shared_bytes, "DYN_SHARED"); }

static bool barrier_ignored(const char *file, int line) {
    auto known = barriers.find(Site(file, line));
    if (known != barriers.end()) return known->second;
    bool is = ignored && format("%s:%d", file, line) == ignored;
    return barriers[Site(file, line)] = is;
}

int emu_barrier(const char *file, int line, int vote, int value) {
    Thread *t = current;
    if (n_done)
        violation(format("waits at the barrier %s:%d, but %d threads of the block have returned",
                         file, line, n_done));
    if (n_waiting == 0) {
        barrier_file = file;
        barrier_line = line;
        barrier_vote = vote;
    } else if (strcmp(file, barrier_file) || line != barrier_line || vote != barrier_vote) {
        violation(format("waits at the barrier %s:%d, but other threads of the block wait at %s:%d",
                         file, line, barrier_file, barrier_line));
    }
    t->vote = value != 0;
    t->state = AT_BARRIER;
    if (++n_waiting < n_threads) {
        next_thread(t);
        return t->vote;
    }
    int count = 0, result;
    for (int i = 0; i < n_threads; i++) count += threads[(size_t)i].vote;
    result = vote == EMU_VOTE_COUNT ? count : vote == EMU_VOTE_OR ? count > 0 : count == n_threads;
    n_waiting = 0;
    if (vote != EMU_VOTE_NONE || !barrier_ignored(file, line)) order_block();
    for (int i = 0; i < n_threads; i++) {
        threads[(size_t)i].vote = result;
        threads[(size_t)i].state = READY;
        if (i != t->id) ready.push_back(&threads[(size_t)i]);
    }
    return result;
}

static const char *const warp_op_names[] = {
    "__syncwarp", "a shuffle", "__ballot_sync", "__any_sync", "__all_sync", "__match_any_sync",
    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync",
    "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync"
};

uint64_t emu_warp(EmuWarpOp op, unsigned mask, uint64_t value, int from) {
    Thread *t = current;
    t->call = { op == EMU_SYNC ? op_sync : op_value, warp_op_names[op], mask, op, from, value, 0,
                nullptr, nullptr, nullptr };
    wait_in_warp(t);
    return t->call.out;
}

void emu_syncwarp(const char *file, int line, unsigned mask) {
    emu_warp(EMU_SYNC, mask, 0, barrier_ignored(file, line));
}

// the source lane of a shuffle, as the CUDA guide has it: beyond the segment it is the lane itself
int emu_shuffle_lane(EmuShuffle kind, int lane, int by, int width) {
    int first = lane / width * width, at = lane - first;
    switch (kind) {
    case EMU_IDX:  return first + (by & (width - 1));
    case EMU_UP:   return at - by < 0 ? lane : lane - by;
    case EMU_DOWN: return at + by >= width ? lane : lane + by;
    default:       return (lane ^ by) >= first + width ? lane : lane ^ by;
    }
}

uint64_t emu_atomic(EmuAtomicOp op, void *p, size_t bytes, bool is_signed, uint64_t v,
                    uint64_t cmp) {
    check_aligned(p, bytes, "an atomic");
    check_access(p, bytes, true, true);
    uint64_t old = 0, now, most = bytes == 4 ? UINT32_MAX : UINT64_MAX;
    memcpy(&old, p, bytes);
    v &= most;
    bool less = is_signed ? bytes == 4 ? (int32_t)v < (int32_t)old : (int64_t)v < (int64_t)old
                          : v < old;
    switch (op) {
    case EMU_A_ADD: now = old + v; break;
    case EMU_A_MIN: now = less ? v : old; break;
    case EMU_A_MAX: now = less ? old : v; break;
    case EMU_A_AND: now = old & v; break;
    case EMU_A_OR:  now = old | v; break;
    case EMU_A_XOR: now = old ^ v; break;
    case EMU_A_CAS: now = old == (cmp & most) ? v : old; break;
    default:        now = v; break;
    }
    memcpy(p, &now, bytes);
    return old;
}

void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    warp_call("mma_bf16", op_mma, 0, d, a, b);
}
void ldmatrix_x4(uint32_t r[4], const void *row) {
    warp_call("ldmatrix_x4", op_ldmatrix, 4, r, row, nullptr);
}
void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    warp_call("ldmatrix_x4_trans", op_ldmatrix, 4 | 8, r, row, nullptr);
}
void ldmatrix_x2(uint32_t r[2], const void *row) {
    warp_call("ldmatrix_x2", op_ldmatrix, 2, r, row, nullptr);
}
void ldmatrix_x2_trans(uint32_t r[2], const void *row) {
    warp_call("ldmatrix_x2_trans", op_ldmatrix, 2 | 8, r, row, nullptr);
}

// The destination is written at the call for whoever reads it before, and out of bounds until the
// wait; its bytes arrive at the wait.
void cp_async16(void *to, const void *from, bool wanted) {
    Thread *t = current;
    check_aligned(to, 16, "cp_async16 to an address");
    if (!in_shared(to)) violation("cp_async16 writes to an address that is not in shared memory");
    if (wanted) {
        check_aligned(from, 16, "cp_async16 from an address");
        if (!in_spans(from))
            violation("cp_async16 reads from an address that is not in device memory");
        span_access(t, (char *)from, 16, false, false);
    }
    shared_access(t, (char *)to, 16, true, false);
    memset(shared_state + ((char *)to - shared_base), UNDER_WAY, 16);
    t->open.push_back({ (char *)to, (const char *)from, wanted });
}
void cp_async_commit(void) {
    current->groups.push_back(std::move(current->open));
    current->open.clear();
}
void emu_cp_async_wait(int newest) {
    Thread *t = current;
    while (t->groups.size() > (size_t)newest) {
        for (const Copy &c : t->groups.front()) {
            size_t at = (size_t)(c.to - shared_base);
            memset(shared_state + at, SET, 16);
            for (size_t i = at; i < at + 16; i++) shared_cell[i] = { who_is(t, false), { 0, 0 } };
            if (c.wanted) memcpy(c.to, c.from, 16);
            else memset(c.to, 0, 16);
        }
        t->groups.erase(t->groups.begin());
    }
}

// ---------------------------------------------------------------------------
// What the compiler calls before every access
extern "C" {
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
#define ACCESS(bytes)                                                                              \
    void __tsan_read##bytes(void *p) {                                                             \
        check_aligned(p, bytes > 8 ? 8 : bytes, "a read");                                         \
        check_access(p, bytes, false);                                                             \
    }                                                                                              \
    void __tsan_write##bytes(void *p) {                                                            \
        check_aligned(p, bytes > 8 ? 8 : bytes, "a write");                                        \
        check_access(p, bytes, true);                                                              \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *p) { check_access(p, bytes, false); }                  \
    void __tsan_unaligned_write##bytes(void *p) { check_access(p, bytes, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, size_t n) { check_access(p, n, false); }
void __tsan_write_range(void *p, size_t n) { check_access(p, n, true); }
void __tsan_vptr_update(void **, void *) {}

// the Makefile gives the instrumented objects these in place of the C library's
void *emu_memcpy(void *to, const void *from, size_t n) {
    if (current) { check_access(from, n, false); check_access(to, n, true); }
    return memcpy(to, from, n);
}
void *emu_memmove(void *to, const void *from, size_t n) {
    if (current) { check_access(from, n, false); check_access(to, n, true); }
    return memmove(to, from, n);
}
void *emu_memset(void *to, int v, size_t n) {
    if (current) check_access(to, n, true);
    return memset(to, v, n);
}

// atomics of the host code in the same files
#define HOST_ATOMIC(bits)                                                                          \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *p, int) {             \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                               \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *p, uint##bits##_t v, int) {          \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                  \
    }                                                                                              \
    uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t *p, uint##bits##_t v,   \
                                                   int) {                                          \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                         \
    }                                                                                              \
    uint##bits##_t __tsan_atomic##bits##_fetch_or(volatile uint##bits##_t *p, uint##bits##_t v,    \
                                                  int) {                                           \
        return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST);                                          \
    }                                                                                              \
    uint##bits##_t __tsan_atomic##bits##_fetch_xor(volatile uint##bits##_t *p, uint##bits##_t v,   \
                                                   int) {                                          \
        return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST);                                         \
    }                                                                                              \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t *p, uint##bits##_t v,    \
                                                  int) {                                           \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                        \
    }                                                                                              \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t *p,                  \
                                                      uint##bits##_t *want, uint##bits##_t v, int, \
                                                      int) {                                       \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }                                                                                              \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile uint##bits##_t *p,                    \
                                                    uint##bits##_t *want, uint##bits##_t v, int,   \
                                                    int) {                                         \
        return __atomic_compare_exchange_n(p, want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
HOST_ATOMIC(8)
HOST_ATOMIC(32)
HOST_ATOMIC(64)
}

// ---------------------------------------------------------------------------
// The runtime: devices and memory

const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorPeerAccessAlreadyEnabled: return "cudaErrorPeerAccessAlreadyEnabled";
    default: return "cudaErrorStreamCaptureUnsupported";
    }
}
const char *cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
cudaError_t cudaPeekAtLastError(void) { return pending; }
cudaError_t cudaGetLastError(void) {
    cudaError_t e = pending;
    pending = cudaSuccess;
    return e;
}

cudaError_t cudaGetDeviceCount(int *n) {
    *n = n_devices;
    return n_devices ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= n_devices) return fail(cudaErrorInvalidDevice);
    device_now = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = device_now;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device) {
    if (device < 0 || device >= n_devices) return fail(cudaErrorInvalidDevice);
    switch (attr) {
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_STATIC; break;
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrL2CacheSize: *value = 1 << 20; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_MOST; break;
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device < 0 || device >= n_devices) return fail(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device %d", device);
    p->totalGlobalMem = capacity[device];
    p->sharedMemPerBlockOptin = SHARED_MOST;
    p->major = 8;
    p->multiProcessorCount = 4;
    p->l2CacheSize = 1 << 20;
    p->memoryBusWidth = 64;
    return cudaSuccess;
}
// copies alone pass between devices: a kernel that reads another one's memory is a violation, since
// not every machine can do it
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = device != peer && device < n_devices && peer < n_devices;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
    return peer == device_now || peer >= n_devices ? fail(cudaErrorInvalidDevice) : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    if (may_wait("cudaDeviceSynchronize")) drain_all();
    return cudaSuccess;
}

cudaError_t emu_malloc(void **p, size_t bytes, bool host) {
    int span = host ? PINNED : device_now;
    *p = nullptr;
    if (!may_wait("allocates")) return fail(cudaErrorStreamCaptureUnsupported);
    if (bytes == 0) return cudaSuccess;
    if (n_devices == 0) return fail(cudaErrorNoDevice);
    if (bytes > capacity[span] || live[span] > capacity[span] - bytes)
        return fail(cudaErrorMemoryAllocation);
    size_t at = (span_used[span] + 255) / 256 * 256 + 256;
    if (bytes > DEVICE_SPAN - RED - at)
        die_code(EXIT_MEMORY, "cuda_emu: this process allocated more than %zu MB in all",
                 (size_t)DEVICE_SPAN >> 20);
    span_used[span] = at + bytes + RED;
    live[span] += bytes;
    char *q = span_base + (size_t)span * DEVICE_SPAN + at;
    memset(span_state + (q - span_base), host ? SET : UNSET, bytes);
    blocks[q] = { bytes, ++n_allocations, false };
    *p = q;
    return cudaSuccess;
}

// what was given back in the order of a stream is there for those who ask in that order
cudaError_t emu_malloc_async(void **p, size_t bytes) {
    cudaError_t e = emu_malloc(p, bytes, false);
    if (e != cudaErrorMemoryAllocation || capturing()) return e;
    drain_all();
    pending = cudaSuccess;
    return emu_malloc(p, bytes, false);
}

static void free_now(char *p, Block *b) {
    b->freed = true;
    live[span_of(p)] -= b->bytes;
    memset(span_state + (p - span_base), FREED, b->bytes);
    uintptr_t from = ((uintptr_t)p + 4095) & ~(uintptr_t)4095;
    uintptr_t to = ((uintptr_t)p + b->bytes) & ~(uintptr_t)4095;
    if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

// in: the stream whose order it follows, or NULL for at once
static cudaError_t give_back(void *p, bool host, cudaStream_t in) {
    if (!p) return cudaSuccess;
    auto i = blocks.find((char *)p);
    if (i == blocks.end() || i->second.freed || (span_of(p) == PINNED) != host) {
        violation(format("frees %s, which is %s", describe((char *)p).c_str(),
                         i != blocks.end() && i->second.freed ? "freed already"
                                                              : "not what it allocated"));
        return fail(cudaErrorInvalidValue);
    }
    if (!may_wait("frees memory")) return fail(cudaErrorStreamCaptureUnsupported);
    Block *b = &i->second;
    if (in) {
        enqueue(in, [p, b] { free_now((char *)p, b); });
        return cudaSuccess;
    }
    drain_all();
    free_now((char *)p, b);
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) { return give_back(p, false, nullptr); }
cudaError_t cudaFreeHost(void *p) { return give_back(p, true, nullptr); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return give_back(p, false, s); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = capacity[device_now];
    *free_bytes = *total - live[device_now];
    return cudaSuccess;
}

static bool on_device(const void *p) { return in_spans(p) && span_of(p) != PINNED; }

// device bytes keep whether anybody wrote them; those that leave the device must have been written
static void copy_now(void *to, const void *from, size_t bytes) {
    if (in_spans(from)) span_check((const char *)from, bytes, !on_device(to), "copies from");
    if (in_spans(to)) span_check((char *)to, bytes, false, "copies to");
    memmove(to, from, bytes);
    if (!on_device(to)) return;
    uint8_t *state = span_state + ((char *)to - span_base);
    if (on_device(from)) memmove(state, span_state + ((char *)from - span_base), bytes);
    else memset(state, SET, bytes);
}

static bool kind_fits(const void *to, const void *from, cudaMemcpyKind kind) {
    cudaMemcpyKind is = on_device(to)
        ? on_device(from) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice
        : on_device(from) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
    if (kind == cudaMemcpyDefault || kind == is) return true;
    violation(format("copies from %s to %s, which is not the kind of copy it says (%d)",
                     describe((const char *)from).c_str(), describe((char *)to).c_str(), kind));
    return false;
}

// pageable memory is read at the call; a copy to it is complete at the return
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s) {
    if (bytes == 0) return cudaSuccess;
    if (!kind_fits(to, from, kind)) return fail(cudaErrorInvalidValue);
    if (s && s->capture && (!in_spans(to) || !in_spans(from))) {
        violation("captures a copy of host memory that is not from cudaMallocHost");
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    if (!in_spans(from)) {
        const char *p = (const char *)from;
        auto held = std::make_shared<std::vector<char>>(p, p + bytes);
        enqueue(s, [to, held, bytes] { copy_now(to, held->data(), bytes); });
    } else {
        enqueue(s, [to, from, bytes] { copy_now(to, from, bytes); });
    }
    if (!in_spans(to) && s) drain(s, s->queued);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t s) {
    for (size_t i = 0; i < height; i++) {
        cudaError_t e = cudaMemcpyAsync((char *)to + i * to_pitch,
                                        (const char *)from + i * from_pitch, width, kind, s);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t bytes, cudaStream_t s) {
    if (bytes && (!on_device(to) || !on_device(from) || span_of(to) != to_device ||
                  span_of(from) != from_device)) {
        violation(format("copies from %s to %s, which do not lie on devices %d and %d",
                         describe((const char *)from).c_str(), describe((char *)to).c_str(),
                         from_device, to_device));
        return fail(cudaErrorInvalidValue);
    }
    enqueue(s, [to, from, bytes] { copy_now(to, from, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
    enqueue(s, [p, value, bytes] {
        if (!in_spans(p)) { violation("cudaMemset of host memory"); return; }
        span_check((char *)p, bytes, false, "sets");
        memset(p, value, bytes);
        memset(span_state + ((char *)p - span_base), SET, bytes);
    });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    return cudaMemsetAsync(p, value, bytes, nullptr);
}

// ---------------------------------------------------------------------------
// The runtime: streams, events, graphs, launches

cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = new EmuStream();
    (*s)->device = device_now;
    streams.insert(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    if (!streams.count(s)) return fail(cudaErrorInvalidResourceHandle);
    drain(s, s->queued);
    streams.erase(s);
    for (EmuEvent *e : events)
        if (e->stream == s) e->stream = nullptr;
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (!may_wait("cudaStreamSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
    if (!s) drain_all();
    else drain(s, s->queued);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    return s && s->done < s->queued ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = new EmuEvent();
    events.insert(*e);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    events.erase(e);                    // its record may still be queued
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    e->stream = s;
    e->capture = s ? s->capture : nullptr;
    enqueue(s, [e] { e->time = now_s(); });
    e->at = s ? s->queued : 0;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    EmuStream *from = e->stream;
    if (!s || !from || from == s) return cudaSuccess;
    if (e->capture) {                   // the capture forks into s, or s is joined by what forked
        if (!s->capture) {
            s->capture = e->capture;
            s->origin = false;
        }
        if (!from->origin) e->capture->joined[from] = true;
        return cudaSuccess;
    }
    if (s->capture) {
        violation("a stream being captured waits for an event from outside of the capture");
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    size_t at = e->at;
    enqueue(s, [from, at] { if (streams.count(from)) drain(from, at); });
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (!may_wait("cudaEventSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
    if (e->stream) drain(e->stream, e->at);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    return e->stream && e->stream->done < e->at ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    if (cudaEventQuery(from) != cudaSuccess || cudaEventQuery(to) != cudaSuccess)
        return fail(cudaErrorNotReady);
    *ms = (float)(1e3 * (to->time - from->time));
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s || s->capture) return fail(cudaErrorStreamCaptureUnsupported);
    s->capture = new EmuGraph();
    s->origin = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    if (!s || !s->capture || !s->origin) return fail(cudaErrorStreamCaptureUnsupported);
    *g = s->capture;
    for (EmuStream *o : streams)
        if (o->capture == *g) o->capture = nullptr;
    for (auto &j : (*g)->joined)
        if (!j.second) {
            violation("ends a capture whose other streams were not joined by an event");
            return fail(cudaErrorStreamCaptureUnsupported);
        }
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) {
    *x = new EmuGraph(*g);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    enqueue(s, [ops = x->ops] { for (const Op &op : ops) op(); });
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { return cudaGraphDestroy(x); }

cudaError_t emu_func_attribute(const void *kernel, cudaFuncAttribute attr, int value) {
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > SHARED_MOST) return fail(cudaErrorInvalidValue);
    dynamic_limit[kernel] = (size_t)value;
    return cudaSuccess;
}

void emu_launch(const void *kernel, const char *text, dim3 grid, dim3 block, size_t shared_bytes,
                void *stream, void (*run)(const void *), const void *call, size_t bytes) {
    auto name = kernel_names.find(kernel);
    auto l = std::make_shared<Launch>();
    l->kernel = kernel;
    l->name = name == kernel_names.end() ? text : plain_name(name->second);
    l->grid = grid;
    l->block = block;
    l->shared_bytes = shared_bytes;
    l->device = device_of((cudaStream_t)stream);
    l->run = run;
    l->call.assign((const char *)call, (const char *)call + bytes);
    size_t n = (size_t)block.x * block.y * block.z, limit = SHARED_STATIC;
    if (dynamic_limit.count(kernel)) limit = dynamic_limit[kernel];
    if (n == 0 || n > MAX_BLOCK || !grid.x || !grid.y || !grid.z || grid.y > 65535 ||
        grid.z > 65535)
        violation(format("launches %s with a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads",
                         l->name.c_str(), grid.x, grid.y, grid.z, block.x, block.y, block.z));
    else if (shared_bytes > limit)
        violation(format("launches %s with %zu bytes of dynamic shared memory: beyond %zu it takes "
                         "cudaFuncSetAttribute",
                         l->name.c_str(), shared_bytes, limit));
    else if (bytes > 4096)
        violation(format("launches %s with %zu bytes of arguments", l->name.c_str(), bytes));
    else
        enqueue((cudaStream_t)stream, [l] { run_launch(l.get()); });
}

// ---------------------------------------------------------------------------
// For tests

void emu_catch(bool on) {
    catching = on;
    caught.clear();
}
const char *emu_caught(void) {
    static std::string text;
    text = caught;
    caught.clear();
    return text.empty() ? nullptr : text.c_str();
}
void emu_set_devices(int n, size_t bytes_each) {
    n_devices = n;
    device_now = 0;
    for (int i = 0; i < MAX_DEVICES; i++) capacity[i] = bytes_each;
}

// ---------------------------------------------------------------------------
// For cuda_emu_blas.cpp

void emu_violation(const char *sentence) { violation(sentence); }
bool emu_on_device(const void *p) { return on_device(p); }
void emu_check(const void *p, size_t bytes, bool reads, const char *verb) {
    span_check((const char *)p, bytes, reads, verb);
}
void emu_written(const void *p, size_t bytes) {
    memset(span_state + ((const char *)p - span_base), SET, bytes);
}
void emu_enqueue(cudaStream_t s, void (*run)(const void *), const void *call, size_t bytes) {
    std::vector<char> held((const char *)call, (const char *)call + bytes);
    enqueue(s, [run, held] { run(held.data()); });
}
