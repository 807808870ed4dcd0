// products.h - what the device computes with matrices: linear layers (matmul.cu), attention of a
// feed and of a step (flash.cu). Every pointer is a device pointer unless it says
// otherwise, every launcher returns at once; stream is a cudaStream_t.
//
// On the device keys and values stay what cache.h calls rows: row-major, one block per (layer, KV
// head), nothing packed. A KeyList names them there as it does on the host, in two parts with an
// optional live list, so the root, a branch behind a shared context and a compressed branch are one
// case. Arrays of KeyLists lie in device memory: lengths may change between the replays of a graph.
#ifndef PRODUCTS_H
#define PRODUCTS_H
#include "device.h"
#include "scb.h"

EXTERN_C_BEGIN

// ---------------------------------------------------------------------------
// Linear layers. Activations are row-major (rows, ld), bf16 or, for fp32 weights, fp32, rounded by
// who wrote them; ld = k rounded up to 32, zeros behind k. Weights are the same: (n, ld).
typedef struct {
    DType dtype;                // DT_F32, DT_BF16, DT_Q8
    int n, k, ld;
    const void *rows;           // (n, ld) elements; q8: int8
    const uint16_t *scale;      // q8: (n, ld / 32) fp16; weight = bf16(scale * q)
} CudaWeight;

typedef struct {                // as LinearJob: y = x W^T (+ bias | + y)
    CudaWeight w;
    const float *bias;          // (n) or NULL
    float *y;                   // (rows, ldy)
    size_t ldy;
    bool add;
} CudaJob;

enum { CUDA_JOBS = 4, MATVEC_MOST = 16 };

static inline int padded(int k) { return (k + BLK - 1) / BLK * BLK; }
size_t cuda_weight_bytes(DType dtype, int n, int k);
// host memory: the row-major data of a file in the device's layout at dst, cuda_weight_bytes; *w
// names what lies at base, where the bytes will be on the device
void cuda_weight_lay(CudaWeight *w, DType dtype, int n, int k, const void *rows, void *dst,
                     const void *base);
// the same matrix as the forward pass has it: rows and scale are device pointers there
static inline CudaWeight cuda_weight(const Weight *w) {
    CudaWeight c = { w->dtype, w->n, w->k, padded(w->k), w->rows, w->scale };
    return c;
}
// x (n, k) <- rows ids (n) of a bf16 or q8 table, as weight_row has them. Same bits.
void cuda_embed(const CudaWeight *table, const int32_t *ids, float *x, int n, void *stream);
// up to 16 rows, at the speed of reading the weights; up to CUDA_JOBS jobs that share act
void cuda_matvec(const CudaJob *jobs, int n_jobs, const void *act, int rows, void *stream);

// Many rows: cuBLASLt, sums in fp32. Weights, act and y lie on 16 bytes. One object per device;
// its calls are on one stream at a time. unpacked: bytes of the largest q8 matrix as bf16, or 0
typedef struct CudaGemm CudaGemm;
CudaGemm *cuda_gemm_open(size_t unpacked);
void cuda_gemm_close(CudaGemm *g);
enum { GEMM_WORKSPACE = 32 << 20 };     // device bytes it takes besides
void cuda_gemm(CudaGemm *g, const CudaJob *job, const void *act, int rows, void *stream);
// linear() on the device: whichever of the two suits the rows. jobs share act; without rows
void cuda_linear(CudaGemm *g, const LinearJob *jobs, int n_jobs, const void *act, int rows,
                 void *stream);
CudaGemm *device_gemm(const Device *d);         // device.cu, as the next

// ---------------------------------------------------------------------------
// Steps whose launches are recorded. key: bytes that are equal where the launches are.
// Launches the graph recorded under key and adds what its step counted; false: there is none
bool device_replay(Device *d, const void *key, size_t bytes, Phases *counts);
void device_record(Device *d);                  // launches are recorded from here on, not run
// ends that, keeps the graph and runs it; before, after: counts when it began and now
void device_recorded(Device *d, const void *key, size_t bytes, const Phases *before,
                     const Phases *after);
int64_t device_replays(const Device *d);        // so far

