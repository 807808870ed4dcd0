// Linear layers: cuda_matvec (1 to 16 rows) and cuda_gemm (any) against linear(), every dtype,
// columns and channels on both sides of what a warp and a block take, bias, residual, jobs of one
// call.
#include "products.h"
#include "test/cuda/twin.h"
#include <vector>

// Sums of k products in another order: fp32 rounding of about sqrt(k) terms of one size
static const double TOLERANCE = 2e-6;

typedef struct {
    Weight host;
    CudaWeight device;
    std::vector<char> tiles, rows;
    char *base;
} Both;

static void weight_make(Both *b, DType dtype, int n, int k, uint64_t seed) {
    int kb = CEIL_DIV(k, BLK);
    size_t cells = (size_t)n * (size_t)k;
    if (dtype == DT_F32) {
        b->rows.resize(cells * 4);
        twin_fill((float *)(void *)b->rows.data(), cells, seed);
    } else if (dtype == DT_BF16) {
        b->rows.resize(cells * 2);
        for (size_t i = 0; i < cells; i++)
            ((uint16_t *)(void *)b->rows.data())[i] = f32_bf16(twin_value(seed, i));
    } else {
        b->rows.resize((size_t)n * (size_t)kb * sizeof(Q8Block));
        Q8Block *q = (Q8Block *)(void *)b->rows.data();
        for (int i = 0; i < n * kb; i++) {
            q[i].scale = (uint16_t)(0x1c00 + i % 512);          // 0.004 to 0.006
            for (int c = 0; c < BLK; c++)
                q[i].q[c] = i % kb * BLK + c < k
                                ? (int8_t)(127 * twin_value(seed, (size_t)i * BLK + (size_t)c))
                                : (int8_t)0;
        }
    }
    Weight w = { dtype, n, k, NULL, NULL };
    b->tiles.resize(weight_bytes(dtype, n, k) + 64);
    w.tiles = (void *)(((uintptr_t)b->tiles.data() + 63) & ~(uintptr_t)63);
    weight_pack(&w, b->rows.data());
    b->host = w;
    std::vector<char> laid(cuda_weight_bytes(dtype, n, k));
    b->base = device_array<char>(laid.size());
    cuda_weight_lay(&b->device, dtype, n, k, b->rows.data(), laid.data(), b->base);
    CUDA_OK(cudaMemcpy(b->base, laid.data(), laid.size(), cudaMemcpyHostToDevice));
}

enum { PLAIN, BIAS, ADD, WAYS };

// gemm NULL: cuda_matvec
static void compare(CudaGemm *gemm, DType dtype, int rows, int k, const int *columns, int n_jobs) {
    MulKind kind = mul_kind(dtype);
    int ld = padded(k);
    std::vector<float> x((size_t)rows * (size_t)k);
    std::vector<char> act(act_bytes(kind, rows, k) + 64);
    void *packed = (void *)(((uintptr_t)act.data() + 63) & ~(uintptr_t)63);
    std::vector<uint16_t> narrow((size_t)rows * (size_t)ld);
    std::vector<float> wide((size_t)rows * (size_t)ld);
    twin_fill(x.data(), x.size(), 7);
    act_pack(kind, packed, x.data(), (size_t)k, rows, k);
    for (int i = 0; i < rows * k; i++) {
        size_t at = (size_t)(i / k) * (size_t)ld + (size_t)(i % k);
        narrow[at] = f32_bf16(x[(size_t)i]);
        wide[at] = x[(size_t)i];
    }
    void *on_device = dtype == DT_F32 ? (void *)to_device(wide.data(), wide.size())
                                      : (void *)to_device(narrow.data(), narrow.size());
    std::vector<Both> w((size_t)n_jobs);
    std::vector<std::vector<float>> y((size_t)n_jobs), bias((size_t)n_jobs);
    std::vector<LinearJob> host;
    std::vector<CudaJob> device;
    for (int j = 0; j < n_jobs; j++) {
        int n = columns[j], way = (j + rows) % WAYS;
        size_t cells = (size_t)rows * (size_t)(n + 3);          // rows lie n + 3 apart
        weight_make(&w[(size_t)j], dtype, n, k, (uint64_t)(j + 1));
        y[(size_t)j].resize(cells);
        twin_fill(y[(size_t)j].data(), cells, 11);
        bias[(size_t)j].resize((size_t)n);
        twin_fill(bias[(size_t)j].data(), (size_t)n, 13);
        LinearJob a = { &w[(size_t)j].host, way == BIAS ? bias[(size_t)j].data() : NULL,
                        y[(size_t)j].data(), (size_t)(n + 3), way == ADD, NULL };
        CudaJob b = { w[(size_t)j].device,
                      way == BIAS ? to_device(bias[(size_t)j].data(), (size_t)n) : NULL,
                      to_device(y[(size_t)j].data(), cells), (size_t)(n + 3), way == ADD };
        host.push_back(a);
        device.push_back(b);
    }
    if (!gemm) cuda_matvec(device.data(), n_jobs, on_device, rows, twin_stream());
    for (int j = 0; gemm && j < n_jobs; j++)
        cuda_gemm(gemm, &device[(size_t)j], on_device, rows, twin_stream());
    linear(kind, host.data(), n_jobs, packed, rows);
    for (int j = 0; j < n_jobs; j++) {
        std::vector<float> got(y[(size_t)j].size());
        char what[96];
        from_device(got.data(), device[(size_t)j].y, got.size());
        snprintf(what, sizeof what, "%s, dtype %d, %d rows, k %d, job %d of %d columns",
                 gemm ? "gemm" : "matvec", dtype, rows, k, j, columns[j]);
        twin_near(what, got.data(), y[(size_t)j].data(), got.size(), TOLERANCE * sqrt((double)k));
        cudaFree(device[(size_t)j].y);
        cudaFree((void *)device[(size_t)j].bias);
        cudaFree(w[(size_t)j].base);
    }
    cudaFree(on_device);
}

