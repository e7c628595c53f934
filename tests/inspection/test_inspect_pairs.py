"""Looking into an encoder-decoder: three kinds of maps, two texts; in the terminal, as pictures and as a page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import llm_journey
from command_line import Journey
from llm_journey.app.inspect import inspect_model
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.inspection.reading import Reading
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder_decoder import EncoderDecoder

SOURCE, TARGET = "The old stone bridge", "a river"


@pytest.fixture
def folder(shared_home: Path, tmp_path: Path) -> Path:
    """A random encoder-decoder that reads with two layers and writes with one."""
    tokenizer = llm_journey.load("rivers").tokenizer
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        kind="encoder_decoder",
        width=16,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=2,
        context=48,
    )
    model = EncoderDecoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, 0.3)
    save_model(model, tmp_path / "pair", tokenizer=tokenizer)
    return tmp_path / "pair"


@pytest.fixture
def shown(folder: Path) -> Reading:
    return inspect_model(str(folder), SOURCE, target=TARGET)


def test_the_tokens_of_both_texts_and_what_is_predicted_of_the_target(folder: Path, shown: Reading) -> None:
    model = llm_journey.load(str(folder))
    sources, targets = model.ids(SOURCE), model.target_ids(TARGET)
    assert shown.inspection.ids.tolist() == [*sources, *targets]
    with torch.inference_mode():
        logits_btv = model.model(torch.tensor([sources]), torch.tensor([targets]))
    log_probabilities_tv = logits_btv[0].log_softmax(-1)
    facts = shown.token_facts()
    assert len(facts) == len(sources) + len(targets) + 1 and facts[-1].text is None and facts[-1].expected
    assert all(fact.probability is None and not fact.expected for fact in facts[: len(sources) + 1])
    for at, token in enumerate(targets[1:]):
        fact = facts[len(sources) + 1 + at]
        assert fact.id == token
        assert fact.probability == pytest.approx(float(log_probabilities_tv[at, token].exp()), abs=1e-5)


def test_the_command_shows_a_map_of_each_kind(folder: Path, journey: Journey) -> None:
    outcome = journey("inspect", folder, SOURCE, "--target", TARGET)
    assert outcome.code == 0, outcome.err
    titles = re.findall(r"^(Encoder|Decoder|Cross) (\d), head \d: (.*) \(weight", outcome.out, re.MULTILINE)
    assert [name for name, _, _ in titles] == ["Encoder", "Decoder", "Cross"]
    assert titles[2][2] == "the target's rows look at the source's columns"
    found = inspect_model(str(folder), SOURCE, target=TARGET)
    crossing = outcome.out.rsplit("columns", 1)[1].splitlines()[1:]
    assert len([line for line in crossing if line.strip()]) == len(found.lens_tokens)
    assert "encoder 1" in outcome.out and "cross 0" in outcome.out and "nan" not in outcome.out


def test_without_a_target_the_model_writes_one(folder: Path, journey: Journey) -> None:
    outcome = journey("inspect", folder, SOURCE, "--json", "--layer", "0")
    assert outcome.code == 0, outcome.err
    said = outcome.json
    # A random model ends nowhere; of what it writes, as much is read as the context holds.
    written = llm_journey.load(str(folder)).generate(SOURCE)
    assert said["target"][:30] == written[:30] and len(written) > 30
    assert list(said["attention"]["layers"]) == ["encoder 0", "decoder 0", "cross 0"]
    cross = next(head for head in said["heads"] if head["layer"] == "cross 0")
    assert cross["itself"] is None and cross["distance"] is None and cross["entropy"] >= 0


def test_layers_and_heads_are_asked_for_by_their_number(folder: Path, journey: Journey) -> None:
    outcome = journey("inspect", folder, SOURCE, "--target", TARGET, "--layer", "1", "--head", "1")
    assert outcome.code == 0 and "Encoder 1, head 1" in outcome.out and "Cross" not in outcome.out, "one layer writes"
    for arguments, message in (
        (("--layer", "2"), "layer 2 is not one of this model's: 0 to 1"),
        (("--head", "2"), "head 2 is not one of this model's: 0 to 1"),
    ):
        outcome = journey("inspect", folder, SOURCE, "--target", TARGET, *arguments)
        assert outcome.code == 2 and message in outcome.err
    outcome = journey("inspect", folder, SOURCE, "--target", "river " * 50)
    assert outcome.code == 2 and "the target has" in outcome.err and "context holds 48" in outcome.err
    outcome = journey("inspect", "rivers", SOURCE, "--target", TARGET)
    assert outcome.code == 2 and "a target is for an encoder-decoder" in outcome.err


def test_pictures_of_each_kind(shown: Reading, tmp_path: Path) -> None:
    written = shown.write_png(tmp_path / "pictures")
    names = ["attention-cross-00", "attention-decoder-00", "attention-encoder-00", "attention-encoder-01", "attention"]
    assert sorted(path.stem for path in written) == sorted([*names, "lens", "tokens"])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def _data(document: str) -> dict[str, object]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)
    assert block is not None
    data: dict[str, object] = json.loads(block.group(1))
    return data


def test_the_page_knows_whose_the_rows_and_columns_are(shown: Reading, tmp_path: Path) -> None:
    data = _data(shown.write_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    source, target = shown.inspection.lens_start, len(shown.lens_tokens)
    assert data["layers"] == ["encoder 0", "encoder 1", "decoder 0", "cross 0"]
    assert data["spans"] == [
        *2 * [[0, source, 0, source]],
        [source, target, source, target],
        [source, target, 0, source],
    ]
    assert data["lens"]["start"] == source and len(data["lens"]["top"][0]) == target  # type: ignore[index]
    assert data["figures"][3][0][2:] == 4 * [None]  # type: ignore[index]


@pytest.mark.full
def test_the_script_shows_a_map_between_the_texts(shown: Reading, tmp_path: Path) -> None:
    """In a real browser, with the cross-attention chosen: its figures, and a cell's weight under the pointer."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser on this machine")
    path = shown.write_html(tmp_path / "page.html")
    drive = """<script>window.addEventListener("load", async () => {
      const row = document.getElementById("layer"); row.value = 3; row.dispatchEvent(new Event("change"));
      await new Promise((done) => setTimeout(done, 800));
      const box = canvas.getBoundingClientRect(), at = (cell) => frame.margin + (cell + .5) * frame.unit;
      const point = { clientX: box.left + at(5), clientY: box.top + at(1) };
      document.title = find("reading").textContent + " | ";
      canvas.dispatchEvent(new PointerEvent("pointermove", point));
      document.title += find("reading").textContent;
    });</script>"""
    # The policy allows the page's own script alone, so the driven copy goes without it.
    document = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8")).replace(
        "</body>", drive + "</body>"
    )
    path.write_text(document, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    _, head = shown.inspection.sharpest_head()
    figures = shown.inspection.heads
    assert title.group(1).startswith(f"Layer cross 0, head {head}: entropy {figures.entropy[3, head]:.2f} bits;")
    said = float(title.group(1).rsplit("with weight ", 1)[1])
    assert np.sqrt(said) == pytest.approx(np.sqrt(shown.attention(3, head)[1, 5]), abs=0.02)
    assert "looks at" in title.group(1) and "on itself" not in title.group(1)
