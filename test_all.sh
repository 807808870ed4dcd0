#!/usr/bin/env bash
# test_all.sh - builds and runs every test this machine can; the last line is
# "N passed, N failed, N skipped". SOAK=1 adds the long ones (make soak).
#
# A test exits 0 (passed), 77 (skipped, its last line says why) or anything else (failed).
set -u
cd "$(dirname "$0")" || exit 1
exec </dev/null
shopt -s nullglob

LIMIT=$([ "${SOAK:-0}" = 1 ] && echo 7200 || echo 420)      # seconds for one test
BUDGET=$([ "${SOAK:-0}" = 1 ] && echo 999999 || echo 1380)  # seconds after which no test begins

# all cores that this machine, or this container's quota, really gives
cores=$(nproc)
if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
    share=$(((quota + period - 1) / period))
    [ "$share" -lt "$cores" ] && cores=$share
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}
export UBSAN_OPTIONS=print_stacktrace=1 PYTHONDONTWRITEBYTECODE=1
export MAKEFLAGS=--no-print-directory

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'echo "interrupted"; exit 130' INT TERM
passed=0 failed=0 skipped=0 began=$SECONDS

# run NAME COMMAND...: one test, one line. ENOUGH=s: a test that is still at it then is left there
run() {
    local name=$1 log start rc word reason='' took
    shift
    log=$logs/${name//\//.}.log
    if [ $((SECONDS - began)) -ge "$BUDGET" ]; then
        echo "the time budget of $BUDGET s is spent" >"$log"
        set -- sh -c 'exit 77'
    fi
    start=$(date +%s%N)
    timeout -k 10 "${ENOUGH:-$LIMIT}" "$@" >>"$log" 2>&1
    rc=$?
    if [ $rc = 124 ] && [ -n "${ENOUGH:-}" ]; then
        echo "found nothing in $ENOUGH s, which is as long as it may take" >>"$log"
        rc=77
    fi
    took=$(awk -v ns=$(($(date +%s%N) - start)) 'BEGIN { printf "%.1f", ns / 1e9 }')
    case $rc in
    0)  word=ok passed=$((passed + 1)) ;;
    77) word=skip skipped=$((skipped + 1)) reason="  $(tail -n 1 "$log" | cut -c 1-200)" ;;
    *)  word=FAIL failed=$((failed + 1)) ;;
    esac
    [ $rc = 124 ] && echo "stopped after $LIMIT s" >>"$log"
    printf '%-4s %7s s  %s%s\n' $word "$took" "$name" "$reason"
    echo "$took $name" >>"$logs/times"
    [ $word = FAIL ] || return 0
    echo "---- the end of its output (exit $rc):"
    tail -n 40 "$log" | sed 's/^/     | /'
    return 1
}

# Tests of one thread run side by side: `beside NAME COMMAND...` is run() in the background, as many
# as there are cores; `together` waits for them and counts.
beside() {
    while [ "$(jobs -pr | wc -l)" -ge "$cores" ]; do wait -n; done
    {
        passed=0 failed=0 skipped=0
        run "$@" >"$logs/beside.$BASHPID.out"
        echo "$passed $failed $skipped" >"$logs/beside.$BASHPID.count"
    } &
}
together() {
    local count p f k
    wait
    for count in "$logs"/beside.*.count; do
        cat "${count%.count}.out"
        read -r p f k <"$count"
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + k))
        rm -f "$count" "${count%.count}.out"
    done
}

# unit VARIANT FLAGS TARGETS: builds one variant, then runs its unit tests; one whose build fails
# counts as failed itself, whatever an older build left
unit() {
    local variant=$1 flags=$2 targets=$3 source name
    ENOUGH='' run "build/$variant" make -s -k -j"$cores" $flags $targets
    for source in test/test_*.c; do
        name=$(basename "$source" .c)
        run "$variant/$name" sh -c "make -s $flags build/$variant/$name && exec build/$variant/$name"
    done
}

if ! make deps; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
run check make check
run python-packages test/venv.sh
unit cpu '' 'all tests'
for source in test/cuda/test_*.cu; do
    name=$(basename "$source" .cu)
    beside "emu/$name" sh -c "make -s build/emu/cuda/$name && exec build/emu/cuda/$name"
done
together
# the same on the GPU, where there is one
if reason=$(test/gpu.sh); then
    run build/cuda make -s -k -j"$cores" CUDA=1 all tests
    for source in test/cuda/test_*.cu; do
        name=$(basename "$source" .cu)
        run "cuda/$name" "build/cuda/cuda/$name"
        for tool in memcheck racecheck initcheck synccheck; do
            command -v compute-sanitizer >/dev/null &&
                run "$tool/$name" compute-sanitizer -q --tool $tool --error-exitcode 1 \
                    "build/cuda/cuda/$name"
        done
    done
else
    run cuda sh -c "echo '$reason: the kernels ran in the emulation alone'; exit 77"
fi
unit portable 'PORTABLE=1' 'all tests'
for script in test/run_*.sh; do
    run "$(basename "$script" .sh)" bash "$script"
done
for source in test/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    run "asan/$name" sh -c "make -s SAN=asan build/asan/$name && build/asan/$name ${FUZZ_SECONDS:-3}"
done
ENOUGH=$([ "${SOAK:-0}" = 1 ] || echo 60) unit asan 'SAN=asan' tests
if [ "${SOAK:-0}" = 1 ]; then
    for script in test/soak_*.sh test/mutate.sh; do
        run "$(basename "$script" .sh)" bash "$script"
    done
fi

echo
echo "slowest:"
sort -rn "$logs/times" | head -n 10 | awk '{ printf "     %7s s  %s\n", $1, $2 }'
echo "$((SECONDS - began)) s in all"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
