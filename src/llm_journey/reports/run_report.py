"""The report of a run: one self-contained HTML file, and its short form for a terminal.

Each section is made by one function from what the run folder holds; a section without material says what is missing or
is left out. A run that is unfinished, interrupted or failed gets the report of what it did.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_journey.core import files, lineage
from llm_journey.core.config import to_yaml
from llm_journey.reports import formatting, plots
from llm_journey.reports.change_section import change_section
from llm_journey.reports.data_sections import data_section, tokenizer_section
from llm_journey.reports.page import Block, Code, Facts, Note, Page, Picture, Sample, Section, Table, render
from llm_journey.reports.run_data import SHARES, Run, is_number, read_run, series

REPORT_FILE = "report.html"
LOGIT_BOUND = 1e-4  # the largest logit difference to transformers that an export may show, in fp32
_MOST_SAMPLES = 24
_MOST_CHARACTERS = 3000
_MOST_VALIDATIONS = 12
_METHOD = (
    "All arms see the same split. Compressors: gzip −9 and xz −9e on the held-out text alone; primed xz is what the "
    "held-out text adds to an archive of the training text (of at most its last 16 MiB). N-grams: interpolated "
    "modified Kneser-Ney (Chen & Goodman 1999) over the model's own tokens (at most the first 10 million). Model and "
    "n-grams are counted alike: each document follows an end-of-text token, and the bits of all its text tokens are "
    "divided by the text's UTF-8 bytes."
)


def write_report(run_directory: Path) -> Path:
    """Write `report.html` into a run folder and return its path. Raises BadInputError where the folder is no run."""
    html = report_html(read_run(run_directory))
    path = run_directory / REPORT_FILE
    files.write_text(path, html)
    return path


def report_html(run: Run) -> str:
    """The report of a run as one HTML document."""
    sections = [
        _baselines_section(run),
        change_section(run),
        _training_section(run),
        _samples_section(run),
        tokenizer_section(run),
        data_section(run),
        _cost_section(run),
        _export_section(run),
        _recipe_section(run),
        _lineage_section(run),
    ]
    return render(
        Page(
            title=run.name,
            kicker="Training run" + (f" · {created}" if (created := _created(run)) else ""),
            status=run.status,
            lead=_lead(run),
            figures=_headline(run.figures),
            sections=[section for section in sections if section is not None],
            footer=f"Written by llm-journey {lineage.versions().get('llm-journey', '')} from {run.directory.name}/. "
            "Every figure here stands in run.json or metrics.jsonl beside this file.",
        )
    )


def summary_rows(run_directory: Path) -> list[tuple[str, str]]:
    """What a person wants to know of a run at once, as (label, value) rows for a terminal."""
    run = read_run(run_directory)
    rows = [("Run", run.name), ("Status", run.status)]
    rows += [(label, f"{value} {unit}".rstrip()) for label, value, unit in _headline(run.figures)]
    rows += [(label, value) for label, value in _cost_rows(run) if label in {"Training time", "Energy (estimate)"}]
    bits = run.figures.get("bits_per_byte")
    if bits is not None and run.baselines:
        rows.append(("Baselines", verdict(bits, run.baselines)))
    if answers := _answers(run.figures):
        rows.append(("Answers", answers.strip()))
    difference = run.figures.get("logit_difference")
    if difference is not None:
        rows.append(("Export", f"largest logit difference to transformers {formatting.scientific(difference)}"))
    if (run.directory / REPORT_FILE).is_file():
        rows.append(("Report", str(run.directory / REPORT_FILE)))
    return rows


def verdict(bits: float, baselines: Mapping[str, float]) -> str:
    """Where a model's bits per byte stand among the baselines', in one sentence."""
    ahead = sorted((value, plots.baseline_label(name)) for name, value in baselines.items() if value <= bits)
    behind = sorted((value, plots.baseline_label(name)) for name, value in baselines.items() if value > bits)
    if not ahead:
        value, label = behind[0]
        return f"{bits:.3f} bits per byte: below every baseline; the closest is the {label} at {value:.3f}."
    named = _listed([f"{label} ({value:.3f})" for value, label in ahead])
    if not behind:
        return f"{bits:.3f} bits per byte: not below any baseline yet; ahead of it: {named}."
    return f"{bits:.3f} bits per byte: below {len(behind)} of {len(baselines)} baselines; still ahead of it: {named}."


def _headline(figures: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(label, value, unit) of the figures that a reader looks for first."""
    forms: list[tuple[str, str, Callable[[float], str], str]] = [
        ("exact_match", "Exact match", formatting.percent, ""),
        ("answer_accuracy", "Answers' tokens right", formatting.percent, ""),
        ("masked_accuracy", "Masked tokens right", formatting.percent, ""),
        ("span_accuracy", "Span tokens right", formatting.percent, ""),
        ("bigram_accuracy", "Always the likeliest after the one before", formatting.percent, ""),
        ("unigram_accuracy", "Always the commonest token", formatting.percent, ""),
        ("bits_per_byte", "Bits per byte", lambda value: f"{value:.3f}", ""),
        ("validation_loss", "Validation loss", lambda value: f"{value:.3f}", "nats/token"),
        ("perplexity", "Perplexity", formatting.significant, ""),
        ("general_perplexity", "Perplexity of general text", formatting.significant, ""),
        ("parameters", "Parameters", formatting.count, ""),
        ("trained_parameters", "Trained", formatting.count, "parameters"),
        ("tokens", "Tokens seen", formatting.count, ""),
        ("tokens_per_second", "Throughput", formatting.count, "tokens/s"),
        ("mfu", "MFU", formatting.percent, ""),
    ]
    found = [(label, form(figures[key]), unit) for key, label, form, unit in forms if key in figures]
    return [(label, *_unit_apart(value, unit)) for label, value, unit in found]


