// Which lane holds what: the maps of mma_bf16 and ldmatrix, as tables written down from the PTX ISA
// (mma.m16n8k16 with .bf16, ldmatrix .m8n8.b16), against the wrappers on numbers that are exact.
#include "test/cuda/twin.h"

// lane and register of the pair of columns (2p, 2p + 1) of a row of A (16, 16)
static const uint8_t A_LANE[16][8] = {
    {  0,  1,  2,  3,  0,  1,  2,  3 }, {  4,  5,  6,  7,  4,  5,  6,  7 },
    {  8,  9, 10, 11,  8,  9, 10, 11 }, { 12, 13, 14, 15, 12, 13, 14, 15 },
    { 16, 17, 18, 19, 16, 17, 18, 19 }, { 20, 21, 22, 23, 20, 21, 22, 23 },
    { 24, 25, 26, 27, 24, 25, 26, 27 }, { 28, 29, 30, 31, 28, 29, 30, 31 },
    {  0,  1,  2,  3,  0,  1,  2,  3 }, {  4,  5,  6,  7,  4,  5,  6,  7 },
    {  8,  9, 10, 11,  8,  9, 10, 11 }, { 12, 13, 14, 15, 12, 13, 14, 15 },
    { 16, 17, 18, 19, 16, 17, 18, 19 }, { 20, 21, 22, 23, 20, 21, 22, 23 },
    { 24, 25, 26, 27, 24, 25, 26, 27 }, { 28, 29, 30, 31, 28, 29, 30, 31 }
};
static const uint8_t A_REGISTER[16][8] = {
    { 0, 0, 0, 0, 2, 2, 2, 2 }, { 0, 0, 0, 0, 2, 2, 2, 2 }, { 0, 0, 0, 0, 2, 2, 2, 2 },
    { 0, 0, 0, 0, 2, 2, 2, 2 }, { 0, 0, 0, 0, 2, 2, 2, 2 }, { 0, 0, 0, 0, 2, 2, 2, 2 },
    { 0, 0, 0, 0, 2, 2, 2, 2 }, { 0, 0, 0, 0, 2, 2, 2, 2 }, { 1, 1, 1, 1, 3, 3, 3, 3 },
    { 1, 1, 1, 1, 3, 3, 3, 3 }, { 1, 1, 1, 1, 3, 3, 3, 3 }, { 1, 1, 1, 1, 3, 3, 3, 3 },
    { 1, 1, 1, 1, 3, 3, 3, 3 }, { 1, 1, 1, 1, 3, 3, 3, 3 }, { 1, 1, 1, 1, 3, 3, 3, 3 },
    { 1, 1, 1, 1, 3, 3, 3, 3 }
};
// lane and register of the pair of rows (2p, 2p + 1) of a column of B (16, 8): [p][column]
static const uint8_t B_LANE[8][8] = {
    { 0, 4,  8, 12, 16, 20, 24, 28 }, { 1, 5,  9, 13, 17, 21, 25, 29 },
    { 2, 6, 10, 14, 18, 22, 26, 30 }, { 3, 7, 11, 15, 19, 23, 27, 31 },
    { 0, 4,  8, 12, 16, 20, 24, 28 }, { 1, 5,  9, 13, 17, 21, 25, 29 },
    { 2, 6, 10, 14, 18, 22, 26, 30 }, { 3, 7, 11, 15, 19, 23, 27, 31 }
};
static const uint8_t B_REGISTER[8] = { 0, 0, 0, 0, 1, 1, 1, 1 };
// lane of the pair of columns (2p, 2p + 1) of a row of D (16, 8); rows 0..7 are d0 and d1, rows
// 8..15 d2 and d3
static const uint8_t D_LANE[16][4] = {
    {  0,  1,  2,  3 }, {  4,  5,  6,  7 }, {  8,  9, 10, 11 }, { 12, 13, 14, 15 },
    { 16, 17, 18, 19 }, { 20, 21, 22, 23 }, { 24, 25, 26, 27 }, { 28, 29, 30, 31 },
    {  0,  1,  2,  3 }, {  4,  5,  6,  7 }, {  8,  9, 10, 11 }, { 12, 13, 14, 15 },
    { 16, 17, 18, 19 }, { 20, 21, 22, 23 }, { 24, 25, 26, 27 }, { 28, 29, 30, 31 }
};
static const uint8_t D_REGISTER[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2 };
// row, and first of the two neighbours in it, of what a lane gets of a matrix
static const uint8_t LD_ROW[32] = { 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                    4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7 };
static const uint8_t LD_FIRST[32] = { 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6,
                                      0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6 };

