"""The shape of the package: one home for every decision, one word for one thing, no circle, nothing overridden."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from blemish.methods import METHODS
from blemish.ood import DETECTORS

SOURCE = Path(__file__).parents[1] / "src" / "blemish"
FILES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}


# One word for one thing


def names(statement):
    """Public names that a top-level statement defines."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            found = [name]
        case ast.Assign(targets=targets):
            found = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            found = [name]
        case _:
            found = []
    return [name for name in found if not name.startswith("_")]


def definitions(files):
    """File of each definition, by name."""
    found = defaultdict(set)
    for file, tree in files.items():
        for statement in tree.body:
            for name in names(statement):
                found[name].add(file)
    return found


def share_of_homonyms(files):
    found = definitions(files)
    twice = {name: sorted(where) for name, where in found.items() if len(where) > 1}
    for name, where in sorted(twice.items()):
        print(f"{name}: {', '.join(where)}")
    return sum(map(len, twice.values())) / sum(map(len, found.values()))


def test_hardly_a_name_is_used_twice():
    share = share_of_homonyms(FILES)
    print(f"{share:.1%} of the definitions have a name that another file defines too")
    assert share <= 0.04


def test_homonyms_are_counted():
    one = ast.parse("import Z\nA = B = 1\n_C = 2\ndef f(): E = 1\nclass D: f = 1\nG: int = 1")
    two = ast.parse("from x import D\ndef B(): pass\n_C = 1\nE = 1\nG, H = 1, 2")
    assert share_of_homonyms({"one": one, "two": two}) == 4 / 9  # B and G twice each, of A B D G f and B E G H


# No circle


