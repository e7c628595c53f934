"""A JSON schema made narrower, until llguidance can express it: every value of the result is one of the original.

llguidance follows types, bounds, patterns, lists, objects, allOf and anyOf, and refuses the rest. Each rule here turns
one of the rest into those, for a part of what it permits and never for more. Two functions call each other:

- `accept` gives a schema within S: where S can only shrink when a part of it shrinks, the part is narrowed; where S
  grows (`not`, `if`, the other branches of `oneOf`), a schema within the part's complement takes its place;
- `reject` gives a schema within the complement of S: what breaks at least one of S's keywords (De Morgan).

A reference becomes a definition of the result, one for accepting and one for rejecting; since values are finite and
each rule holds where it holds for the parts, recursion is sound. What evaluates a property or an item (`unevaluated*`)
is followed along alternatives (`Case`): only what is certainly evaluated in one counts there. Sources: JSON Schema Core
and Validation 2020-12; for the algebra Habib et al. 2021, "Finding Data Compatibility Bugs with JSON Subschema
Checking".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from llm_journey.core.errors import BadInputError
from llm_journey.generation.schemas import containers
from llm_journey.generation.schemas.algebra import (
    FORMATS,
    LOOSE_FORMATS,
    OWN_FORMATS,
    SCALARS,
    WIDER_FORMATS,
    all_of,
    any_of,
    other_types,
    unless,
    whole,
)
from llm_journey.generation.schemas.complement import broken
from llm_journey.generation.schemas.conditions import Decision, decided
from llm_journey.generation.schemas.disjoint import are_disjoint, finite_values, listed_values, properties_of
from llm_journey.generation.schemas.multiples import all_countable, countable, is_multiple, some_multiples
from llm_journey.generation.schemas.patterns import MAX_REPEATS, matches
from llm_journey.generation.schemas.references import Place, References, Schema, list_of, map_of

_MAX_STEPS, _MAX_DEPTH, _MAX_CASES, _MAX_WAYS, _MAX_INLINE = 20_000, 60, 48, 256, 300
_MAX_SIZE = 1 << 18  # characters of the result, about
_COPIED = ("type", "const", "enum", "required", "pattern", *SCALARS)
# What llguidance is given less of than is meant: branches of a oneOf are not to be told apart by that.
_READ_NARROWER = (*("pattern", "patternProperties", "exclusiveMinimum", "exclusiveMaximum", "minimum", "maximum"),)
# What says something of a string.
_NAMING = (
    *("type", "enum", "const", "minLength", "maxLength", "pattern", "format", "$ref", "$dynamicRef", "$recursiveRef"),
    *("allOf", "anyOf", "oneOf", "not", "if"),
)


@dataclass(frozen=True)
class Narrowing:
    """schema: what llguidance is given. notes: where it permits less than was asked, a line for each rule."""

    schema: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """Properties and items that are certainly evaluated: by name, by pattern, by position, by what they match."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    all_properties: bool = False
    prefix: int = 0
    all_items: bool = False
    matching: tuple[Schema, ...] = ()

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(
            self.names + other.names,
            self.patterns + other.patterns,
            self.all_properties or other.all_properties,
            max(self.prefix, other.prefix),
            self.all_items or other.all_items,
            self.matching + other.matching,
        )


@dataclass(frozen=True)
class Case:
    """One way to satisfy a schema: what holds, and what is then evaluated."""

    parts: tuple[Schema, ...]
    seen: Seen = Seen()

    @property
    def schema(self) -> Schema:
        """The conjunction."""
        return all_of(self.parts)


def narrow(schema: dict[str, Any] | bool, *, cautious: bool = False) -> Narrowing:
    """A schema within `schema` of the keywords that llguidance expresses, references resolved into `$defs`.

    cautious: also leave out what it expresses in some company only (overlapping patterns of names, counts beside
    optional properties). Raises BadInputError where no value can be shown to satisfy it, where a reference leads out
    of the document or nowhere, and where this would take too long (20,000 steps).
    """
    narrower = _Narrower(References(schema), cautious)
    found = narrower.accept(narrower.references.root)
    notes = tuple(narrower.notes)
    if found is False:
        raise BadInputError(
            f"no value can be shown to satisfy it, of which only a part is expressed: {'; '.join(notes)}"
            if notes
            else "Unsatisfiable schema: no value satisfies it"
        )
    body = {} if found is True else found
    return Narrowing({**body, "$defs": narrower.definitions} if narrower.definitions else body, notes)


