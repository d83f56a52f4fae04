"""Make a release's files out of a bundle and of the release before it: ``unpack.py STAGE [BASE]``.

Runs on a host, in the application's folder, as ``python3 -I -S -c``. STAGE holds the file ``upload``; the
result is STAGE/tree, and the wheels in STAGE/wheels. BASE is the folder of an earlier release. A file that
the bundle lacks is the same in both: it is hard-linked, and checked after that, so that what was checked is
what is kept. Nothing is ever written into an existing file; files are made read-only so that nothing else
does it by mistake.

Standard output is lines for the deploy. Exit code 0: done; 10: something that BASE should hold is not there
or not as it should be, ``@ need full REASON`` was said and the whole release has to be sent; 1: failed, with
one line on standard error.
"""

import contextlib
import errno
import gzip
import hashlib
import importlib.util
import json
import os
import py_compile
import stat
import sys
import tarfile

MANIFEST = ".manifest.json"
BYTECODE = ".bytecode.json"
ASSETS = "_assets/"
ASSET_LISTS = ("_assets/manifest.json", "_assets/manifest.php")
NEED_FULL = 10
PARALLEL_FROM = 40
"""So many files are worth a second process."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NeedFull(Exception):  # noqa: N818 - named after the outcome
    """The earlier release cannot be built upon."""


class Failed(Exception):  # noqa: N818
    """One line for the person who deploys."""


def digest_of(path):
    """Return a regular file's facts and its sha256; a link in its place is an OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return os.fstat(file.fileno()), hashlib.file_digest(file, "sha256").hexdigest()


def permissions(mode):
    """Return the permission bits of a file: those of its manifest's mode without the right to write."""
    return int(mode, 8) & 0o555


def pack_json(content):
    """Return JSON in the one form whose sha256 names a manifest."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def write_new(path, data, mode):
    """Write a file that is not there yet."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)


def read_manifest(sent, base):
    """Return the new release's whole manifest: what was sent, on top of what the earlier release has."""
    files = {}
    if sent["base"]:
        if base is None:
            raise Failed("the upload needs an earlier release and none was named")
        try:
            with open(f"{base}/{MANIFEST}", "rb") as file:
                known = file.read()
        except OSError as error:
            raise NeedFull(f"{base}/{MANIFEST}: {error.strerror}") from None
        if hashlib.sha256(known).hexdigest() != sent["base"]:
            raise NeedFull(f"{base}/{MANIFEST} has been changed")
        files = json.loads(known)["files"]
        for path in sent["removed"]:
            del files[path]
    files.update(sent["files"])
    whole = pack_json({"files": files, "version": 1})
    if hashlib.sha256(whole).hexdigest() != sent["id"]:
        raise Failed("the upload's manifest is not what it says")
    for path in files:
        if path.startswith("/") or ".." in path.split("/"):
            raise Failed(f"the upload's manifest has a path that leads out: {path!r}")
    return files, whole


def make_folders(files, tree):
    """Make every folder of the new release; return their paths below it."""
    folders = {""}
    for path in files:
        while path := path.rpartition("/")[0]:
            if path in folders:
                break
            folders.add(path)
    for folder in sorted(folders):
        os.mkdir(f"{tree}/{folder}" if folder else tree)
    return folders


def write_files(packed, files, tree):
    """Write the files that were sent; return their paths."""
    written = set()
    with tarfile.open(fileobj=packed, mode="r|gz") as members:
        for member in members:
            mode, size, content = files.get(member.name) or (None, 0, "")
            path = f"{tree}/{member.name}"
            if mode == "link":
                os.symlink(content, path)
            elif mode is None or not member.isreg():
                raise Failed(f"the upload holds {member.name!r}, which is not in its manifest")
            else:
                data = members.extractfile(member).read()
                if len(data) != size or hashlib.sha256(data).hexdigest() != content:
                    raise Failed(f"the upload's {member.name!r} is not what its manifest says")
                write_new(path, data, permissions(mode))
                os.utime(path, (member.mtime, member.mtime))
            written.add(member.name)
    return written


def link_files(paths, files, base, tree):
    """Link the files that were not sent, and check each one after it is linked."""
    checked = set()
    for path in paths:
        mode, size, content = files[path]
        if mode == "link":
            os.symlink(content, f"{tree}/{path}")
            continue
        if base is None:
            raise Failed(f"the upload lacks {path!r}")
        try:
            folder = base
            for part in path.split("/")[:-1]:
                folder = f"{folder}/{part}"
                if folder not in checked:
                    if not stat.S_ISDIR(os.lstat(folder).st_mode):
                        raise NeedFull(f"{folder} is not a folder any more")
                    checked.add(folder)
            os.link(f"{base}/{path}", f"{tree}/{path}", follow_symlinks=False)
            facts, found = digest_of(f"{tree}/{path}")
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            raise NeedFull(f"{base}/{path}: {error.strerror}") from None
        if not stat.S_ISREG(facts.st_mode) or (facts.st_size, found) != (size, content):
            raise NeedFull(f"{base}/{path} has been changed")
        if stat.S_IMODE(facts.st_mode) != permissions(mode):
            raise NeedFull(f"{base}/{path} has other permissions than it was given")


# --- byte code -----------------------------------------------------------------------------------------


