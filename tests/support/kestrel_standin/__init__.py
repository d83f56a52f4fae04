"""A STAND-IN for the archive of a Kestrel release: upstream's layout around a test program, for tests only.

The zip has what `kestrel-VERSION.zip` has: `kestrel_2.9.2-VERSION.jar` with the class
`net.lag.kestrel.Kestrel`, `libs/`, `config/` and `scripts/`. The class (Kestrel.java) demands to be launched
as the real one must be; what serves is the embedded broker, which reads the Scala configuration strictly
(scala.py).

`python -m support.kestrel_standin OUT.zip [--release 2.4.1] [--class-file FILE]`, with tests/ and src/ in
PYTHONPATH. Without --class-file it needs a javac; with it the class was compiled elsewhere, so that a machine
that has no JDK can build the archive.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from kestrel_stack.broker import bundle

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "Kestrel.java"
MAIN = "net/lag/kestrel/Kestrel.class"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
PRODUCTION = """\
// STAND-IN: a test program reads this, not Kestrel.
import com.twitter.conversions.storage._
import com.twitter.conversions.time._
import com.twitter.logging.config._
import com.twitter.ostrich.admin.config._
import net.lag.kestrel.config._

new KestrelConfig {
  queuePath = "/var/spool/kestrel"
}
"""


def compile_class(javac: str | None = None) -> bytes:
    """Compile the stand-in's class for Java 11 and later; RuntimeError when there is no javac."""
    javac = javac or shutil.which("javac")
    if javac is None:
        raise RuntimeError("there is no javac here: give a compiled class file")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [javac, "--release", "11", "-nowarn", "-d", folder, SOURCE], check=True, capture_output=True
        )
        return (Path(folder) / MAIN).read_bytes()


def _zip(entries: dict[str, bytes], executable: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system = 3
            entry.external_attr = (0o100755 if name in executable else 0o100644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def build(class_file: bytes, release: str = "2.4.1") -> bytes:
    """Return the archive's bytes; the same input gives the same bytes."""
    manifest = "Manifest-Version: 1.0\nMain-Class: net.lag.kestrel.Kestrel\nClass-Path: libs/standin.pyz\n\n"
    jar = _zip({"META-INF/MANIFEST.MF": manifest.encode(), MAIN: class_file})
    top = f"kestrel-{release}"
    program = _zip(
        {
            "__main__.py": b"import sys\n\nimport server\n\nsys.exit(server.main(*sys.argv[1:]))\n",
            "server.py": (FOLDER / "server.py").read_bytes(),
            "scala.py": (FOLDER / "scala.py").read_bytes(),
        }
    )
    return _zip(
        {
            f"{top}/kestrel_2.9.2-{release}.jar": jar,
            f"{top}/libs/standin.pyz": program,
            f"{top}/libs/kestrel-embedded.pyz": bundle.build(),
            f"{top}/config/production.scala": PRODUCTION.encode(),
            f"{top}/scripts/kestrel.sh": b"#!/bin/sh\necho 'stand-in: nothing uses this script'\nexit 1\n",
        },
        executable=(f"{top}/scripts/kestrel.sh",),
    )


def write(target: Path, class_file: bytes, release: str = "2.4.1") -> str:
    """Write the archive, and FILE.sha256 with its SHA-256 beside it; return that."""
    content = build(class_file, release)
    digest = hashlib.sha256(content).hexdigest()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    Path(f"{target}.sha256").write_text(f"{digest}\n", encoding="utf-8")
    return digest
