"""Where a JSON schema's references lead: identifiers, anchors, dynamic scopes, and which keywords its draft knows.

JSON Schema Core 2020-12, sections 8.2 (identifiers, references) and 7.1 (dynamic scope). Nothing is fetched: a
reference into another document is bad input. A place (`Place`) is a subschema together with what its references depend
on: the base URI, and for every dynamic anchor the outermost resource on the way here that has one of that name.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from llm_journey.core.errors import BadInputError

Schema = dict[str, Any] | bool

# Where a schema holds others: one, a list of them, or a mapping of names to them.
ONE = (
    *("additionalProperties", "additionalItems", "items", "contains", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
MAP = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas", "dependencies")
VALUES = ("const", "enum", "default", "examples")  # hold values, whose keys are no keywords
# The draft that brought a keyword in; before it, it is an unknown keyword and says nothing.
_SINCE = {"const": 6, "contains": 6, "propertyNames": 6, "if": 7, "prefixItems": 12}
_SINCE |= dict.fromkeys(("dependentRequired", "dependentSchemas", "minContains", "maxContains", "$anchor"), 8)
_SINCE |= dict.fromkeys(("unevaluatedItems", "unevaluatedProperties", "$recursiveRef"), 8)
_SINCE |= dict.fromkeys(("$dynamicRef", "$dynamicAnchor"), 12)
_DRAFTS = {"draft-03": 3, "draft-04": 4, "draft-06": 6, "draft-07": 7, "2019-09": 8, "2020-12": 12}
_MAX_DEPTH, _MAX_NODES = 100, 50_000


@dataclass(frozen=True)
class Place:
    """A subschema and what its references depend on."""

    schema: Schema
    base: str
    scope: tuple[tuple[str, str], ...] = ()  # (dynamic anchor, URI of the outermost resource that has it)

    @property
    def key(self) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        """What tells places of one document apart."""
        return id(self.schema), self.base, self.scope


class References:
    """The identifiers of one document. Raises BadInputError where it is too deep or no schema at all."""

    def __init__(self, document: Schema) -> None:
        name = document.get("$schema", "") if isinstance(document, dict) else ""
        self.draft = next((number for part, number in _DRAFTS.items() if part in str(name)), 12)
        self.names: dict[str, None] = {}  # every property that the document names, in order
        self._document = document  # keeps every id() below alive
        self._resources: dict[str, Schema] = {}
        self._anchors: dict[tuple[str, str], Schema] = {}
        self._dynamic: dict[str, dict[str, None]] = {}
        self._bases: dict[int, str] = {}
        self._nodes = 0
        self._resources[""] = document
        self._index(document, "", 0)
        self.root = self.place(document, "", ())

    def keywords(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords that this draft knows, in the words of 2020-12."""
        if self.draft <= 7 and "$ref" in schema:  # up to draft 7 nothing beside a $ref counts
            return {"$ref": schema["$ref"]}
        found = {key: value for key, value in schema.items() if self.draft >= _SINCE.get(key, 0)}
        if isinstance(found.get("items"), list):
            found["prefixItems"] = found.pop("items")
            if "additionalItems" in found:
                found["items"] = found.pop("additionalItems")
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if isinstance(found.get(exclusive), bool) and found.pop(exclusive) and bound in found:
                found[exclusive] = found[bound]
        if self.draft < 8 and isinstance(found.get("dependencies"), dict):
            for name, needed in found.pop("dependencies").items():
                kind = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
                found.setdefault(kind, {})[name] = needed
        return found

    def place(self, schema: Schema, base: str, scope: tuple[tuple[str, str], ...]) -> Place:
        """A schema seen from a place with this base and scope."""
        uri = self._bases.get(id(schema), base) if isinstance(schema, dict) else base
        known = {name for name, _ in scope}
        added = tuple((name, uri) for name in self._dynamic.get(uri, {}) if name not in known)
        return Place(schema, uri, scope + added)

    def below(self, at: Place, schema: Any) -> Place:
        """A subschema of `at`."""
        if not isinstance(schema, dict | bool):
            raise BadInputError(f"a schema must be an object or a boolean, not {str(schema)[:40]!r}")
        return self.place(schema, at.base, at.scope)

    def target(self, at: Place, keyword: str, reference: Any) -> Place:
        """Where a $ref or $dynamicRef at a place leads. Raises BadInputError where that is not in this document."""
        if not isinstance(reference, str):
            raise BadInputError(f"{keyword} must be a string, not {str(reference)[:40]!r}")
        uri, fragment = _joined(at.base, reference)
        fragment = unquote(fragment)
        if uri not in self._resources:
            raise BadInputError(f"{keyword} {reference[:80]!r} leads into another document; none is fetched")
        if fragment and not fragment.startswith("/"):
            if (uri, fragment) not in self._anchors:
                raise BadInputError(f"{keyword} {reference[:80]!r} leads nowhere")
            # Only where the first target is itself a dynamic anchor does the outermost one of its name count.
            if keyword == "$dynamicRef" and fragment in self._dynamic.get(uri, {}):
                uri = dict(at.scope).get(fragment, uri)
            return self.place(self._anchors[uri, fragment], uri, at.scope)
        return self._pointed(self.place(self._resources[uri], uri, at.scope), fragment, reference)

    def _pointed(self, start: Place, pointer: str, reference: str) -> Place:
        value: Any = start.schema
        base = start.base
        for part in pointer.split("/")[1:]:
            step = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                raise BadInputError(f"$ref {reference[:80]!r} leads nowhere")
            base = self._bases.get(id(value), base)
        if not isinstance(value, dict | bool):
            raise BadInputError(f"$ref {reference[:80]!r} leads to what is no schema")
        if isinstance(value, dict) and id(value) not in self._bases:  # below an unknown keyword
            self._index(value, base, 0)
        return self.place(value, base, start.scope)

    def _index(self, schema: Any, base: str, depth: int) -> None:
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise BadInputError(f"the schema is nested deeper than {_MAX_DEPTH} or has over {_MAX_NODES} parts")
        if not isinstance(schema, dict):
            return
        if not (self.draft <= 7 and "$ref" in schema):
            base = self._identified(schema, base)
        self._bases[id(schema)] = base
        _check_shape(schema)
        for keyword in ("properties", "required"):
            found = schema.get(keyword)
            self.names |= dict.fromkeys(found) if isinstance(found, dict | list) else {}
        for child in subschemas(schema):
            self._index(child, base, depth + 1)

    def _identified(self, schema: dict[str, Any], base: str) -> str:
        named = schema.get("id" if self.draft <= 4 else "$id")
        if isinstance(named, str):
            uri, fragment = _joined(base, named)
            if uri != base:
                base = uri
                if self._resources.setdefault(base, schema) is not schema:
                    raise BadInputError(f"two schemas are named {base[:80]!r}")
            elif fragment:  # up to draft 7 an $id of a fragment alone is an anchor
                self._anchor(base, fragment, schema)
        for keyword in ("$anchor", "$dynamicAnchor"):
            name = schema.get(keyword)
            if isinstance(name, str) and self.draft >= _SINCE[keyword]:
                self._anchor(base, name, schema)
                if keyword == "$dynamicAnchor":
                    self._dynamic.setdefault(base, {})[name] = None
        return base

    def _anchor(self, base: str, name: str, schema: dict[str, Any]) -> None:
        if self._anchors.setdefault((base, name), schema) is not schema:
            raise BadInputError(f"two anchors are named {name[:80]!r}")


