// cuda_emu.h - the part of CUDA that this program uses, on the host. device.h includes it under
// -DCUDA_EMU; cuda_emu.cpp runs the grids. device.h says what kernels are held to.
//
// The emulated files are compiled with -fsanitize=thread and linked without its runtime: the
// compiler then calls __tsan_read4(address) and its kin before every access, and cuda_emu.cpp
// defines those. EMU_DEVICES and EMU_MEMORY (MB of each) say what there is, 2 and 2048 without.
// Streams do nothing until something waits for them, so a missing wait is seen.
#ifndef CUDA_EMU_H
#define CUDA_EMU_H
#ifdef __cplusplus
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tuple>
#include <type_traits>

// ---------------------------------------------------------------------------
// The language
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// Vectors move as one access, which must be aligned, as on the device.
void emu_vector(const void *p, size_t bytes);

#define EMU_VECTOR2(name, type, bytes)                                                             \
    struct alignas(bytes) name {                                                                   \
        type x, y;                                                                                 \
        name() = default;                                                                          \
        name(type a, type b) : x(a), y(b) {}                                                       \
        name(const name &o) : x((emu_vector(&o, bytes), o.x)), y(o.y) {}                           \
        name &operator=(const name &o) {                                                           \
            emu_vector(&o, bytes);                                                                 \
            emu_vector(this, bytes);                                                               \
            x = o.x; y = o.y;                                                                      \
            return *this;                                                                          \
        }                                                                                          \
    };                                                                                             \
    static inline name make_##name(type x, type y) { return name(x, y); }
#define EMU_VECTOR4(name, type, bytes)                                                             \
    struct alignas(bytes) name {                                                                   \
        type x, y, z, w;                                                                           \
        name() = default;                                                                          \
        name(type a, type b, type c, type d) : x(a), y(b), z(c), w(d) {}                           \
        name(const name &o) : x((emu_vector(&o, bytes), o.x)), y(o.y), z(o.z), w(o.w) {}           \
        name &operator=(const name &o) {                                                           \
            emu_vector(&o, bytes);                                                                 \
            emu_vector(this, bytes);                                                               \
            x = o.x; y = o.y; z = o.z; w = o.w;                                                    \
            return *this;                                                                          \
        }                                                                                          \
    };                                                                                             \
    static inline name make_##name(type x, type y, type z, type w) { return name(x, y, z, w); }
EMU_VECTOR2(int2, int, 8)
EMU_VECTOR2(uint2, unsigned, 8)
EMU_VECTOR2(float2, float, 8)
EMU_VECTOR2(ushort2, unsigned short, 4)
EMU_VECTOR4(int4, int, 16)
EMU_VECTOR4(uint4, unsigned, 16)
EMU_VECTOR4(float4, float, 16)
EMU_VECTOR4(ushort4, unsigned short, 8)

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// fixed while a thread lives, and returned in registers: reading them is no memory access
__attribute__((const)) uint3 emu_thread_idx();
__attribute__((const)) uint3 emu_block_idx();
__attribute__((const)) uint3 emu_block_dim();
__attribute__((const)) uint3 emu_grid_dim();
#define threadIdx emu_thread_idx()
#define blockIdx emu_block_idx()
#define blockDim emu_block_dim()
#define gridDim emu_grid_dim()
enum { warpSize = 32 };

