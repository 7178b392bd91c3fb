"""The page: what is on it for which audit, that it is safe, and that it loads nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from posthoc_bhpeft.audit.drift import Drift
from posthoc_bhpeft.audit.drift.periods import Period
from posthoc_bhpeft.audit.metrics import Interval
from posthoc_bhpeft.audit.report import Made, class_verdict, page, write_class_report
from posthoc_bhpeft.audit.report.classes import confusions, counts, per_class
from posthoc_bhpeft.audit.report.drawings import drawings, inline, marks
from posthoc_bhpeft.audit.report.examples import MOST_LETTERS, galleries
from posthoc_bhpeft.audit.report.glossary import ordered, term
from posthoc_bhpeft.audit.report.tables import judged, rows
from posthoc_bhpeft.audit.result import Audit, Audited
from posthoc_bhpeft.audit.words import between, number, p_value, percent
from posthoc_bhpeft.errors import CheckpointError, ConfigError
from tests.audit.audits import audit_of, decision, group, interval, predictions

MADE = Made(datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), "bhpeft audit x", "9.9")
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Parsed(HTMLParser):
    """Ids, links, everything loaded, headings, and whether all tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.headers_without_scope = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag in ("a", "use"):
            self.links.append(given.get("href") or "")
        elif tag not in ("path", "g"):
            self.loaded += [given[name] or "" for name in ("src", "href") if name in given]
        self.headers_without_scope += tag == "th" and "scope" not in given
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def full() -> Audit:
    return audit_of(
        rivals=("MAP", "temperature"),
        decisions=(decision(), decision("at most 1 % wrong", feasible=False)),
        slices=(group("Delta", "badly served"), group("United")),
        drift=drift(),
    )


def drift() -> Drift:
    periods = tuple(
        Period(str(y), 9, interval(0.1), interval(0.8), interval(0.7)) for y in (2023, 2024)
    )
    return Drift(
        rows=90, reference_rows=50, label_shift=0.5, frequencies={"no": (0.4, 0.6)},
        covariate_shift=interval(0.52), uncertainty=interval(0.0), periods=periods,
        novelty=interval(0.25), finding="Nothing has changed.",
    )  # fmt: skip


SHAPES = {
    "everything": full(),
    "two checkpoints": audit_of(rivals=("runs/b",)),
    "alone": audit_of(),
    "twenty rows": audit_of(rows=20),
    "no texts": audit_of(texts=False),
    "no labels": audit_of(labels=False, drift=drift()),
    "no labels, nothing else": audit_of(labels=False, texts=False),
    "no scores": audit_of(scores=False),
    "two classes": audit_of(classes=2),
    "150 classes, 5000 rows": audit_of(rows=5000, classes=150, figures=("accuracy", "nll", "ece")),
}


@cache
def page_of(name: str) -> str:
    return page(SHAPES[name], made=MADE)


@pytest.mark.parametrize("name", SHAPES)
def test_page_is_whole_and_loads_nothing(name: str) -> None:
    text = page_of(name)
    found = Parsed(text)
    assert not found.open
    assert len(found.ids) == len(set(found.ids)), "every id is there once"
    inner = [link[1:] for link in found.links if link.startswith("#")]
    assert len(inner) > 3
    assert set(inner) <= set(found.ids)
    assert not found.loaded
    assert "script" not in found.tags
    assert not found.headers_without_scope
    for landmark in ("main", "header", "footer", "nav", "h1"):
        assert found.tags.count(landmark) == 1
    assert "@import" not in text
    assert "url(http" not in text
    assert len(text) < 2_000_000


def test_every_metric_leads_to_its_definition() -> None:
    text = page_of("everything")
    for name in full().subject.figures:
        assert f'href="#metric-{name.replace("_", "-")}"' in text
        assert f'<div id="metric-{name.replace("_", "-")}">' in text


def test_hostile_text_stays_text() -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    p = predictions(rows=60)
    p = replace(
        p, texts=tuple(evil for _ in range(60)), label_names=(evil, "b", "c"), about={evil: evil}
    )
    audit = replace(full(), subject=replace(full().subject, predictions=p, name=evil))
    audit = replace(
        audit, rivals=tuple(replace(r, predictions=p, name=f"{evil}{r.name}") for r in audit.rivals)
    )
    audit = replace(
        audit, data=evil, slices=(group(evil, evil),), decisions=(decision(evil),), drift=None
    )
    text = page(audit, made=Made(MADE.when, evil, evil))
    found = Parsed(text)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert "&lt;script&gt;" in text
    assert not found.open


