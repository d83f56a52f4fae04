<?php

declare(strict_types=1);

namespace KestrelStack\Tests\Consumer;

use KestrelStack\Consumer\Cli;
use KestrelStack\Consumer\Flags;
use KestrelStack\Consumer\UsageError;
use KestrelStack\Queue\Errors\SettingsError;
use KestrelStack\Tests\Support\Program;
use PHPUnit\Framework\TestCase;

final class FlagsTest extends TestCase
{
    private const LEAST = ['--queue', 'work', '--app', 'jobs.php'];
    private const WHERE = ['--servers', '127.0.0.1:1', '--namespace', 'shop'];

    private ?string $folder = null;

    protected function tearDown(): void
    {
        if ($this->folder !== null) {
            Program::remove($this->folder);
        }
    }

    public function testBothWaysToWriteAValueAreTaken(): void
    {
        $flags = Flags::parse([...self::LEAST, '--max-jobs=5', '--rate', '2.5/s', '--once', '--max-time', '1.5']);
        self::assertSame([5, 2.5, 1.5], [$flags->maxJobs, $flags->rate, $flags->maxTime]);
        self::assertSame([true, false], [$flags->once, $flags->debug]);
    }

    /** @dataProvider wrong */
    public function testAWrongFlagIsOneLineThatNamesIt(array $arguments, string $said): void
    {
        try {
            Flags::parse($arguments);
            self::fail('it was taken');
        } catch (UsageError $exc) {
            self::assertStringContainsString($said, $exc->getMessage());
            self::assertStringNotContainsString("\n", $exc->getMessage());
        }
    }

    public static function wrong(): array
    {
        return [
            'nothing' => [[], 'the following arguments are required: --queue, --app'],
            'an unknown flag' => [[...self::LEAST, '--nope', "a\nb"], 'unrecognized arguments: --nope a\nb'],
            'half a flag' => [[...self::LEAST, '--max-job', '5'], '--max-job'],
            'no value' => [[...self::LEAST, '--config'], 'argument --config: expected one argument'],
            'a flag for a value' => [['--queue', '--app', 'x.php'], 'argument --queue: expected one argument'],
            'a value too many' => [[...self::LEAST, '--once=yes'], "ignored explicit argument 'yes'"],
            'no number' => [[...self::LEAST, '--max-jobs', 'x'], "'x' is not a whole number from 1 on"],
            'zero' => [[...self::LEAST, '--max-memory', '0'], "'0' is not a whole number from 1 on"],
            'zero seconds' => [[...self::LEAST, '--job-timeout', '0'], "'0' is not a number of seconds above 0"],
            'no rate' => [[...self::LEAST, '--rate', '5'], "argument --rate: '5' is not a rate"],
            'a module' => [['--queue', 'a', '--app', 'jobs:registry'], "--app 'jobs:registry' is not FILE.php"],
        ];
    }

    public function testAQueueOfAnotherLanguageIsRefused(): void
    {
        $this->expectException(UsageError::class);
        $this->expectExceptionMessage('the queue work is for python workers, not for PHP');
        $this->plan([['name' => 'work', 'language' => 'python']]);
    }

    public function testAQueueThatIsNotConfiguredIsRefused(): void
    {
        $this->expectException(SettingsError::class);
        $this->expectExceptionMessage("The queue 'work' is not configured");
        $this->plan([['name' => 'other', 'language' => 'php']]);
    }

    public function testSettingsAreTakenUnlessAFlagSaysOtherwise(): void
    {
        $queue = ['name' => 'work', 'language' => 'php', 'max_jobs' => 7, 'job_timeout' => 9, 'retry_delays' => [3]]
            + ['max_memory' => '1MB', 'max_time' => '1h', 'rate_limit' => '4/s', 'also' => ['more']];
        $more = ['name' => 'more', 'language' => 'php', 'job_timeout' => 2];
        $plan = $this->plan([$queue, $more]);
        self::assertSame(['shop_work', 'shop_more'], array_keys($plan->rules));
        self::assertSame([9.0, [3]], [$plan->rules['shop_work']->jobTimeout, $plan->rules['shop_work']->retryDelays]);
        self::assertSame(2.0, $plan->rules['shop_more']->jobTimeout);
        $limits = $plan->limits;
        self::assertSame([7, 3600.0, 1024 ** 2, 4.0], [$limits->jobs, $limits->time, $limits->memory, $limits->rate]);
        $flags = ['--max-jobs', '1', '--max-time', '2', '--max-memory', '3', '--rate', '4.5/s', '--job-timeout', '5'];
        $plan = $this->plan([$queue, $more], $flags);
        $limits = $plan->limits;
        self::assertSame([1, 2.0, 3_000_000, 4.5], [$limits->jobs, $limits->time, $limits->memory, $limits->rate]);
        self::assertSame([5.0, 5.0], array_column($plan->rules, 'jobTimeout'));
        self::assertSame(['shop_more', 'shop_work'], array_keys($this->plan([$queue, $more], [], 'more,work')->rules));
    }

    public function testAQueueNamedTwiceIsRefused(): void
    {
        $this->expectException(UsageError::class);
        $this->expectExceptionMessage('--queue names work twice');
        Cli::plan(Flags::parse(['--queue', 'work,work', '--app', 'jobs.php', ...self::WHERE]), []);
    }

    public function testTheNumberOfTheProcessIsSupervisors(): void
    {
        self::assertSame(3, Cli::processNumber(['SUPERVISOR_PROCESS_NAME' => 'shop_mail_03']));
        self::assertSame(0, Cli::processNumber([]));
    }

    private function plan(array $queues, array $more = [], string $queue = 'work'): \KestrelStack\Consumer\Plan
    {
        $this->folder ??= Program::folder();
        $content = ['app' => 'shop', 'namespace' => 'shop', 'environment' => 'test', 'servers' => ['127.0.0.1']];
        file_put_contents("$this->folder/app.json", json_encode($content + ['queues' => $queues]));
        $flags = ['--queue', $queue, '--app', 'jobs.php', '--config', "$this->folder/app.json", ...$more];
        return Cli::plan(Flags::parse($flags), []);
    }
}
