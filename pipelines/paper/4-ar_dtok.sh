#!/usr/bin/env bash
# The paper's AR-DTok at 256, 512 and 1024 px, each trained on from the one before (App. C.1; Tables
# 7 and 8), on codes that 3-encode.sh stored: training runs no encoder.
#   GPUS=8 pipelines/paper/4-ar_dtok.sh [WORK]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/launch.sh"
work=${1:-work/paper}
tokenizer=$work/ta_tok
vqvae=${VQVAE:-tar-1.5b}

train tarkit train ar-dtok "$here/ar_dtok_256.toml" --tokens "$work/tokens/laion_aes" --tokenizer "$tokenizer" --vqvae "$vqvae" --out "$work/ar_dtok_256" ${TRY:-}
train tarkit train ar-dtok "$here/ar_dtok_512.toml" --tokens "$work/tokens/gen23m" --tokenizer "$tokenizer" --vqvae "$vqvae" --start "$work/ar_dtok_256" --out "$work/ar_dtok_512" ${TRY:-}
train tarkit train ar-dtok "$here/ar_dtok_1024.toml" --tokens "$work/tokens/gen3m" --tokenizer "$tokenizer" --vqvae "$vqvae" --start "$work/ar_dtok_512" --out "$work/ar_dtok_1024" ${TRY:-}
echo "$work/ar_dtok_1024"
