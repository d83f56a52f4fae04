<?php

/**
 * What pages call: `use function KestrelStack\Assets\asset_url;`
 */

declare(strict_types=1);

namespace KestrelStack\Assets;

if (!function_exists(__NAMESPACE__ . '\asset_url')) {
    /**
     * Returns the address of a static file, by its path below one of deploy.yml's `assets.folders`.
     *
     * In development, where there is no manifest, it is the plain name below `/`, or below
     * `KESTREL_STACK_ASSETS_URL`.
     *
     * @throws UnknownAsset for a name that the release does not have
     */
    function asset_url(string $name): string
    {
        return Manifest::ofRelease()->address($name);
    }

    /**
     * Returns the value of the file's `integrity` attribute; empty in development.
     *
     * @throws UnknownAsset
     */
    function asset_integrity(string $name): string
    {
        return Manifest::ofRelease()->integrity($name);
    }
}
