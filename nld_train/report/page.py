"""The report of one or more runs: losses over their steps, one table, and how it was made, in one HTML file."""

import math
import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path

from nld_train import recipe
from nld_train.data.manifest import parse_blend
from nld_train.dual_stream.picture import visibility_svg
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.files import check_output_file, write_text
from nld_train.report import chart, decoded_answers, drafter_figures, race, sampler_figures
from nld_train.report.chart import Chart, ChartLine, ChartPoint, StageSpan, chart_svg
from nld_train.report.evaluation_page import evaluation_sections
from nld_train.report.history import Stage, read_stages, stage_losses
from nld_train.report.html_page import html_page
from nld_train.report.stage_table import NATS, html_table
from nld_train.run_folder.metrics import Entry

TERMS = (("AR loss", "ar"), ("diffusion loss", "diffusion"))
# Name in metrics.jsonl, title, unit.
SMALL = (
    ("mask ratio", "Mask ratio", "masked / maskable tokens"),
    ("gradient norm", "Gradient norm", "before clipping"),
    ("learning rate", "Learning rate", ""),
)
MOST = 300  # points of a training line; more are averaged
PICTURE = (16, 4)  # tokens and block size of the picture: small enough to be read


@dataclass(frozen=True)
class ReportExtras:
    """What a report shows beside the runs."""

    answers: Sequence[Path] = ()  # what `nld generate --json` wrote, file by file
    evaluations: Sequence[Path] = ()  # what `nld eval` wrote, folder by folder

    def words(self) -> list[str]:
        """The words of `nld report` for them."""
        shown = ["--answers", *map(str, self.answers)] if self.answers else []
        return [*shown, *(["--eval", *map(str, self.evaluations)] if self.evaluations else [])]

    def race(self) -> list[str]:
        """The HTML of the answers. Raises: UserError."""
        return [decoded_answers.decoded_section(self.answers)] if self.answers else []

    def measured(self) -> list[str]:
        """The HTML of the evaluations. Raises: UserError."""
        return [evaluation_sections(self.evaluations)] if self.evaluations else []


NOTHING_ELSE = ReportExtras()


def write_report(
    stages: Sequence[Path],
    target: Path,
    unigram_entropy: float | None,
    title: str,
    extras: ReportExtras = NOTHING_ELSE,
) -> None:
    """Write the report of the runs in these output folders, in this order.

    `unigram_entropy`: of the data, in nats per token; None leaves its line and the gain out.
    Raises: UserError when a folder holds no metrics, or `target` has no folder to lie in.
    """
    read = read_stages(stages)
    check_output_file(target)
    made_by = report_command(read, target, unigram_entropy, title, extras)
    write_text(target, report_page(read, unigram_entropy, title, made_by, extras))


def report_command(
    stages: Sequence[Stage], target: Path, unigram_entropy: float | None, title: str, extras: ReportExtras
) -> str:
    """The `nld report` that writes this report; the entropy is that of the data the runs name."""
    words = ["nld", "report", *[str(stage.output) for stage in stages], "--html", str(target), "--title", title]
    if unigram_entropy is not None:
        blends = [prefix for stage in stages if not stage.on_answers for _, prefix in parse_blend(stage.run.data.blend)]
        words += ["--data", *dict.fromkeys(blends)]
    return shlex.join([*words, *extras.words()])


def report_page(
    stages: Sequence[Stage], unigram_entropy: float | None, title: str, made_by: str, extras: ReportExtras
) -> str:
    """The whole HTML file: it needs no other file and no network; its script moves the clock of the race alone."""
    body = [
        f"<h1>{escape(title)}</h1>",
        *extras.race(),
        "<h2>Training</h2>",
        loss_sentences(stages, unigram_entropy),
        report_figures(stages, unigram_entropy),
        "<h2>Stages</h2>",
        html_table(stages, unigram_entropy),
        drafter_figures.drafter_section(stages),
        sampler_figures.sampler_section(stages),
        *extras.measured(),
        visibility_figure(stages),
        "<h2>How this page was made</h2>",
        f"<pre>{escape(made_by)}</pre>",
        *[settings_html(stage) for stage in stages],
    ]
    return html_page(title, decoded_answers.STYLE + race.STYLE, body)


def loss_sentences(stages: Sequence[Stage], unigram_entropy: float | None) -> str:
    """What the figures say, in sentences."""
    on_text = [stage for stage in stages if not stage.on_answers]
    ends = [*on_text[-1:], *[stage for stage in stages if stage.on_answers]]
    said = [sentence for stage in ends if (sentence := ar_end(stage, unigram_entropy))]
    for stage in stages:
        found = stage_losses(stage)
        if found.diffusion_drop is not None:
            said.append(
                f"Diffusion loss at the end of {escape(stage.run.name)}: <b>{found.diffusion_end:.3f}</b> {NATS}, "
                f"{difference_text(found.diffusion_drop, 'where the stage started')} ({found.diffusion_start:.3f})."
            )
    said += [sentence for pair in zip(stages, stages[1:], strict=False) if (sentence := stage_change_sentence(*pair))]
    return "<ul>" + "".join(f"<li>{sentence}</li>" for sentence in said) + "</ul>"


def ar_end(stage: Stage, unigram_entropy: float | None) -> str | None:
    """Where the AR loss of a stage ended; None where it was not measured."""
    last, name = stage_losses(stage), escape(stage.run.name)
    if last.ar_end is None:
        return None
    if stage.on_answers:
        end = f"AR loss on answers at the end of {name}: <b>{last.ar_end:.3f}</b> {NATS}"
        return f"{end} ({last.ar_start:.3f} at its start)."
    gain = last.gain(unigram_entropy)
    below = (
        "" if gain is None else f", {difference_text(gain, 'the unigram entropy of the data')} ({unigram_entropy:.3f})"
    )
    return f"AR loss at the end of {name}: <b>{last.ar_end:.3f}</b> {NATS}{below}."


