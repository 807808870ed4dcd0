// flash.cu - attention on the device: what attn_rows, attn_block, attn_step_panel and attn_fold of
// sparse_attn.cu compute, over the same lists. Tiles, their order and the rounding of P are the
// device's own, so results agree to a tolerance; on one device and build they repeat to the bit.
//
// Keys and values are not packed here: KeyLists point at rows (products.h).
#include "products.h"

#ifdef SCB_CUDA
// ---------------------------------------------------------------------------
// On the device: flash attention on the tensor cores (Dao, arXiv 2307.08691) over one kind of list.
//
// A block of 128 rows walks its list in tiles of 64 entries. Rows are (token, query head of the
// group), so a tile serves the whole group and few tokens are masked; a row block of a sparse feed
// is the 64 tokens of one query head that share a list. What a tile holds is a table of 64 row
// numbers in shared memory, written one tile ahead: 64 entries side by side are copied as they lie,
// others row by row, and nothing else knows the difference between a root, a branch behind a shared
// context, a compressed branch and a list of gathered columns.
//
// A warp has 32 rows, two slabs of 16: every operand of K and V read from shared memory is used
// twice, and that traffic bounds the speed. O is then 128 registers at hd 128, S another 64, so Q
// stays in shared memory. K and V have a tile each: V(t) arrives during Q K(t), K(t + 1) during the
// softmax and P V(t). Rows of tiles are 16 bytes longer than hd, which spreads the eight rows of an
// ldmatrix over all banks and leaves its addresses constants.
enum { TILE_KEYS = 64 };

template <int DIM, int SLABS, int WARPS> struct Tiling {
    enum {
        ROWS = 16 * SLABS * WARPS, LD = DIM + 8, CHUNKS = DIM / 8, THREADS = 32 * WARPS,
        BYTES = (ROWS + 2 * TILE_KEYS) * LD * 2
    };
};

typedef struct {                // the rows of a block
    int g, head, pack;          // row r: token first + r / pack, query head `head` + r % pack
    int first, own, end;        // row of the call, its entry, and the entry behind the last row's
    int rows;
    int from, to;               // tiles
    int n_tiles, n_columns;     // of a list; n_tiles 64 entries side by side each
    const int32_t *tile, *column;
    int sinks, local, windowed;
} RowBlock;

template <bool LISTS>
__device__ static inline RowBlock rows_of(const CudaAttend &a, int H, int G, int most, int splits) {
    RowBlock b;
    int group = H / G, block = (int)(gridDim.x - 1 - blockIdx.x), at = block * most, all;
    b.pack = LISTS ? 1 : group;
    b.head = (int)blockIdx.y * b.pack;
    b.g = b.head / group;
    all = a.n * b.pack;
    b.rows = all - at < most ? all - at : most;
    b.first = at;
    b.own = a.list[b.g].len - a.after - a.n;
    b.end = b.own + (at + b.rows - 1) / b.pack + 1;
    b.tile = b.column = NULL;
    b.sinks = b.local = b.windowed = b.n_columns = 0;
    if (LISTS) {
        const BlockTiles l = a.block[(size_t)b.head * CEIL_DIV(a.n, SPARSE_ROWS) + block];
        b.tile = a.tile + l.tile;
        b.column = a.column + l.column;
        b.n_tiles = l.n_tiles;
        b.n_columns = l.n_columns;
        b.sinks = l.sinks;
        b.local = l.local;
        b.windowed = l.windowed;
    } else b.n_tiles = CEIL_DIV(b.end, TILE_KEYS);
    int tiles = b.n_tiles + CEIL_DIV(b.n_columns, TILE_KEYS);
    b.from = (int)((int64_t)tiles * blockIdx.z / splits);
    b.to = (int)((int64_t)tiles * (blockIdx.z + 1) / splits);
    return b;
}

// entries of tile t that the list has, and entry i of them
template <bool LISTS> __device__ static inline int tile_count(const RowBlock &b, int t) {
    int left = !LISTS ? b.end - t * TILE_KEYS
               : t < b.n_tiles ? TILE_KEYS : b.n_columns - (t - b.n_tiles) * TILE_KEYS;
    return left < TILE_KEYS ? left : TILE_KEYS;
}
template <bool LISTS> __device__ static inline int tile_entry(const RowBlock &b, int t, int i) {
    return !LISTS ? t * TILE_KEYS + i
           : t < b.n_tiles ? b.tile[t] + i : b.column[(t - b.n_tiles) * TILE_KEYS + i];
}

__device__ static inline int entry_row(const KeyList &list, int entry) {
    return list.live ? list.live[entry] : entry;
}

// a tile of K or V to shared memory in the background; number (64) are its row numbers, -1: none
template <int DIM, int THREADS>
__device__ static inline void tile_copy_async(uint16_t *to, const void *const part[2], int split,
                                              const int *number) {
    enum { CHUNKS = DIM / 8, LD = DIM + 8, EACH = TILE_KEYS * CHUNKS / THREADS };
    int first = number[0], last = number[TILE_KEYS - 1], tid = (int)threadIdx.x;
    if (last - first == TILE_KEYS - 1 && (first >= split || last < split)) {
        const uint16_t *from = first >= split
                                   ? (const uint16_t *)part[1] + (size_t)(first - split) * DIM
                                   : (const uint16_t *)part[0] + (size_t)first * DIM;
        UNROLL for (int i = 0; i < EACH; i++) {
            int at = i * THREADS + tid;
            cp_async16(to + at / CHUNKS * LD + at % CHUNKS * 8, from + at * 8, true);
        }
        return;
    }
    UNROLL_BY(2) for (int i = 0; i < EACH; i++) {
        int at = i * THREADS + tid, row = number[at / CHUNKS], own = row >= split;
        const uint16_t *from = (const uint16_t *)(own ? part[1] : part[0]) +
                               (size_t)(row < 0 ? 0 : row - (own ? split : 0)) * DIM;
        cp_async16(to + at / CHUNKS * LD + at % CHUNKS * 8, from + at % CHUNKS * 8, row >= 0);
    }
}

