<?php

declare(strict_types=1);

namespace KestrelStack\Assets;

/** The base of every error that KestrelStack\Assets throws on purpose. */
class AssetError extends \RuntimeException
{
}
