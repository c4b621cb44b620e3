#!/usr/bin/env bash
# TA-Tok (Sec. 3.1 and 4.1, App. C.1), from SigLIP 2 and the embeddings of Qwen2.5.
#   GPUS=8 pipelines/paper/2-tokenizer.sh [WORK]
# WORK is that of 1-curate.sh; launch.sh has the other variables. The models are folders or hub ids
# in the local cache: `hf download ID` puts them there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/launch.sh"
work=${1:-work/paper}
siglip=${SIGLIP:-google/siglip2-so400m-patch14-384}
lm=${LM:-Qwen/Qwen2.5-1.5B-Instruct}

train tarkit train tokenizer "$here/tokenizer.toml" --images "$work/laion" --images "$work/laion_aes" --encoder "$siglip" --lm "$lm" --out "$work/ta_tok" ${TRY:-}
echo "$work/ta_tok"