def _unit_apart(value: str, unit: str) -> tuple[str, str]:
    """ "1.80 million" as its number and its word."""
    number, space, word = value.partition(formatting.SPACE)
    return (number, f"{word} {unit}".rstrip()) if space else (value, unit)


def _lead(run: Run) -> str:
    figures = run.figures
    size = f" of {formatting.count(figures['parameters'])} parameters" if "parameters" in figures else ""
    parts = [f"{_what_it_is(figures)}{size}"]
    if "tokens" in figures:
        parts.append(f", trained on {formatting.count(figures['tokens'])} tokens")
    if run.seconds is not None:
        parts.append(f" in {formatting.duration(run.seconds)}")
    bits = figures.get("bits_per_byte")
    tail = f" {verdict(bits, run.baselines)}" if bits is not None and run.baselines else ""
    return "".join(parts) + "." + (tail or _answers(figures))


def _what_it_is(figures: Mapping[str, float]) -> str:
    if "masked_accuracy" in figures:
        return "An encoder"
    return "An encoder-decoder" if "token_accuracy" in figures else "A language model"


def _answers(figures: Mapping[str, float]) -> str:
    """How many answers are right, for an objective that has such; else nothing."""
    if "exact_match" in figures:
        return f" It writes {formatting.percent(figures['exact_match'])} of the held-out answers without a fault."
    found, guessed = figures.get("span_accuracy"), figures.get("bigram_accuracy")
    if found is not None and guessed:
        return (
            f" Of the tokens that were cut out it finds {formatting.percent(found)}, those of the span before them "
            f"given; the likeliest after the one before is right in {formatting.percent(guessed)}."
        )
    found, guessed = figures.get("masked_accuracy"), figures.get("unigram_accuracy")
    if found is None or not guessed:
        return ""
    return (
        f" It finds {formatting.percent(found)} of the masked tokens, {found / guessed:.1f} times what always saying "
        f"the commonest one would ({formatting.percent(guessed)})."
    )


def _baselines_section(run: Run) -> Section | None:
    bits, baselines = run.figures.get("bits_per_byte"), run.baselines
    if not baselines:
        return None
    if bits is None:
        note = Note("The model was not validated before the run ended, so only the baselines are known.", "warning")
        rows = [(plots.baseline_label(name), f"{value:.3f}") for name, value in baselines.items()]
        return Section("baselines", "Baselines", [note, Table(("baseline", "bits per byte"), rows), Note(_METHOD)])
    light, dark = plots.svg_pair(plots.bits_picture(bits, baselines))
    spoken = "; ".join(f"{plots.baseline_label(name)} {value:.2f}" for name, value in baselines.items())
    alternative = f"Bits per byte: this model {bits:.2f}; {spoken}"
    blocks: list[Block] = [Picture(light, dark, alternative, _METHOD)]
    if run.information.get("stream"):
        text = f"This model was trained on a stream ({run.information['stream']}), the baselines on the prepared text."
        blocks.append(Note(text, "warning"))
    return Section("baselines", "Against the baselines", blocks)


