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
    printf("FAIL %s: expected %s, got %s\n", what, words ? words : "nothing", said ? said : "nothing");
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
    expect("uninitialised shared", caught(unset<false>, 1, y), "row (256 bytes), which nobody wrote");
    expect("initialised shared", caught(unset<true>, 1, y), NULL);
    expect("warp without order", caught(warp_tile<false>, 1, y, x), "no barrier is between");
    expect("warp in order", caught(warp_tile<true>, 1, y, x), NULL);
    expect("no wait", caught(background<NO_WAIT>, 1, y, x), "still under way");
    expect("too short a wait", caught(background<TOO_FEW>, 1, y, x), "still under way");
    expect("no barrier after the wait", caught(background<NO_BARRIER>, 1, y, x), "row");
    expect("wait and barrier", caught(background<RIGHT>, 1, y, x), NULL);
    expect("blocks in each other's way", caught(blocks_write<false>, 2, wide), "of block 0");
    expect("blocks apart", caught(blocks_write<true>, 4, wide), NULL);
    expect("misaligned vector", caught(vectors, 1, (float4 *)y, (const float *)x, 1), "not aligned");
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

int main(void) {
    planted();
    printf(failures ? "%d failures\n" : "every planted mistake was caught, every right twin passed\n",
           failures);
    return failures != 0;
}
#else
int main(void) {
    puts("this test is of the emulation");
    return 77;
}
#endif
