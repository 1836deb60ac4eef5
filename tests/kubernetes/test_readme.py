"""The README's Kubernetes page is what runs here: every line of its shell blocks, in order, on the test cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clusters import ROOT, Cluster, Servers
from commands import environment_of

pytestmark = [pytest.mark.timeout(5400)]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines() -> list[str]:
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## On Kubernetes\n")[2].partition("\n## ")[0]
    return [line for block in BLOCK.findall(page) for line in block.splitlines() if line.strip()]


def test_every_line_of_the_page_runs(cluster: Cluster, servers: Servers, tag: str, tmp_path: Path) -> None:
    servers.forget("phantom")
    script = "\n".join(["set -eu", "set -v", *lines()])
    # With what the page exports there already, as for who follows it a second time in the same shell.
    exported = environment_of(cluster, servers, tmp_path)
    # A token of nobody: without any, `stack check` says that there is no secret of Kaggle's.
    given = {"KUBECONFIG": str(cluster.kubeconfig), "REGISTRY": cluster.registry, "TAG": tag,
             "KAGGLE_API_TOKEN": "a-token"}  # fmt: skip
    done = cluster.run("bash", "-c", script, **{**exported, **given})
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "phantom" in done.stdout


def test_the_page_has_every_part() -> None:
    words = " ".join(lines())
    assert all(part in words for part in ("make images", "stack check", "run phantom --on", "schedule plan", "deploy"))