def subschemas(schema: Mapping[str, Any]) -> Iterator[Any]:
    """What stands directly below a schema where the language has schemas."""
    for key in ONE:
        if key in schema:
            yield from schema[key] if isinstance(schema[key], list) else (schema[key],)
    for key in LIST:
        if isinstance(schema.get(key), list):
            yield from schema[key]
    for key in MAP:
        if isinstance(schema.get(key), dict):
            yield from schema[key].values()


def rewritten(schema: Any, node: Callable[[dict[str, Any]], Any]) -> Any:
    """A schema with `node` applied to each schema in it, those within first."""
    if isinstance(schema, list):
        return [rewritten(each, node) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key, value in schema.items():
        if key in MAP and isinstance(value, dict):  # its keys are names: a property may be called `default`
            found[key] = {name: rewritten(each, node) for name, each in value.items()}
        elif key not in VALUES:
            found[key] = rewritten(value, node)
    return node(found)


def list_of(keywords: dict[str, Any], keyword: str) -> list[Any]:
    """A keyword's list; an empty one where it is not there."""
    found: list[Any] = keywords.get(keyword, [])
    return found


def map_of(keywords: dict[str, Any], keyword: str) -> dict[str, Any]:
    """A keyword's names and what stands for each; none where it is not there."""
    found: dict[str, Any] = keywords.get(keyword, {})
    return found


def _check_shape(schema: Mapping[str, Any]) -> None:
    """Raises BadInputError where a keyword that is relied on holds something of the wrong type."""
    for key in (*LIST, "enum"):
        if not isinstance(schema.get(key, []), list):
            raise BadInputError(f"{key} must be a list")
    for key in (*MAP, "dependentRequired"):
        if not isinstance(schema.get(key, {}), dict):
            raise BadInputError(f"{key} must be an object")
    if not isinstance(schema.get("pattern", ""), str):
        raise BadInputError("pattern must be a string")
    kinds = schema.get("type", "")
    if not isinstance(kinds, str) and not _are_names(kinds):
        raise BadInputError("type must be a name or a list of names")
    required = schema.get("required", [])  # up to draft 3 a boolean
    if not isinstance(required, bool) and not _are_names(required):
        raise BadInputError("required must be a list of names")
    if not all(map(_are_names, schema.get("dependentRequired", {}).values())):
        raise BadInputError("dependentRequired must hold lists of names")
    if not all(isinstance(each, dict | bool) or _are_names(each) for each in schema.get("dependencies", {}).values()):
        raise BadInputError("dependencies must hold schemas or lists of names")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _joined(base: str, reference: str) -> tuple[str, str]:
    """A reference seen from a base: URI and fragment."""
    try:
        uri, fragment = urldefrag(base + reference if reference.startswith("#") else urljoin(base, reference))
        return uri, fragment
    except ValueError:
        raise BadInputError(f"{reference[:80]!r} is no URI") from None