#ifdef SCB_CUDA
__global__ static void product(float *d, const uint32_t *a, const uint32_t *b) {
    int lane = (int)threadIdx.x;
    uint32_t ra[4], rb[2];
    float rd[4];
    for (int i = 0; i < 4; i++) { ra[i] = a[4 * lane + i]; rd[i] = d[4 * lane + i]; }
    for (int i = 0; i < 2; i++) rb[i] = b[2 * lane + i];
    mma_bf16(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[4 * lane + i] = rd[i];
}

static void test_product(void) {
    int A[16][16], B[16][8], D[16][8];
    uint32_t a[32][4] = { { 0 } }, b[32][2] = { { 0 } };
    float d[32][4], got[32][4], want[32][4];
    for (int r = 0; r < 16; r++) {
        for (int k = 0; k < 16; k++) A[r][k] = (int)(mix64((uint64_t)(16 * r + k)) % 127) - 63;
        for (int c = 0; c < 8; c++) B[r][c] = (int)(mix64((uint64_t)(900 + 8 * r + c)) % 127) - 63;
        for (int c = 0; c < 8; c++) D[r][c] = 1000 * r + c;
    }
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            a[A_LANE[r][k / 2]][A_REGISTER[r][k / 2]] |=
                (uint32_t)f32_bf16((float)A[r][k]) << 16 * (k % 2);
    for (int k = 0; k < 16; k++)
        for (int c = 0; c < 8; c++)
            b[B_LANE[k / 2][c]][B_REGISTER[k / 2]] |=
                (uint32_t)f32_bf16((float)B[k][c]) << 16 * (k % 2);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            int sum = D[r][c];
            for (int k = 0; k < 16; k++) sum += A[r][k] * B[k][c];
            d[D_LANE[r][c / 2]][D_REGISTER[r] + c % 2] = (float)D[r][c];
            want[D_LANE[r][c / 2]][D_REGISTER[r] + c % 2] = (float)sum;
        }
    uint32_t *da = to_device(&a[0][0], 128), *db = to_device(&b[0][0], 64);
    float *dd = to_device(&d[0][0], 128);
    LAUNCH(product, 1, 32, 0, twin_stream(), dd, da, db);
    from_device(&got[0][0], dd, 128);
    twin_equal("mma_bf16", &got[0][0], &want[0][0], 128);
    CUDA_OK(cudaFree(da));
    CUDA_OK(cudaFree(db));
    CUDA_OK(cudaFree(dd));
}

// matrix m, row r lies at row place[8 * m + r] of the shared rows
__global__ static void loads(uint32_t *out, const uint16_t *rows, const int *place) {
    SHARED(uint16_t, tile, 32 * 8);
    int lane = (int)threadIdx.x;
    for (int i = 0; i < 8; i++) tile[8 * lane + i] = rows[8 * lane + i];
    __syncwarp();
    const uint16_t *mine = tile + 8 * place[lane];
    uint32_t r[12];
    ldmatrix_x4(r, mine);
    ldmatrix_x4_trans(r + 4, mine);
    ldmatrix_x2(r + 8, mine);
    ldmatrix_x2_trans(r + 10, mine);
    for (int i = 0; i < 12; i++) out[12 * lane + i] = r[i];
}

static void test_loads(void) {
    int place[32];
    uint16_t rows[32][8];
    uint32_t want[32][12], got[32][12];
    for (int i = 0; i < 32; i++) {
        place[i] = (i * 11 + 5) % 32;
        for (int e = 0; e < 8; e++)
            rows[place[i]][e] = (uint16_t)(256 * (i / 8) + 16 * (i % 8) + e);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++) {
            uint32_t r = LD_ROW[lane], e = LD_FIRST[lane], at = 256u * (uint32_t)m;
            uint32_t plain = (at + 16 * r + e) | (at + 16 * r + e + 1) << 16;
            uint32_t turned = (at + 16 * e + r) | (at + 16 * (e + 1) + r) << 16;
            want[lane][m] = plain;
            want[lane][4 + m] = turned;
            if (m < 2) { want[lane][8 + m] = plain; want[lane][10 + m] = turned; }
        }
    uint32_t *out = device_array<uint32_t>(32 * 12);
    uint16_t *x = to_device(&rows[0][0], 256);
    int *at = to_device(place, 32);
    LAUNCH(loads, 1, 32, 0, twin_stream(), out, x, at);
    from_device(&got[0][0], out, 32 * 12);
    twin_equal("ldmatrix", &got[0][0], &want[0][0], 32 * 12);
    CUDA_OK(cudaFree(out));
    CUDA_OK(cudaFree(x));
    CUDA_OK(cudaFree(at));
}

// zeros where not wanted; two groups in flight
__global__ static void copies(uint32_t *y, const uint32_t *x) {
    SHARED(uint32_t, two, 2 * 128);
    int at = 4 * (int)threadIdx.x;
    cp_async16(two + at, x + at, true);
    cp_async_commit();
    cp_async16(two + 128 + at, x, false);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    y[threadIdx.x] = two[threadIdx.x];
    cp_async_wait<0>();
    __syncthreads();
    y[32 + threadIdx.x] = two[128 + (int)threadIdx.x * 4];
}

static void test_copies(void) {
    uint32_t x[128], got[64], want[64] = { 0 };
    for (uint32_t i = 0; i < 128; i++) x[i] = i + 1;
    memcpy(want, x, 128);
    uint32_t *dx = to_device(x, 128), *y = device_array<uint32_t>(64);
    LAUNCH(copies, 1, 32, 0, twin_stream(), y, dx);
    from_device(got, y, 64);
    twin_equal("cp_async16", got, want, 64);
    CUDA_OK(cudaFree(dx));
    CUDA_OK(cudaFree(y));
}

int main(void) {
    int rc = twin_begin();
    if (rc) return rc;
    test_product();
    test_loads();
    test_copies();
    return twin_end("fragments");
}
#endif
