// scb.h - the table of contents: every type and function that crosses a file border.
// What is not declared here is static in its file.
//
// Shape letters: n tokens of this call, T tokens of the context, L layers, A attention layers,
// H query heads, G KV heads, hd head_dim, E dim, F hidden_dim, V vocab_size.
// Functions that can fail on a user's input return 0, or -1 with a sentence in *err; pointers
// returned by an open function are NULL then. Who opens closes.
#ifndef SCB_H
#define SCB_H
#include "base.h"

EXTERN_C_BEGIN

// ===========================================================================
// The model file (model.c). Layout, all little endian:
//   prologue 64 B | n_params x 64 B | n_tensors x 128 B | pad | data (each tensor 64-byte aligned)
typedef enum { DT_F32, DT_BF16, DT_Q8, DT_U8, DT_I32 } DType;   // q8: see Q8Block
enum { FILE_VERSION = 1, PARAM_INT = 1, PARAM_REAL = 2, PARAM_STR = 3 };

typedef struct {
    char magic[4];              // "SCBM"
    uint32_t version;           // FILE_VERSION
    uint32_t n_params, n_tensors;
    uint64_t data_offset;       // of the first tensor, multiple of 64, from the start of the file
    uint64_t data_bytes;        // from data_offset to the end of the file
    uint64_t hash; // xxh64, seed 0, of all param and tensor records: the model's identity
    uint8_t reserved[24];       // zero
} FilePrologue;

typedef struct {
    char key[40];               // NUL padded
    uint32_t type, pad;         // PARAM_*
    union { int64_t i; double f; char s[16]; } v;       // s NUL padded
} FileParam;

typedef struct {
    char name[56];              // NUL padded
    uint32_t dtype, ndim;       // DType, 1..4
    uint64_t shape[4];          // row-major, unused entries 1
    uint64_t offset, bytes;     // offset from the start of the file, multiple of 64
    uint64_t xxh;               // xxh64, seed 0, of the tensor's bytes
    uint64_t pad;
} FileTensor;

// a DT_Q8 matrix (n, k): per row CEIL_DIV(k, 32) blocks; weight = bf16(scale * q); tail q are 0
typedef struct { uint16_t scale; int8_t q[32]; } Q8Block;       // scale is fp16; 34 bytes

typedef struct {
    const char *path;
    const uint8_t *p;           // the whole file, mapped read-only
    size_t size;
    bool borrowed;              // p is someone else's memory
    const FilePrologue *head;
    const FileParam *params;
    const FileTensor *tensors;
    uint8_t *used;              // (n_params + n_tensors) which records somebody asked for
} ModelFile;

// Opens and checks every record against the file; data checksums are verified when the file is
// below 1 GB or verify is set. Errors name the file and the record.
int  file_open(ModelFile *f, const char *path, bool verify, Err *err);
// the same for a file that lies in memory, which must stay there; path is for sentences
int  file_open_bytes(ModelFile *f, const char *path, const void *p, size_t size, Err *err);
void file_close(ModelFile *f);
// The record or NULL; the typed getters fail naming the missing or mistyped key.
const FileTensor *file_find(ModelFile *f, const char *name);
const void *file_data(const ModelFile *f, const FileTensor *t);
int file_int(ModelFile *f, const char *key, int64_t lo, int64_t hi, int64_t *out, Err *err);
int file_real(ModelFile *f, const char *key, double *out, Err *err);
int file_str(ModelFile *f, const char *key, char out[17], Err *err);
// tensor that must exist with this dtype and shape (d1 = 0: one dimension; -1 in d0: any length)
const FileTensor *file_want(ModelFile *f, const char *name, DType t, int64_t d0, int64_t d1,
                            Err *err);
// fails if a record was never asked for: an unknown key would otherwise be silently ignored
int file_all_used(const ModelFile *f, Err *err);

// ===========================================================================
// Tokenizer (tokenizer.c): knows no model, only the tok.* and chat.* records of a file.
typedef struct Tok Tok;
typedef enum {                  // pieces of a chat template, in the order of a conversation:
    CHAT_PREFIX,                // before the first user turn: BOS, system block
    CHAT_FIRST_OPEN,            // first user turn: CHAT_USER_OPEN unless the template differs there
    CHAT_USER_OPEN, CHAT_USER_CLOSE,
    CHAT_ASSISTANT_OPEN,        // the generation header
    CHAT_ANSWER_OPEN,           // what a model writes itself between that and the answer proper
    CHAT_ASSISTANT_CLOSE,       // end-of-turn after an answer
    N_CHAT_PIECES
} ChatPiece;
typedef struct {
    IntVec ids[N_CHAT_PIECES];  // (SEMANTICS 2)
    StrBuf text[N_CHAT_PIECES]; // as the template writes them
    // flags of tok_encode for a message behind CHAT_FIRST_OPEN, CHAT_USER_OPEN, CHAT_ANSWER_OPEN
    unsigned first_text, user_text, answer_text;
    bool present, trim;         // trim: the template strips white space around message contents
} ChatPieces;

enum { TOK_SPECIAL = 1,         // encode: special-token strings in the text become their ids
       TOK_BOS = 2,             // encode: begin with BOS if the model's tokenizer adds one
       TOK_SKIP_SPECIAL = 4,    // decode: leave special tokens out
       TOK_MIDDLE = 8,          // encode, decode: this goes on from other text, so no space is put
                                // in front or taken from there
       TOK_SPACE = 16 };        // encode: as if a space stood in front of the text

Tok *tok_open(ModelFile *f, Err *err);          // copies what it needs: f may be closed after
void tok_close(Tok *t);
int  tok_vocab(const Tok *t);
// appends the ids of n bytes of UTF-8 (invalid bytes are encoded as bytes); deterministic,
// thread-safe on one Tok
void tok_encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out);
// the same for a Unigram or WordPiece tokenizer; spans gets two entries per id: the bytes of s
// where its first character begins and its last one ends, 0 and 0 for BOS
void tok_encode_offsets(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out,
                        IntVec *spans);
// appends the text of one token as its vocabulary has it, SentencePiece's U+2581 included
void tok_piece(const Tok *t, int id, StrBuf *out);
void tok_decode(const Tok *t, const int32_t *ids, size_t n, unsigned flags, StrBuf *out);
bool tok_is_stop(const Tok *t, int id);         // id is in the EOS list
int  tok_bos(const Tok *t);                     // -1: none
const ChatPieces *tok_chat(const Tok *t);

// ===========================================================================
// The model (model.c): hyperparameters, weights, the thing contexts and branches live on.
// arch "llama", "mamba2" (Mamba-Codestral), "jamba". Keys and tensors of the last two: below
typedef enum { ARCH_LLAMA = 1, ARCH_MAMBA2, ARCH_JAMBA, N_ARCHS } ArchId;
typedef enum { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_DYNAMIC } RopeScaling;

typedef struct {                // file keys have the same names
    ArchId arch;
    int vocab_size, dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, max_ctx;
    float norm_eps;
    double rope_theta;
    int rope_dim;               // rotary width: the first channels of a head, in halves
    RopeScaling rope_scaling;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    int rope_orig_ctx;
    bool qkv_bias, tied;
    DType dtype;                // of the matrices: DT_F32, DT_BF16 or DT_Q8
    // what follows is 0 where an architecture has none of it
    int attn_period, attn_offset;       // layer l attends iff l % period == offset, else mixes
    int n_experts, n_experts_used, expert_period, expert_offset;
    int ssm_inner, ssm_state, ssm_conv; // channels D, state size N per channel, taps K of the conv
    int ssm_dt_rank;                    // Mamba-1: R
    int ssm_heads, ssm_head_dim, ssm_groups, norm_groups;       // Mamba-2: D = heads * head_dim
    // not in the file
    bool stream;                // layers are read as a feed comes to them
    bool device;                // weights, rows and scratch lie on a GPU
    bool offload;               // settled rows lie in pinned host memory, which it reads
    int gpus;                   // that share the layers; 0: one
} Config;

