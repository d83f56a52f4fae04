<?php

declare(strict_types=1);

namespace Shop;

use KestrelStack\Consumer\Context;
use KestrelStack\Consumer\Park;
use KestrelStack\Queue\Once;
use KestrelStack\Queue\PdoStore;

/**
 * Posts an uploaded file to a third party's API, which is slow and at times away.
 *
 * The file is in the job itself, so that a worker of any host can do it: see `enqueue.php`. It is posted once, also when
 * the job comes twice; where a worker dies between the post and its mark, the job's id lets the API see the repetition.
 */
final class PostUpload
{
    /** Seconds for the API's answer; well below the queue's job_timeout. */
    private const TIMEOUT = 10;
    /** Seconds that a worker may be at it: the queue's job_timeout. */
    private const LEASE = 30.0;
    /** Seconds that a post is remembered. */
    private const REMEMBERED = 7 * 86400.0;

    /** @param array<string, mixed> $data `name` of the file, and its `content` in base64 */
    public function __invoke(array $data, Context $context): void
    {
        $name = $data['name'] ?? null;
        $content = is_string($data['content'] ?? null) ? base64_decode($data['content'], true) : false;
        if (!is_string($name) || $content === false) {
            throw new Park("the job's data must be a file's 'name' and its 'content' in base64");
        }
        $context->log->debug('upload taken', ['name' => $name, 'bytes' => strlen($content)]);
        $url = Config::uploadUrl();
        $once = new Once(new PdoStore(Database::open('once.sqlite')), self::LEASE);
        $posted = $once->run(
            "post-upload-{$context->id}",
            self::REMEMBERED,
            fn () => $this->post($url, $name, $content, $context),
        );
        $context->log->info($posted ? 'upload posted' : 'upload was posted before', ['name' => $name]);
        Ledger::note($context);
    }

    private function post(string $url, string $name, string $content, Context $context): void
    {
        $request = stream_context_create(['http' => [
            'method' => 'POST',
            'header' => [
                'Content-Type: application/octet-stream',
                'X-File-Name: ' . rawurlencode($name),
                'X-Tenant: ' . $context->tenant,
                "Idempotency-Key: {$context->id}",
            ],
            'content' => $content,
            'timeout' => self::TIMEOUT,
            'ignore_errors' => true,
            // An answer elsewhere is an error of the API's, and no address to send a customer's file to.
            'follow_location' => 0,
        ]]);
        $context->log->debug('posting', ['url' => $url, 'bytes' => strlen($content)]);
        $answer = @file_get_contents($url, false, $request, 0, 4096);
        if ($answer === false || !isset($http_response_header[0])) {
            throw new UploadFailed('the API does not answer: ' . (error_get_last()['message'] ?? 'no reason given'));
        }
        $status = (int) (explode(' ', $http_response_header[0])[1] ?? 0);
        if ($status >= 400 && $status < 500 && $status !== 408 && $status !== 429) {
            // It would say the same the next time: a person has to look.
            throw new Park("the API refuses the file: {$http_response_header[0]}");
        }
        if ($status < 200 || $status >= 300) {
            throw new UploadFailed("the API answered {$http_response_header[0]}");
        }
    }
}
