"""Take listed members out of a zip archive (a wheel is one), trusting nothing in it.

Names, sizes, ratios and kinds are checked before a byte is written, and the bytes are counted while they are. Only
members that were asked for are touched: no other name in the archive is ever used as a path (CVE-2024-37032).
"""

import errno
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_journey.core.errors import JourneyError
from llm_journey.core.paths import inside
from llm_journey.datasets.sources import CatalogFile

_MAX_ENTRIES = 10_000
_MAX_RATIO = 200
_CHUNK = 1 << 20


def extract_members(archive: Path, members: Iterable[tuple[str, CatalogFile]], directory: Path) -> None:
    """Write each (member, file) of `archive` to `directory / file.name`; a member must have `file.size` bytes.

    Raises JourneyError for a damaged archive and for a member that is missing, listed twice, encrypted, a link or a
    folder, of another size, or packed more than 200 to 1 (a zip bomb); BadInputError for a name that leads outside
    `directory`.
    """
    with _damage_explained(archive.name), zipfile.ZipFile(archive) as opened:
        if len(opened.infolist()) > _MAX_ENTRIES:
            raise JourneyError(f"{archive.name}: more than {_MAX_ENTRIES} entries; refused")
        for member, file in members:
            info = _checked(opened, archive.name, member, file)
            target = inside(directory, file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as sink:
                for chunk in _content(opened, info, file.size):
                    sink.write(chunk)


def _checked(opened: zipfile.ZipFile, archive: str, member: str, file: CatalogFile) -> zipfile.ZipInfo:
    found = [info for info in opened.infolist() if info.filename == member]
    if len(found) != 1:
        raise JourneyError(f"{archive}: {member!r} is there {len(found)} times, not once; refused")
    info = found[0]
    mode = info.external_attr >> 16
    if info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        raise JourneyError(f"{archive}: {member!r} is not a plain file; refused")
    if info.flag_bits & 0x1:
        raise JourneyError(f"{archive}: {member!r} is encrypted; refused")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise JourneyError(f"{archive}: {member!r} is packed by an unusual method ({info.compress_type}); refused")
    if info.file_size != file.size:
        raise JourneyError(f"{archive}: {member!r} has {info.file_size} bytes, expected {file.size}; refused")
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        raise JourneyError(f"{archive}: {member!r} is packed more than {_MAX_RATIO} to 1; refused")
    return info


def _content(opened: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> Iterator[bytes]:
    """The member's bytes, exactly `size` of them, in chunks."""
    count = 0
    with opened.open(info) as source:
        while chunk := source.read(_CHUNK):
            count += len(chunk)
            if count > size:
                raise JourneyError(f"{info.filename!r} holds more bytes than its archive states; refused")
            yield chunk
    if count != size:
        raise JourneyError(f"{info.filename!r} ends after {count} of {size} bytes; refused")


@contextmanager
def _damage_explained(archive: str) -> Iterator[None]:
    """What zipfile and zlib raise on damaged bytes, as one error; a disk that refuses to be written passes."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise JourneyError(f"{archive}: not a readable zip archive ({str(error) or type(error).__name__})") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise JourneyError(f"{archive}: not a readable zip archive (it points outside itself)") from None
