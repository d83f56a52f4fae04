"""What is made once on the controller: the application's files and the wheels for each kind of host.

Same inputs, same bytes: files come from the commit alone (with its time, none of this machine's), wheels are
pinned by hash, and the stack's own wheel is built from a commit as well. Everything is cached under
``.build/``.
"""

from .archive import Archive, build_archive
from .bundle import Bundle, build_bundle, bundle_for
from .cache import CACHE, trim_cache, write_whole
from .lock import Lock, Locked, read_lock, target_environment
from .source import PHP_SOURCES, STACK_SOURCES, Source, find_source
from .stack import STACK_FOLDER, build_checkout_wheel, build_stack_wheel
from .tree import File
from .wheels import Wheels, build_wheels, platform_tags, venv_key

__all__ = [
    "CACHE",
    "PHP_SOURCES",
    "STACK_FOLDER",
    "STACK_SOURCES",
    "Archive",
    "Bundle",
    "File",
    "Lock",
    "Locked",
    "Source",
    "Wheels",
    "build_archive",
    "build_bundle",
    "build_checkout_wheel",
    "build_stack_wheel",
    "build_wheels",
    "bundle_for",
    "find_source",
    "platform_tags",
    "read_lock",
    "target_environment",
    "trim_cache",
    "venv_key",
    "write_whole",
]