// the block's rows of q, rounded, zeros behind them
template <int DIM, int THREADS>
__device__ static inline void query_load(const CudaAttend &a, const RowBlock &b, int H, int rows,
                                         uint16_t *to) {
    enum { CHUNKS = DIM / 8, LD = DIM + 8 };
    for (int i = (int)threadIdx.x; i < rows * CHUNKS; i += THREADS) {
        int r = i / CHUNKS, c = i % CHUNKS, at = b.first + r;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (r < b.rows) {
            const float4 *p = (const float4 *)(a.q + ((size_t)(at / b.pack) * H + b.head +
                                                      at % b.pack) * DIM + c * 8);
            float4 lo = p[0], hi = p[1];
            x = make_uint4(bf16_pair(lo.x, lo.y), bf16_pair(lo.z, lo.w), bf16_pair(hi.x, hi.y),
                           bf16_pair(hi.z, hi.w));
        }
        *(uint4 *)(to + r * LD + c * 8) = x;
    }
}

// S (16 SLABS, 64) of a warp = Q K^T
template <int DIM, int SLABS>
__device__ static inline void tile_scores_mma(const uint16_t *q, const uint16_t *k,
                                              float (*s)[8][4]) {
    enum { LD = DIM + 8 };
    int lane = (int)threadIdx.x % 32;
    const uint16_t *qa = q + lane % 16 * LD + lane / 16 * 8;
    const uint16_t *kb = k + (lane / 16 * 8 + lane % 8) * LD + lane / 8 % 2 * 8;
    UNROLL for (int i = 0; i < SLABS; i++)
        UNROLL for (int j = 0; j < 8; j++) s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0.0f;
    UNROLL for (int d = 0; d < DIM; d += 16) {
        uint32_t x[SLABS][4], y[4];
        UNROLL for (int i = 0; i < SLABS; i++) ldmatrix_x4(x[i], qa + 16 * i * LD + d);
        UNROLL for (int j = 0; j < 8; j += 2) {
            ldmatrix_x4(y, kb + 8 * j * LD + d);
            UNROLL for (int i = 0; i < SLABS; i++) {
                mma_bf16(s[i][j], x[i], y);
                mma_bf16(s[i][j + 1], x[i], y + 2);
            }
        }
    }
}

// O (16 SLABS, hd) += bf16(P) V
template <int DIM, int SLABS>
__device__ static inline void tile_values_mma(const uint16_t *v, const float (*s)[8][4],
                                              float (*o)[DIM / 8][4]) {
    enum { LD = DIM + 8 };
    int lane = (int)threadIdx.x % 32;
    const uint16_t *vb = v + lane % 16 * LD + lane / 16 * 8;
    UNROLL for (int j = 0; j < 8; j += 2) {
        uint32_t p[SLABS][4], y[4];
        UNROLL for (int i = 0; i < SLABS; i++) {
            p[i][0] = bf16_pair(s[i][j][0], s[i][j][1]);
            p[i][1] = bf16_pair(s[i][j][2], s[i][j][3]);
            p[i][2] = bf16_pair(s[i][j + 1][0], s[i][j + 1][1]);
            p[i][3] = bf16_pair(s[i][j + 1][2], s[i][j + 1][3]);
        }
        UNROLL for (int d = 0; d < DIM / 8; d += 2) {
            ldmatrix_x4_trans(y, vb + 8 * j * LD + 8 * d);
            UNROLL for (int i = 0; i < SLABS; i++) {
                mma_bf16(o[i][d], p[i], y);
                mma_bf16(o[i][d + 1], p[i], y + 2);
            }
        }
    }
}

// whether some row does not see all of a tile, whose first and last entries these are
__device__ static inline bool tile_hides(const RowBlock &b, int low, int high) {
    return high > b.own + b.first / b.pack ||
           (b.windowed > 0 && high >= b.sinks && low <= b.end - 1 - b.local);
}

// scores that a row does not see become -inf. entry (64): INT_MAX where the tile has none
template <int SLABS, bool LISTS>
__device__ static inline void tile_hide(const RowBlock &b, const int *entry, int row,
                                        float (*s)[8][4]) {
    int c = (int)threadIdx.x % 4, own[SLABS][2], below[SLABS][2];
    UNROLL for (int i = 0; i < SLABS; i++)
        UNROLL for (int h = 0; h < 2; h++) {
            int r = row + 16 * i + 8 * h;
            own[i][h] = b.own + (LISTS ? b.first + r : (b.first + r) / b.pack);
            below[i][h] = LISTS && r < b.windowed ? own[i][h] - b.local : -1;
        }
    UNROLL for (int j = 0; j < 16; j++) {
        int e = entry[j / 2 * 8 + 2 * c + j % 2];
        bool sink = LISTS && e < b.sinks;
        UNROLL for (int i = 0; i < SLABS; i++)
            UNROLL for (int h = 0; h < 2; h++) {
                float *x = &s[i][j / 2][2 * h + j % 2];
                *x = e <= own[i][h] && (sink || e > below[i][h]) ? *x : -INFINITY;
            }
    }
}

