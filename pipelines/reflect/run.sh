#!/usr/bin/env bash
# What the embedded model gains by choosing among its own pictures, along its training. This is
# Self-reflect in miniature (paper Sec. 4.3, Tables 10 and 11). It measures the gain from choosing
# pictures by the model's own judgement, before, during and after the seventh stage of the embedded
# model, which learns to judge the pictures of the sixth. It also measures the distance between its
# pictures and true ones. It needs the WORK of pipelines/mini/run.sh and half an hour on two cores.
# A finished step is skipped.
#   pipelines/reflect/run.sh [WORK]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-work/mini}

# Table 10: before, during and after the seventh stage.
for kept in "$work/mllm6" "$work/mllm7/steps/0001200" "$work/mllm7/steps/0002400" "$work/mllm7"; do
    name=$(basename "$kept")
    tarkit assemble --mllm "$kept" --tokenizer "$work/ta_tok" --ar-dtok "$work/ar_dtok3" --vqvae "$work/vqvae" --half --config "$here/../mini/assemble.toml" --out "$work/reflect/tar_$name"
    tarkit eval reflect --model "$work/reflect/tar_$name" --limit 100 --out "$work/reflect/$name"
done

# Table 11: true pictures reconstructed from the image VQ and from the codes of each scale; drawn
# pictures.
truth="$work/results/ceilings/truth"
for made in ceilings/pixel_vq ceilings/semantic_1 ceilings/semantic_2 ceilings/semantic_3 samples; do
    tarkit eval gfid "$work/results/$made" "$truth" --features shapes --out "$work/reflect/gfid_$(basename "$made")"
done
tarkit report "$work/results" "$work"/reflect/mllm6 "$work"/reflect/0* "$work"/reflect/mllm7 "$work"/reflect/gfid_* "$work/mllm7" --title "Self-reflect in miniature" --out "$work/reflect/report"