def _training_section(run: Run) -> Section:
    blocks: list[Block] = [Note(problem[0].upper() + problem[1:] + ".", "warning") for problem in run.problems]
    if run.status in {"interrupted", "failed"}:
        step = run.information.get("step")
        where = f" at step {step:,.0f}" if is_number(step) else ""
        error = run.information.get("error")
        where += f" ({error})" if isinstance(error, str) and error else ""
        blocks.append(
            Note(f"This run was {_ended(run.status)}{where}; the report shows what it did until then.", "warning")
        )
    lost = [row["step"] for row in (*run.training, *run.validation) if row.get("non_finite")]
    if lost:
        blocks.append(
            Note(f"A measurement was not a finite number at {_steps(len(lost))}, first at {lost[0]:,.0f}.", "warning")
        )
    if run.training or run.validation:
        blocks.append(_picture(plots.loss_picture(run), f"Loss by step, {_curve_in_words(run)}"))
    else:
        blocks.append(Note("No step was logged before the run ended."))
    progress = plots.progress_picture(run)
    if progress is not None:
        blocks.append(_picture(progress, "Learning rate, gradient norm, tokens a second and MFU by step"))
    shares = plots.shares_picture(run)
    if shares is not None:
        blocks.append(_picture(shares, "Share of right answers on held-out data by step"))
    if run.validation:
        blocks.append(_validation_table(run))
        blocks += _sample_note(run)
    elif run.training:
        blocks.append(Note("The run ended before its first validation."))
    return Section("training", "Training", blocks)


def _sample_note(run: Run) -> list[Block]:
    """What is to be known where validations read a part of the held-out text."""
    last = run.validation[-1]
    share, tokens = last.get("validation_share"), last.get("validation_tokens")
    if not is_number(share) or not is_number(tokens):
        return []
    text = (
        f"Validations read {share:.1%} of the held-out tokens ({tokens:,.0f}), in whole documents drawn once; "
        "training.validation_tokens sets how many. Baselines read all of the held-out text."
    )
    return [Note(text)]


def _validation_table(run: Run) -> Table:
    rows = run.validation
    last = len(rows) - 1
    chosen = sorted({round(last * index / (_MOST_VALIDATIONS - 1)) for index in range(_MOST_VALIDATIONS)})
    best = min((row["validation_loss"] for row in rows if is_number(row["validation_loss"])), default=None)
    shares = [key for key in SHARES if any(key in row for row in rows)]
    columns = [("validation_loss", "validation loss", "{:.4f}"), ("perplexity", "perplexity", "{:.2f}")]
    columns += [(key, SHARES[key], "{:.1%}") for key in shares] or [("bits_per_byte", "bits per byte", "{:.4f}")]
    cells = [
        (f"{rows[index]['step']:,.0f}", *(_number(rows[index].get(key), form) for key, _, form in columns))
        for index in chosen
    ]
    strong = frozenset(place for place, index in enumerate(chosen) if rows[index]["validation_loss"] == best)
    return Table(("step", *(title for _, title, _ in columns)), cells, strong)


def _samples_section(run: Run) -> Section:
    rows = [row for row in run.samples if isinstance(row.get("text"), str)]
    if not rows:
        return Section("samples", "Samples", [Note("No text was sampled in this run.")])
    blocks: list[Block] = []
    if len(rows) > _MOST_SAMPLES:
        last = len(rows) - 1
        chosen = sorted({round(last * index / (_MOST_SAMPLES - 1)) for index in range(_MOST_SAMPLES)})
        blocks.append(Note(f"{len(chosen)} of {len(rows)} samples, spread over the run; samples.jsonl holds all."))
        rows = [rows[index] for index in chosen]
    for row in rows:
        prompt = row["prompt"] if isinstance(row.get("prompt"), str) else ""
        text = row["text"].removeprefix(prompt)
        if len(text) > _MOST_CHARACTERS:
            text = text[:_MOST_CHARACTERS] + " …"
        blocks.append(Sample(f"step {row['step']:,.0f}", prompt, text))
    return Section("samples", "Samples", blocks)


def _cost_rows(run: Run) -> list[tuple[str, str]]:
    figures = run.figures
    rows: list[tuple[str, str]] = []
    if "parameters" in figures:
        rows.append(("Parameters", formatting.count(figures["parameters"])))
    if "tokens" in figures:
        rows.append(("Tokens", formatting.count(figures["tokens"])))
    if isinstance(run.information.get("precision"), str):
        rows.append(("Precision", run.information["precision"]))
    if run.seconds is not None:
        rows.append(("Training time", formatting.duration(run.seconds)))
    if "flops" in figures:
        rows.append(("Arithmetic", f"{formatting.with_prefix(figures['flops'], 'FLOP')}, forward and backward"))
    if "mfu" in figures:
        share = formatting.percent(figures["mfu"])
        precision = run.information.get("precision") or "this precision"
        rows.append(("MFU", f"{share}: the model's arithmetic over this machine's peak in {precision} matrix products"))
    if "activation_bytes" in figures:
        size = formatting.with_prefix(figures["activation_bytes"], "B")
        rows.append(("Activations (counted)", f"{size} kept for one backward pass"))
    if "key_value_bytes" in figures:
        size = formatting.with_prefix(figures["key_value_bytes"], "B")
        rows.append(("Keys and values", f"{size} while generating, at the full context"))
    if "energy_joules_estimate" in figures:
        rows.append(("Energy (estimate)", formatting.energy(figures["energy_joules_estimate"])))
        rows.append(("How it was estimated", _energy_assumption(run)))
    return rows


