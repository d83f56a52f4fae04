<?php

declare(strict_types=1);

namespace Shop;

use KestrelStack\Consumer\Context;

/** The ledger of `shop/ledger.py`, from PHP: which jobs this host has done, once each. */
final class Ledger
{
    private const TABLE = <<<'SQL'
        CREATE TABLE IF NOT EXISTS done (
            id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            job TEXT NOT NULL,
            release TEXT,
            at TEXT NOT NULL,
            again INTEGER NOT NULL DEFAULT 0
        )
        SQL;

    /** Write down that the job was done, and log when it had been done before. */
    public static function note(Context $context): void
    {
        $ledger = Database::open('ledger.sqlite');
        $ledger->exec('BEGIN IMMEDIATE');
        $ledger->exec(self::TABLE);
        $insert = $ledger->prepare(
            'INSERT INTO done (id, tenant, job, release, at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING',
        );
        $at = (new \DateTimeImmutable('now', new \DateTimeZone('UTC')))->format('Y-m-d\TH:i:s.vP');
        $insert->execute([$context->id, $context->tenant, $context->job, $context->release, $at]);
        $new = $insert->rowCount() > 0;
        if (!$new) {
            $ledger->prepare('UPDATE done SET again = again + 1 WHERE id = ?')->execute([$context->id]);
        }
        $ledger->exec('COMMIT');
        if (!$new) {
            $context->log->warning('this job was delivered again');
        }
    }
}
