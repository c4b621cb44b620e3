#!/usr/bin/env bash
# Finetunes the published Tar on your own pictures with LoRA, on one card of 24 GB.
#   pipelines/finetune/run.sh FOLDER CAPTIONS [WORK]
# FOLDER    your pictures: PNG, JPEG or WebP, in any subfolders
# CAPTIONS  a csv, jsonl or Parquet file with the columns image (the path in FOLDER) and caption
# Fetch the model first: tarkit models fetch tar-1.5b. The finetuned model is WORK/tar. WORK/mllm has
# its language model, sample sheets (samples/), models along the way (steps/) and the adapters in
# peft's format (adapter/). Every command goes on where it was stopped.
#   MODEL=tar-7b CONFIG=mllm_7b.toml   the larger model
#   SET="steps=100 lora.rank=8"        settings of the TOML
#   MODEL=mini SET="system= precision=no steps=100"   the embedded model, to try the script on CPUs
# What a training takes: tarkit plan pipelines/finetune/mllm.toml --gpus 1 --gpu rtx4090
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1
captions=$2
work=${3:-work/finetune}
model=${MODEL:-tar-1.5b}
config=$here/${CONFIG:-mllm.toml}
settings=()
for pair in ${SET:-seed=0}; do settings+=(--set "$pair"); done
mkdir -p "$work"
# Exit status 3: some rows failed, each with its reason; training leaves them out.
rows() { "$@" || [ $? -eq 3 ]; }

rows tarkit curate ingest "$folder" --captions "$captions" --out "$work/pictures"
rows tarkit encode "$work/pictures" --tokenizer "$model" --out "$work/tokens"
tarkit curate chats "$work/tokens" --out "$work/chats"
tarkit train mllm "$config" "${settings[@]}" --chats "$work/chats" --tokenizer "$model" --lm "$model" --ar-dtok "$model" --vqvae "$model" --out "$work/mllm"
tarkit assemble --mllm "$work/mllm" --tokenizer "$model" --ar-dtok "$model" --vqvae "$model" --out "$work/tar"

# The first captions drawn before and after, and a description of a drawn picture.
if [ ! -s "$work/prompts.txt" ]; then
    python -c 'import sys; from pathlib import Path; from tarkit.artifacts.artifact import open_artifact; a = open_artifact(Path(sys.argv[1]), "images"); print("\n".join([r["prompt"] for s in a.shards for r in a.rows(s) if r["prompt"]][:4]))' "$work/pictures" > "$work/prompts.part"
    mv "$work/prompts.part" "$work/prompts.txt"
fi
for tar in "$model" "$work/tar"; do
    tarkit generate --prompts "$work/prompts.txt" --n 2 --seed 0 --model "$tar" --out "$work/drawn_by_$(basename "$tar")"
done
tarkit generate "$(head -n 1 "$work/prompts.txt")" --seed 0 --model "$work/tar" --out "$work/drawn.png"
tarkit describe "$work/drawn.png" "Describe the image." --model "$work/tar" | tee "$work/described.txt"
tarkit report "$work/mllm" --title "Finetuned on $folder" --out "$work/report"
echo "$work/tar"
