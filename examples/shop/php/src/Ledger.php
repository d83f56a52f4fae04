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

    /** @return list<array<string, ?string>> `at`, `job`, `tenant` and `release` of the jobs done last, the newest first */
    public static function recent(int $count = 10): array
    {
        if (!is_file(Database::path('ledger.sqlite'))) {
            return [];
        }
        $found = Database::open('ledger.sqlite')
            ->prepare('SELECT at, job, tenant, release FROM done ORDER BY at DESC LIMIT ?');
        $found->execute([$count]);
        return $found->fetchAll(\PDO::FETCH_ASSOC);
    }

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
