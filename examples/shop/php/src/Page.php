<?php

declare(strict_types=1);

namespace Shop;

use KestrelStack\Queue\Errors\QueueError;
use KestrelStack\Queue\Producer;
use KestrelStack\Queue\Queue;
use KestrelStack\Queue\Settings;

use function KestrelStack\Assets\asset_url;

/**
 * The shop's pages: what waits on the queues, a form to put jobs there, what was done here.
 *
 * No request waits for anything slow: the jobs are put on a queue, and the workers do them. The numbers of the queues are
 * asked for by the page itself, so that it is there at once also while the queue is away.
 */
final class Page
{
    private const TENANT = 'acme';
    /** Seconds that a request may wait for the queue. */
    private const TIMEOUT = 2.0;
    /** Jobs that one request may enqueue. */
    private const MOST = 100;
    /** What the form of each queue enqueues. */
    private const FORMS = [
        'hello_world' => ['HelloWorld', ['name' => 'World']],
        'hello_world_php' => ['HelloWorld', ['name' => 'World']],
        'mail' => [
            'SendMail',
            ['to' => 'ada@example.org', 'subject' => 'Your order', 'text' => "It is on its way.\n"],
        ],
        'partner_api' => ['PostToPartner', ['order' => 4711]],
        'post_upload' => ['PostUpload', ['name' => 'hello.txt', 'content' => 'SGVsbG8K']],
    ];

    /** Answer the request that PHP was started for. */
    public static function answer(): void
    {
        $method = $_SERVER['REQUEST_METHOD'] === 'HEAD' ? 'GET' : $_SERVER['REQUEST_METHOD'];
        $path = explode('?', $_SERVER['REQUEST_URI'], 2)[0];
        header("Content-Security-Policy: default-src 'self'; frame-ancestors 'none'; form-action 'self'");
        header('X-Frame-Options: DENY');
        match ("$method $path") {
            'GET /' => self::front(),
            'POST /enqueue' => self::enqueue(),
            'GET /queues' => self::queues(),
            'GET /health' => self::health(),
            default => self::plain(404, "There is no such page.\n"),
        };
    }

    /** Return the name of the release that this code is of. */
    public static function release(): string
    {
        return basename(dirname(__DIR__, 2));
    }

    private static function front(): void
    {
        $enqueued = History::recent();
        $results = self::results();
        $queues = array_keys(Settings::load()->queues);
        $forms = self::FORMS;
        $most = self::MOST;
        $message = self::message();
        $text = static fn (?string $text): string => htmlspecialchars((string) $text, ENT_QUOTES | ENT_SUBSTITUTE);
        $asset = static fn (string $name): string => $text(asset_url($name));
        require __DIR__ . '/front.php';
    }

    private static function enqueue(): void
    {
        if (!self::ownForm()) {
            self::plain(403, "This form is the shop's own.\n");
            return;
        }
        $queue = is_string($_POST['queue'] ?? null) ? $_POST['queue'] : '';
        $options = ['options' => ['min_range' => 1, 'max_range' => self::MOST]];
        $count = filter_var($_POST['count'] ?? 1, FILTER_VALIDATE_INT, $options);
        if (!isset(self::FORMS[$queue]) || $count === false) {
            self::plain(400, "The form was not filled in like that.\n");
            return;
        }
        [$job, $data] = self::FORMS[$queue];
        $began = hrtime(true);
        $done = 0;
        try {
            $producer = Producer::fromSettings(self::TENANT, timeout: self::TIMEOUT);
            for (; $done < $count; $done++) {
                $producer->enqueue($job, $data, $queue);
            }
            $milliseconds = sprintf('%.1f', (hrtime(true) - $began) / 1e6);
            $said = ['done' => $done, 'queue' => $queue, 'ms' => $milliseconds];
            $result = "in $milliseconds ms";
        } catch (QueueError $error) {
            $said = ['failed' => $error->getMessage(), 'done' => $done];
            $result = $error->getMessage();
        }
        History::note($queue, $done, $result);
        // The page after a post is got anew, so that reloading it enqueues nothing.
        header('Location: /?' . http_build_query($said), true, 303);
    }

    private static function ownForm(): bool
    {
        // Browsers send the first to https and localhost only, and the second with every form that is posted.
        if (!in_array($_SERVER['HTTP_SEC_FETCH_SITE'] ?? 'same-origin', ['same-origin', 'none'], true)) {
            return false;
        }
        $origin = $_SERVER['HTTP_ORIGIN'] ?? null;
        return $origin === null || preg_replace('~^https?://~', '', $origin) === ($_SERVER['HTTP_HOST'] ?? null);
    }

    private static function queues(): void
    {
        header('Content-Type: application/json');
        $settings = Settings::load();
        $numbers = [];
        try {
            $servers = implode(',', array_map('strval', $settings->servers));
            $store = Queue::open("kestrel://$servers/{$settings->namespace}", array_values($settings->queues));
            foreach (array_keys($settings->queues) as $queue) {
                $count = $store->count($queue);
                $numbers[$queue] = [
                    'ready' => $count->ready,
                    'reserved' => $count->reserved,
                    'delayed' => array_sum($count->delayed),
                    'parked' => $count->parked,
                ];
            }
            echo json_encode(['queues' => $numbers], JSON_THROW_ON_ERROR);
        } catch (QueueError $error) {
            echo json_encode(['error' => $error->getMessage()], JSON_INVALID_UTF8_SUBSTITUTE);
        }
    }

    /** Say that this release can answer; without a look at the queue, whose absence a page survives. */
    private static function health(): void
    {
        Settings::load();
        self::plain(200, 'ok ' . self::release() . "\n");
    }

    private static function plain(int $status, string $text): void
    {
        http_response_code($status);
        header('Content-Type: text/plain; charset=utf-8');
        echo $text;
    }

    /** @return array{string, string}|null how the last post went: `ok` or `bad`, and the sentence */
    private static function message(): ?array
    {
        $asked = array_map(static fn ($value): string => is_string($value) ? $value : '?', $_GET);
        if (isset($asked['failed'])) {
            return ['bad', ($asked['done'] ?? '0') . " enqueued, then: {$asked['failed']}"];
        }
        if (isset($asked['done'])) {
            return ['ok', "{$asked['done']} enqueued on " . ($asked['queue'] ?? '?') . ' in ' . ($asked['ms'] ?? '?') . ' ms'];
        }
        return null;
    }

    /** @return list<array<string, ?string>> */
    private static function results(): array
    {
        try {
            return class_exists(\PDO::class) && in_array('sqlite', \PDO::getAvailableDrivers(), true) ? Ledger::recent() : [];
        } catch (\PDOException) {
            return [];
        }
    }
}
