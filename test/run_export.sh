#!/usr/bin/env bash
# run_export.sh - export.py against the checkpoints that test/check_export.py and check_models.py
# write, and the tokenizers of check_tokenizers.py
set -u
cd "$(dirname "$0")/.." || exit 1
for python in .venv/bin/python python3; do
    if $python -c 'import numpy, xxhash, safetensors, gguf, jinja2' 2>/dev/null; then
        export PYTHONDONTWRITEBYTECODE=1
        $python test/check_export.py && $python test/check_tokenizers.py &&
            exec $python test/check_models.py
        exit 1
    fi
done
echo "no Python with the packages of requirements.txt: run test/venv.sh"
exit 77
