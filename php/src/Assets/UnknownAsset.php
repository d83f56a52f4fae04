<?php

declare(strict_types=1);

namespace KestrelStack\Assets;

/** The release has no static file of this name; the message names the manifest. */
final class UnknownAsset extends AssetError
{
}
