"""`medflow dashboard` in a real browser, over one small real run: the whole graph, and what its artifacts show.

MEDFLOW_SHOTS=FOLDER keeps a picture of every page that was opened.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from test_pipeline import small

from medflow.platform import runs
from medflow.platform.outcomes import RunOutcome

if TYPE_CHECKING:
    from playwright.sync_api import Frame, Page

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
PATIENCE_MS = 60_000
PICTURES = os.environ.get("MEDFLOW_SHOTS")
#: Artifact → words that its page must show.
PAGES = {
    "ingest/manifest": ("Labels", "Images by label", "grouped by", "patient", "with a mask"),
    "ingest/pixels": ("Packed pixels", "Some images as stored", "32 x 32 x 1"),
    "validate/validation_page": ("data checks", "Great Expectations", "near_duplicate", "share of kept"),
    "split/balance_page": ("Parts", "no group is in two parts", "train", "val", "test"),
    "train_monai_unet/trained": ("phantom/monai_unet (torch)", "Training", "Thresholds", "mean, std"),
    "evaluate_test/predictions": ("ROC of diagnosis", "Reliability of diagnosis", "Dice", "IoU"),
    "evaluate_test/evaluation": ("on test rows", "95% interval", "Confusion of diagnosis", "balanced_accuracy"),
    "evaluate_test/samples_page": ("Images with predicted and true masks",),
    "quantize_int8/quantized": ("Parity", "largest difference", "same decision", "static INT8"),
    "choose/choice": ("Verdicts", "onnx", "int8", "ms an image"),
    "promote/promotion": ("Promoted to production",),
}


@pytest.fixture(scope="module")
def run() -> RunOutcome:
    return runs.run(small())


@pytest.fixture(scope="module")
def addresses(run: RunOutcome) -> Iterator[dict[str, str]]:
    """What `medflow dashboard` prints; it is stopped as a terminal would, and must take both servers with it."""
    process, found = start()
    yield found
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0  # a busy machine takes its time
    for address in found.values():
        with pytest.raises(OSError):
            urlopen(address, timeout=5)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS.split())
        opened = started.new_page(viewport={"width": 2000, "height": 1600})
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        started.close()


@pytest.fixture(scope="module")
def graph(page: Page, addresses: dict[str, str], run: RunOutcome) -> Page:
    """The page of the run, zoomed out until all of its graph is seen."""
    page.goto(f"{addresses['zenml']}/projects/default/runs/{run.run_id}")
    page.wait_for_selector(".react-flow__node")
    page.get_by_label("Fit view").click()
    # Nodes outside the view are not in the document at all.
    until(page, lambda: page.locator(".react-flow__node-step").count() == len(run.steps))
    return page


def test_the_graph_shows_every_step_in_one_picture(graph: Page, run: RunOutcome) -> None:
    picture(graph, "graph")
    shown = {node.get_attribute("data-id"): node for node in graph.locator(".react-flow__node-step").all()}
    assert set(shown) == {f"step/{step.name}" for step in run.steps}
    pane = graph.locator(".react-flow__pane").bounding_box()
    assert pane
    for node in graph.locator(".react-flow__node").all():
        box = node.bounding_box()
        assert box and pane["x"] <= box["x"] and box["x"] + box["width"] <= pane["x"] + pane["width"]
        assert pane["y"] <= box["y"] and box["y"] + box["height"] <= pane["y"] + pane["height"]
    for artifact in PAGES:
        assert graph.locator(node_of(artifact)).count() == 1, artifact


@pytest.mark.parametrize("artifact", PAGES)
def test_an_artifact_opens_inside_the_dashboard(graph: Page, artifact: str) -> None:
    # An event instead of the mouse: zoomed out, the node is a few pixels wide.
    graph.locator(f"{node_of(artifact)} button").first.dispatch_event("click")
    graph.get_by_role("tab", name="Visualization").last.click()
    try:
        frame = until(graph, lambda: preview(graph))
        said = frame.locator("body").inner_text()
        picture(graph, artifact.replace("/", "-"))
        for words in PAGES[artifact]:
            assert words in said, f"{words!r} is not in: {said[:500]}"
        widths = frame.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
        assert all(width > 150 for width in widths), widths
        assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), "the page is cut at its side"
    finally:
        graph.get_by_label("Close details").click()
        until(graph, lambda: graph.locator("iframe").count() == 0)


def test_mlflow_shows_the_run_and_below_it_its_models(page: Page, addresses: dict[str, str], run: RunOutcome) -> None:
    page.goto(addresses["mlflow"])
    experiment = page.get_by_role("link", name="phantom", exact=True).first.get_attribute("href")
    page.goto(f"{addresses['mlflow']}/{experiment}/runs")
    parent = page.get_by_role("link", name="phantom-20").first
    parent.wait_for()
    assert page.get_by_role("link", name="monai_unet").count() == 0
    page.locator("[role=gridcell]").filter(has=parent).locator("button").first.click()
    page.get_by_role("link", name="monai_unet").first.wait_for()
    picture(page, "mlflow")


# -- in the page ---------------------------------------------------------------------------------


def test_a_killed_dashboard_takes_both_servers_with_it(run: RunOutcome) -> None:
    process, found = start()
    process.kill()
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while any(map(_answers, found.values())):
        assert time.monotonic() < deadline, "a server lives on"
        time.sleep(0.2)


def start() -> tuple[subprocess.Popen[str], dict[str, str]]:
    """`medflow dashboard` on free ports, and the addresses that it prints."""
    ports = [str(_free_port()) for _ in range(2)]
    command = [sys.executable, "-m", "medflow.cli", "dashboard", "--zenml-port", ports[0], "--mlflow-port", ports[1]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout
    return process, dict(line.split() for line in (process.stdout.readline(), process.stdout.readline()))


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def node_of(artifact: str) -> str:
    step, name = artifact.split("/")
    return f'.react-flow__node[data-id="{step}/outputs/step_output/{name}"]'


def preview(page: Page) -> Frame | None:
    """The artifact's own page, once it is there; a large one is loaded when it is asked for."""
    for load in page.get_by_text("Load Preview").all():
        load.click()
    found = next((frame for frame in page.frames[1:] if frame.locator("h1").count()), None)
    return found if found and found.locator("h1").inner_text() else None


def until(page: Page, found: Callable[[], object]):
    """The first true value of ``found`` within the test's patience; the page lives on meanwhile."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        page.wait_for_timeout(200)
    return value


def picture(page: Page, name: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{PICTURES}/{name}.png", timeout=90_000, animations="disabled")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
