"""No code is made of data: every program is parsed; what could run data is listed here, with its reason."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "php", "templates", "ansible", "examples", "fabfile.py", "bin")
"""What runs on a controller or a host; tests, bench and molecule are run by who develops."""

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
    "runpy",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput",
    "pty.spawn", "asyncio.create_subprocess_shell", "tempfile.mktemp", "ssl._create_unverified_context",
    "importlib.import_module", "importlib.util.spec_from_file_location", "code.interact",
    "pickle.loads", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "numpy.load", "pandas.read_pickle", "torch.load", "shutil.unpack_archive", "logging.config.listen",
}  # fmt: skip
METHODS = {"extractall", "exec_module", "load_module"}
ATTRIBUTES = {"CERT_NONE", "AutoAddPolicy", "WarningPolicy", "Markup"}

OPERATOR = "named by the operator's command line or the developer's, never by a job"
PYTHON_ALLOWED = {
    # (file, what): how often, and why. One more, or one less, fails the test.
    ("src/kestrel_stack/consumer/child.py", "importlib.import_module"): (1, f"the registry, {OPERATOR}"),
    ("src/kestrel_stack/dev/app.py", "importlib.import_module"): (1, f"the registry, {OPERATOR}"),
    ("src/kestrel_stack/deploy/appspec.py", "yaml.load"): (1, "with a SafeLoader of its own"),
    ("src/kestrel_stack/deploy/build/stack.py", "extractall"): (1, "a tar that the line above has made"),
    ("src/kestrel_stack/deploy/scripts.py", "jinja2.Environment without autoescape"): (
        1,
        "shell, not HTML: every value is quoted by its finalize",
    ),
    ("src/kestrel_stack/deploy/scripts.py", "Markup"): (1, "what is quoted already"),
    ("src/kestrel_stack/web/tables/charts.py", "Markup"): (1, "numbers, and texts that are escaped there"),
    ("templates/usr/local/sbin/kestrel-stack-sentry", "compile"): (1, "a look at the syntax; it is not run"),
    ("templates/usr/local/sbin/kestrel-stack-web", "CERT_NONE"): (
        1,
        "a question to nginx on the same host, by an address that the certificate does not name",
    ),
}
HANDLER = "a function that the application's code has handed over"
PHP_ALLOWED: dict[tuple[str, str], tuple[int, str]] = {
    ("examples/shop/php/src/front.php", "$asset()"): (4, "given by examples/shop/php/src/Page.php"),
    ("examples/shop/php/src/front.php", "$text()"): (14, "given by examples/shop/php/src/Page.php"),
    ("examples/shop/php/stack.php", "require $file"): (1, "autoload: below this folder, by class"),
    (
        "examples/shop/php/stack.php",
        "require_once is_file($stack)?$stack:dirname(__DIR__,3).'/php/autoload.php'",
    ): (1, "the release's own copy, or the checkout's"),
    ("php/autoload.php", "require $file"): (1, "autoload: below this folder, by class"),
    ("php/src/Assets/Manifest.php", "require $path:self::json($path)"): (1, "the release's manifest"),
    ("php/src/Consumer/Child.php", "require $file,null,null)()"): (1, f"the registry, {OPERATOR}"),
    ("php/src/Consumer/Child.php", "$function()"): (1, HANDLER),
    ("php/src/Consumer/Child.php", "assert"): (2, "a comparison; PHP 8 runs no text"),
    ("php/src/Consumer/Cli.php", "ini_set"): (1, "a constant"),
    ("php/src/Consumer/Registry.php", "$around()"): (1, HANDLER),
    ("php/src/Consumer/Registry.php", "$found()"): (1, "new $found()"),
    ("php/src/Consumer/Registry.php", "new $found"): (
        1,
        "a class that was registered, by its name in a table",
    ),
    ("php/src/Consumer/Reporter.php", "proc_open"): (1, "a list: no shell"),
    ("php/src/Consumer/Runner.php", "proc_open"): (1, "a list: no shell"),
    ("php/src/Consumer/Sentry.php", "$shorter()"): (1, "of three methods that are written there"),
    ("php/src/Queue/Json.php", "$error()"): (5, "new $error()"),
    ("php/src/Queue/Json.php", "new $error"): (5, "of two classes of ours, by the caller"),
    ("php/src/Queue/MemcachedClient.php", "assert"): (1, "a comparison; PHP 8 runs no text"),
    ("php/src/Queue/Once.php", "$function()"): (1, HANDLER),
    ("php/src/Queue/Producer.php", "$transaction()"): (1, HANDLER),
    ("src/kestrel_stack/dev/app.php", "$next()"): (1, "the worker's own step"),
    ("src/kestrel_stack/dev/app.php", "require (string)realpath(getenv('KESTREL_STACK_DEV_APP')))->around"): (
        1,
        f"the registry, {OPERATOR}",
    ),
    ("src/kestrel_stack/dev/look.php", "require $file"): (1, f"the registry, {OPERATOR}"),
}
SHELL_ALLOWED: dict[tuple[str, str], tuple[int, str]] = {}


def files(*, pattern: str = "*") -> Iterator[Path]:
    """Every file of ours that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in sorted(filter(None, listed.split("\0"))):
        path = ROOT / name
        if path.match(pattern) and path.is_file() and not path.is_symlink():
            yield path