def difference_text(difference: float, other: str) -> str:
    return f"{abs(difference):.3f} {'below' if difference >= 0 else 'above'} {other}"


def stage_change_sentence(before: Stage, after: Stage) -> str | None:
    """The AR loss before the first step of a stage beside the last one of the stage it starts from."""
    end, start = stage_losses(before).ar_end, stage_losses(after).ar_start
    if before.on_answers != after.on_answers:
        return None
    if end is None or start is None or after.run.init != before.run.output or after.validation[0]["step"] > 0:
        return None
    names = f"{escape(after.run.name)} starts from {escape(before.run.name)}"
    return f"{names}: AR loss {end:.4f} at the end of the one, {start:.4f} before the first step of the other."


def report_figures(stages: Sequence[Stage], unigram_entropy: float | None) -> str:
    """The losses large, and beside each other mask ratio, gradient norm and learning rate."""
    level = None if unigram_entropy is None else (unigram_entropy, f"unigram entropy {unigram_entropy:.3f}")
    lines = [line for name, style in TERMS for line in loss_lines(stages, name, style)]
    large = Chart("Loss", NATS, lines, stage_spans(stages), level, width=1032, height=430, top=68, right=60)
    unnamed = [StageSpan(span.start, span.end, "") for span in stage_spans(stages)]
    small = [
        Chart(
            title, unit, training_lines(stages, name, "plain"), unnamed, None, width=330, height=200, top=30, right=12
        )
        for name, title, unit in SMALL
    ]
    shown = "".join(f"<div>{chart_svg(figure)}</div>" for figure in small if any(line.points for line in figure.lines))
    losses_drawn = chart_svg(large) if any(line.points for line in lines) else ""  # a drafter alone has neither term
    return f'{losses_drawn}<div class="small">{shown}</div>\n<p class="note">{escape(figure_caption(stages))}</p>'


def figure_caption(stages: Sequence[Stage]) -> str:
    text = (
        "Stages lie one after the other. Thin lines: training, means over the logged steps. Rings: validation, on the "
        "same rows and noise every time. The diffusion loss is the ELBO per token; SFT counts answers alone. A lone "
        "spike is drawn at the edge of the frame. Rest the pointer on a point to read its value."
    )
    entries = max(len(stage.train) for stage in stages)
    if entries > MOST:
        text += f" Each training point is the mean of up to {math.ceil(entries / MOST)} logged values."
    broken = sum(not math.isfinite(value) for stage in stages for entry in stage.train for value in entry.values())
    return text + (f" Left out: {broken} values that are not finite." if broken else "")


def stage_spans(stages: Sequence[Stage]) -> list[StageSpan]:
    """Where the stages lie on the axis of steps."""
    ends = list(accumulate(stage.steps for stage in stages))
    return [StageSpan(end - stage.steps, end, stage.run.name) for stage, end in zip(stages, ends, strict=True)]


def loss_lines(stages: Sequence[Stage], name: str, style: str) -> list[ChartLine]:
    """Training and validation lines of one term."""
    validation = [
        ChartLine(
            f"{name}, validation", style, stage_points(stage, stage.validation, name, span, "validation"), marked=True
        )
        for stage, span in zip(stages, stage_spans(stages), strict=True)
    ]
    return training_lines(stages, name, style) + validation


def training_lines(stages: Sequence[Stage], name: str, style: str) -> list[ChartLine]:
    return [
        ChartLine(f"{name}, training", style, stage_points(stage, stage.train, name, span, "training"))
        for stage, span in zip(stages, stage_spans(stages), strict=True)
    ]


def stage_points(stage: Stage, entries: Sequence[Entry], name: str, span: StageSpan, kind: str) -> list[ChartPoint]:
    """The finite values of `name` over the steps of the whole axis."""
    pairs = [(entry["step"], entry[name]) for entry in entries if name in entry and math.isfinite(entry[name])]
    return [
        ChartPoint(span.start + step, value, f"{stage.run.name}, step {step:,.0f}, {kind}: {name} {value:.4g}")
        for step, value in chart.thin_points(pairs, MOST)
    ]


def visibility_figure(stages: Sequence[Stage]) -> str:
    """The picture of who sees whom, of the dual stream where a stage has one; nothing where all are samplers'."""
    if all(stage.run.sampler is not None for stage in stages):
        return ""
    joint = [stage for stage in stages if stage.run.diffusion.dual]
    length, block_size = PICTURE
    svg = visibility_svg(RowLayout(length, block_size, dual=bool(joint)))
    if joint:
        used = joint[-1].run
        sentence = (
            f"In a joint stage every row is given twice, [noisy | clean]: a noisy token sees its own noisy block and "
            f"the clean tokens of the blocks before it, a clean token sees the clean tokens up to itself. The picture "
            f"is drawn for {length} tokens in blocks of {block_size}; {used.name} has {used.data.sequence_length:,} in "
            f"blocks of {used.diffusion.block_size}."
        )
    else:
        sentence = f"Every token sees the tokens up to itself; drawn for {length} tokens."
    # As an image, so that the style of the picture and that of the page stay apart.
    image = b64encode(svg.encode()).decode()
    return (
        f"<h2>Who sees whom</h2><p>{escape(sentence)}</p>"
        f'<img alt="Table of visibility" src="data:image/svg+xml;base64,{image}">'
    )


def settings_html(stage: Stage) -> str:
    """The frozen configuration, folded away."""
    text = escape(recipe.dump_settings(stage.run))
    return f"<details><summary>Settings of {escape(stage.run.name)}</summary><pre>{text}</pre></details>"
