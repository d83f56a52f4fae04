<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\InvalidQueueName;
use KestrelStack\Queue\Errors\InvalidServer;
use KestrelStack\Queue\Errors\SettingsError;

/**
 * The settings file of one application on one host, as the playbook writes it.
 *
 * Workers and producers read `/etc/kestrel-stack/<app>.json`. `KESTREL_STACK_CONFIG` names another file;
 * `KESTREL_STACK_SERVERS`, `KESTREL_STACK_NAMESPACE` and `KESTREL_STACK_ENVIRONMENT` override its content.
 */
final class Settings
{
    public const FOLDER = '/etc/kestrel-stack';
    public const LANGUAGES = ['python', 'php'];

    private const KEYS = ['app', 'namespace', 'environment', 'host', 'servers', 'queues', 'sentry_dsn'];
    private const QUEUE_KEYS = [
        'name', 'language', 'processes', 'max_jobs', 'max_time', 'max_memory', 'job_timeout', 'retry_delays',
        'max_items', 'rate_limit', 'also', 'alert', 'max_size', 'max_item_size', 'max_memory_size', 'max_age',
        'discard_old_when_full', 'fanouts', 'fanout_only',
    ];
    private const SIZE_UNITS = ['' => 1, 'KB' => 1024, 'MB' => 1024 ** 2, 'GB' => 1024 ** 3];
    private const AGE_UNITS = ['s' => 1, 'm' => 60, 'h' => 3600];

    public readonly string $host;

    /**
     * @param non-empty-list<Server> $servers
     * @param array<QueueSettings> $queues by name
     */
    public function __construct(
        public readonly string $app,
        public readonly string $namespace,
        public readonly string $environment,
        public readonly array $servers,
        public readonly array $queues,
        ?string $host = null,
        #[\SensitiveParameter]
        public readonly ?string $sentryDsn = null,
        public readonly ?string $path = null,
    ) {
        $this->host = $host ?? (string) gethostname();
    }

    /** Returns the queue called `$name`. @throws SettingsError listing the configured ones */
    public function queue(string $name): QueueSettings
    {
        if (!isset($this->queues[$name])) {
            $known = self::listed(array_map(strval(...), array_keys($this->queues)));
            $shown = Text::quote($name);
            throw new SettingsError("The queue $shown is not configured in $this->path; configured: $known.");
        }
        return $this->queues[$name];
    }

    /**
     * Reads the settings file. Without `$path` it is `$KESTREL_STACK_CONFIG`, else the only `*.json` file in
     * `/etc/kestrel-stack`.
     *
     * @param ?array<string, string> $environ
     * @throws SettingsError naming the file and what is wrong with it
     */
    public static function load(?string $path = null, ?array $environ = null): self
    {
        $environ ??= getenv();
        $file = self::find($path, $environ);
        if (!file_exists($file)) {
            throw new SettingsError("The settings file $file does not exist.");
        }
        if (is_dir($file)) {
            throw new SettingsError("The settings file $file cannot be read: it is a folder.");
        }
        if (!is_readable($file)) {
            throw new SettingsError(
                "The settings file $file may not be read by this user; it is for the application's group.",
            );
        }
        $text = @file_get_contents($file);
        if ($text === false) {
            throw new SettingsError("The settings file $file cannot be read.");
        }
        $content = json_decode($text);
        if (json_last_error() !== JSON_ERROR_NONE) {
            throw new SettingsError("The settings file $file is not JSON: " . lcfirst(json_last_error_msg()) . '.');
        }
        try {
            return self::read($content, $file)->override($environ);
        } catch (SettingsError | InvalidQueueName | InvalidServer $error) {
            throw new SettingsError("$file: " . $error->getMessage());
        }
    }

