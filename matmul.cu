// matmul.cu - linear layers: y = x W^T, in one order of additions on every instruction set.
//
// The product rule (SEMANTICS 1). k is cut into blocks of 32, zero padded. In a block two FMA
// chains start from zero, one over the even channels, one over the odd ones; the block is even +
// odd; blocks are added in ascending order. That is what one TDPBF16PS does to its accumulator, so
// tiles and plain C give the same bits, and a row gives the same bits alone or among others.
//
// Layouts: scb.h. This file knows neither layers nor attention; sparse_attn.cu feeds it packed keys
// and values as if they were weights.
#include "products.h"
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#endif

enum { MAX_THREADS = 256, TILE_BYTES = 1024, Q8_BLOCK = 64 + 1024 };

static bool use_tiles;              // set once by cpu_init

// ---------------------------------------------------------------------------
// Threads. Every worker flushes denormals and holds the tile configuration for its whole life.

#ifdef __AMX_BF16__
// tile loads and stores are opaque to the compiler: memory must be settled around them
#define SETTLE() __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start_row, zero[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} TileConfig;

static int tiles_request(void) {    // Linux hands out the tile state only on request
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

// Tiles 0 (activations) and 4, 5 (results) get as many rows as the call has: one row costs a
// sixteenth of the activation loads and of the product, and M = 1 then streams weights as fast as a
// plain read loop. Eight tiles of 16 rows serve the 2 x 2 kernel.
static __thread int tile_rows;

static void tiles_configure(int rows) {
    TileConfig c;
    if (tile_rows == rows) return;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) { c.colsb[i] = 64; c.rows[i] = 16; }
    c.rows[0] = c.rows[4] = c.rows[5] = (uint8_t)rows;
    SETTLE();
    _tile_loadconfig(&c);
    tile_rows = rows;
}
#endif

static void thread_init(void) {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);              // FTZ, DAZ
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr | (1ull << 24)));
#endif
#ifdef __AMX_BF16__
    if (use_tiles) tiles_configure(16);
#endif
}

int cpu_init(int threads, Err *err) {
    const char *isa = getenv("SCBENCH_ISA");
    if (isa && strcmp(isa, "portable") && strcmp(isa, "amx-bf16"))
        return FAIL(err, "SCBENCH_ISA is '%s': it can be 'portable' or 'amx-bf16'", isa);
#if defined(__x86_64__)
    __builtin_cpu_init();
#ifdef __AVX512F__
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
        return FAIL(
            err, "this binary was built for a CPU with AVX-512: run make here, or make PORTABLE=1");
#endif
#ifdef __AVX512BF16__
    if (!__builtin_cpu_supports("avx512bf16"))
        return FAIL(
            err,
            "this binary was built for a CPU with AVX-512 BF16: run make here, or make PORTABLE=1");
#endif
    if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx2"))
        return FAIL(err,
                    "this CPU has no fused multiply-add, which the fixed order of additions needs");
#elif !defined(__FP_FAST_FMAF)
#error "no fused multiply-add on this target: the fixed order of additions needs it"
#endif
#ifdef __AMX_BF16__
    use_tiles = (!isa || strcmp(isa, "portable")) && tiles_request() == 0;
#endif
    if (isa && !strcmp(isa, "amx-bf16") && !use_tiles)
        return FAIL(err,
                    "SCBENCH_ISA is 'amx-bf16' but this CPU, kernel or build has no bf16 tiles");
    if (threads < 0 || threads > MAX_THREADS)
        return FAIL(err, "--threads %d: between 1 and %d, or 0 for all cores", threads,
                    MAX_THREADS);
    omp_set_dynamic(0);
    omp_set_num_threads(threads ? threads : omp_get_num_procs());
#pragma omp parallel
    thread_init();
    return 0;
}

const char *cpu_isa(void) { return use_tiles ? "amx-bf16" : "portable"; }
int cpu_threads(void) { return omp_get_max_threads(); }

// ---------------------------------------------------------------------------
// Activations: fp32 rows -> act order, rounded to bf16 unless the model is fp32

MulKind mul_kind(DType weights) {
    return weights == DT_F32 ? MUL_F32 : use_tiles ? MUL_TILES : MUL_BF16;
}
size_t act_elem(MulKind kind) { return kind == MUL_TILES ? 2 : 4; }

size_t act_bytes(MulKind kind, int rows, int k) {
    return (size_t)CEIL_DIV(rows, 16) * 16 * (size_t)CEIL_DIV(k, BLK) * BLK * act_elem(kind);
}

// one block of <= 32 channels, zero padded; src NULL is a row of zeros
static void act_block(MulKind kind, void *dst, const float *src, int count) {
    float pad[BLK] = { 0 };
    if (src && count == BLK) { act_round(kind, dst, src); return; }
    if (src) memcpy(pad, src, (size_t)count * sizeof *pad);
    act_round(kind, dst, pad);
}

static void act_tile(MulKind kind, char *act, const float *x, size_t ldx, int rows, int k, int t) {
    int kb = CEIL_DIV(k, BLK);
    size_t block = BLK * act_elem(kind);
    for (int r = 0; r < 16; r++)
        for (int b = 0; b < kb; b++) {
            int row = t * 16 + r, left = k - b * BLK;
            char *dst = act + ((size_t)(t * kb + b) * 16 + (size_t)r) * block;
            act_block(kind, dst, row < rows ? x + (size_t)row * ldx + b * BLK : NULL,
                      left < BLK ? left : BLK);
        }
}

// a parallel region of one thread inside another costs a microsecond: none is opened
void act_pack(MulKind kind, void *act, const float *x, size_t ldx, int rows, int k) {
    int tiles = CEIL_DIV(rows, 16);
    if (rows <= 16 || omp_in_parallel()) {
        for (int t = 0; t < tiles; t++) act_tile(kind, (char *)act, x, ldx, rows, k, t);
        return;
    }
#pragma omp parallel for
    for (int t = 0; t < tiles; t++) act_tile(kind, (char *)act, x, ldx, rows, k, t);
}

void act_row(MulKind kind, void *act, int row, const float *x, int k) {
    int kb = CEIL_DIV(k, BLK);
    size_t block = BLK * act_elem(kind);
    char *dst = (char *)act + ((size_t)(row / 16) * kb * 16 + (size_t)(row % 16)) * block;
    for (int b = 0; b < kb; b++, dst += 16 * block)
        act_block(kind, dst, x + b * BLK, k - b * BLK < BLK ? k - b * BLK : BLK);
}

// ---------------------------------------------------------------------------
// The product, plain C: ROWS rows by 16 columns, columns innermost so that they vectorise.
//   e = sum over even channels, o = over odd ones, from zero in every block;  y += e + o
enum { ROWS = 4 };

