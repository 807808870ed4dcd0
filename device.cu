// device.cu - the GPUs that a model computes on: their memory, a stream on each. What runs there
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

typedef struct { cudaStream_t stream; CudaGemm *gemm; cudaEvent_t left; } Part;

struct Device {
    Part part[MAX_GPUS];
    int n, n_layers, now;
    char name[256];
    Recorded graph[GRAPHS];
    int n_graphs, oldest;
    int64_t replays;
};

static const Part *device_now(const Device *d) { return &d->part[d->now]; }
static cudaStream_t stream_now(const Device *d) { return device_now(d)->stream; }

// Blocks are taken and given in the order of the stream, so one that a launched kernel still reads
// may be given back at once.
static void *device_take(void *device, size_t bytes) {
    Device *d = (Device *)device;
    void *p = NULL;
    cudaError_t e = cudaMallocAsync(&p, bytes, stream_now(d));
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();               // it is told by the NULL
        return NULL;
    }
    CUDA_OK(e);
    CUDA_OK(cudaMemsetAsync(p, 0, bytes, stream_now(d)));
    return p;
}
static void device_give(void *device, void *p) {
    CUDA_OK(cudaFreeAsync(p, stream_now((Device *)device)));
}
static void device_put(void *device, void *to, const void *from, size_t bytes) {
    Device *d = (Device *)device;
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_now(d)));
    CUDA_OK(cudaStreamSynchronize(stream_now(d)));
}
static void device_get(void *device, void *to, const void *from, size_t bytes) {
    Device *d = (Device *)device;
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_now(d)));
    CUDA_OK(cudaStreamSynchronize(stream_now(d)));
}
static void device_copy(void *device, void *to, const void *from, size_t bytes) {
    CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_now((Device *)device)));
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

static int device_find(int wanted, Err *err) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n >= wanted) return 0;
    (void)cudaGetLastError();
    if (e == cudaSuccess && n > 0)
        return FAIL(err, "--gpus %d: this machine has %d", wanted, n);
    return FAIL(err, "no NVIDIA GPU can be used here (%s); use --device cpu",
                e == cudaSuccess ? "the driver lists none" : cudaGetErrorString(e));
}

// every device may copy from every other's blocks
static int device_peers(int n, Err *err) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            int can = 1;
            cudaMemPool_t pool;
            cudaMemAccessDesc access;
            if (i == j) continue;
            CUDA_OK(cudaDeviceCanAccessPeer(&can, i, j));
            if (!can) return FAIL(err, "--gpus %d: GPU %d cannot reach GPU %d", n, i, j);
            CUDA_OK(cudaSetDevice(i));
            cudaError_t e = cudaDeviceEnablePeerAccess(j, 0);
            if (e != cudaErrorPeerAccessAlreadyEnabled) CUDA_OK(e);
            (void)cudaGetLastError();
            CUDA_OK(cudaDeviceGetDefaultMemPool(&pool, j));
            memset(&access, 0, sizeof access);
            access.location.type = cudaMemLocationTypeDevice;
            access.location.id = i;
            access.flags = cudaMemAccessFlagsProtReadWrite;
            CUDA_OK(cudaMemPoolSetAccess(pool, &access, 1));
        }
    return 0;
}

static void part_open(Part *p, int i, size_t unpacked) {
    uint64_t keep = UINT64_MAX;
    cudaMemPool_t pool;
    CUDA_OK(cudaSetDevice(i));
    CUDA_OK(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking));
    CUDA_OK(cudaEventCreateWithFlags(&p->left, cudaEventDisableTiming));
    CUDA_OK(cudaDeviceGetDefaultMemPool(&pool, i));     // what was given back is taken again
    CUDA_OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    p->gemm = cuda_gemm_open(unpacked);
}

Device *device_open(Mem *mem, int n, int n_layers, size_t unpacked, Err *err) {
    static const MemOps ops = { device_take, device_give, device_put, device_get, device_copy };
    cudaDeviceProp about;
    if (!(mem->limit = device_memory_available(n, err)) || device_peers(n, err)) return NULL;
    Device *d = (Device *)xrealloc(NULL, sizeof *d);
    memset(d, 0, sizeof *d);
    d->n = n;
    d->n_layers = n_layers;
    CUDA_OK(cudaGetDeviceProperties(&about, 0));
    snprintf(d->name, sizeof d->name, "%s", about.name);
    for (int i = n - 1; i >= 0; i--) part_open(&d->part[i], i, unpacked);
    mem->ops = &ops;
    mem->device = d;
    mem->used += (size_t)n * device_products_bytes(unpacked);
    return d;
}