// S -> P in place; m, l (this lane's share) and, where a maximum rose, O follow
template <int DIM, int SLABS>
__device__ static inline void tile_softmax(float (*s)[8][4], float scale, float (*m)[2],
                                           float (*l)[2], float (*o)[DIM / 8][4]) {
    float top[SLABS][2];
    bool rose = false;
    UNROLL for (int i = 0; i < SLABS; i++)
        UNROLL for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[i][0][2 * h], s[i][0][2 * h + 1]);
            UNROLL for (int j = 1; j < 8; j++)
                x = fmaxf(x, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
            top[i][h] = fmaxf(m[i][h], quad_max(x) * scale);
            rose = rose || top[i][h] > m[i][h];
        }
    if (__any_sync(0xffffffffu, rose)) {
        UNROLL for (int i = 0; i < SLABS; i++) {
            float f[2];
            UNROLL for (int h = 0; h < 2; h++) {
                f[h] = top[i][h] > -INFINITY ? exp2_fast(m[i][h] - top[i][h]) : 1.0f;
                l[i][h] *= f[h];
                m[i][h] = top[i][h];
            }
            UNROLL for (int d = 0; d < DIM / 8; d++) {
                o[i][d][0] *= f[0];
                o[i][d][1] *= f[0];
                o[i][d][2] *= f[1];
                o[i][d][3] *= f[1];
            }
        }
    }
    UNROLL for (int i = 0; i < SLABS; i++)
        UNROLL for (int h = 0; h < 2; h++) {
            float base = m[i][h] > -INFINITY ? m[i][h] : 0.0f;
            UNROLL for (int j = 0; j < 16; j++) {
                float *x = &s[i][j / 2][2 * h + j % 2];
                *x = exp2_fast(fmaf(*x, scale, -base));
                l[i][h] += *x;
            }
        }
}

// a finished row, or its part of one; c: the lane's columns 8d + 2c and the next
template <int DIM>
__device__ static inline void row_out(const CudaAttend &a, const RowBlock &b, int H, int splits,
                                      int row, int h, float m, float l,
                                      const float (*o)[4]) {
    int c = (int)threadIdx.x % 4, at = b.first + row, token = at / b.pack;
    int head = b.head + at % b.pack;
    size_t of = (size_t)token * H + head;
    if (row >= b.rows) return;
    if (splits > 1) {
        float *part = a.parts + (of * splits + blockIdx.z) * (size_t)(DIM + 2);
        if (c == 0) { part[0] = m; part[1] = l; }
        UNROLL for (int d = 0; d < DIM / 8; d++) {
            part[2 + 8 * d + 2 * c] = o[d][2 * h];
            part[3 + 8 * d + 2 * c] = o[d][2 * h + 1];
        }
        return;
    }
    float inv = l > 0.0f ? 1.0f / l : 0.0f;
    if (a.lse2 && c == 0) a.lse2[head * a.lse_ld + token] = l > 0.0f ? m + flog2(l) : -INFINITY;
    UNROLL for (int d = 0; d < DIM / 8; d++) {
        float x = o[d][2 * h] * inv, y = o[d][2 * h + 1] * inv;
        if (a.out) *(float2 *)(a.out + of * DIM + 8 * d + 2 * c) = make_float2(x, y);
        if (a.act)
            *(uint32_t *)(a.act + token * a.act_ld + (size_t)head * DIM + 8 * d + 2 * c) =
                bf16_pair(x, y);
    }
}

template <int DIM, int SLABS, int WARPS, bool LISTS>
__global__ __launch_bounds__(32 * WARPS) static void attend_bf16(CudaAttend a, int H, int G,
                                                                 float scale, int splits) {
    typedef Tiling<DIM, SLABS, WARPS> T;
    DYN_SHARED(uint16_t, q);
    SHARED(RowBlock, rows, 1);                   // what is the same for all stays out of registers
    SHARED(KeyList, keys, 1);
    SHARED(int, number, 2 * TILE_KEYS);
    SHARED(int, entry, 2 * TILE_KEYS);
    uint16_t *k = q + T::ROWS * T::LD, *v = k + TILE_KEYS * T::LD;
    int tid = (int)threadIdx.x, warp = tid / 32, row = warp * 16 * SLABS + tid % 32 / 4;
    const RowBlock &b = rows[0];
    const KeyList &list = keys[0];
    float m[SLABS][2], l[SLABS][2], o[SLABS][DIM / 8][4];
    if (tid == 0) {
        RowBlock mine = rows_of<LISTS>(a, H, G, T::ROWS, splits);
        rows[0] = mine;
        keys[0] = a.list[mine.g];
    }
    UNROLL for (int i = 0; i < SLABS; i++) {
        m[i][0] = m[i][1] = -INFINITY;
        l[i][0] = l[i][1] = 0.0f;
        UNROLL for (int d = 0; d < DIM / 8; d++)
            o[i][d][0] = o[i][d][1] = o[i][d][2] = o[i][d][3] = 0.0f;
    }
    __syncthreads();
    query_load<DIM, T::THREADS>(a, b, H, T::ROWS, q);
    int t = b.from;
    if (tid < TILE_KEYS) {
        bool in = t < b.to && tid < tile_count<LISTS>(b, t);
        int e = in ? tile_entry<LISTS>(b, t, tid) : INT_MAX;
        entry[tid] = e;
        number[tid] = in ? entry_row(list, e) : -1;
    }
    __syncthreads();
    if (t < b.to) tile_copy_async<DIM, T::THREADS>(k, list.k, list.split, number);
    cp_async_commit();
    for (int slot = 0; t < b.to; t++, slot ^= TILE_KEYS) {
        float s[SLABS][8][4];
        int next_entry = INT_MAX, next_number = -1;
        cp_async_wait<0>();
        __syncthreads();                        // K(t) is here, V(t - 1) is done with
        tile_copy_async<DIM, T::THREADS>(v, list.v, list.split, number + slot);
        cp_async_commit();
        if (tid < TILE_KEYS && t + 1 < b.to && tid < tile_count<LISTS>(b, t + 1)) {
            next_entry = tile_entry<LISTS>(b, t + 1, tid);
            next_number = entry_row(list, next_entry);
        }
        tile_scores_mma<DIM, SLABS>(q + warp * 16 * SLABS * T::LD, k, s);
        if (tid < TILE_KEYS) {
            entry[(slot ^ TILE_KEYS) + tid] = next_entry;
            number[(slot ^ TILE_KEYS) + tid] = next_number;
        }
        cp_async_wait<0>();
        __syncthreads();                        // V(t) is here, K(t) is done with
        if (t + 1 < b.to)
            tile_copy_async<DIM, T::THREADS>(k, list.k, list.split, number + (slot ^ TILE_KEYS));
        cp_async_commit();
        if (tile_hides(b, entry[slot], entry[slot + TILE_KEYS - 1]))
            tile_hide<SLABS, LISTS>(b, entry + slot, row, s);
        tile_softmax<DIM, SLABS>(s, scale, m, l, o);
        tile_values_mma<DIM, SLABS>(v, s, o);
    }
    cp_async_wait<0>();
    UNROLL for (int i = 0; i < SLABS; i++)
        UNROLL for (int h = 0; h < 2; h++)
            row_out<DIM>(a, b, H, splits, row + 16 * i + 8 * h, h, m[i][h], quad_sum(l[i][h]),
                         o[i]);
    if (tid == 0 && a.pairs) {
        unsigned long long pairs = 0;
        for (t = b.from; t < b.to; t++) pairs += (unsigned long long)tile_count<LISTS>(b, t);
        atomicAdd(a.pairs, pairs * (unsigned long long)b.rows);
    }
}

