#!/usr/bin/env bash
# deps.sh - the compiler and the libraries of the README, installed where they are missing. Silent
# and offline when all are there.
set -u

have() {
    local tool
    for tool in cc make pkg-config python3; do command -v $tool >/dev/null || return 1; done
    pkg-config --exists libpcre2-8 libutf8proc jansson libxxhash || return 1
    python3 -c 'import venv, ensurepip' 2>/dev/null || return 1
    printf '%s\n' '#define PCRE2_CODE_UNIT_WIDTH 8' '#include <pcre2.h>' '#include <utf8proc.h>' \
        '#include <jansson.h>' '#include <xxhash.h>' '#include <omp.h>' |
        cc $(pkg-config --cflags libpcre2-8 libutf8proc jansson libxxhash) -fopenmp \
           -fsyntax-only -x c - 2>/dev/null
}

have && exit 0

packages='build-essential pkg-config libpcre2-dev libutf8proc-dev libjansson-dev libxxhash-dev python3 python3-venv'
line="apt-get update -qq; apt-get install -y $packages"

if ! command -v apt-get >/dev/null; then
    echo "deps: no apt-get here; install a C compiler, make, pkg-config, Python 3 with venv, and the" \
         "development files of PCRE2, utf8proc, jansson and xxHash, then run make again" >&2
    exit 1
fi
as=''
if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then as='sudo -n'
    elif [ -t 0 ] && [ -t 2 ] && command -v sudo >/dev/null; then as='sudo'
    else
        echo "deps: libraries are missing and installing them needs root: sudo sh -c '$line'" >&2
        exit 1
    fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "deps: installing $packages" >&2
$as env DEBIAN_FRONTEND=noninteractive sh -c "$line" >"$log" 2>&1 </dev/null
have && exit 0
tail -n 5 "$log" >&2
echo "deps: the installation failed (no network?); run by hand: sudo sh -c '$line'" >&2
exit 1
