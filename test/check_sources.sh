#!/usr/bin/env bash
# check_sources.sh - every source compiles without a warning: as C, the .cu files also as C++; every
# header compiles alone. As CUDA: run_kernels.sh.
set -u
cd "$(dirname "$0")/.." || exit 1
shopt -s nullglob

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export tmp
export flags="-I. $(pkg-config --cflags libpcre2-8 libutf8proc jansson libxxhash) -fopenmp
              -ffp-contract=off -Wall -Wextra -Wno-missing-field-initializers -Wvla"
export CC=${CC:-cc} CXX=${CXX:-g++}
case $(uname -m) in x86_64) export tune='-march=native' ;; *) export tune='' ;; esac

# check KIND FILE: prints what the compiler said, if anything; the compiler's words are the failure
check() {
    local kind=$1 file=$2 said
    case $kind in
    C)      said=$($CC -x c -std=gnu11 -O2 $tune $flags -c "$file" -o "$tmp/${file//\//_}.o" 2>&1) ;;
    C++)    said=$($CXX -x c++ -std=c++17 $tune $flags -fsyntax-only "$file" 2>&1) ;;
    header) said=$(echo "#include \"$file\"" | $CC -x c -std=gnu11 $flags -fsyntax-only - 2>&1) ;;
    esac
    local rc=$?
    [ $rc = 0 ] && [ -z "$said" ] && return 0
    printf '%s as %s:\n%s\n' "$file" "$kind" "$said"
    return 1
}
export -f check

list() {
    for file in *.c *.cu tasks/*.c test/*.c test/*.cu test/fuzz/*.c test/bench/*.c; do echo C "$file"; done
    for file in *.cu test/*.cu; do echo C++ "$file"; done
    for file in *.h tasks/*.h test/*.h test/fuzz/*.h test/bench/*.h test/cuda/*.h; do echo header "$file"; done
}

list >"$tmp/list"
xargs -P "$(nproc)" -L 1 bash -c 'check "$0" "$1"' <"$tmp/list" >"$tmp/said" 2>&1
rc=$?
cat "$tmp/said"
[ $rc = 0 ] && [ ! -s "$tmp/said" ] || exit 1
echo "$(wc -l <"$tmp/list") compilations without a warning" \
     "($(cut -d' ' -f1 "$tmp/list" | sort | uniq -c | awk '{ printf "%s%d %s", n++ ? ", " : "", $1, $2 }'))"
