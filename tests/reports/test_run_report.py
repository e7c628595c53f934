"""The run report: whole and self-contained, safe against hostile text, useful for runs cut short or damaged."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.reports.run_data import read_run, series
from llm_journey.reports.run_report import report_html, summary_rows, verdict, write_report

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7*7 }} $\\frac{$"


class _Reader(HTMLParser):
    """Collects tags with attributes, the visible text, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "source", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def _read(html: str) -> tuple[_Reader, str]:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def test_a_whole_run_has_every_section_and_figure(make_run: Any) -> None:
    directory = make_run()
    assert write_report(directory) == directory / "report.html"
    reader, text = _read((directory / "report.html").read_text(encoding="utf-8"))
    anchors = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert anchors == [
        "baselines", "training", "samples", "tokenizer", "data", "cost", "export", "recipe", "lineage",
    ]  # fmt: skip
    run = read_run(directory)
    for shown in (
        f"{run.figures['bits_per_byte']:.3f}", "below every baseline", "The city of", "Rome is a", "too short",
        "10,033", "representatives", "journey train recipes/small.yaml --set training.seconds=90",
        "0123456789ab", "torch 2.13.0",
        "source: wiki-summaries", "Energy (estimate)", "nothing was metered", "8 W for each of 2 busy cores", "55.1%",
        "abab", "The last 5% is held out",
    ):  # fmt: skip
        assert shown in text, shown
    assert "\ufffd#1" in text  # an unused token that is no text by itself
    pictures = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert len(pictures) == 6
    assert all(pictures)


def test_nothing_is_fetched_and_no_script_can_run(make_run: Any) -> None:
    html = write_report(make_run()).read_text(encoding="utf-8")
    reader, _ = _read(html)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "srcset", "href"):
            if name in attributes:
                assert (attributes[name] or "").startswith(("data:image/svg+xml;base64,", "#")), tag
    [policy] = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "@import" not in style[1]
    assert "url(" not in style[1]


def test_pictures_are_svg_for_light_and_dark_without_outside_references(make_run: Any) -> None:
    html = write_report(make_run()).read_text(encoding="utf-8")
    reader, _ = _read(html)
    uris = [a.get("src") or a.get("srcset") or "" for tag, a in reader.tags if tag in {"img", "source"}]
    assert len(uris) == len(set(uris)) == 12
    for uri in uris:
        svg = base64.b64decode(uri.partition(",")[2]).decode("utf-8")
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        links = {value for item in root.iter() for name, value in item.attrib.items() if name.endswith("href")}
        assert all(link.startswith("#") for link in links)
        assert "<script" not in svg


def test_hostile_text_is_shown_as_text(make_run: Any) -> None:
    directory = make_run(name="hostile")
    (directory / "samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": HOSTILE, "text": HOSTILE + HOSTILE}) + "\n"
    )
    (directory / "recipe.yaml").write_text(f"name: |\n  {HOSTILE}\n")
    (directory / "vocabulary.json").write_text(
        json.dumps({HOSTILE: 1, "longest": [{"text": HOSTILE}], "x": {HOSTILE: 3}, "y": HOSTILE})
    )
    (directory / "preparation.json").write_text(json.dumps({"documents_in": 2, "dropped": {HOSTILE: 1}, HOSTILE: "z"}))
    information = json.loads((directory / "run.json").read_text())
    information |= {"name": HOSTILE, "status": HOSTILE, "created": HOSTILE, "baselines": {HOSTILE: 2.0}}
    information["lineage"] = {"command": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}}
    information["fingerprints"] = {HOSTILE: HOSTILE}
    (directory / "run.json").write_text(json.dumps(information))
    reader, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert not {tag for tag, _ in reader.tags} & {"script"}
    assert not [a for tag, a in reader.tags if tag == "img" and not (a["src"] or "").startswith("data:")]
    assert text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7*7 }}" in text


def test_a_run_interrupted_before_its_first_validation(make_run: Any) -> None:
    directory = make_run(steps=30, status="interrupted")
    for name in ("samples.jsonl", "vocabulary.json", "preparation.json"):
        (directory / name).unlink()
    information = json.loads((directory / "run.json").read_text())
    information["figures"] = {"parameters": 1000}
    (directory / "run.json").write_text(json.dumps(information))
    reader, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert "interrupted at step 30" in text
    assert "before its first validation" in text
    assert "only the baselines are known" in text
    anchors = [attributes["id"] for tag, attributes in reader.tags if tag == "section"]
    assert anchors == ["baselines", "training", "samples", "cost", "recipe", "lineage"]


def test_a_failed_run_says_why(make_run: Any) -> None:
    directory = make_run(steps=30, status="failed", error="JourneyError: the loss was not finite")
    _, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert "ended by a failure at step 30 (JourneyError: the loss was not finite)" in text


def test_a_run_with_nothing_but_its_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    _, text = _read(write_report(tmp_path).read_text(encoding="utf-8"))
    assert tmp_path.name in text
    assert "No step was logged" in text
    assert summary_rows(tmp_path)[:2] == [("Run", tmp_path.name), ("Status", "unknown")]


