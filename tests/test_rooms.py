"""The rooms of the package: who may import whom."""

import ast
from pathlib import Path

import jaxtrain

PACKAGE = Path(jaxtrain.__file__).parent
ROOMS = (
    *("version", "escape", "errors", "lifeline", "backend", "files", "readers", "archives", "config", "losses"),
    *("redact", "config_io", "trees", "saved_tree", "saved_model", "label_metrics", "data", "tasks", "models"),
    *("heads", "training", "embeddings"),
    *("tracking", "screen", "evaluation", "runs", "classifiers", "sweeps", "cluster", "cli"),
)
"""The ground first; a file imports only from its own room and from those before it."""
TOP = {"jaxtrain", "jaxtrain.__main__"}
RUN_BY_MLFLOW = "jaxtrain.classifiers.pyfunc_model"
"""Kept beside models for years: it uses the public names alone."""


def modules():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports():
    """(module, what it imports of the package, line, whether inside a function), TYPE_CHECKING included."""
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            for target in targets(node):
                yield module, target, node.lineno, id(node) in inside


def targets(node):
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name their module in full"
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in MODULES else node.module for name in whole]
    return {name for name in names if name.split(".")[0] == "jaxtrain"}


def room(module):
    return module.split(".")[1]


def test_every_file_is_in_a_room():
    assert {room(module) for module in MODULES if module not in TOP} == set(ROOMS)


def test_nothing_is_imported_from_a_room_above():
    upward = [
        f"{module}:{line} imports {target}"
        for module, target, line, _ in imports()
        if module not in {*TOP, RUN_BY_MLFLOW}
        and (
            (target in TOP and room(module) != "cli")
            or (target not in TOP and ROOMS.index(room(target)) > ROOMS.index(room(module)))
        )
    ]
    assert upward == []


def test_own_imports_stand_at_the_top_of_their_file():
    inside = [
        f"{module}:{line} imports {target}"
        for module, target, line, nested in imports()
        if nested and module not in TOP and room(module) != "cli"
    ]
    assert inside == []


def test_no_files_import_each_other_in_a_circle():
    arrows = {}
    for module, target, _, _ in imports():
        if module not in TOP and target not in TOP:
            arrows.setdefault(module, set()).add(target)

    def reach(start):
        seen, queue = set(), [start]
        while queue:
            for target in arrows.get(queue.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    queue.append(target)
        return seen

    assert [module for module in arrows if module in reach(module)] == []