void *emu_shared(const void *site, size_t bytes, const char *name);
void *emu_dyn_shared();
#define SHARED(type, name, count)                                                                  \
    static char name##_site;                                                                       \
    type(&name)[count] = *reinterpret_cast<type(*)[count]>(                                        \
        emu_shared(&name##_site, sizeof(type[count]), #name))
#define DYN_SHARED(type, name) type *name = reinterpret_cast<type *>(emu_dyn_shared())

// ---------------------------------------------------------------------------
// Block and warp operations
int emu_barrier(const char *file, int line, int vote, int value);
enum { EMU_VOTE_NONE, EMU_VOTE_OR, EMU_VOTE_AND, EMU_VOTE_COUNT };
#define __syncthreads() ((void)emu_barrier(__FILE__, __LINE__, EMU_VOTE_NONE, 0))
#define __syncthreads_or(v) emu_barrier(__FILE__, __LINE__, EMU_VOTE_OR, v)
#define __syncthreads_and(v) emu_barrier(__FILE__, __LINE__, EMU_VOTE_AND, v)
#define __syncthreads_count(v) emu_barrier(__FILE__, __LINE__, EMU_VOTE_COUNT, v)

enum EmuWarpOp {
    EMU_SYNC, EMU_SHUFFLE, EMU_BALLOT, EMU_ANY, EMU_ALL, EMU_MATCH, EMU_ADD_U32, EMU_MIN_U32,
    EMU_MAX_U32, EMU_MIN_S32, EMU_MAX_S32, EMU_AND_U32, EMU_OR_U32, EMU_XOR_U32
};
// all lanes of mask meet here; from is the lane a shuffle takes its value from
uint64_t emu_warp(EmuWarpOp op, unsigned mask, uint64_t value, int from);
int emu_lane();
enum EmuShuffle { EMU_IDX, EMU_UP, EMU_DOWN, EMU_XOR };
int emu_shuffle_lane(EmuShuffle kind, int lane, int by, int width);

void emu_syncwarp(const char *file, int line, unsigned mask = 0xffffffffu);
#define __syncwarp(...) emu_syncwarp(__FILE__, __LINE__, ##__VA_ARGS__)

template <class T>
static inline T emu_shuffle(EmuShuffle kind, unsigned mask, T v, int by, int width) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t u = 0;
    memcpy(&u, &v, sizeof v);
    u = emu_warp(EMU_SHUFFLE, mask, u, emu_shuffle_lane(kind, emu_lane(), by, width));
    memcpy(&v, &u, sizeof v);
    return v;
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int src, int width = 32) {
    return emu_shuffle(EMU_IDX, m, v, src, width);
}
template <class T> static inline T __shfl_up_sync(unsigned m, T v, unsigned by, int width = 32) {
    return emu_shuffle(EMU_UP, m, v, (int)by, width);
}
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned by, int width = 32) {
    return emu_shuffle(EMU_DOWN, m, v, (int)by, width);
}
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int by, int width = 32) {
    return emu_shuffle(EMU_XOR, m, v, by, width);
}
static inline unsigned __ballot_sync(unsigned m, int v) {
    return (unsigned)emu_warp(EMU_BALLOT, m, v != 0, 0);
}
static inline int __any_sync(unsigned m, int v) { return (int)emu_warp(EMU_ANY, m, v != 0, 0); }
static inline int __all_sync(unsigned m, int v) { return (int)emu_warp(EMU_ALL, m, v != 0, 0); }
static inline unsigned __match_any_sync(unsigned m, unsigned v) {
    return (unsigned)emu_warp(EMU_MATCH, m, v, 0);
}
#define EMU_REDUCE(name, type, op)                                                                 \
    static inline type name(unsigned m, type v) {                                                  \
        return (type)(unsigned)emu_warp(op, m, (unsigned)v, 0);                                    \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, EMU_ADD_U32)
EMU_REDUCE(__reduce_add_sync, int, EMU_ADD_U32)
EMU_REDUCE(__reduce_min_sync, unsigned, EMU_MIN_U32)
EMU_REDUCE(__reduce_min_sync, int, EMU_MIN_S32)
EMU_REDUCE(__reduce_max_sync, unsigned, EMU_MAX_U32)
EMU_REDUCE(__reduce_max_sync, int, EMU_MAX_S32)
EMU_REDUCE(__reduce_and_sync, unsigned, EMU_AND_U32)
EMU_REDUCE(__reduce_or_sync, unsigned, EMU_OR_U32)
EMU_REDUCE(__reduce_xor_sync, unsigned, EMU_XOR_U32)
#undef EMU_REDUCE

// integers only: sums of floats would depend on the order of the blocks
enum EmuAtomicOp {
    EMU_A_ADD, EMU_A_MIN, EMU_A_MAX, EMU_A_AND, EMU_A_OR, EMU_A_XOR, EMU_A_EXCH, EMU_A_CAS
};
uint64_t emu_atomic(EmuAtomicOp op, void *p, size_t bytes, bool is_signed, uint64_t v,
                    uint64_t cmp);