// fp32 models: a warp per row, 32 entries at a time, a lane per entry and then per channel
template <bool LISTS>
__global__ static void attend_f32(CudaAttend a, int H, int G, int hd, float scale) {
    int lane = (int)threadIdx.x;
    // x: tokens by blocks of 64 that share a list, so the block's table is that of row / 64
    int token = (int)blockIdx.x, h = (int)blockIdx.y, g = h / (H / G);
    const KeyList list = a.list[g];
    int own = list.len - a.after - a.n + token, block = token / SPARSE_ROWS, count = own + 1;
    BlockTiles l = { 0, 0, 0, 0, 0, 0, 0 };
    if (LISTS) {
        l = a.block[(size_t)h * CEIL_DIV(a.n, SPARSE_ROWS) + block];
        count = l.n_tiles * TILE_KEYS + l.n_columns;
    }
    int below = token - block * SPARSE_ROWS < l.windowed ? own - l.local : -1;
    const float *q = a.q + ((size_t)token * H + h) * hd;
    float m = -INFINITY, sum = 0.0f, o[8] = { 0.0f };
    for (int at = 0; at < count; at += 32) {
        int i = at + lane, e = INT_MAX;
        if (i < count)
            e = !LISTS ? i : i < l.n_tiles * TILE_KEYS
                    ? a.tile[l.tile + i / TILE_KEYS] + i % TILE_KEYS
                    : a.column[l.column + i - l.n_tiles * TILE_KEYS];
        bool seen = e <= own && (e < l.sinks || e > below);
        int number = seen ? list.live ? list.live[e] : e : 0;
        float s = -INFINITY, p;
        if (seen) {
            const float *k = device_row<float>(list.k, list, number, hd);
            s = 0.0f;
            for (int c = 0; c < hd; c++) s = fmaf(q[c], k[c], s);
            s *= scale;
        }
        float top = s;
        for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
        top = fmaxf(top, m);
        if (top == -INFINITY) continue;
        float f = exp2_fast(m - top);
        p = exp2_fast(s - top);
        m = top;
        float part = p;
        for (int d = 16; d; d >>= 1) part += __shfl_xor_sync(0xffffffffu, part, d);
        sum = fmaf(sum, f, part);
        UNROLL for (int c = 0; c < 8; c++) o[c] *= f;
        for (int j = 0; j < 32; j++) {
            int from = __shfl_sync(0xffffffffu, number, j);
            float w = __shfl_sync(0xffffffffu, p, j);
            if (w == 0.0f) continue;
            const float *v = device_row<float>(list.v, list, from, hd);
            UNROLL for (int c = 0; c < 8; c++)
                if (lane + 32 * c < hd) o[c] = fmaf(w, v[lane + 32 * c], o[c]);
        }
    }
    float inv = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (lane == 0 && a.lse2)
        a.lse2[h * a.lse_ld + token] = sum > 0.0f ? m + flog2(sum) : -INFINITY;
    if (lane == 0 && a.pairs) atomicAdd(a.pairs, (unsigned long long)count);
    UNROLL for (int c = 0; c < 8; c++)
        if (lane + 32 * c < hd) a.out[((size_t)token * H + h) * hd + lane + 32 * c] = o[c] * inv;
}

enum { ATTEND_FILL = 264, ATTEND_SPLITS = 64, SPLIT_TILES = 8 };

// parts of the keys of a dense feed: enough blocks to fill the largest device twice, none with less
// than 8 tiles
static int attend_splits(const AttnShape *s, int n, int most, bool sparse) {
    int group = s->n_heads / s->n_kv_heads;
    int blocks = CEIL_DIV(n * group, ATTN_ROWS) * s->n_kv_heads;
    int splits = ATTEND_FILL / blocks, tiles = CEIL_DIV(most, TILE_KEYS);
    if (sparse || s->elem == 4) return 1;
    if (splits > tiles / SPLIT_TILES) splits = tiles / SPLIT_TILES;
    return splits < 1 ? 1 : splits > ATTEND_SPLITS ? ATTEND_SPLITS : splits;
}

size_t cuda_attend_parts(const AttnShape *s, int n, int most, bool sparse) {
    int splits = attend_splits(s, n, most, sparse);
    return splits == 1 ? 0 : (size_t)n * s->n_heads * splits * ((size_t)s->head_dim + 2);
}

