"""package: no torch inside, one tag for one content, and a process that starts, says why not, and stops."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import handmade
import psutil
import pytest

from medflow.errors import ArtifactError, ModelError, ServingError
from medflow.imports import ROOT, Reached, Sources, distributions, ours_anywhere
from medflow.package import content_digest, open_package, package
from medflow.records import Bundle, Package
from medflow.server import import_package, start_server

FORBIDDEN = {"torch", "pandas", "sklearn", "pyarrow", "timm", "monai", "mlflow", "zenml", "matplotlib"}


def served() -> Reached:
    return Sources().reached(["medflow.serve"], ours_anywhere)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return handmade.bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def packed(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package(bundle, handmade.evaluation(bundle), work=tmp_path_factory.mktemp("packed"))


# -- what is inside ------------------------------------------------------------------------------


def test_importing_the_service_loads_nothing_heavy() -> None:
    """In a process of its own: other tests have loaded torch in this one."""
    code = "import sys, json, medflow.serve; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not FORBIDDEN & set(json.loads(done.stdout))


@pytest.mark.parametrize("modules", ["medflow.serve", "medflow.serve, medflow.dicom.image"])
def test_the_closure_is_what_the_import_loads(modules: str) -> None:
    """The first DICOM upload loads what reads it; what only functions import is in the Bento too."""
    code = f"import sys, json, {modules}; print(json.dumps(sorted(n for n in sys.modules if n.startswith('medflow'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    late = {name for name in served().modules if name.startswith("medflow.dicom")}
    assert loaded | late == set(served().modules)
    assert (late <= loaded) == ("dicom" in modules)


def test_the_packages_are_pinned_and_few() -> None:
    pins = distributions(served().packages)
    expected = {"numpy", "onnxruntime", "pillow", "pydantic", "bentoml", "safetensors", "pydicom", "python-gdcm"}
    assert expected <= {name.lower() for name in pins}
    assert not FORBIDDEN & {name.lower() for name in pins}


def test_the_bento_holds_the_model_and_its_few_modules(packed: Package) -> None:
    with tarfile.open(packed.bento) as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        pins = archive.extractfile(next(name for name in archive.getnames() if name.endswith("requirements.txt")))
        assert pins is not None
        requirements = pins.read().decode()
    sources = {name for name in names if name.startswith("src/medflow/") and name.endswith(".py")}
    assert sources == {f"src/{path.relative_to(ROOT).as_posix()}" for path in served().modules.values()}
    assert {"src/service.py", "src/identity.json", "src/README.md"} <= names
    assert {"src/bundle/card.json", "src/bundle/model.onnx", "src/bundle/golden.safetensors"} <= names
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements


def test_the_card_page_states_the_evaluation(packed: Package) -> None:
    with tarfile.open(packed.bento) as archive:
        name = next(name for name in archive.getnames() if name.endswith("src/README.md"))
        stream = archive.extractfile(name)
        assert stream is not None
        page = stream.read().decode()
    assert "| diagnosis | macro | auroc | 0.900 | 0.850 to 0.950 | 40 |" in page
    assert "Not a medical device" in page


# -- one content, one tag ------------------------------------------------------------------------


def test_the_same_content_has_the_same_tag(packed: Package, bundle: Bundle, tmp_path: Path) -> None:
    again = package(bundle, handmade.evaluation(bundle), work=tmp_path)
    assert again.facts.tag == packed.facts.tag == f"handmade:{packed.facts.content_digest[:12]}"
    assert again.digest() == packed.digest()


def test_another_model_service_or_runtime_has_another_digest(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle(root=bundle.root, card=bundle.card.model_copy(update={"thresholds": ()}))
    sources = served().modules
    (tmp_path / "serve.py").write_text("EDITED = True")
    edited = {**sources, "medflow.serve": tmp_path / "serve.py"}
    digests = [
        content_digest(bundle, sources, {"numpy": "1"}),
        content_digest(other, sources, {"numpy": "1"}),
        content_digest(bundle, edited, {"numpy": "1"}),
        content_digest(bundle, sources, {"numpy": "2"}),
    ]
    assert len(set(digests)) == 4


def test_a_package_is_read_back(packed: Package, tmp_path: Path) -> None:
    assert open_package(packed.root).facts == packed.facts
    with pytest.raises(ArtifactError, match="no package"):
        open_package(tmp_path)


def test_a_torch_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    torch_bundle = Bundle(root=bundle.root, card=bundle.card.model_copy(update={"variant": "torch"}))
    with pytest.raises(ModelError, match="needs an ONNX one"):
        package(torch_bundle, handmade.evaluation(bundle), work=tmp_path)


# -- import --------------------------------------------------------------------------------------


def test_import_is_done_once_and_checks_the_file(packed: Package, tmp_path: Path) -> None:
    path = import_package(packed, tmp_path)
    assert (path / "bento.yaml").is_file()
    assert import_package(packed, tmp_path) == path
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_damaged_bento_is_refused(packed: Package, tmp_path: Path) -> None:
    (tmp_path / packed.facts.file).write_bytes(packed.bento.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not the file that was built"):
        import_package(Package(root=tmp_path, facts=packed.facts), tmp_path / "home")
    assert not (tmp_path / "home").exists()


# -- the process ---------------------------------------------------------------------------------


def test_a_port_in_use_is_refused_at_once(packed: Package, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port}"):
            start_server(packed, port=port, home=tmp_path)


def test_a_host_that_is_no_address_is_refused(packed: Package, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no IP address"):
        start_server(packed, host="example.invalid", home=tmp_path)


def test_a_model_that_does_not_reproduce_its_golden_set_is_never_ready(tmp_path: Path) -> None:
    bundle = handmade.bundle(tmp_path / "bundle", golden_error=3.0)
    made = package(bundle, handmade.evaluation(bundle), work=tmp_path / "work")
    with pytest.raises(ServingError, match="golden set is not reproduced"):
        start_server(made, home=tmp_path / "home")


def test_a_service_that_cannot_start_shows_its_last_lines(packed: Package, tmp_path: Path) -> None:
    bento = import_package(packed, tmp_path)
    (bento / "src" / "identity.json").unlink()
    with pytest.raises(ServingError, match=r"identity\.json"):
        start_server(bento)


def test_stop_ends_every_process_and_frees_the_port(packed: Package, tmp_path: Path) -> None:
    with start_server(packed, home=tmp_path) as server:
        with urllib.request.urlopen(f"{server.url}/livez") as response:
            assert response.status == 200
        everyone = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        assert len(everyone) >= 2
    assert not [process for process in everyone if process.is_running()]
    assert not server.scratch.exists()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(server.url.rpartition(":")[2])))
    server.stop()


def test_workers_end_when_their_parent_was_killed(packed: Package, tmp_path: Path) -> None:
    with start_server(packed, home=tmp_path) as server:
        workers = psutil.Process(server.process.pid).children(recursive=True)
        assert workers
        server.process.kill()
        server.process.wait()
    assert not [worker for worker in workers if worker.is_running()]


SERVE = """
import sys, time
from pathlib import Path
from medflow.server import start_server
print(start_server(Path(sys.argv[1]), log=Path(sys.argv[2])).process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_a_service_ends_when_what_started_it_was_killed(packed: Package, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(import_package(packed, tmp_path)), str(tmp_path / "serve.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        service = psutil.Process(int(starter.stdout.readline()))
        family = [service, *service.children(recursive=True)]
        assert len(family) > 1
        starter.kill()
        starter.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    for process in alive:
        process.kill()
    assert not alive
