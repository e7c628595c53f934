"""Cleaning: the same text, one spelling of it. Pure, and idempotent: cleaning what is clean changes nothing.

What `clean` does, in this order:
1. Line ends (CR LF, CR, NEL, VT, FF, U+2028, U+2029) become a line feed.
2. Control characters, the byte-order mark, soft hyphens and noncharacters go; lone surrogates become U+FFFD.
   Zero-width joiners stay: Persian, Indic scripts and emoji are spelled with them.
3. Every Unicode space becomes a plain space (tabs stay).
4. Unicode Normalization Form C (UAX #15).
5. Runs of spaces inside a line become one space; indentation stays, since code and lists are written with it. Spaces
   at a line's end go, more than one blank line becomes one, blank lines at both ends go.

Left out on purpose: repairing wrongly decoded text (the ftfy library does that well), case, punctuation, HTML entities.
"""

import re
import unicodedata

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\ufeff\ufdd0-\ufdef\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_RUNS = re.compile(r"(?<=[^ \t\n])[ \t]{2,}(?=[^ \t\n])")
_TRAILING = re.compile(r"(?<![ \t])[ \t]+(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """The text in its one spelling (rules above). `clean(clean(text)) == clean(text)` for every string."""
    text = _LINE_ENDS.sub("\n", text)
    text = _UNWANTED.sub("", text)
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
        text = _SPACES.sub(" ", text)
        text = unicodedata.normalize("NFC", text)
    if "  " in text or "\t" in text:  # looking for a substring is far cheaper than the patterns
        text = _RUNS.sub(" ", text)
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = _TRAILING.sub("", text)
    return _BLANK_LINES.sub("\n\n", text).strip("\n")