template <int DIM, int SLABS, int WARPS, bool LISTS>
static void launch_attend(const AttnShape *s, const CudaAttend *a, int splits, void *stream) {
    typedef Tiling<DIM, SLABS, WARPS> T;
    int group = LISTS ? 1 : s->n_heads / s->n_kv_heads;
    dim3 grid((unsigned)CEIL_DIV(a->n * group, (int)T::ROWS),
              (unsigned)(LISTS ? s->n_heads : s->n_kv_heads), (unsigned)splits);
    CUDA_OK(cudaFuncSetAttribute(attend_bf16<DIM, SLABS, WARPS, LISTS>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, T::BYTES));
    LAUNCH((attend_bf16<DIM, SLABS, WARPS, LISTS>), grid, T::THREADS, T::BYTES, stream, *a,
           s->n_heads, s->n_kv_heads, s->scale, splits);
}

template <int DIM, int SLABS>
static void launch_either(const AttnShape *s, const CudaAttend *a, int splits, void *stream) {
    if (a->block) launch_attend<DIM, SLABS, SPARSE_ROWS / 16 / SLABS, true>(s, a, 1, stream);
    else launch_attend<DIM, SLABS, ATTN_ROWS / 16 / SLABS, false>(s, a, splits, stream);
}

void cuda_attend(const AttnShape *s, const CudaAttend *a, void *stream) {
    int splits = attend_splits(s, a->n, a->most, a->block != NULL);
    if (s->elem == 4) {
        dim3 grid((unsigned)a->n, (unsigned)s->n_heads);
        if (a->block)
            LAUNCH(attend_f32<true>, grid, 32, 0, stream, *a, s->n_heads, s->n_kv_heads,
                   s->head_dim, s->scale);
        else
            LAUNCH(attend_f32<false>, grid, 32, 0, stream, *a, s->n_heads, s->n_kv_heads,
                   s->head_dim, s->scale);
        return;
    }
    if (s->head_dim == 64) launch_either<64, 2>(s, a, splits, stream);
    else if (s->head_dim == 80) launch_either<80, 2>(s, a, splits, stream);
    else if (s->head_dim == 96) launch_either<96, 2>(s, a, splits, stream);
    else if (s->head_dim == 128) launch_either<128, 2>(s, a, splits, stream);
    else if (s->head_dim == 256) launch_either<256, 1>(s, a, splits, stream);
    else CHECK(false, "no attention kernel for heads of %d channels", s->head_dim);
    CudaFold fold = { a->parts, a->n * s->n_heads, splits, s->head_dim, s->n_heads, a->out,
                      a->act, a->act_ld, a->lse2, 1, a->lse_ld };
    if (splits > 1) cuda_fold(&fold, stream);
}

// ---------------------------------------------------------------------------
// A step on the device. Reading K and V is all the cost, so each row is read once for every query
// head of its group, and once for all branches where their lists begin with the same rows: those
// entries are parts of their own, under the stacked heads of up to 16 / group branches.
//
// A warp takes 16 entries at a time under 16 rows of q as tensor-core tiles whose operands come
// from memory as they lie. Lane 4g + c reads, 16 bytes at a time,
//   K  channels [32s + 8c, + 8) of entries 4 (g / 2) + g % 2 (+ 2 for the second tile of 8 keys)
//   V  channels [64s + 8g, + 8) of entries 4c .. 4c + 3
// Which channel a dot product takes when is free, as is the order of the keys in P V as long as P
// has the same; with this one the scores a lane gets, of entries 4c .. 4c + 3, are the operand of
// P V it has to give. Nothing but q, read by all, goes through shared memory.
enum { STEP_WARPS = 4, STEP_KEYS = 16, STEP_ROWS = 16, STEP_LEAST = 256, STEP_SPLITS = 64,
       STEP_FILL = 512 };       // blocks that keep the memory of the largest device busy

typedef struct {                // which entries a block reads, for which rows of q
    int branch, head, rows;     // first row: that branch, that head of the group; rows of the tile
    int from, to, part;         // its entries; which of the parts of a row they are
} StepItem;

// x: parts of the shared entries, then parts of what follows them; y: KV head; z: 16 rows of q
__device__ static inline StepItem step_item(const CudaStep &a, int G, int group, int own_splits,
                                            int shared_splits) {
    StepItem it;
    int x = (int)blockIdx.x, z = (int)blockIdx.z, sets = CEIL_DIV(group, STEP_ROWS);
    bool shared = x < shared_splits;
    int row = shared ? z * STEP_ROWS : z % sets * STEP_ROWS, all = shared ? a.n * group : group;
    it.branch = shared ? row / group : z / sets;
    it.head = row % group;
    it.rows = all - row < STEP_ROWS ? all - row : STEP_ROWS;
    it.part = x;
    int begin = shared ? 0 : a.shared, s = shared ? x : x - shared_splits;
    int splits = shared ? shared_splits : own_splits;
    int end = it.rows <= 0 ? begin : shared ? a.shared : a.list[it.branch * G + blockIdx.y].len;
    int steps = end > begin ? CEIL_DIV(end - begin, STEP_KEYS) : 0;
    it.from = begin + (int)((int64_t)steps * s / splits) * STEP_KEYS;
    it.to = begin + (int)((int64_t)steps * (s + 1) / splits) * STEP_KEYS;
    if (it.to > end) it.to = end;
    return it;
}

// words of two keys -> pairs (key a, key b) of channel 2i and of channel 2i + 1
__device__ static inline uint32_t pair_low(uint32_t a, uint32_t b) {
    return (a & 0xffffu) | (b << 16);
}
__device__ static inline uint32_t pair_high(uint32_t a, uint32_t b) {
    return (a >> 16) | (b & 0xffff0000u);
}

// where part p of a row, which is (branch, query head), lies: m, l, O (hd)
__device__ static inline float *part_of(const CudaStep &a, int hd, int splits, int row, int p) {
    return a.parts + ((size_t)row * splits + p) * (size_t)(hd + 2);
}

