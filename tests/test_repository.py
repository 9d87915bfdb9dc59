"""What stands around the code agrees with it: workflows, versions, the citation, and what a source distribution holds."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import tritoncrf

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def jobs(workflow: Path) -> dict:
    return yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]


def commands(workflow: Path) -> str:
    return "\n".join(step.get("run", "") for job in jobs(workflow).values() for step in job.get("steps", []))


# Workflows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_exists(workflow):
    """Files of the repository, in commands, in `uses` and for caches, and targets of the Makefile."""
    content = workflow.read_text(encoding="utf-8")
    named = set(re.findall(r"\./(\.github/\S+)", content)) | set(
        re.findall(r"(?:tests|\.ci)/[\w./]+", commands(workflow))
    )
    for path in re.findall(r"cache-dependency-path: \|\n((?: {12}.+\n)+)", content):
        named |= set(path.split())
    assert not [name for name in named if not (ROOT / name).is_file()]
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", commands(workflow))) <= targets


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_do_no_more_than_it_needs(workflow):
    """It reads the repository; one job, which publishes, has an identity and runs nothing of the repository."""
    flow = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        assert "uses" in job or job["timeout-minutes"] <= 60
        allowed = {"id-token": "write"} if (workflow.name, name) == ("release.yml", "publish") else None
        assert job.get("permissions") == allowed
        for step in job.get("steps", []):
            assert allowed is None or "run" not in step
            used = step.get("uses", "")
            assert not used or re.search(r"@(v\d+|release/v\d+|[0-9a-f]{40})$", used), used
            assert "actions/checkout" not in used or step["with"]["persist-credentials"] is False


def test_the_pythons_of_the_workflows_are_those_of_the_package():
    prefix = "Programming Language :: Python :: "
    classified = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if re.fullmatch(prefix + r"3\.\d+", c)]
    assert PROJECT["requires-python"] == f">={classified[0]}"
    workflows = ROOT / ".github" / "workflows"
    assert jobs(workflows / "checks.yml")["tests"]["strategy"]["matrix"]["python"] == classified
    assert jobs(workflows / "package.yml")["installed"]["strategy"]["matrix"]["python"] == classified
    assert set(jobs(workflows / "checks.yml")["without-triton"]["strategy"]["matrix"]["python"]) <= set(classified)


def test_the_forms_of_issues_ask_for_what_can_be_answered():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for name in ("bug.yml", "feature.yml"):
        form = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        assert form["name"] and form["description"]
        assert any(field.get("validations", {}).get("required") for field in form["body"])
    assert "tritoncrf info" in (folder / "bug.yml").read_text(encoding="utf-8")


def test_pre_commit_has_the_ruff_of_the_constraints():
    configured = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    (rev,) = (repo["rev"] for repo in configured if repo["repo"].endswith("/ruff-pre-commit"))
    assert f"ruff=={rev.removeprefix('v')}" in text("constraints.txt").splitlines()


# Versions ---------------------------------------------------------------------------------------------------------


def test_the_changelog_begins_with_what_is_unreleased_then_this_version():
    headings = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(re.escape(f"[{tritoncrf.__version__}]") + r" - \d{4}-\d{2}-\d{2}", headings[1])


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == tritoncrf.__version__
    assert f"## [{tritoncrf.__version__}] - {citation['date-released']}" in text("CHANGELOG.md")
    assert all(citation[field] for field in ("message", "authors"))  # demanded by the format


# The source distribution ------------------------------------------------------------------------------------------


def test_the_source_distribution_holds_what_the_wheel_is_built_of(tmp_path):
    """No tests, pages, benchmarks, results or workflows. Built from a copy, since setuptools writes beside the sources."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "tritoncrf", copy / "tritoncrf", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "models", copy / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for folder, suffix in (("tests", "*.py"), ("docs", "*.md"), ("bench", "*.py"), (".github/workflows", "*.yml")):
        (copy / folder).mkdir(parents=True)
        for path in (ROOT / folder).glob(suffix):
            shutil.copy(path, copy / folder)
    for name in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
    ):
        shutil.copy(ROOT / name, copy)
    build = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.name == f"tritoncrf-{tritoncrf.__version__}.tar.gz"
    with tarfile.open(archive) as opened:
        held = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    sources = {path.relative_to(copy) for folder in ("tritoncrf", "models") for path in (copy / folder).rglob("*.py")}
    sources |= {path.relative_to(copy) for path in (copy / "models" / "configs").iterdir()}
    beside = {
        "pyproject.toml",
        "setup.cfg",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "PKG-INFO",
        "tritoncrf/py.typed",
    }
    assert {name for name in held if ".egg-info/" not in name} == {path.as_posix() for path in sources} | beside