def _energy_assumption(run: Run) -> str:
    stated = run.information.get("energy_assumption")
    if isinstance(stated, str) and stated:
        return stated
    said = "nothing was metered: training time times an assumed power"
    if not run.seconds:
        return said
    watts = run.figures["energy_joules_estimate"] / run.seconds
    cores = _mapping(run.section("lineage"), "hardware").get("cores")
    per_core = f", {watts / cores:.2g} W for each of {cores} busy cores" if is_number(cores) and cores > 0 else ""
    return f"{said} of {watts:.3g} W{per_core}"


def _cost_section(run: Run) -> Section | None:
    rows = _cost_rows(run)
    return Section("cost", "Cost", [Facts(rows)]) if rows else None


def _export_section(run: Run) -> Section | None:
    difference = run.figures.get("logit_difference")
    if difference is None:
        return None
    holds = difference <= LOGIT_BOUND
    measured, bound = formatting.scientific(difference), formatting.scientific(LOGIT_BOUND)
    said = (
        f"The saved folder model/, opened with transformers, gives the same logits: the largest difference is "
        f"{measured}, within the bound of {bound} (fp32)."
        if holds
        else f"The saved folder model/, opened with transformers, differs by up to {measured} in its logits, "
        f"over the bound of {bound} (fp32): do not rely on this export."
    )
    return Section("export", "Export check", [Note(said, "good" if holds else "warning")])


def _recipe_section(run: Run) -> Section | None:
    if not run.recipe:
        return None
    said = "recipe.yaml holds the resolved recipe; `journey train recipe.yaml`, in this folder, repeats the run."
    return Section("recipe", "Recipe", [Note(said), Code(run.recipe, "Show the recipe")])


def _lineage_section(run: Run) -> Section | None:
    made_by = run.section("lineage")
    if not made_by:
        return None
    hardware, versions = _mapping(made_by, "hardware"), _mapping(made_by, "versions")
    rows = [
        ("Command", str(made_by.get("command") or "not recorded")),
        ("Commit", str(made_by.get("commit") or "not in a git checkout")),
        ("Hardware", _hardware(hardware)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"),
    ]
    rows += [(f"Fingerprint: {name}", str(value)) for name, value in run.section("fingerprints").items()]
    rest = {key: value for key, value in made_by.items() if key not in {"command", "commit", "hardware", "versions"}}
    blocks: list[Block] = [Facts(rows)]
    if rest:
        blocks.append(Code(to_yaml(rest), "What else was recorded"))
    return Section("lineage", "Lineage", blocks)


def _hardware(hardware: Mapping[str, Any]) -> str:
    parts = [str(hardware[key]) for key in ("processor", "accelerator") if hardware.get(key)]
    if is_number(hardware.get("cores")):
        parts.append(f"{hardware['cores']:,.0f} cores")
    if is_number(hardware.get("memory_bytes")):
        parts.append(f"{formatting.with_prefix(hardware['memory_bytes'], 'B')} of memory")
    return ", ".join(parts) or "not recorded"


def _picture(draw: plots.Draw, alternative: str) -> Picture:
    light, dark = plots.svg_pair(draw)
    return Picture(light, dark, alternative)


def _curve_in_words(run: Run) -> str:
    _, losses = series(run.training, "loss")
    _, validations = series(run.validation, "validation_loss")
    parts = [f"training from {losses[0]:.2f} to {losses[-1]:.2f}"] if losses else []
    parts += [f"validation ends at {validations[-1]:.3f}"] if validations else []
    return ", ".join(parts) or "without a finite value"


def _created(run: Run) -> str:
    created = run.information.get("created")
    return created[:16].replace("T", " ") if isinstance(created, str) else ""


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number:,} steps"


def _ended(status: str) -> str:
    return "interrupted" if status == "interrupted" else "ended by a failure"


def _number(value: Any, form: str) -> str:
    return form.format(value) if is_number(value) else "–"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def _mapping(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