template <class T> static inline T emu_atomic_as(EmuAtomicOp op, T *p, T v, T cmp = 0) {
    static_assert(std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                  "atomics are on integers of 4 or 8 bytes");
    return (T)emu_atomic(op, p, sizeof *p, std::is_signed<T>::value, (uint64_t)v, (uint64_t)cmp);
}
#define EMU_ATOMIC(name, op)                                                                       \
    template <class T> static inline T name(T *p, typename std::common_type<T>::type v) {          \
        return emu_atomic_as(op, p, v);                                                            \
    }
EMU_ATOMIC(atomicAdd, EMU_A_ADD)
EMU_ATOMIC(atomicMin, EMU_A_MIN)
EMU_ATOMIC(atomicMax, EMU_A_MAX)
EMU_ATOMIC(atomicAnd, EMU_A_AND)
EMU_ATOMIC(atomicOr, EMU_A_OR)
EMU_ATOMIC(atomicXor, EMU_A_XOR)
EMU_ATOMIC(atomicExch, EMU_A_EXCH)
#undef EMU_ATOMIC
template <class T>
static inline T atomicCAS(T *p, typename std::common_type<T>::type cmp,
                          typename std::common_type<T>::type v) {
    return emu_atomic_as(EMU_A_CAS, p, (T)v, (T)cmp);
}

// ---------------------------------------------------------------------------
// Tensor cores and background copies (contracts: device.h)
void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void ldmatrix_x4(uint32_t r[4], const void *row);
void ldmatrix_x4_trans(uint32_t r[4], const void *row);
void ldmatrix_x2(uint32_t r[2], const void *row);
void ldmatrix_x2_trans(uint32_t r[2], const void *row);
void cp_async16(void *to, const void *from, bool wanted);
void cp_async_commit(void);
void emu_cp_async_wait(int newest);
template <int N> static inline void cp_async_wait(void) { emu_cp_async_wait(N); }

// ---------------------------------------------------------------------------
// Scalar functions
template <class T> static inline T __ldg(const T *p) { return *p; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline int __float_as_int(float f) { int u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline float __int_as_float(int u) { float f; memcpy(&f, &u, 4); return f; }
static inline float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
#define EMU_MIN_MAX(type)                                                                          \
    static inline type min(type a, type b) { return b < a ? b : a; }                               \
    static inline type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
EMU_MIN_MAX(float)
#undef EMU_MIN_MAX

// ---------------------------------------------------------------------------
// The runtime
typedef enum {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9, cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400, cudaErrorNotReady = 600,
    cudaErrorPeerAccessAlreadyEnabled = 704, cudaErrorStreamCaptureUnsupported = 900
} cudaError_t;
typedef enum {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
} cudaMemcpyKind;
typedef struct EmuStream *cudaStream_t;
typedef struct EmuEvent *cudaEvent_t;
typedef struct EmuGraph *cudaGraph_t;
typedef struct EmuGraph *cudaGraphExec_t;
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1 };
typedef enum {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed
} cudaStreamCaptureMode;
typedef enum {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
} cudaFuncAttribute;
typedef enum {
    cudaDevAttrMaxSharedMemoryPerBlock = 8, cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38, cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
} cudaDeviceAttr;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, l2CacheSize, memoryBusWidth;
};

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device);
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer);
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);

cudaError_t emu_malloc(void **p, size_t bytes, bool host);
template <class T> static inline cudaError_t cudaMalloc(T **p, size_t bytes) {
    return emu_malloc((void **)p, bytes, false);
}
template <class T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes) {
    return emu_malloc((void **)p, bytes, true);
}
template <class T> static inline cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned) {
    return emu_malloc((void **)p, bytes, true);
}
// in the order of a stream: memory may be given back while launches that read it are under way
cudaError_t emu_malloc_async(void **p, size_t bytes);
template <class T> static inline cudaError_t cudaMallocAsync(T **p, size_t bytes, cudaStream_t) {
    return emu_malloc_async((void **)p, bytes);
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t s);
typedef struct EmuPool *cudaMemPool_t;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
static inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
    *pool = nullptr;
    return cudaSuccess;
}
static inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) {
    return cudaSuccess;
}
enum { cudaMemLocationTypeDevice = 1, cudaMemAccessFlagsProtReadWrite = 3 };
struct cudaMemAccessDesc { struct { int type, id; } location; int flags; };
static inline cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc *, size_t) {
    return cudaSuccess;
}
cudaError_t cudaFree(void *p);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s = nullptr);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t s = nullptr);
cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t bytes, cudaStream_t s = nullptr);
cudaError_t cudaMemset(void *p, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s = nullptr);

