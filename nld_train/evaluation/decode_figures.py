"""The figures of a decoding sweep, from its records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from nld_train.evaluation.decode_sweep import BASELINE, DENOISING, LOSSLESS, SweepPoint
from nld_train.evaluation.record_file import Record
from nld_train.report.columns import align_columns, number_text

OVERALL = "overall"  # stands for all categories together
CHOICES = (2, 3)  # ranks whose shares are told
SHOWN = 12  # pictures whose answers the page shows


def decode_figures(identity: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """For every point, the figures of each category and of all together.

    Tokens per forward count every forward, the prefill included, so that AR has exactly 1; without the prefill they are
    given beside it. Agreement: share of an answer's tokens that greedy AR would put behind the answer so far. Equal:
    share of the answers that are greedy AR's, token for token.
    """
    baseline = {record["context"]: record["ids"] for record in records if record["point"]["mode"] == BASELINE}
    points: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record["key"]):
        points.setdefault(SweepPoint(**record["point"]).name, []).append(record)
    order = sorted(points, key=lambda name: _point_order(SweepPoint(**points[name][0]["point"])))
    return {
        "kind": "decode",
        "identity": dict(identity),
        "points": [_point_figures(points[name], baseline) for name in order],
        **_answered_pictures({name: points[name] for name in order}),
    }


def _answered_pictures(points: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """The first prompts with images, and the text of every point's answer; nothing where there are none."""
    shown = [record for record in next(iter(points.values()), []) if "images" in record]
    shown.sort(key=lambda record: (len(record["context"]), record["context"]))  # 2/1 before 10/1
    pictures = [
        {
            **{name: record[name] for name in ("question", "images", "reference")},
            "answers": {
                name: one["text"] for name, of in points.items() for one in of if one["context"] == record["context"]
            },
        }
        for record in shown[:SHOWN]
    ]
    return {"pictures": pictures} if pictures else {}


def _point_order(point: SweepPoint) -> tuple[Any, ...]:
    modes = (BASELINE, DENOISING, *LOSSLESS)
    return modes.index(point.mode), point.adapter, point.block or 0, point.threshold or 0, point.sampler


def _point_figures(records: Sequence[Record], baseline: Mapping[str, list[int]]) -> dict[str, Any]:
    point = SweepPoint(**records[0]["point"])
    by_category: dict[str, list[Record]] = {}
    for record in records:
        by_category.setdefault(record["category"], []).append(record)
    figures = {name: _group_figures(by_category[name], baseline) for name in sorted(by_category)}
    overall = _group_figures(records, baseline)
    lossless = point.mode in LOSSLESS
    return {
        **vars(point),
        "name": point.name,
        "lossless": lossless,
        "exact": overall["equal"] == 1.0 if lossless else None,
        OVERALL: overall,
        "categories": figures,
    }


def _group_figures(records: Sequence[Record], baseline: Mapping[str, list[int]]) -> dict[str, Any]:
    """The figures of some answers of one point."""
    tokens = sum(len(record["ids"]) for record in records)
    forwards = sum(record["forwards"] for record in records)
    prefills = sum(record["prefill"] for record in records)
    rounds = [gained for record in records for gained in record["accepted"]]
    judged = [record for record in records if record["reference"] is not None]
    right = sum(record["text"].strip() == record["reference"].strip() for record in judged)
    equal = sum(record["ids"] == baseline[record["context"]] for record in records)
    return {
        "answers": len(records),
        "tokens": tokens,
        "forwards": forwards,
        "tokens_per_forward": tokens / forwards,
        "tokens_per_forward_without_prefill": tokens / (forwards - prefills) if forwards > prefills else None,
        "tokens_per_second": tokens / sum(record["seconds"] for record in records),
        "agreement": sum(record["as_ar"] for record in records) / tokens,
        "equal": equal / len(records),
        "judged": len(judged),
        "accuracy": right / len(judged) if judged else None,
        "accepted_length": sum(rounds) / len(rounds) if rounds else None,
        "kept": kept_shares(rounds),
        **_choice_shares(records),
    }


def kept_shares(rounds: Sequence[int]) -> list[float]:
    """Share of the rounds that kept all drafts up to each place, from the first on. rounds: tokens that each added, the
    verifier's own one included."""
    if not rounds:
        return []
    return [sum(gained > place for gained in rounds) / len(rounds) for place in range(1, max(rounds))]


def _choice_shares(records: Sequence[Record]) -> dict[str, Any]:
    """Of the refused drafts, the share where the right token was the drafter's second or third choice."""
    refused = [rank for record in records if record["refused"] is not None for _, rank in record["refused"]]
    shares = {str(choice): refused.count(choice) / len(refused) for choice in CHOICES} if refused else {}
    return {"refused": len(refused), "right_was_choice": shares}


def decode_table(figures: Mapping[str, Any]) -> str:
    """What the terminal shows: one line for each point, all categories together."""
    header = ["", "tokens/forward", "accepted", "agreement", "equal to AR", "accuracy", "2nd / 3rd choice", "tokens/s"]
    rows = [header]
    for point in figures["points"]:
        found = point[OVERALL]
        choices = found["right_was_choice"]
        rows.append(
            [
                point["name"],
                f"{found['tokens_per_forward']:.3f}",
                number_text(found["accepted_length"], ".3f"),
                f"{found['agreement']:.1%}",
                f"{found['equal']:.1%}",
                number_text(found["accuracy"], ".1%"),
                " / ".join(f"{choices[str(choice)]:.1%}" for choice in CHOICES) if choices else "-",
                f"{found['tokens_per_second']:.0f}",
            ]
        )
    return align_columns(rows)
