<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use Sentry\Breadcrumb;
use Sentry\Event;
use Sentry\EventHint;
use Sentry\ExceptionMechanism;
use Sentry\Integration\EnvironmentIntegration;
use Sentry\Integration\FrameContextifierIntegration;
use Sentry\Integration\ModulesIntegration;
use Sentry\SentrySdk;
use Sentry\Severity;
use Sentry\State\Scope;
use Sentry\Tracing\PropagationContext;

/**
 * With the sentry/sentry of the application, version 4; a client that it has set up itself is left as it is.
 *
 * Ours hands what it would send to the parent: the job does not wait for Sentry.
 */
final class SdkReporting implements Reporting
{
    /** @var array<string, mixed> */
    private array $tags = [];
    /** @var ?\Closure(): array<string, array<string, mixed>> */
    private ?\Closure $contexts = null;
    /** @var list<Breadcrumb> */
    private array $crumbs = [];

    private readonly Repeats $repeats;

    public function __construct(
        Pipe $pipe,
        #[\SensitiveParameter]
        string $dsn,
        ?string $environment,
        ?string $release,
    ) {
        $this->repeats = new Repeats();
        if (SentrySdk::getCurrentHub()->getClient() === null) {
            \Sentry\init([
                'dsn' => $dsn,
                // Not the usual integrations: they would report what a job has dealt with.
                'default_integrations' => false,
                'integrations' => [
                    new EnvironmentIntegration(),
                    new FrameContextifierIntegration(),
                    new ModulesIntegration(),
                ],
                'environment' => $environment,
                'release' => $release,
                'server_name' => (string) (getenv('KESTREL_STACK_HOST') ?: gethostname()),
                // What names the release is no part of where an error is.
                'prefixes' => [(string) getcwd()],
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

    public function begin(array $tags, \Closure $contexts): void
    {
        $this->tags = $tags;
        $this->contexts = $contexts;
        $this->crumbs = [];
    }

    public function crumb(string $level, string $event, array $fields): void
    {
        $data = array_map(
            static fn (mixed $content): string => Text::head(Text::of($content), Sentry::MAX_CRUMB_TEXT),
            $fields,
        );
        $kind = $level === 'error' ? Breadcrumb::TYPE_ERROR : Breadcrumb::TYPE_DEFAULT;
        $text = Sentry::crumbText($event, $fields);
        $this->crumbs[] = new Breadcrumb($level, $kind, 'job', $text, $data, microtime(true));
        if (count($this->crumbs) >= 2 * Sentry::MAX_CRUMBS) {
            $this->crumbs = array_slice($this->crumbs, -Sentry::MAX_CRUMBS);
        }
    }

    public function failed(?\Throwable $thrown, array $error, string $level): array
    {
        $job = $this->tags['job'] ?? null;
        $key = Repeats::key($error['class'], $error['message'], $level, $job);
        $repeated = $this->repeats->count($key);
        if ($repeated === null) {
            return ['sentry_event' => $this->repeats->last($key), 'repeated' => $key];
        }
        $id = \Sentry\withScope(function (Scope $scope) use ($thrown, $error, $level, $job, $repeated): mixed {
            $this->tell($scope, $job);
            if ($repeated > 0) {
                $scope->setExtra(Sentry::REPEATED, $repeated);
            }
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
                // Nobody has dealt with it: it ended the job.
                : \Sentry\captureException($thrown, EventHint::fromArray([
                    'mechanism' => new ExceptionMechanism('kestrel_stack', false),
                ]));
        });
        if ($id !== null) {
            $this->repeats->sent($key, (string) $id);
        }
        return ['sentry_event' => $id === null ? null : (string) $id];
    }

    /** Tell what belongs to the job and not to the error. */
    private function tell(Scope $scope, ?string $job): void
    {
        $scope->setFingerprint(Sentry::fingerprint($job));
        $scope->addEventProcessor(static fn (Event $event): Event => $event->setTransaction($job));
        foreach ($this->contexts === null ? [] : ($this->contexts)() as $name => $context) {
            if ($name !== 'trace') {
                $scope->setContext($name, $context);
                continue;
            }
            $parent = "{$context['trace_id']}-{$context['parent_span_id']}";
            $scope->setPropagationContext(PropagationContext::fromHeaders($parent, ''));
        }
    }
}