// File keys of mamba2: vocab_size dim n_layers max_ctx norm_eps ssm_inner ssm_state ssm_conv
//   ssm_heads ssm_head_dim ssm_groups norm_groups tied dtype.
// File keys of jamba: vocab_size dim hidden_dim n_layers n_heads n_kv_heads head_dim max_ctx
//   norm_eps attn_period attn_offset n_experts n_experts_used expert_period expert_offset
//   ssm_inner ssm_state ssm_conv ssm_dt_rank tied dtype.
// Tensors, D = ssm_inner, N = ssm_state, K = ssm_conv, R = ssm_dt_rank, J = ssm_heads,
// X = ssm_inner + 2 ssm_groups N, F = hidden_dim; w*, router, embed and lm_head have the model's
// dtype (embed and lm_head as in llama), everything else is f32:
//   both       embed (V, E), final_norm (E), lm_head (V, E) unless tied
//   mamba2     layers.L.attn_norm (E)              the norm in front of the mixer
//              layers.L.wz (D, E), .wx (X, E), .wdt (J, E)      rows z | x B C | dt of in_proj
//              layers.L.conv (K, X), .conv_bias (X)             tap K-1 meets the newest token
//              layers.L.dt_bias (J), .a (J) = -exp(A_log), .d (J), .gate_norm (D)
//              layers.L.wout (E, D)
//   jamba      layers.L.attn_norm (E), .ffn_norm (E)            input_ and pre_ff_layernorm
//     attends  layers.L.wq (H hd, E), .wk, .wv (G hd, E), .wo (E, H hd)
//     mixes    layers.L.wx (D, E), .wz (D, E)                   rows x | gate of in_proj
//              layers.L.conv (K, D), .conv_bias (D)
//              layers.L.wp (R + 2N, D)                          x_proj: dt | B | C
//              layers.L.dt_norm (R), .b_norm (N), .c_norm (N)
//              layers.L.wdt (D, R), .dt_bias (D)
//              layers.L.a (N, D) = -exp(A_log) transposed, .d (D), .wout (E, D)
//     dense    layers.L.w1 (F, E) gate, .w3 (F, E) up, .w2 (E, F) down
//     experts  (l % expert_period == expert_offset) layers.L.router (n_experts, E),
//              layers.L.X.w1, .w3, .w2 as dense, X = 0 .. n_experts - 1
bool config_attends(const Config *c, int layer);        // has keys and values
bool config_routes(const Config *c, int layer);         // has experts
int  config_attn_layers(const Config *c);               // A: layers of the KV cache
size_t config_state_bytes(const Config *c);             // recurrent state of all layers, 0: none

typedef struct Model Model;
typedef struct {
    int chunk;                  // tokens per prefill chunk, 0 = 512
    bool stream;                // the matrices of one layer in memory at a time
    int norm_groups;            // Mamba-2's gated norm runs over so many parts; 0: as the file says
    bool device;                // computes on a GPU; bf16 and q8 models alone
    bool offload;               // whose settled rows stay on the host
    int gpus;                   // of a transformer: consecutive layers on each; 0: one
} ModelOpts;

// ===========================================================================
// GPUs (device.cu): their memory, a stream on each, and what products need besides. Of several one is
// in use at a time, for allocations and launches; what is launched on the next one comes after it.
typedef struct Device Device;
enum { MAX_GPUS = 8 };
// The first n, whose memory mem is from now on the account of, up to what is free. unpacked: of
// the largest q8 matrix as bf16, which products need besides. NULL with a sentence where there is
// none, or where this build has no kernels.
Device *device_open(Mem *mem, int n, int n_layers, size_t unpacked, Err *err);
void device_close(Device *d);
void device_wait(Device *d);                    // for everything launched so far
size_t device_memory_available(int n, Err *err);        // bytes free on n; 0 with a sentence
int  device_parts(const Device *d);             // n; 1 for NULL
int  device_part_of(const Device *d, int layer);
void device_use(Device *d, int part);           // NULL: nothing happens
void device_pinned(Device *d, Mem *mem);        // mem is an account of host memory that it can read
const char *device_name(const Device *d);
size_t device_products_bytes(size_t unpacked);  // of what products need besides
void *device_stream(const Device *d);           // a cudaStream_t

typedef struct {                // seen by the tests: the residual stream after each layer
    void (*fn)(void *user, int layer, int first, int n, const float *x);   // x (n, E)
    void *user;
} Tap;

int  config_read(ModelFile *f, Config *c, Err *err);     // the hyperparameters alone
size_t memory_available(void); // bytes of the machine; 0 when the system does not say
size_t config_memory(const Config *c);          // the same where such a model computes
Model *model_open(ModelFile *f, const ModelOpts *opts, Err *err); // f stays open while the model is
Model *model_random(const Config *c, const ModelOpts *opts, uint64_t seed,
                    Err *err); // no tokenizer
void model_close(Model *m);
const Config *model_config(const Model *m);
Mem *model_mem(Model *m);                       // the account of everything the model holds
size_t model_weight_bytes(const Model *m);
uint64_t model_hash(const Model *m);    // of file and norm_groups; of (shape, seed) when random
void model_set_tap(Model *m, Tap tap);
// called during a feed with the share done; returning true stops the feed (interrupted)
void model_set_progress(Model *m, bool (*fn)(void *user, double share), void *user);
typedef struct {                // of feeds and steps so far, reset by reading
    double linear_s, attn_s, evict_s, total_s;  // products, attention, policies and release; all
    double linear_flops;        // two per weight and row that met
    double weight_bytes;        // of the matrices that products read: once for all rows of a call
    double kv_bytes;            // of the rows that steps read: once for branches that share a panel
} Phases;
Phases model_phases(Model *m);
void model_set_timed(Model *m, bool on);        // phases of a GPU are measured by waiting for each
const char *model_unit(const Model *m);         // what computes: "amx-bf16", or a GPU's name

int  config_shape(const char *name, Config *c, Err *err);   // "smollm2-135m" ... ; err lists names
void config_shapes(FILE *out);                              // one aligned line per shape
// packed, as model_open allocates; with c->stream, one layer's matrices count
size_t config_weight_bytes(const Config *c);

// ===========================================================================
// Methods (method.c): what the cache keeps. A policy knows no architecture.
typedef enum { PRESET_SCBENCH, PRESET_CORM, PRESET_HARNESS } Preset;
// sinkcache: streamingllm as the transformers library's SinkCache had it. A new row stands at the
// number of rows held; once these would reach the budget, all but the sinks move down to make room
typedef enum { POSITIONS_ORIGINAL, POSITIONS_CACHE, POSITIONS_SINKCACHE } Positions;
// how the query heads that share a KV head become one opinion; query-head: they do not, each keeps
// rows of its own, as the released harness stores them
typedef enum { GROUP_MEAN, GROUP_MAX, GROUP_SUM, GROUP_QUERY_HEAD } Group;
typedef enum { POOL_AVG, POOL_MAX } Pool;

typedef struct {                // the resolved sizes of one method, all in rows or tokens
    int budget;                 // B rows per KV head; 0: the policy has none (full, corm)
    int sinks, recent;          // first rows; newest rows always kept
    int window;                 // queries looked at: corm's w, snapkv's and pyramidkv's window
    int protect;                // corm: r newest rows always kept; roco: rows taken for unsteady
    int history;                // scissorhands: queries whose marks are kept
    int kernel, beta;           // snapkv: width of the pooling; pyramidkv: steepness
    int page;                   // quest: rows of a page
    int stream;                 // the policy acts after so many prompt tokens; 0: at their end
    int every_turn;             // snapkv, pyramidkv act at the end of every feed
    Pool pool;
    Group group;
    Positions positions;
    bool steps, feeds;          // the policy acts at every step, at the end of later feeds
    bool signs;                 // quest: pages as SharedContextBench's released code chooses them
    bool scaled;                // some value was scaled by the context length (SEMANTICS 5)
} Sizes;

// what one query head looks at in a sparse prefill (sparse_attn.cu)
typedef enum { HEAD_VERTICAL_SLASH, HEAD_A_SHAPE, HEAD_BLOCK_SPARSE } HeadKind;
typedef struct {
    HeadKind kind;
    int a, b;                   // verticals, slashes | sinks, local window | tiles per row block, -
    double score;               // the search's, for the reader
} HeadPattern;

typedef struct {                // MInference's published file: one pattern per layer and query head
    int n_layers, n_heads;
    char hash[17];              // xxh64 of its bytes
    HeadPattern *head;          // (L, H)
} PatternFile;

