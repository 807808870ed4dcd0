// test_device.cu - transformers on the device against the same models on the CPU: logits of feeds
// and steps, alone, forked, marked, in a batch and on a shared context; the same bits repeated.
#include "models.h"

// rows that lie on the host, and layers on two devices, give the same bits
static void elsewhere(Model *gpu, bool offload, int gpus, Play play, const char *name, int budget) {
    Method method = method_of(name, 160, budget);
    ModelOpts opts = { 64, false, 0, true, offload, gpus };
    Err err;
    Model *m = model_open(&file, &opts, &err);
    need(m ? 0 : -1, &err);
    Trace want = played(gpu, play, &method), got = played(m, play, &method);
    twin_equal(offload ? "rows on the host" : "two devices", got.p, want.p, (size_t)got.n * n_vocab);
    if (offload && !m->pinned.high) {
        printf("%s: no row was on the host\n", name);
        twin_failures++;
    }
    model_close(m);
    free(want.p);
    free(got.p);
}

static void seen(void *user, int layer, int first, int n, const float *x) {
    Trace *t = (Trace *)user;
    (void)layer; (void)first;
    memcpy(t->p, x + (size_t)(n - 1) * t->n, sizeof(float) * (size_t)t->n);
}

// the residual stream of the last layer as a tap sees it
static void tapped(Model *cpu, Model *gpu) {
    int E = model_config(cpu)->dim;
    Trace x[2] = { { (float *)xrealloc(NULL, sizeof(float) * (size_t)E), E },
                   { (float *)xrealloc(NULL, sizeof(float) * (size_t)E), E } };
    Method full = method_of("full", 160, 0);
    double worst = 0;
    for (int i = 0; i < 2; i++) {
        Tap tap = { seen, &x[i] }, none = { NULL, NULL };
        Model *m = i ? gpu : cpu;
        Err err;
        Trace t = { (float *)xrealloc(NULL, sizeof(float) * KEPT * (size_t)n_vocab), 0 };
        Branch *b = branch_open(m, NULL, &full, 8, &err);
        model_set_tap(m, tap);
        feed(b, 1, 20, FEED_FIRST, &t);
        steps(b, 2, 2, &t);
        model_set_tap(m, none);
        branch_drop(b);
        free(t.p);
    }
    double sum = 0;
    for (int i = 0; i < E; i++) {
        worst = fmax(worst, fabs((double)x[0].p[i] - x[1].p[i]));
        sum += (double)x[0].p[i] * x[0].p[i];
    }
    worst /= sqrt(sum / E);
    printf("tapped: the residual stream within %.2g of its size\n", worst);
    if (!(worst <= 0.05)) twin_failures++;
    free(x[0].p);
    free(x[1].p);
}

int main(void) {
    int rc = twin_begin();
    Err err;
    if (rc) return rc;
    need(cpu_init(1, &err), &err);
    static const char *const files[] = { "data/tiny_llama.bin" };
    for (size_t i = 0; i < COUNTOF(files); i++) {
        need(file_open(&file, files[i], false, &err), &err);
        Model *cpu = opened(false), *gpu = opened(true);
        compare(files[i], "root", cpu, gpu, root, "full", 0, 0.05);
        compare(files[i], "shared", cpu, gpu, shared, "full", 0, 0.05);
        tapped(cpu, gpu);
        elsewhere(gpu, true, 1, root, "full", 0);
        int n = 0;
        CUDA_OK(cudaGetDeviceCount(&n));
        if (n > 1) {
            elsewhere(gpu, false, 2, shared, "snapkv", 48);
            elsewhere(gpu, false, 2, root, "tri-shape+h2o", 48);
            elsewhere(gpu, true, 2, shared, "corm", 0);
        }
        Ceilings top = model_ceilings(gpu, 1 << 16, 0);
        if (!(top.tile_tflops > 0 && top.read_gbs > 0)) twin_failures++;
        model_close(cpu);
        model_close(gpu);
        file_close(&file);
    }
    return twin_end("device");
}
