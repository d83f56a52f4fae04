<?php

/** The front page, in the scope of Page::front(). */

declare(strict_types=1);

/**
 * @var callable $text escapes for HTML
 * @var callable $asset gives the URL of a static file
 * @var list<string> $queues
 * @var array<string, array{string, array<string, mixed>}> $forms
 * @var int $most
 * @var array{string, string}|null $message
 * @var list<array<string, mixed>> $enqueued
 * @var list<array<string, ?string>> $results
 */
?>
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shop</title>
<link rel="icon" href="<?= $asset('img/logo.svg') ?>">
<link rel="stylesheet" href="<?= $asset('css/shop.css') ?>">
<script src="<?= $asset('js/shop.js') ?>" defer></script>
</head>
<body>
<header>
<img class="logo" src="<?= $asset('img/logo.svg') ?>" alt="" width="48" height="48">
<h1>Shop</h1>
<p class="release">release <?= $text(Shop\Page::release()) ?>, in PHP</p>
</header>
<main>
<?php if ($message !== null): ?>
<p class="message <?= $message[0] ?>"><?= $text($message[1]) ?></p>
<?php endif ?>
<h2>Queues</h2>
<p id="queues-error"></p>
<table class="queues">
<thead><tr><th>queue</th><th>ready</th><th>in work</th><th>delayed</th><th>parked</th><th>enqueue</th></tr></thead>
<tbody>
<?php foreach ($queues as $queue): ?>
<tr data-queue="<?= $text($queue) ?>"><th scope="row"><?= $text($queue) ?></th>
<?php foreach (['ready', 'reserved', 'delayed', 'parked'] as $count): ?>
<td class="number" data-count="<?= $count ?>">–</td>
<?php endforeach ?>
<td><?php if (isset($forms[$queue])): ?>
<form method="post" action="/enqueue"><input type="hidden" name="queue" value="<?= $text($queue) ?>"><input
type="number" name="count" value="1" min="1" max="<?= $most ?>" aria-label="How many"><button
type="submit"><?= $text($forms[$queue][0]) ?></button></form>
<?php endif ?></td></tr>
<?php endforeach ?>
</tbody>
</table>
<h2>Enqueued on this host</h2>
<?php if ($enqueued === []): ?>
<p class="hint">Nothing yet.</p>
<?php else: ?>
<table class="enqueued"><thead><tr><th>at</th><th>queue</th><th>jobs</th><th>how</th></tr></thead><tbody>
<?php foreach ($enqueued as $row): ?>
<tr><td><?= $text($row['at']) ?></td><td><?= $text($row['queue']) ?></td><td><?= $text((string) $row['jobs']) ?></td><td><?=
    $text($row['result']) ?></td></tr>
<?php endforeach ?>
</tbody></table>
<?php endif ?>
<h2>Done on this host</h2>
<?php if ($results === []): ?>
<p class="hint">Nothing: the workers are on other hosts, and each keeps its own ledger.</p>
<?php else: ?>
<table class="results"><thead><tr><th>done at</th><th>job</th><th>tenant</th><th>by release</th></tr></thead><tbody>
<?php foreach ($results as $row): ?>
<tr><td><?= $text($row['at']) ?></td><td><?= $text($row['job']) ?></td><td><?= $text($row['tenant']) ?></td><td><?=
    $text($row['release'] ?? '–') ?></td></tr>
<?php endforeach ?>
</tbody></table>
<?php endif ?>
</main>
</body>
</html>
