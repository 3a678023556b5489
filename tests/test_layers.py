"""Which package may import what."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

import rewards
import rollout

OURS = {"configs", "launch", "rewards", "rollout", "train"}
ALLOWED = {
    "configs": {"configs"},
    "launch": {"launch", "configs"},
    "rewards": {"rewards", "configs"},
    "rollout": {"rollout", "configs"},
    "train": {"train", "rollout", "rewards", "configs"},
}
"""Besides, what composes may import every package but ``train``: a package's ``__main__.py`` or the body that
it imports, a facade."""
FACADES = {"rollout/api.py"}
"""What a notebook calls in place of a command: its answers and votes must be those of the real verifier."""
BODIES = {"launch/workers/serve.py", "rollout/command.py"}
"""What a package's ``__main__.py`` imports once it has checked the options: it composes in its place."""
BORROWED = {
    "launch": {
        "rollout.endpoints.keys",
        "rollout.endpoints.vllm_api",
        "rollout.evaluation.tables",
        "rollout.workers.asking",
        "rollout.workers.log_excerpt",
        "rollout.workers.loopback",
        "rollout.workers.process_guard",
        "train.origin",
    }
}
"""Single modules that a package may import of one that it does not know otherwise; they load no library of
models or numbers."""

METHOD = {
    "operators",
    "siblings",
    "sources",
    "boxed",
    "stages",
    "costs",
    "distiller",
    "workspace",
    "imports",
    "policy",
    "policy_settings",
    "placeholders",
    "prompts",
    "codec",
    "turns",
    "control_tokens",
    "thinking",
    "forcing",
    "budget",
    "vote",
    "records",
    "verdicts",
    "grading",
    "groups",
    "sampler",
}
"""Modules of ``rollout`` that are the method itself: they can be read, and used, without the rest."""

FLOORS = {
    "rollout": {
        **{name: METHOD for name in METHOD},
        "problems": {"records"},
        "prompt_probe": {"codec", "turns"},
        "tokenizer": {"codec", "prompt_probe", "prompts", "turns"},
        "build": METHOD,
        "endpoints": METHOD,
        "workers": {"endpoints"},
        "weights": {"endpoints"},
        "engine": {"endpoints", "workers", "weights", "records"},
        "evaluation": METHOD,
        "collection": METHOD | {"build", "evaluation"},
        "page": METHOD,
    },
    "rewards": {
        "verdict": set(),
        "answers": set(),
        "processes": {"answers"},
        "facts": set(),
        "solving": {"processes"},
        "judge": {"solving", "verdict"},
        "tasks": {"answers", "facts", "gold", "processes", "solving", "verdict"},
    },
    "train": {
        "zero3_shards": set(),
        "sharding": set(),
        "deepspeed_zero": {"sharding", "zero3_shards"},
        "batch": set(),
        "loss": {"batch"},
        "model": {"batch", "deepspeed_zero", "sharding"},
        "coldstart": set(),
        "study": {"export"},
    },
    "launch": {"plan": {"accelerate_file"}},
}
"""Rooms (a module or folder) of a package -> the rooms of the same package that they may import."""


