<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Queue;

use KestrelStack\Queue\Errors\SettingsError;
use KestrelStack\Queue\Settings;
use KestrelStack\Tests\Support\Program;
use PHPUnit\Framework\TestCase;

/** One settings file for both languages: what one refuses the other refuses, with the same sentence. */
final class SettingsTest extends TestCase
{
    private const BASE = [
        'app' => 'shop',
        'namespace' => 'shop',
        'environment' => 'test',
        'servers' => ['127.0.0.1:22133'],
        'queues' => [['name' => 'mail']],
    ];
    private const QUEUE = [
        'name' => 'mail',
        'language' => 'php',
        'processes' => 3,
        'max_jobs' => 50,
        'max_time' => '5m',
        'max_memory' => '256MB',
        'job_timeout' => 7,
        'retry_delays' => [10, 60],
        'max_items' => 9,
        'rate_limit' => '2.5/s',
        'also' => ['other'],
        'alert' => ['backlog' => 5, 'age' => '60s'],
        'max_size' => '1KB',
        'max_item_size' => 1000,
        'max_memory_size' => '1GB',
        'max_age' => '1h',
        'discard_old_when_full' => true,
        'fanouts' => ['copy'],
        'fanout_only' => true,
    ];

    private static string $folder;

    public static function setUpBeforeClass(): void
    {
        self::$folder = Program::folder();
    }

    public static function tearDownAfterClass(): void
    {
        Program::remove(self::$folder);
    }

    public function testEverythingIsRead(): void
    {
        $other = ['name' => 'other', 'language' => 'php'];
        $file = self::file(['queues' => [self::QUEUE, $other], 'host' => 'h1', 'sentry_dsn' => 'http://k@s/1'] + self::BASE);
        $settings = Settings::load($file, []);
        self::assertSame(
            ['shop', 'shop', 'test', 'h1', 'http://k@s/1', $file, '127.0.0.1:22133'],
            [
                $settings->app, $settings->namespace, $settings->environment, $settings->host, $settings->sentryDsn,
                $settings->path, (string) $settings->servers[0],
            ],
        );
        self::assertSame(
            [
                'name' => 'mail', 'language' => 'php', 'processes' => 3, 'maxJobs' => 50, 'maxTime' => 300,
                'maxMemory' => 256 * 1024 ** 2, 'jobTimeout' => 7, 'retryDelays' => [10, 60], 'maxItems' => 9,
                'rateLimit' => 2.5, 'also' => ['other'], 'alert' => ['backlog' => 5, 'age' => '60s'], 'maxSize' => 1024,
                'maxItemSize' => 1000, 'maxMemorySize' => 1024 ** 3, 'maxAge' => 3600, 'discardOldWhenFull' => true,
                'fanouts' => ['copy'], 'fanoutOnly' => true,
            ],
            get_object_vars($settings->queue('mail')),
        );
        $plain = $settings->queue('other');
        self::assertSame([1, 1000, null, null, 60, [], null], [
            $plain->processes, $plain->maxJobs, $plain->maxTime, $plain->maxMemory, $plain->jobTimeout, $plain->retryDelays,
            $plain->rateLimit,
        ]);
        $this->expectException(SettingsError::class);
        $this->expectExceptionMessage("The queue 'none' is not configured in $file; configured: mail, other.");
        $settings->queue('none');
    }

    public function testTheDefaultsAreThoseOfPython(): void
    {
        $file = self::file(self::BASE);
        $php = get_object_vars(Settings::load($file, [])->queue('mail'));
        $code = 'import dataclasses, json, sys; from kestrel_stack.queue import settings; '
            . 'print(json.dumps(dataclasses.asdict(settings.load(sys.argv[1]).queue("mail"))))';
        $python = json_decode(self::python($code, $file), true);
        $camel = static fn (string $key): string => lcfirst(str_replace('_', '', ucwords($key, '_')));
        self::assertSame($php, array_combine(array_map($camel, array_keys($python)), $python));
    }

    public function testBothLanguagesRefuseTheSameWithTheSameSentence(): void
    {
        $files = [];
        foreach (self::wrong() as $number => $content) {
            $file = self::$folder . "/wrong-$number.json";
            file_put_contents($file, is_string($content) ? $content : json_encode($content, JSON_PRESERVE_ZERO_FRACTION));
            $files[] = $file;
        }
        $code = "import json, sys\nfrom kestrel_stack.queue import settings\nsaid = []\nfor file in sys.argv[1:]:\n"
            . "    try:\n        settings.load(file, {})\n        said.append(None)\n"
            . "    except settings.SettingsError as exc:\n        said.append(str(exc))\nprint(json.dumps(said))";
        $python = json_decode(self::python($code, ...$files), true);
        self::assertCount(count($files), $python);
        $expected = $found = [];
        foreach ($files as $number => $file) {
            $content = file_get_contents($file);
            $expected[$content] = self::withoutParser($python[$number]) ?? 'it is taken';
            try {
                Settings::load($file, []);
                $found[$content] = 'it is taken';
            } catch (SettingsError $error) {
                $found[$content] = self::withoutParser($error->getMessage());
            }
        }
        self::assertSame($expected, $found);
        self::assertNotContains('it is taken', $found);
        self::assertStringNotContainsString("\n", implode('', $found));
    }

