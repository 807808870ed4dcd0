// The emulation itself: kernels with one planted mistake each, which must be caught and told apart,
// beside the twin that does it right. On a device this test has nothing to say.
#include "test/cuda/twin.h"

#ifdef CUDA_EMU
static int failures;

// what a launch of 64 threads was caught at, or NULL
template <class... P, class... A>
static const char *caught(void (*kernel)(P...), int blocks, A... a) {
    emu_catch(true);
    LAUNCH(kernel, blocks, 64, 0, twin_stream(), a...);
    CUDA_OK(cudaStreamSynchronize(twin_stream()));
    const char *said = emu_caught();
    return said;
}
static void expect(const char *what, const char *said, const char *words) {
    if (said && words && strstr(said, words)) { printf("    %s\n", said); return; }
    if (!said && !words) return;
    failures++;
    printf("FAIL %s: expected %s, got %s\n", what, words ? words : "nothing",
           said ? said : "nothing");
}

// y_i = x_{63 - i}: through shared memory, with and without its barrier
template <bool BARRIER> __global__ void reverse(float *y, const float *x) {
    SHARED(float, row, 64);
    row[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncthreads();
    y[threadIdx.x] = row[63 - threadIdx.x];
}

// a tile used twice: the second filling needs a barrier before it, too
template <bool BARRIER> __global__ void two_tiles(float *y, const float *x) {
    SHARED(float, tile, 64);
    float sum = 0;
    for (int i = 0; i < 2; i++) {
        tile[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        sum += tile[threadIdx.x ^ 1];
        if (BARRIER) __syncthreads();
    }
    y[threadIdx.x] = sum;
}

template <bool ATOMIC> __global__ void count(int *n) {
    SHARED(int, sum, 1);
    if (threadIdx.x == 0) sum[0] = 0;
    __syncthreads();
    if (ATOMIC) atomicAdd(sum, 1);
    else sum[0]++;
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(n, sum[0]);
}

template <int LAST> __global__ void copy(float *y, const float *x, int n) {
    for (int i = (int)threadIdx.x; i < n + LAST; i += (int)blockDim.x) y[i] = x[i];
}
template <int LAST> __global__ void shared_index(float *y, const float *x) {
    SHARED(float, a, 65);
    SHARED(float, b, 64);
    b[threadIdx.x] = x[threadIdx.x];
    a[threadIdx.x + LAST] = b[threadIdx.x];
    y[threadIdx.x] = a[threadIdx.x + LAST];
}

template <bool EVERYONE> __global__ void divergent(float *y) {
    if (EVERYONE || threadIdx.x < 32) __syncthreads();
    y[threadIdx.x] = 1;
}
template <bool EVERYONE> __global__ void two_barriers(float *y) {
    if (EVERYONE || threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}
template <bool ALL> __global__ void lanes(int *y) {
    int lane = (int)threadIdx.x % 32, sum = lane;
    if (ALL || lane < 16)
        for (int s = ALL ? 16 : 8; s; s >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, s);
    y[threadIdx.x] = sum;
}

template <bool FILL> __global__ void unset(float *y) {
    SHARED(float, row, 64);
    if (FILL || threadIdx.x != 9) row[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x];
}

// lanes of one warp hand values over: __syncwarp orders them, a shuffle does not
template <bool SYNC> __global__ void warp_tile(float *y, const float *x) {
    SHARED(float, row, 64);
    row[threadIdx.x] = x[threadIdx.x];
    if (SYNC) __syncwarp();
    else (void)__shfl_sync(0xffffffffu, 1, 0);
    y[threadIdx.x] = row[threadIdx.x ^ 1];
}

enum { NO_WAIT, NO_BARRIER, TOO_FEW, RIGHT };
template <int HOW> __global__ void background(float *y, const float *x) {
    SHARED(float, row, 64);
    if (threadIdx.x < 16) cp_async16(row + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    cp_async_commit();
    if (HOW == TOO_FEW) cp_async_wait<1>();
    if (HOW == RIGHT || HOW == NO_BARRIER) cp_async_wait<0>();
    if (HOW != NO_BARRIER) __syncthreads();
    y[threadIdx.x] = row[threadIdx.x ^ 32];
}

template <bool OWN> __global__ void blocks_write(float *y) {
    y[OWN ? blockIdx.x * 64 + threadIdx.x : threadIdx.x] = 1;
}
__global__ void vectors(float4 *y, const float *x, int offset) {
    if (threadIdx.x < 8) y[threadIdx.x] = reinterpret_cast<const float4 *>(x + offset)[threadIdx.x];
}
template <bool WRITTEN> __global__ void reads_unset(float *y, const float *x) {
    y[threadIdx.x] = WRITTEN ? 1.0f : x[threadIdx.x];
}

static void planted(void) {
    float host[64] = { 0 };
    float *x = to_device(host, 64), *y = device_array<float>(64), *wide = device_array<float>(256);
    int zero = 0, *n = to_device(&zero, 1), *ints = device_array<int>(64);
    expect("missing barrier", caught(reverse<false>, 1, y, x), "shared array row");
    expect("barrier", caught(reverse<true>, 1, y, x), NULL);
    expect("missing barrier after use", caught(two_tiles<false>, 1, y, x), "no barrier is between");
    expect("barrier after use", caught(two_tiles<true>, 1, y, x), NULL);
    expect("race", caught(count<false>, 1, n), "shared array sum");
    expect("atomics", caught(count<true>, 3, n), NULL);
    int total;
    from_device(&total, n, 1);
    expect("sum of the atomics", total == 3 * 64 ? NULL : "another sum", NULL);
    expect("off by one", caught(copy<1>, 1, y, x, 64), "byte 256 of the 256 bytes");
    expect("to the end", caught(copy<0>, 1, y, x, 64), NULL);
    expect("shared off by one", caught(shared_index<2>, 1, y, x), "byte 260 of the shared array a");
    expect("shared to the end", caught(shared_index<1>, 1, y, x), NULL);
    expect("divergent barrier", caught(divergent<false>, 1, y), "barrier");
    expect("common barrier", caught(divergent<true>, 1, y), NULL);
    expect("two barriers", caught(two_barriers<false>, 1, y), "other threads of the block wait at");
    expect("one barrier", caught(two_barriers<true>, 1, y), NULL);
    expect("lanes that never come", caught(lanes<false>, 1, ints), "shuffle");
    expect("all lanes", caught(lanes<true>, 1, ints), NULL);
    expect("uninitialised shared", caught(unset<false>, 1, y),
           "row (256 bytes), which nobody wrote");
    expect("initialised shared", caught(unset<true>, 1, y), NULL);
    expect("warp without order", caught(warp_tile<false>, 1, y, x), "no barrier is between");
    expect("warp in order", caught(warp_tile<true>, 1, y, x), NULL);
    expect("no wait", caught(background<NO_WAIT>, 1, y, x), "still under way");
    expect("too short a wait", caught(background<TOO_FEW>, 1, y, x), "still under way");
    expect("no barrier after the wait", caught(background<NO_BARRIER>, 1, y, x), "row");
    expect("wait and barrier", caught(background<RIGHT>, 1, y, x), NULL);
    expect("blocks in each other's way", caught(blocks_write<false>, 2, wide), "of block 0");
    expect("blocks apart", caught(blocks_write<true>, 4, wide), NULL);
    expect("misaligned vector", caught(vectors, 1, (float4 *)y, (const float *)x, 1),
           "not aligned");
    expect("aligned vector", caught(vectors, 1, (float4 *)y, (const float *)x, 32), NULL);
    float *fresh = device_array<float>(64);
    expect("uninitialised memory", caught(reads_unset<false>, 1, y, fresh), "which nobody wrote");
    expect("no read", caught(reads_unset<true>, 1, y, fresh), NULL);
    expect("host pointer", caught(copy<0>, 1, y, (const float *)host, 64), "host memory");
    float *pinned;
    CUDA_OK(cudaMallocHost(&pinned, 256));
    memset(pinned, 0, 256);
    expect("pinned memory", caught(copy<0>, 1, y, (const float *)pinned, 64), NULL);
    CUDA_OK(cudaFree(x));
    expect("use after free", caught(copy<0>, 1, y, x, 64), "freed");
    emu_catch(true);
    volatile float peeked = y[0];
    (void)peeked;
    expect("device pointer on the host", emu_caught(), "host code can only copy it");
    emu_catch(false);
    cudaFree(y); cudaFree(wide); cudaFree(n); cudaFree(ints); cudaFree(fresh); cudaFreeHost(pinned);
}

// ---------------------------------------------------------------------------
// Values: what warps, votes and atomics compute

enum { WARP_OPS = 20 };
__global__ void warp_values(uint32_t *y, unsigned mask) {
    unsigned lane = threadIdx.x, v = lane * 7 % 32;
    if (!(mask >> lane & 1)) return;
    uint32_t *o = y + WARP_OPS * lane;
    o[0] = __shfl_sync(mask, v, 3);
    o[1] = __shfl_up_sync(mask, v, 1, 4);
    o[2] = __shfl_down_sync(mask, v, 2, 4);
    o[3] = __shfl_xor_sync(mask, v, 1);
    o[4] = __ballot_sync(mask, v > 9);
    o[5] = (unsigned)__any_sync(mask, v == 7);
    o[6] = (unsigned)__all_sync(mask, v < 32);
    o[7] = __match_any_sync(mask, v / 8);
    o[8] = __reduce_add_sync(mask, v);
    o[9] = __reduce_min_sync(mask, v + 2);
    o[10] = __reduce_max_sync(mask, v);
    o[11] = (unsigned)__reduce_min_sync(mask, (int)v - 16);
    o[12] = (unsigned)__reduce_max_sync(mask, (int)v - 40);
    o[13] = __reduce_and_sync(mask, v | 64);
    o[14] = __reduce_or_sync(mask, v);
    o[15] = __reduce_xor_sync(mask, v);
    o[16] = (uint32_t)__shfl_sync(mask, (uint64_t)v << 32 | 5, 1);
    o[17] = (uint32_t)(__shfl_sync(mask, (uint64_t)v << 32 | 5, 1) >> 32);
    o[18] = (unsigned)__all_sync(mask, v > 0);
    o[19] = (unsigned)__ffs((int)__ballot_sync(mask, v == 14));
}

// the same, lane by lane in plain C
static void warp_expected(uint32_t *o, unsigned lane, unsigned mask) {
    unsigned v[32], at = lane, sum = 0, least = 99, most = 0, both = ~0u, any = 0, odd = 0;
    unsigned same = 0, above = 0, seven = 0, nonzero = 1, fourteen = 0;
    int smin = 99, smax = -99;
    for (unsigned i = 0; i < 32; i++) v[i] = i * 7 % 32;
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        sum += v[i]; both &= v[i] | 64; any |= v[i]; odd ^= v[i];
        if (v[i] + 2 < least) least = v[i] + 2;
        if (v[i] > most) most = v[i];
        if ((int)v[i] - 16 < smin) smin = (int)v[i] - 16;
        if ((int)v[i] - 40 > smax) smax = (int)v[i] - 40;
        if (v[i] / 8 == v[lane] / 8) same |= 1u << i;
        if (v[i] > 9) above |= 1u << i;
        if (v[i] == 7) seven = 1;
        if (v[i] == 0) nonzero = 0;
        if (v[i] == 14) fourteen = i + 1;
    }
    const uint32_t want[WARP_OPS] = {
        v[3], v[at % 4 < 1 ? at : at - 1], v[at % 4 > 1 ? at : at + 2], v[at ^ 1], above, seven, 1,
        same, sum, least, most, (uint32_t)smin, (uint32_t)smax, both, any, odd, 5, v[1], nonzero,
        fourteen
    };
    memcpy(o, want, sizeof want);
}

static void values(void) {
    const unsigned masks[] = { 0xffffffffu, 0x0000ffffu };
    for (int m = 0; m < 2; m++) {
        uint32_t got[32 * WARP_OPS], want[WARP_OPS];
        uint32_t *y = device_array<uint32_t>(32 * WARP_OPS);
        CUDA_OK(cudaMemset(y, 0, sizeof got));
        LAUNCH(warp_values, 1, 32, 0, twin_stream(), y, masks[m]);
        from_device(got, y, 32 * WARP_OPS);
        for (unsigned lane = 0; lane < 32; lane++) {
            if (!(masks[m] >> lane & 1)) continue;
            warp_expected(want, lane, masks[m]);
            for (int i = 0; i < WARP_OPS; i++)
                if (got[lane * WARP_OPS + i] != want[i]) {
                    failures++;
                    printf("FAIL warp operation %d, lane %u: %x, not %x\n", i, lane,
                           got[lane * WARP_OPS + i], want[i]);
                }
        }
        CUDA_OK(cudaFree(y));
    }
}

// ---------------------------------------------------------------------------
// Streams, events, graphs, devices

__global__ void add_one(int *x, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i]++;
}
__global__ void dynamic(int *y) {
    DYN_SHARED(int, row);
    row[threadIdx.x] = (int)threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

static void streams_and_events(void) {
    enum { N = 100 };
    cudaStream_t a, b;
    cudaEvent_t done;
    int *host, *x = device_array<int>(N), *y = device_array<int>(N);
    CUDA_OK(cudaMallocHost(&host, N * sizeof *host));
    CUDA_OK(cudaStreamCreate(&a));
    CUDA_OK(cudaStreamCreate(&b));
    CUDA_OK(cudaEventCreate(&done));
    for (int i = 0; i < N; i++) host[i] = i;
    CUDA_OK(cudaMemcpyAsync(x, host, N * sizeof *x, cudaMemcpyHostToDevice, a));
    LAUNCH(add_one, 2, 64, 0, a, x, N);
    emu_catch(true);
    CUDA_OK(cudaMemcpyAsync(y, x, N * sizeof *x, cudaMemcpyDeviceToDevice, b));
    LAUNCH(add_one, 2, 64, 0, b, y, N);
    CUDA_OK(cudaStreamSynchronize(b));
    expect("no event between two streams", emu_caught(), "which nobody wrote");
    CUDA_OK(cudaEventRecord(done, a));
    CUDA_OK(cudaStreamWaitEvent(b, done, 0));
    CUDA_OK(cudaMemcpyAsync(y, x, N * sizeof *x, cudaMemcpyDeviceToDevice, b));
    LAUNCH(add_one, 2, 64, 0, b, y, N);
    CUDA_OK(cudaMemcpyAsync(host, y, N * sizeof *y, cudaMemcpyDeviceToHost, b));
    expect("a result before it is waited for", host[5] == 5 ? NULL : "there already", NULL);
    CUDA_OK(cudaStreamSynchronize(b));
    expect("an event between two streams", emu_caught(), NULL);
    expect("the result", host[5] == 7 && host[N - 1] == N + 1 ? NULL : "another", NULL);

    cudaGraph_t graph;
    cudaGraphExec_t replay;
    CUDA_OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    LAUNCH(add_one, 2, 64, 0, a, y, N);
    LAUNCH(add_one, 2, 64, 0, a, y, N);
    cudaStreamSynchronize(a);
    expect("waiting in a capture", emu_caught(), "while a stream is being captured");
    CUDA_OK(cudaMemcpyAsync(host, y, N * sizeof *y, cudaMemcpyDeviceToHost, a));
    CUDA_OK(cudaStreamEndCapture(a, &graph));
    CUDA_OK(cudaGraphInstantiate(&replay, graph, 0));
    for (int i = 0; i < 3; i++) CUDA_OK(cudaGraphLaunch(replay, a));
    CUDA_OK(cudaStreamSynchronize(a));
    expect("three replays", host[5] == 13 ? NULL : "another sum", NULL);
    CUDA_OK(cudaGraphExecDestroy(replay));
    CUDA_OK(cudaGraphDestroy(graph));

    LAUNCH(dynamic, 1, 64, 64 * sizeof(int), a, x);
    CUDA_OK(cudaStreamSynchronize(a));
    expect("dynamic shared memory", emu_caught(), NULL);
    LAUNCH(dynamic, 1, 64, 63 * sizeof(int), a, x);
    CUDA_OK(cudaStreamSynchronize(a));
    expect("too little of it", emu_caught(), "shared array DYN_SHARED (252 bytes)");
    LAUNCH(dynamic, 1, 64, 64 << 10, a, x);
    expect("more than 48 KB unasked", emu_caught(), "takes cudaFuncSetAttribute");
    CUDA_OK(cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10));
    LAUNCH(dynamic, 1, 64, 64 << 10, a, x);
    CUDA_OK(cudaStreamSynchronize(a));
    expect("more than 48 KB", emu_caught(), NULL);
    CUDA_OK(cudaFree(x));
    cudaFree(x);
    expect("freed twice", emu_caught(), "freed already");
    CUDA_OK(cudaFree(y));
    CUDA_OK(cudaFreeHost(host));
    CUDA_OK(cudaEventDestroy(done));
    CUDA_OK(cudaStreamDestroy(a));
    CUDA_OK(cudaStreamDestroy(b));
}

static void devices(void) {
    int *here, *there, zero[64] = { 0 }, got[64];
    emu_set_devices(2, 1 << 20);
    here = to_device(zero, 64);
    CUDA_OK(cudaSetDevice(1));
    there = device_array<int>(64);
    cudaStream_t s;
    CUDA_OK(cudaStreamCreate(&s));
    emu_catch(true);
    LAUNCH(add_one, 1, 64, 0, s, here, 64);
    CUDA_OK(cudaStreamSynchronize(s));
    expect("another device's memory", emu_caught(), "but runs on device 1");
    CUDA_OK(cudaMemcpyPeerAsync(there, 1, here, 0, sizeof zero, s));
    LAUNCH(add_one, 1, 64, 0, s, there, 64);
    CUDA_OK(cudaMemcpyAsync(got, there, sizeof got, cudaMemcpyDeviceToHost, s));
    CUDA_OK(cudaStreamSynchronize(s));
    expect("a peer copy", emu_caught(), NULL);
    expect("its result", got[63] == 1 ? NULL : "another", NULL);
    char *much = NULL;
    expect("out of memory",
           cudaMalloc(&much, 2 << 20) == cudaErrorMemoryAllocation && !much ? NULL : "given", NULL);
    CUDA_OK(cudaFree(here));
    CUDA_OK(cudaFree(there));
    CUDA_OK(cudaStreamDestroy(s));
    CUDA_OK(cudaSetDevice(0));
    emu_set_devices(2, (size_t)2 << 30);
}

// ---------------------------------------------------------------------------
// cuBLASLt: y (n, m) = x (n, k) W (m, k)^T, that is, column-major D (m, n) = W^T X

static void blas(void) {
    enum { M = 19, N = 5, K = 40 };
    uint16_t w[M * K], x[N * K];
    float y[N * M] = { 0 }, want[N * M];
    for (int i = 0; i < M * K; i++) w[i] = f32_bf16(twin_value(1, (size_t)i));
    for (int i = 0; i < N * K; i++) x[i] = f32_bf16(twin_value(2, (size_t)i));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < M; j++) {
            float sum = 0;
            for (int k = 0; k < K; k++)
                sum = fmaf(bf16_f32(w[j * K + k]), bf16_f32(x[i * K + k]), sum);
            want[i * M + j] = sum + 1;
        }
    for (int i = 0; i < N * M; i++) y[i] = 1;
    uint16_t *dw = to_device(w, M * K), *dx = to_device(x, N * K);
    float *dy = to_device(y, N * M), one = 1;
    int32_t trans = CUBLAS_OP_T;
    uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    cublasLtHandle_t h;
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t la, lb, lc;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    BLAS_OK(cublasLtCreate(&h));
    BLAS_OK(cublasLtMatmulDescCreate(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_OK(cublasLtMatmulDescSetAttribute(d, CUBLASLT_MATMUL_DESC_TRANSA, &trans, sizeof trans));
    BLAS_OK(cublasLtMatrixLayoutCreate(&la, CUDA_R_16BF, K, M, K));
    BLAS_OK(cublasLtMatrixLayoutCreate(&lb, CUDA_R_16BF, K, N, K));
    BLAS_OK(cublasLtMatrixLayoutCreate(&lc, CUDA_R_32F, M, N, M));
    BLAS_OK(cublasLtMatmulPreferenceCreate(&pref));
    BLAS_OK(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                 &none, sizeof none));
    BLAS_OK(cublasLtMatmulAlgoGetHeuristic(h, d, la, lb, lc, lc, pref, 1, &found, &n));
    BLAS_OK(cublasLtMatmul(h, d, &one, dw, la, dx, lb, &one, dy, lc, dy, lc, &found.algo, NULL, 0,
                           twin_stream()));
    from_device(y, dy, N * M);
    twin_near("cublasLtMatmul", y, want, N * M, 1e-6);
    failures += twin_failures;
    emu_catch(true);
    BLAS_OK(cublasLtMatmul(h, d, &one, dw, la, dx, lb, &one, dy, lc, dy + 4, lc, &found.algo, NULL,
                           0, twin_stream()));
    CUDA_OK(cudaStreamSynchronize(twin_stream()));
    expect("a matrix beyond its memory", emu_caught(), "cublasLtMatmul writes D");
    emu_catch(false);
    BLAS_OK(cublasLtMatmulPreferenceDestroy(pref));
    BLAS_OK(cublasLtMatrixLayoutDestroy(la));
    BLAS_OK(cublasLtMatrixLayoutDestroy(lb));
    BLAS_OK(cublasLtMatrixLayoutDestroy(lc));
    BLAS_OK(cublasLtMatmulDescDestroy(d));
    BLAS_OK(cublasLtDestroy(h));
    CUDA_OK(cudaFree(dw));
    CUDA_OK(cudaFree(dx));
    CUDA_OK(cudaFree(dy));
}

int main(void) {
    planted();
    values();
    streams_and_events();
    devices();
    blas();
    if (failures) printf("%d failures\n", failures);
    else puts("every planted mistake was caught, every right twin passed");
    return failures != 0;
}
#else
int main(void) {
    puts("this test is of the emulation");
    return 77;
}
#endif