__attribute__((always_inline))
static inline void mul_c(MulKind kind, float *y, size_t ldy, const float *a, int rows,
                         const void *half, size_t b_step, int n, int kb, bool add) {
    float acc[ROWS][16], even[ROWS][16], odd[ROWS][16], be[16], bo[16];
    for (int i = 0; i < ROWS; i++)
        for (int c = 0; c < 16; c++)
            acc[i][c] = add && i < rows && c < n ? y[(size_t)i * ldy + c] : 0.0f;
    for (int b = 0; b < kb; b++) {
        const char *tile = (const char *)half + (size_t)b * b_step;
        const float *ab = a + (size_t)b * 16 * BLK;
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < 16; c++) even[i][c] = odd[i][c] = 0.0f;
        for (int r = 0; r < 16; r++) {
            if (kind == MUL_F32) {
                const float *w = (const float *)tile + r * 32;
                for (int c = 0; c < 16; c++) { be[c] = w[2 * c]; bo[c] = w[2 * c + 1]; }
            } else {
                const uint32_t *w = (const uint32_t *)tile + r * 16;
                for (int c = 0; c < 16; c++) {
                    be[c] = bits_f32(w[c] << 16);
                    bo[c] = bits_f32(w[c] & 0xffff0000u);
                }
            }
            for (int i = 0; i < ROWS; i++) {
                float ae = ab[i * BLK + 2 * r], ao = ab[i * BLK + 2 * r + 1];
                for (int c = 0; c < 16; c++) {
                    even[i][c] = fmaf(ae, be[c], even[i][c]);
                    odd[i][c] = fmaf(ao, bo[c], odd[i][c]);
                }
            }
        }
        for (int i = 0; i < ROWS; i++)
            for (int c = 0; c < 16; c++) acc[i][c] += even[i][c] + odd[i][c];
    }
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < n; c++) y[(size_t)i * ldy + c] = acc[i][c];
}

static void mul_block_c(MulKind kind, float *y, size_t ldy, const float *a, int act_kb, int rows,
                        const char *tiles, size_t b_stride, int n, int kb, bool add) {
    size_t half_bytes = kind == MUL_F32 ? 2 * TILE_BYTES : TILE_BYTES;
    for (int c = 0; c < n; c += 16)
        for (int i = 0; i < rows; i += ROWS) {
            const float *ai = a + (size_t)(i / 16) * (size_t)act_kb * 16 * BLK + (i % 16) * BLK;
            const char *half =
                tiles + (size_t)(c / 32) * b_stride + (size_t)(c / 16 % 2) * half_bytes;
            float *yi = y + (size_t)i * ldy + c;
            int m = rows - i < ROWS ? rows - i : ROWS, cols = n - c < 16 ? n - c : 16;
            if (kind == MUL_F32)
                mul_c(MUL_F32, yi, ldy, ai, m, half, 2 * half_bytes, cols, kb, add);
            else mul_c(MUL_BF16, yi, ldy, ai, m, half, 2 * half_bytes, cols, kb, add);
        }
}

// ---------------------------------------------------------------------------
// The product on tiles: a 32 x 32 output in four accumulators, two A and two B tiles per block,
// each accumulator touched once per block (latency 52 cycles, four products of 16). M <= 16 uses
// half.
#ifdef __AMX_BF16__

static void tile_copy(float *to, size_t ld_to, const float *from, size_t ld_from, int rows,
                      int cols) {
    for (int i = 0; i < rows; i++)
        memcpy(to + (size_t)i * ld_to, from + (size_t)i * ld_from, (size_t)cols * sizeof *to);
}

static void mul_tiles_2x2(float *y, size_t ldy, const char *a0, const char *a1, const char *b,
                          int rows, int cols, int kb, bool add) {
    float part[4][256] __attribute__((aligned(64)));
    float *c[4] = { y, y + 16, y + 16 * ldy, y + 16 * ldy + 16 };
    size_t stride = ldy * sizeof *y;
    bool whole = rows == 32 && cols == 32;
    int lo = cols < 16 ? cols : 16;
    if (!whole) {
        for (int i = 0; i < 4; i++) c[i] = part[i];
        stride = 64;
        if (add) {
            tile_copy(c[0], 16, y, ldy, 16, lo);
            tile_copy(c[1], 16, y + 16, ldy, 16, cols - lo);
            tile_copy(c[2], 16, y + 16 * ldy, ldy, rows - 16, lo);
            tile_copy(c[3], 16, y + 16 * ldy + 16, ldy, rows - 16, cols - lo);
        }
    }
    SETTLE();
    if (add) {
        _tile_loadd(4, c[0], stride); _tile_loadd(5, c[1], stride);
        _tile_loadd(6, c[2], stride); _tile_loadd(7, c[3], stride);
    } else { _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7); }
    for (int k = 0; k < kb; k++) {
        _tile_loadd(0, a0 + (size_t)k * TILE_BYTES, 64);
        _tile_loadd(2, b + (size_t)k * 2 * TILE_BYTES, 64);
        _tile_loadd(3, b + (size_t)k * 2 * TILE_BYTES + TILE_BYTES, 64);
        _tile_loadd(1, a1 + (size_t)k * TILE_BYTES, 64);
        _tile_dpbf16ps(4, 0, 2);
        _tile_dpbf16ps(5, 0, 3);
        _tile_dpbf16ps(6, 1, 2);
        _tile_dpbf16ps(7, 1, 3);
    }
    _tile_stored(4, c[0], stride); _tile_stored(5, c[1], stride);
    _tile_stored(6, c[2], stride); _tile_stored(7, c[3], stride);
    SETTLE();
    if (whole) return;
    tile_copy(y, ldy, c[0], 16, 16, lo);
    tile_copy(y + 16, ldy, c[1], 16, 16, cols - lo);
    tile_copy(y + 16 * ldy, ldy, c[2], 16, rows - 16, lo);
    tile_copy(y + 16 * ldy + 16, ldy, c[3], 16, rows - 16, cols - lo);
}