    public function testTheEnvironmentOverridesTheFile(): void
    {
        $file = self::file(self::BASE);
        $settings = Settings::load(null, [
            'KESTREL_STACK_CONFIG' => $file,
            'KESTREL_STACK_SERVERS' => 'a:1,b:2',
            'KESTREL_STACK_NAMESPACE' => 'other',
            'KESTREL_STACK_ENVIRONMENT' => 'blue',
        ]);
        self::assertSame(['a:1', 'b:2'], array_map(strval(...), $settings->servers));
        self::assertSame(['other', 'blue'], [$settings->namespace, $settings->environment]);
        $this->expectException(SettingsError::class);
        $this->expectExceptionMessage("$file: 'a b' is not a server");
        Settings::load($file, ['KESTREL_STACK_SERVERS' => 'a b']);
    }

    public function testTheFileIsFoundWhenThereIsOne(): void
    {
        $folder = self::$folder . '/etc';
        mkdir($folder);
        $say = static function () use ($folder): string {
            try {
                return Settings::find(null, [], $folder);
            } catch (SettingsError $error) {
                return $error->getMessage();
            }
        };
        self::assertStringStartsWith("No settings file in $folder; name one with --config", $say());
        touch("$folder/shop.json");
        self::assertSame("$folder/shop.json", $say());
        touch("$folder/more.json");
        self::assertStringStartsWith("Several settings files in $folder (more.json, shop.json); say which", $say());
        self::assertSame('given', Settings::find('given', ['KESTREL_STACK_CONFIG' => 'other'], $folder));
        self::assertSame('other', Settings::find(null, ['KESTREL_STACK_CONFIG' => 'other'], $folder));
    }

    public function testAFileThatCannotBeReadIsSaid(): void
    {
        $missing = self::$folder . '/missing.json';
        foreach ([$missing => "The settings file $missing does not exist.", self::$folder => 'it is a folder'] as $file => $said) {
            try {
                Settings::load($file, []);
                self::fail('it was read');
            } catch (SettingsError $error) {
                self::assertStringContainsString($said, $error->getMessage());
            }
        }
    }

    /** @return list<mixed> contents of files that are wrong */
    private static function wrong(): array
    {
        $wrong = ['', '{', '[]', '"x"', '{"app": "shop"'];
        foreach (array_keys(self::BASE) as $key) {
            foreach ([null, 5, '', [], new \stdClass(), ['x' => 1]] as $value) {
                if ($key !== 'servers' || !is_array($value) || $value === []) {
                    $wrong[] = [$key => $value] + self::BASE;
                }
            }
            $wrong[] = array_diff_key(self::BASE, [$key => 1]);
        }
        $wrong[] = ['host' => 5] + self::BASE;
        $wrong[] = ['sentry_dsn' => []] + self::BASE;
        $wrong[] = ['serverz' => 5, 'apps' => 1] + self::BASE;
        $wrong[] = ['servers' => ['a:0']] + self::BASE;
        $wrong[] = ['servers' => ['a', 'a']] + self::BASE;
        $wrong[] = ['namespace' => 'a.b'] + self::BASE;
        $wrong[] = ['queues' => [['name' => 'mail'], ['name' => 'mail']]] + self::BASE;
        $queue = static fn (array $more): array => ['queues' => [$more + ['name' => 'mail'], ['name' => 'py']]] + self::BASE;
        foreach (['', 'a b', 'mail_errors', str_repeat('x', 200)] as $name) {
            $wrong[] = $queue(['name' => $name]);
        }
        $values = [
            'language' => ['ruby', null, 5],
            'processes' => [0, -1, true, 1.5, '1', null],
            'max_jobs' => [0, 'x', 2.0],
            'job_timeout' => [0, [], null],
            'max_items' => [0, true, 'x'],
            'retry_delays' => [5, '10', new \stdClass(), [0], [true], ['10'], [1.0], null],
            'rate_limit' => ['50', 50, '0/s', '0.0/s', '-1/s', '1/m', "1/s\n", ''],
            'max_time' => ['1', 60, '0s', '1d', '1.5h', ' 1h', "1h\n", true],
            'max_memory' => ['0', 0, -1, '1TB', '1 MB', true, 1.5, 'x', '99999999999GB'],
            'also' => ['py', [5], ['mail'], ['py', 'py'], ['nobody'], new \stdClass()],
            'alert' => [5, 'x', null, [1]],
            'max_size' => ['x', 0],
            'max_item_size' => ['1mb'],
            'max_memory_size' => [[]],
            'max_age' => [5, '1d'],
            'discard_old_when_full' => ['yes', 1, null],
            'fanout_only' => [0],
            'fanouts' => ['a', ['a+b'], [5], [''], new \stdClass()],
            'retries' => [1],
        ];
        foreach ($values as $key => $list) {
            foreach ($list as $value) {
                $wrong[] = $queue([$key => $value]);
            }
        }
        $other = ['name' => 'other', 'language' => 'php'];
        $wrong[] = ['queues' => [['name' => 'mail', 'also' => ['other']], $other]] + self::BASE;
        return $wrong;
    }

    /** What the JSON parsers say, and how values look in a sentence, is each language's own. */
    private static function withoutParser(?string $message): ?string
    {
        return $message === null ? null : preg_replace(
            ['/(is not JSON): .*/', '/\bNone\b/', '/\bTrue\b/', '/not (?:int|a number|NoneType|null|list|a list|dict|an object)\.$/'],
            ['$1', 'null', 'true', 'not that.'],
            $message,
        );
    }

    private static function file(array $content): string
    {
        $file = self::$folder . '/' . bin2hex(random_bytes(6)) . '.json';
        file_put_contents($file, json_encode($content));
        return $file;
    }

    private static function python(string $code, string ...$arguments): string
    {
        $source = escapeshellarg(dirname(__DIR__, 3) . '/src');
        $words = implode(' ', array_map(escapeshellarg(...), [$code, ...$arguments]));
        return (string) shell_exec("PYTHONPATH=$source python3 -c $words");
    }
}
