#!/usr/bin/env bash
# run_kernels.sh - every kernel of the release build was run by the tests of test/cuda in the
# emulation, instantiation by instantiation. Where nvcc is, it also compiles every .cu for three
# architectures without a warning and without a spilled register, and its objects say which kernels
# there are; elsewhere the sources do, by name alone.
set -u
cd "$(dirname "$0")/.." || exit 1
shopt -s nullglob
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
NVCC=${NVCC:-nvcc}
export MAKEFLAGS=--no-print-directory

# the emulated tests leave the names of what they launched beside themselves
for source in test/cuda/test_*.cu; do
    name=build/emu/cuda/$(basename "$source" .cu)
    make -s "$name" >"$tmp/said" 2>&1 || { cat "$tmp/said"; exit 1; }
    [ "$name.launched" -nt "$name" ] || "$name" >"$tmp/said" 2>&1 || { cat "$tmp/said"; exit 1; }
    cat "$name.launched"
done | sort -u >"$tmp/launched"

# "name<arguments>" of a demangled kernel, without return type and parameters
plain() {
    awk '{ depth = 0; start = 1; end = length($0) + 1
           for (i = 1; i <= length($0); i++) {
               c = substr($0, i, 1)
               if (c == "<") depth++
               if (c == ">") depth--
               if (c == " " && !depth) start = i + 1
               if (c == "(" && !depth && i > start) { end = i; break }
           }
           print substr($0, start, end - start) }'
}

if command -v "$NVCC" >/dev/null; then
    case $(uname -m) in x86_64) tune='-march=native' ;; *) tune='' ;; esac
    export NVCC tune tmp
    compile() {
        local out=$tmp/${1//\//_} gen
        gen="-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
             -gencode arch=compute_100,code=sm_100 -Xptxas -warn-spills"
        case $1 in test/*) gen='-arch=sm_90' ;; esac
        # -O1 is the host's, where GCC's own AVX-512 headers draw -Wuninitialized
        "$NVCC" -std=c++17 -O1 -fmad=false -ftz=true -I. $gen -c -x cu "$1" -o "$out.o" \
            -Xcompiler "$tune -fopenmp -ffp-contract=off -Wall -Wno-uninitialized -Wno-maybe-uninitialized" \
            >"$out.said" 2>&1
        local rc=$?
        [ $rc = 0 ] && [ ! -s "$out.said" ] && return 0
        printf '%s for CUDA:\n' "$1"
        cat "$out.said"
        return 1
    }
    export -f compile
    printf '%s\n' *.cu test/cuda/*.cu | xargs -P "$(nproc)" -I{} bash -c 'compile {}' || exit 1
    # a kernel's stub on the host: _ZL<length>__device_stub_<mangled name><parameters once more>
    for object in "$tmp"/*.cu.o; do
        case $object in */test_cuda_*) continue ;; esac
        nm "$object"
    done | awk 'match($0, /_Z+L[0-9]+__device_stub_/) {
                    s = substr($0, RSTART); sub(/^_Z+L/, "", s)
                    n = s + 0; sub(/^[0-9]+/, "", s)
                    print substr(s, length("__device_stub_") + 1, n - length("__device_stub_")) }' |
        sort -u | c++filt | plain | sort -u >"$tmp/kernels"
    how="for sm_80, sm_90 and sm_100 without a warning or a spill"
else
    cat *.cu | tr '\n' ' ' | grep -oE '__global__[^;{(]*(__launch_bounds__\([^)]*\)[^;{(]*)?\(' |
        sed -E 's/ *\($//; s/.*[ *]//' | sort -u >"$tmp/kernels"
    sed -i 's/<.*//' "$tmp/launched"
    sort -u -o "$tmp/launched" "$tmp/launched"
    how="by name: nvcc is not here"
fi

comm -23 "$tmp/kernels" "$tmp/launched" >"$tmp/missing"
if [ -s "$tmp/missing" ]; then
    echo "kernels that no emulated test has run:"
    sed 's/^/    /' "$tmp/missing"
    exit 1
fi
echo "$(wc -l <"$tmp/kernels") kernels, $how, and every one ran in the emulation"