    /**
     * Returns the settings with what the environment variables say instead.
     *
     * @param array<string, string> $environ
     */
    public function override(array $environ): self
    {
        $servers = $environ['KESTREL_STACK_SERVERS'] ?? '';
        $namespace = $environ['KESTREL_STACK_NAMESPACE'] ?? '';
        $environment = $environ['KESTREL_STACK_ENVIRONMENT'] ?? '';
        return new self(
            $this->app,
            $namespace === '' ? $this->namespace : Names::check($namespace, 'namespace'),
            $environment === '' ? $this->environment : $environment,
            $servers === '' ? $this->servers : Server::parse($servers),
            $this->queues,
            $this->host,
            $this->sentryDsn,
            $this->path,
        );
    }

    /**
     * Returns the settings file to read.
     *
     * @param array<string, string> $environ
     * @throws SettingsError when none or several could be meant
     */
    public static function find(?string $path, array $environ, string $folder = self::FOLDER): string
    {
        $given = $path ?? '';
        $given = $given === '' ? $environ['KESTREL_STACK_CONFIG'] ?? '' : $given;
        if ($given !== '') {
            return $given;
        }
        $found = glob("$folder/*.json") ?: [];
        if ($found === []) {
            throw new SettingsError(
                "No settings file in $folder; name one with --config or KESTREL_STACK_CONFIG, "
                . 'or run site.yml for this host.',
            );
        }
        if (count($found) > 1) {
            $listed = implode(', ', array_map(basename(...), $found));
            throw new SettingsError(
                "Several settings files in $folder ($listed); say which with --config or KESTREL_STACK_CONFIG.",
            );
        }
        return $found[0];
    }

    /**
     * Returns a queue's description from its name or its entry of the settings file, checked.
     *
     * @param string|array<string, mixed>|QueueSettings $queue
     */
    public static function describeQueue(string|array|QueueSettings $queue, string $namespace): QueueSettings
    {
        if ($queue instanceof QueueSettings) {
            Names::make($namespace, $queue->name);
            return $queue;
        }
        return self::readQueue((object) (is_string($queue) ? ['name' => $queue] : $queue), 'a queue', $namespace);
    }

    /** Returns the jobs per second of `"50/s"`. @throws SettingsError when it is not a rate above zero */
    public static function parseRate(mixed $text): float
    {
        $isRate = is_string($text) && preg_match('~\A([0-9]+(?:\.[0-9]+)?)/s\z~', $text, $match);
        if (!$isRate || (float) $match[1] <= 0) {
            $shown = is_string($text) ? Text::quote($text) : Text::show($text);
            throw new SettingsError("$shown is not a rate; write jobs per second above 0, for example 50/s.");
        }
        return (float) $match[1];
    }

    /** Returns the bytes of `"1MB"` (KB, MB, GB: powers of 1024) or of a number. @throws SettingsError */
    public static function parseSize(mixed $value, string $what = 'A size'): int
    {
        $isSize = (is_string($value) || is_int($value))
            && preg_match('/\A([0-9]+)(KB|MB|GB)?\z/', (string) $value, $match);
        $size = $isSize ? (float) $match[1] * self::SIZE_UNITS[$match[2] ?? ''] : 0.0;
        if ($size <= 0 || $size >= 2 ** 63) {
            $shown = is_string($value) ? Text::quote($value) : Text::show($value);
            throw new SettingsError("$what $shown is not a size; write it like 1MB, or in bytes.");
        }
        return (int) $match[1] * self::SIZE_UNITS[$match[2] ?? ''];
    }

    /** Returns the seconds of `"30s"`, `"5m"` or `"1h"`. @throws SettingsError */
    public static function parseAge(mixed $value, string $what = 'A time'): int
    {
        if (!is_string($value) || !preg_match('/\A([1-9][0-9]{0,8})([smh])\z/', $value, $match)) {
            throw new SettingsError("$what must look like 30s, 5m or 1h.");
        }
        return (int) $match[1] * self::AGE_UNITS[$match[2]];
    }