def needs_narrowing(schema: Any) -> bool:
    """Whether llguidance must not be given a schema as it is: it would permit too much, or take too long."""
    return _is_loose(schema) or not all_countable(schema) or (_has(schema, ("oneOf",)) and _has(schema, _READ_NARROWER))


def _has(schema: Any, keywords: Sequence[str]) -> bool:
    if isinstance(schema, dict):
        return any(key in schema for key in keywords) or any(_has(each, keywords) for each in schema.values())
    return isinstance(schema, list) and any(_has(each, keywords) for each in schema)


def _is_loose(schema: Any) -> bool:
    """Whether llguidance takes a schema for more than it is: dates that no calendar has, names that come twice."""
    if isinstance(schema, dict):
        if schema.get("format") in LOOSE_FORMATS or (containers.count_of(schema, "minProperties") or 0) > 1:
            return True
        return any(map(_is_loose, schema.values()))
    return isinstance(schema, list) and any(map(_is_loose, schema))


class _Narrower:
    def __init__(self, references: References, cautious: bool) -> None:
        self.references, self.cautious = references, cautious
        self.notes: dict[str, None] = {}
        self.definitions: dict[str, Schema] = {}
        self._done: dict[Any, Schema] = {}
        self._open: dict[Any, str] = {}
        self._recursive: set[str] = set()
        self.countable = countable(references.root.schema)
        self.branch_names: tuple[str, ...] = ()  # of the branch of a oneOf at hand: what may tell it from others
        self._steps = self._depth = 0
        self._sizes: dict[int, tuple[Any, int]] = {}

    def accept(self, at: Place) -> Schema:
        """A schema within `at`."""
        found = any_of(case.schema for case in self.cases(at, tracking=False))
        if self._size(found) > _MAX_SIZE:
            raise BadInputError(f"the narrowed schema is larger than {_MAX_SIZE} characters")
        return found

    def cases(self, at: Place, *, tracking: bool) -> list[Case]:
        """Alternatives within `at`. tracking: told apart by what they evaluate; otherwise there is at most one."""
        with self._step():
            if isinstance(at.schema, bool):
                return [Case(())] if at.schema else []
            keywords = self.references.keywords(at.schema)
            tracks = tracking or "unevaluatedProperties" in keywords or "unevaluatedItems" in keywords
            base = self._own(at, keywords)
            found = [replace(base, parts=())]
            for group in self._groups(at, keywords, tracks):
                if not tracks:
                    group = [Case((any_of(case.schema for case in group),))]
                found = [Case(one.parts + other.parts, one.seen | other.seen) for one in found for other in group]
                if len(found) > _MAX_CASES:
                    self.note(f"of the ways to satisfy it beside unevaluated*, {_MAX_CASES} are taken")
                    found = found[:_MAX_CASES]
            if tracks and len(found) > 1:
                self.note("unevaluated*: what is evaluated in one way to satisfy the schema, not in several at once")
            found = [self._closed(at, keywords, Case(base.parts + case.parts, case.seen)) for case in found]
            return [case for case in found if case.schema is not False]

    def reject(self, at: Place) -> Schema:
        """A schema within the complement of `at`: what breaks one of its keywords."""
        with self._step():
            if isinstance(at.schema, bool):
                return not at.schema
            return any_of(broken(self, at, self.references.keywords(at.schema)))

    # What stands in a schema itself

    def _own(self, at: Place, keywords: dict[str, Any]) -> Case:
        """The keywords that llguidance knows, over narrowed parts; and what they evaluate."""
        base: dict[str, Any] = {key: whole(keywords[key]) for key in _COPIED if key in keywords}
        if isinstance(base.get("required"), bool):
            del base["required"]
        parts: list[Schema] = []
        name = keywords.get("format")
        if name in OWN_FORMATS:
            base["format"] = name
        elif isinstance(name, str) and name in FORMATS:
            parts.append(any_of([{"type": other_types(["string"])}, {"type": "string", "pattern": FORMATS[name]}]))
            if name in WIDER_FORMATS:
                self.note(f"format {name}: plain ASCII forms of it")
        for keyword in ("properties", "patternProperties"):
            if isinstance(keywords.get(keyword), dict):
                base[keyword] = {name: self._below(at, each) for name, each in keywords[keyword].items()}
        for keyword in ("additionalProperties", "items"):
            if keyword in keywords and (keyword != "items" or self._listed(at, keywords) is None):
                base[keyword] = self._below(at, keywords[keyword])
        if isinstance(keywords.get("prefixItems"), list):
            base["prefixItems"] = [self._below(at, each) for each in keywords["prefixItems"]]
        if self.cautious and len(base.get("patternProperties", {})) > 1:
            self.note("patternProperties: a name that matches one of the patterns satisfies the schemas of all")
            base["patternProperties"] = containers.joined_patterns(base["patternProperties"], all_of)
        multiple = base.get("multipleOf")
        if is_multiple(multiple) and multiple not in self.countable:
            self.note("multipleOf: some multiples around zero, where there are too many to count")
            del base["multipleOf"]
            parts.append(any_of([{"type": other_types(["number"])}, {"enum": some_multiples(multiple)}]))
        parts += self._counted(base)
        seen = Seen(
            tuple(keywords.get("properties", ())),
            tuple(base.get("patternProperties", ())),
            "additionalProperties" in keywords,
            len(keywords.get("prefixItems", ())),
            "items" in keywords,
        )
        return Case((base, *parts), seen)

    def _counted(self, base: dict[str, Any]) -> Iterator[Schema]:
        """minProperties and maxProperties, taken out of `base`, by names."""
        properties = base.get("properties", {})
        needed = list(dict.fromkeys(base.get("required", ())))
        optional = [name for name, each in properties.items() if name not in needed and each is not False]
        names = [name for name in self.references.names if name not in properties]
        least, most = (containers.count_of(base, keyword) for keyword in ("minProperties", "maxProperties"))
        if least is not None and (least > 1 or optional):
            del base["minProperties"]
            if least > len(needed):
                self.note("minProperties: certain properties are there")
                yield containers.at_least(least, needed, optional, names, free=not self.cautious)
        if most is not None and (optional or self.cautious):
            del base["maxProperties"]
            self.note("maxProperties: only certain properties can be there")
            yield containers.at_most(most, needed, optional or names)

    # What is applied to the same value

    def _groups(self, at: Place, keywords: dict[str, Any], tracks: bool) -> Iterator[list[Case]]:
        """For each keyword that llguidance does not know or that holds schemas for the same value, its alternatives."""
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in keywords:
                target = self.references.target(at, keyword, keywords[keyword])
                yield self.cases(target, tracking=True) if tracks else [Case((self.referred(target, accepts=True),))]
        if "$recursiveRef" in keywords:
            raise BadInputError("$recursiveRef is not followed")
        settled, decisions = decided(self.references, at, keywords)
        if decisions:
            yield [case for decision in decisions for case in self._decided(decision, tracks)]
        for index, each in enumerate(list_of(keywords, "allOf")):
            if index not in settled:
                yield self.cases(self.references.below(at, each), tracking=tracks)
        if "anyOf" in keywords:
            branches = [self.references.below(at, each) for each in list_of(keywords, "anyOf")]
            yield [case for branch in branches for case in self.cases(branch, tracking=tracks)]
        if "oneOf" in keywords:
            yield self._exactly_one([self.references.below(at, each) for each in list_of(keywords, "oneOf")], tracks)
        if "not" in keywords:
            yield [Case((self.reject(self.references.below(at, keywords["not"])),))]
        if "if" in keywords:
            yield self._conditional(at, keywords, tracks)
        for name, needed in map_of(keywords, "dependentRequired").items():
            yield [Case((containers.without(name),)), Case(({"type": "object", "required": [name, *needed]},))]
        for name, each in map_of(keywords, "dependentSchemas").items():
            there = {"type": "object", "required": [name]}
            present = self.cases(self.references.below(at, each), tracking=tracks)
            yield [Case((containers.without(name),)), *(Case((there, *case.parts), case.seen) for case in present)]
        if "propertyNames" in keywords:
            yield [Case((self._named(self.references.below(at, keywords["propertyNames"]), keywords),))]
        if "contains" in keywords:
            yield [self._containing(at, keywords)]
        if keywords.get("uniqueItems") is True:
            yield [Case((self._distinct(at, keywords),))]

    def _decided(self, decision: Decision, tracks: bool) -> list[Case]:
        found = [Case(({"type": "object"}, decision.property))]
        for branch in decision.branches:
            ways = self.cases(branch, tracking=tracks)
            found = [Case(one.parts + two.parts, one.seen | two.seen) for one in found for two in ways][:_MAX_CASES]
        return found

    def _exactly_one(self, branches: Sequence[Place], tracks: bool) -> list[Case]:
        """oneOf: one branch, and none of the others, which is certain for those that are disjoint from it."""
        found = []
        outer = self.branch_names
        for index, branch in enumerate(branches):
            others = [each for other, each in enumerate(branches) if other != index]
            overlapping = [each for each in others if not are_disjoint(self.references, branch, each)]
            self.branch_names = tuple(properties_of(self.references, branch))
            excluded = self._fewer([self.reject(self._followed(each)) for each in overlapping])
            self.branch_names = outer
            if all_of(excluded) is not False:
                found += [Case((*case.parts, *excluded), case.seen) for case in self.cases(branch, tracking=tracks)]
        if len(found) < len(branches):
            self.note("oneOf: only branches that can be told from the others")
        return found

    def _fewer(self, unions: list[Schema]) -> list[Schema]:
        """The first alternatives of each union, so that the ways through all of them are at most _MAX_WAYS."""
        wide = [each for each in unions if isinstance(each, dict) and "anyOf" in each]
        kept = 1
        while wide and (kept + 1) ** len(wide) <= _MAX_WAYS:
            kept += 1
        if any(len(each["anyOf"]) > kept for each in wide):
            self.note("oneOf: some of the ways to tell a branch from the others")
        return [any_of(each["anyOf"][:kept]) if each in wide else each for each in unions]

    def _followed(self, at: Place) -> Place:
        """Where a schema that is nothing but a reference leads."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(at.schema, dict) or self.references.keywords(at.schema).keys() != {"$ref"}:
                break
            at = self.references.target(at, "$ref", at.schema["$ref"])
        return at

    def _conditional(self, at: Place, keywords: dict[str, Any], tracks: bool) -> list[Case]:
        """if/then/else: (if and then) or (not if and else). Without either, `if` only evaluates."""
        condition, then, other = (self.references.below(at, keywords.get(key, True)) for key in ("if", "then", "else"))
        if "then" not in keywords and "else" not in keywords:
            return [*(self.cases(condition, tracking=tracks) if tracks else ()), Case(())]
        held = [
            Case(one.parts + two.parts, one.seen | two.seen)
            for one in self.cases(condition, tracking=tracks)
            for two in self.cases(then, tracking=tracks)
        ]
        failed = self.reject(condition)
        if failed is False:
            self.note("if: only values for which the condition holds")
            return held
        return held + [Case((failed, *case.parts), case.seen) for case in self.cases(other, tracking=tracks)]

    def _named(self, names: Place, keywords: dict[str, Any]) -> Schema:
        """propertyNames: objects of the names that it lists, of a pattern, or of those that the document mentions."""
        if isinstance(names.schema, bool):
            return names.schema or unless("object", [containers.only_names([])])
        said = self.references.keywords(names.schema)
        meant = {key for key in said if key in _NAMING}
        if meant == {"$ref"}:
            return self._named(self.references.target(names, "$ref", said["$ref"]), keywords)
        if "string" not in said.get("type", "string"):  # a name or a list of them
            return containers.only_names([])
        least, most = (containers.count_of(said, key) for key in ("minLength", "maxLength"))
        values = finite_values(self.references, names)
        if values is not None and meant <= {"enum", "const", "type"}:
            return containers.only_names([each for each in values if isinstance(each, str)])
        pattern = said.get("pattern") if meant <= {"type", "pattern"} else None
        if meant and meant <= {"type", "minLength", "maxLength"}:
            pattern = f"^[\\s\\S]{{{least or 0},{'' if most is None else min(most, max(MAX_REPEATS, least or 0))}}}$"
        if meant <= {"type"}:
            return True
        if pattern is not None and not keywords.get("patternProperties") and not self.cautious:
            return containers.of_pattern(pattern)
        self.note("propertyNames: only names that the schema mentions, where those can be shown to be right")
        if not meant <= {"type", "pattern", "minLength", "maxLength"}:
            return containers.only_names([])
        known = (name for name in self.references.names if (least or 0) <= len(name) <= (most or len(name)))
        return containers.only_names([name for name in known if matches(said.get("pattern", ""), name)])

    def _containing(self, at: Place, keywords: dict[str, Any]) -> Case:
        item = self.references.below(at, keywords["contains"])
        least, most = (containers.count_of(keywords, key) for key in ("minContains", "maxContains"))
        matching = self.accept(item)
        others = True if most is None else self.reject(item)
        prefix = len(keywords.get("prefixItems", ()))
        if least != 0 or most is not None:
            self.note("contains: what matches stands in a row, near the beginning")
        least = 1 if least is None else least
        seen = Seen(matching=(matching,)) if self.references.draft > 8 else Seen()  # 2019-09 does not evaluate it
        return Case((containers.containing(matching, others, prefix, least, most),), seen)

    def _distinct(self, at: Place, keywords: dict[str, Any]) -> Schema:
        values = self._listed(at, keywords)
        least = containers.count_of(keywords, "minItems") or 0
        most = containers.count_of(keywords, "maxItems")
        if (values is None or len(values) > 3) and (most is None or most > 1):
            kind = "at most one item" if values is None else "only some orders of the items"
            self.note(f"uniqueItems: {kind}")
        return containers.distinct(values, least)

    def _listed(self, at: Place, keywords: dict[str, Any]) -> list[Any] | None:
        """Of lists of distinct items, all that an item can be, where that is listed: `distinct` says it again."""
        if keywords.get("uniqueItems") is not True or "items" not in keywords or keywords.get("prefixItems"):
            return None
        return listed_values(self.references, self.references.below(at, keywords["items"]))

    def _closed(self, at: Place, keywords: dict[str, Any], case: Case) -> Case:
        """unevaluated*: what is not certainly evaluated satisfies them, and then all is evaluated."""
        parts, seen = list(case.parts), case.seen
        if "unevaluatedProperties" in keywords:
            if not seen.all_properties:
                rest = self._below(at, keywords["unevaluatedProperties"])
                patterns: dict[str, Schema] = dict.fromkeys(seen.patterns, True)
                if self.cautious:
                    patterns = containers.joined_patterns(patterns, all_of)
                named = dict.fromkeys(seen.names, True)
                parts.append({"properties": named, "patternProperties": patterns, "additionalProperties": rest})
            seen = replace(seen, all_properties=True)
        if "unevaluatedItems" in keywords:
            if not seen.all_items:
                rest = any_of([self._below(at, keywords["unevaluatedItems"]), *seen.matching])
                parts.append({"prefixItems": [True] * seen.prefix, "items": rest})
            seen = replace(seen, all_items=True)
        return Case(tuple(parts), seen)

    # References, and what they cost

    def _below(self, at: Place, schema: Any) -> Schema:
        return self.accept(self.references.below(at, schema))

    def referred(self, target: Place, *, accepts: bool) -> Schema:
        """What a reference stands for: a definition of the result, or itself where it is short."""
        key = (*target.key, accepts)
        if key in self._open:
            self._recursive.add(self._open[key])
            return {"$ref": f"#/$defs/{self._open[key]}"}
        if key not in self._done:
            name = self._open[key] = f"d{len(self._open) + len(self._done)}"
            body = self.accept(target) if accepts else self.reject(target)
            del self._open[key]
            if name not in self._recursive and (isinstance(body, bool) or self._size(body) < _MAX_INLINE):
                self._done[key] = body
            else:
                self.definitions[name] = body
                self._done[key] = {"$ref": f"#/$defs/{name}"}
        return self._done[key]

    def _size(self, value: Any) -> int:
        """Characters of a schema as text, about; parts that it has several times are looked at once."""
        if not isinstance(value, dict | list):
            return len(value) if isinstance(value, str) else 4
        if id(value) not in self._sizes:
            children = value.values() if isinstance(value, dict) else value
            size = sum(map(len, value)) if isinstance(value, dict) else 0
            # The value itself is kept, so that its id stays its own.
            self._sizes[id(value)] = value, size + sum(self._size(each) + 4 for each in children)
        return self._sizes[id(value)][1]

    @contextmanager
    def _step(self) -> Iterator[None]:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise BadInputError(f"narrowing the schema takes more than {_MAX_STEPS} steps")
        if self._depth >= _MAX_DEPTH:
            raise BadInputError(f"the schema, its references followed, is nested deeper than {_MAX_DEPTH}")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def note(self, note: str) -> None:
        self.notes.setdefault(note)
