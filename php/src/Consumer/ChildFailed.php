<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/** The child died or hung while it started; another try may work. */
final class ChildFailed extends \RuntimeException
{
}
