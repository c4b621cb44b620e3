#!/usr/bin/env bash
# The language model: pretraining and supervised finetuning (Sec. 3.3 and 3.4, Tables 7 and 8); then
# all parts in one folder, and a picture.
#   GPUS=8 pipelines/paper/6-mllm.sh [WORK]
# LM is the one whose embeddings made the codebook in 2-tokenizer.sh: {E, C} need one width.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/launch.sh"
work=${1:-work/paper}
lm=${LM:-Qwen/Qwen2.5-1.5B-Instruct}
vqvae=${VQVAE:-tar-1.5b}
size=${SIZE:-512}
tokenizer=$work/ta_tok

train tarkit train mllm "$here/mllm_pretrain.toml" --chats "$work/chats/recap_cc12m" --chats "$work/chats/datacomp" --chats "$work/chats/gen23m" --chats "$work/chats/gen15m" --chats "$work/chats/magpie" --chats "$work/chats/webinstruct" --chats "$work/chats/openhermes" --chats "$work/chats/genqa" --chats "$work/chats/infinity" --lm "$lm" --tokenizer "$tokenizer" --out "$work/mllm_pretrained" ${TRY:-}
train tarkit train mllm "$here/mllm_sft.toml" --chats "$work/chats/llava" --chats "$work/chats/recap_558k" --chats "$work/chats/recap_118k" --chats "$work/chats/reflect_geneval" --chats "$work/chats/reflect_dpg" --chats "$work/chats/gen_sft" --chats "$work/chats/sft_lumina" --chats "$work/chats/sft_sana" --chats "$work/chats/magpie_sft" --lm "$work/mllm_pretrained" --tokenizer "$tokenizer" --out "$work/mllm" ${TRY:-}

tarkit assemble --mllm "$work/mllm" --tokenizer "$tokenizer" --ar-dtok "$work/ar_dtok_$size" --vqvae "$vqvae" --dif-dtok "$work/dif_dtok_512" --out "$work/tar"
tarkit generate "A photo of a macaw" --model "$work/tar" --out "$work/macaw.png"
tarkit generate "A photo of a macaw" --model "$work/tar" --dtok dif --out "$work/macaw_dif.png"
tarkit describe "$work/macaw.png" "Describe the image shortly." --model "$work/tar" | tee "$work/macaw.txt"
tarkit export hf "$work/tar" --precision bfloat16 --out "$work/for_transformers"
