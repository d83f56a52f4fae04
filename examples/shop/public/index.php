<?php

/** Every request for the shop's pages comes here. */

declare(strict_types=1);

require_once dirname(__DIR__) . '/php/stack.php';

Shop\Page::answer();
