"""The site of docs/: its navigation, links, pictures, and what is generated from the code."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from call_graphs import FOLDER, described, draw, rollouts
from conftest import REPO

from configs.open_tables import open_tables
from configs.reference import option_groups
from configs.schema import SCHEMAS, ArmConfig, JobConfig

DOCS = REPO / "docs"
GENERATED = DOCS / "configuration.md"
PAGES = sorted({*DOCS.glob("*.md"), GENERATED})
LINK = re.compile(r"\]\(([^)\s]+)\)")
PACKAGES = ("rewards", "rollout", "train")
"""Packages that share their name with a section of the config: ``rewards.score`` is no option."""
SECTIONS = "algo|collect|coldstart|data|hardware|launch|model|operator|plan|rewards|rollout|train"


@cache
def _make_configuration() -> str:
    """The page as the schema says now."""
    spec = importlib.util.spec_from_file_location("make_configuration", DOCS / "make_configuration.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def _text(path: Path) -> str:
    return _make_configuration() if path == GENERATED else path.read_text(encoding="utf-8")


def _prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", _text(path), flags=re.S | re.M)


def _anchors(path: Path) -> set[str]:
    """Ids of a page as Python-Markdown's toc makes them, and those written as HTML."""
    text = _prose(path)
    titles = re.findall(r"^#+ +(.+?)\s*$", text, re.M)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return slugs | set(re.findall(r'id="([^"]+)"', text))