def _modules(package: str) -> list[Path]:
    return sorted((REPO / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Full dotted names of everything that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _is_within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is that of one of these modules, or of something in it."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _importers(name: str) -> set[str]:
    return {
        str(path.relative_to(REPO))
        for package in OURS
        for path in _modules(package)
        if any(_is_within(imported, {name}) for imported in _imports(path))
    }


def _room(path: Path) -> str:
    """The module or folder directly under its package."""
    return path.relative_to(REPO).with_suffix("").parts[1]


def _graph() -> dict[str, set[str]]:
    """Every module of ours -> the modules of ours that it imports."""
    paths = {
        path: ".".join(path.relative_to(REPO).with_suffix("").parts) for p in OURS for path in _modules(p)
    }
    names = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    known = set(names.values())
    graph = {}
    for path, name in names.items():
        found = {
            imported if imported in known else imported.rpartition(".")[0] for imported in _imports(path)
        }
        graph[name] = (found & known) - {name}
    return graph


def test_no_module_imports_itself_by_way_of_others():
    order = graphlib.TopologicalSorter(_graph())
    order.prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize(
    ("package", "room"), [(p, room) for p, rooms in FLOORS.items() for room in sorted(rooms)]
)
def test_a_room_imports_only_the_rooms_below_it(package: str, room: str):
    paths = [path for path in _modules(package) if _room(path) == room and path.name != "__main__.py"]
    assert paths
    rooms = {_room(path) for path in _modules(package)}
    for path in paths:
        parts = [name.split(".") for name in _imports(path)]
        found = {part[1] for part in parts if part[0] == package and len(part) > 1} & rooms
        assert found - {room} <= FLOORS[package][room], path.relative_to(REPO)


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_the_packages_below_it(package: str):
    modules = _modules(package)
    assert modules
    for path in modules:
        names = {name for name in _imports(path) if not _is_within(name, BORROWED.get(package, set()))}
        found = {name.split(".")[0] for name in names} & OURS
        composes = path.name == "__main__.py" or str(path.relative_to(REPO)) in FACADES | BODIES
        allowed = ALLOWED[package] | (OURS - {"train"} if composes else set())
        assert found <= allowed, path.relative_to(REPO)


def _strings(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("package", sorted(OURS))
def test_names_of_modules_in_strings_exist(package: str):
    """Commands and classes that others import by name: no import would notice that they moved."""
    known = set(_graph()) | OURS
    rooms = {f"{p}.{_room(path)}" for p in OURS for path in _modules(p)}
    for path in _modules(package):
        for text in _strings(path):
            parts = text.split(".")
            if all(part.isidentifier() for part in parts) and ".".join(parts[:2]) in rooms:
                assert text in known or ".".join(parts[:-1]) in known, f"{path}: {text}"


def test_the_named_commands_exist():
    source = "".join(path.read_text(encoding="utf-8") for package in OURS for path in _modules(package))
    source += "".join(
        path.read_text(encoding="utf-8") for path in [REPO / "README.md", *(REPO / "docs").glob("*.md")]
    )
    commands = set(re.findall(rf"-m\W+((?:{'|'.join(OURS)})(?:\.\w+)*)", source))
    assert len(commands) > 10
    for command in commands:
        path = REPO / command.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), command


def test_deepspeed_is_known_to_one_file():
    assert _importers("deepspeed") == {"train/deepspeed_zero.py"}
    assert _importers("accelerate.utils.DeepSpeedEngineWrapper") == {"train/deepspeed_zero.py"}


def test_a_facade_is_there_and_nothing_of_its_package_rests_on_it():
    for facade in FACADES:
        name = facade.removesuffix(".py").replace("/", ".")
        assert (REPO / facade).is_file()
        assert _importers(name) == {f"{facade.partition('/')[0]}/__init__.py"}


def test_the_body_of_a_command_is_imported_by_its_command_alone():
    for body in BODIES:
        name = body.removesuffix(".py").replace("/", ".")
        assert _importers(name) == {f"{body.rpartition('/')[0]}/__main__.py"}


def test_importing_rollout_and_rewards_loads_no_heavy_library():
    code = (
        "import sys, rollout, rewards\n"
        "rollout.__all__, rewards.__all__\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'sympy', 'hydra', 'rollout.api'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.component
def test_each_exported_name_is_where_it_is_said_to_be():
    for package in (rewards, rollout):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'pdrr'"):
            _ = package.pdrr


def test_only_the_workers_extension_and_the_check_of_options_import_vllm():
    assert _importers("vllm") == {"rollout/weights/vllm_extension.py", "rollout/workers/vllm_options.py"}


def _literals(path: Path) -> set[str]:
    """The string literals of a file, docstrings left out; of an f-string its fixed parts."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
    }


def test_only_one_file_knows_the_paths_of_vllm():
    knows = REPO / "rollout/endpoints/vllm_api.py"
    paths = {match.group() for text in _literals(knows) if (match := re.match(r"/[\w/]+", text))}
    assert {"/health", "/pause", "/collective_rpc", "/inference/v1/generate"} <= paths
    engines = set((REPO / "rollout/endpoints").glob("*_api.py"))  # another engine has paths of its own
    for package in ("launch", "rollout", "train"):
        for path in set(_modules(package)) - engines:
            found = {known for known in paths for text in _literals(path) if known in text}
            assert not found, f"{path.relative_to(REPO)}: ask rollout.endpoints.vllm_api instead"


def test_configs_rewards_and_launch_import_no_torch():
    packages = {name.split("/")[0] for name in _importers("torch")}
    assert packages <= {"rollout", "train"}
    assert "train" in packages


@pytest.mark.parametrize("library", ["deepspeed", "accelerate", "torch.distributed"])
@pytest.mark.component
def test_only_train_knows_of_ranks(library: str):
    outside = {name for name in _importers(library) if not name.startswith("train/")}
    # Weights go over groups of their own, which are none of a run's ranks.
    ours = {"rollout/weights/transfer.py", "rollout/weights/meeting.py"}
    assert outside <= (ours if library == "torch.distributed" else set())


def _loaded(code: str, libraries: set[str]) -> set[str]:
    """Those of ``libraries`` that are loaded after ``code`` in a process of its own."""
    report = f"print(*sorted({libraries!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{report}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.component
def test_composing_a_config_loads_neither_torch_nor_vllm():
    code = (
        "import configs.schema, configs.compose\n"
        "configs.compose.load('training', ['model.path=x', 'data.path=x'])"
    )
    assert not _loaded(code, {"torch", "vllm", "transformers", "deepspeed"})


@pytest.mark.component
def test_the_command_of_a_job_loads_no_library_of_models_or_numbers():
    assert not _loaded("import launch.__main__", {"torch", "vllm", "transformers", "deepspeed", "numpy"})


@pytest.mark.component
def test_ports_and_the_check_of_a_server_load_no_http_library():
    assert not _loaded("import rollout.workers.loopback", {"aiohttp", "msgspec", "torch", "vllm"})


@pytest.mark.component
@pytest.mark.parametrize("module", sorted(set().union(*BORROWED.values())))
def test_a_borrowed_module_loads_no_library_of_models_or_numbers(module: str):
    libraries = {"torch", "vllm", "transformers", "deepspeed", "numpy", "datasets"}
    assert not _loaded(f"import {module}", libraries)
