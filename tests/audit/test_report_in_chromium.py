"""Pages of both kinds in a browser: no error, as wide as a phone, and all of it on paper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from posthoc_bhpeft.audit.regression import regression_page
from posthoc_bhpeft.audit.report import page
from tests.audit.regression.made import whole
from tests.audit.test_report import MADE, full

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
REQUIRED = bool(os.environ.get("BHPEFT_REQUIRE_CHROMIUM"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None and not REQUIRED, reason=f"no browser found, one of {', '.join(NAMES)}"
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip

# Measured in a copy for the test, where the page's own policy would not let a script run.
MEASURE = """<script>
const wide = document.documentElement.scrollWidth;
const far = [...document.querySelectorAll('body *')].filter(e =>
  !e.closest('.scroll, svg, .unseen, .skip, pre') &&
  e.getBoundingClientRect().right > innerWidth + 1);
const dead = [...document.querySelectorAll('a[href^="#"]')].filter(a =>
  !document.getElementById(a.hash.slice(1)));
document.title = ['MEASURED', innerWidth, wide, far.length, dead.length,
  getComputedStyle(document.body).backgroundColor].join('|');
</script></body>"""


def browse(folder: Path, source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None, f"BHPEFT_REQUIRE_CHROMIUM is set, but none of {NAMES} is there"
    return subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, source.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.fixture(scope="module", params=["classes", "numbers"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    of_classes = request.param == "classes"
    text = page(full(), made=MADE) if of_classes else regression_page(whole(), made=MADE)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measured(report: Path) -> Path:
    text = report.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", text)
    path = report.with_name("measured.html")
    path.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    return path


def figures(folder: Path, source: Path, *flags: str) -> list[str]:
    dom = browse(folder, source, *flags, "--dump-dom").stdout
    found = re.search(r"<title>MEASURED\|([^<]*)</title>", dom)
    assert found, "the page was not measured"
    return found.group(1).split("|")


def test_renders_without_an_error_on_the_console(tmp_path: Path, report: Path) -> None:
    done = browse(tmp_path, report, "--dump-dom")
    assert "How the verdict is reached" in done.stdout
    assert done.stdout.count("<svg") >= 4
    assert "CONSOLE" not in done.stderr


def test_an_error_on_the_console_would_be_seen(tmp_path: Path, measured: Path) -> None:
    broken = measured.with_name("broken.html")
    text = measured.read_text(encoding="utf-8").replace("</body>", "<script>nope()</script></body>")
    broken.write_text(text, encoding="utf-8")
    assert "CONSOLE" in browse(tmp_path, broken, "--dump-dom").stderr


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_is_wider_than_the_window(tmp_path: Path, measured: Path, width: int) -> None:
    inner, wide, beyond, dead, _ = figures(tmp_path, measured, f"--window-size={width},900")
    assert int(inner) == width
    assert int(wide) <= width
    assert int(beyond) == 0
    assert int(dead) == 0


def test_nothing_is_wider_than_a_phone(tmp_path: Path, measured: Path) -> None:
    """A window has a smallest width, so the phone is a frame of 360 pixels."""
    frame = measured.with_name("phone.html")
    # What the page would report from inside a frame is read by the page around it.
    frame.write_text(
        f'<iframe src="{measured.name}" width=360 height=800 style="border:0"></iframe>'
        "<script>onload = () => { document.title = frames[0].document.title }</script>"
    )
    inner, wide, beyond, *_ = figures(tmp_path, frame, "--allow-file-access-from-files")
    assert int(inner) == 360
    assert int(wide) <= 360
    assert int(beyond) == 0


def test_dark_is_dark_and_light_is_light(tmp_path: Path, report: Path) -> None:
    shades = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{name}.png"
        browse(
            tmp_path, report, f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={shot}", "--window-size=1280,3000",
        )  # fmt: skip
        shades[name] = np.asarray(imread(shot))[..., :3].mean()
    assert shades["dark"] < 0.35
    assert shades["light"] > 0.75


def test_print_holds_what_is_folded(tmp_path: Path, report: Path) -> None:
    """Folded parts take room on paper: the same page without the rule has fewer sheets."""
    text = report.read_text(encoding="utf-8")
    folded = report.with_name("folded.html")
    assert "details::details-content" in text
    folded.write_text(text.replace("details::details-content", "nothing::selection"))
    sheets = {}
    for path in (report, folded):
        pdf = tmp_path / f"{path.stem}.pdf"
        browse(tmp_path, path, f"--print-to-pdf={pdf}")
        sheets[path.stem] = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert sheets["report"] > sheets["folded"] >= 3
