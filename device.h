// device.h - what kernels are written in. It defines SCB_CUDA where there is a device to write for:
//   nvcc (make CUDA=1)      an NVIDIA GPU of sm_80 or later
//   g++ -DCUDA_EMU          the host, test/cuda_emu.h: every thread of every block runs and is
//                           watched
// Kernels stand inside #ifdef SCB_CUDA in the file named after the idea, below the plain C loop
// that specifies them; a C compiler sees the prototypes alone. Beyond the CUDA language a kernel
// uses
//   LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//   SHARED(type, name, count)      an array of the block; name is an array, 16-byte aligned
//   DYN_SHARED(type, name)         the block's shared_bytes; name is a pointer, 16-byte aligned
// and the tensor-core and copy wrappers below. What the emulation holds a kernel to:
//   - reads and writes stay inside what was allocated, shared arrays and device memory alike, are
//     aligned to their type, and read nothing that nobody wrote;
//   - two threads touch the same byte, one of them writing, only with a __syncthreads between them,
//     or a __syncwarp if they are lanes of one warp (shuffles, votes, mma and ldmatrix order no
//     memory, as in CUDA), or both by atomics; two blocks of one launch never but by atomics;
//   - every thread of the block reaches the same __syncthreads; none may have returned;
//   - copies of cp_async16 are there after cp_async_wait, for other threads after a barrier;
//   - host memory stays on the host, unless it came from cudaMallocHost.
#ifndef DEVICE_H
#define DEVICE_H
#include "base.h"

#if defined(__CUDACC__)
#define SCB_CUDA 1
#include <cublasLt.h>
#include <cuda_runtime.h>
#elif defined(CUDA_EMU)
#define SCB_CUDA 1
#include "test/cuda_emu.h"
#endif

#ifdef SCB_CUDA
// Every call of the runtime goes through one of these. Out of memory has its own exit code.
#define CUDA_OK(call)                                                                              \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess)                                                                     \
            die_code(e_ == cudaErrorMemoryAllocation ? EXIT_MEMORY : EXIT_USER, "the GPU: %s: %s", \
                     #call, cudaGetErrorString(e_));                                               \
    } while (0)
#define BLAS_OK(call)                                                                              \
    do {                                                                                           \
        cublasStatus_t e_ = (call);                                                                \
        if (e_ != CUBLAS_STATUS_SUCCESS)                                                           \
            die_code(EXIT_USER, "the GPU: %s: %s", #call, cublasLtGetStatusString(e_));            \
    } while (0)
#endif

#ifdef __CUDACC__
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                     \
    do {                                                                                           \
        (kernel)<<<(grid), (block), (shared_bytes), (cudaStream_t)(stream)>>>(__VA_ARGS__);        \
        CUDA_OK(cudaGetLastError());                                                               \
    } while (0)
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DYN_SHARED(type, name)                                                                     \
    extern __shared__ __align__(16) unsigned char dyn_shared_bytes[];                              \
    type *name = reinterpret_cast<type *>(dyn_shared_bytes)

// D (16, 8) += A (16, 16) B (16, 8), one warp, bf16 pairs in fp32 sums. Lane l = 4g + c holds, low
// half first,  A: a0 (g, 2c), a1 (g + 8, 2c), a2 (g, 2c + 8), a3 (g + 8, 2c + 8) and the next
// column of each;  B: b0 (2c, g), b1 (2c + 8, g) and the next row of each;  D: d0 (g, 2c),
// d1 (g, 2c + 1), d2 (g + 8, 2c), d3 (g + 8, 2c + 1).     PTX ISA, mma.m16n8k16
__device__ static inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ static inline uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// 8 x 8 matrices of 16-bit elements from shared memory, one warp. Lane i names the 16-byte row
// i % 8 of matrix i / 8 (x2 looks at lanes 0..15); lane t gets in r[m] of matrix m the elements
// 2(t % 4) and the next of row t / 4, with trans those rows of column t / 4.
__device__ static inline void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ static inline void ldmatrix_x2(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ static inline void ldmatrix_x2_trans(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes from global to shared memory in the background; zeros, and no read, where not wanted.
// commit closes the group of the copies so far; wait<N> returns when at most the N newest groups
// are still under way, for the copies of this thread alone.
__device__ static inline void cp_async16(void *to, const void *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)),
                   "r"(wanted ? 16 : 0)
                 : "memory");
}
__device__ static inline void cp_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> __device__ static inline void cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}
#endif
#endif
