<?php

declare(strict_types=1);

namespace Shop;

/** The upload could not be posted now; the job is tried again. */
final class UploadFailed extends \RuntimeException
{
}
