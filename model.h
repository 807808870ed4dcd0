// model.h - the border between model.c (models, contexts, branches) and context_file.c (contexts
// and roots on disk): what they are made of. No other file includes it.
#ifndef MODEL_H
#define MODEL_H
#include "scb.h"

struct Model {
    Config c;
    AttnShape shape;
    Weights w;
    Mem mem;                    // of weights, rows, state and scratch: a device's where there is one
    Mem host;                   // of logits, where mem is a device's
    Mem pinned;                 // of settled rows that a device reads from the host
    Device *device;             // NULL: the CPU
    KVWork *work;
    KVWork *works[MAX_GPUS];    // of every part of the device; work is the first
    char *arena;                // all packed weights and vectors; on a device those of its first part
    size_t arena_bytes;         // of all
    char *arenas[MAX_GPUS];
    size_t arenas_bytes[MAX_GPUS];
    char *tied_head;            // the embedding again, where the head lies on another device
    size_t tied_bytes;
    ModelFile *file;            // of streamed weights, else NULL
    struct Streamed *streamed;  // (n_streamed) their matrices, in layer order
    int n_streamed, in_slot;    // in_slot: the layer in memory, -1: none
    float *inv_freq;            // (rope_dim / 2)
    void *scratches[MAX_GPUS];  // of feeds and steps on every part, grown to the longest
    size_t scratch_bytes;
    int chunk;
    uint64_t hash;
    Tap tap;
    bool (*progress)(void *user, double share);
    void *progress_user;
    Phases phases;
    bool timed;                 // a device is waited for at the end of every phase
    bool look;                  // every query of a first feed is kept for whoever looks on
};

struct Context {
    Model *m;
    int refs, n;
    KVBase *base;
    StrBuf prefill;             // key of the prefill stage
    float *logits;              // (V) of the last token when that was sparse, else NULL
    char *window;               // (L, window_rows, H, hd) K/V elements: the last query rows
    int window_rows;
    size_t window_bytes;
    char *state;                // recurrent state at the end, NULL: none
};

struct Branch {
    Model *m;
    Context *ctx;               // NULL: a root that owns its rows
    Method method;
    KVCache *kv;
    int64_t pos;                // logical tokens so far
    char *state;                // recurrent state at pos, NULL: none
    char *kept;                 // and at kept_pos, for branch_cut
    int64_t kept_pos;
    float *logits;              // (V)
    bool streaming;             // inside a first feed that comes in parts
    bool fed, stopped;          // stopped: a feed was interrupted, the branch can only be dropped
};

// logits are read by the host
static inline Mem *logits_mem(Model *m) { return m->device ? &m->host : &m->mem; }

// model.c: an empty branch with a reference to ctx, without rows yet
Branch *branch_new(Model *m, Context *ctx, const Method *method);

// a block of recurrent state: a copy of from, or zeros, the start of a text; NULL without any
static inline char *state_take(Model *m, const char *from) {
    size_t bytes = config_state_bytes(&m->c);
    char *s = TAKE(&m->mem, char, bytes, "recurrent state");
    if (s && from) mem_copy(&m->mem, s, from, bytes);
    return s;
}
static inline void state_give(Model *m, char *s) {
    mem_give(&m->mem, s, config_state_bytes(&m->c));
}

static inline size_t window_row_bytes(const Model *m) {
    return (size_t)m->c.n_heads * m->c.head_dim * m->shape.elem;
}
#endif
