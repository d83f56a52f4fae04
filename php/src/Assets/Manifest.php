<?php

declare(strict_types=1);

namespace KestrelStack\Assets;

/**
 * The manifest of a release's static files: each with its hashed path and its integrity value.
 *
 * `fab deploy` writes it twice, as manifest.json and as manifest.php. PHP forgets everything between two requests,
 * but not what its opcode cache holds: with opcache the PHP file costs a look into shared memory, and as every
 * release has a path of its own, no request sees the manifest of another release.
 */
final class Manifest
{
    public const FOLDER = '_assets';
    public const VERSION = 1;

    private static ?self $ofRelease = null;

    /**
     * Without `$path` there is no manifest, as in development: addresses are `$url` and the plain name.
     *
     * @param array<array{path?: string, integrity?: string}> $files by name
     */
    public function __construct(
        public readonly string $url = '/',
        public readonly array $files = [],
        public readonly ?string $path = null,
    ) {
    }

    /** Returns the manifest of the release that this program runs in, read once. @throws InvalidManifest */
    public static function ofRelease(): self
    {
        return self::$ofRelease ??= self::find();
    }

    /**
     * Finds the manifest of the release.
     *
     * The release is the folder that `KESTREL_STACK_RELEASE_PATH` names, else the first one with a manifest from
     * `$folder` (by default the stack's own, which is inside the release) upwards. Where there is none, names stay
     * plain, below `KESTREL_STACK_ASSETS_URL` or else `/`.
     *
     * @param ?array<string, string> $environ
     * @throws InvalidManifest
     */
    public static function find(?string $folder = null, ?array $environ = null): self
    {
        $environ ??= getenv();
        $named = $environ['KESTREL_STACK_RELEASE_PATH'] ?? '';
        $place = $named === '' ? ($folder ?? __DIR__) : $named;
        while (true) {
            foreach (['php', 'json'] as $kind) {
                $path = rtrim($place, '/') . '/' . self::FOLDER . "/manifest.$kind";
                if (is_file($path)) {
                    return self::load($path);
                }
            }
            $above = dirname($place);
            if ($named !== '' || $above === $place) {
                break;
            }
            $place = $above;
        }
        $url = $environ['KESTREL_STACK_ASSETS_URL'] ?? '';
        return new self($url === '' ? '/' : rtrim($url, '/') . '/');
    }

    /** Reads a manifest. @throws InvalidManifest naming the file */
    public static function load(string $path): self
    {
        $content = str_ends_with($path, '.php') ? require $path : self::json($path);
        if (!is_array($content) || ($content['version'] ?? null) !== self::VERSION) {
            throw new InvalidManifest("$path is not a manifest of version " . self::VERSION);
        }
        $url = $content['url'] ?? null;
        $files = $content['files'] ?? null;
        if (!is_string($url) || !is_array($files)) {
            throw new InvalidManifest("$path has no url or no files");
        }
        return new self($url, $files, $path);
    }

    /**
     * Returns the address of a file; what follows `?` or `#` in its name is kept.
     *
     * @throws UnknownAsset
     */
    public function address(string $name): string
    {
        [$plain, $rest] = $this->split($name);
        $path = $this->path === null ? $plain : $this->entry($plain, 'path');
        return $this->url . implode('/', array_map(rawurlencode(...), explode('/', $path))) . $rest;
    }

    /** Returns the value for an `integrity` attribute; empty without a manifest. @throws UnknownAsset */
    public function integrity(string $name): string
    {
        return $this->path === null ? '' : $this->entry($this->split($name)[0], 'integrity');
    }

    /** @return array{string, string} */
    private function split(string $name): array
    {
        $plain = str_starts_with($name, '/') ? substr($name, 1) : $name;
        if (isset($this->files[$plain])) {
            return [$plain, ''];
        }
        $end = strcspn($plain, '?#');
        return [substr($plain, 0, $end), substr($plain, $end)];
    }

    private function entry(string $name, string $key): string
    {
        if (!isset($this->files[$name])) {
            throw new UnknownAsset(
                "There is no asset '$name' in $this->path: is it committed, in a folder that deploy.yml names in"
                . ' assets.folders?',
            );
        }
        $value = $this->files[$name][$key] ?? null;
        if (!is_string($value)) {
            throw new InvalidManifest("$this->path has no $key of '$name'");
        }
        return $value;
    }

    private static function json(string $path): mixed
    {
        $text = @file_get_contents($path);
        if ($text === false) {
            throw new InvalidManifest("$path cannot be read: " . (is_dir($path) ? 'it is a folder' : 'not allowed'));
        }
        $content = json_decode($text, true);
        if (json_last_error() !== JSON_ERROR_NONE) {
            throw new InvalidManifest("$path is not JSON");
        }
        return $content;
    }
}
