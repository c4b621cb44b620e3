#!/usr/bin/env bash
# From the released weights to a picture, a description and a reconstruction.
#   pipelines/paper/released.sh [MODEL] [PIXELS] [OUT]
# Fetches what is missing (tar-1.5b with its parts: about 10 GB); without a network a filled hub
# cache is enough.
set -euo pipefail
model=${1:-tar-1.5b}
size=${2:-256}
out=${3:-work/released}
mkdir -p "$out"

tarkit models fetch "$model" --size "$size"
tarkit generate "A photo of a macaw" --model "$model" --size "$size" --out "$out/macaw.png"
tarkit describe "$out/macaw.png" "Describe the image shortly." --model "$model" | tee "$out/macaw.txt"
tarkit generate "make <image> on a beach" --image "$out/macaw.png" --model "$model" --size "$size" --out "$out/beach.png"
tarkit reconstruct "$out/macaw.png" --model "$model" --size "$size" --out "$out/reconstructed.png"
tarkit export hf "$model" --precision bfloat16 --out "$out/for_transformers"
