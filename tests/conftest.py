"""What every test relies on: nothing of the person's own is read or written, no network, and one small trained run."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from command_line import Journey, Outcome

# The same examples every time, so that a change of ours and not of chance turns a run red; `make test-full` draws anew.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_WORDS = (  # noqa: SIM905 - forty quoted words would be harder to read
    "the a river city king stone old small red near of in and was is built by over from great north south trade town "
    "bridge market house winter people century known first later became made wall harbour church field garden"
).split()

_OWN_HOME = os.environ.get("HOME", "")

# Seconds of training on one core: enough to see that everything works, nothing to judge a model by.
TINY_RECIPE = """\
name: rivers
data: {source: SOURCE, held_out: 0.2}
tokenizer: {vocab_size: 300}
model: {width: 16, num_layers: 1, num_heads: 2, context: 32, qk_norm: true}
training:
  batch_size: 4
  steps: 12
  log_every: 4
  validations: 2
  checkpoints: 2
  sample_prompts: ["The river"]
"""


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty HOME, our own folders in a temporary one, the hub switched off, no colours, a fixed width."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_HUB_CACHE", "JOURNEY_DEBUG"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("JOURNEY_HOME", str(tmp_path_factory.mktemp("journey")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", "100")
        yield


@pytest.fixture
def journey(capfd: pytest.CaptureFixture[str]) -> Journey:
    """The command line, run in this process."""
    from llm_journey.cli.main import execute

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = execute([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 text files of made-up sentences, about 20 kB."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(7)
    for number in range(40):
        sentences = (" ".join(generator.choices(_WORDS, k=9)).capitalize() + "." for _ in range(10))
        (folder / f"text-{number:02}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def _machine_measured() -> Iterator[None]:
    """No measuring of this machine, which takes longer than a tiny run; runs in processes of their own still do it."""
    from llm_journey.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "peak_flops", lambda *_: 1e11)
        yield


@pytest.fixture(scope="session")
def tiny_recipe(corpus: Path, tmp_path_factory: pytest.TempPathFactory, _machine_measured: None) -> Path:
    """A recipe that trains on the corpus in about a second."""
    path = tmp_path_factory.mktemp("recipes") / "rivers.yaml"
    path.write_text(TINY_RECIPE.replace("SOURCE", str(corpus)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained_home(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JOURNEY_HOME with the run `rivers`, trained and measured. Not to be changed: see `home`."""
    from llm_journey.app.training import train_and_measure

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOURNEY_HOME", str(folder))
        run = train_and_measure(str(tiny_recipe))
    assert (run.status, run.failures) == ("finished", {})
    return folder


@pytest.fixture
def shared_home(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained home, for tests that only read."""
    monkeypatch.setenv("JOURNEY_HOME", str(trained_home))
    return trained_home


@pytest.fixture
def home(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained home, for tests that change it."""
    copy = tmp_path / "home"
    shutil.copytree(trained_home, copy)
    monkeypatch.setenv("JOURNEY_HOME", str(copy))
    return copy


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A JOURNEY_HOME that does not exist yet."""
    folder = tmp_path / "empty"
    monkeypatch.setenv("JOURNEY_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def wiki_summaries(pytestconfig: pytest.Config) -> Path:
    """The folder of the real corpus `wiki-summaries`, pulled once and kept beside pytest's own cache."""
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("journey-home")
    environment = {**os.environ, "HOME": _OWN_HOME, "JOURNEY_HOME": str(kept)}
    command = [sys.executable, "-m", "llm_journey", "data", "pull", "wiki-summaries"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        pytest.skip(f"the corpus cannot be pulled here: {done.stderr.strip().splitlines()[-1]}")
    return Path(done.stdout.strip()).parent
