"""Bits per byte of held-out text under general compressors: what needs no learning, and what has read the same text.

Method. `gzip -9` and `xz -9e` compress the held-out text alone, container included. Primed xz counts what the held-out
text adds after the training text: size(training + held-out) - size(training), both by `xz -9e` with a dictionary that
holds both texts whole, so that every phrase of the training text can be pointed at. Texts are joined by one newline
each; the newlines count on both sides of the fraction.
"""

import gzip
import lzma
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from llm_journey.core.errors import BadInputError

# The last part of the training text that primes xz. Two encoders with this much dictionary stay below 400 MB.
MAX_PRIMING_BYTES = 16 << 20
_SMALLEST_DICTIONARY = 1 << 16
_LARGEST_DICTIONARY = 1 << 26


def join_texts(texts: Iterable[str]) -> bytes:
    """Texts as one UTF-8 byte string, a newline after each."""
    return "".join(text + "\n" for text in texts).encode("utf-8")


def bits_per_byte_compressed(train: bytes, held_out: bytes) -> dict[str, float]:
    """Bits per byte of `held_out` under `gzip`, `xz` and `xz_primed` (by at most MAX_PRIMING_BYTES of `train`).

    Raises BadInputError where there is no held-out text.
    """
    if not held_out:
        raise BadInputError("bits per byte need held-out text of at least one byte")
    primer = train[-MAX_PRIMING_BYTES:]
    with ThreadPoolExecutor(max_workers=2) as pool:  # liblzma works outside the interpreter's lock
        alone, together = pool.map(_xz_size, [primer, primer + held_out])
    bits = 8 / len(held_out)
    return {
        "gzip": bits * len(gzip.compress(held_out, compresslevel=9, mtime=0)),
        "xz": bits * _xz_size(held_out),
        "xz_primed": bits * (together - alone),
    }


def _xz_size(data: bytes) -> int:
    """Size after `xz -9e` with a dictionary as large as the data (at most 64 MiB, which is -9's own)."""
    whole = 1 << max(len(data) - 1, 1).bit_length()
    dictionary = min(max(whole, _SMALLEST_DICTIONARY), _LARGEST_DICTIONARY)
    chain = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=[chain]))