def test_damaged_files_are_named_and_the_rest_is_shown(make_run: Any) -> None:
    directory = make_run()
    with (directory / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"step": "x"}\n{"step": 481, "lo')
    (directory / "vocabulary.json").write_bytes(b"\xff\x00")
    (directory / "samples.jsonl").write_text('{"step": 1, "text": 5}\n' + "[" * 100_000)
    _, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert "Metrics.jsonl: 3 lines could not be read" in text
    assert "Vocabulary.json: not a JSON object" in text
    assert "Samples.jsonl: 1 line could not be read" in text
    assert "10,033" in text


def test_values_of_wrong_types_do_not_stop_a_report(make_run: Any) -> None:
    directory = make_run(
        seconds="soon", step=None, figures=[1], baselines={"gzip": "x", "xz": float("nan")}, lineage=[], created=3,
        fingerprints="f", paths=7,
    )  # fmt: skip
    (directory / "metrics.jsonl").write_text(
        '{"step": 1, "loss": "a"}\n{"step": 2, "loss": null, "non_finite": ["loss"]}\n'
        '{"step": 3, "validation_loss": []}\n'
    )
    (directory / "preparation.json").write_text('{"documents_in": 0, "dropped": [1], "notices": 3, "seconds": null}')
    _, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert "not a finite number at 1 step, first at 2" in text


@pytest.mark.parametrize("content", [None, "not json", "[1]"])
def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInputError, match=r"run\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_many_samples_and_validations_are_thinned_with_first_and_last_kept(make_run: Any) -> None:
    directory = make_run()
    rows = [{"step": step, "prompt": "p", "text": f"p text-{step}-end " + "x" * 5000} for step in range(1, 101)]
    (directory / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"step": step, "validation_loss": 9 - step / 100, "perplexity": math.inf} for step in range(1, 101)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = report_html(read_run(directory))
    _, text = _read(html)
    assert "24 of 100 samples" in text
    assert "text-1-end" in text
    assert "text-100-end" in text
    assert "x" * 3000 not in text
    assert html.count('<tr class="strong">') == 1
    assert "8.9900" in text
    assert "8.0000" in text


def test_tokens_come_from_the_shards_where_they_still_exist(make_run: Any, tmp_path: Path) -> None:
    from llm_journey.datasets.shards import write_shards

    for split, texts in (("train", ["abcd", "ef"]), ("validation", ["gh"])):
        write_shards(
            texts, lambda batch: [[1] * (len(text) // 2) for text in batch], tmp_path / "shards",
            split=split, vocab_size=4, end_id=0,
        )  # fmt: skip
    directory = make_run(paths={"shards": str(tmp_path / "shards")})
    _, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert "split tokens bytes per token training 5 2.00 held out 2 2.00" in text


def test_an_export_over_its_bound_is_called_out(make_run: Any) -> None:
    directory = make_run()
    information = json.loads((directory / "run.json").read_text())
    information["figures"]["logit_difference"] = 0.3
    (directory / "run.json").write_text(json.dumps(information))
    _, text = _read(write_report(directory).read_text(encoding="utf-8"))
    assert "do not rely on this export" in text


def test_importing_the_reports_loads_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, llm_journey.reports.run_report, llm_journey.reports.compare, llm_journey.reports.tables, "
        "llm_journey.evaluation.baselines\n"
        "print([name for name in ('torch', 'matplotlib', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_verdict() -> None:
    baselines = {"gzip": 3.0, "kneser_ney_2": 1.9, "kneser_ney_5": 1.6}
    assert verdict(1.5, baselines) == "1.500 bits per byte: below every baseline; the closest is the " + (
        "Kneser-Ney 5-gram at 1.600."
    )
    assert verdict(1.7, baselines) == "1.700 bits per byte: below 2 of 3 baselines; still ahead of it: " + (
        "Kneser-Ney 5-gram (1.600)."
    )
    assert verdict(4.0, baselines) == "4.000 bits per byte: not below any baseline yet; ahead of it: " + (
        "Kneser-Ney 5-gram (1.600), Kneser-Ney bigram (1.900) and gzip −9 (3.000)."
    )


def test_summary_rows_for_a_terminal(make_run: Any) -> None:
    directory = make_run()
    rows = dict(summary_rows(directory))
    assert rows["Bits per byte"] == f"{read_run(directory).figures['bits_per_byte']:.3f}"
    assert "below every baseline" in rows["Baselines"]
    assert "Report" not in rows
    write_report(directory)
    assert dict(summary_rows(directory))["Report"] == str(directory / "report.html")


def test_the_last_validation_stands_in_for_missing_final_figures(make_run: Any) -> None:
    run = read_run(make_run(figures={"tokens": 5}))
    assert run.figures["bits_per_byte"] == run.validation[-1]["bits_per_byte"]
    assert series(run.validation, "validation_loss")[0] == [80, 160, 240, 320, 400, 480]


def test_a_report_is_the_same_each_time_it_is_written(make_run: Any) -> None:
    directory = make_run()
    first = write_report(directory).read_bytes()
    assert write_report(directory).read_bytes() == first
