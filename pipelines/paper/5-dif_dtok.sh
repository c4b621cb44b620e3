#!/usr/bin/env bash
# The paper's Dif-DTok at 512 px, from SANA-0.6B (Sec. 3.2 and 4.1, Tables 7 and 8), and one of
# 1024 px from that, whose recipe the paper does not give.
#   GPUS=8 pipelines/paper/5-dif_dtok.sh [WORK]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/launch.sh"
work=${1:-work/paper}
sana=${SANA:-Efficient-Large-Model/Sana_600M_512px_diffusers}

train tarkit train dif-dtok "$here/dif_dtok_512.toml" --images "$work/gen23m" --tokenizer "$work/ta_tok" --sana "$sana" --out "$work/dif_dtok_512" ${TRY:-}
train tarkit train dif-dtok "$here/dif_dtok_1024.toml" --images "$work/gen3m" --tokenizer "$work/ta_tok" --sana "$work/dif_dtok_512" --out "$work/dif_dtok_1024" ${TRY:-}
echo "$work/dif_dtok_1024"