typedef struct {                // the resolved sizes of the prefill stage, in tokens
    int sinks, local, dense_rows;       // a-shape windows; the last rows that see everything
    int verticals, slashes, blocks;     // minference without a file
    int head;                   // HeadKind of all heads without a file
    int dense_below;            // feeds that end below this length are dense
    int every_feed;             // 0: the first feed alone, 1: all
    int budget;                 // keys of a row that the sizes come from; 0: the preset's sizes
} PrefillSizes;

// what becomes of the context's text before it is tokenized (lingua.h); 0, NULL, false: not given
typedef struct {
    bool on;                    // llmlingua2 leaves words out of it
    double rate;                // share of its tokens to keep
    int target;                 // or how many
    const char *preset, *force; // whose defaults; texts that always stay, by comma; borrowed
    bool fixed_specials, reserve_digits, drop_consecutive, first_token;
} PromptStage;

typedef struct Policy Policy;   // one row of the policy table
typedef struct Prefill Prefill; // one row of the prefill table
typedef struct {
    char name[48];              // "llmlingua2+minference+snapkv": prompt, prefill, cache stage
    const Policy *policy;
    Sizes set;                  // values given by --set and switches, -1 where not given
    Sizes size;                 // resolved by method_resolve
    int64_t seed, session;      // random: what its choices hang on
    PromptStage prompt;
    const Prefill *prefill;     // NULL: dense
    PrefillSizes prefill_set, prefill_size;
    const char *pattern_path;   // of --set minference.pattern=FILE, borrowed; NULL: none
    PatternFile *pattern;       // as read by pattern_open, borrowed; NULL: none
} Method;

typedef struct {                // what policies want of the queries of a shared context
    int window;                 // its last query rows
    int sums;                   // words of column sums of attention: 0, 1, or 3 with squares
    Group group;                // how heads are joined in the sums
} Needs;

int  method_find(const char *name, Method *m, Err *err);            // unknown: "did you mean"
int method_set(Method *m, const char *name, const char *value, Err *err); // --set METHOD.name=value
// the same where METHOD names one of its stages, whose option is meant: sinks is one of both
int method_set_stage(Method *m, const char *stage, const char *name, const char *value, Err *err);
// budget: rows the cache keeps or, where it keeps all, keys a row of a sparse prefill looks at; 0:
// the preset's or scaled default; positions -1: the method's default
int  method_resolve(Method *m, Preset preset, int ctx, int budget, int positions, Err *err);
void method_params(const Method *m, StrBuf *json); // {"sinks":128,...}: what acts, for the rows
bool method_has_budget(const Method *m);
int  method_budget(const Method *m);                    // as resolved; 0: none
bool method_evicts(const Method *m);                    // false for full, quest, topk
bool method_in_cache(const Method *m);                  // a cache-stage method: all but full
bool method_at_first(const Method *m);                  // acts at the end of the first feed
bool method_at_steps(const Method *m);                  // acts on every step
bool method_wide(const Method *m);                      // every query head holds rows of its own
bool method_acts_once(const Method *m);                 // after the first feed, or every one
bool method_groups(const Method *m);                    // has a choice of how heads are joined
const char *method_group(const Method *m);              // name of that choice, or NULL
int  method_window(const Method *m);                    // window rows it needs, 0 = none
int  method_words(const Method *m);                     // 32-bit words of state per row
int method_on_device(const Method *m, Err *err);        // a usage error where a GPU cannot do it
void method_needs(const Method *m, Needs *n);           // raises *n to what m wants as well
const char *method_name_at(int i);                      // table order, NULL past the end
void method_list(FILE *out);                            // stage, KV size, complexities, help
int  did_you_mean(const char *word, const char *const *names, int n);   // index or -1

// Prompt stage: what becomes of a context of n tokens, about; and whether two methods agree on it
double method_prompt_rate(const Method *m, int n);
bool method_same_prompt(const Method *a, const Method *b);

// Prefill stage. Two methods of equal key compute the same rows from the same ids.
void method_prefill_key(const Method *m, StrBuf *key);  // "" when dense
bool method_is(const Method *m, const char *name);      // its name, or that of one of its stages
void method_heads(const Method *m, int layer, int n_heads, HeadPattern *out);   // (n_heads)
int  method_verticals(const Method *m); // the most columns a head keeps
int  method_prefill_window(const Method *m); // lengths up to this are all but dense
// The file must fit the model; errors name it, the layer and the head. The caller frees it.
PatternFile *pattern_open(const char *path, const Config *c, Err *err);
// n bytes of JSON; name stands for them in errors
PatternFile *pattern_parse(const char *text, size_t n, const char *name, Err *err);
void pattern_close(PatternFile *p);
int  pattern_write(const PatternFile *p, const char *path, Err *err);

// ===========================================================================
// Context and branch (model.c): the heart. See SEMANTICS 3.
typedef struct Context Context; // immutable once filled; shared by reference
typedef struct Branch Branch;   // live lists over the context's rows, its own tail, a position
typedef struct Mark Mark;

enum { FEED_FIRST = 1,          // end of the branch's first feed: the policy acts, context included
       FEED_NO_LOGITS = 2 };    // nobody will ask for branch_logits

// Dense prefill of n ids. needs: what the policies of the run want of its queries; NULL: nothing.
// The caller's reference; branches hold their own. NULL with err when interrupted.
Context *context_open(Model *m, const int32_t *ids, int n, const Needs *needs, Err *err);
void context_drop(Context *c);
int  context_len(const Context *c);
// The same with the method's prefill stage: the ids are a whole first feed. A branch on it has a
// method of the same prefill key and is fed nothing more as its first feed; the logits are kept.
Context *context_open_sparse(Model *m, const Method *method, const int32_t *ids, int n,
                             const Needs *needs, Err *err);

// A root branch. On a context: its rows are shared. ctx NULL: an empty branch whose first feed owns
// its rows and releases evicted ones layer by layer. reserve: tail rows allocated at once; more are
// added when needed.
Branch *branch_open(Model *m, Context *ctx, const Method *method, int reserve, Err *err);
// n ids at once (n = 0 only with FEED_FIRST on a context); policies act at its end.
int  branch_feed(Branch *b, const int32_t *ids, int n, unsigned flags, Err *err);
int  branch_step(Branch *b, int32_t id, Err *err);      // one generated id; step policies act
// id[i] on branch b[i], n different fed branches of one model: the same bits as n single steps, but
// weights are read once, and so are whole panels of 512 list entries that are the same rows of one
// shared context or root. An error that is returned has changed no branch.
int  branches_step(Branch *const *b, const int32_t *id, int n, Err *err);
const float *branch_logits(const Branch *b); // (V) of the last token; until the next call
int  branch_finite(const Branch *b, Err *err);  // fails where a logit is no number
int  branch_argmax(const Branch *b);                    // lowest id wins ties
Branch *branch_fork(Branch *b, int reserve, Err *err);  // shares rows, copies the tail
// Forgets every row from logical position pos on: the branch stands at pos again, with what the
// policy has decided since. No mark may be open; logits are gone. A root aware of a question it no
// longer holds.
void branch_cut(Branch *b, int64_t pos);
// The feed to come goes past pos, and branch_cut will return there: recurrent state is kept at pos.
// Nothing happens where a model has none.
void branch_keep(Branch *b, int64_t pos);
void branch_drop(Branch *b);
Mark *
branch_mark(Branch *b); // consumed by rewind or mark_drop; open marks are rewound newest first
void branch_rewind(Branch *b, Mark *k);
void mark_drop(Branch *b, Mark *k);

typedef struct {
    int64_t pos;                        // logical tokens so far
    int rows_min, rows_max;             // live rows per (layer, KV head)
    double rows_mean;
    size_t kv_live_bytes;               // rows that a list names, each once; query heads with rows
                                        // of their own may name the same row of a shared context
    size_t kv_alloc_bytes;              // allocated for this branch's rows, shared context included
    size_t policy_bytes;                // live lists and policy state
    size_t evictable; // rows the policy's rule named in the last feed or step, all heads
    bool shared;                        // rows it evicted are still held for others
    size_t ssm_bytes;                   // recurrent state, whatever the length
    double pairs_ratio; // (query, key) pairs computed / causal pairs of the feeds of its prefill
                        // stage, in tiles of 64 rows
} BranchStats;
BranchStats branch_stats(const Branch *b);
int branch_rows(const Branch *b, int layer, int kv_head,
                const int32_t **pos); // live positions,
                                      // ascending; *pos is valid until the next call on the branch
