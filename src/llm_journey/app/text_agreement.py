"""The certificate of an encoder's or an encoder-decoder's folder from text on: transformers' own tokenizer included.

The folder is opened twice, by us and by transformers, and both get the same texts: an encoder fills a mask in each, an
encoder-decoder writes an answer to each (greedily; what it says need not make sense, only be the same).
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_journey.app.encoders import MaskFiller, Rewriter
from llm_journey.checkpoint.model_folder import load_config, load_tokenizer
from llm_journey.checkpoint.verify import open_with_transformers
from llm_journey.core.errors import JourneyError
from llm_journey.datasets.corruption import MASK_TOKEN
from llm_journey.tokenizer.marian_pieces import MarianPieces

_NEW_TOKENS = 32


def text_agreement(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """What a certificate says of a folder's text side: how many texts gave the same ids, and the same answer.

    Empty where no text can go in: a folder without a tokenizer, or an encoder without a head for its masks. Raises
    JourneyError where the two differ.
    """
    from llm_journey.app.opening import open_any

    config, tokenizer = load_config(folder), load_tokenizer(folder)
    if tokenizer is None or (config.kind == "encoder" and not config.head_transform):
        return {}
    ours = open_any(str(folder))
    if not isinstance(ours, MaskFiller | Rewriter):
        return {}
    if isinstance(tokenizer, MarianPieces) and importlib.util.find_spec("sentencepiece") is None:
        return {
            "notes": ["the text side is not compared: sentencepiece is missing (pip install 'llm-journey[marian]')"]
        }
    peer = _Peer(folder)
    same_ids = same_answers = count = 0
    for text in _fitting(ours, texts):
        count += 1
        same_ids += ours.ids(text) == peer.ids(text)
        same_answers += _answer(ours, text) == (peer.fill(text) if isinstance(ours, MaskFiller) else peer.write(text))
    if count == 0:
        return {}
    if (same_ids, same_answers) != (count, count):
        raise JourneyError(
            f"from text on, transformers finds the same ids for {same_ids} and the same answer for {same_answers} of "
            f"{count} texts; the export is not written"
        )
    return {"texts": count, "same_ids": same_ids / count, "same_answers": same_answers / count}


def _answer(ours: MaskFiller | Rewriter, text: str) -> str:
    if isinstance(ours, MaskFiller):
        return ours.fill(text, top=1)[0][0].text
    return ours.rewrite(text, settings={"num_beams": 1, "max_new_tokens": _NEW_TOKENS})[0].text


def _fitting(ours: MaskFiller | Rewriter, texts: Sequence[str]) -> Iterator[str]:
    """The texts, cut so that they fit the context; for an encoder with a mask in place of their fourth word."""
    context = ours.network.config.context
    for text in texts:
        words = text[: max(context // 2, 1)].split(" ")
        if isinstance(ours, MaskFiller):
            words[3:4] = [MASK_TOKEN]
        cut = " ".join(words).strip()
        if len(ours.ids(cut)) <= context:
            yield cut


class _Peer:
    """transformers' tokenizer and model of a folder."""

    def __init__(self, folder: Path) -> None:
        import transformers

        library: Any = transformers
        self.tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.model = open_with_transformers(folder)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    @torch.inference_mode()
    def fill(self, text: str) -> str:
        """The likeliest token, no special one, at the first mask."""
        ids_bt = torch.tensor([self.ids(text)])
        output = self.model(ids_bt)
        logits_btv: Tensor = output.prediction_logits if hasattr(output, "prediction_logits") else output.logits
        logits_v = logits_btv[ids_bt == self.tokenizer.mask_token_id][0]
        logits_v[list(self.tokenizer.added_tokens_decoder)] = -torch.inf
        found: str = self.tokenizer.decode([int(logits_v[: len(self.tokenizer)].argmax())])
        return found

    @torch.inference_mode()
    def write(self, text: str) -> str:
        """What greedy search writes, up to the end token."""
        encoded = self.tokenizer([text], return_tensors="pt")
        written = self.model.generate(**encoded, num_beams=1, do_sample=False, max_new_tokens=_NEW_TOKENS)
        ids = written[0, 1:].tolist()
        end = self.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        found: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return found
