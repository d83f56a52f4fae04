<?php

declare(strict_types=1);

namespace KestrelStack\Assets;

/** The manifest cannot be read, or another version of the stack wrote it; the message names it. */
final class InvalidManifest extends AssetError
{
}
