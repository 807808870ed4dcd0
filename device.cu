// device.cu - the GPU that a model computes on: one device, its memory, one stream. What runs there
// is launched by the forward pass itself (llama.cu, mamba.cu, jamba.cu), whose pieces have a plain
// loop and a kernel each, and by the cache (cache.cu, evict.cu, read.cu).
#include "device.h"
#include "kernels.h"

#ifdef SCB_CUDA
enum { GRAPHS = 16, KEY_BYTES = 64 };
typedef struct {
    cudaGraphExec_t run;
    char key[KEY_BYTES];
    size_t bytes;
    Phases counts;              // of one step; its times are 0
} Recorded;

struct Device {
    cudaStream_t stream;
    CudaGemm *gemm;
    char name[256];
    Recorded graph[GRAPHS];
    int n_graphs, oldest;
    int64_t replays;
};

// Blocks are taken and given in the order of the stream, so one that a launched kernel still reads
// may be given back at once.
static void *device_take(void *device, size_t bytes) {
    Device *d = (Device *)device;
    void *p = NULL;
    cudaError_t e = cudaMallocAsync(&p, bytes, d->stream);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();               // it is told by the NULL
        return NULL;
    }
    CUDA_OK(e);
    CUDA_OK(cudaMemsetAsync(p, 0, bytes, d->stream));
    return p;
}
static void device_give(void *device, void *p) {
    CUDA_OK(cudaFreeAsync(p, ((Device *)device)->stream));
}
static void device_put(void *device, void *to, const void *from, size_t bytes) {
    Device *d = (Device *)device;
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, d->stream));
    CUDA_OK(cudaStreamSynchronize(d->stream));
}
static void device_get(void *device, void *to, const void *from, size_t bytes) {
    Device *d = (Device *)device;
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, d->stream));
    CUDA_OK(cudaStreamSynchronize(d->stream));
}
static void device_copy(void *device, void *to, const void *from, size_t bytes) {
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, ((Device *)device)->stream));
}

// Host memory that kernels read over the bus: each row of a step once, which is all a copy would do.
static void *pinned_take(void *device, size_t bytes) {
    void *p = NULL;
    (void)device;
    if (cudaMallocHost(&p, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}
static void pinned_give(void *device, void *p) {
    device_wait((Device *)device);              // launched kernels may read it
    CUDA_OK(cudaFreeHost(p));
}

void device_pinned(Device *d, Mem *mem) {
    static const MemOps ops = { pinned_take, pinned_give, device_put, device_get, device_copy };
    mem->ops = &ops;
    mem->device = d;
}

static int device_find(Err *err) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) return 0;
    (void)cudaGetLastError();
    return FAIL(err, "no NVIDIA GPU can be used here (%s); use --device cpu",
                e == cudaSuccess ? "the driver lists none" : cudaGetErrorString(e));
}

