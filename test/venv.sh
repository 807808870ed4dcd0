#!/usr/bin/env bash
# venv.sh - .venv with the Python packages of export.py (requirements.txt). Silent and offline when
# it is complete; exit 77 with one sentence when it is not and cannot be completed.
set -u
cd "$(dirname "$0")/.." || exit 1

complete() { cmp -s requirements.txt .venv/requirements.done && .venv/bin/python -c '' 2>/dev/null; }

complete && exit 0
if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    echo "Python 3 with venv is missing: run 'make deps'"
    exit 77
fi

mkdir -p .cache
exec 9>.cache/venv.lock
flock 9                                 # two tests may arrive here at once
complete && exit 0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "venv: installing the Python packages of export.py into .venv" >&2
if { .venv/bin/python -c '' 2>/dev/null || python3 -m venv --clear .venv; } >"$log" 2>&1 &&
   .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 15 \
                    -r requirements.txt >>"$log" 2>&1; then
    cp requirements.txt .venv/requirements.done
    exit 0
fi
echo "the Python packages of export.py are not installed and pip cannot get them (no network?):" \
     "$(grep -i error "$log" | tail -n 1 | cut -c 1-160)"
exit 77