void branch_poison(Branch *b);                  // tests: fills dead rows nobody else holds with NaN
size_t config_row_bytes(const Config *c);       // K, V and position of one row of one KV head

// ===========================================================================
// Contexts and roots on disk (context_file.c). A file is checked as a whole before anything of it
// is used, then mapped; what it gives is bit for bit what was saved. It holds the ids (n): they,
// the model, the method and the kind of device must be the same, for a GPU's rows are other bits
// than a CPU's. A root is stored with its live rows alone.
int  context_save(const Context *c, const int32_t *ids, const char *path, Err *err);
// method: whose prefill stage the rows come from, NULL: dense; needs: as in context_open, a file
// that kept less is an error
Context *context_load(Model *m, const Method *method, const int32_t *ids, int n,
                      const Needs *needs, const char *path, Err *err);
int  branch_save(const Branch *b, const int32_t *ids, int n, const char *path, Err *err);
Branch *branch_load(Model *m, const Method *method, const int32_t *ids, int n, int reserve,
                    const char *path, Err *err);

typedef struct {                // where a run keeps them, one file per key
    const char *dir;            // NULL: nowhere
    int64_t limit;              // bytes of all files that saving may not pass; 0: none
    bool said;                  // that the limit is reached
} SaveDir;
// The context from its file, or computed and then saved. A damaged file is computed again, a
// context that cannot be saved is used all the same; both are said on stderr. *seconds: without the
// saving.
Context *context_get(Model *m, SaveDir *d, const Method *method, const int32_t *ids, int n,
                     const Needs *needs, bool *restored, double *seconds, Err *err);
bool root_saved(const SaveDir *d, Model *m, const Method *method, const int32_t *ids, int n);
// NULL where there is none or it is damaged
Branch *root_get(Model *m, const SaveDir *d, const Method *method, const int32_t *ids, int n,
                 int reserve);
void root_keep(SaveDir *d, const Branch *b, const int32_t *ids, int n);

// ===========================================================================
// The bytes a run will have allocated at its peak, by the formulas of the allocations themselves;
// kv is rows, window rows and recurrent state; offloaded rows are in host alone
typedef struct { size_t weights, kv, scratch, policy, total, host; bool upper_bound; } Plan;
// shared: context kept for several methods or modes; n_first, n_later: tokens of the first feed and
// of everything after; rows_kept < 0: unknown (corm: an upper bound)
Plan plan_run(const Config *c, const Method *m, int n_ctx, int n_first, int n_later, bool shared,
              int64_t rows_kept, int chunk);
// more branches like the one planned, which answer together with it; the other arguments as there
void plan_more(Plan *p, const Config *c, const Method *m, int n_ctx, int n_first, int n_later,
               bool shared, int64_t rows_kept, int more);

// ===========================================================================
// Linear layers and threads (matmul.cu): y (rows, n) = x (rows, k) W^T, one order of additions
// everywhere (SEMANTICS 1). Both operands are blocks of 32 channels:
//   activations ("act")  [row/16][k/32][16 rows][32 channels]
//   tiles                [n/32][k/32][2 halves][16 channel pairs][16 columns][2]
// zero padded. Weights, packed keys and packed values are all tiles.
typedef enum {
    MUL_TILES,
    MUL_BF16,
    MUL_F32
} MulKind; // bf16 on the matrix unit, bf16 in C, fp32 in C

enum { BLK = 32 };                              // channels (or keys) of a block

typedef struct {
    DType dtype;                                // DT_F32, DT_BF16, DT_Q8
    int n, k;                                   // rows (outputs) and columns (inputs) of the matrix
    const void *rows;                           // row-major file data instead of tiles, or NULL
    void *tiles;                                // q8: [n/32][k/32]{fp16 scale[32], int8 q[1024]}
    const uint16_t *scale; // on a device: of rows as CudaWeight has them (products.h)
} Weight;

typedef struct {                                // one product of a call: y = x W^T (+ bias | + y)
    const Weight *w;
    const float *bias;                          // (n) or NULL
    float *y;                                   // (rows, ldy)
    size_t ldy;
    bool add;                                   // y += product: the residual stream
    float *const *rows;                         // where each row goes instead of y, or NULL
} LinearJob;

int  cpu_init(int threads, Err *err);           // once, before a model is opened; 0 = all cores
const char *cpu_isa(void);                      // "amx-bf16" or "portable"
int  cpu_threads(void);
MulKind mul_kind(DType weights);
size_t act_elem(MulKind kind);                  // bytes of one act element
size_t act_bytes(MulKind kind, int rows, int k);
// rounds (rows, k) fp32, row stride ldx, into act order; rows are padded with zeros to 16
void act_pack(MulKind kind, void *act, const float *x, size_t ldx, int rows, int k);
void act_row(MulKind kind, void *act, int row, const float *x,
             int k); // one row of it, no padding rows
// y (rows, n) with row stride ldy from kb blocks; b_stride: bytes from one 32-column panel to the
// next; act_kb: blocks in a row of act. add: y goes on from its value, block by block.
void mul_block(MulKind kind, float *y, size_t ldy, const void *act, int act_kb, int rows,
               const void *tiles, size_t b_stride, int n, int kb, bool add);
void linear(MulKind kind, const LinearJob *jobs, int n_jobs, const void *act, int rows);
size_t weight_bytes(DType dtype, int n, int k);
void weight_pack(Weight *w, const void *rows);          // from row-major file data into w->tiles
void weight_row(const Weight *w, int row, float *out);  // one matrix row (k) as fp32: the embedding

typedef struct { double tile_tflops, gemm_tflops, read_gbs; } Ceilings;
// measured now: matrix unit alone, our own product from cache, reading a buffer of that many bytes
Ceilings cpu_ceilings(size_t bytes, double seconds);
// of what the model computes on. A GPU: cuBLASLt at 8192^3 for both products, reading a buffer
Ceilings model_ceilings(Model *m, size_t bytes, double seconds);
Ceilings device_ceilings(Device *d, size_t bytes, double seconds);

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
// 32 fp32 values -> one act row of a block
static inline void act_round(MulKind kind, void *dst, const float *src) {
    if (kind == MUL_TILES) {
#ifdef __AVX512BF16__
        __m512bh b = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(src + 16), _mm512_loadu_ps(src));
        memcpy(dst, &b, 64);
#else
        for (int i = 0; i < BLK; i++) ((uint16_t *)dst)[i] = f32_bf16(src[i]);
#endif
    } else {
        for (int i = 0; i < BLK; i++)
            ((float *)dst)[i] = kind == MUL_F32 ? src[i] : round_bf16(src[i]);
    }
}

// ===========================================================================
// Attention over a key list (sparse_attn.cu), in panels of 512 entries (SEMANTICS 1)
enum { PANEL = 512, STRIP_ROWS = BLK, ATTN_ROWS = 128 };

typedef struct {                // what does not change over a run
    MulKind kind;
    int head_dim, n_heads, n_kv_heads;
    size_t elem;                // bytes of one K or V element: 2 (bf16) or 4 (fp32 models)
    float scale;                // log2(e) / sqrt(head_dim)
    int rope_dim;
    const float *inv_freq;      // (rope_dim / 2), for keys rotated again when read
    bool device;                // rows, lists and scratch are a GPU's
    Mem *settled;               // where the rows of a base lie if not with all else, or NULL
} AttnShape;

typedef struct KeyList {        // the keys one KV head may look at, in logical order
    const void *k[2], *v[2];    // part 0: shared rows, part 1: own rows; (rows, hd)
    const int32_t *pos[2];      // logical position of each row
    int split;                  // row numbers below split are in part 0, the others in part 1
    const int32_t *live;        // (len) row numbers, ascending; NULL: entry j is row j
    int len;
    bool by_index;              // POSITIONS_CACHE: keys are read as if their position were j
    const int32_t *turn;        // (len) POSITIONS_SINKCACHE: keys are read so much further; or NULL
} KeyList;

size_t attn_panel_bytes(const AttnShape *s);        // packed K and V of 512 entries
size_t attn_scratch_bytes(const AttnShape *s);      // per thread
// packs entries [from, to) of the list into panels (panel p at p * attn_panel_bytes); entries
// beyond to in a started block of 32 become zero. from may lie inside an already packed block.
void attn_pack(const AttnShape *s, void *panels, const KeyList *list, int from, int to,
               void *scratch);

