"""Runs a nanoGPT checkout's own train.py, then scores its final model on the whole validation split.

    python benchmarks/peers/nanogpt.py CHECKOUT TEXT WORK_FOLDER RESULT_JSON TRAIN_ARGUMENTS...

The checkout is copied to the work folder, so that it stays as it is. Its data is written as its own prepare.py does.
"""

import json
import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Prepare, train, score, write the result."""
    checkout, text, work, result = (Path(argument) for argument in sys.argv[1:5])
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(checkout, work, ignore=shutil.ignore_patterns(".git", "assets"))
    characters = text.read_text(encoding="utf-8")
    alphabet = {character: number for number, character in enumerate(sorted(set(characters)))}
    ids = np.array([alphabet[character] for character in characters], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    data = work / "data" / "shakespeare_char"
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    with (data / "meta.pkl").open("wb") as file:  # the format that train.py reads; written here, by us, for it alone
        pickle.dump({"vocab_size": len(alphabet)}, file)
    os.chdir(work)
    sys.argv = ["train.py", *sys.argv[5:]]
    sys.path.insert(0, str(work))
    model = runpy.run_path("train.py")["model"]
    model.eval()
    from pretrain import evaluate

    def logits(inputs):  # type: ignore[no-untyped-def]
        return model(inputs, inputs)[0]  # with targets it returns the logits of all positions

    loss = evaluate(logits, ids[cut:].astype(np.int64), model.config.block_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result.write_text(json.dumps({"validation_loss": loss, "parameters": parameters}), encoding="utf-8")


if __name__ == "__main__":
    main()