def make_bytecode(files, linked, base, tree):
    """Give every Python file its byte code, so that the workers, who may not write here, need not compile.

    Byte code is not in the manifest, since it depends on the host's Python. What was compiled for an
    earlier release is linked when its source is the very same file (Python goes by its time and size), when
    it is for the same Python, and when it still is what was written then.
    """
    magic = importlib.util.MAGIC_NUMBER.hex()
    earlier, record = {}, {}
    if base is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(f"{base}/{BYTECODE}", "rb") as file:
                known = json.load(file)
            if known["magic"] == magic:
                earlier = dict(known["files"])
    missing = []
    for path in sorted(files):
        if not path.endswith(".py") or path.startswith(ASSETS) or files[path][0] == "link":
            continue
        compiled = importlib.util.cache_from_source(path)
        folder = os.path.dirname(f"{tree}/{compiled}")
        if not os.path.isdir(folder):
            os.mkdir(folder)
        if path in linked and compiled in earlier:
            try:
                os.link(f"{base}/{compiled}", f"{tree}/{compiled}", follow_symlinks=False)
                if digest_of(f"{tree}/{compiled}")[1] == earlier[compiled]:
                    record[compiled] = earlier[compiled]
                    continue
                os.unlink(f"{tree}/{compiled}")
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{tree}/{compiled}")
        missing.append((path, compiled))
    compile_all(missing, tree)
    for _, compiled in missing:
        with contextlib.suppress(OSError):
            record[compiled] = digest_of(f"{tree}/{compiled}")[1]
    write_new(f"{tree}/{BYTECODE}", pack_json({"files": record, "magic": magic}), 0o444)
    return len(missing)


def compile_all(missing, tree):
    """Compile, on all processors when there is much to do."""
    count = min(os.cpu_count() or 1, len(missing) // PARALLEL_FROM + 1)
    if count == 1:
        compile_some(missing, tree)
        return
    sys.stdout.flush()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                compile_some(missing[number::count], tree)
                sys.stdout.flush()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise Failed("compiling to byte code failed, the disk may be full")


def compile_some(paths, tree):
    """Compile files. One that does not compile may be a sample: what counts is that the workers run.

    The byte code knows its source by a path inside the release, so that it suits every release; Python puts
    the true path in its place when it imports it.
    """
    complained = False
    for path, compiled in paths:
        try:
            py_compile.compile(
                f"{tree}/{path}",
                f"{tree}/{compiled}",
                dfile=path,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP,
            )
        except (py_compile.PyCompileError, ValueError, RecursionError) as error:
            if not complained:
                told = getattr(error, "exc_value", error)
                print(f"@ warning some files do not compile: {ascii(path)[1:-1]}: {one_line(told)}")
            complained = True


# --- static content ------------------------------------------------------------------------------------


def publish_assets(files, tree, store):
    """Link the release's static files into the folder that outlives releases; their names tell their content.

    The lists of names stay with their release. A file that is there already must be the same, but for
    compressed copies: another version of the compressor makes other bytes of the same content.
    """
    for path in sorted(files):
        if not path.startswith(ASSETS) or path in ASSET_LISTS or files[path][0] == "link":
            continue
        target = f"{store}/{path[len(ASSETS) :]}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.link(f"{tree}/{path}", target, follow_symlinks=False)
        except FileExistsError:
            if not path.endswith((".gz", ".br")) and digest_of(target)[1] != files[path][2]:
                raise Failed(
                    f"{target} has been changed and is kept as it is: remove it on this host, deploy again"
                ) from None


# --- all of it -----------------------------------------------------------------------------------------


def unpack(stage, base):
    """Make STAGE/tree and STAGE/wheels out of STAGE/upload."""
    tree = f"{stage}/tree"
    with tarfile.open(f"{stage}/upload", "r:") as bundle:
        sent = json.loads(gzip.decompress(bundle.extractfile("manifest.json.gz").read()))
        files, whole = read_manifest(sent, base)
        make_folders(files, tree)
        written = write_files(bundle.extractfile("files.tar.gz"), files, tree)
        linked = set(files) - written
        if not sent["base"]:
            base = None
        link_files(sorted(linked), files, base, tree)
        write_new(f"{tree}/{MANIFEST}", whole, 0o444)
        for member in bundle:
            if member.name == "requirements.txt" or member.name.startswith("wheels/"):
                os.makedirs(os.path.dirname(f"{stage}/{member.name}"), exist_ok=True)
                write_new(f"{stage}/{member.name}", bundle.extractfile(member).read(), 0o644)
    print(f"@ unpacked {len(written)} linked {len(linked)}")
    compiled = make_bytecode(files, linked, base, tree)
    print(f"@ compiled {compiled}")
    publish_assets(files, tree, "assets")


def one_line(error):
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())[:500]


def main(arguments):
    """Return the exit code."""
    stage, base = arguments[0], (arguments[1:] or [""])[0] or None
    try:
        unpack(stage, base)
    except NeedFull as error:
        print(f"@ need full {one_line(error)}")
        return NEED_FULL
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno in _NO_ROOM:
            print(f"no room left under {os.getcwd()} ({error.strerror}): make room there", file=sys.stderr)
        else:
            print(f"unpacking failed: {one_line(error)}", file=sys.stderr)
        return 1
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        print(f"the upload cannot be read ({type(error).__name__}: {one_line(error)})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