def test_charts_have_a_name_a_text_and_the_colours_of_the_page() -> None:
    for drawing in drawings(full()).values():
        svg = drawing.svg()
        root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="s" ', 1))
        assert root.get("role") == "img"
        assert [child.text for child in root[:2]] == [drawing.title, drawing.text]
        assert drawing.caption
        assert "currentColor" in svg
        for ink in ("#222222", "#666666", "#ffffff", "<style", "DejaVu"):
            assert ink not in svg


def test_ids_of_charts_are_apart() -> None:
    svg = (
        '<svg viewBox="0 0 1 1"><path id="a"/><use xlink:href="#a"/><g clip-path="url(#a)"/></svg>'
    )
    made = inline(svg, "x", "t", "d")
    assert 'id="x-a"' in made
    assert 'href="#x-a"' in made
    assert "url(#x-a)" in made


def test_marks_stand_where_the_rows_kept_are() -> None:
    audit = full()
    doubt = audit.subject.predictions.score("confidence")
    threshold = audit.decisions[0].threshold
    assert marks(audit) == {"A": pytest.approx((doubt <= threshold).mean())}


def test_many_classes_have_no_matrix_and_few_have_one() -> None:
    assert 'class="matrix"' in page_of("two classes")
    text = page_of("150 classes, 5000 rows")
    assert 'class="matrix"' not in text
    assert "Taken for" in text


def test_points_of_many_rows_are_thinned() -> None:
    svg = drawings(SHAPES["150 classes, 5000 rows"])["uncertainty"].svg()
    assert svg.count("<use") < 1000


@pytest.mark.parametrize(
    ("name", "there", "missing"),
    [
        ("no labels", ("drift", "uncertainty", "examples"), ("figures", "classes", "decisions")),
        ("no scores", ("figures", "examples"), ("uncertainty",)),
        ("alone", ("figures", "calibration", "decisions", "classes"), ("slices", "drift")),
    ],
)
def test_sections(name: str, there: tuple[str, ...], missing: tuple[str, ...]) -> None:
    ids = Parsed(page_of(name)).ids
    assert set(there) <= set(ids)
    assert not set(missing) & set(ids)


def test_drift_tells_the_change_of_novelty_where_it_is_known() -> None:
    assert "Mean novelty, now less before" in page_of("everything")
    unknown = replace(full(), drift=replace(drift(), novelty=None))
    assert "Mean novelty" not in page(unknown, made=MADE)


def test_differences_are_called_better_only_where_zero_is_outside() -> None:
    lower, higher = term("nll"), term("accuracy")
    assert judged(Interval(-0.1, -0.2, -0.01), lower) == "better"
    assert judged(Interval(0.1, 0.01, 0.2), lower) == "worse"
    assert judged(Interval(0.1, 0.01, 0.2), higher) == "better"
    assert judged(Interval(-0.1, -0.2, 0.0), lower) == ""
    assert judged(Interval(np.nan, np.nan, np.nan), lower) == ""
    assert judged(Interval(0.1, 0.01, 0.2), term("of my own")) == ""


def test_rows_keep_rivals_in_order_and_gaps_empty() -> None:
    audit = full()
    fewer = replace(audit.rivals[1], figures={})
    audit = replace(audit, rivals=(audit.rivals[0], fewer))
    (row,) = rows(audit, ["nll"])
    assert row.rivals[0][0] is not None
    assert row.rivals[1][0] is None


def test_headline_comes_first_in_the_order_of_the_catalogue() -> None:
    first, others = ordered(["mce", "nll", "accuracy", "my own"])
    assert first == ["accuracy", "nll"]
    assert others == ["mce", "my own"]
    assert ordered(["my own"]) == (["my own"], [])


def test_confusions_by_hand() -> None:
    table = np.array([[5, 2, 0], [1, 3, 0], [0, 4, 0]])
    found = confusions(table, ("a", "b", "c"))
    assert [(c.true, c.predicted, c.rows) for c in found] == [
        ("c", "b", 4), ("a", "b", 2), ("b", "a", 1),
    ]  # fmt: skip
    assert found[1].share == pytest.approx(2 / 7)
    classes = {c.name: c for c in per_class(table, ("a", "b", "c"))}
    assert classes["b"].precision == pytest.approx(3 / 9)
    assert classes["a"].recall == pytest.approx(5 / 7)
    assert np.isnan(classes["c"].precision)
    assert per_class(table, ("a", "b", "c"))[0].name == "c"


def test_counts_are_true_class_down() -> None:
    p = predictions(rows=30)
    table = counts(p)
    assert p.labels is not None
    assert table[1, 2] == ((p.labels == 1) & (p.predicted == 2)).sum()
    assert table.sum() == 30


