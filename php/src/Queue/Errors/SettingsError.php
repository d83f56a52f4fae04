<?php

declare(strict_types=1);

namespace KestrelStack\Queue\Errors;

/** A settings file that is missing, unreadable or wrong; the message names the file and the key. */
class SettingsError extends QueueError
{
}