void device_close(Device *d) {
    if (!d) return;
    device_wait(d);
    for (int i = 0; i < d->n_graphs; i++) CUDA_OK(cudaGraphExecDestroy(d->graph[i].run));
    for (int i = 0; i < d->n; i++) {
        CUDA_OK(cudaSetDevice(i));
        CUDA_OK(cudaStreamSynchronize(d->part[i].stream));
        cuda_gemm_close(d->part[i].gemm);
        CUDA_OK(cudaEventDestroy(d->part[i].left));
        CUDA_OK(cudaStreamDestroy(d->part[i].stream));
    }
    CUDA_OK(cudaSetDevice(0));
    free(d);
}

int device_parts(const Device *d) { return d ? d->n : 1; }
int device_part_of(const Device *d, int layer) {
    return d && d->n > 1 ? (int)((int64_t)layer * d->n / d->n_layers) : 0;
}

// All streams are one order: the one entered waits for the one left.
void device_use(Device *d, int part) {
    if (!d || part == d->now) return;
    CUDA_OK(cudaEventRecord(d->part[d->now].left, d->part[d->now].stream));
    CUDA_OK(cudaStreamWaitEvent(d->part[part].stream, d->part[d->now].left, 0));
    CUDA_OK(cudaSetDevice(part));
    d->now = part;
}

void device_wait(Device *d) { CUDA_OK(cudaStreamSynchronize(device_now(d)->stream)); }

size_t device_memory_available(int n, Err *err) {
    size_t least = SIZE_MAX, have, total;
    int before;
    if (device_find(n, err)) return 0;
    CUDA_OK(cudaGetDevice(&before));
    for (int i = n - 1; i >= 0; i--) {
        CUDA_OK(cudaSetDevice(i));
        CUDA_OK(cudaMemGetInfo(&have, &total));
        if (have < least) least = have;
    }
    CUDA_OK(cudaSetDevice(before));
    return (least - least / 50) * (size_t)n;    // blocks are rounded up, libraries take some
}

void *device_stream(const Device *d) { return device_now(d)->stream; }
CudaGemm *device_gemm(const Device *d) { return device_now(d)->gemm; }

// ---------------------------------------------------------------------------
// Graphs of steps: a launch by the host costs more than a small kernel takes, a replay does not

bool device_replay(Device *d, const void *key, size_t bytes, Phases *counts) {
    for (int i = 0; i < d->n_graphs; i++) {
        const Recorded *g = &d->graph[i];
        if (g->bytes != bytes || memcmp(g->key, key, bytes)) continue;
        CUDA_OK(cudaGraphLaunch(g->run, stream_now(d)));
        counts->linear_flops += g->counts.linear_flops;
        counts->weight_bytes += g->counts.weight_bytes;
        counts->kv_bytes += g->counts.kv_bytes;
        d->replays++;
        return true;
    }
    return false;
}

void device_record(Device *d) {
    CUDA_OK(cudaStreamBeginCapture(stream_now(d), cudaStreamCaptureModeThreadLocal));
}

void device_recorded(Device *d, const void *key, size_t bytes, const Phases *before,
                     const Phases *after) {
    cudaGraph_t graph;
    CHECK(bytes <= KEY_BYTES, "a key of %zu bytes", bytes);
    CUDA_OK(cudaStreamEndCapture(stream_now(d), &graph));
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
    CUDA_OK(cudaGraphLaunch(g->run, stream_now(d)));
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
        CUDA_OK(cudaEventRecord(from, stream_now(d)));
        call();
        CUDA_OK(cudaEventRecord(to, stream_now(d)));
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
    double gemm = shortest(d, seconds / 2, [&] { cuda_gemm(device_gemm(d), &job, x, N, stream_now(d)); });
    top.gemm_tflops = top.tile_tflops = 2e-12 * N * N * N / gemm;
    device_give(d, w);
    device_give(d, x);
    device_give(d, y);
    size_t pieces = bytes / sizeof(uint4) + 1;
    uint4 *p = (uint4 *)device_take(d, (pieces + 1) * sizeof *p);
    CHECK(p, "no memory for the speed probe");
    double read = shortest(d, seconds / 2, [&] {
        LAUNCH(read_k, CEILING_BLOCKS, 256, 0, stream_now(d), p, pieces, (unsigned *)(p + pieces));
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
Device *device_open(Mem *mem, int n, int n_layers, size_t unpacked, Err *err) {
    (void)mem; (void)n; (void)n_layers; (void)unpacked;
    no_device(err);
    return NULL;
}
size_t device_memory_available(int n, Err *err) {
    (void)n;
    no_device(err);
    return 0;
}
int device_parts(const Device *d) { return d ? 0 : 1; }
int device_part_of(const Device *d, int layer) { return d ? layer : 0; }
void device_use(Device *d, int part) {
    (void)part;
    device_close(d);
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
