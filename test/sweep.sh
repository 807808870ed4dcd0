#!/usr/bin/env bash
# sweep.sh - what every method loses as it keeps fewer rows: one run of all methods at 1/32 to 1/2 of
# the rows in both modes, over one prefill per session, and its figure.
#
#   test/sweep.sh MODEL.bin DIR [OPTIONS OF SCBENCH...]     e.g. --task retr_kv --ctx 4096 --sessions 20
#
# The rows go to DIR, the figure to DIR/sweep.png. A run that was cut off goes on.
set -u
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 dir=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd) || exit 1
[ -e "$dir/manifest.json" ] && set -- "$@" --resume

"$here/scbench" "$model" --method all --mode multi-turn,multi-request --keep 0.03125,0.0625,0.125,0.25,0.5 \
    --out "$dir" "$@" || exit $?
for python in "$here/.venv/bin/python" python3; do
    "$python" -c 'import matplotlib' 2>/dev/null && exec "$python" "$here/plot.py" sweep "$dir" "$dir/sweep.png"
done
echo "for the figure: test/venv.sh; .venv/bin/python plot.py sweep $dir $dir/sweep.png"
