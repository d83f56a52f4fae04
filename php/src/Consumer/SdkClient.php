<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

use Sentry\HttpClient\HttpClientInterface;
use Sentry\HttpClient\Request;
use Sentry\HttpClient\Response;
use Sentry\Options;

/** What sentry/sentry takes for its connection to Sentry: the parent, which has the envelope sent. */
final class SdkClient implements HttpClientInterface
{
    public function __construct(private readonly Pipe $pipe)
    {
    }

    public function sendRequest(Request $request, Options $options): Response
    {
        $this->pipe->send(['type' => 'envelope'], (string) $request->getStringBody());
        return new Response(200, [], '');
    }
}