// rows of q as operands: of 32 channels from 32 s on, chunk c of row g (+ 8 h) is 16 bytes at
// (2 s + h) 32 + 4g + c
template <int DIM>
__device__ static inline void step_query(const CudaStep &a, const StepItem &it, int H, int group,
                                         int hd, uint4 *q) {
    enum { CHUNKS = CEIL_DIV(DIM, BLK) * 4 };
    for (int i = (int)threadIdx.x; i < STEP_ROWS * CHUNKS; i += STEP_WARPS * 32) {
        int row = i / CHUNKS, chunk = i % CHUNKS, at = it.head + row;
        int branch = it.branch + at / group;
        int h = (int)blockIdx.y * group + at % group;
        float x[8] = { 0.0f };
        if (row < it.rows && chunk * 8 < hd) {
            const float4 *p =
                (const float4 *)(a.q + ((size_t)branch * H + h) * hd + (size_t)chunk * 8);
            float4 lo = p[0], hi = p[1];
            x[0] = lo.x; x[1] = lo.y; x[2] = lo.z; x[3] = lo.w;
            x[4] = hi.x; x[5] = hi.y; x[6] = hi.z; x[7] = hi.w;
        }
        q[(chunk / 4 * 2 + row / 8) * 32 + row % 8 * 4 + chunk % 4] =
            make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]),
                       bf16_pair(x[6], x[7]));
    }
}

