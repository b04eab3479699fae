"""Rules of the code base that no single module can see: layering, sizes, documentation."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("janus_jax", "train", "convert")
MAX_LINES = 400

# What each package must not import. `janus_jax` reaches `train` and `convert` only from inside a
# function: the command line dispatches, and a PyTorch source named as a model is converted once.
FORBIDDEN = {
    "janus_jax": {"train", "convert", "torch", "transformers"},
    "train": {"convert", "torch", "transformers"},
    "convert": {"train"},
}
LAZY = {"janus_jax": {"train", "convert"}}
LAZY_FILES = ("janus_jax/cli/", "janus_jax/locate.py")

RULED_OUT = {
    "jax.experimental.pjit": "use jax.jit with shardings",
    "nnx.jit": "use jax.jit on pure functions",
    "nnx.Optimizer": "use optax on parameter trees",
    "nnx.scan": "use jax.lax.scan",
    "nnx.Dropout": "modules hold parameters only",
    "nnx.BatchNorm": "modules hold parameters only",
    "LOAD_TRUNCATED_IMAGES": "a truncated image is refused",
    "jnp.empty": "uninitialised since jax 0.11; use zeros",
}


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yields (top-level package, whether it is inside a function or under TYPE_CHECKING)."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name.split(".")[0], lazy
            elif isinstance(child, ast.ImportFrom) and not child.level and child.module:
                yield child.module.split(".")[0], lazy
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, lazy or inside or typing_only)

    return walk(tree, False)


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_flow_one_way(package: str):
    wrong = []
    for path in sources(package):
        for name, lazy in imports(ast.parse(path.read_text())):
            allowed_here = relative(path).startswith(LAZY_FILES) and name in LAZY.get(package, ())
            if name in FORBIDDEN[package] and not (lazy and allowed_here):
                wrong.append(f"{relative(path)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_importing_the_library_loads_nothing_heavy():
    program = (
        "import sys, janus_jax; assert janus_jax.__version__\n"
        "loaded = {'jax', 'flax', 'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from janus_jax import JanusConfig, InputError\n"
        "loaded = {'torch', 'transformers', 'train', 'convert'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_public_names_resolve_and_no_others():
    import janus_jax

    for name in janus_jax.__all__:
        assert getattr(janus_jax, name) is not None
    with pytest.raises(AttributeError, match="Jnus"):
        _ = janus_jax.Jnus


def test_no_file_is_too_long():
    # .ci/ also holds the environments that .ci/run makes, which are not ours: its own files only.
    own = [*sources(*PACKAGES, "tests", "bench"), *sorted((ROOT / ".ci").glob("*.py"))]
    long = {
        relative(path): count
        for path in own
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long, long


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method


def test_everything_public_is_documented():
    bare = []
    for path in sources(*PACKAGES):
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            bare.append(relative(path))
        for name, node in public_definitions(tree):
            overload = any(
                "overload" in ast.unparse(d) for d in getattr(node, "decorator_list", [])
            )
            if not overload and ast.get_docstring(node) is None:  # type: ignore[arg-type]
                bare.append(f"{relative(path)}: {name}")
    assert not bare, "\n".join(bare)


def test_no_ruled_out_api():
    found = []
    for path in sources(*PACKAGES):
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        found += [
            f"{relative(path)}: {name}: {reason}"
            for name, reason in RULED_OUT.items()
            if re.search(rf"\b{re.escape(name)}\b", code)
        ]
    assert not found, "\n".join(found)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            texts = [
                n for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
            ]
            node.body = [n for n in body if n not in texts] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def test_no_test_can_be_skipped():
    # Parity that is skipped is parity that is not known; a missing dependency must fail.
    words = [
        "import" + "orskip",
        "pytest." + "skip",
        "mark." + "skip",
        "x" + "fail(",
        "mark.x" + "fail",
    ]
    found = [
        f"{relative(path)}: {word}"
        for path in sources("tests")
        for word in words
        if word in path.read_text()
    ]
    assert not found, "\n".join(found)


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_versions_agree_and_every_dependency_has_an_upper_bound(project: dict):
    import janus_jax

    assert project["project"]["version"] == janus_jax.__version__
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
    ]
    open_ended = [
        line
        for group in groups
        for line in group
        if not line.startswith("janus-jax[") and not re.search(r"<|==", line.split(";")[0])
    ]
    assert not open_ended, open_ended


def test_every_dependency_is_imported(project: dict):
    providers = importlib.metadata.packages_distributions()
    used = {
        normal(distribution)
        for path in sources(*PACKAGES)
        for module, _ in imports(ast.parse(path.read_text()))
        for distribution in providers.get(module, ())
    }
    named = {normal(re.split(r"[^\w.-]", line)[0]) for line in project["project"]["dependencies"]}
    assert named <= used, named - used


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_source_archive_holds_what_the_tests_read(project: dict):
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    named = {
        name
        for path in sources("tests")
        for name in re.findall(r'(?:ROOT|parent) / "([\w.-]+)', path.read_text())
        if (ROOT / name).exists()
    }
    assert {".ci", "launch"} < named
    always = {"README.md", "pyproject.toml"}
    made = {".cache"}
    assert named - always - made <= {path.split("/")[1] for path in included}


def test_the_broken_jax_cannot_be_installed(project: dict):
    lines = [line for line in project["project"]["dependencies"] if line.startswith("jax")]
    assert "jax==0.10.1; python_version < '3.12'" in lines


def test_the_three_packages_are_listed_and_the_default_install_needs_no_torch(project: dict):
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
    assert not [line for line in project["project"]["dependencies"] if "torch" in line]


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_the_readme_has_two_one_line_set_ups_and_ci_runs_the_second():
    whole = [line for line in readme_commands() if line.startswith("python3.11 -m venv")]
    assert len(whole) == 2
    draw, test = whole
    assert "janus-jax generate" in draw and "janus-jax chat" in draw
    assert test.endswith("&& pytest")
    # .ci/run reads the line from the README, so that the two cannot drift apart.
    printed = subprocess.run(
        ["bash", ".ci/run", "--print-test-command"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert printed.strip() == test
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_what_we_ship_is_small_and_names_its_sources():
    assets = ROOT / "janus_jax" / "assets"
    size = sum(path.stat().st_size for path in assets.rglob("*") if path.is_file())
    assert size <= 12 * 2**20, f"{size / 2**20:.1f} MiB of assets"
    notice = (ROOT / "NOTICE").read_text()
    for source in ("Twemoji", "CC-BY 4.0", "CLDR", "DeepSeek", "LlamaGen", "SigLIP"):
        assert source in notice
