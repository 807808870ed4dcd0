// fuzz_predictions.c - any bytes as a prediction file: every line is scored in [0, 1] or named as
// malformed. The last byte of the input chooses task and scorer.
#include "tasks/tasks.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    static int fd = -1;
    static FILE *nowhere;
    char path[32];
    Err err = { "", 0 };
    int n_tasks = 0;
    if (fd < 0) fd = memfd_create("fuzz", 0), nowhere = fopen("/dev/null", "wb");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(!ftruncate(fd, (off_t)size - 1) &&
          pwrite(fd, data, size - 1, 0) == (ssize_t)size - 1, "memfd");
    while (task_at(n_tasks)) n_tasks++;
    const Task *task = task_at(data[size - 1] / 2 % n_tasks);
    Scorer which = data[size - 1] % 2 ? SCORER_HARNESS : SCORER_OURS;
    if (predictions_score(nowhere, task, path, which, &err))
        CHECK(err.msg[0], "refused without a word");
    return 0;
}

__attribute__((unused))
static StrBuf seed_input(void) {
    StrBuf s = { 0 };
    str_puts(&s,
        "{\"id\": 0, \"turn_idx\": 0, \"task\": \"scbench_repoqa\", \"lang\": \"python\", \"repo\": \"a/b\", "
        "\"func_name\": \"add\", \"prediction\": \"```python\\ndef add(a, b):\\n    return a + b\\n```\", "
        "\"ground_truth\": \"def add(a, b):\\n    return a + b\"}\n"
        "{\"id\": 1, \"turn_idx\": 1, \"task\": \"scbench_kv\", \"prediction\": \"x 12.5\", \"ground_truth\": [\"x\", 12]}\n"
        "{\"id\": 2, \"turn_idx\": 0, \"prediction\": \"\xe5\x8c\x97\xe4\xba\xac\", \"ground_truth\": \"\xe5\x8c\x97\"}\n"
        "{\"id\": 3, \"turn_idx\": 1, \"task\": \"scbench_passkey\", \"prediction\": \"A. 5\", \"ground_truth\": 5}\n");
    str_add(&s, "\x16", 1);
    return s;
}

FUZZ_MAIN(seed_input)
