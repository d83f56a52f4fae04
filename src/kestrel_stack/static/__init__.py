"""Addresses of static files, for an application's pages: ``asset_url("css/shop.css")``.

`fab deploy` gives every file below deploy.yml's ``assets.folders`` a name by its content, so that browsers
may keep it for ever, and lists them in the release's ``_assets/manifest.json``. See docs/static.md.
"""

from .errors import AssetError, InvalidManifest, UnknownAsset
from .manifest import Manifest, asset_integrity, asset_url

__all__ = ["AssetError", "InvalidManifest", "Manifest", "UnknownAsset", "asset_integrity", "asset_url"]