// make try K=matvec: gate and up of an 8B model for one token, for a batch, for a chunk
static void times(void) {
    enum { N = 14336, K = 4096, MOST = 512 };
    const int rows[] = { 1, 16, MOST };
    const DType dtypes[] = { DT_BF16, DT_Q8 };
    CudaGemm *gemm = cuda_gemm_open((size_t)N * K * 2);
    uint16_t *act = device_zeros<uint16_t>((size_t)MOST * K);
    float *y = device_zeros<float>((size_t)2 * MOST * N);
    for (int d = 0; d < 2; d++) {
        size_t bytes = cuda_weight_bytes(dtypes[d], N, K);
        char *w = device_zeros<char>(2 * bytes);
        for (int i = 0; i < 3; i++) {
            CudaJob job[2];
            memset(job, 0, sizeof job);
            for (int j = 0; j < 2; j++) {
                const char *at = w + (size_t)j * bytes;
                CudaWeight one = { dtypes[d], N, K, K, at, NULL };
                if (d) one.scale = (const uint16_t *)(const void *)(at + (size_t)N * K);
                job[j].w = one;
                job[j].y = y + (size_t)j * MOST * N;
                job[j].ldy = N;
            }
            char label[48];
            snprintf(label, sizeof label, "2 x %d x %d %s, %d rows", (int)N, (int)K,
                     d ? "q8" : "bf16", rows[i]);
            twin_time(label, [&] {
                if (rows[i] <= MATVEC_MOST) cuda_matvec(job, 2, act, rows[i], twin_stream());
                for (int j = 0; rows[i] > MATVEC_MOST && j < 2; j++)
                    cuda_gemm(gemm, &job[j], act, rows[i], twin_stream());
            });
        }
        cudaFree(w);
    }
    cuda_gemm_close(gemm);
    cudaFree(act);
    cudaFree(y);
}

int main(void) {
    Err err;
    int none = twin_begin();
    if (none) return none;
    if (twin_timing()) { times(); return 0; }
    if (cpu_init(1, &err)) die_code(EXIT_USER, "%s", err.msg);
    CudaGemm *gemm = cuda_gemm_open((size_t)129 * 128 * 2);
    const DType dtypes[] = { DT_BF16, DT_F32, DT_Q8 };
    const int columns[][3] = { { 1, 2, 3 }, { 15, 16, 17 }, { 63, 33, 5 }, { 129, 31, 8 } };
    const int channels[] = { 1, 31, 32, 33, 255, 256, 257, 576, 1100 };
    for (size_t d = 0; d < COUNTOF(dtypes); d++) {
        for (size_t i = 0; i < COUNTOF(channels); i++)
            compare(NULL, dtypes[d], 1 + (int)i % 3, channels[i], columns[i % COUNTOF(columns)], 3);
        for (int rows = 3; rows <= MATVEC_MOST; rows += rows < 5 ? 1 : 5)
            compare(NULL, dtypes[d], rows, 288, columns[rows % (int)COUNTOF(columns)], 2);
        compare(NULL, dtypes[d], MATVEC_MOST, 320, columns[1], 3);
        for (int rows = 15; rows <= 65; rows += 25)             // twice: the second finds its shape
            for (int again = 0; again < 2; again++)
                compare(gemm, dtypes[d], rows, 33 + 64 * again, columns[rows % 4], 3);
        for (int rows = 1; rows < 80; rows++) compare(gemm, dtypes[d], rows, 5, columns[0], 1);
    }
    cuda_gemm_close(gemm);
    return twin_end("test_matvec");
}
