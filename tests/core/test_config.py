"""Recipes as documents: every error names the file, the key, the value and what is allowed, in one line."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict

from llm_journey.core.config import STRICT, dump, override, parse_yaml, read_yaml, to_yaml, validate
from llm_journey.core.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (1.0, 2.0)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, not {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: str
    steps: int = 1
    inner: Inner = field(default_factory=Inner)
    words: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "key 'name' is missing"),
        ({"name": "x", "stepz": 1}, "unknown key 'stepz'; allowed: name, steps, inner, words"),
        ({"name": "x", "inner": {"ratte": 1}}, "unknown key 'inner.ratte'; allowed: rate, kind, pair"),
        ({"name": "x", "steps": "ten"}, "key 'steps' = 'ten': input should be a valid integer"),
        ({"name": "x", "steps": 1.5}, "key 'steps' = 1.5: input should be a valid integer"),
        ({"name": "x", "steps": None}, "key 'steps' = None: input should be a valid integer"),
        ({"name": "x", "steps": [1] * 1000}, "key 'steps' = [1, 1, "),
        ({"name": 7}, "key 'name' = 7: input should be a valid string"),
        ({"name": "x", "inner": 3}, "key 'inner' = 3: "),
        ({"name": "x", "inner": {"kind": "c"}}, "key 'inner.kind' = 'c': input should be 'a' or 'b'"),
        ({"name": "x", "inner": {"rate": -1}}, "key 'inner': rate must not be negative, not -1.0"),
        ({"name": "x", "inner": {"rate": math.nan}}, "key 'inner.rate' = nan: input should be a finite number"),
        ({"name": "x", "inner": {"rate": math.inf}}, "key 'inner.rate' = inf: input should be a finite number"),
        ({"name": "x", "inner": {"pair": [1]}}, "key 'inner.pair.1' is missing"),
        ({"name": "x", "words": ["a", 5]}, "key 'words.1' = 5: input should be a valid string"),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError) as raised:
        validate(Outer, value, "my.yaml")
    message = str(raised.value)
    assert message.startswith(f"my.yaml: {reason}") and "\n" not in message and len(message) < 300


def test_what_is_written_is_read_back() -> None:
    config = validate(Outer, {"name": "x", "inner": {"pair": [3, 4.5]}, "words": ["é", "no", "1e3", ""]}, "test")
    assert config.inner.pair == (3.0, 4.5)
    assert validate(Outer, parse_yaml(to_yaml(dump(config)), "test"), "test") == config
    assert list(dump(config)) == ["name", "steps", "inner", "words"]


def test_only_dataclasses_are_validated() -> None:
    class Plain:
        pass

    with pytest.raises(TypeError, match="no dataclass"):
        validate(Plain, {}, "test")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", "my.yaml:3: not valid YAML (key 'a' stands twice)"),
        ("x:\n  a: 1\n  a: 3\n", "my.yaml:3: not valid YAML (key 'a' stands twice)"),
        ("? [1, 2]\n: 3\n", "my.yaml:1: not valid YAML (a key must be one word)"),
        ("? {a: 1}\n: 3\n", "my.yaml:1: not valid YAML (a key must be one word)"),
        ("a: [1, 2\n", "my.yaml:2: not valid YAML"),
        ("a: b: c\n", "my.yaml:1: not valid YAML"),
        ("- a\n", "my.yaml: a recipe is a mapping of keys to values, not list"),
        ("text", "my.yaml: a recipe is a mapping of keys to values, not str"),
        ("a: !!python/object/apply:os.system [ls]\n", "my.yaml:1: not valid YAML (could not determine a constructor"),
        ("a: !!python/name:os.system\n", "my.yaml:1: not valid YAML (could not determine a constructor"),
        ("a: 2024-99-99\n", "my.yaml: not valid YAML (month must be in 1..12)"),
        ("a: \x00\n", "my.yaml: not valid YAML (unacceptable character"),
        ("a: &x 1\nb: *x\n", "my.yaml:2: not valid YAML (a recipe has no aliases"),
        ("a: &x [*x]\n", "my.yaml:1: not valid YAML (a recipe has no aliases"),
        ("a: " + "[" * 5000, "my.yaml: nested too deeply for a recipe"),
        ("a: " + "{b: " * 5000, "my.yaml: nested too deeply for a recipe"),
        ("---\na: 1\n---\nb: 1\n", "my.yaml:3: not valid YAML (but found another document)"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(BadInputError) as raised:
        parse_yaml(text, "my.yaml")
    assert str(raised.value).startswith(reason) and "\n" not in str(raised.value)


def test_a_bomb_of_aliases_is_refused_before_it_grows() -> None:
    """Ten lines that stand for 10^9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(BadInputError, match=r"bomb\.yaml:2: .*no aliases"):
        parse_yaml("\n".join(lines), "bomb.yaml")


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(list("ab:{}[]-?&*!|>'\"%@`,\n #1.~<=\t\u2028\u00e9")), max_size=40))
def test_any_text_is_a_mapping_or_one_error(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text, "my.yaml"), dict)
    except BadInputError as error:
        assert str(error).startswith("my.yaml") and "\n" not in str(error)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"missing.yaml: no such recipe file"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "junk.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "huge.yaml").write_bytes(b"a: 1\n" + b"#" * (1 << 20))
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    for path, reason in ((tmp_path, "cannot be read"), (tmp_path / "junk.yaml", "cannot be read")):
        with pytest.raises(BadInputError, match=f"{path.name}: {reason}"):
            read_yaml(path)
    with pytest.raises(BadInputError, match=r"huge\.yaml: larger than 1048576 bytes"):
        read_yaml(tmp_path / "huge.yaml")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("steps=5", {"steps": 5}),
        ("inner.rate=0.25", {"inner": {"rate": 0.25, "kind": "a"}}),
        ("words=[a, b]", {"words": ["a", "b"]}),
        ("words=", {"words": ""}),
        ("name=a=b", {"name": "a=b"}),
        ("name= x: y: z", {"name": " x: y: z"}),
        ("when=2024-99-99", {"when": "2024-99-99"}),
        ("inner=null", {"inner": None}),
        ("new.deep.key=true", {"new": {"deep": {"key": True}}}),
        ("steps=1e-3", {"steps": "1e-3"}),
    ],
)
def test_overrides(assignment: str, expected: dict[str, Any]) -> None:
    before = {"name": "x", "inner": {"rate": 1.0, "kind": "a"}}
    found = override(before, [assignment])
    assert found == {**before, **expected}
    assert before == {"name": "x", "inner": {"rate": 1.0, "kind": "a"}}, "the recipe handed in is left alone"


def test_a_number_that_yaml_reads_as_text_is_a_number_to_the_recipe() -> None:
    """YAML 1.1 wants a point in 1e-3; people do not write one."""
    assert validate(Outer, override({"name": "x"}, ["inner.rate=1e-3"]), "test").inner.rate == 0.001


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("steps", "--set 'steps': write it as key.path=value"),
        ("=5", "--set '=5': write it as key.path=value"),
        ("a..b=5", "--set 'a..b=5': write it as key.path=value"),
        (".=5", "--set '.=5': write it as key.path=value"),
        ("name.first=5", "--set 'name.first=5': 'name' holds a value, not a group of keys"),
        ("a=" + "[" * 5000, "--set 'a=[["),
    ],
)
def test_overrides_that_are_none(assignment: str, reason: str) -> None:
    with pytest.raises(BadInputError) as raised:
        override({"name": "x"}, [assignment])
    assert str(raised.value).startswith(reason) and len(str(raised.value)) < 200
