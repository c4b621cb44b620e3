# Read by the scripts of this folder: on how many GPUs a command runs, and how.
#   GPUS     GPUs of this machine (default 1)
#   NODES    machines that train together (default 1): run the same script on each, on a disk that
#            all share, with HEAD=the name of one of them
#   ENGINE   a TOML for `tarkit --engine`, which distributes the commands that are no training
#   SERVER   http://HOST:8000/v1, where the language models that write and judge are served
#   LIMIT    only the first rows of each input: LIMIT=64 tries all of it
#   TRY      further options of every training: TRY="--set steps=10 --set batch_size=8"
# Each command goes on where it was stopped. Exit status 3 is a run that finished with failed rows,
# each with its reason, which later commands leave out: the script continues.
gpus=${GPUS:-1}
nodes=${NODES:-1}

# A command in one process.
rows() { "$1" ${ENGINE:+--engine "$ENGINE"} "${@:2}" || [ $? -eq 3 ]; }

# A command that runs a model: one process a GPU, each with every n-th shard.
on_gpus() {
    if [ "$gpus" = 1 ] || [ -n "${ENGINE:-}" ]; then
        rows "$@"
        return
    fi
    local gpu pids=() pid
    for ((gpu = 0; gpu < gpus; gpu++)); do
        LOCAL_RANK=$gpu RANK=$gpu WORLD_SIZE=$gpus rows "$@" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
}

# A command that asks a language model.
ask() {
    if [ -n "${SERVER:-}" ]; then rows "$@" --server "$SERVER"; else on_gpus "$@"; fi
}

# A training: one process a GPU, all of them one run.
train() {
    if [ "$nodes" != 1 ]; then
        torchrun --nnodes "$nodes" --nproc-per-node "$gpus" --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --no-python "$@"
    elif [ "$gpus" != 1 ]; then
        torchrun --standalone --nproc-per-node "$gpus" --no-python "$@"
    else
        "$@"
    fi
}