def is_python(path: Path) -> bool:
    """Say whether a file is a Python program, by its name or its first line."""
    if path.suffix == ".py":
        return True
    with path.open("rb") as file:
        first = file.readline(200)
    return first.startswith(b"#!") and b"python" in first


def name_of(node: ast.expr) -> str:
    """Return a dotted name, like os.path.join; of anything else the last attribute."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}".lstrip(".")
    return ""


class Finder(ast.NodeVisitor):
    """Collects what could run data; names that were imported under another one are seen through."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.known: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            self.imported(one.name)
            self.known[one.asname or one.name.split(".")[0]] = (
                one.name if one.asname else one.name.split(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module:
            self.imported(node.module)
            for one in node.names:
                self.known[one.asname or one.name] = f"{node.module}.{one.name}"
                if one.name in ATTRIBUTES:
                    self.found.append(one.name)

    def imported(self, module: str) -> None:
        if module.split(".")[0] in MODULES:
            self.found.append(f"import {module}")

    def full(self, node: ast.expr) -> str:
        first, _, rest = name_of(node).partition(".")
        full = self.known.get(first, first)
        return f"{full}.{rest}" if rest else full

    def visit_Call(self, node: ast.Call) -> None:
        name = self.full(node.func)
        last = name.rpartition(".")[2]
        keywords = {one.arg: one.value for one in node.keywords}
        if name in BUILTINS or name.removeprefix("builtins.") in BUILTINS or name in CALLS:
            self.found.append(name)
        elif last in METHODS and isinstance(node.func, ast.Attribute):
            self.found.append(last)
        elif name in {"yaml.load", "yaml.load_all"}:
            self.found.append(name)
        elif name == "jinja2.Environment" and "autoescape" not in keywords:
            self.found.append("jinja2.Environment without autoescape")
        shell = keywords.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            self.found.append(f"{name}(shell=…)")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in ATTRIBUTES:
            self.found.append(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        # Programs that are sent elsewhere as text.
        if isinstance(node.value, str) and re.search(r"^(import|from) [\w., ]+", node.value, re.MULTILINE):
            try:
                inner = ast.parse(node.value)
            except SyntaxError:
                return
            self.visit(inner)


def in_python(text: str) -> list[str]:
    """Return what could run data in a Python program."""
    finder = Finder()
    finder.visit(ast.parse(text))
    return finder.found


PHP_PROGRAM = r"""
$forbidden = ['unserialize', 'create_function', 'extract', 'exec', 'shell_exec', 'system', 'passthru',
    'popen', 'proc_open', 'pcntl_exec', 'assert', 'call_user_func', 'call_user_func_array', 'parse_str',
    'mb_parse_str', 'igbinary_unserialize', 'msgpack_unpack', 'dl', 'putenv', 'ini_set', 'eval',
    'session_decode', 'stream_wrapper_register', 'libxml_disable_entity_loader', 'simplexml_load_string'];
$found = [];
foreach (json_decode(stream_get_contents(STDIN), true) as $file => $text) {
    $found[$file] = [];
    $tokens = array_values(array_filter(PhpToken::tokenize($text), fn ($one) => !$one->isIgnorable()));
    // Variables that hold a function written in the same file, or that can hold nothing but a Closure.
    $functions = [];
    foreach ($tokens as $at => $token) {
        if ($token->is([T_VARIABLE])) {
            $after = array_slice($tokens, $at + 1, 3);
            $shape = implode(' ', array_map(fn ($one) => strtolower($one->text), $after));
            if (preg_match('/^= (static )?(fn|function)\b/', $shape)
                || in_array(ltrim($tokens[$at - 1]->text, '\\'), ['Closure'], true)) {
                $functions[$token->text] = true;
            }
        }
    }
    foreach ($tokens as $at => $token) {
        $next = $tokens[$at + 1] ?? null;
        $before = $tokens[$at - 1] ?? null;
        $called = $next !== null && $next->text === '(';
        if ($token->is([T_EVAL]) || $token->text === '`') {
            $found[$file][] = $token->text;
        } elseif ($token->is([T_STRING, T_NAME_FULLY_QUALIFIED]) && $called
            && in_array(strtolower(ltrim($token->text, '\\')), $forbidden, true)
            && !$before?->is([T_OBJECT_OPERATOR, T_NULLSAFE_OBJECT_OPERATOR, T_DOUBLE_COLON, T_FUNCTION])) {
            $found[$file][] = strtolower(ltrim($token->text, '\\'));
        } elseif ($token->is([T_INCLUDE, T_INCLUDE_ONCE, T_REQUIRE, T_REQUIRE_ONCE])) {
            // A file beside this one, by a name that is written here, is the only thing that needs no reason.
            $rest = [];
            for ($to = $at + 1; !in_array($tokens[$to]->text ?? ';', [';', '->'], true); $to++) {
                $rest[] = $tokens[$to];
            }
            $fixed = array_filter($rest, fn ($one) =>
                !$one->is([T_DIR, T_CONSTANT_ENCAPSED_STRING, T_LNUMBER])
                && !in_array($one->text, ['.', '(', ')', 'dirname', '\\dirname', ','], true));
            if ($fixed !== []) {
                $found[$file][] = strtolower($token->text) . ' '
                    . implode('', array_map(fn ($one) => $one->text, $rest))
                    . (($tokens[$to]->text ?? '') === '->' ? '->' . $tokens[$to + 1]->text : '');
            }
        } elseif ($token->is([T_VARIABLE]) && $called && !isset($functions[$token->text])) {
            $found[$file][] = $token->text . '()';
        } elseif ($token->is([T_NEW]) && $next !== null && $next->is([T_VARIABLE])) {
            $found[$file][] = 'new ' . $next->text;
        } elseif ($token->text === '$' && ($next?->is([T_VARIABLE]) || $next?->text === '{')) {
            $found[$file][] = '$$';
        }
    }
}
echo json_encode($found);
"""


def in_php(texts: dict[str, str]) -> dict[str, list[str]]:
    """Return what could run data in PHP programs, by PHP's own tokens."""
    if shutil.which("php") is None:
        pytest.skip("php is not installed: bin/test installs it")
    done = subprocess.run(
        ["php", "-r", PHP_PROGRAM], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout) if texts else {}


def in_shell(text: str) -> list[str]:
    """Return what could run data in a shell program: eval, and an interpreter that reads what was fetched."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in lines:
        found += re.findall(r"(?:^|[;&|(]\s*|\bthen\s+|\bdo\s+)(eval)\s", line)
        found += re.findall(r"(?:curl|wget)\b.*\|\s*(?:sudo\s+)?((?:ba)?sh|python3?)\b", line)
    return found


def compare(found: Counter[tuple[str, str]], allowed: dict[tuple[str, str], tuple[int, str]]) -> None:
    """Fail unless exactly what is allowed was found."""
    assert all(reason for _, reason in allowed.values())
    assert dict(found) == {key: count for key, (count, _) in allowed.items()}


def test_no_python_of_ours_runs_data_but_for_what_is_listed():
    programs = [path for path in files() if is_python(path)]
    # That it looks at what there is: programs of hosts, roles' filters, the library, the deploy's.
    names = {str(path.relative_to(ROOT)) for path in programs}
    assert {
        "src/kestrel_stack/consumer/child.py", "templates/usr/local/sbin/kestrel-stack-workers",
        "ansible/roles/common/filter_plugins/kestrel_stack.py", "fabfile.py", "examples/shop/shop/jobs.py",
    } <= names  # fmt: skip
    found = Counter(
        (str(path.relative_to(ROOT)), what)
        for path in programs
        for what in in_python(path.read_text(encoding="utf-8"))
    )
    compare(found, PYTHON_ALLOWED)


def test_no_php_of_ours_runs_data_but_for_what_is_listed():
    texts = {}
    for path in files():
        if path.suffix == ".php" or (path.suffix == "" and b"<?php" in path.read_bytes()[:200]):
            name = str(path.relative_to(ROOT))
            if not name.startswith("php/tests/"):
                texts[name] = path.read_text(encoding="utf-8")
    assert {"php/bin/consumer-child", "php/src/Consumer/Child.php", "examples/shop/php/jobs.php"} <= set(
        texts
    )
    found = Counter((name, what) for name, list_ in in_php(texts).items() for what in list_)
    compare(found, PHP_ALLOWED)


def test_no_shell_of_ours_runs_data_but_for_what_is_listed():
    found: Counter[tuple[str, str]] = Counter()
    looked = 0
    for path in files():
        data = path.read_bytes()
        if b"\0" in data or is_python(path):
            continue
        text = data.decode("utf-8")
        if re.match(r"#!.*\b(ba|da)?sh\b", text) or path.name.endswith((".sh", ".sh.j2")):
            looked += 1
            found.update((str(path.relative_to(ROOT)), what) for what in in_shell(text))
    assert looked > 20
    compare(found, SHELL_ALLOWED)


def test_programs_inside_templates_name_nothing_that_runs_data():
    """Python in the middle of a shell template cannot be parsed before it is rendered: by words then."""
    words = re.compile(
        r"\b(pickle|marshal|shelve|unserialize|yaml\.load|os\.system|os\.popen|shell=True|__import__"
        r"|eval\(|exec\()"
    )
    found = {}
    for path in files():
        data = path.read_bytes()
        text = "" if b"\0" in data or is_python(path) else data.decode("utf-8")
        if "templates" in path.parts and (hits := words.findall(text)):
            found[str(path.relative_to(ROOT))] = hits
    assert found == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle", "import pickle"),
        ("from marshal import loads", "import marshal"),
        ("eval(data)", "eval"),
        ("import builtins as b\nb.exec(data)", "builtins.exec"),
        ("import yaml as y\ny.load(data)", "yaml.load"),
        ("from yaml import load\nload(data, Loader=x)", "yaml.load"),
        ("import subprocess\nsubprocess.run(data, shell=True)", "subprocess.run(shell=…)"),
        ("from subprocess import run\nrun(data, shell=yes)", "subprocess.run(shell=…)"),
        ("from os import system as s\ns(data)", "os.system"),
        ("import importlib\nimportlib.import_module(data)", "importlib.import_module"),
        ("archive.extractall(folder)", "extractall"),
        ("import paramiko\npolicy = paramiko.AutoAddPolicy()", "AutoAddPolicy"),
        ("import jinja2\njinja2.Environment(loader=x)", "jinja2.Environment without autoescape"),
        ("PROGRAM = '''\nimport pickle\n'''", "import pickle"),
    ],
    ids=lambda value: value if "\n" not in value and "=" not in value else None,
)
def test_the_python_finder_finds(text, what):
    assert in_python(text) == [what]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("unserialize($data);", "unserialize"),
        ("\\unserialize($data);", "unserialize"),
        ("UnSerialize /* x */ ($data);", "unserialize"),
        ("eval($data);", "eval"),
        ("extract($data);", "extract"),
        ("include $data;", "include $data"),
        ("require __DIR__ . $data;", "require __DIR__.$data"),
        ("$data();", "$data()"),
        ("new $data;", "new $data"),
        ("echo `ls`;", "`"),
        ("$$data = 1;", "$$"),
    ],
)  # fmt: skip
def test_the_php_finder_finds(text, what):
    assert what in in_php({"file": f"<?php {text}"})["file"]


@pytest.mark.parametrize(
    "text",
    [
        "require __DIR__ . '/a.php'; require_once dirname(__DIR__, 2) . '/b.php';",
        "$x->unserialize($data); function extract($x) {} // eval($x)",
        "echo 'eval($data)';",
    ],
)
def test_the_php_finder_leaves_alone(text):
    assert in_php({"file": f"<?php {text}"})["file"] == []


@pytest.mark.parametrize("text", ["eval $x", 'if a; then eval "$x"; fi', "curl https://x | sudo sh"])
def test_the_shell_finder_finds(text):
    assert len(in_shell(text)) == 1
