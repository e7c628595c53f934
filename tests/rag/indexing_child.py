"""Indexes 300 documents into the folder it is given, slowly enough to be killed meanwhile."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_journey.rag import library as module
from llm_journey.rag.chunk import ChunkConfig
from llm_journey.rag.library import Library
from llm_journey.text.documents import Document

CONFIG = ChunkConfig(size=60, overlap=0)


def documents(pause: float = 0.0) -> list[Document]:
    found = []
    for number in range(300):
        time.sleep(pause)
        text = " ".join(f"word{number * 7 + index}" for index in range(20))
        found.append(Document(f"{number:03}.txt", text, f"{number:03}.txt"))
    return found


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.array([[len(text), sum(map(ord, text)) % 9973] for text in texts], dtype=np.float32)


def index(folder: Path, pause: float = 0.0) -> None:
    module._COMMIT_EVERY, module._EMBED_AT_ONCE = 20, 16

    def slowly(texts: Sequence[str]) -> np.ndarray:
        time.sleep(10 * pause)
        return embed(texts)

    with Library(folder) as library:
        library.update(documents(pause), CONFIG)
        library.embed("slow", slowly)


if __name__ == "__main__":
    print("begun", flush=True)
    index(Path(sys.argv[1]), 0.001)