// ---------------------------------------------------------------------------
// Attention of a feed: rows of every query head over the lists of their KV heads, or over lists of
// their own (sparse prefill), given as whole pieces of 64 entries and single ones.
typedef struct {                // the list of 64 rows of one query head
    int tile, n_tiles;          // entries [at, at + 64) for at in tile[tile ..], ascending
    int column, n_columns;      // entries column[column ..], ascending
    int sinks, local, windowed; // as AttnBlock
} BlockTiles;
// Spans of a list -> first entries of its whole pieces, and the entries that are left; room for
// len / 64 tiles and n_vertical + 64 columns. Offsets and counts are set in *b, from the next free
// places *tile_at and *column_at on.
HD static inline void block_tiles(const KeySpan *span, int n, int32_t *tile, int *tile_at,
                                  int32_t *column, int *column_at, BlockTiles *b) {
    b->tile = *tile_at;
    b->column = *column_at;
    for (int i = 0; i < n; i++) {
        int j = span[i].at, end = j + span[i].n;
        for (; end - j >= SPARSE_ROWS; j += SPARSE_ROWS) tile[(*tile_at)++] = j;
        for (; j < end; j++) column[(*column_at)++] = j;
    }
    b->n_tiles = *tile_at - b->tile;
    b->n_columns = *column_at - b->column;
}

typedef struct {
    const KeyList *list;        // (G), the rows of the call included
    int most;                   // entries of the longest list
    const float *q;             // (n, H, hd), rotated
    int n, after;               // row i is entry len - after - n + i of its list, and sees no later
    const BlockTiles *block;    // (H, n / 64 rounded up); NULL: rows see all that is before them
    const int32_t *tile, *column;
    float *out;                 // (n, H, hd), or NULL
    uint16_t *act;              // the same as bf16 rows, act_ld apart, or NULL
    size_t act_ld;
    float *lse2;                // (H, lse_ld) or NULL
    size_t lse_ld;
    float *parts;               // cuda_attend_parts floats of scratch; NULL if that is 0
    unsigned long long *pairs;  // += rows x entries that were multiplied, as attn_block; or NULL
} CudaAttend;
// A short feed behind a long list is split over the keys: what that needs
size_t cuda_attend_parts(const AttnShape *s, int n, int most, bool sparse);
void cuda_attend(const AttnShape *s, const CudaAttend *a, void *stream);
// parts (rows, splits, hd + 2) -> results; rows are (row / heads, row % heads), whose lse2 lies at
// row / heads * lse_row + row % heads * lse_head
typedef struct {
    const float *parts;
    int rows, splits, hd, heads;
    float *out;
    uint16_t *act;
    size_t act_ld;
    float *lse2;
    size_t lse_row, lse_head;
} CudaFold;
void cuda_fold(const CudaFold *f, void *stream);

// ---------------------------------------------------------------------------
// Attention of a step: one token each of n branches. The keys of a list are split, every part
// leaves (m, l, O) as sparse_attn.cu has them, and parts are folded in ascending order.
typedef struct {
    const KeyList *list;        // (n, G)
    int most;                   // entries of the longest list
    int shared;                 // entries that name the same rows in every branch: read once
    const float *q;             // (n, H, hd), rotated
    float *parts;               // cuda_step_parts floats of scratch
    float *out;                 // (n, H, hd), or NULL
    uint16_t *act;              // the same as bf16 rows, ld = padded(H hd), or NULL
    size_t act_ld;
    float *lse2;                // (n, H) or NULL
    float *scores;              // (n, H, ld_scores) s = (q.k) scale of every entry, or NULL
    size_t ld_scores;
    int n;
} CudaStep;
// floats; most: the longest list of all steps to come, which also fixes how keys are split, so that
// a graph may be replayed while lists grow up to it
size_t cuda_step_parts(const AttnShape *s, int n, int most);
void cuda_step(const AttnShape *s, const CudaStep *a, void *stream);

EXTERN_C_END

#ifdef SCB_CUDA
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(n) UNROLL_TEXT(unroll n)
#define UNROLL_TEXT(text) _Pragma(#text)
#else
#define UNROLL
#define UNROLL_BY(n)
#endif

// two fp32 values as bf16, lo in the low half: an operand register of mma_bf16
__device__ static inline uint32_t bf16_pair(float lo, float hi) {
#ifdef __CUDA_ARCH__
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#else
    return f32_bf16(lo) | (uint32_t)f32_bf16(hi) << 16;
#endif
}
// 2^x by the device's own unit, within 2 ulp; below -126 it is 0
__device__ static inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return fexp2(x);
#endif
}

// row number of an entry, the last one for those behind it: their keys are read and not used
__device__ static inline int row_number(const KeyList &list, int entry, int to) {
    int j = entry < to ? entry : to - 1;
    return list.live ? list.live[j] : j;
}
template <class T>
__device__ static inline const T *device_row(const void *const part[2], const KeyList &list,
                                             int row, int hd) {
    bool own = row >= list.split;
    return (const T *)(own ? part[1] : part[0]) + (size_t)(row - (own ? list.split : 0)) * hd;
}

__device__ static inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ static inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
#endif
#endif
