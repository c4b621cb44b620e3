#!/usr/bin/env bash
# A short run on one GPU that measures every trainer at the paper's sizes. It prints what is
# installed, runs the chain of pipelines/smoke, and ten steps of every trainer, from random weights,
# in bf16. It measures speed and memory; nothing
# is learned. Its limits of time add up to 25 minutes. Batches fit a GPU of 80 GB (planned, not yet
# run); the folder takes about 50 GB of disk.
#   pipelines/gpu/run.sh STAGE...
# STAGE   all, or some of: versions smoke models data encoder vqvae tokenizer ar_dtok dif_dtok mllm
#         generate grpo. Those behind data need models and data; generate needs ar_dtok and mllm,
#         and grpo needs generate.
# Every stage has its own limit of time and adds a line of JSON to WORK/results.jsonl, with tokens/s,
# pictures/s, MFU, peak memory and the estimates of `tarkit plan`; what it printed is in
# WORK/logs/STAGE.txt. A stage that fails is a line too, and the next one runs.
#   WORK=work/gpu                                 the folder, which may be deleted afterwards
#   DEVICE=cpu TINY=1 pipelines/gpu/run.sh all    the same commands on CPUs, with tiny sizes
set -uo pipefail
export here work DEVICE TINY gpu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${WORK:-work/gpu}
DEVICE=${DEVICE:-cuda}
TINY=${TINY:-0}
mkdir -p "$work/logs"
if [ "$DEVICE" = cpu ]; then export CUDA_VISIBLE_DEVICES=""; fi
if [ -z "$(command -v tarkit)" ]; then # in a checkout that is not installed
    mkdir -p "$work/bin"
    printf '#!/usr/bin/env bash\nexec python -m tarkit.cli "$@"\n' > "$work/bin/tarkit"
    chmod +x "$work"/bin/*
    export PATH=$work/bin:$PATH PYTHONPATH=$here/../..
fi

# ---- sizes: batch sizes fit a GPU of 80 GB -------------------------------------------------------

ten=(--set steps=10 --set log_every=5 --set 'trackers=[]' --set keep_checkpoints=1)
if [ "$TINY" = 1 ]; then
    count=24
    encoder=(--set batch_size=4 --set arch.width=32 --set arch.layers=2 --set arch.heads=2 --set arch.mlp_width=48 --set arch.size_px=58)
    vqvae=(--set batch_size=2 --set size_px=32 --set arch.channels=32 --set 'arch.encoder_multipliers=[1,1]' --set 'arch.decoder_multipliers=[1,1]' --set arch.num_res_blocks=1 --set arch.num_codes=16)
    tokenizer=(--set batch_size=4 --set micro_batch_size=2 --set sizes.num_codes=64 --set sizes.code_width=32 --set sizes.decoder_heads=2 --set sizes.decoder_mlp_width=48 --set sizes.decoder_side=4)
    vq_size=64
    ar_dtok=(--set batch_size=4 --set arch.layers=1 --set arch.heads=2 --set arch.width=32 --set arch.multiple_of=16 --set arch.condition_width=32 --set arch.vocab_size=16 --set arch.num_codes=16 --set arch.max_condition=16)
    dif_dtok=(--set batch_size=4 --set size_px=32 --set sample_steps=2 --set sample_pictures=1)
    mllm=(--set batch_size=13 --set length=512)
else
    count=512
    encoder=(--set batch_size=64 --set arch.width=1152 --set arch.layers=27 --set arch.heads=16 --set arch.mlp_width=4304 --set arch.size_px=384)
    vqvae=(--set batch_size=16)
    tokenizer=(--set batch_size=64 --set micro_batch_size=16)
    vq_size=256
    ar_dtok=(--set batch_size=48 --set micro_batch_size=12)
    dif_dtok=(--set batch_size=16 --set sample_steps=2 --set sample_pictures=1)
    mllm=(--set batch_size=64 --set micro_batch_tokens=8192)
fi

# ---- stages --------------------------------------------------------------------------------------

versions() {
    tarkit version --json
    python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
}
smoke() {
    bash "$here/../smoke/run.sh" "$work/smoke"
}
models() {
    python "$here/random_models.py" "$work/random" siglip2 qwen ta_tok vqvae sana
}
data() {
    tarkit curate render --set count="$count" --set shard_size=256 --set captions=2 --set questions=2 --out "$work/pictures"
    tarkit encode "$work/pictures" --tokenizer "$work/random/ta_tok" --vqvae "$work/random/vqvae" --set vq_size_px="$vq_size" --device "$DEVICE" --out "$work/tokens"
    tarkit curate chats "$work/tokens" --out "$work/chats"
    printf 'A document without a picture, number %d.\n' {1..200} > "$work/text.txt"
    tarkit curate chats --text "$work/text.txt" --out "$work/text"
}
encoder() {
    tarkit train encoder "$here/../smoke/encoder.toml" "${ten[@]}" --set precision=bf16 --set arch.patch_px=14 --set 'arch.stem_channels=[]' "${encoder[@]}" --images "$work/pictures" --out "$work/encoder"
}
vqvae() {
    tarkit plan "$here/../paper/vqvae.toml" --gpus 1 --gpu "$gpu" "${ten[@]}" --set precision=bf16 --set perceptual=0 "${vqvae[@]}" --json > "$work/vqvae.plan.json" || echo "no plan" >&2
    tarkit train vqvae "$here/../paper/vqvae.toml" "${ten[@]}" --set precision=bf16 --set perceptual=0 "${vqvae[@]}" --images "$work/pictures" --out "$work/vqvae"
}
tokenizer() {
    tarkit plan "$here/../paper/tokenizer.toml" --gpus 1 --gpu "$gpu" "${ten[@]}" --set 'images_weights=[1]' "${tokenizer[@]}" --encoder "$work/random/siglip2" --lm "$work/random/qwen" --json > "$work/tokenizer.plan.json" || echo "no plan" >&2
    tarkit train tokenizer "$here/../paper/tokenizer.toml" "${ten[@]}" --set 'images_weights=[1]' --set measure_pictures=32 "${tokenizer[@]}" --encoder "$work/random/siglip2" --lm "$work/random/qwen" --images "$work/pictures" --out "$work/tokenizer"
}
ar_dtok() {
    tarkit plan "$here/../paper/ar_dtok_256.toml" --gpus 1 --gpu "$gpu" "${ten[@]}" "${ar_dtok[@]}" --tokenizer "$work/random/ta_tok" --vqvae "$work/random/vqvae" --json > "$work/ar_dtok.plan.json" || echo "no plan" >&2
    tarkit train ar-dtok "$here/../paper/ar_dtok_256.toml" "${ten[@]}" "${ar_dtok[@]}" --tokens "$work/tokens" --tokenizer "$work/random/ta_tok" --vqvae "$work/random/vqvae" --out "$work/ar_dtok"
}
dif_dtok() {
    tarkit train dif-dtok "$here/../paper/dif_dtok_512.toml" "${ten[@]}" "${dif_dtok[@]}" --images "$work/pictures" --tokenizer "$work/random/ta_tok" --sana "$work/random/sana" --out "$work/dif_dtok"
}
mllm() {
    tarkit plan "$here/../paper/mllm_pretrain.toml" --gpus 1 --gpu "$gpu" "${ten[@]}" "${mllm[@]}" --tokenizer "$work/random/ta_tok" --lm "$work/random/qwen" --json > "$work/mllm.plan.json" || echo "no plan" >&2
    tarkit train mllm "$here/../paper/mllm_pretrain.toml" "${ten[@]}" --set embedding_start=random "${mllm[@]}" --chats "$work/chats" --chats "$work/text" --tokenizer "$work/random/ta_tok" --lm "$work/random/qwen" --out "$work/mllm"
}
generate() {
    tarkit assemble --mllm "$work/mllm" --tokenizer "$work/random/ta_tok" --ar-dtok "$work/ar_dtok" --vqvae "$work/random/vqvae" --half --set default_scale=3 --out "$work/tar"
    printf 'a photo of a red circle\na photo of two stars\na photo of a ring\na photo of a heart\n' > "$work/prompts.txt"
    tarkit generate --prompts "$work/prompts.txt" --n 4 --model "$work/tar" --device "$DEVICE" --out "$work/drawn"
}
grpo() {
    tarkit train grpo "$here/../grpo/grpo.toml" "${ten[@]}" --set steps=4 --set log_every=2 --set precision=bf16 --set batch_size=8 --set group=4 --set round_steps=2 --set 'scale_ratio=[0,0,1]' --set 'read_scale_ratio=[0,0,1]' --set length=1024 --set keep_every=100 --model "$work/tar" --prompts "$work/prompts.txt" --scorer shapes --chats "$work/chats" --chats "$work/text" --out "$work/grpo"
}

# ---- one after the other -------------------------------------------------------------------------

declare -A limits=(
    [versions]=60 [smoke]=240 [models]=150 [data]=120 [encoder]=90 [vqvae]=90 [tokenizer]=120
    [ar_dtok]=90 [dif_dtok]=120 [mllm]=150 [grpo]=150 [generate]=90
)
every=(versions smoke models data encoder vqvae tokenizer ar_dtok dif_dtok mllm generate grpo)
stages=("$@")
if [ $# -eq 0 ]; then sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; fi
if [ "$1" = all ]; then stages=("${every[@]}"); fi
gpu=$(python "$here/result.py" gpu)
# `timeout` starts another shell, and arrays cannot be exported: it is given their declarations.
settings=$(declare -p ten count encoder vqvae tokenizer vq_size ar_dtok dif_dtok mllm)
failed=0
for stage in "${stages[@]}"; do
    if [ -z "${limits[$stage]:-}" ]; then echo "no stage $stage; there are: ${every[*]}" >&2; exit 2; fi
    began=$(date +%s)
    timeout --kill-after=10 "${limits[$stage]}" bash -c "set -euo pipefail; $settings; $(declare -f "$stage"); $stage" > "$work/logs/$stage.txt" 2>&1
    status=$?
    [ $status -eq 0 ] || failed=1
    python "$here/result.py" stage "$stage" "$work" $(($(date +%s) - began)) $status | tee -a "$work/results.jsonl"
    # Weights that no later stage reads, and checkpoints of one that was ended.
    rm -rf "$work/$stage/state"
    case $stage in encoder | vqvae | tokenizer | dif_dtok | grpo) rm -f "$work/$stage"/*.safetensors "$work/$stage"/*/*.safetensors ;; esac
done
exit $failed