// <= 16 rows: the tiles have just that many, so results go straight to y where 32 columns are
// wanted
static void mul_tiles_1x2(float *y, size_t ldy, const char *a, const char *b, int rows, int cols,
                          int kb, bool add) {
    enum { STREAM_FROM = 16 };          // blocks in a row of weights; shorter operands are in cache
    float part[2][256] __attribute__((aligned(64)));
    float *c[2] = { y, y + 16 };
    size_t stride = ldy * sizeof *y;
    int lo = cols < 16 ? cols : 16;
    if (cols < 32) {
        c[0] = part[0];
        c[1] = part[1];
        stride = 64;
        if (add) {
            tile_copy(c[0], 16, y, ldy, rows, lo);
            tile_copy(c[1], 16, y + 16, ldy, rows, cols - lo);
        }
    }
    SETTLE();
    if (add) { _tile_loadd(4, c[0], stride); _tile_loadd(5, c[1], stride); }
    else { _tile_zero(4); _tile_zero(5); }
    for (int k = 0; k < kb; k++) {
        const char *next = b + (size_t)(k + 1) * 2 * TILE_BYTES; // one block ahead: +11 % at M = 1
        for (int i = 0; kb >= STREAM_FROM && i < 2 * TILE_BYTES; i += 64)
            _mm_prefetch(next + i, _MM_HINT_T0);
        _tile_loadd(0, a + (size_t)k * TILE_BYTES, 64);
        _tile_loadd(2, b + (size_t)k * 2 * TILE_BYTES, 64);
        _tile_loadd(3, b + (size_t)k * 2 * TILE_BYTES + TILE_BYTES, 64);
        _tile_dpbf16ps(4, 0, 2);
        _tile_dpbf16ps(5, 0, 3);
    }
    _tile_stored(4, c[0], stride);
    _tile_stored(5, c[1], stride);
    SETTLE();
    if (cols == 32) return;
    tile_copy(y, ldy, c[0], 16, rows, lo);
    tile_copy(y + 16, ldy, c[1], 16, rows, cols - lo);
}

static void mul_block_tiles(float *y, size_t ldy, const char *a, int act_kb, int rows,
                            const char *tiles, size_t b_stride, int n, int kb, bool add) {
    for (int c = 0; c < n; c += 32, tiles += b_stride) {
        int cols = n - c < 32 ? n - c : 32, i = 0;
        if (rows > 16) tiles_configure(16);
        for (; rows - i > 16; i += 32) {
            const char *a0 = a + (size_t)(i / 16) * (size_t)act_kb * TILE_BYTES;
            mul_tiles_2x2(y + (size_t)i * ldy + c, ldy, a0, a0 + (size_t)act_kb * TILE_BYTES, tiles,
                          rows - i < 32 ? rows - i : 32, cols, kb, add);
        }
        if (i >= rows) continue;
        tiles_configure(rows - i);
        mul_tiles_1x2(y + (size_t)i * ldy + c, ldy,
                      a + (size_t)(i / 16) * (size_t)act_kb * TILE_BYTES, tiles, rows - i, cols, kb,
                      add);
    }
}
#endif

void mul_block(MulKind kind, float *y, size_t ldy, const void *act, int act_kb, int rows,
               const void *tiles, size_t b_stride, int n, int kb, bool add) {
#ifdef __AMX_BF16__
    if (kind == MUL_TILES) {
        mul_block_tiles(y, ldy, (const char *)act, act_kb, rows, (const char *)tiles, b_stride, n,
                        kb, add);
        return;
    }
#endif
    mul_block_c(kind, y, ldy, (const float *)act, act_kb, rows, (const char *)tiles, b_stride, n,
                kb, add);
}

// ---------------------------------------------------------------------------
// Weights: row-major (n, k) in the file, tiles in memory. A tile row holds, for 16 columns n, the
// channel pair (2r, 2r+1): one 32-bit word each (bf16) or two floats.

size_t weight_bytes(DType dtype, int n, int k) {
    size_t blocks = (size_t)CEIL_DIV(n, 32) * (size_t)CEIL_DIV(k, BLK);
    return blocks * (dtype == DT_F32 ? 4096 : dtype == DT_BF16 ? 2048 : Q8_BLOCK);
}

// element of channel c (0..31) and column j (0..31) inside one 32 x 32 block
static inline int tile_at(int j, int c) {
    return (j / 16) * 512 + (c / 2) * 32 + (j % 16) * 2 + (c & 1);
}

void weight_pack(Weight *w, const void *rows) {
    int nb = CEIL_DIV(w->n, 32), kb = CEIL_DIV(w->k, BLK);
    size_t block = w->dtype == DT_F32 ? 4096 : w->dtype == DT_BF16 ? 2048 : Q8_BLOCK;
#pragma omp parallel for
    for (int p = 0; p < nb; p++)
        for (int b = 0; b < kb; b++) {
            char *dst = (char *)w->tiles + ((size_t)p * kb + b) * block;
            memset(dst, 0, block);
            for (int j = 0; j < 32 && p * 32 + j < w->n; j++) {
                size_t row = (size_t)p * 32 + j;
                int count = w->k - b * BLK < BLK ? w->k - b * BLK : BLK;
                if (w->dtype == DT_Q8) {
                    const Q8Block *q = (const Q8Block *)rows + row * kb + b;
                    memcpy(dst + 2 * j, &q->scale, 2);
                    for (int c = 0; c < BLK; c++) dst[64 + tile_at(j, c)] = q->q[c];
                } else if (w->dtype == DT_BF16) {
                    const uint16_t *s = (const uint16_t *)rows + row * w->k + (size_t)b * BLK;
                    for (int c = 0; c < count; c++) ((uint16_t *)dst)[tile_at(j, c)] = s[c];
                } else {
                    const float *s = (const float *)rows + row * w->k + (size_t)b * BLK;
                    for (int c = 0; c < count; c++) ((float *)dst)[tile_at(j, c)] = s[c];
                }
            }
        }
}

// weight = bf16(scale * q), the tile order kept; one 32 x 32 block
static void q8_unpack_block(uint16_t *dst, const char *src) {
    const int8_t *q = (const int8_t *)src + 64;
#ifdef __AVX512BF16__
    const __m512i pairs = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (int half = 0; half < 2; half++) {
        __m512 scale =
            _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(src + half * 32)));
        __m512 lo = _mm512_permutexvar_ps(pairs, scale);        // columns 0..7, twice each
        __m512 hi = _mm512_permutexvar_ps(_mm512_add_epi32(pairs, _mm512_set1_epi32(8)), scale);
        for (int r = 0; r < 16; r++, q += 32, dst += 32) {
            __m512i a = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)q));
            __m512i b =
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(q + 16)));
            __m512bh w = _mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_cvtepi32_ps(b), hi),
                                             _mm512_mul_ps(_mm512_cvtepi32_ps(a), lo));
            memcpy(dst, &w, 64);
        }
    }
#else
    float scale[32];
    for (int j = 0; j < 32; j++) {
        uint16_t h;
        memcpy(&h, src + 2 * j, 2);
        scale[j] = f16_f32(h);
    }
    for (int half = 0; half < 2; half++)
        for (int r = 0; r < 16; r++) {
            int at = half * 512 + r * 32;
            for (int c = 0; c < 32; c++)
                dst[at + c] = f32_bf16(scale[half * 16 + c / 2] * (float)q[at + c]);
        }
#endif
}

static void q8_unpack(uint16_t *dst, const char *src, int kb) {
    for (int b = 0; b < kb; b++)
        q8_unpack_block(dst + (size_t)b * 1024, src + (size_t)b * Q8_BLOCK);
}

