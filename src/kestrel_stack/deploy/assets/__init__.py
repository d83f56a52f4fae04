"""Static content: names by content, rewritten references, compressed copies, and their way to a CDN."""

from .compile import FOLDER, MANIFESTS, compile_assets
from .publish import publish, require_tools
from .spec import AssetsSpec, parse_assets

__all__ = ["FOLDER", "MANIFESTS", "AssetsSpec", "compile_assets", "parse_assets", "publish", "require_tools"]
