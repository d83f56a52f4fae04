<?php

declare(strict_types=1);

namespace Shop;

/** The shop's SQLite files below `var`, which outlives a release. */
final class Database
{
    /** How many seconds a process waits for the others to finish writing. */
    private const BUSY_SECONDS = 20;

    /** Return where the file called $name is, or would be. */
    public static function path(string $name): string
    {
        return (getenv('SHOP_VAR') ?: dirname(__DIR__, 2) . '/var') . "/$name";
    }

    /** Open the file called $name, and make it where it is missing: for the group, too, whatever the umask is. */
    public static function open(string $name): \PDO
    {
        $file = self::path($name);
        if (!file_exists($file) && ($made = @fopen($file, 'x')) !== false) {
            fclose($made);
            chmod($file, 0664);
        }
        return new \PDO("sqlite:$file", options: [
            \PDO::ATTR_ERRMODE => \PDO::ERRMODE_EXCEPTION,
            \PDO::ATTR_TIMEOUT => self::BUSY_SECONDS,
        ]);
    }
}
