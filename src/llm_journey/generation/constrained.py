"""What an answer may be: JSON of a schema, a match of a regex, or one of several texts. Each token obeys.

Before every token, those are masked out after which no permitted text could be written any more (Willard and Louf 2023,
"Efficient Guided Generation"). The grammars are llguidance's (Earley's parser over derivatives of regexes, walked along
a trie of the vocabulary); what is written here is how our tokenizer becomes its trie, which schemas and regexes are
taken at all, and what a hostile one may cost. Special tokens never stand inside text, and an answer can end only where
the grammar may end.

JSON is written with at most one space between its parts: a model can then not lose itself in white space.
"""

import json
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import regex as regex_module
import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import TURN_TOKENS

MAX_REGEX, MAX_REPEATS, MAX_SCHEMA_BYTES, MAX_CHOICES, MAX_CHOICES_LENGTH = 4096, 1000, 1 << 18, 1000, 1 << 16
# What a grammar may cost: steps to build it, steps and items for one token, states in all (one or two kB each). With
# these the most hostile regexes tried take 0.2 s and 20 MB; with llguidance's own a{1000000000} takes all memory.
_LIMITS = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 20_000,
    "max_items_in_row": 1000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
_JSON = {"whitespace_pattern": "[ ]?", "lenient": False, "coerce_one_of": True}
_REPEATS = regex_module.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")

_tokenizers: "weakref.WeakKeyDictionary[Tokenizer, Any]" = weakref.WeakKeyDictionary()


class GrammarConstraint:
    """A grammar and how far an answer has come in it; satisfies generation.engine.Constraint."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self) -> Tensor:
        """Booleans (V,): which tokens may come next. Raises JourneyError where the grammar costs too much to follow."""
        bias = self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise JourneyError(f"the grammar cannot be followed further: {_reason(self._matcher)}")
        return torch.frombuffer(bytearray(bias), dtype=torch.uint8) != 0

    def accept(self, token: int) -> None:
        """Go on past a token."""
        if not self._matcher.consume_token(token):
            raise JourneyError(f"token {token} does not fit the grammar: {_reason(self._matcher)}")

    @property
    def done(self) -> bool:
        """Whether nothing more may follow."""
        return bool(self._matcher.is_stopped())


def make_constraint(
    tokenizer: Tokenizer,
    *,
    schema: Mapping[str, Any] | bool | None = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    stop_ids: Collection[int] = (),
) -> GrammarConstraint:
    """A constraint for one answer; exactly one of the three says which.

    schema: a JSON schema (drafts 4 to 2020-12). regex: the whole answer matches it. choices: the answer is one of them.
    stop_ids: what ends an answer (default: the tokenizer's end of text and of a chat's turn). Raises BadInputError with
    the reason for what is wrong, not supported, or too costly.
    """
    given = [name for name, value in (("schema", schema), ("regex", regex), ("choices", choices)) if value is not None]
    if len(given) != 1:
        raise BadInputError(f"give one of schema, regex, choices; given: {', '.join(given) or 'none'}")
    library = _library()
    if schema is not None:
        grammar = _schema_grammar(library, schema)
    elif regex is not None:
        grammar = library.LLMatcher.grammar_from_regex(checked_regex(regex))
    else:
        grammar = library.LLMatcher.grammar_from_lark(_choices_grammar(choices or ()))
    vocabulary = _vocabulary(library, tokenizer, frozenset(stop_ids) or _end_ids(tokenizer))
    matcher = library.LLMatcher(vocabulary, grammar, log_level=0, limits=library.LLParserLimits(**_LIMITS))
    if not matcher.is_error():
        matcher.compute_logit_bias()  # the first token shows what it costs, and whether anything can be written at all
    if matcher.is_error():
        raise BadInputError(f"{given[0]} cannot be followed: {_reason(matcher)}")
    return GrammarConstraint(matcher)


def checked_regex(pattern: str) -> str:
    """`pattern`, once it is one that any engine takes and that is cheap to follow. Raises BadInputError.

    A count of repetitions is limited as in RE2. `foo**`, which once ended a server (vllm#19270), is no regex.
    """
    if len(pattern) > MAX_REGEX:
        raise BadInputError(f"the regex has {len(pattern)} characters; at most {MAX_REGEX} are taken")
    for found in _REPEATS.finditer(pattern):
        if any(len(number) > 4 or int(number or 0) > MAX_REPEATS for number in found.groups()):
            shown = found.group()[:40]
            raise BadInputError(f"the regex repeats {shown!r}; at most {MAX_REPEATS} repetitions are taken")
    try:
        regex_module.compile(pattern)
    except (regex_module.error, RecursionError, OverflowError, ValueError) as error:
        raise BadInputError(f"the regex {pattern[:80]!r} is wrong: {_one_line(str(error))}") from None
    return pattern


def _schema_grammar(library: Any, schema: Mapping[str, Any] | bool) -> str:
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(f"the schema is no JSON: {_one_line(str(error))}") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadInputError(f"the schema has {len(text)} bytes; at most {MAX_SCHEMA_BYTES} are taken")
    try:
        grammar: str = library.LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
    except ValueError as error:
        raise BadInputError(f"schema cannot be followed: {_one_line(str(error))}") from None
    return grammar


def _choices_grammar(choices: Sequence[str]) -> str:
    if not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise BadInputError(f"choices must be 1 to {MAX_CHOICES} texts, none of them empty")
    if sum(map(len, choices)) > MAX_CHOICES_LENGTH:
        raise BadInputError(f"the choices have more than {MAX_CHOICES_LENGTH} characters together")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _vocabulary(library: Any, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> Any:
    """llguidance's trie of our vocabulary, made once for a tokenizer and its stop ids (0.3 s for 49,152 tokens)."""
    made = _tokenizers.setdefault(tokenizer, {})
    if stop_ids not in made:
        size = tokenizer.vocab_size
        known = sorted(item for item in stop_ids if item < size)
        # A vocabulary without an end gets one behind its last token, which no model can write.
        vocabulary = _Vocabulary(tokenizer, 0 if known else 1)
        wrapped = library.TokenizerWrapper(vocabulary)
        made[stop_ids] = library.LLTokenizer(wrapped, eos_token=known or [size])
    return made[stop_ids]


class _Vocabulary:
    """Our tokenizer as llguidance's wrapper wants to see one."""

    def __init__(self, tokenizer: Tokenizer, num_more: int) -> None:
        size = tokenizer.vocab_size
        bytes_of = {token: data for data, token in tokenizer.vocabulary.items()}
        specials = {token: name.encode() for name, token in tokenizer.special_tokens.items()}
        ends = {size + number: b"<|end|>" for number in range(num_more)}
        self._encode = tokenizer.encode_bytes
        known = bytes_of | specials | ends
        self.tokens = [known.get(token, b"") for token in range(size + num_more)]
        self.special_token_ids = sorted(specials | ends)
        self.eos_token_id, self.bos_token_id = self.special_token_ids[0] if self.special_token_ids else 0, None

    def __call__(self, data: bytes) -> list[int]:
        return self._encode(data)


def _end_ids(tokenizer: Tokenizer) -> frozenset[int]:
    names = {tokenizer.roles.end, TURN_TOKENS[1]}
    return frozenset(token for name, token in tokenizer.special_tokens.items() if name in names)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise BadInputError(
            "constrained answers need llguidance, which is not installed: pip install 'llm-journey[constrain]'"
        ) from None
    return llguidance


def _reason(matcher: Any) -> str:
    return _one_line(matcher.get_error().split("<state>")[0].replace("<non-verbose/>", ""))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."
