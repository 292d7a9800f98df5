# SPDX-License-Identifier: Apache-2.0
"""What sources use of a library that they import late, found in their syntax and checked against its API.

Types follow from the annotations of parameters, fields and results, from `trt`, which is the module everywhere, and
from the API's own results. A type is the name of a class of the API or of the sources, `type:NAME` for a class itself,
`module`, `list[NAME]`, or empty where it is unknown.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pybind_api import Api, Member, Signature

_Types = dict[str, str]


@dataclass
class Uses:
    """
    Attributes:
        found: `CLASS.MEMBER` or `NAME` of what is used.
        missing: The same of what the API lacks.
        wrong: Calls and assignments that the API does not take, and members of values of unknown type.
    """

    found: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def uses_of(paths: Sequence[Path], api: Api) -> Uses:
    """What the files use; they may use each other's functions and classes."""
    uses = Uses()
    checker = _Checker(api, uses)
    trees = {path: ast.parse(path.read_text("utf-8"), path.name) for path in paths}
    for _ in range(2):  # results of functions may be of classes that are declared below them
        for tree in trees.values():
            checker.declare(tree)
    for _ in range(2):  # attributes of `self` may be read above the method that sets them
        uses.found, uses.missing, uses.wrong = set(), set(), []
        for path, tree in trees.items():
            checker.file = path.name
            checker.block(tree.body, {})
    uses.wrong = list(dict.fromkeys(uses.wrong))
    return uses


