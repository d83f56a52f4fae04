<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use Sentry\Breadcrumb;
use Sentry\SentrySdk;
use Sentry\Severity;
use Sentry\State\Scope;

/**
 * With the sentry/sentry of the application, version 4; a client that it has set up itself is left as it is.
 *
 * Ours hands what it would send to the parent: the job does not wait for Sentry.
 */
final class SdkReporting implements Reporting
{
    /** @var array<string, mixed> */
    private array $tags = [];
    /** @var list<Breadcrumb> */
    private array $crumbs = [];

    public function __construct(
        Pipe $pipe,
        #[\SensitiveParameter]
        string $dsn,
        ?string $environment,
        ?string $release,
    ) {
        if (SentrySdk::getCurrentHub()->getClient() === null) {
            \Sentry\init([
                'dsn' => $dsn,
                // Not the usual integrations: they would report what a job has dealt with.
                'default_integrations' => false,
                'environment' => $environment,
                'release' => $release,
                'server_name' => (string) (getenv('KESTREL_STACK_HOST') ?: gethostname()),
                'in_app_exclude' => [dirname(__DIR__, 2) . '/'],
                'http_client' => new SdkClient($pipe),
            ]);
        }
    }

    /** Say whether the application has the library. */
    public static function isThere(): bool
    {
        return function_exists('Sentry\init') && interface_exists('Sentry\HttpClient\HttpClientInterface');
    }

    public function begin(array $tags): void
    {
        $this->tags = $tags;
        $this->crumbs = [];
    }

    public function crumb(string $level, string $event, array $fields): void
    {
        $data = array_map(
            static fn (mixed $content): string => Text::head(Text::of($content), Sentry::MAX_CRUMB_TEXT),
            $fields,
        );
        $kind = $level === 'error' ? Breadcrumb::TYPE_ERROR : Breadcrumb::TYPE_DEFAULT;
        $this->crumbs[] = new Breadcrumb($level, $kind, 'job', $event, $data, microtime(true));
        if (count($this->crumbs) >= 2 * Sentry::MAX_CRUMBS) {
            $this->crumbs = array_slice($this->crumbs, -Sentry::MAX_CRUMBS);
        }
    }

    public function failed(?\Throwable $thrown, array $error, string $level): array
    {
        $id = \Sentry\withScope(function (Scope $scope) use ($thrown, $error, $level): mixed {
            foreach ($this->tags as $name => $tag) {
                if ($tag !== null) {
                    $scope->setTag($name, (string) $tag);
                }
            }
            $scope->setLevel(new Severity($level));
            foreach ($this->crumbs as $crumb) {
                $scope->addBreadcrumb($crumb);
            }
            return $thrown === null
                ? \Sentry\captureMessage("{$error['class']}: {$error['message']}")
                : \Sentry\captureException($thrown);
        });
        return ['sentry_event' => $id === null ? null : (string) $id];
    }
}
