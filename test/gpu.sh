#!/usr/bin/env bash
# gpu.sh - exit 0 where CUDA programs can be built and run; otherwise says why not, exit 77
command -v "${NVCC:-nvcc}" >/dev/null || { echo "no nvcc here"; exit 77; }
nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || { echo "no NVIDIA GPU here"; exit 77; }
