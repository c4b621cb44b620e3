#!/usr/bin/env bash
# The paper's training in six steps, from its sources of pictures to a drawn picture.
#   GPUS=8 pipelines/paper/run.sh SOURCES [WORK]
# Each step is a script of this folder, which says what it needs; 1-curate.sh has the names of
# SOURCES, launch.sh the variables. A finished step is skipped and an interrupted one goes on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sources=$1
work=${2:-work/paper}

"$here/1-curate.sh" "$sources" "$work"
"$here/2-tokenizer.sh" "$work"
"$here/3-encode.sh" "$sources" "$work"
"$here/4-ar_dtok.sh" "$work"
"$here/5-dif_dtok.sh" "$work"
"$here/6-mllm.sh" "$work"
