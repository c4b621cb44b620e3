#!/usr/bin/env bash
# The whole chain from nothing to a scored picture, in minutes on two cores and without a network.
# It shows that every stage runs and fits the next; thirty steps are too few to learn to draw.
#   pipelines/smoke/run.sh [WORK]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-work/smoke}
mkdir -p "$work"

# Text from the standard library: the manual of help().
python - "$work/text.txt" <<'PY'
import sys
from pydoc_data.topics import topics
paragraphs = [" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")]
open(sys.argv[1], "w").write("\n".join(p for p in paragraphs if 20 < len(p) < 400) + "\n")
PY

tarkit curate render --config "$here/render.toml" --out "$work/pictures"
tarkit curate chats --text "$work/text.txt" --set max_documents=2000 --out "$work/text"
tarkit train mllm "$here/lm.toml" --chats "$work/text" --out "$work/lm"
tarkit train vqvae "$here/vqvae.toml" --images "$work/pictures" --out "$work/vqvae"
tarkit train encoder "$here/encoder.toml" --images "$work/pictures" --out "$work/encoder"
tarkit train tokenizer "$here/tokenizer.toml" --images "$work/pictures" --encoder "$work/encoder" --lm "$work/lm" --out "$work/ta_tok"
tarkit encode "$work/pictures" --tokenizer "$work/ta_tok" --out "$work/tokens"
tarkit curate chats "$work/tokens" --config "$here/chats.toml" --out "$work/chats"
tarkit train ar-dtok "$here/ar_dtok.toml" --images "$work/pictures" --tokenizer "$work/ta_tok" --vqvae "$work/vqvae" --out "$work/ar_dtok"
tarkit train mllm "$here/mllm.toml" --chats "$work/chats" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/lm" --ar-dtok "$work/ar_dtok" --vqvae "$work/vqvae" --out "$work/mllm"
tarkit assemble --mllm "$work/mllm" --tokenizer "$work/ta_tok" --ar-dtok "$work/ar_dtok" --vqvae "$work/vqvae" --half --set default_scale=3 --out "$work/tar"
tarkit generate "a photo of a red circle left of a blue square" --model "$work/tar" --out "$work/picture.png"
tarkit generate "a photo of <image> above a heart" --image "$work/picture.png" --model "$work/tar" --out "$work/edited.png"
printf 'a photo of a green star\na photo of three rings\n' > "$work/prompts.txt"
tarkit generate --prompts "$work/prompts.txt" --n 2 --seed 0 --model "$work/tar" --out "$work/drawn"
tarkit describe "$work/picture.png" "what color is the circle?" --model "$work/tar"
tarkit reconstruct "$work/picture.png" --model "$work/tar" --out "$work/reconstructed.png"
tarkit eval shapes --model "$work/tar" --limit 8 --out "$work/results"
for made in pictures tokens chats mllm tar; do
    tarkit inspect "$work/$made"
done
echo "smoke pipeline done: $work"