def module_of(parts):
    """The file of a module, where it is one of ours."""
    path = "/".join(parts)
    return next(
        (file for file in (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py") if file in FILES), None
    )


def imported(file, node):
    """Files that an import statement names."""
    if isinstance(node, ast.Import):
        wanted = [alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "blemish"]
    elif node.level:
        base = [*file.split("/")[: -node.level], *(node.module or "").split(".")]
        base = [part for part in base if part]
        wanted = [base, *([*base, alias.name] for alias in node.names)]
    elif (node.module or "").split(".")[0] == "blemish":
        base = node.module.split(".")[1:]
        wanted = [base, *([*base, alias.name] for alias in node.names)]
    else:
        wanted = []
    # `from . import a` needs the file a, not what else the package hands on.
    found = [(parts, module_of(parts)) for parts in wanted]
    inner = {module for parts, module in found[1:] if module}
    return inner or {module for _, module in found if module}


def imports():
    """Files that each file imports anywhere: in functions and for type checkers too."""
    statements = (ast.Import, ast.ImportFrom)
    return {
        file: set().union(*(imported(file, node) for node in ast.walk(tree) if isinstance(node, statements))) - {file}
        for file, tree in FILES.items()
    }


def test_imports_are_found():
    found = imports()
    assert {"errors.py", "fitted.py", "methods/__init__.py"} <= found["detector.py"]
    assert "methods/_base.py" in found["methods/padim.py"]
    assert "study/group.py" in found["study/run.py"]  # in a function
    assert "methods/__init__.py" not in found["methods/padim.py"]


def test_no_circle_of_imports():
    front = {"__init__.py": set()}  # hands names on when a user asks for them, and needs none itself
    try:
        TopologicalSorter(imports() | front).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


# One home for every decision


def files_with(matches):
    return {file for file, tree in FILES.items() if any(matches(node) for node in ast.walk(tree))}


def replaces_a_file(node):
    """`os.replace`, or `replace` of a path: that of a text has two arguments, that of a dataclass is bare."""
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr="replace" | "rename"):
            return True
        case ast.Call(func=ast.Attribute(attr="replace" | "rename"), args=[_], keywords=[]):
            return True
        case ast.ImportFrom(module="os" | "shutil", names=imported):
            return any(alias.name in ("replace", "rename", "move") for alias in imported)
        case ast.Attribute(value=ast.Name(id="shutil"), attr="move"):
            return True
    return False


def splits_at_equals(node):
    match node:
        case ast.Call(
            func=ast.Attribute(attr="partition" | "rpartition" | "split" | "rsplit" | "find" | "index"),
            args=[ast.Constant(value="="), *_],
        ):
            return True
    return False


def looks_for_a_gpu(node):
    match node:
        case ast.Attribute(value=ast.Attribute(attr="cuda"), attr="is_available" | "device_count"):
            return True
    return False


def opens_a_text_to_write(node):
    """`open` in a mode of text: what it writes has other line ends on Windows, and another encoding without one."""
    match node:
        case ast.Call(func=ast.Attribute(attr="open"), args=[ast.Constant(value="w" | "a"), *_]):
            return not {"newline", "encoding"} <= {keyword.arg for keyword in node.keywords}
    return False


def imports_what_tells(node):
    """Packages that tell their makers of their use, unless they are asked not to."""
    match node:
        case ast.Import(names=imported):
            return any(alias.name in ("openvino", "onnxruntime", "ray") for alias in imported)
    return False


DECISIONS = {
    "what imports a package that tells its maker": (
        imports_what_tells,
        {"features/runtime.py": "here", "edges/ray.py": "here", "export/run.py": "goes without our package"},
    ),
    "what replaces a file": (replaces_a_file, {"files.py": "here", "cli/detector.py": "a folder, of the demo"}),
    "what splits KEY=VALUE": (
        splits_at_equals,
        {"parameters.py": "here", "cli/ood/inputs.py": "NAME=PATH of --outliers"},
    ),
    "what chooses a device": (looks_for_a_gpu, {"device.py": "here"}),
}


@pytest.mark.parametrize("decision", DECISIONS)
def test_a_decision_has_one_home(decision):
    matches, allowed = DECISIONS[decision]
    home = next(iter(allowed))
    found = files_with(matches)
    assert home in found
    assert sorted(found - allowed.keys()) == []


@pytest.mark.parametrize(
    ("code", "decision"),
    [
        ("os.replace(a, b)", "what replaces a file"),
        ("a.replace(b)", "what replaces a file"),
        ("from os import replace as swap", "what replaces a file"),
        ("text.partition('=')", "what splits KEY=VALUE"),
        ("text.split('=', 1)", "what splits KEY=VALUE"),
        ("torch.cuda.is_available()", "what chooses a device"),
        ("import openvino", "what imports a package that tells its maker"),
        ("from blemish import torch\nfound = torch.cuda.is_available", "what chooses a device"),
    ],
)
def test_decisions_are_recognised(code, decision):
    assert any(DECISIONS[decision][0](node) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("code", ["text.replace('a', 'b')", "replace(row, a=1)", "text.split(',')", "a == b"])
def test_other_code_is_no_decision(code):
    assert not [name for name, (matches, _) in DECISIONS.items() if any(map(matches, ast.walk(ast.parse(code))))]


# Other systems


def test_texts_that_are_written_are_alike_on_all_systems():
    assert sorted(files_with(opens_a_text_to_write)) == []
    assert opens_a_text_to_write(ast.parse('path.open("w", encoding="utf-8")', mode="eval").body)


def test_no_file_needs_a_module_of_posix_to_be_imported():
    """Or Windows could not even collect the tests."""
    tests = {path.name: ast.parse(path.read_text("utf-8")) for path in Path(__file__).parent.rglob("*.py")}
    posix = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "tty"}
    found = {
        name
        for name, tree in {**FILES, **tests}.items()
        for node in tree.body
        if isinstance(node, ast.Import) and posix & {alias.name for alias in node.names}
    }
    assert found == set()


# Nothing concrete is overridden


def is_hook(function):
    """Whether a base class leaves it open: abstract, or a docstring and nothing else."""
    function = getattr(function, "__func__", None) or getattr(function, "fget", None) or function
    if getattr(function, "__isabstractmethod__", False):
        return True
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in definition.body)


def is_function(value):
    return inspect.isfunction(value) or isinstance(value, staticmethod | classmethod | property)


def overridden(kind):
    """What a class, or one of its bases, defines again though a base has it."""
    ours = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("builtins", "abc", "typing")]
    return {
        f"{base.__name__}.{name} overrides {above.__name__}.{name}"
        for position, base in enumerate(ours)
        for name, value in vars(base).items()
        if is_function(value) and (name == "__post_init__" or not name.startswith("__"))
        for above in ours[position + 1 :]
        if is_function(vars(above).get(name)) and not is_hook(vars(above)[name])
    }


@pytest.mark.parametrize("kind", [*METHODS.values(), *DETECTORS.values()], ids=lambda kind: kind.__name__)
def test_nothing_concrete_is_overridden(kind):
    assert sorted(overridden(kind)) == []


def test_what_is_overridden_is_found():
    class Base:
        def concrete(self):
            return 1

        def hook(self):
            """Hook: nothing."""

        @property
        def shown(self):
            return 1

        @staticmethod
        def alone():
            return 1

    class Middle(Base):
        def hook(self):
            return 1

    class Leaf(Middle):
        def hook(self):
            return 2

        def concrete(self):
            return 2

        @property
        def shown(self):
            return 2

        @staticmethod
        def alone():
            return 2

    assert overridden(Middle) == set()
    assert overridden(Leaf) == {
        "Leaf.hook overrides Middle.hook",
        "Leaf.concrete overrides Base.concrete",
        "Leaf.shown overrides Base.shown",
        "Leaf.alone overrides Base.alone",
    }
