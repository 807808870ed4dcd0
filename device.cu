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
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream));
    CUDA_OK(cudaStreamSynchronize(d->stream));
}
static void device_get(void *device, void *to, const void *from, size_t bytes) {
    Device *d = (Device *)device;
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream));
    CUDA_OK(cudaStreamSynchronize(d->stream));
}
static void device_copy(void *device, void *to, const void *from, size_t bytes) {
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ((Device *)device)->stream));
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
    size_t total;
    if (device_find(err)) return NULL;
    Device *d = (Device *)xrealloc(NULL, sizeof *d);
    memset(d, 0, sizeof *d);
    CUDA_OK(cudaSetDevice(0));
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
#endif

size_t device_products_bytes(size_t unpacked) { return unpacked + GEMM_WORKSPACE; }
