"""The Python programs that the roles install on hosts, as modules and as processes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

CHECKOUT = Path(__file__).resolve().parents[2]
LIBRARY = CHECKOUT / "templates/usr/local/lib/kestrel-stack"


def load(path: Path) -> ModuleType:
    """Import a program, whatever its file is called, without running it."""
    name = "program_" + path.name.replace("-", "_").removesuffix(".py")
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


def run(path: Path, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program with this Python, as `python3 -I` does on a host; its output is text."""
    return subprocess.run(
        [sys.executable, "-I", path, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def fake_jdk(home: Path, version: str = "17.0.15", *, java: str = "", javac: bool = True) -> Path:
    """Make a folder that looks like a JDK: its java says that it is `version`, or runs the shell text."""
    feature = version.split(".")[1] if version.startswith("1.") else version.split(".")[0]
    specification = f"1.{feature}" if int(feature) < 9 else feature
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    (home / "release").write_text(f'IMPLEMENTOR="Test"\nJAVA_VERSION="{version}"\n')
    program = home / "bin/java"
    program.write_text(
        f"""#!/bin/sh
if [ "$1" = -XshowSettings:properties ]; then
    echo 'Property settings:' >&2
    echo '    java.runtime.version = {version}+1' >&2
    echo '    java.specification.version = {specification}' >&2
    echo '    java.vendor = Test' >&2
    exit 0
fi
{java}
"""
    )
    program.chmod(0o755)
    if javac:
        compiler = home / "bin/javac"
        compiler.write_text(
            '#!/bin/sh\nwhile [ "$1" != -d ]; do shift; done\nprintf compiled >"$2/KestrelLauncher.class"\n'
        )
        compiler.chmod(0o755)
    return home