void weight_row(const Weight *w, int row, float *out) {
    int kb = CEIL_DIV(w->k, BLK), p = row / 32, j = row % 32;
    if (w->rows) {
        size_t at = (size_t)row * w->k;
        for (int c = 0; c < w->k; c++)
            out[c] = w->dtype == DT_F32 ? ((const float *)w->rows)[at + c]
                                        : bf16_f32(((const uint16_t *)w->rows)[at + c]);
        return;
    }
    for (int c = 0; c < w->k; c++) {
        size_t block = (size_t)p * kb + c / BLK;
        int at = tile_at(j, c % BLK);
        if (w->dtype == DT_F32) out[c] = ((const float *)w->tiles)[block * 1024 + at];
        else if (w->dtype == DT_BF16)
            out[c] = bf16_f32(((const uint16_t *)w->tiles)[block * 1024 + at]);
        else {
            const char *q = (const char *)w->tiles + block * Q8_BLOCK;
            uint16_t h;
            memcpy(&h, q + 2 * j, 2);
            out[c] = round_bf16(f16_f32(h) * (float)((const int8_t *)q)[64 + at]);
        }
    }
}

// ---------------------------------------------------------------------------
// Linear layers: all jobs of a call share x and one parallel region; a unit of work is a 32-column
// panel with all rows, whose tiles stay in cache while the row strips pass over them.

enum { OUT_ROWS = 32, Q8_STEP = 4, DEEP = 16, DEEP_ROWS = 256 };

// y <- product, + bias, or y + product: m rows of one panel
static void panel_out(const LinearJob *job, int p, int first, int m, int cols, const float *out) {
    for (int r = 0; r < m; r++, out += 32) {
        float *y = (job->rows ? job->rows[first + r] : job->y + (size_t)(first + r) * job->ldy) +
                   (size_t)p * 32;
        if (job->bias) for (int c = 0; c < cols; c++) y[c] = out[c] + job->bias[p * 32 + c];
        else if (job->add) for (int c = 0; c < cols; c++) y[c] += out[c];
        else memcpy(y, out, (size_t)cols * sizeof *y);
    }
}

// few rows of a q8 panel: blocks are unpacked where their product finds them in the first cache
static void q8_panel(MulKind kind, const LinearJob *job, int p, const void *act, int rows,
                     uint16_t *unpacked) {
    const Weight *w = job->w;
    int kb = CEIL_DIV(w->k, BLK), cols = w->n - p * 32 < 32 ? w->n - p * 32 : 32;
    const char *src = (const char *)w->tiles + (size_t)p * kb * Q8_BLOCK;
    float out[16 * 32] __attribute__((aligned(64)));
    for (int b = 0; b < kb; b += Q8_STEP) {
        int n = kb - b < Q8_STEP ? kb - b : Q8_STEP;
        q8_unpack(unpacked, src + (size_t)b * Q8_BLOCK, n);
        mul_block(kind, out, 32, (const char *)act + (size_t)b * 16 * BLK * act_elem(kind), kb,
                  rows, unpacked, 0, 32, n, b > 0);
    }
    panel_out(job, p, 0, rows, cols, out);
}

// Many rows of a panel with a bias, an encoder's: DEEP blocks of it at a time, which the first
// cache holds while the row strips pass over them (the product goes on block by block, so no bit
// depends on it). Lines of y are far apart, no prefetcher finds them: they are asked for before the
// product. Jobs without a bias have their tiles stored straight to y, which this is no faster than.
static void tiles_panel(const LinearJob *job, int p, const void *act, int rows, const char *tiles) {
    int kb = CEIL_DIV(job->w->k, BLK), cols = job->w->n - p * 32 < 32 ? job->w->n - p * 32 : 32;
    int step = CEIL_DIV(kb, CEIL_DIV(kb, DEEP));
    float out[DEEP_ROWS * 32] __attribute__((aligned(64)));
    for (int i = 0; i < rows; i += DEEP_ROWS) {
        int m = rows - i < DEEP_ROWS ? rows - i : DEEP_ROWS;
        const char *a = (const char *)act + (size_t)i * kb * BLK * act_elem(MUL_TILES);
        for (int r = 0; r < m && !job->rows; r++) {
            float *y = job->y + (size_t)(i + r) * job->ldy + (size_t)p * 32;
            __builtin_prefetch(y, 1);
            __builtin_prefetch(y + 16, 1);
        }
        for (int k = 0; k < kb; k += step)
            mul_block(MUL_TILES, out, 32, a + (size_t)k * 16 * BLK * act_elem(MUL_TILES), kb, m,
                      tiles + (size_t)k * 2048, 0, 32, kb - k < step ? kb - k : step, k > 0);
        panel_out(job, p, i, m, cols, out);
    }
}

static void linear_panel(MulKind kind, const LinearJob *job, int p, const void *act, int rows,
                         uint16_t *q8) {
    const Weight *w = job->w;
    int kb = CEIL_DIV(w->k, BLK), cols = w->n - p * 32 < 32 ? w->n - p * 32 : 32;
    size_t block = w->dtype == DT_F32 ? 4096 : w->dtype == DT_BF16 ? 2048 : Q8_BLOCK;
    const char *tiles = (const char *)w->tiles + (size_t)p * kb * block;
    float out[OUT_ROWS * 32] __attribute__((aligned(64)));
    if (w->dtype == DT_Q8) {
        if (rows <= 16) { q8_panel(kind, job, p, act, rows, q8); return; }
        q8_unpack(q8, tiles, kb);
        tiles = (const char *)q8;
    }
    if (kind == MUL_TILES && rows > OUT_ROWS && job->bias) {
        tiles_panel(job, p, act, rows, tiles);
        return;
    }
    if (!job->bias && !job->add && !job->rows) {
        mul_block(kind, job->y + (size_t)p * 32, job->ldy, act, kb, rows, tiles, 0, cols, kb,
                  false);
        return;
    }
    for (int i = 0; i < rows; i += OUT_ROWS) {
        int m = rows - i < OUT_ROWS ? rows - i : OUT_ROWS;
        const char *a = (const char *)act + (size_t)i * kb * BLK * act_elem(kind);
        mul_block(kind, out, 32, a, kb, m, tiles, 0, cols, kb, false);
        panel_out(job, p, i, m, cols, out);
    }
}

void linear(MulKind kind, const LinearJob *jobs, int n_jobs, const void *act, int rows) {
    int panels = 0, kb_max = 0;
    bool q8 = false;
    for (int j = 0; j < n_jobs; j++) {
        panels += CEIL_DIV(jobs[j].w->n, 32);
        if (CEIL_DIV(jobs[j].w->k, BLK) > kb_max) kb_max = CEIL_DIV(jobs[j].w->k, BLK);
        q8 = q8 || jobs[j].w->dtype == DT_Q8;
    }
    int per = panels / (cpu_threads() * 8);
    if (per < 1) per = 1;
#pragma omp parallel
    {
        uint16_t *scratch = q8 ? (uint16_t *)aligned_alloc(64, (size_t)kb_max * 2048) : NULL;
        CHECK(!q8 || scratch, "no memory to unpack weights");
#pragma omp for schedule(dynamic, per)
        for (int p = 0; p < panels; p++) {
            int j = 0, at = p;
            while (at >= CEIL_DIV(jobs[j].w->n, 32)) at -= CEIL_DIV(jobs[j++].w->n, 32);
            linear_panel(kind, &jobs[j], at, act, rows, scratch);
        }
        free(scratch);
    }
}

