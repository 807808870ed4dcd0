#!/usr/bin/env bash
# mutate.sh - do the tests see a wrong sign, a wrong head, an off-by-one? Changes one operator of the
# sources at a time in a copy of the tree, builds, runs the unit tests and lists what survived.
#
#     test/mutate.sh [COUNT [SEED [FILE...]]]      default 20 mutants, seed 1
#
# Some survivors change nothing that can be seen (a bound that is never met, a branch that only saves
# time); they are for a person to read. Fails when fewer than three in four mutants are killed.
set -u
cd "$(dirname "$0")/.." || exit 1

count=${1:-20} seed=${2:-1}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- matmul.cu sparse_attn.cu cache.cu evict.cu llama.cu model.c

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar cf - --anchored --no-wildcards-match-slash --exclude=./build --exclude=./.git --exclude=./.venv \
         --exclude=./.cache --exclude=./out --exclude='./*.bin' . | tar xf - -C "$copy"
[ -d .venv ] && ln -s "$PWD/.venv" "$copy/.venv"
cd "$copy" || exit 1
export MAKEFLAGS=--no-print-directory
build() { make -s -j"$(nproc)" CFLAGS=-O1 "$@" >build.log 2>&1; }       # -O1: the same bits, sooner

# every change that could be made, one per line: file, line number, the changed line.
# Comments, strings, preprocessor lines, checks and error messages are left alone.
candidates() {
    awk 'BEGIN {
        m = split("+ - - + < <= <= < > >= >= > += -= && || == != * +", op, " ")
        for (i = 1; i < m; i += 2) { from[++n] = " " op[i] " "; to[n] = " " op[i + 1] " " }
        m = split("h g l t j", index_of, " ")
        for (i = 1; i <= m; i++) {
            v = index_of[i]
            from[++n] = "[" v "]"; to[n] = "[" v " ? " v " - 1 : 1]"
        }
        from[++n] = "= 0;"; to[n] = "= 1;"
        from[++n] = " - 1"; to[n] = ""
        from[++n] = "fmaf("; to[n] = "fmaf(-"
    }
    /^[ \t]*(#|\/\/)/ || /"|CHECK|FAIL|const [a-z].*\[\] *=/ { next }
    {
        code = $0; note = ""
        if ((c = index($0, "//")) > 0) { code = substr($0, 1, c - 1); note = substr($0, c) }
        for (i = 1; i <= n; i++)
            for (at = 1; (p = index(substr(code, at), from[i])) > 0; at = q + length(from[i])) {
                q = at + p - 1
                print FILENAME "\t" FNR "\t" \
                      substr(code, 1, q - 1) to[i] substr(code, q + length(from[i])) note
            }
    }' "$@"
}

# the candidates in an order drawn from the seed, files in turn so that each has its share
draw() {
    candidates "$@" | awk -F'\t' -v seed="$seed" '
        BEGIN { srand(seed) }
        { line[NR] = $0; key[NR] = rand() }
        END {
            for (i = 1; i <= NR; i++) {
                j = 1 + int(key[i] * NR)
                t = line[i]; line[i] = line[j]; line[j] = t
            }
            for (i = 1; i <= NR; i++) { split(line[i], f, "\t"); printf "%d\t%s\n", ++nth[f[1]], line[i] }
        }' | sort -s -n -k1,1 | cut -f2-
}

build -k tests
tests=() targets=()
for test in test/test_*.c; do
    test=build/cpu/$(basename "$test" .c) start=$SECONDS
    [ -x "$test" ] || continue
    timeout 60 "$test" >/dev/null 2>&1 </dev/null
    [ $? = 0 ] && tests+=("$((20 + 5 * (SECONDS - start))) $test") && targets+=("$test")
done
if [ ${#tests[@]} = 0 ]; then
    tail -n 5 build.log
    echo "no unit test builds and passes on the unchanged tree"
    exit 1
fi
echo "${#tests[@]} unit tests, $count mutants of $*, seed $seed"

# 0: some test fails on the tree as it is now; a hang or a refusal to build counts as failing
killed_by() {
    local entry
    build "${targets[@]}" || { by=build; return 0; }
    for entry in "${tests[@]}"; do
        { (ulimit -v 33554432; timeout "${entry%% *}" "${entry#* }") </dev/null; } >/dev/null 2>&1 && continue
        by=${entry##*/}
        return 0
    done
    return 1
}

done_=0 killed=0 by=''
while [ $done_ -lt "$count" ] && IFS=$'\t' read -r file line text <&3; do
    object=build/cpu/${file%.*}.o
    cp "$file" original
    cp "$object" original.o
    awk -v n="$line" -v text="${text//\\/\\\\}" 'NR == n { print text; next } { print }' original >"$file"
    build "$object"
    # code for another machine, or the same instructions: no mutant at all
    if ! cmp -s "$object" original.o; then
        done_=$((done_ + 1))
        if killed_by; then
            killed=$((killed + 1))
            printf 'killed    %-22s %s:%s\n' "$by" "$file" "$line"
        else
            printf 'SURVIVED  %s:%s\n  was %s\n  now %s\n' "$file" "$line" \
                   "$(sed -n "${line}p" original | sed 's/^ *//')" "$(sed 's/^ *//' <<<"$text")"
        fi
    fi
    cp original "$file"
    cp original.o "$object"
done 3< <(draw "$@")

echo "$killed of $done_ mutants killed"
[ $((killed * 4)) -ge $((done_ * 3)) ]