typedef struct {                // rows of one query head, or the query heads of one row
    const void *panels;         // of the list
    const float *q;             // row i at q + i * ldq: (hd), rotated
    size_t ldq;
    int rows;                   // <= ATTN_ROWS
    int vis0, vis_step;         // row i sees entries [0, vis0 + i * vis_step)
    float *out;                 // row i at out + i * ldo: (hd); NULL: scores only
    size_t ldo;
    float *lse2;                // (rows) or NULL: log2 of the softmax denominator, base 2
    float *scores;              // (rows, ld_scores) or NULL: s = (q.k) * scale of visible entries
    size_t ld_scores;
} AttnRows;
void attn_rows(const AttnShape *s, const AttnRows *a, void *scratch);   // one thread

// s = (q . k) * scale of <= 32 rows q (rows, hd) over one packed panel: scores (32, 512), the first
// vis[i] entries of row i; the rest is undefined. For statistics that walk the keys panel by panel.
void attn_panel_scores(const AttnShape *s, const void *panel, const float *q, int rows,
                       const int *vis, float *scores, void *scratch);

typedef struct {                // one token of one branch: the group's query heads
    const float *q;             // (group, hd)
    float *part;                // m (group), l (group), o (group, hd)
    float *scores;              // as above, written from entry 512 p on; NULL: nobody reads them
    size_t ld_scores;
} StepRows;
// panel p of a list under n tokens that all see it whole, or one that sees what there is of it;
// n * group <= STRIP_ROWS or n = 1
void attn_step_panel(const AttnShape *s, const KeyList *list, int p, const StepRows *t, int n,
                     void *scratch);
// left fold of n consecutive parts in ascending order: out (group, hd), lse2 (group) or NULL
void attn_fold(const AttnShape *s, const float *parts, int n, float *out, float *lse2);

// ===========================================================================
// Sparse prefill (sparse_attn.cu): in a feed every query head may look at a list of its own for
// every 64 rows. Lists are ascending disjoint spans of the KV head's list.
enum { SPARSE_ROWS = 64 };
typedef struct { int at, n; } KeySpan;             // entries [at, at + n)

typedef struct {                // up to 64 rows of one query head over one list
    const KeyList *keys;        // of the KV head
    const void *panels;         // all its entries, packed
    const KeySpan *span;
    int n_spans;
    const float *q;             // row i at q + i * ldq: (hd), rotated
    size_t ldq;
    int rows, own;              // row i is entry own + i and sees no later one
    int sinks, local, windowed; // the first windowed rows see j < sinks or j > own + i - local
    float *out;                 // row i at out + i * ldo: (hd); NULL: lse2 alone
    size_t ldo;
    float *lse2;                // (rows) or NULL
} AttnBlock;
// returns pairs computed: rows x entries of the panels that were multiplied; one thread
int64_t attn_block(const AttnShape *s, const AttnBlock *a, void *scratch);

typedef struct {                // one query head in one feed
    HeadKind kind;
    int len, n;                 // entries of the KV head's list; the feed's rows are its last n
    int sinks, local, dense_rows;       // a-shape; the last dense_rows rows see everything
    int n_vertical;
    const int32_t *vertical;    // kept columns, ascending
    const uint64_t *slash;      // (len / 64, rounded up) bit d: distance d is kept
    int blocks;                 // block-sparse: tiles of 64 entries per list
} HeadLists;
// The list of feed rows [64 block, 64 block + 64) of a head: how many spans were written to out. A
// list ends with the last of these rows. Room for n_vertical + len / 64 + 2 spans; block-sparse
// needs the scores of the tiles that the first row sees, and chosen (len / 64 + 1) as scratch.
int  attn_list(const HeadLists *h, int block, const float *score, KeySpan *out, int32_t *chosen);
// the k largest of x (n), ties to the lower index: indices ascending into out, returns how many
int  top_k(const float *x, int n, int k, int32_t *out);

typedef struct {                // the last query rows of a head and what they look at
    const void *panels;
    int len;
    const float *q;             // (rows, hd)
    int rows;                   // <= 64
} AttnProbe;
// MInference's estimation: column (len) and distance (len) sums of the rows' softmax
void attn_estimate(const AttnShape *s, const AttnProbe *probe, float *column, float *distance,
                   void *scratch);
// keeps the first 30 columns and the forced smallest distances, then the largest sums: returns how
// many verticals; slash (n / 64, rounded up). column and distance are changed; scratch (n)
int  attn_select(float *column, float *distance, int n, int verticals, int slashes, int forced,
                 int32_t *vertical, uint64_t *slash, int32_t *scratch);

typedef struct Sparse Sparse;   // lists and scratch of one layer's feed
typedef struct {
    const HeadPattern *pattern; // (H)
    int dense_rows;             // of a-shape heads
    const AttnShape *s;         // the KV heads are those of the cache
    const KeyList *keys;        // (G), the feed's rows included, and their packed panels (G); both
    const void *const *panels;  //      stay until the feed's last rows
    int n;                      // rows of the feed
    const float *q;             // (H, q_rows, hd) its last min(64, n) query rows, rotated; may be
    int q_rows;                 //      NULL where nothing is estimated
} SparseLayer;
// whether some of the heads look at the scores of the last queries of n rows at the end of len
// entries: only vertical-slash does, and not where its sizes alone make every list whole
bool sparse_estimates(const HeadPattern *pattern, int n_heads, int len, int n);
// marks: rows of a chunk whose lists are kept as marks for sparse_hide, 0: none
size_t sparse_bytes(const AttnShape *s, int len, int verticals, int marks);
Sparse *sparse_open(Mem *mem, const AttnShape *s);
void sparse_close(Sparse *p);
void sparse_reserve(Sparse *p, int len, int verticals, int marks);
// scratch: attn_scratch_bytes per thread, per_thread apart
void sparse_plan(Sparse *p, const SparseLayer *layer, char *scratch, size_t per_thread);
const HeadLists *sparse_head(const Sparse *p, int h);   // after the plan
// what head h looks at from the feed's rows [64 block, ..), whose queries lie ld apart from q on: n
// spans, until the calling thread asks again
const KeySpan *sparse_list(const Sparse *p, int h, int block, const float *q, size_t ld, int *n);
// rows [first, first + n) of the feed, first a multiple of 64 and n too unless they are the last:
// q, out (n, H, hd); lse2 of head h, row i at h * lse_ld + i, or NULL. Returns the pairs computed.
int64_t sparse_rows(Sparse *p, int first, int n, const float *q, float *out, float *lse2,
                    size_t lse_ld, char *scratch, size_t per_thread);
// scores s (n) of entries [from, from + n) under row i of the rows last given, query head h: those
// that were not computed become -INFINITY. from is a multiple of 64.
void sparse_hide(const Sparse *p, int h, int i, int from, int n, float *s);
// the same count of one head if its lists were whole
int64_t sparse_all_pairs(int len, int n);

// ===========================================================================
// The KV cache (cache.cu): rows, live lists, policies, release. One KVCache per branch; a KVBase
// holds rows that several branches share, a KVWork the scratch of all branches of a model.
typedef struct KVBase KVBase;
typedef struct KVCache KVCache;
typedef struct KVMark KVMark;
typedef struct KVWork KVWork;

size_t kv_row_bytes(const AttnShape *s);        // K, V and position of one row of one KV head

// device: NULL, or where mem's blocks lie; the scratch is that of layers [from, to)
KVWork *kv_work_open(Mem *mem, const AttnShape *s, Device *device, int from, int to);
void kv_work_close(KVWork *w);
// grows the scratch for lists of up to len entries, feeds of n tokens (0: only steps), window rows
// and what the method looks at, and steps of batch branches at once
void kv_work_reserve(KVWork *w, const Method *m, int len, int n, int window, int batch);
// what that allocates
typedef struct {                // one layer of the first feed of a branch without a context
    const AttnShape *shape;
    int layer, n;
    const float *q;             // (n, H, hd), rotated
    const void *const *k;       // (G): (n, hd) each, rotated, in the cache's elements
    const void *const *v;
} LayerSeen;
typedef void (*LayerLook)(void *user, const LayerSeen *l);
// called at the end of every layer of such feeds, whose queries are all kept until then (window at
// least n); fn NULL: no more
void kv_work_look(KVWork *w, LayerLook fn, void *user);
void model_set_layer_look(Model *m, LayerLook fn, void *user);
size_t kv_work_bytes(const AttnShape *s, const Method *m, int len, int n, int window, int batch);
// on a device, of keys turned to their places in lists of rows, beside that
size_t kv_turned_bytes(const AttnShape *s, const Method *m, int rows, int batch);