// ---------------------------------------------------------------------------
// Ceilings, measured on this machine now (performance.md 6): what the speed report divides by

static double tile_rate(double seconds) {       // one thread, operands in registers
#ifdef __AMX_BF16__
    if (use_tiles) {
        double t0 = now_s(), t;
        int64_t rounds = 0;
        tiles_configure(16);
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
        do {
            for (int i = 0; i < 4096; i++) {
                _tile_dpbf16ps(4, 0, 2); _tile_dpbf16ps(5, 0, 3);
                _tile_dpbf16ps(6, 1, 2); _tile_dpbf16ps(7, 1, 3);
            }
            rounds += 4096 * 4;
        } while ((t = now_s() - t0) < seconds);
        return (double)rounds * 16384.0 / t * 1e-12;
    }
#endif
    (void)seconds;
    return 0;
}

static double gemm_rate(double seconds) {       // one thread, 256 x 512 x 512, all in cache
    enum { M = 256, K = 512, N = 512 };
    MulKind kind = mul_kind(DT_BF16);
    void *a = aligned_alloc(64, act_bytes(kind, M, K));
    void *b = aligned_alloc(64, weight_bytes(DT_BF16, N, K));
    float *y = (float *)aligned_alloc(64, sizeof *y * M * N);
    double t0 = now_s(), t;
    int64_t rounds = 0;
    CHECK(a && b && y, "no memory for the speed probe");
    memset(a, 0x3c, act_bytes(kind, M, K));
    memset(b, 0x3c, weight_bytes(DT_BF16, N, K));
    do {
        mul_block(kind, y, N, a, K / BLK, M, b, (size_t)K / BLK * 2048, N, K / BLK, false);
        rounds++;
    } while ((t = now_s() - t0) < seconds);
    free(a); free(b); free(y);
    return (double)rounds * 2.0 * M * N * K / t * 1e-12;
}

static uint64_t read_sum(const uint64_t *p, size_t n) {
    uint64_t s[8] = { 0 };
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) s[j] ^= p[i + j];
    return s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

Ceilings cpu_ceilings(size_t bytes, double seconds) {
    Ceilings c = { 0, 0, 0 };
    Mem mem = { 0, 0, 0, NULL, NULL };
    int threads = cpu_threads();
    size_t words = bytes / 8 / (size_t)threads;
    uint64_t *p = TAKE(&mem, uint64_t, words * (size_t)threads, "the bandwidth probe"), sink = 0;
    double tile = 0, gemm = 0, best = 0;
#pragma omp parallel reduction(+ : tile, gemm)
    {
        memset(p + words * (size_t)omp_get_thread_num(), 1, words * 8);
        tile += tile_rate(seconds / 3);
        gemm += gemm_rate(seconds / 3);
    }
    for (double t0 = now_s(); now_s() - t0 < seconds / 3 || best == 0;) {
        double t = now_s();
#pragma omp parallel reduction(^ : sink)
        sink ^= read_sum(p + words * (size_t)omp_get_thread_num(), words);
        t = now_s() - t;
        if ((double)(words * 8 * (size_t)threads) / t > best)
            best = (double)(words * 8 * (size_t)threads) / t;
    }
    c.tile_tflops = tile;
    c.gemm_tflops = gemm;
    c.read_gbs = sink == 42 ? 0 : best * 1e-9;  // the comparison keeps the reads alive
    mem_give(&mem, p, words * (size_t)threads * 8);
    return c;
}

// ---------------------------------------------------------------------------
// On the device

size_t cuda_weight_bytes(DType dtype, int n, int k) {
    size_t cells = (size_t)n * (size_t)padded(k);
    return dtype == DT_F32    ? cells * 4
           : dtype == DT_BF16 ? cells * 2
                              : ((cells + 15) & ~(size_t)15) + cells / BLK * 2;
}

void cuda_weight_lay(CudaWeight *w, DType dtype, int n, int k, const void *rows, void *dst,
                     const void *base) {
    int ld = padded(k), kb = ld / BLK;
    size_t cells = (size_t)n * (size_t)ld, scales = (cells + 15) & ~(size_t)15;
    CudaWeight to = { dtype, n, k, ld, base, NULL };
    memset(dst, 0, cuda_weight_bytes(dtype, n, k));
    if (dtype == DT_Q8) to.scale = (const uint16_t *)(const void *)((const char *)base + scales);
    for (int row = 0; row < n; row++) {
        if (dtype != DT_Q8) {
            size_t elem = dtype == DT_F32 ? 4 : 2;
            memcpy((char *)dst + (size_t)row * (size_t)ld * elem,
                   (const char *)rows + (size_t)row * (size_t)k * elem, (size_t)k * elem);
            continue;
        }
        const Q8Block *q = (const Q8Block *)rows + (size_t)row * (size_t)kb;
        for (int b = 0; b < kb; b++) {
            size_t at = (size_t)row * (size_t)kb + (size_t)b;
            memcpy((char *)dst + at * BLK, q[b].q, BLK);
            memcpy((char *)dst + scales + at * 2, &q[b].scale, 2);
        }
    }
    *w = to;
}

#ifdef SCB_CUDA
// Eight channels of one row as they are loaded, 16 bytes of bf16, then as numbers.
template <int DT> struct Eight;
template <> struct Eight<DT_BF16> { uint4 v; };
template <> struct Eight<DT_F32> { float4 lo, hi; };
template <> struct Eight<DT_Q8> { uint2 v; uint16_t scale; };

__device__ static inline void eight_load(Eight<DT_BF16> *e, const CudaWeight &w, int row, int at) {
    e->v = *(const uint4 *)((const uint16_t *)w.rows + (size_t)row * w.ld + at * 8);
}
__device__ static inline void eight_load(Eight<DT_F32> *e, const CudaWeight &w, int row, int at) {
    const float4 *p = (const float4 *)((const float *)w.rows + (size_t)row * w.ld + at * 8);
    e->lo = p[0];
    e->hi = p[1];
}
__device__ static inline void eight_load(Eight<DT_Q8> *e, const CudaWeight &w, int row, int at) {
    e->v = *(const uint2 *)((const int8_t *)w.rows + (size_t)row * w.ld + at * 8);
    e->scale = w.scale[(size_t)row * (w.ld / BLK) + at / 4];
}