cudaError_t cudaStreamCreate(cudaStream_t *s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x);

cudaError_t emu_func_attribute(const void *kernel, cudaFuncAttribute attr, int value);
template <class F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute attr, int value) {
    return emu_func_attribute((const void *)kernel, attr, value);
}
template <class F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, F *, int, size_t) {
    *n = 2;
    return cudaSuccess;
}

// run(call) calls the kernel; the bytes of call are copied at the launch, as CUDA does with the
// arguments, and again onto the stack of every thread
void emu_launch(const void *kernel, const char *text, dim3 grid, dim3 block, size_t shared_bytes,
                void *stream, void (*run)(const void *call), const void *call, size_t bytes);
template <class... P> struct EmuCall {
    void (*kernel)(P...);
    std::tuple<typename std::decay<P>::type...> args;
    static void run(const void *call) {
        const EmuCall *c = static_cast<const EmuCall *>(call);
        std::apply(c->kernel, c->args);
    }
};
template <class... P, class... A>
static inline void emu_launch_with(const char *text, void (*kernel)(P...), dim3 grid, dim3 block,
                                   size_t shared_bytes, void *stream, A... a) {
    static_assert(std::conjunction<std::is_trivially_destructible<P>...>::value,
                  "kernel arguments are copied as bytes");
    EmuCall<P...> call = { kernel, { static_cast<typename std::decay<P>::type>(a)... } };
    emu_launch((const void *)kernel, text, grid, block, shared_bytes, stream, EmuCall<P...>::run,
               &call, sizeof call);
}
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                     \
    emu_launch_with(#kernel, kernel, grid, block, shared_bytes, (void *)(stream), ##__VA_ARGS__)

// ---------------------------------------------------------------------------
// cuBLASLt, the calls this program makes: D = A B in fp32, bf16 or f32 in, bf16 or f32 out
typedef enum {
    CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;
typedef enum { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType_t;
typedef cudaDataType_t cudaDataType;
typedef enum { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 } cublasComputeType_t;
typedef enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 } cublasOperation_t;
typedef enum {
    CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4
} cublasLtMatmulDescAttributes_t;
typedef enum {
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6
} cublasLtMatrixLayoutAttribute_t;
typedef enum {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
} cublasLtMatmulPreferenceAttributes_t;
enum {
    CUBLASLT_REDUCTION_SCHEME_NONE = 0, CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,
    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4
};
typedef struct EmuBlas *cublasLtHandle_t;
typedef struct EmuMatmul *cublasLtMatmulDesc_t;
typedef struct EmuLayout *cublasLtMatrixLayout_t;
typedef struct EmuPreference *cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t { uint64_t data[8]; };
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
};
const char *cublasLtGetStatusString(cublasStatus_t s);
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h);
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h);
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale);
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d);
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attr, const void *v,
                                              size_t bytes);
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld);
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l);
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attr,
                                                const void *v, size_t bytes);
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p);
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p);
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *v, size_t bytes);
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t p, int wanted,
                                              cublasLtMatmulHeuristicResult_t *found, int *n);
// alpha and beta are floats on the host, read at the call
cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t s);

// ---------------------------------------------------------------------------
// For tests. A violation is a sentence on stderr and exit 1; while catching, it ends the launch and
// is kept for emu_caught, which returns the first one since the last call, or NULL.
void emu_catch(bool on);
const char *emu_caught(void);
void emu_set_devices(int n, size_t bytes_each);     // at the start: 2 devices of 2 GB
// When the process ends, beside the program lie PROGRAM.launched, the demangled names of the kernels
// that ran, and PROGRAM.barriers, the file:line of every __syncthreads and __syncwarp that was
// passed (those that also vote aside). EMU_IGNORE=file:line in the environment makes that one order nothing.

// ---------------------------------------------------------------------------
// Between the emulation's own files
void emu_violation(const char *sentence);
bool emu_on_device(const void *p);
// bounds, lifetime and, where it reads, whether somebody wrote p
void emu_check(const void *p, size_t bytes, bool reads, const char *verb);
void emu_written(const void *p, size_t bytes);
// run(call) when the stream comes to it; the bytes of call are copied
void emu_enqueue(cudaStream_t s, void (*run)(const void *), const void *call, size_t bytes);
#endif
#endif