def _lost_links(path: Path) -> Iterator[str]:
    for link in LINK.findall(_prose(path)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not (target == GENERATED or target.is_file()):
            yield f"{link}: there is no such file"
        elif anchor and anchor not in _anchors(target):
            yield f"{link}: there is no such heading"


def _config() -> dict[str, Any]:
    return yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _leaves(each)


@cache
def _options() -> set[str]:
    groups = [group for schema in SCHEMAS.values() for group in option_groups(schema)]
    return {option.name for group in groups for option in group.options}


def test_the_navigation_names_every_page_once():
    assert sorted(_leaves(_config()["nav"])) == [path.name for path in PAGES]


@pytest.mark.parametrize("path", [REPO / "README.md", REPO / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_every_link_of_a_page_leads_somewhere(path: Path):
    assert list(_lost_links(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_links_only_to_what_the_site_holds(path: Path):
    assert [link for link in LINK.findall(_prose(path)) if link.startswith(("..", "/"))] == []


def test_a_lost_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Here it is\n[a](#here-it-is) [b](#there) [c](none.md) [d](https://example.org)\n")
    assert [each.partition(":")[0] for each in _lost_links(page)] == ["#there", "none.md"]


@pytest.mark.parametrize("path", [REPO / "README.md", *PAGES], ids=lambda path: path.name)
def test_every_option_that_a_page_names_exists(path: Path):
    text = _prose(path)
    if path.name == "coming_from.md":  # the first column has the names of others
        text = re.sub(r"^\| `.*? \| ", "| ", text, flags=re.M)
    words = re.findall(r"`([^`\n]+)`", text)
    named = {
        name
        for word in words
        for name in re.findall(rf"(?<![\w./+-])((?:{SECTIONS})(?:\.[a-z_]\w*)+)(?![\w.:/(])", word)
    }
    options = _options()
    groups = {name.rpartition(".")[0] for name in options}
    suffixes = (".py", ".md", ".json", ".jsonl", ".yaml")
    tables = {f"{name}." for schema in SCHEMAS.values() for name in open_tables(schema)}
    named = {name for name in named if not name.startswith(tuple(tables))}
    lost = {name for name in named - options - groups if not name.endswith(suffixes) and not _is_code(name)}
    assert lost == set()


def _is_code(name: str) -> bool:
    """True if a dotted name begins with a module of ours; tests/test_docs.py checks the rest of it."""
    path = REPO / "/".join(name.split(".")[:2])
    return path.is_dir() or path.with_suffix(".py").is_file() or name.partition(".")[0] in PACKAGES


def test_the_configuration_page_is_what_the_schema_says_now():
    again = "python docs/make_configuration.py > docs/configuration.md"
    assert GENERATED.read_text(encoding="utf-8") == _make_configuration(), f"It is out of date: {again}"


def test_the_configuration_page_has_every_option_with_type_default_and_meaning():
    rows = re.findall(
        r"^\| (?:<span[^>]*></span>)?`([^`]+)` \| (.+?) \| (.+?) \| (.*) \|$", _make_configuration(), re.M
    )
    names = [name for name, *_ in rows]
    assert set(names) == _options() | {option.name for option in next(option_groups(ArmConfig)).options}
    assert [row for row in rows if not all(cell.strip("` ") for cell in row)] == []
    dotted = [name for name in names if "." in name]
    assert len(dotted) == len(set(dotted)), "a shared group is printed twice"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.iterdir()))
def test_a_call_graph_in_the_documentation_is_the_one_that_the_operator_makes(name: str):
    rollout = rollouts()[name]
    picture = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert picture == draw(rollout), "draw it anew: python tests/call_graphs.py"
    assert described(rollout) in picture
    assert f"img/graphs/{name}.svg" in (DOCS / "operators.md").read_text(encoding="utf-8")


def test_no_picture_is_left_over_and_none_loads_anything():
    assert {path.stem for path in FOLDER.iterdir()} == set(rollouts())
    for path in [*DOCS.rglob("*.svg"), DOCS / "site.css"]:
        loaded = re.findall(
            r"(?:href|src|url\(|@import)[=\s'\"(]*([^#'\")\s]+)", path.read_text(encoding="utf-8")
        )
        assert loaded == [], path


def test_the_site_needs_no_network_to_be_read():
    config = _config()
    assert config["theme"]["font"] is False
    assert config["plugins"] == ["search", "offline"]
    assert "extra_javascript" not in config
    # Without it the plugin offline would add one that is loaded from elsewhere.
    (shim,) = config["extra"]["polyfills"]
    assert "iframe-worker" in shim and (DOCS / shim).is_file()
    assert not any("```mermaid" in _text(path) for path in PAGES), "Material loads mermaid from elsewhere"


def _trl_defaults() -> dict[str, str]:
    """Field -> default of TRL's GRPOConfig and of its bases, as their sources write it."""
    found: dict[str, str] = {}
    for module, names in (
        ("transformers.training_args", {"TrainingArguments"}),
        ("trl.trainer.base_config", {"_BaseConfig"}),
        ("trl.trainer.grpo_config", {"GRPOConfig"}),
    ):
        package, _, rest = module.partition(".")
        root = importlib.util.find_spec(package)
        assert root and root.submodule_search_locations
        path = Path(root.submodule_search_locations[0], *rest.split(".")).with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                found |= dict(_fields(node))
    return found


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            value = each.value
            if isinstance(value, ast.Call):
                value = next((word.value for word in value.keywords if word.arg == "default"), None)
            yield each.target.id, ast.unparse(value) if value else ""


def test_the_table_for_users_of_trl_has_names_and_defaults_of_both():
    section = (DOCS / "coming_from.md").read_text(encoding="utf-8").split("## verl")[0]
    rows = re.findall(r"^\| (`.+?) \| ?(.*?) \| ?(.*?) \| ?(.*?) ?\|$", section, re.M)
    theirs = _trl_defaults()
    ours = {option.name: option.default for group in option_groups(JobConfig) for option in group.options}
    assert len(rows) > 35
    for names, default, here, own in rows:
        fields = re.findall(r"`(\w+)`", names)
        assert set(fields) <= set(theirs), names
        if default:
            assert [theirs[name] for name in fields] == [default.strip("`")], names
        if own:
            assert ours[here.split("`")[1]] == own.strip("`"), here


def test_the_image_for_gpu_machines_has_the_pins_of_the_project():
    image = (REPO / "launch" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    project = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    for package in ("torch", "vllm"):
        (version,) = re.findall(rf'"{package}==([\d.]+)"', project)
        assert f"{package} {version}" in image
    copied = re.findall(r"^COPY (.+) \S+$", image, re.M)
    assert {"configs", "pyproject.toml"} < {name for line in copied for name in line.split()}
    assert all((REPO / name).exists() for line in copied for name in line.split())
