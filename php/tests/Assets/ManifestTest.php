<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Assets;

use KestrelStack\Assets\Manifest;
use PHPUnit\Framework\TestCase;

use function KestrelStack\Assets\asset_integrity;
use function KestrelStack\Assets\asset_url;

/** The shared cases of tests/contract/assets, which the Python implementation is held to as well. */
final class ManifestTest extends TestCase
{
    private string $top;
    private string $release;

    protected function setUp(): void
    {
        $this->top = sys_get_temp_dir() . '/kestrel-stack-' . bin2hex(random_bytes(8));
        $this->release = "$this->top/release";
        mkdir("$this->release/php/public", 0700, true);
        mkdir("$this->release/_assets");
        mkdir("$this->top/elsewhere");
    }

    protected function tearDown(): void
    {
        $found = new \RecursiveIteratorIterator(
            new \RecursiveDirectoryIterator($this->top, \FilesystemIterator::SKIP_DOTS),
            \RecursiveIteratorIterator::CHILD_FIRST,
        );
        foreach ($found as $path) {
            $path->isDir() ? rmdir((string) $path) : unlink((string) $path);
        }
        rmdir($this->top);
    }

    public static function cases(): array
    {
        $found = [];
        foreach (self::table()->cases as $case) {
            $found[$case->name] = [$case];
        }
        return $found;
    }

    /** @dataProvider cases */
    public function testAnAddressByManifestJson(\stdClass $case): void
    {
        if ($case->manifest !== null) {
            file_put_contents("$this->release/_assets/manifest.json", self::text($case));
        }
        $this->check($case);
    }

    /** @dataProvider cases */
    public function testAnAddressByManifestPhp(\stdClass $case): void
    {
        if ($case->manifest !== null) {
            $content = json_decode(self::text($case), true);
            $code = "<?php\n\nreturn " . var_export($content, true) . ";\n";
            file_put_contents("$this->release/_assets/manifest.php", $code);
        }
        $this->check($case);
    }

    private function check(\stdClass $case): void
    {
        $environ = array_map(
            fn (string $value): string => str_replace('{release}', $this->release, $value),
            (array) ($case->environment ?? []),
        );
        $start = (string) realpath("$this->release/" . ($case->start ?? '.'));
        if (isset($case->error)) {
            foreach (['address', 'integrity'] as $method) {
                try {
                    Manifest::find($start, $environ)->$method($case->asset);
                    self::fail("$method() accepted it");
                } catch (\KestrelStack\Assets\AssetError $error) {
                    self::assertSame("KestrelStack\\Assets\\$case->error", $error::class);
                    self::assertStringContainsString("$this->release/_assets/manifest.", $error->getMessage());
                }
            }
            return;
        }
        $manifest = Manifest::find($start, $environ);
        self::assertSame($case->url, $manifest->address($case->asset));
        self::assertSame($case->integrity, $manifest->integrity($case->asset));
    }

    public function testAPageCallsFunctions(): void
    {
        // This checkout is no release.
        self::assertSame('/css/shop.css', asset_url('css/shop.css'));
        self::assertSame('', asset_integrity('css/shop.css'));
    }

    public function testTheReleaseIsFoundFromTheStacksOwnFolderInIt(): void
    {
        // As a page does in a release: the stack's code is there in kestrel-stack/php, the working folder is elsewhere.
        $stack = "$this->release/kestrel-stack/php";
        mkdir("$stack/src/Assets", 0700, true);
        copy(dirname(__DIR__, 2) . '/autoload.php', "$stack/autoload.php");
        foreach ((array) glob(dirname(__DIR__, 2) . '/src/Assets/*.php') as $file) {
            copy($file, "$stack/src/Assets/" . basename($file));
        }
        $content = json_encode(self::table()->manifests->release);
        file_put_contents("$this->release/_assets/manifest.json", $content);
        symlink($this->release, "$this->top/current");
        $page = "$this->release/php/public/index.php";
        file_put_contents(
            $page,
            '<?php require __DIR__ . "/../../kestrel-stack/php/autoload.php";'
            . ' echo KestrelStack\Assets\asset_url("css/shop.css");',
        );
        $command = [PHP_BINARY, "$this->top/current/php/public/index.php"];
        $process = proc_open($command, [1 => ['pipe', 'w']], $pipes, "$this->top/elsewhere");
        self::assertIsResource($process);
        $said = stream_get_contents($pipes[1]);
        proc_close($process);
        unlink("$this->top/current");
        self::assertSame('/assets/css/shop.0123456789abcdef.css', $said);
    }

    public function testWithOpcacheNoRequestReadsTheManifestFile(): void
    {
        if (!extension_loaded('Zend OPcache')) {
            self::markTestSkipped('opcache is not installed: apt install php-opcache');
        }
        $manifest = "$this->release/_assets/manifest.php";
        $content = json_decode((string) json_encode(self::table()->manifests->release), true);
        file_put_contents($manifest, "<?php\n\nreturn " . var_export($content, true) . ";\n");
        $page = "$this->top/page.php";
        $autoload = var_export(dirname(__DIR__, 2) . '/autoload.php', true);
        $path = var_export($manifest, true);
        file_put_contents($page, "<?php require $autoload; echo KestrelStack\\Assets\\asset_url('css/shop.css');"
            . " echo opcache_is_script_cached($path) ? ' cached' : ' not cached';");
        $options = ['-d', 'opcache.enable=1', '-d', 'opcache.enable_cli=1', '-d', 'opcache.file_update_protection=0'];
        $process = proc_open(
            [PHP_BINARY, ...$options, $page],
            [1 => ['pipe', 'w']],
            $pipes,
            null,
            ['KESTREL_STACK_RELEASE_PATH' => $this->release],
        );
        self::assertIsResource($process);
        $said = stream_get_contents($pipes[1]);
        proc_close($process);
        self::assertSame('/assets/css/shop.0123456789abcdef.css cached', $said);
    }

    private static function text(\stdClass $case): string
    {
        $content = self::table()->manifests->{$case->manifest};
        return is_string($content) ? $content : (string) json_encode($content);
    }

    private static function table(): \stdClass
    {
        $text = (string) file_get_contents(dirname(__DIR__, 3) . '/tests/contract/assets/urls.json');
        return json_decode($text, false, 512, JSON_THROW_ON_ERROR);
    }
}