// An empty cache on base (a reference is taken; NULL: none). reserve: own rows allocated at once.
KVCache *kv_open(Mem *mem, const AttnShape *s, int n_layers, KVBase *base, const Method *m,
                 int reserve);
void kv_close(KVCache *c);
KVCache *kv_fork(KVCache *c, int reserve);      // shares the base, copies own rows, lists and state
KVMark *kv_mark(KVCache *c);
void kv_rewind(KVCache *c, KVMark *k);          // both end the mark
void kv_mark_drop(KVCache *c, KVMark *k);
void kv_cut(KVCache *c, int64_t pos); // rows of position >= pos leave the lists and the blocks
KVBase *kv_base(KVCache *c);                    // the shared rows, no reference taken
bool kv_base_sums(const KVBase *b, int words);  // it holds so many words of column sums
const Method *kv_method(const KVCache *c);
KVBase *kv_base_ref(KVBase *b);
void kv_base_drop(KVBase *b);
// the feed to come is the first of an empty cache: rows are settled into a base layer by layer
void kv_first_begin(KVCache *c);
void kv_streaming(KVCache *c, bool on); // a prompt comes in parts, the policy acts after each

int  kv_len(const KVCache *c, int layer, int g);        // live rows
int  kv_max_len(const KVCache *c);
int  kv_heads(const KVCache *c);        // lists of a layer: KV heads, or query heads
bool kv_turns(const KVCache *c);        // keys and queries are rotated by other positions now
// where the query of the feed's row `fed` is rotated to then; stored: rows of the feed in the list
// already. In a step: fed 0, stored 0.
int64_t kv_query_at(const KVCache *c, int layer, int list, int stored, int fed, bool step);
// seconds of policies within kv_feed_chunk, kv_feed_queries and kv_step since the last call
double kv_policy_time(KVWork *w);
// a cache whose queries are summed up for others: column sums stay with its rows (a context's)
KVCache *kv_open_sums(Mem *mem, const AttnShape *s, int n_layers, const Needs *needs,
                      const Method *prefill);
// one layer of a feed, in this order: begin, chunks of rows ascending, end.
// q (n, H, hd), k and v (n, G, hd) fp32, rotated; pos of the first row; out (n, H, hd)
void kv_feed_begin(KVCache *c, KVWork *w, int layer, int n);
void kv_feed_chunk(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                   const float *q, const float *k, const float *v, float *out);
// A feed of n rows with the method's prefill stage, one layer in this order: begin, keys of chunks
// ascending, plan with the feed's last rows <= 64 query rows (rows, H, hd), queries of chunks whose
// first row is a multiple of 64, end.
bool kv_feed_sparse(const KVCache *c, int n);
bool kv_feed_whole(const KVCache *c);   // a feed is one chunk: its queries choose rows together
void kv_feed_keys(KVCache *c, int layer, int n, int64_t pos, const float *k, const float *v);
void kv_feed_plan(KVCache *c, KVWork *w, int layer, const float *q, int rows);
void kv_feed_queries(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                     const float *q, float *out);
// grows the scratch for that, nothing without a prefill stage; and what it allocates
void kv_work_sparse(KVWork *w, const Method *m, int len, int chunk);
size_t kv_sparse_bytes(const AttnShape *s, const Method *m, int len, int chunk);
// policies act. t: logical tokens after the feed; window: (rows, H, hd) rotated query rows in K/V
// elements, the last ones of the first feed's shared context (NULL: none); first: end of first feed
void kv_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                 bool first);
// the last rows of the feed's queries as stored in a context: dst (rows, H, hd) K/V elements
void kv_window_copy(const KVWork *w, int rows, void *dst);
// one layer of one token each on n caches: append, attend, then each policy's step. q and out
// (n, H, hd), k and v (n, G, hd). Returns the bytes of the rows read: a panel that several caches
// share is read and packed once.
enum { STEP_BATCH = 64 };                       // n at most
typedef struct {
    KVCache *kv;
    char *state;                                // recurrent state or NULL
    int64_t pos;                                // of the token
    float *logits;
} StepOf;
size_t kv_step(const StepOf *of, int n, KVWork *w, int layer, const float *q, const float *k,
               const float *v, float *out);
// gathers what is live into right-sized blocks where nobody else holds the rows (SEMANTICS 3)
void kv_release(KVCache *c);
void kv_poison(KVCache *c);                     // for tests: dead rows nobody else holds become NaN
// The same on a device, where a layer's KeyLists lie for the length of a call. A feed: begin, then
// per chunk append (rotates, and stores what is given) and chunk (attends to the end of what is
// stored), end. A sparse feed stores all rows before, then plans with its last rows <= 64 query
// rows (rows, H, hd) in bf16. A step: device_begin once, then append and step.
typedef struct {                // rows of a chunk or step, on the device
    const float *q;             // (n, H, hd) rotated
    const uint16_t *q16;        // the same in bf16
    uint16_t *act;              // (n, H hd rounded up to 32) out: attention, input of a product
    int first, n;               // of the feed
    int64_t pos;                // of the first row
} KVDeviceRows;
struct RopeAppend;
void kv_device_begin(const StepOf *of, int n, KVWork *w);
void kv_device_append(KVCache *c, KVWork *w, int layer, struct RopeAppend *a);
void kv_device_plan(KVCache *c, KVWork *w, int layer, const uint16_t *q16, int rows);
void kv_device_chunk(KVCache *c, KVWork *w, int layer, const KVDeviceRows *rows, bool sparse);
void kv_device_step(const StepOf *of, int n, KVWork *w, int layer, const KVDeviceRows *rows);
void kv_device_counted(KVWork *w);      // the pairs of a sparse feed, when it has ended
size_t kv_device_end(const StepOf *of, int n, KVWork *w);       // when it has ended: as kv_step
bool kv_step_repeats(const KVCache *c); // its steps launch the same but for what is sent
// what a step's launches depend on after kv_device_begin: counts, and where buffers lie
void kv_device_key(const StepOf *of, const KVWork *w, int *lists, int *most, int *shared,
                   int *turns, const void **list, const void **parts);
// rows named by the policy but not dropped, or the like: false with a sentence
bool kv_check(const KVCache *c, Err *err);

typedef struct {
    int min, max;
    double mean;
    size_t live_bytes, alloc_bytes, policy_bytes, named;
    bool shared;
    double pairs_ratio;
} KVStats;
KVStats kv_stats(const KVCache *c);
int kv_positions(KVCache *c, int layer, int g, const int32_t **pos);

// ===========================================================================
// The dense family (llama.cu)
typedef struct {
    float *attn_norm, *ffn_norm;        // (E)
    float *bq, *bk, *bv;                // NULL without qkv_bias
    Weight wq, wk, wv, wo;              // (H hd, E) (G hd, E) (G hd, E) (E, H hd)
    Weight w1, w3, w2;                  // gate (F, E), up (F, E), down (E, F)
} LlamaLayer;

typedef struct {                        // a Mamba-1 or Mamba-2 mixer
    Weight wx, wz, wdt, wp, wout;
    float *conv, *conv_bias, *dt_bias, *a, *d;
    float *gate_norm;                   // Mamba-2
    float *dt_norm, *b_norm, *c_norm;   // Jamba
} SsmLayer;

typedef struct { Weight w1, w3, w2; } Expert;           // as in LlamaLayer
typedef struct { Weight router; Expert *expert; } MoeLayer;     // (n_experts, E), (n_experts)

typedef struct {                        // of any architecture: what it has not is zero
    Weight embed;                       // (V, E): tiles when tied, rows otherwise
    Weight head;                        // (V, E)
    float *final_norm;                  // (E)
    LlamaLayer *layer;                  // (L) norms; attention and FFN where a layer has them
    SsmLayer *ssm;                      // (L) or NULL
    MoeLayer *moe;                      // (L) or NULL
    Expert *experts;                    // all of them, in layer order
} Weights;

