#!/usr/bin/env bash
# The paper's training data (Sec. 3.4, App. D), from its sources to chats. At the paper's size this
# takes many GPUs for weeks: an engine distributes each command (tarkit --engine FILE), and an
# interrupted command resumes. LIMIT=64 tries all of it on a few rows.
#   pipelines/paper/1-curate.sh SOURCES [WORK]
# SOURCES holds data that the user must provide:
#   megalith.parquet                  URLs of Megalith-10M (url, licence)
#   imagenet/                         pictures of ImageNet-1K and -21K
#   user_prompts/                     JourneyDB and Midjourney-Prompts (jsonl, csv or Parquet)
#   examples.txt                      long prompts whose style the captions follow, one per line
#   geneval.jsonl, dpg.jsonl          prompts of GenEval and DPG-Bench, excluded from training
#   text.jsonl, llava.json, llava/    text-only rows; LLaVA's conversations and their pictures
# If SEER and WRITER run on a server, also give caption, split and judge --server
# http://HOST:8000/v1.
set -euo pipefail
sources=$1
work=${2:-work/curate}
seer=${SEER:-Qwen/Qwen2.5-VL-7B-Instruct}
writer=${WRITER:-Qwen/Qwen2.5-7B-Instruct}
painter=${PAINTER:-black-forest-labs/FLUX.1-schnell}
tokenizer=${TOKENIZER:-tar-1.5b}
limit=${LIMIT:-100000000}
mkdir -p "$work"
# Exit status 3 is a run that finished with failed rows, each with its reason; the script continues.
rows() { "$@" || [ $? -eq 3 ]; }

# Prompts: written by a model for pictures, and by people (D.1).
rows tarkit curate download "$sources/megalith.parquet" --limit "$limit" --out "$work/megalith"
rows tarkit curate ingest "$sources/imagenet" --limit "$limit" --out "$work/imagenet"
for part in megalith imagenet; do
    rows tarkit curate caption "$work/$part" --llm "$seer" --examples "$sources/examples.txt" --limit "$limit" --out "$work/${part}_prompts"
done
rows tarkit curate prompts "$sources/user_prompts" --exclude "$sources/geneval.jsonl" --exclude "$sources/dpg.jsonl" --limit "$limit" --out "$work/user_prompts"

# Pictures: one of each prompt, and for I2I and TI2I a second seed and the phrase alone (D.1, D.2).
for part in megalith_prompts imagenet_prompts user_prompts; do
    rows tarkit curate split "$work/$part" --llm "$writer" --limit "$limit" --out "$work/${part}_split"
    rows tarkit curate synthesize "$work/$part" --generator "$painter" --limit "$limit" --out "$work/${part}_pictures"
    rows tarkit curate synthesize "$work/${part}_split" --generator "$painter" --set seeds=2 --set seed=1 --limit "$limit" --out "$work/${part}_groups"
    for made in pictures groups; do
        rows tarkit curate score "$work/${part}_$made" --scorer pixels --out "$work/${part}_${made}_spread"
        rows tarkit encode "$work/${part}_$made" --tokenizer "$tokenizer" --out "$work/${part}_${made}_tokens"
        rows tarkit curate chats "$work/${part}_${made}_tokens" --keep "$work/${part}_${made}_spread" --min 0.02 --out "$work/${part}_${made}_chats"
    done
done

# Self-Reflect: pictures of prompts in the style of GenEval and DPG-Bench, judged (Sec. 4.3).
for style in geneval dpg; do
    judged="$work/judge_$style"
    rows tarkit curate prompts --style "$style" --set count=85000 --exclude "$sources/dpg.jsonl" --limit "$limit" --out "$judged/prompts"
    rows tarkit curate synthesize "$judged/prompts" --generator "$painter" --set seeds=2 --limit "$limit" --out "$judged/pictures"
    rows tarkit curate judge "$judged/pictures" --llm "$seer" --set mismatched=0.3 --out "$judged/judgements"
    rows tarkit encode "$judged/pictures" --tokenizer "$tokenizer" --out "$judged/tokens"
    rows tarkit curate chats "$judged/tokens" --judgements "$judged/judgements" --set t2i_per_picture=0 --set captions_per_picture=0 --set i2i_per_picture=0 --out "$judged/chats"
done

# Instructions: text alone, and conversations about pictures.
rows tarkit curate chats --text "$sources/text.jsonl" --out "$work/text_chats"
rows tarkit curate ingest "$sources/llava" --questions "$sources/llava.json" --limit "$limit" --out "$work/llava"
rows tarkit encode "$work/llava" --tokenizer "$tokenizer" --out "$work/llava_tokens"
rows tarkit curate chats "$work/llava_tokens" --set qa_per_picture=16 --set qa_turns=16 --set qa_order=given --out "$work/llava_chats"
echo "$work"