    private static function read(mixed $content, string $file): self
    {
        if (!$content instanceof \stdClass) {
            throw new SettingsError('The file must hold one JSON object.');
        }
        self::refuseUnknown($content, self::KEYS, '');
        foreach (['app', 'namespace', 'environment'] as $key) {
            if (!is_string($content->$key ?? null) || $content->$key === '') {
                throw new SettingsError("'$key' must be a text that is not empty.");
            }
        }
        foreach (['host', 'sentry_dsn'] as $key) {
            if (isset($content->$key) && !is_string($content->$key)) {
                throw new SettingsError("'$key' must be a text or null.");
            }
        }
        foreach (['servers', 'queues'] as $key) {
            if (!is_array($content->$key ?? null) || $content->$key === []) {
                throw new SettingsError("'$key' must be a list with at least one entry.");
            }
        }
        $namespace = Names::check($content->namespace, 'namespace');
        $queues = [];
        foreach ($content->queues as $number => $entry) {
            $queue = self::readQueue($entry, "queues[$number]", $namespace);
            if (isset($queues[$queue->name])) {
                throw new SettingsError("The queue '$queue->name' is described twice.");
            }
            $queues[$queue->name] = $queue;
        }
        foreach ($queues as $queue) {
            self::checkAlso($queue, $queues);
        }
        return new self(
            app: $content->app,
            namespace: $namespace,
            environment: $content->environment,
            servers: Server::parse($content->servers),
            queues: $queues,
            host: ($content->host ?? '') === '' ? null : $content->host,
            sentryDsn: $content->sentry_dsn ?? null,
            path: $file,
        );
    }

    private static function readQueue(mixed $entry, string $what, string $namespace): QueueSettings
    {
        if (!$entry instanceof \stdClass || !property_exists($entry, 'name')) {
            throw new SettingsError("$what must be an object with a 'name'.");
        }
        if (!is_string($entry->name)) {
            throw new InvalidQueueName('The queue name must be text, not ' . Text::kind($entry->name) . '.');
        }
        $onServer = Names::make($namespace, $entry->name);
        $where = "queue '$entry->name': ";
        self::refuseUnknown($entry, self::QUEUE_KEYS, $where);
        $checked = ['name' => $entry->name];
        if (property_exists($entry, 'language')) {
            if (!in_array($entry->language, self::LANGUAGES, true)) {
                throw new SettingsError("$where'language' must be one of " . implode(', ', self::LANGUAGES) . '.');
            }
            $checked['language'] = $entry->language;
        }
        $numbers = ['processes' => 'processes', 'max_jobs' => 'maxJobs', 'job_timeout' => 'jobTimeout'];
        foreach ($numbers as $key => $name) {
            if (property_exists($entry, $key)) {
                $checked[$name] = self::number($entry->$key, "$where'$key'");
            }
        }
        if (isset($entry->max_items)) {
            $checked['maxItems'] = self::number($entry->max_items, "$where'max_items'");
        }
        if (property_exists($entry, 'retry_delays')) {
            if (!is_array($entry->retry_delays) || !array_is_list($entry->retry_delays)) {
                throw new SettingsError("$where'retry_delays' must be a list of seconds.");
            }
            $checked['retryDelays'] = [];
            foreach ($entry->retry_delays as $delay) {
                $checked['retryDelays'][] = self::number($delay, "{$where}each of 'retry_delays'");
                Names::retry($onServer, $delay);
            }
        }
        if (isset($entry->rate_limit)) {
            try {
                $checked['rateLimit'] = self::parseRate($entry->rate_limit);
            } catch (SettingsError $error) {
                throw new SettingsError("$where'rate_limit': " . $error->getMessage());
            }
        }
        if (isset($entry->max_time)) {
            $checked['maxTime'] = self::parseAge($entry->max_time, "$where'max_time'");
        }
        if (isset($entry->max_memory)) {
            $checked['maxMemory'] = self::parseSize($entry->max_memory, "$where'max_memory'");
        }
        if (property_exists($entry, 'also')) {
            if (!is_array($entry->also) || array_filter($entry->also, is_string(...)) !== $entry->also) {
                throw new SettingsError("$where'also' must be a list of names of queues.");
            }
            $checked['also'] = array_values($entry->also);
        }
        if (property_exists($entry, 'alert')) {
            $alert = $entry->alert;
            if (!$alert instanceof \stdClass && !(is_array($alert) && ($alert === [] || !array_is_list($alert)))) {
                throw new SettingsError("$where'alert' must be an object.");
            }
            $checked['alert'] = (array) $alert;
        }
        return new QueueSettings(...$checked, ...self::serverSide($entry, $where));
    }