__device__ static inline void eight_wide(const Eight<DT_BF16> &e, float x[8]) {
    const uint32_t u[4] = { e.v.x, e.v.y, e.v.z, e.v.w };
    for (int i = 0; i < 4; i++) {
        x[2 * i] = bits_f32(u[i] << 16);
        x[2 * i + 1] = bits_f32(u[i] & 0xffff0000u);
    }
}
__device__ static inline void eight_wide(const Eight<DT_F32> &e, float x[8]) {
    x[0] = e.lo.x; x[1] = e.lo.y; x[2] = e.lo.z; x[3] = e.lo.w;
    x[4] = e.hi.x; x[5] = e.hi.y; x[6] = e.hi.z; x[7] = e.hi.w;
}
__device__ static inline void eight_wide(const Eight<DT_Q8> &e, float x[8]) {
    float scale = f16_f32(e.scale);
    for (int i = 0; i < 8; i++) {
        uint32_t u = i < 4 ? e.v.x : e.v.y;
        x[i] = round_bf16(scale * (float)(int8_t)(u >> (i % 4 * 8)));
    }
}

// the same as operand registers: channels (0, 1), (2, 3), (4, 5), (6, 7)
__device__ static inline void eight_pairs(const Eight<DT_BF16> &e, uint32_t r[4]) {
    r[0] = e.v.x; r[1] = e.v.y; r[2] = e.v.z; r[3] = e.v.w;
}
__device__ static inline void eight_pairs(const Eight<DT_Q8> &e, uint32_t r[4]) {
    float x[8];
    eight_wide(e, x);
    for (int i = 0; i < 4; i++) r[i] = bf16_pair(x[2 * i], x[2 * i + 1]);
}

// grid n, block EMBED_THREADS: row ids[i] of the table, eight channels a thread
enum { EMBED_THREADS = 128 };
template <int DT>
__global__ static void embed_k(CudaWeight table, const int32_t *ids, float *x) {
    float *to = x + (size_t)blockIdx.x * table.k;
    for (int at = (int)threadIdx.x; at < table.ld / 8; at += EMBED_THREADS) {
        Eight<DT> e;
        float y[8];
        eight_load(&e, table, ids[blockIdx.x], at);
        eight_wide(e, y);
        for (int i = 0; i < 8 && at * 8 + i < table.k; i++) to[at * 8 + i] = y[i];
    }
}

void cuda_embed(const CudaWeight *table, const int32_t *ids, float *x, int n, void *stream) {
    if (!n) return;
    if (table->dtype == DT_Q8)
        LAUNCH(embed_k<DT_Q8>, n, EMBED_THREADS, 0, stream, *table, ids, x);
    else LAUNCH(embed_k<DT_BF16>, n, EMBED_THREADS, 0, stream, *table, ids, x);
}

// ---------------------------------------------------------------------------
// Few rows: bytes of weights are the cost. Up to 4 rows a warp reads two rows of W side by side,
// 512 contiguous bytes each at a time, four such pieces on their way; where W has few rows, `split`
// warps share them and are added in order. Activations come from the first cache, each 16 bytes of
// them serve 32 bytes of weights. 5 to 16 rows are one tensor-core tile (below).
enum { MATVEC_WARPS = 8, MATVEC_AHEAD = 4, FMA_ROWS = 4, FMA_COLS = 2, MMA_COLS = 16,
       MATVEC_FILL = 4096 };    // warps that keep the memory of the largest device busy

typedef struct {
    CudaJob job[CUDA_JOBS];
    int n_jobs, rows, split;
    const void *act;
} Matvec;

// the job of a block, and its first column there; each block has cols columns
__device__ static inline const CudaJob &job_of(const Matvec &a, int cols, int *first) {
    int j = 0, at = (int)blockIdx.x;
    while (j < a.n_jobs - 1 && at >= CEIL_DIV(a.job[j].w.n, cols))
        at -= CEIL_DIV(a.job[j++].w.n, cols);
    *first = at * cols;
    return a.job[j];
}

__device__ static inline void column_out(const CudaJob &job, int row, int col, float sum) {
    float *y = job.y + (size_t)row * job.ldy + col;
    *y = job.bias ? sum + job.bias[col] : job.add ? *y + sum : sum;
}

template <int DT, int M>
__global__ __launch_bounds__(MATVEC_WARPS * 32) static void matvec_fma(Matvec a) {
    SHARED(float, sums, MATVEC_WARPS * FMA_COLS * M);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, first;
    const CudaJob &job = job_of(a, MATVEC_WARPS / a.split * FMA_COLS, &first);
    const CudaWeight &w = job.w;
    int col = first + warp / a.split * FMA_COLS, eights = w.ld / 8, step = a.split * 32;
    float sum[FMA_COLS][M] = { { 0.0f } };
    for (int at = warp % a.split * 32 + lane; at < eights; at += step * MATVEC_AHEAD) {
        Eight<DT> e[MATVEC_AHEAD][FMA_COLS];
        UNROLL for (int i = 0; i < MATVEC_AHEAD; i++)
            UNROLL for (int c = 0; c < FMA_COLS; c++)
                if (at + i * step < eights)
                    eight_load(&e[i][c], w, col + c < w.n ? col + c : w.n - 1, at + i * step);
        UNROLL for (int i = 0; i < MATVEC_AHEAD; i++) {
            if (at + i * step >= eights) break;
            float x[M][8], y[8];
            const CudaWeight rows = { DT == DT_F32 ? DT_F32 : DT_BF16, a.rows, w.k, w.ld, a.act,
                                      NULL };
            UNROLL for (int m = 0; m < M; m++) {
                Eight<DT == DT_F32 ? DT_F32 : DT_BF16> in;
                eight_load(&in, rows, m < a.rows ? m : 0, at + i * step);
                eight_wide(in, x[m]);
            }
            UNROLL for (int c = 0; c < FMA_COLS; c++) {
                eight_wide(e[i][c], y);
                UNROLL for (int m = 0; m < M; m++)
                    UNROLL for (int k = 0; k < 8; k++) sum[c][m] = fmaf(x[m][k], y[k], sum[c][m]);
            }
        }
    }
    UNROLL for (int c = 0; c < FMA_COLS; c++)
        UNROLL for (int m = 0; m < M; m++) {
            for (int s = 16; s; s >>= 1)
                sum[c][m] += __shfl_xor_sync(0xffffffffu, sum[c][m], s);
            if (lane == 0) sums[(warp * FMA_COLS + c) * M + m] = sum[c][m];
        }
    __syncthreads();
    int t = (int)threadIdx.x, c = t / M, m = t % M;
    if (t >= MATVEC_WARPS / a.split * FMA_COLS * M || first + c >= w.n || m >= a.rows) return;
    float all = 0.0f;
    for (int s = 0; s < a.split; s++)
        all += sums[((c / FMA_COLS * a.split + s) * FMA_COLS + c % FMA_COLS) * M + m];
    column_out(job, m, first + c, all);
}

