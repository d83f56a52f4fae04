<?php

declare(strict_types=1);

namespace KestrelStack\Consumer;

/**
 * The messages between a worker and its child: a JSON head and, for a job, the item's bytes.
 *
 * One object turns received bytes into messages.
 */
final class Frames
{
    public const MAX_HEAD = 8 * 1024 * 1024;
    public const MAX_BODY = 512 * 1024 * 1024;

    private const SIZES = 8;

    private string $buffer = '';

    /**
     * Return a message as bytes.
     *
     * @param array<string, mixed> $head
     */
    public static function encode(array $head, string $body = ''): string
    {
        $data = json_encode($head, JSON_UNESCAPED_SLASHES | JSON_INVALID_UTF8_SUBSTITUTE | JSON_THROW_ON_ERROR);
        return pack('NN', strlen($data), strlen($body)) . $data . $body;
    }

    /**
     * Return the messages that $data completes.
     *
     * @return list<array{array<string, mixed>, string}>
     * @throws BrokenFrame on nonsense
     */
    public function feed(string $data): array
    {
        $this->buffer .= $data;
        $found = [];
        $at = 0;
        $length = strlen($this->buffer);
        while ($length - $at >= self::SIZES) {
            ['head' => $headSize, 'body' => $bodySize] = unpack('Nhead/Nbody', $this->buffer, $at);
            if ($headSize > self::MAX_HEAD || $bodySize > self::MAX_BODY) {
                throw new BrokenFrame("a message of $headSize and $bodySize bytes was announced");
            }
            if ($length - $at < self::SIZES + $headSize + $bodySize) {
                break;
            }
            $head = json_decode(substr($this->buffer, $at + self::SIZES, $headSize), true);
            if (json_last_error() !== JSON_ERROR_NONE) {
                throw new BrokenFrame("a message's head is not JSON: " . json_last_error_msg());
            }
            if (!is_array($head)) {
                throw new BrokenFrame("a message's head is not an object");
            }
            $found[] = [$head, substr($this->buffer, $at + self::SIZES + $headSize, $bodySize)];
            $at += self::SIZES + $headSize + $bodySize;
        }
        if ($at > 0) {
            $this->buffer = substr($this->buffer, $at);
        }
        return $found;
    }
}
