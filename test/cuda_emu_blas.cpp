// cuda_emu_blas.cpp - the cuBLASLt of cuda_emu.h: plain products, checked for what the library
// would do silently: matrices outside of their memory, sums in bf16.
#include "cuda_emu.h"
#include "../base.h"

// matrices are column-major
struct EmuBlas {};
struct EmuMatmul { int32_t ta, tb; };      // 0, or CUBLAS_OP_T
struct EmuLayout { cudaDataType_t type; uint64_t rows, cols; int64_t ld, stride; int32_t batch; };
struct EmuPreference { uint64_t workspace; uint32_t schemes; };

const char *cublasLtGetStatusString(cublasStatus_t s) {
    return s == CUBLAS_STATUS_SUCCESS ? "success"
         : s == CUBLAS_STATUS_INVALID_VALUE ? "invalid value" : "not supported";
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) {
    *h = new EmuBlas();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) {
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *d = new EmuMatmul();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attr, const void *v,
                                              size_t bytes) {
    if (bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(attr == CUBLASLT_MATMUL_DESC_TRANSA ? &d->ta : &d->tb, v, 4);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    if (ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    *l = new EmuLayout{ type, rows, cols, ld, 0, 1 };
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attr,
                                                const void *v, size_t bytes) {
    bool count = attr == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
    if (bytes != (count ? 4u : 8u)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(count ? (void *)&l->batch : (void *)&l->stride, v, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = new EmuPreference{ 0, UINT32_MAX };
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *v, size_t bytes) {
    bool space = attr == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    if (bytes != (space ? 8u : 4u)) return CUBLAS_STATUS_INVALID_VALUE;
    if (attr >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES) return CUBLAS_STATUS_SUCCESS;
    memcpy(space ? (void *)&p->workspace : (void *)&p->schemes, v, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

namespace {
struct Product {
    EmuMatmul d;
    EmuLayout la, lb, lc, lout;
    const char *a, *b, *c;
    char *out;
    float alpha, beta;
};

size_t elem(const EmuLayout &l) { return l.type == CUDA_R_16BF ? 2 : 4; }
float element(const EmuLayout &l, const char *p, size_t at) {
    float f;
    uint16_t h;
    if (l.type == CUDA_R_16BF) { memcpy(&h, p + 2 * at, 2); return bf16_f32(h); }
    memcpy(&f, p + 4 * at, 4);
    return f;
}

// every column of every matrix is checked for bounds and, where it is read, for being written
void layout_check(const EmuLayout &l, const char *p, bool reads, const char *verb) {
    if (!emu_on_device(p)) {
        emu_violation("a matrix of cublasLtMatmul is not in device memory");
        return;
    }
    if ((uintptr_t)p % 16) emu_violation("a matrix of cublasLtMatmul is not aligned to 16 bytes");
    for (int32_t n = 0; n < l.batch; n++)
        for (uint64_t j = 0; j < l.cols; j++)
            emu_check(p + elem(l) * ((size_t)n * (size_t)l.stride + j * (size_t)l.ld),
                       l.rows * elem(l), reads, verb);
}

void product_run(const void *call) {
    Product q;
    memcpy(&q, call, sizeof q);
    uint64_t m = q.lout.rows, n = q.lout.cols, k = q.d.ta == CUBLAS_OP_N ? q.la.cols : q.la.rows;
    layout_check(q.la, q.a, true, "cublasLtMatmul reads A:");
    layout_check(q.lb, q.b, true, "cublasLtMatmul reads B:");
    if (q.beta != 0) layout_check(q.lc, q.c, true, "cublasLtMatmul reads C:");
    layout_check(q.lout, q.out, false, "cublasLtMatmul writes D:");
    size_t ai = q.d.ta ? (size_t)q.la.ld : 1, ak = q.d.ta ? 1 : (size_t)q.la.ld;
    size_t bj = q.d.tb ? 1 : (size_t)q.lb.ld, bk = q.d.tb ? (size_t)q.lb.ld : 1;
    for (size_t t = 0; t < (size_t)q.lout.batch; t++)
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++) {
                size_t a = t * (size_t)q.la.stride + i * ai, b = t * (size_t)q.lb.stride + j * bj;
                float sum = 0;
                for (size_t x = 0; x < k; x++)
                    sum = fmaf(element(q.la, q.a, a + x * ak), element(q.lb, q.b, b + x * bk), sum);
                sum *= q.alpha;
                size_t c = t * (size_t)q.lc.stride + j * (size_t)q.lc.ld + i;
                if (q.beta != 0) sum = fmaf(q.beta, element(q.lc, q.c, c), sum);
                size_t at = t * (size_t)q.lout.stride + j * (size_t)q.lout.ld + i;
                uint16_t h = f32_bf16(sum);
                if (q.lout.type == CUDA_R_16BF) memcpy(q.out + 2 * at, &h, 2);
                else memcpy(q.out + 4 * at, &sum, 4);
                emu_written(q.out + elem(q.lout) * at, elem(q.lout));
            }
}

bool shapes_agree(const EmuMatmul *d, const EmuLayout *a, const EmuLayout *b, const EmuLayout *c,
                  const EmuLayout *out) {
    uint64_t m = d->ta ? a->cols : a->rows, k = d->ta ? a->rows : a->cols;
    uint64_t n = d->tb ? b->rows : b->cols, kb = d->tb ? b->cols : b->rows;
    return k == kb && out->rows == m && out->cols == n && c->rows == m && c->cols == n &&
           a->type == b->type && c->type == out->type && a->batch == out->batch &&
           b->batch == out->batch;
}
} // namespace

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t *found, int *n) {
    *n = 0;
    if (wanted < 1 || !shapes_agree(d, a, b, c, out)) return CUBLAS_STATUS_INVALID_VALUE;
    if (p->schemes & CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE && out->type == CUDA_R_16BF)
        emu_violation("asks cuBLASLt for a product that may add up parts in bf16: mask the "
                      "reduction scheme");
    memset(found, 0, sizeof *found);
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t s) {
    if (!shapes_agree(d, la, lb, lc, lout)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!algo)
        emu_violation("cublasLtMatmul without an algorithm chooses one that may add up in bf16");
    if (workspace_bytes && !emu_on_device(workspace))
        emu_violation("the workspace of cublasLtMatmul is not in device memory");
    Product q = { *d, *la, *lb, *lc, *lout, (const char *)a, (const char *)b, (const char *)c,
                  (char *)out, 0, 0 };
    memcpy(&q.alpha, alpha, 4);
    memcpy(&q.beta, beta, 4);
    emu_enqueue(s, product_run, &q, sizeof q);
    return CUBLAS_STATUS_SUCCESS;
}