def test_examples_are_the_right_ones() -> None:
    p = predictions(rows=90)
    found = {gallery.id: gallery for gallery in galleries(p)}
    wrong = np.flatnonzero(~p.right)
    surest = wrong[p.confidence[wrong].argmax()]
    assert found["confidently-wrong"].shown[0].row == surest
    assert not any(one.right for one in found["confidently-wrong"].shown)
    assert found["most-uncertain"].shown[0].row == p.scores["total"].argmax()
    learn = found["least-learnt"].shown[0]
    assert learn.row == p.scores["epistemic"].argmax()
    place = learn.row
    share = p.scores["epistemic"][place] / p.scores["total"][place]
    assert learn.epistemic == pytest.approx(share)
    assert learn.probabilities[0][1] == p.confidence[place]


def test_the_page_says_that_rows_count_from_0() -> None:
    text = page(audit_of(), made=MADE)
    surest = galleries(audit_of().subject.predictions)[0].shown[0].row
    assert "Rows count from 0" in text
    assert f"Row {surest}<" in text


def test_rows_are_called_by_their_index_in_the_source() -> None:
    audit = audit_of()
    drawn = replace(
        audit.subject.predictions,
        indices=tuple(3 * n + 7 for n in range(len(audit.subject.predictions))),
    )
    kept = drawn.take(range(10, 40))
    assert kept.indices == tuple(3 * n + 7 for n in range(10, 40))
    for gallery in galleries(kept):
        assert all((one.row - 7) % 3 == 0 and one.row >= 37 for one in gallery.shown)


def test_long_texts_are_cut_and_nothing_is_lost() -> None:
    text = "word " * 400
    p = replace(predictions(rows=30), texts=(text,) * 30)
    one = galleries(p)[0].shown[0]
    assert len(one.start) <= MOST_LETTERS
    assert one.start + one.rest == text


def test_files_are_written_together(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text("{}")
    (tmp_path / "periods.png").write_bytes(b"old")
    (tmp_path / "pit.png").write_bytes(b"of a regression")
    (tmp_path / "mine.png").write_bytes(b"mine")
    write_class_report(audit_of(rivals=("MAP",)), tmp_path, made=MADE)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "audit.json", "confidence.png", "confusion.png", "mine.png", "reliability-1-map.png",
        "reliability.png", "report.html", "risk_coverage.png", "uncertainty.png",
    }  # fmt: skip
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_gets_its_pictures_beside_it(tmp_path: Path) -> None:
    write_class_report(audit_of(labels=False, scores=False), tmp_path / "one.html", made=MADE)
    assert {path.name for path in tmp_path.iterdir()} == {"one.html", "one-confidence.png"}


def test_nothing_is_left_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space")

    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    monkeypatch.setattr("posthoc_bhpeft.audit.report.writing.page", lambda *_, **__: "new")
    with pytest.raises(CheckpointError, match="no space"):
        write_class_report(audit_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_names_with_dollars_are_written_as_they_are(tmp_path: Path) -> None:
    """Prices as classes, columns and values; matplotlib would read a formula between two `$`."""
    said = replace(predictions(), label_names=("$5 # $6", "$$", "$10-$20"))
    found = audit_of(slices=(replace(group("$x_$"), column="$20-$30"),), drift=drift())
    made = replace(
        found,
        subject=replace(found.subject, name="$a$ # $", predictions=said),
        rivals=(Audited("$b_$", said, found.subject.figures),),
        differences={"$b_$": found.subject.figures},
    )
    write_class_report(made, tmp_path)
    assert {"confusion.png", "slices.png", "reliability.png"} <= {
        path.name for path in tmp_path.iterdir()
    }
    pictures = drawings(made)
    assert "$20-$30: $x_$<" in pictures["slices"].svg()
    assert "$a$ # $: AURC" in pictures["risk_coverage"].svg()
    assert "$b_$: AURC" in pictures["risk_coverage"].svg()


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"posthoc-bhpeft\[plots\]"):
        page(audit_of())


def test_page_says_when_and_how_it_was_made() -> None:
    text = page_of("everything")
    assert "2026-01-02 03:04 UTC" in text
    assert "<code>bhpeft audit x</code>" in text
    assert "posthoc-bhpeft 9.9" in text
    assert "Kronecker" in text
    assert class_verdict(full()).level in text


def test_numbers_as_people_read_them() -> None:
    assert number(-0.5) == "−0.500"
    assert number(-0.0001) == "0.000"
    assert number(1234.5, 1) == "1,234.5"
    assert number(float("nan")) == "–"
    assert percent(0.1234).replace("\u202f", " ") == "12.3 %"
    assert between(Interval(0.5, 0.4, 0.6), share=True).replace("\u202f", " ") == (
        "50.0 % (40.0 to 60.0)"
    )
    assert p_value(0.0001).replace("\u202f", " ") == "< 0.001"
    assert p_value(0.0421) == "0.042"