typedef struct Loader Loader; // where weights come from: a file, a seed, or nowhere (counting)
struct Loader {
    int (*matrix)(Loader *l, Weight *w, const char *name, int n, int k, bool rows, Err *err);
    // fp32 whatever the model's dtype; (n, k), or (n) where k is 0
    int (*vector)(Loader *l, float **v, const char *name, int n, int k, Err *err);
};

typedef struct {                        // one feed or step
    const Config *c;
    const Weights *w;
    const AttnShape *shape;
    KVCache *kv;
    KVWork *work;
    char *state;                        // recurrent state at pos, config_state_bytes, or NULL
    char *kept;                         // the state in front of token keep_at of the feed, or NULL
    int keep_at;
    const StepOf *of;                   // (n) a step: one id each, all else theirs
    const int32_t *ids;                 // (n)
    int n, chunk;                       // chunk: a multiple of 64 in a sparse feed
    bool sparse;                        // a feed with the prefill stage of the branch's method
    int64_t pos;                        // logical position of ids[0]
    bool first;                         // end of the branch's first feed
    const char *window;                 // (L, window_rows, H, hd) of the shared context, or NULL
    int window_rows;
    char *window_out; // (L, window_out_rows, H, hd): a context keeps its window rows
    int window_out_rows;
    float *logits;                      // (V) of the last token, or NULL
    void *scratch;                      // llama_scratch bytes
    Device *device;                     // NULL: the CPU
    KVWork *const *works;               // (parts of the device) and scratch of each; work and
    void *const *scratches;             // scratch are those in use, of this part
    int part;
    const float *device_logits;         // where a step has left its logits
    bool timed;                         // phases are those of the device, which is waited for
    Mem *mem;                           // of scratch, rows and state
    Tap tap;
    bool (*progress)(void *user, double share);
    void *progress_user;
    void (*load)(void *user, int layer);        // called before a layer; NULL: all are in memory
    void *load_user;
    Phases *phases;
} Forward;

// asks the loader for every tensor, in a fixed order
typedef int (*WeightList)(void *user, Loader *from, Err *err);
// The tensors of a list from a file, or random in bf16 from a seed, packed into an arena of *bytes
// on mem's account; NULL with a sentence.
char *weights_open(ModelFile *f, DType dtype, WeightList bind, void *user, Mem *mem, size_t *bytes,
                   Err *err);
char *weights_random(uint64_t seed, WeightList bind, void *user, Mem *mem, size_t *bytes,
                     Err *err);

typedef struct {                // activations of a feed of n tokens in chunks of C
    float *x;                   // (n, E) residual stream
    float *q, *k, *v, *att;     // (C, H hd) (C, G hd) (C, G hd) (C, H hd)
    float *gate, *up;           // (C, F)
    char *act;                  // packed input of a product, the widest of E, H hd, F, D, R
    float *cos, *sin;           // (n, R/2) of the feed's positions
    float *row;                 // (threads, widest) one normalised or gated row
    // on a device alone, where act is row-major bf16 (C, width rounded up to 32) and att is not used
    int32_t *ids, *pos;         // (n)
    uint16_t *q16;              // (C, H hd) rotated queries
    float *logits;              // (min(C, 64), V)
} FeedBuffers;

// The pieces of a forward pass. first, n: a chunk's rows of the feed; all rows of a step.
static inline size_t carve_bytes(size_t bytes) { return (bytes + 63) & ~(size_t)63; }
size_t buffers_carve(const Config *c, int n, int chunk, char *base, FeedBuffers *b);    // bytes
double phase_s(const Forward *f);       // a clock for phases
float *thread_row(const Forward *f, const FeedBuffers *b);                  // this thread's b->row
void rmsnorm(float *y, const float *x, const float *w, int dim, float eps);
void embed_rows(const Forward *f, const FeedBuffers *b);                    // x <- rows of the ids
void norm_act(const Forward *f, const FeedBuffers *b, const float *x, const float *w,
              int n);                                                   // act <- norm(x), n rows
void swiglu_act(const Forward *f, const FeedBuffers *b, int n);         // act <- silu(gate) * up
// the products of act, counted
void products(Forward *f, const FeedBuffers *b, const LinearJob *jobs, int n_jobs, int n);
// x += W_o attention(norm(x)); kv_layer: which of the layers that attend this is
void feed_attend(Forward *f, const FeedBuffers *b, int layer, int kv_layer, int first, int n);
void feed_attend_begin(Forward *f, const FeedBuffers *b, int layer, int kv_layer); // before these
void feed_attend_end(Forward *f, int kv_layer);                              // its policy acts
// x += W_2 swiglu(norm(x))
void ffn(Forward *f, const FeedBuffers *b, int layer, int first, int n);
void feed_logits(Forward *f, const FeedBuffers *b);     // of the last row, of every row of a step
bool feed_report(Forward *f, int layer, int done);      // true: stop
// before a layer: its weights are there, and where it lies on another device than the one before,
// the call's rows go there and b, f->work and f->scratch are that device's
void layer_enter(Forward *f, FeedBuffers *b, int layer);
void feed_tap(const Forward *f, int layer, const FeedBuffers *b);
// A step: body(f, of) from the embedding to feed_logits. On a device its launches are recorded once
// and replayed by all steps that would launch the same.
void step_run(Forward *f, const FeedBuffers *b, void (*body)(Forward *f, void *of), void *of);

int llama_bind(Weights *w, const Config *c, Loader *from, Err *err);
size_t llama_scratch(const Config *c, int n, int chunk);
int llama_feed(Forward *f, Err *err);   // n >= 0 tokens at once
void llama_step(Forward *f);            // one token of each of n branches
// inverse frequencies (rope_dim / 2) with the file's scaling
void rope_frequencies(const Config *c, float *inv);

// ===========================================================================
// State-space models (mamba.cu) and the hybrid with experts (jamba.cu)
int mamba_bind(Weights *w, const Config *c, Loader *from, Err *err);
int jamba_bind(Weights *w, const Config *c, Loader *from, Err *err);
// Recurrent state is one flat block per context or branch, layer after layer: copying it is a fork,
// a mark, a rewind, a save. It holds no pointers; all zeros is the start of a text.
size_t mamba_state_bytes(const Config *c);              // of one layer
size_t jamba_state_bytes(const Config *c);
size_t mamba_scratch(const Config *c, int n, int chunk);
size_t jamba_scratch(const Config *c, int n, int chunk);
int  mamba_feed(Forward *f, Err *err);
int  jamba_feed(Forward *f, Err *err);
void mamba_step(Forward *f);
void jamba_step(Forward *f);

// Causal convolution per channel, then silu: y_c = silu(b_c + sum_k w[k][c] x[t - K + 1 + k][c]).
// w (K, width); row t of x (n, width), rows before the first come from tail (K - 1, width)
typedef struct {
    const float *w, *bias, *x;
    float *tail;
    int taps, width;
} Conv;
void conv_row(const Conv *v, int t, float *y);
void conv_keep(const Conv *v, int n);                   // tail <- the newest inputs after n rows
// the rows of a feed's next piece: at most a chunk, and not past keep_at
int  feed_piece(const Forward *f, int first);
// copies a layer's state to f->kept where first is keep_at
void feed_keep(const Forward *f, int first, size_t at, size_t bytes);

// ===========================================================================
// Command line (cli.c): one table parses, checks and prints --help.
typedef struct { const char **p; int n; } StrList;      // points into argv; free(x.p) ends it
typedef enum {                  // the field at OptSpec.at is a
    OPT_STR,                    // const char *
    OPT_INT, OPT_INT64,         // int, int64_t
    OPT_REAL,                   // double
    OPT_FLAG,                   // bool, takes no value
    OPT_LIST                    // StrList: the option may be repeated
} OptKind;

typedef struct {
    const char *name, *alias;   // "--ctx"; "-c" or NULL
    OptKind kind;
    size_t at;                  // offsetof(Fields, ...)
    const char *def;            // default as text; NULL: NULL, 0, false, empty
    const char *arg, *help;     // "TOKENS"; one sentence
} OptSpec;

