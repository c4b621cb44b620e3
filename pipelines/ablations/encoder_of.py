"""Writes the vision encoder of a TA-Tok as a model directory of its own.

python encoder_of.py TA_TOK OUT
"""

import sys
from pathlib import Path

from tarkit.checkpoints.directory import save_model
from tarkit.checkpoints.load import load_ta_tok


def main() -> None:
    ta_tok, out = map(Path, sys.argv[1:])
    encoder = load_ta_tok(ta_tok).model.encoder
    arch = encoder.arch.model_dump(mode="json")
    save_model(out, encoder, {"kind": "encoder", "arch": arch})


if __name__ == "__main__":
    main()