// 5 to 16 rows. A dot product does not care for the order of its channels, so lane 4g + c takes the
// eight channels from 8c on of every 32, of activation rows g and g + 8 and of two columns: the 16
// bytes from memory are the operands of two mma steps as they come, and nothing passes through
// shared memory. The eight warps of a block share its 16 columns, each takes every eighth block of
// channels.
template <int DT>
__global__ __launch_bounds__(MATVEC_WARPS * 32) static void matvec_mma(Matvec a) {
    SHARED(float, sums, MATVEC_WARPS * 16 * MMA_COLS);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, c = lane % 4;
    int first, row, col;
    const CudaJob &job = job_of(a, MMA_COLS, &first);
    const CudaWeight &w = job.w;
    const CudaWeight rows = { DT_BF16, a.rows, w.k, w.ld, a.act, NULL };
    float d[2][4] = { { 0.0f } };
    UNROLL_BY(4) for (int b = warp; b < w.ld / BLK; b += MATVEC_WARPS) {
        Eight<DT> e[2];
        Eight<DT_BF16> in[2];
        uint32_t x[2][4], y[4];
        UNROLL for (int i = 0; i < 2; i++) {
            col = first + 8 * i + g;
            eight_load(&e[i], w, col < w.n ? col : w.n - 1, b * 4 + c);
            eight_load(&in[i], rows, g + 8 * i < a.rows ? g + 8 * i : 0, b * 4 + c);
            eight_pairs(in[i], x[i]);
        }
        const uint32_t lo[4] = { x[0][0], x[1][0], x[0][1], x[1][1] },
                       hi[4] = { x[0][2], x[1][2], x[0][3], x[1][3] };
        UNROLL for (int i = 0; i < 2; i++) {
            eight_pairs(e[i], y);
            mma_bf16(d[i], lo, y);
            mma_bf16(d[i], hi, y + 2);
        }
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 4; k++)
            sums[(warp * 16 + g + k / 2 * 8) * MMA_COLS + 8 * i + 2 * c + k % 2] = d[i][k];
    __syncthreads();
    row = (int)threadIdx.x / MMA_COLS;
    col = (int)threadIdx.x % MMA_COLS;
    if (row >= a.rows || first + col >= w.n) return;
    float all = 0.0f;
    for (int s = 0; s < MATVEC_WARPS; s++) all += sums[(s * 16 + row) * MMA_COLS + col];
    column_out(job, row, first + col, all);
}

template <int DT, int M> static void launch_fma(const Matvec &a, void *stream) {
    int blocks = 0;
    for (int j = 0; j < a.n_jobs; j++)
        blocks += CEIL_DIV(a.job[j].w.n, MATVEC_WARPS / a.split * FMA_COLS);
    LAUNCH((matvec_fma<DT, M>), blocks, MATVEC_WARPS * 32, 0, stream, a);
}

// a few rows of one dtype; those beyond the kernels' most are the next launch
template <int DT> static void launch_matvec(Matvec a, int columns, void *stream) {
    int ld = a.job[0].w.ld;
    if (DT != DT_F32 && a.rows > FMA_ROWS) {
        int blocks = 0;
        for (int j = 0; j < a.n_jobs; j++) blocks += CEIL_DIV(a.job[j].w.n, MMA_COLS);
        LAUNCH(matvec_mma<DT == DT_F32 ? DT_BF16 : DT>, blocks, MATVEC_WARPS * 32, 0, stream, a);
        return;
    }
    for (a.split = 1; a.split < MATVEC_WARPS && columns / FMA_COLS * a.split < MATVEC_FILL &&
                      a.split * 2 * 256 <= ld;)
        a.split *= 2;
    for (int left = a.rows; left > 0; left -= FMA_ROWS) {
        a.rows = left < FMA_ROWS ? left : FMA_ROWS;
        if (a.rows == 1) launch_fma<DT, 1>(a, stream);
        else if (a.rows == 2) launch_fma<DT, 2>(a, stream);
        else launch_fma<DT, FMA_ROWS>(a, stream);
        a.act = (const char *)a.act + (size_t)FMA_ROWS * ld * (DT == DT_F32 ? 4 : 2);
        for (int j = 0; j < a.n_jobs; j++) a.job[j].y += FMA_ROWS * a.job[j].ldy;
    }
}

void cuda_matvec(const CudaJob *jobs, int n_jobs, const void *act, int rows, void *stream) {
    Matvec a;
    int columns = 0;
    CHECK(n_jobs <= CUDA_JOBS && rows >= 1 && rows <= MATVEC_MOST, "a matvec of %d jobs, %d rows",
          n_jobs, rows);
    memset(&a, 0, sizeof a);
    for (int j = 0; j < n_jobs; j++) {
        CHECK(jobs[j].w.dtype == jobs[0].w.dtype && jobs[j].w.ld == jobs[0].w.ld,
              "jobs of one matvec that differ in kind");
        a.job[j] = jobs[j];
        columns += jobs[j].w.n;
    }
    a.n_jobs = n_jobs;
    a.rows = rows;
    a.act = act;
    if (jobs[0].w.dtype == DT_F32) launch_matvec<DT_F32>(a, columns, stream);
    else if (jobs[0].w.dtype == DT_BF16) launch_matvec<DT_BF16>(a, columns, stream);
    else launch_matvec<DT_Q8>(a, columns, stream);
}

// ---------------------------------------------------------------------------
// Many rows: cuBLASLt. It counts in columns, so y^T (n, rows) = W (n, k) x^T (k, rows), where the
// row-major W and x are already the transposes it wants. Split sums may be added in fp32 alone. How
// a shape is computed is asked once and kept: asking takes longer than a small product.
typedef struct {
    int rows, n, ld;
    size_t ldy;
    DType dtype;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
} GemmShape;

enum { GEMM_SHAPES = 64 };
struct CudaGemm {
    cublasLtHandle_t blas;
    cublasLtMatmulDesc_t product;
    cublasLtMatmulPreference_t prefer;
    GemmShape shape[GEMM_SHAPES];
    int n_shapes, oldest;
    void *workspace;
    uint16_t *unpacked;         // a q8 matrix as bf16
    size_t unpacked_bytes;
};