// Sets every default, then reads argv[1..]: --opt value, --opt=value, -o value; "--" ends the
// options. A value that begins with "--" needs the = form. Everything else goes to pos. Unknown or
// repeated option, missing or malformed value: -1 with EXIT_USAGE. *pos is the caller's to free.
int opts_parse(const OptSpec *spec, int n, int argc, char **argv, void *fields, StrList *pos,
               Err *err);
void opts_help(FILE *out, const OptSpec *spec, int n);
// whole-string numbers within [lo, hi]; what names the option in the error (EXIT_USAGE)
int  parse_int(const char *what, const char *text, int64_t lo, int64_t hi, int64_t *out, Err *err);
int  parse_real(const char *what, const char *text, double lo, double hi, double *out, Err *err);
// next item of a comma list into out; false at the end. Empty or overlong items come out as "".
bool list_next(const char **cursor, char *out, size_t cap);

// the index of value among n names; a usage error that names the option otherwise
int  opt_choose(const char *option, const char *value, const char *const *names, int n, Err *err);
// --device cpu|cuda, --gpus N; so many must be there
int  device_choice(const char *value, int gpus, bool *device, Err *err);
void path_stem(const char *path, char *out, size_t n); // file name without directories and suffix

void interrupt_install(void);   // SIGINT, SIGTERM raise a flag; a second one ends the process
bool interrupted(void);

typedef struct {                // on stderr: a bar on a terminal, else a plain line now and then
    char label[64];
    double total, start, last;  // total in tokens; start and last are clock readings
    bool quiet, tty, shown;
} Progress;
void progress_begin(Progress *p, const char *label, double total, bool quiet);
void progress_update(Progress *p, double done);     // cheap: at most ten redraws a second
void progress_end(Progress *p);                     // clears the bar

// ===========================================================================
// Reports (report.c): result rows, tables, resume, plans.
typedef struct {                // live rows per (layer, KV head) and their bytes at one moment
    int rows_min, rows_max;     // -1: missing
    double rows_mean;
    int64_t kv_live_bytes, kv_alloc_bytes;
} RowsAt;

// One turn. Missing values are null in the file: NULL, NAN, -1, and "" for the hashes.
typedef struct {
    int session, turn;          // from 1
    const char *task, *mode, *preset, *method, *history, *compress, *query_aware, *group,
        *positions;
    const char *params;         // JSON text of method_params
    const char *stop;           // "eos", "length"
    const char *prediction, *gold, *error;
    const char *part;           // TaskPart.name of a mix task's turn; NULL where there is one part
    const char *lang;           // of a function to find
    const char *question;       // as asked; the row holds its end
    const char *scorer;         // "ours", "harness"
    const char *arm; // the same for all rows of one arm, also where --ctx paper or --data
                     // gives its sizes another value per session, e.g. "corm keep 0.25"
    size_t prediction_len;      // the answer may hold NUL and invalid UTF-8
    double depth, score;
    double similarity;          // repoqa: BLEU of the candidate most like the answer ...
    int matched;                // ... and whether it is the one asked for: 0, 1; -1: no such turn
    int turns;                  // questions of this session; 0: missing
    // Requests that decoded together from the start, 0: missing. decode_tok_s is what one of them
    // saw: its steps over the time of these steps, which all that are still at it share.
    int batch;
    int restored;               // context or root were read from --save-context; -1: missing
    bool scaled, chat;
    int64_t seed, evictable, policy_bytes, ssm_bytes, peak_bytes;
    int ctx, n_prompt, n_new, shared;
    // of a compressed context: tokens of the tokenizer that weighs words; it was read, not made;
    // the answer stands in it (0, 1; -1: it stands not even in the whole one)
    int tokens_before, tokens_after, compress_read, gold_kept;
    double compress_s;
    char ids_hash[17], logits_hash[17];
    RowsAt q, end;              // at the end of the question, of the answer
    double pairs_ratio, prefill_s, shared_prefill_s, first_token_s, decode_tok_s;
    // root_s: what of shared_prefill_s is the arm's own root. decode_s: its share of the steps'
    // time. policy_s: passes of the policy itself, release included, in the root, the feed and the
    // steps; shared_policy_s: in the shared context
    double root_s, decode_s, policy_s, shared_policy_s;
} Row;

void row_clear(Row *r);                         // everything missing
void row_json(const Row *r, StrBuf *out);       // one line, keys in a fixed order, no newline
void utf8_add(StrBuf *out, const char *s, size_t n);    // invalid UTF-8 becomes U+FFFD
void json_text(StrBuf *out, const char *s, size_t n);   // the same, quoted
typedef struct {                // one whole line of a results.jsonl
    struct json_t *row;         // borrowed: valid during the call
    int line;                   // from 1
    int64_t at;                 // its byte offset
} RowLine;
// Calls fn for every whole line until it fails. A last line without its newline was torn by a crash
// and is no row: *torn. A line that is no row is an error naming it.
int  rows_each(const char *path, int (*fn)(void *user, const RowLine *l, Err *err), void *user,
               bool *torn, Err *err);
// A run's directory. begin makes it (it must not exist) and writes DIR/manifest.json: the JSON text
// given, "started" and "ended". resume: the manifest there must have an equal model hash and equal
// options; the error names the first difference. end sets "ended".
int  report_begin(const char *dir, const char *manifest, bool resume, Err *err);
int  report_end(const char *dir, Err *err);
// Writes text to path.tmp, flushes it to the disk, renames it to path.
int  write_whole(const char *path, const char *text, size_t n, Err *err);

// a and b hold runs that differ in nothing but their shard; the error names the first difference
int  report_same_run(const char *dir_a, const char *dir_b, Err *err);

typedef struct {
    // turns tasks categories methods query reuse history depth longbench prompt cost; NULL: the
    // ones that say most
    const char *table;
    const char *format;         // text csv md; NULL: text
    int cases;                  // example turns per method that scores otherwise than full
} ReportOpts;
// The report over run directories and their shards (DIR/shard-*), merged: sessions of one arm in
// several places are one table; the same turn twice is an error naming both files. Sessions without
// all their turns are left out, which the report says (with csv: stderr does).
int  report_print(FILE *out, const char *const *dirs, int n_dirs, const ReportOpts *o, Err *err);
// For a run that goes on: cuts a torn last line and the rows of unfinished sessions from
// DIR/results.jsonl. rows (n_tasks, sessions): rows a finished session has, turns x arms of its
// task; 0: that session is none of this run (another shard's). done (n_tasks, sessions) is set
// where all of them are there.
int  report_resume(const char *dir, const char *const *tasks, int n_tasks, int sessions,
                   const int *rows, bool *done, Err *err);

typedef struct { char label[64]; Plan plan; } PlanLine;
// one line per way of running, the arithmetic of the KV rows, what is available
void plan_print(FILE *out, const Config *c, const PlanLine *lines, int n, int n_tokens);

// ===========================================================================
// Speed (speed.c)
// seconds at ceilings measured now: a lower bound for one dense prefill of ctx tokens and a step
// there
void plan_seconds(FILE *out, const Config *c, int ctx);

// ===========================================================================
// Search for head patterns (search.c)
typedef struct {
    HeadPattern pattern, stored;        // as compared, as written
    int tile;                           // of block-sparse: 64; 32: keeps n / 8 of all tiles
} Candidate;

typedef struct {
    const Candidate *space;
    int n_space, n;                     // candidates, at most 8; tokens
    bool output;                        // compares outputs instead of probabilities
    PatternFile found;                  // room for every layer and head
    double *share;                      // (L, H) pairs of what was found / causal pairs, by tiles
    Progress *progress;                 // NULL: none
    Mem mem;
} Search;
// A LayerLook with the Search as user: the best candidate of every head of that layer. Goes back
// early, with some heads left out, when interrupted.
void search_layer(void *search, const LayerSeen *seen);

// ===========================================================================
// Commands that play no session: argv[0] is the command's name (commands.c, speed.c, search.c)
int  list_command(int argc, char **argv, Err *err);
int  gen_command(int argc, char **argv, Err *err);
int  speed_command(int argc, char **argv, Err *err);
int  score_command(int argc, char **argv, Err *err);
int  report_command(int argc, char **argv, Err *err);
int  search_command(int argc, char **argv, Err *err);
// The Config of a known shape, or of the one model file among pos, which is then open.
int  config_of(const char *shape, const StrList *pos, bool verify, ModelFile *file, Config *c,
               Err *err);

EXTERN_C_END
#endif
