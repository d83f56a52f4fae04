"""Static content: names by content, rewritten references, compressed copies, and their way to a CDN."""

from .spec import AssetsSpec

__all__ = ["AssetsSpec"]
