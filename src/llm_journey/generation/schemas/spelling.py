r"""How strings are spelled in answers: each in one way, so that no name passes for another.

llguidance lets a name that a schema does not list be written with any \uXXXX escape, and so let `"\u0061"` be written
beside a listed `"a"`. Where a schema lists names, \u is therefore no escape at all; then the control characters but
\n, \r, \t, \b and \f cannot be written, and constants that hold one are left out (its library would drop the character
instead).
"""

from typing import Any

UNWRITTEN = tuple(value for value in (*range(32), 127) if chr(value) not in "\n\r\t\b\f")
ESCAPES = 'nrbtf\\"'
_SIGNS = frozenset(map(chr, UNWRITTEN))
_LISTING = ("properties", "patternProperties", "required", "dependentRequired", "dependentSchemas", "dependencies")


def escapes_for(schema: Any) -> str:
    """What may stand behind a backslash in answers to a schema."""
    return ESCAPES if _lists_names(schema) else f"{ESCAPES}u"


def _lists_names(schema: Any) -> bool:
    if isinstance(schema, dict):
        return any(key in schema for key in (*_LISTING, "propertyNames")) or any(map(_lists_names, schema.values()))
    return isinstance(schema, list) and any(map(_lists_names, schema))


def within_spelling(schema: dict[str, Any]) -> dict[str, Any] | bool:
    """One node of a schema that lists names, its constants those that can be written."""
    if "const" in schema and _is_unwritten(schema["const"]):
        return False
    if not isinstance(schema.get("enum"), list):
        return schema
    left = [value for value in schema["enum"] if not _is_unwritten(value)]
    return schema | {"enum": left} if left else False


def _is_unwritten(value: Any) -> bool:
    if isinstance(value, str):
        return not _SIGNS.isdisjoint(value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_is_unwritten, children))
