#!/usr/bin/env bash
# run_plan.sh - plans of the papers' models against arithmetic written down in check_plan.py
set -u
cd "$(dirname "$0")/.." || exit 1
make -s scbench || exit 1
command -v python3 >/dev/null || { echo "there is no Python 3"; exit 77; }
PYTHONDONTWRITEBYTECODE=1 exec python3 test/check_plan.py
