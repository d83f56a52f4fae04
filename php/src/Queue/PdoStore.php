<?php

declare(strict_types=1);

namespace KestrelStack\Queue;

use KestrelStack\Queue\Errors\Busy;
use KestrelStack\Queue\Errors\StoreFailed;

/**
 * A table in the application's database (SQLite, MySQL, MariaDB or PostgreSQL), which is made if need be.
 *
 * A connection that has a transaction open is refused: a claim that is not committed is seen by nobody, and would be
 * taken back with the transaction.
 */
final class PdoStore implements OnceStore
{
    private const TABLE = 'CREATE TABLE IF NOT EXISTS kestrel_stack_once (name VARCHAR(200) PRIMARY KEY, '
        . 'token VARCHAR(36) NOT NULL, done SMALLINT NOT NULL, until_ms BIGINT NOT NULL)';
    /** As TABLE; keys that differ in case or accents are different keys, as in the other databases. */
    private const MYSQL_TABLE = 'CREATE TABLE IF NOT EXISTS kestrel_stack_once ('
        . 'name VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, token VARCHAR(36) NOT NULL, '
        . 'done SMALLINT NOT NULL, until_ms BIGINT NOT NULL, INDEX kestrel_stack_once_until (until_ms)) ENGINE=InnoDB';
    private const INDEX = 'CREATE INDEX IF NOT EXISTS kestrel_stack_once_until ON kestrel_stack_once (until_ms)';

    private bool $made = false;

    public function __construct(private readonly \PDO $database)
    {
    }

    public function claim(string $key, string $token, float $lease): bool
    {
        $now = Clock::unixMs();
        $this->make();
        $this->execute('DELETE FROM kestrel_stack_once WHERE until_ms <= ?', [$now]);
        $insert = $this->isMysql()
            ? 'INSERT IGNORE INTO kestrel_stack_once (name, token, done, until_ms) VALUES (?, ?, 0, ?)'
            : 'INSERT INTO kestrel_stack_once (name, token, done, until_ms) VALUES (?, ?, 0, ?) '
                . 'ON CONFLICT (name) DO NOTHING';
        if ($this->execute($insert, [$key, $token, $now + (int) round($lease * 1000)])->rowCount() > 0) {
            return true;
        }
        // All of it is fetched: an open result would hold SQLite's lock.
        $look = $this->execute('SELECT done FROM kestrel_stack_once WHERE name = ?', [$key]);
        $found = $look->fetchAll(\PDO::FETCH_NUM);
        if ($found !== [] && (int) $found[0][0] === 1) {
            return false;
        }
        // Also when the claim was given back between the two statements: the next try will see.
        throw new Busy('Another worker is at ' . Text::quote($key) . '.');
    }

    public function mark(string $key, string $token, float $ttl): void
    {
        $until = Clock::unixMs() + (int) round($ttl * 1000);
        // Also when the claim has run out and was cleared away.
        $upsert = $this->isMysql()
            ? 'INSERT INTO kestrel_stack_once (name, token, done, until_ms) VALUES (?, ?, 1, ?) '
                . 'ON DUPLICATE KEY UPDATE until_ms = IF(token = VALUES(token), VALUES(until_ms), until_ms), '
                . 'done = IF(token = VALUES(token), 1, done)'
            : 'INSERT INTO kestrel_stack_once (name, token, done, until_ms) VALUES (?, ?, 1, ?) ON CONFLICT (name) '
                . 'DO UPDATE SET done = 1, until_ms = excluded.until_ms '
                . 'WHERE kestrel_stack_once.token = excluded.token';
        $this->execute($upsert, [$key, $token, $until]);
    }

    public function release(string $key, string $token): void
    {
        $this->execute('DELETE FROM kestrel_stack_once WHERE name = ? AND token = ? AND done = 0', [$key, $token]);
    }

    private function make(): void
    {
        if ($this->made) {
            return;
        }
        $this->execute($this->isMysql() ? self::MYSQL_TABLE : self::TABLE, []);
        if (!$this->isMysql()) {
            $this->execute(self::INDEX, []);
        }
        $this->made = true;
    }

    private function isMysql(): bool
    {
        return $this->database->getAttribute(\PDO::ATTR_DRIVER_NAME) === 'mysql';
    }

    /** @param list<string|int> $values */
    private function execute(string $sql, array $values): \PDOStatement
    {
        if ($this->database->inTransaction()) {
            throw new StoreFailed(
                'The connection given to PdoStore has a transaction open; end it before, or give it one of its own.',
            );
        }
        try {
            $statement = $this->database->prepare($sql);
            // Without exceptions, as an application may have set its connection up, failing is false.
            if ($statement === false || !$statement->execute($values)) {
                $said = ($statement ?: $this->database)->errorInfo()[2] ?? 'no reason';
                throw new StoreFailed("The table kestrel_stack_once cannot be used: $said.");
            }
            return $statement;
        } catch (\PDOException $error) {
            throw new StoreFailed('The table kestrel_stack_once cannot be used: ' . $error->getMessage() . '.');
        }
    }
}
