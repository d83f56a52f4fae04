<?php

declare(strict_types=1);

namespace Shop;

use KestrelStack\Consumer\Park;

/** What the shop is told from outside: the environment first, then `config.json` beside the folder `php`. */
final class Config
{
    /** Return the URL of the API that takes uploads; without one the job is parked, saying where to set it. */
    public static function uploadUrl(): string
    {
        $file = dirname(__DIR__, 2) . '/config.json';
        $url = getenv('SHOP_UPLOAD_URL') ?: null;
        if ($url === null && is_file($file)) {
            $url = json_decode((string) file_get_contents($file), true)['upload_url'] ?? null;
        }
        if ($url === null) {
            // Not the file's path, which names the release: Sentry would take each deploy's for another error.
            throw new Park('nobody takes uploads: set SHOP_UPLOAD_URL, or upload_url in config.json');
        }
        if (!is_string($url) || !preg_match('~^https?://~', $url)) {
            throw new Park('the URL for uploads in config.json does not begin with http:// or https://');
        }
        return $url;
    }
}