// S (16 rows, 16 entries) of a warp: tile j holds entries 4c + 2j and the next
template <int DIM>
__device__ static inline void step_scores_of(const KeyList &list, const uint4 *q, int entry, int to,
                                             float s[2][4]) {
    enum { BLOCKS = CEIL_DIV(DIM, BLK) };
    int lane = (int)threadIdx.x % 32, g = lane / 4, c = lane % 4;
    uint4 k[2][BLOCKS];
    UNROLL for (int j = 0; j < 2; j++) {
        int row = row_number(list, entry + 4 * (g / 2) + 2 * j + g % 2, to);
        const uint16_t *r = device_row<uint16_t>(list.k, list, row, DIM);
        UNROLL for (int b = 0; b < BLOCKS; b++) {
            bool in = DIM % BLK == 0 || b * BLK + c * 8 < DIM;
            k[j][b] = in ? *(const uint4 *)(r + b * BLK + c * 8) : make_uint4(0, 0, 0, 0);
        }
    }
    for (int j = 0; j < 2; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
    UNROLL for (int b = 0; b < BLOCKS; b++) {
        uint4 x = q[b * 64 + lane], y = q[b * 64 + 32 + lane];
        const uint32_t lo[4] = { x.x, y.x, x.y, y.y }, hi[4] = { x.z, y.z, x.w, y.w };
        UNROLL for (int j = 0; j < 2; j++) {
            const uint32_t k0[2] = { k[j][b].x, k[j][b].y }, k1[2] = { k[j][b].z, k[j][b].w };
            mma_bf16(s[j], lo, k0);
            mma_bf16(s[j], hi, k1);
        }
    }
}

// values of entries 4c .. 4c + 3 of the 16, block b: channels 64b + 8g and the next
template <int DIM>
__device__ static inline void step_load_values(const KeyList &list, int entry, int to,
                                               uint4 (*v)[4]) {
    int lane = (int)threadIdx.x % 32, g = lane / 4, c = lane % 4;
    UNROLL for (int i = 0; i < 4; i++) {
        const uint16_t *r =
            device_row<uint16_t>(list.v, list, row_number(list, entry + 4 * c + i, to), DIM);
        UNROLL for (int b = 0; b < CEIL_DIV(DIM, 64); b++) {
            bool in = DIM % 64 == 0 || b * 64 + g * 8 < DIM;
            v[b][i] = in ? *(const uint4 *)(r + b * 64 + g * 8) : make_uint4(0, 0, 0, 0);
        }
    }
}

// o (16 rows, hd) += P (16 rows, 16 entries) V; o[t] of tile t is channel 64 (t / 8) + 8x + t % 8
// of column x
template <int DIM>
__device__ static inline void step_values(const uint4 (*v)[4], const uint32_t p[4],
                                          float (*o)[4]) {
    UNROLL for (int b = 0; b < CEIL_DIV(DIM, 64); b++) {
        const uint32_t u[4][4] = { { v[b][0].x, v[b][0].y, v[b][0].z, v[b][0].w },
                                   { v[b][1].x, v[b][1].y, v[b][1].z, v[b][1].w },
                                   { v[b][2].x, v[b][2].y, v[b][2].z, v[b][2].w },
                                   { v[b][3].x, v[b][3].y, v[b][3].z, v[b][3].w } };
        UNROLL for (int i = 0; i < 4; i++) {
            const uint32_t even[2] = { pair_low(u[0][i], u[1][i]), pair_low(u[2][i], u[3][i]) },
                           odd[2] = { pair_high(u[0][i], u[1][i]), pair_high(u[2][i], u[3][i]) };
            mma_bf16(o[b * 8 + 2 * i], p, even);
            mma_bf16(o[b * 8 + 2 * i + 1], p, odd);
        }
    }
}

// scores -> probabilities of the 16 entries as an operand; m, l and, where a maximum rose, o follow
template <int TILES>
__device__ static inline void step_softmax(float s[2][4], int entry, int to, float scale,
                                           float m[2], float l[2], float (*o)[4], uint32_t p[4]) {
    int c = (int)threadIdx.x % 4;
    float top[2], f[2];
    for (int j = 0; j < 2; j++)
        for (int k = 0; k < 4; k++) {
            bool seen = entry + 4 * c + 2 * j + k % 2 < to;
            s[j][k] = seen ? s[j][k] * scale : -INFINITY;
        }
    for (int h = 0; h < 2; h++) {
        float x = fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
        top[h] = fmaxf(m[h], quad_max(x));
    }
    if (__any_sync(0xffffffffu, top[0] > m[0] || top[1] > m[1])) {
        for (int h = 0; h < 2; h++) {
            f[h] = exp2_fast(m[h] - top[h]);
            l[h] *= f[h];
            m[h] = top[h];
        }
        UNROLL for (int t = 0; t < TILES; t++) {
            o[t][0] *= f[0];
            o[t][1] *= f[0];
            o[t][2] *= f[1];
            o[t][3] *= f[1];
        }
    }
    for (int j = 0; j < 2; j++)
        for (int k = 0; k < 4; k++) {
            s[j][k] = exp2_fast(s[j][k] - m[k / 2]);
            l[k / 2] += s[j][k];
        }
    p[0] = bf16_pair(s[0][0], s[0][1]);
    p[1] = bf16_pair(s[0][2], s[0][3]);
    p[2] = bf16_pair(s[1][0], s[1][1]);
    p[3] = bf16_pair(s[1][2], s[1][3]);
}

// what the warps of a block found, added up in their order, is the block's part
template <int DIM>
__device__ static inline void step_merge(const CudaStep &a, const StepItem &it, int H, int group,
                                         int splits, const float m[2], const float l[2],
                                         const float (*o)[4], float *ml, float *sum) {
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, c = lane % 4;
    for (int h = 0; h < 2 && c == 0; h++) {
        ml[(warp * STEP_ROWS + g + 8 * h) * 2] = m[h];
        ml[(warp * STEP_ROWS + g + 8 * h) * 2 + 1] = l[h];
    }
    __syncthreads();
    for (int w = 0; w < STEP_WARPS; w++) {
        UNROLL for (int h = 0; w == warp && h < 2; h++) {
            int row = g + 8 * h;
            float top = -INFINITY;
            for (int i = 0; i < STEP_WARPS; i++) top = fmaxf(top, ml[(i * STEP_ROWS + row) * 2]);
            float f = m[h] > -INFINITY ? exp2_fast(m[h] - top) : 0.0f;
            UNROLL for (int t = 0; t < CEIL_DIV(DIM, 64) * 8; t++)
                UNROLL for (int k = 0; k < 2; k++) {
                    int channel = t / 8 * 64 + (2 * c + k) * 8 + t % 8;
                    float *to = sum + row * DIM + channel;
                    if (channel < DIM) *to = (w ? *to : 0.0f) + o[t][2 * h + k] * f;
                }
        }
        __syncthreads();
    }
    for (int i = (int)threadIdx.x; i < it.rows * (DIM + 2); i += STEP_WARPS * 32) {
        int row = i / (DIM + 2), at = i % (DIM + 2) - 2, head = it.head + row;
        float top = -INFINITY, x = 0.0f;
        for (int w = 0; w < STEP_WARPS; w++) top = fmaxf(top, ml[(w * STEP_ROWS + row) * 2]);
        for (int w = 0; w < STEP_WARPS && at == -1 && top > -INFINITY; w++)
            x += ml[(w * STEP_ROWS + row) * 2 + 1] *
                 exp2_fast(ml[(w * STEP_ROWS + row) * 2] - top);
        int of = (it.branch + head / group) * H + (int)blockIdx.y * group + head % group;
        part_of(a, DIM, splits, of, it.part)[at + 2] =
            at == -2 ? top : at == -1 ? x : sum[row * DIM + at];
    }
}

template <int DIM>
__global__ __launch_bounds__(STEP_WARPS * 32) static void step_bf16(CudaStep a, int H, int G,
                                                                    float scale, int own_splits,
                                                                    int shared_splits) {
    enum { TILES = CEIL_DIV(DIM, 64) * 8 };
    SHARED(uint4, q, CEIL_DIV(DIM, BLK) * 64);
    SHARED(float, ml, STEP_WARPS * STEP_ROWS * 2);
    SHARED(float, sum, STEP_ROWS * DIM);
    int group = H / G, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const StepItem it = step_item(a, G, group, own_splits, shared_splits);
    if (it.rows <= 0) return;
    const KeyList list = a.list[it.branch * G + (int)blockIdx.y];
    float m[2] = { -INFINITY, -INFINITY }, l[2] = { 0.0f, 0.0f }, o[TILES][4] = { { 0.0f } };
    step_query<DIM>(a, it, H, group, DIM, q);
    __syncthreads();
    for (int entry = it.from + warp * STEP_KEYS; entry < it.to; entry += STEP_WARPS * STEP_KEYS) {
        float s[2][4];
        uint32_t p[4];
        uint4 v[CEIL_DIV(DIM, 64)][4];
        if (DIM <= 128) step_load_values<DIM>(list, entry, it.to, v);    // on its way with K
        step_scores_of<DIM>(list, q, entry, it.to, s);
        UNROLL for (int i = 0; a.scores && i < 8; i++) {
            int row = lane / 4 + i / 4 * 8, head = it.head + row, at = entry + lane % 4 * 4 + i % 4;
            int of = (it.branch + head / group) * H + (int)blockIdx.y * group + head % group;
            if (row < it.rows && at < it.to)
                a.scores[(size_t)of * a.ld_scores + at] = s[i % 4 / 2][i / 4 * 2 + i % 2] * scale;
        }
        step_softmax<TILES>(s, entry, it.to, scale, m, l, o, p);
        if (DIM > 128) step_load_values<DIM>(list, entry, it.to, v);     // no registers for both
        step_values<DIM>(v, p, o);
    }
    for (int h = 0; h < 2; h++) l[h] = quad_sum(l[h]);
    step_merge<DIM>(a, it, H, group, own_splits + shared_splits, m, l, o, ml, sum);
}

// fp32 models, whose speed nobody asks for: a warp per query head and part, lanes share channels
__global__ static void step_f32(CudaStep a, int H, int G, int hd, float scale, int splits) {
    int h = (int)blockIdx.y, branch = (int)blockIdx.z, lane = (int)threadIdx.x;
    const KeyList list = a.list[branch * G + h / (H / G)];
    int from = (int)((int64_t)list.len * blockIdx.x / splits);
    int to = (int)((int64_t)list.len * (blockIdx.x + 1) / splits);
    const float *q = a.q + ((size_t)branch * H + h) * hd;
    float m = -INFINITY, l = 0.0f, o[8] = { 0.0f };
    for (int j = from; j < to; j++) {
        int row = row_number(list, j, to);
        const float *k = device_row<float>(list.k, list, row, hd),
                    *v = device_row<float>(list.v, list, row, hd);
        float s = 0.0f;
        for (int i = lane; i < hd; i += 32) s = fmaf(q[i], k[i], s);
        for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(0xffffffffu, s, d);
        s *= scale;
        if (a.scores && lane == 0) a.scores[((size_t)branch * H + h) * a.ld_scores + j] = s;
        float top = fmaxf(m, s), f = exp2_fast(m - top), p = exp2_fast(s - top);
        l = fmaf(l, f, p);
        m = top;
        UNROLL for (int i = 0; i < 8; i++)
            if (lane + 32 * i < hd) o[i] = fmaf(o[i], f, p * v[lane + 32 * i]);
    }
    float *part = part_of(a, hd, splits, branch * H + h, (int)blockIdx.x);
    if (lane == 0) { part[0] = m; part[1] = l; }
    UNROLL for (int i = 0; i < 8; i++) if (lane + 32 * i < hd) part[2 + lane + 32 * i] = o[i];
}

// The parts of a row (splits) -> out, lse2: m = max m_p, l = sum l_p 2^(m_p - m), O alike, p
// ascending. A row without a key is zero and its lse2 -inf. grid: rows, block: a thread per channel
__global__ static void fold_parts(CudaFold a) {
    int row = (int)blockIdx.x, c = (int)threadIdx.x;
    const float *part = a.parts + (size_t)row * a.splits * (size_t)(a.hd + 2);
    float m = -INFINITY, l = 0.0f, o = 0.0f;
    for (int p = 0; p < a.splits; p++) m = fmaxf(m, part[(size_t)p * (a.hd + 2)]);
    for (int p = 0; p < a.splits && m > -INFINITY; p++) {
        const float *x = part + (size_t)p * (a.hd + 2);
        float f = exp2_fast(x[0] - m);
        l = fmaf(x[1], f, l);
        if (c < a.hd) o = fmaf(x[2 + c], f, o);
    }
    int at = row / a.heads, h = row % a.heads;
    if (c == 0 && a.lse2)
        a.lse2[at * a.lse_row + h * a.lse_head] = l > 0.0f ? m + flog2(l) : -INFINITY;
    if (c >= a.hd) return;
    o = l > 0.0f ? o / l : 0.0f;
    if (a.out) a.out[(size_t)row * a.hd + c] = o;
    if (a.act) a.act[at * a.act_ld + (size_t)h * a.hd + c] = f32_bf16(o);
}

void cuda_fold(const CudaFold *f, void *stream) {
    LAUNCH(fold_parts, f->rows, CEIL_DIV(f->hd, 32) * 32, 0, stream, *f);
}

// parts of `lists` lists of up to `entries`: enough blocks, none with less than STEP_LEAST entries
static int step_splits(int lists, int entries) {
    int most = entries / STEP_LEAST, want = CEIL_DIV(STEP_FILL, lists);
    int splits = want < most ? want : most;
    return splits < 1 ? 1 : splits > STEP_SPLITS ? STEP_SPLITS : splits;
}

size_t cuda_step_parts(const AttnShape *s, int n, int most) {
    int splits = step_splits(s->n_kv_heads, most) + STEP_SPLITS;
    return (size_t)n * s->n_heads * splits * ((size_t)s->head_dim + 2);
}

template <int DIM>
static void launch_step(const AttnShape *s, const CudaStep &a, int own, int shared, void *stream) {
    int group = s->n_heads / s->n_kv_heads;
    dim3 grid((unsigned)(own + shared), (unsigned)s->n_kv_heads,
              (unsigned)(a.n * CEIL_DIV(group, STEP_ROWS)));
    LAUNCH(step_bf16<DIM>, grid, STEP_WARPS * 32, 0, stream, a, s->n_heads, s->n_kv_heads, s->scale,
           own, shared);
}

void cuda_step(const AttnShape *s, const CudaStep *step, void *stream) {
    int group = s->n_heads / s->n_kv_heads, tiles, own, shared = 0;
    CudaStep a = *step;
    a.shared = a.n > 1 && s->elem == 2 ? a.shared / STEP_KEYS * STEP_KEYS : 0;
    tiles = a.n * CEIL_DIV(group, STEP_ROWS);
    own = step_splits(s->n_kv_heads * tiles, a.most - a.shared);
    if (a.shared)
        shared = step_splits(s->n_kv_heads * CEIL_DIV(a.n * group, STEP_ROWS), a.shared);
    if (s->elem == 4) {
        dim3 grid((unsigned)own, (unsigned)s->n_heads, (unsigned)a.n);
        LAUNCH(step_f32, grid, 32, 0, stream, a, s->n_heads, s->n_kv_heads, s->head_dim, s->scale,
               own);
    } else if (s->head_dim == 64) launch_step<64>(s, a, own, shared, stream);
    else if (s->head_dim == 80) launch_step<80>(s, a, own, shared, stream);
    else if (s->head_dim == 96) launch_step<96>(s, a, own, shared, stream);
    else if (s->head_dim == 128) launch_step<128>(s, a, own, shared, stream);
    else if (s->head_dim == 256) launch_step<256>(s, a, own, shared, stream);
    else CHECK(false, "no attention kernel for heads of %d channels", s->head_dim);
    CudaFold fold = { a.parts, a.n * s->n_heads, own + shared, s->head_dim, s->n_heads, a.out,
                      a.act, a.act_ld, a.lse2, (size_t)s->n_heads, 1 };
    cuda_fold(&fold, stream);
}
#endif
