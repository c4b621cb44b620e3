#!/usr/bin/env bash
# The paper's pictures, prompts and judgements (Sec. 3.4, App. D, Table 7), from their sources.
#   pipelines/paper/1-curate.sh SOURCES [WORK]
# launch.sh has the variables for several GPUs and for a first try. SOURCES holds what the user must
# provide, by the names of Table 7; lists of URLs are Parquet files with a column url:
#   laion.parquet, laion_aes.parquet    100M rows of LAION-5B, and 100M filtered by aesthetics
#   megalith.parquet                    Megalith-10M
#   imagenet/                           pictures of ImageNet-1K and -21K
#   journeydb/, midjourney/             prompts of JourneyDB and Midjourney-Prompts, as jsonl, csv
#                                       or Parquet
#   examples.txt                        long prompts whose style the captions follow, one a line
#   geneval.jsonl, dpg.jsonl            prompts of GenEval and DPG-Bench, excluded from training
#   datacomp.parquet                    20M rows of Recap-DataComp-1B, with a column caption
#   recap_cc12m/, recap_558k/, recap_118k/, llava/, and for each its conversations, as llava.json:
#                                       LLaVA-Recap-CC12M, -558K, -118K and LLaVA-v1.5 (665K)
#   sft_prompts.txt                     prompts that people prefer and that are like the benchmarks'
# 3-encode.sh also reads magpie.jsonl, webinstruct.jsonl, openhermes.jsonl, genqa.jsonl and
# infinity.jsonl there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/launch.sh"
sources=$1
work=${2:-work/paper}
limit=${LIMIT:-100000000}
seer=${SEER:-Qwen/Qwen2.5-VL-7B-Instruct}
writer=${WRITER:-Qwen/Qwen2.5-7B-Instruct}
painter=${PAINTER:-black-forest-labs/FLUX.1-schnell}
# Open: the paper names two models for Gen-SFT and no settings, and no CLIP.
lumina=${LUMINA:-Alpha-VLLM/Lumina-Image-2.0}
sana=${SANA15:-Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers}
clip=${CLIP:-openai/clip-vit-large-patch14}
mkdir -p "$work/prompts"

# The prompts of several artifacts as one folder of Parquet files: gather FOLDER PART...
gather() {
    mkdir -p "$1"
    local part shard
    for part in "${@:2}"; do
        for shard in "$work/prompts/$part"/*.parquet; do
            ln -sf "$(realpath "$shard")" "$1/$part-$(basename "$shard")"
        done
    done
}

# LAION, for TA-Tok and for AR-DTok at 256 px; aesthetic pictures of 512 px and more (App. C.1).
rows tarkit curate download "$sources/laion.parquet" --limit "$limit" --out "$work/laion"
rows tarkit curate download "$sources/laion_aes.parquet" --set min_side_px=512 --limit "$limit" --out "$work/laion_aes"

# Prompts: written by a model for pictures, and by people (D.1).
rows tarkit curate download "$sources/megalith.parquet" --limit "$limit" --out "$work/megalith"
rows tarkit curate ingest "$sources/imagenet" --limit "$limit" --out "$work/imagenet"
for part in megalith imagenet; do
    ask tarkit curate caption "$work/$part" --llm "$seer" --examples "$sources/examples.txt" --limit "$limit" --out "$work/prompts/$part"
done
for part in journeydb midjourney; do
    rows tarkit curate prompts "$sources/$part" --limit "$limit" --out "$work/prompts/$part"
done
gather "$work/prompts_23m" megalith imagenet journeydb midjourney
gather "$work/prompts_15m" megalith imagenet journeydb
for made in 23m 15m; do
    rows tarkit curate prompts "$work/prompts_$made" --exclude "$sources/geneval.jsonl" --exclude "$sources/dpg.jsonl" --limit "$limit" --out "$work/gen${made}_prompts"
done

# Gen23M: a picture of each prompt. Gen15M: a second seed and the phrase alone, for I2I and TI2I
# (D.2). Gen3M: pictures of 1024 px, of Megalith alone (App. C.1, Table 7).
on_gpus tarkit curate synthesize "$work/gen23m_prompts" --generator "$painter" --limit "$limit" --out "$work/gen23m"
ask tarkit curate split "$work/gen15m_prompts" --llm "$writer" --limit "$limit" --out "$work/gen15m_split"
on_gpus tarkit curate synthesize "$work/gen15m_split" --generator "$painter" --set seeds=2 --set seed=1 --limit "$limit" --out "$work/gen15m"
on_gpus tarkit curate synthesize "$work/prompts/megalith" --generator "$painter" --set size_px=1024 --set seed=2 --limit "${LIMIT:-3000000}" --out "$work/gen3m"

# Gen-SFT: pictures of Gen23M whose CLIP score is above .25, and some by advanced models (Sec. 3.4).
on_gpus tarkit curate score "$work/gen23m" --scorer clip --model "$clip" --limit "$limit" --out "$work/gen23m_clip"
rows tarkit curate prompts "$sources/sft_prompts.txt" --exclude "$sources/geneval.jsonl" --exclude "$sources/dpg.jsonl" --limit "$limit" --out "$work/sft_prompts"
on_gpus tarkit curate synthesize "$work/sft_prompts" --generator "$lumina" --set steps=30 --set guidance=4 --limit "$limit" --out "$work/sft_lumina"
on_gpus tarkit curate synthesize "$work/sft_prompts" --generator "$sana" --set steps=20 --set guidance=4.5 --limit "$limit" --out "$work/sft_sana"

# Self-Reflect-340K: pictures of prompts in the style of GenEval and DPG-Bench, judged (App. F).
for style in geneval dpg; do
    rows tarkit curate prompts --style "$style" --set count=85000 --exclude "$sources/dpg.jsonl" --limit "$limit" --out "$work/reflect_${style}_prompts"
    on_gpus tarkit curate synthesize "$work/reflect_${style}_prompts" --generator "$painter" --set seeds=2 --limit "$limit" --out "$work/reflect_$style"
    ask tarkit curate judge "$work/reflect_$style" --llm "$seer" --set mismatched=0.3 --limit "$limit" --out "$work/reflect_${style}_judged"
done

# Pictures with captions and conversations (Table 7: I2T).
rows tarkit curate download "$sources/datacomp.parquet" --limit "${LIMIT:-20000000}" --out "$work/datacomp"
for part in recap_cc12m recap_558k recap_118k llava; do
    rows tarkit curate ingest "$sources/$part" --questions "$sources/$part.json" --limit "$limit" --out "$work/$part"
done
echo "$work"