CudaGemm *cuda_gemm_open(size_t unpacked) {
    CudaGemm *g = (CudaGemm *)xrealloc(NULL, sizeof *g);
    cublasOperation_t trans = CUBLAS_OP_T;
    uint32_t fp32 = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint64_t space = GEMM_WORKSPACE;
    uint32_t aligned = 16;
    memset(g, 0, sizeof *g);
    BLAS_OK(cublasLtCreate(&g->blas));
    BLAS_OK(cublasLtMatmulDescCreate(&g->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_OK(cublasLtMatmulDescSetAttribute(g->product, CUBLASLT_MATMUL_DESC_TRANSA, &trans,
                                           sizeof trans));
    BLAS_OK(cublasLtMatmulPreferenceCreate(&g->prefer));
    BLAS_OK(cublasLtMatmulPreferenceSetAttribute(
        g->prefer, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &fp32, sizeof fp32));
    BLAS_OK(cublasLtMatmulPreferenceSetAttribute(
        g->prefer, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space, sizeof space));
    static const cublasLtMatmulPreferenceAttributes_t operands[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES };
    for (int i = 0; i < 4; i++)         // y may begin with any row
        BLAS_OK(cublasLtMatmulPreferenceSetAttribute(g->prefer, operands[i], &aligned,
                                                     sizeof aligned));
    CUDA_OK(cudaMalloc(&g->workspace, GEMM_WORKSPACE));
    if (unpacked) CUDA_OK(cudaMalloc(&g->unpacked, unpacked));
    g->unpacked_bytes = unpacked;
    return g;
}

static void gemm_shape_drop(GemmShape *s) {
    BLAS_OK(cublasLtMatrixLayoutDestroy(s->w));
    BLAS_OK(cublasLtMatrixLayoutDestroy(s->x));
    BLAS_OK(cublasLtMatrixLayoutDestroy(s->y));
}

void cuda_gemm_close(CudaGemm *g) {
    if (!g) return;
    for (int i = 0; i < g->n_shapes; i++) gemm_shape_drop(&g->shape[i]);
    BLAS_OK(cublasLtMatmulPreferenceDestroy(g->prefer));
    BLAS_OK(cublasLtMatmulDescDestroy(g->product));
    BLAS_OK(cublasLtDestroy(g->blas));
    CUDA_OK(cudaFree(g->workspace));
    CUDA_OK(cudaFree(g->unpacked));
    free(g);
}

// a shape that was asked before, or the oldest one's place
static const GemmShape *gemm_shape(CudaGemm *g, const CudaJob *job, int rows) {
    const CudaWeight *w = &job->w;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    for (int i = 0; i < g->n_shapes; i++) {
        const GemmShape *s = &g->shape[i];
        if (s->rows == rows && s->n == w->n && s->ld == w->ld && s->ldy == job->ldy &&
            s->dtype == w->dtype)
            return s;
    }
    GemmShape *s = &g->shape[g->n_shapes < GEMM_SHAPES ? g->n_shapes : g->oldest];
    if (g->n_shapes < GEMM_SHAPES) g->n_shapes++;
    else {
        gemm_shape_drop(s);
        g->oldest = (g->oldest + 1) % GEMM_SHAPES;
    }
    cudaDataType_t in = w->dtype == DT_F32 ? CUDA_R_32F : CUDA_R_16BF;
    s->rows = rows;
    s->n = w->n;
    s->ld = w->ld;
    s->ldy = job->ldy;
    s->dtype = w->dtype;
    BLAS_OK(cublasLtMatrixLayoutCreate(&s->w, in, (uint64_t)w->ld, (uint64_t)w->n, w->ld));
    BLAS_OK(cublasLtMatrixLayoutCreate(&s->x, in, (uint64_t)w->ld, (uint64_t)rows, w->ld));
    BLAS_OK(cublasLtMatrixLayoutCreate(&s->y, CUDA_R_32F, (uint64_t)w->n, (uint64_t)rows,
                                       (int64_t)job->ldy));
    BLAS_OK(cublasLtMatmulAlgoGetHeuristic(g->blas, g->product, s->w, s->x, s->y, s->y, g->prefer,
                                           1, &best, &found));
    CHECK(found == 1, "cuBLASLt has no product of %d rows, %d columns, %d channels", rows, w->n,
          w->ld);
    s->algo = best.algo;
    return s;
}

// grid: (n ld) / 8 threads; eight channels each
__global__ static void q8_unpacked(CudaWeight w, uint16_t *to) {
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    int eights = w.ld / 8;
    Eight<DT_Q8> e;
    uint32_t r[4];
    if (at >= (size_t)w.n * eights) return;
    eight_load(&e, w, (int)(at / eights), (int)(at % eights));
    eight_pairs(e, r);
    *(uint4 *)(to + at * 8) = make_uint4(r[0], r[1], r[2], r[3]);
}

// y (rows, n) <- bias (n)
__global__ static void bias_rows(float *y, size_t ldy, const float *bias, int n) {
    int col = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (col < n) y[blockIdx.y * ldy + col] = bias[col];
}

void cuda_gemm(CudaGemm *g, const CudaJob *job, const void *act, int rows, void *stream) {
    const GemmShape *s = gemm_shape(g, job, rows);
    const CudaWeight *w = &job->w;
    const void *weights = w->rows;
    float one = 1.0f, onto = job->add || job->bias ? 1.0f : 0.0f;
    enum { THREADS = 256 };
    if (w->dtype == DT_Q8) {
        size_t cells = (size_t)w->n * w->ld;
        CHECK(cells * 2 <= g->unpacked_bytes, "no room to unpack %d x %d weights", w->n, w->ld);
        LAUNCH(q8_unpacked, (unsigned)CEIL_DIV(cells / 8, (size_t)THREADS), THREADS, 0, stream, *w,
               g->unpacked);
        weights = g->unpacked;
    }
    if (job->bias) {
        dim3 grid((unsigned)CEIL_DIV(w->n, (int)THREADS), (unsigned)rows);
        LAUNCH(bias_rows, grid, THREADS, 0, stream, job->y, job->ldy, job->bias, w->n);
    }
    BLAS_OK(cublasLtMatmul(g->blas, g->product, &one, weights, s->w, act, s->x, &onto, job->y, s->y,
                           job->y, s->y, &s->algo, g->workspace, GEMM_WORKSPACE,
                           (cudaStream_t)stream));
}

// jobs of one kind that share the act: as many as a launch takes
static int same_kind(const LinearJob *jobs, int n) {
    int m = 1;
    while (m < n && m < CUDA_JOBS && jobs[m].w->dtype == jobs[0].w->dtype) m++;
    return m;
}

void cuda_linear(CudaGemm *g, const LinearJob *jobs, int n_jobs, const void *act, int rows,
                 void *stream) {
    for (int j = 0, n; j < n_jobs; j += n) {
        CudaJob job[CUDA_JOBS];
        n = same_kind(jobs + j, n_jobs - j);
        for (int i = 0; i < n; i++) {
            const LinearJob *from = &jobs[j + i];
            CudaJob one = { cuda_weight(from->w), from->bias, from->y, from->ldy, from->add };
            CHECK(!from->rows, "a product on the device whose rows go to places of their own");
            job[i] = one;
        }
        if (rows <= MATVEC_MOST) cuda_matvec(job, n, act, rows, stream);
        else for (int i = 0; i < n; i++) cuda_gemm(g, &job[i], act, rows, stream);
    }
}
#endif
