#!/usr/bin/env bash
# Pictures to codes, once for all that is trained from them, and codes to chats (App. C.1, D.2,
# Table 7).
#   GPUS=8 pipelines/paper/3-encode.sh SOURCES [WORK]
# SOURCES and WORK are those of 1-curate.sh. VQVAE is LlamaGen's image VQ, as it was released with
# Tar.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/launch.sh"
sources=$1
work=${2:-work/paper}
limit=${LIMIT:-100000000}
tokenizer=$work/ta_tok
vqvae=${VQVAE:-tar-1.5b}
mkdir -p "$work/tokens" "$work/chats"

# Codes for AR-DTok, of TA-Tok and of the image VQ. The paper does not say how a picture becomes
# square. Those of LAION have any shape, and lose their edges here rather than their proportions;
# the synthetic ones are square. Open: which 50M of LAION's aesthetic pictures.
on_gpus tarkit encode "$work/laion_aes" --tokenizer "$tokenizer" --vqvae "$vqvae" --set vq_size_px=256 --set square=crop --limit "${LIMIT:-50000000}" --out "$work/tokens/laion_aes"
on_gpus tarkit encode "$work/gen23m" --tokenizer "$tokenizer" --vqvae "$vqvae" --set vq_size_px=512 --set batch_size=16 --limit "$limit" --out "$work/tokens/gen23m"
on_gpus tarkit encode "$work/gen3m" --tokenizer "$tokenizer" --vqvae "$vqvae" --set vq_size_px=1024 --set batch_size=4 --limit "$limit" --out "$work/tokens/gen3m"

# Codes for the language model alone.
for part in gen15m sft_lumina sft_sana reflect_geneval reflect_dpg datacomp recap_cc12m recap_558k recap_118k llava; do
    on_gpus tarkit encode "$work/$part" --tokenizer "$tokenizer" --limit "$limit" --out "$work/tokens/$part"
done

# Pretraining: Gen23M is T2I, Gen15M is I2I and TI2I, recaptioned pictures are I2T.
rows tarkit curate chats "$work/tokens/gen23m" --set captions_per_picture=0 --out "$work/chats/gen23m"
rows tarkit curate chats "$work/tokens/gen15m" --set t2i_per_picture=0 --set captions_per_picture=0 --out "$work/chats/gen15m"
rows tarkit curate chats "$work/tokens/datacomp" --set t2i_per_picture=0 --set captions_per_picture=1 --out "$work/chats/datacomp"
for part in recap_cc12m recap_558k recap_118k llava; do
    rows tarkit curate chats "$work/tokens/$part" --set t2i_per_picture=0 --set captions_per_picture=0 --set qa_per_picture=16 --set qa_turns=16 --set qa_order=given --out "$work/chats/$part"
done

# SFT: Gen-SFT is T2I, Self-Reflect is I2T.
rows tarkit curate chats "$work/tokens/gen23m" --keep "$work/gen23m_clip" --min 0.25 --by cosine --set captions_per_picture=0 --out "$work/chats/gen_sft"
for part in sft_lumina sft_sana; do
    rows tarkit curate chats "$work/tokens/$part" --set captions_per_picture=0 --out "$work/chats/$part"
done
for part in reflect_geneval reflect_dpg; do
    rows tarkit curate chats "$work/tokens/$part" --judgements "$work/${part}_judged" --set t2i_per_picture=0 --set captions_per_picture=0 --set i2i_per_picture=0 --out "$work/chats/$part"
done

# Text alone: Magpie is in both stages.
for part in magpie webinstruct openhermes genqa infinity; do
    rows tarkit curate chats --text "$sources/$part.jsonl" --limit "$limit" --out "$work/chats/$part"
done
rows tarkit curate chats --text "$sources/magpie.jsonl" --limit "${LIMIT:-1000000}" --out "$work/chats/magpie_sft"
echo "$work/chats"
