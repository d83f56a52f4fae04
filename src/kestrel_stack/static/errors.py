"""Errors of `kestrel_stack.static`."""


class AssetError(Exception):
    """The base of every error that this package raises on purpose."""


class UnknownAsset(AssetError):  # noqa: N818 - named after what is wrong
    """The release has no static file of this name; the message names the manifest."""


class InvalidManifest(AssetError):  # noqa: N818
    """The manifest cannot be read, or another version of the stack wrote it; the message names it."""
