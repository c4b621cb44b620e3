#!/usr/bin/env bash
# The paper's AR-DTok at 256, 512 and 1024 px, each trained on from the one before (App. C.1; Tables
# 7 and 8). The pictures are encoded once, so that training runs no encoder.
#   pipelines/paper/4-ar_dtok.sh LAION GEN3M [CURATED] [WORK]
# LAION     images artifact of 50M aesthetic pictures of LAION, of 512 px and more
# GEN3M     images artifact of 3M synthetic pictures of 1024 px
# CURATED   the work folder of 1-curate.sh: its synthetic pictures are Gen23M
# LIMIT=64 encodes only the first rows of each. Every command goes on where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
laion=$1
gen3m=$2
curated=${3:-work/curate}
work=${4:-work/ar_dtok}
tokenizer=${TOKENIZER:-tar-1.5b}
vqvae=${VQVAE:-tar-1.5b}
limit=${LIMIT:-100000000}
mkdir -p "$work"
# Exit status 3 is a run that finished with failed rows, which training leaves out: go on.
rows() { "$@" || [ $? -eq 3 ]; }

# The paper does not say how a picture becomes square. Those of LAION have any shape, and lose their
# edges here rather than their proportions; the synthetic ones are square.
rows tarkit encode "$laion" --tokenizer "$tokenizer" --vqvae "$vqvae" --set vq_size_px=256 --set square=crop --limit "$limit" --out "$work/tokens_256"
for part in megalith_prompts imagenet_prompts user_prompts; do
    rows tarkit encode "$curated/${part}_pictures" --tokenizer "$tokenizer" --vqvae "$vqvae" --set vq_size_px=512 --set batch_size=16 --limit "$limit" --out "$work/tokens_512_$part"
done
rows tarkit encode "$gen3m" --tokenizer "$tokenizer" --vqvae "$vqvae" --set vq_size_px=1024 --set batch_size=4 --limit "$limit" --out "$work/tokens_1024"

tarkit train ar-dtok "$here/ar_dtok_256.toml" --tokens "$work/tokens_256" --tokenizer "$tokenizer" --vqvae "$vqvae" --out "$work/ar_dtok_256"
tarkit train ar-dtok "$here/ar_dtok_512.toml" --tokens "$work/tokens_512_megalith_prompts" --tokens "$work/tokens_512_imagenet_prompts" --tokens "$work/tokens_512_user_prompts" --tokenizer "$tokenizer" --vqvae "$vqvae" --start "$work/ar_dtok_256" --out "$work/ar_dtok_512"
tarkit train ar-dtok "$here/ar_dtok_1024.toml" --tokens "$work/tokens_1024" --tokenizer "$tokenizer" --vqvae "$vqvae" --start "$work/ar_dtok_512" --out "$work/ar_dtok_1024"
echo "$work/ar_dtok_1024"