Device *device_open(Mem *mem, size_t unpacked, Err *err) {
    static const MemOps ops = { device_take, device_give, device_put, device_get, device_copy };
    uint64_t keep = UINT64_MAX;
    cudaMemPool_t pool;
    cudaDeviceProp about;
    size_t total;
    if (device_find(err)) return NULL;
    Device *d = (Device *)xrealloc(NULL, sizeof *d);
    memset(d, 0, sizeof *d);
    CUDA_OK(cudaSetDevice(0));
    CUDA_OK(cudaGetDeviceProperties(&about, 0));
    snprintf(d->name, sizeof d->name, "%s", about.name);
    CUDA_OK(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    CUDA_OK(cudaDeviceGetDefaultMemPool(&pool, 0));     // what was given back is taken again
    CUDA_OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    CUDA_OK(cudaMemGetInfo(&mem->limit, &total));
    mem->ops = &ops;
    mem->device = d;
    d->gemm = cuda_gemm_open(unpacked);
    mem->used += device_products_bytes(unpacked);
    return d;
}

void device_close(Device *d) {
    if (!d) return;
    CUDA_OK(cudaStreamSynchronize(d->stream));
    for (int i = 0; i < d->n_graphs; i++) CUDA_OK(cudaGraphExecDestroy(d->graph[i].run));
    cuda_gemm_close(d->gemm);
    CUDA_OK(cudaStreamDestroy(d->stream));
    free(d);
}

void device_wait(Device *d) { CUDA_OK(cudaStreamSynchronize(d->stream)); }

size_t device_memory_available(Err *err) {
    size_t have, total;
    if (device_find(err)) return 0;
    CUDA_OK(cudaMemGetInfo(&have, &total));
    return have;
}

void *device_stream(const Device *d) { return d->stream; }
CudaGemm *device_gemm(const Device *d) { return d->gemm; }

// ---------------------------------------------------------------------------
// Graphs of steps: a launch by the host costs more than a small kernel takes, a replay does not

bool device_replay(Device *d, const void *key, size_t bytes, Phases *counts) {
    for (int i = 0; i < d->n_graphs; i++) {
        const Recorded *g = &d->graph[i];
        if (g->bytes != bytes || memcmp(g->key, key, bytes)) continue;
        CUDA_OK(cudaGraphLaunch(g->run, d->stream));
        counts->linear_flops += g->counts.linear_flops;
        counts->weight_bytes += g->counts.weight_bytes;
        counts->kv_bytes += g->counts.kv_bytes;
        d->replays++;
        return true;
    }
    return false;
}

void device_record(Device *d) {
    CUDA_OK(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
}

void device_recorded(Device *d, const void *key, size_t bytes, const Phases *before,
                     const Phases *after) {
    cudaGraph_t graph;
    CHECK(bytes <= KEY_BYTES, "a key of %zu bytes", bytes);
    CUDA_OK(cudaStreamEndCapture(d->stream, &graph));
    Recorded *g = &d->graph[d->n_graphs < GRAPHS ? d->n_graphs : d->oldest];
    if (d->n_graphs < GRAPHS) d->n_graphs++;
    else {
        CUDA_OK(cudaGraphExecDestroy(g->run));
        d->oldest = (d->oldest + 1) % GRAPHS;
    }
    memset(g, 0, sizeof *g);
    CUDA_OK(cudaGraphInstantiate(&g->run, graph, 0));
    CUDA_OK(cudaGraphDestroy(graph));
    memcpy(g->key, key, bytes);
    g->bytes = bytes;
    g->counts.linear_flops = after->linear_flops - before->linear_flops;
    g->counts.weight_bytes = after->weight_bytes - before->weight_bytes;
    g->counts.kv_bytes = after->kv_bytes - before->kv_bytes;
    CUDA_OK(cudaGraphLaunch(g->run, d->stream));
}

int64_t device_replays(const Device *d) { return d->replays; }

// ---------------------------------------------------------------------------
// Ceilings: what a phase's time is compared with

// grid covers the memory's processors; the sum keeps the reads alive
__global__ static void read_k(const uint4 *p, size_t n, unsigned *sink) {
    uint32_t x = 0;
    for (size_t i = thread_item(); i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint4 v = p[i];
        x ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (x == 0x9e3779b9u) *sink = x;
}

// the shortest of the calls that fit into seconds, in seconds; two at least
template <class F> static double shortest(Device *d, double seconds, F call) {
    cudaEvent_t from, to;
    double best = INFINITY;
    CUDA_OK(cudaEventCreate(&from));
    CUDA_OK(cudaEventCreate(&to));
    double t0 = now_s();
    for (int i = 0; i < 2 || now_s() - t0 < seconds; i++) {
        float ms;
        CUDA_OK(cudaEventRecord(from, d->stream));
        call();
        CUDA_OK(cudaEventRecord(to, d->stream));
        CUDA_OK(cudaEventSynchronize(to));
        CUDA_OK(cudaEventElapsedTime(&ms, from, to));
        if (1e-3 * ms < best) best = 1e-3 * ms;
    }
    CUDA_OK(cudaEventDestroy(from));
    CUDA_OK(cudaEventDestroy(to));
    return best;
}

#ifdef CUDA_EMU
enum { CEILING_SIDE = 64, CEILING_BLOCKS = 4 };
#else
enum { CEILING_SIDE = 8192, CEILING_BLOCKS = 4096 };
#endif

Ceilings device_ceilings(Device *d, size_t bytes, double seconds) {
    enum { N = CEILING_SIDE };
    Ceilings top = { 0, 0, 0 };
    void *w = device_take(d, (size_t)N * N * 2), *x = device_take(d, (size_t)N * N * 2),
         *y = device_take(d, (size_t)N * N * 4);
    CudaJob job = { { DT_BF16, N, N, N, w, NULL }, NULL, (float *)y, N, false };
    CHECK(w && x && y, "no memory for the speed probe");
    double gemm = shortest(d, seconds / 2, [&] { cuda_gemm(d->gemm, &job, x, N, d->stream); });
    top.gemm_tflops = top.tile_tflops = 2e-12 * N * N * N / gemm;
    device_give(d, w);
    device_give(d, x);
    device_give(d, y);
    size_t pieces = bytes / sizeof(uint4) + 1;
    uint4 *p = (uint4 *)device_take(d, (pieces + 1) * sizeof *p);
    CHECK(p, "no memory for the speed probe");
    double read = shortest(d, seconds / 2, [&] {
        LAUNCH(read_k, CEILING_BLOCKS, 256, 0, d->stream, p, pieces, (unsigned *)(p + pieces));
    });
    top.read_gbs = 1e-9 * (double)(pieces * sizeof *p) / read;
    device_give(d, p);
    return top;
}

const char *device_name(const Device *d) { return d->name; }
#else
static int no_device(Err *err) {
    return FAIL(err, "this build computes on the CPU only: build with make CUDA=1, or use "
                     "--device cpu");
}
Device *device_open(Mem *mem, size_t unpacked, Err *err) {
    (void)mem; (void)unpacked;
    no_device(err);
    return NULL;
}
size_t device_memory_available(Err *err) {
    no_device(err);
    return 0;
}
void device_close(Device *d) { CHECK(!d, "a GPU in a build without one"); }
Ceilings device_ceilings(Device *d, size_t bytes, double seconds) {
    Ceilings none = { 0, 0, 0 };
    (void)bytes; (void)seconds;
    device_close(d);
    return none;
}
const char *device_name(const Device *d) { return d ? "" : NULL; }
void device_pinned(Device *d, Mem *mem) {
    (void)mem;
    device_close(d);
}
#endif

size_t device_products_bytes(size_t unpacked) { return unpacked + GEMM_WORKSPACE; }