class _Checker:
    def __init__(self, api: Api, uses: Uses) -> None:
        self._api = api
        self._uses = uses
        self._functions: _Types = {}
        self._fields: dict[str, _Types] = {}
        self._methods: dict[str, _Types] = {}
        self._owner = ""
        self.file = ""
        # Only such names belong to the library alone: `name` and `shape` are members of anything.
        self._distinct = {name for one in api.classes.values() for name in one.members if "_" in name.strip("_")}

    def declare(self, tree: ast.Module) -> None:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                self._functions[node.name] = self._annotated(node.returns)
            elif isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                self._methods[node.name] = {one.name: self._annotated(one.returns) for one in methods}
                self._fields[node.name] = {
                    one.target.id: self._annotated(one.annotation)
                    for one in node.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                }

    def block(self, body: Sequence[ast.stmt], names: _Types) -> None:
        for node in body:
            self._statement(node, names)

    def _statement(self, node: ast.AST, names: _Types) -> None:
        if isinstance(node, ast.FunctionDef):
            self._function(node, names)
        elif isinstance(node, ast.ClassDef):
            self._class(node, names)
        elif isinstance(node, ast.Assign):
            kind = self._type(node.value, names)
            for target in node.targets:
                self._assign(target, kind, names)
        elif isinstance(node, ast.AnnAssign):
            kind = self._type(node.value, names) if node.value else ""
            self._assign(node.target, self._annotated(node.annotation) or kind, names)
        elif isinstance(node, ast.For):
            self._assign(node.target, _element(self._type(node.iter, names)), names)
            self.block([*node.body, *node.orelse], names)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._type(child, names)
                elif not isinstance(child, ast.expr_context):
                    self._statement(child, names)

    def _function(self, node: ast.FunctionDef, names: _Types) -> None:
        inner = dict(names)
        for parameter in (*node.args.args, *node.args.kwonlyargs):
            inner[parameter.arg] = self._annotated(parameter.annotation)
        if self._owner and node.args.args[:1] and node.args.args[0].arg == "self":
            inner["self"] = self._owner
        self.block(node.body, inner)

    def _class(self, node: ast.ClassDef, names: _Types) -> None:
        before, self._owner = self._owner, node.name
        self._fields.setdefault(node.name, {})
        for base in node.bases:
            name = self._type(base, names).removeprefix("type:")
            for method in node.body if name in self._api.classes else ():
                member = self._api.classes[name].members.get(getattr(method, "name", ""))
                if isinstance(method, ast.FunctionDef) and member and method.name != "__init__":
                    self._use(f"{name}.{method.name}")
                    given = len(method.args.args) - 1
                    if all(len(one.parameters) != given for one in member.signatures):
                        self._wrong(method, f"{name}.{method.name} is called with other arguments")
        self.block(node.body, names)
        self._owner = before

    def _assign(self, target: ast.expr, kind: str, names: _Types) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = kind
        elif isinstance(target, ast.Attribute):
            owner = self._type(target.value, names)
            if owner in self._fields:
                self._fields[owner][target.attr] = kind or self._fields[owner].get(target.attr, "")
                return
            self._attribute(target, names)
            member = self._api.classes[owner].members.get(target.attr) if owner in self._api.classes else None
            if member and (not member.is_settable or not self._fits(kind, member.type)):
                self._wrong(target, f"{owner}.{target.attr} cannot be set to {kind or 'it'}")

    def _type(self, node: ast.expr, names: _Types) -> str:
        """Type of an expression; everything in it is checked."""
        if isinstance(node, ast.Name):
            return self._named(node.id, names)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, names)
        if isinstance(node, ast.Call):
            return self._call(node, names)
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
            return self._comprehension(node, names)
        if isinstance(node, ast.Lambda):
            return self._type(node.body, {**names, **{one.arg: "" for one in node.args.args}})
        kinds = [self._type(child, names) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if isinstance(node, ast.Subscript):
            return _element(kinds[0])
        if isinstance(node, ast.BoolOp | ast.IfExp):
            return next((kind for kind in kinds[-2:] if kind), "")
        return ""

    def _named(self, name: str, names: _Types) -> str:
        if name == "trt":
            return "module"
        return names.get(name) or (f"type:{name}" if name in self._fields else "")

    def _attribute(self, node: ast.Attribute, names: _Types) -> str:
        owner = self._type(node.value, names)
        name = owner.removeprefix("type:")
        if node.attr == "trt":
            return "module"
        if name in self._fields:
            return self._fields[name].get(node.attr, "")
        if owner == "module":
            return self._member(node.attr, self._api.names.get(node.attr))
        if name in self._api.classes:
            return self._member(f"{name}.{node.attr}", self._api.classes[name].members.get(node.attr))
        if not owner and node.attr in self._distinct:
            self._wrong(node, f"whose is {node.attr}? Annotate what it is of")
        return ""

    def _member(self, name: str, member: Member | None) -> str:
        self._use(name)
        if member is None:
            self._uses.missing.add(name)
            return ""
        kind = self._api.class_name(member.type)
        return f"type:{kind}" if member.kind == "class" else kind

    def _call(self, node: ast.Call, names: _Types) -> str:
        arguments = ["*" if isinstance(one, ast.Starred) else self._type(one, names) for one in node.args]
        keywords = {one.arg or "": self._type(one.value, names) for one in node.keywords}
        function = node.func
        if isinstance(function, ast.Name):
            called = self._named(function.id, names)
            if function.id == "getattr" and arguments[0].startswith("type:"):
                return arguments[0].removeprefix("type:")  # of an enumeration, by a name that is known late
            if not called.startswith("type:"):
                return self._functions.get(function.id, "")
        called = self._type(function, names)
        if called.startswith("type:"):
            made = called.removeprefix("type:")
            if made in self._api.classes:
                self._check_call(node, made, self._api.classes[made].members["__init__"], arguments, keywords)
            return made
        if isinstance(function, ast.Attribute):
            owner = self._type(function.value, names)
            if owner in self._methods:
                return self._methods[owner].get(function.attr, "")
            members = self._api.names if owner == "module" else {}
            if owner in self._api.classes:
                members = self._api.classes[owner].members
            member = members.get(function.attr)
            if member and member.signatures:
                return self._check_call(node, f"{owner}.{function.attr}", member, arguments, keywords)
        return ""

    def _check_call(self, node: ast.Call, name: str, member: Member, arguments: list[str], keywords: _Types) -> str:
        fitting = [one for one in member.signatures if self._takes(one, arguments, keywords)]
        if not fitting:
            self._wrong(node, f"{name} does not take ({', '.join(kind or '?' for kind in arguments)}; {[*keywords]})")
            return ""
        return self._api.class_name(fitting[0].returns)

    def _takes(self, signature: Signature, arguments: list[str], keywords: _Types) -> bool:
        parameters = signature.parameters
        if "*" in arguments:  # as many as are missing
            begin = arguments.index("*")
            arguments = [*arguments[:begin], *[""] * (len(parameters) - len(arguments) + 1), *arguments[begin + 1 :]]
        given = {one.name: kind for one, kind in zip(parameters, arguments, strict=False)} | keywords
        return (
            len(arguments) <= len(parameters)
            and set(given) <= {one.name for one in parameters}
            and all(one.is_optional or one.name in given for one in parameters)
            and all(self._fits(given[one.name], one.type) for one in parameters if one.name in given)
        )

    def _fits(self, given: str, wanted: str) -> bool:
        """Whether a type of the API's is the wanted one, where both are known."""
        wanted = self._api.class_name(wanted)
        if given not in self._api.classes or wanted not in self._api.classes:
            return True
        return self._api.subclasses(given, wanted)

    def _comprehension(self, node: ast.expr, names: _Types) -> str:
        assert isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp)
        inner = dict(names)
        for part in node.generators:
            self._assign(part.target, _element(self._type(part.iter, inner)), inner)
            for condition in part.ifs:
                self._type(condition, inner)
        if isinstance(node, ast.DictComp):
            self._type(node.key, inner)
        kind = self._type(node.value if isinstance(node, ast.DictComp) else node.elt, inner)
        return f"list[{kind}]" if kind else ""

    def _annotated(self, node: ast.expr | None) -> str:
        if node is None:
            return ""
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
        text = text.replace("'", "").replace('"', "").removesuffix(" | None")
        element = re.fullmatch(r"(?:list|tuple|dict)\[(?:\w+, )?(\w+)(?:, \.\.\.)?\]", text)
        name = element[1] if element else text
        if name not in self._api.classes and name not in self._fields:
            return ""
        return f"list[{name}]" if element else name

    def _use(self, name: str) -> None:
        self._uses.found.add(name)

    def _wrong(self, node: ast.AST, text: str) -> None:
        self._uses.wrong.append(f"{self.file}:{getattr(node, 'lineno', 0)}: {text}")


def _element(kind: str) -> str:
    return kind.removeprefix("list[").removesuffix("]") if kind.startswith("list[") else ""