    /** @param array<QueueSettings> $queues */
    private static function checkAlso(QueueSettings $queue, array $queues): void
    {
        $where = "queue '$queue->name': 'also'";
        foreach ($queue->also as $other) {
            if ($other === $queue->name || count(array_keys($queue->also, $other, true)) > 1) {
                throw new SettingsError("$where names the queue '$other' once more.");
            }
            if (!isset($queues[$other])) {
                $shown = Text::quote($other);
                throw new SettingsError("$where names $shown, which is not one of the queues described here.");
            }
            if ($queues[$other]->language !== $queue->language) {
                throw new SettingsError(
                    "$where names '$other', a queue for {$queues[$other]->language} workers; "
                    . "these are for $queue->language.",
                );
            }
        }
    }

    /**
     * Checks what is the server's; the playbook has done so in more depth.
     *
     * @return array<string, mixed>
     */
    private static function serverSide(\stdClass $entry, string $where): array
    {
        $checked = [];
        $sizes = ['max_size' => 'maxSize', 'max_item_size' => 'maxItemSize', 'max_memory_size' => 'maxMemorySize'];
        foreach ($sizes as $key => $name) {
            if (isset($entry->$key)) {
                $checked[$name] = self::parseSize($entry->$key, "$where'$key'");
            }
        }
        if (isset($entry->max_age)) {
            $checked['maxAge'] = self::parseAge($entry->max_age, "$where'max_age'");
        }
        $switches = ['discard_old_when_full' => 'discardOldWhenFull', 'fanout_only' => 'fanoutOnly'];
        foreach ($switches as $key => $name) {
            if (property_exists($entry, $key)) {
                if (!is_bool($entry->$key)) {
                    throw new SettingsError("$where'$key' must be true or false.");
                }
                $checked[$name] = $entry->$key;
            }
        }
        if (property_exists($entry, 'fanouts')) {
            $isName = static fn (mixed $name): bool => is_string($name)
                && preg_match('/\A[A-Za-z0-9_-]+\z/', $name) === 1;
            if (!is_array($entry->fanouts) || array_filter($entry->fanouts, $isName) !== $entry->fanouts) {
                throw new SettingsError("$where'fanouts' must be a list of names of A-Z, a-z, 0-9, '_' and '-'.");
            }
            $checked['fanouts'] = $entry->fanouts;
        }
        return $checked;
    }

    private static function number(mixed $value, string $what): int
    {
        if (!is_int($value) || $value < 1) {
            throw new SettingsError("$what must be a whole number from 1 on.");
        }
        return $value;
    }

    /** @param list<string> $known */
    private static function refuseUnknown(\stdClass $content, array $known, string $where): void
    {
        $unknown = array_diff(array_map(strval(...), array_keys(get_object_vars($content))), $known);
        if ($unknown !== []) {
            sort($unknown, SORT_STRING);
            $listed = implode(', ', array_map(Text::quote(...), $unknown));
            throw new SettingsError("{$where}unknown key $listed; known: " . implode(', ', $known) . '.');
        }
    }

    /** @param list<string> $names */
    private static function listed(array $names): string
    {
        sort($names, SORT_STRING);
        return $names === [] ? 'none' : implode(', ', $names);
    }
}
