<?php

/** See ScriptedServer: prints its port, then the first line of every request. */

declare(strict_types=1);

$connections = unserialize(base64_decode($argv[1]), ['allowed_classes' => false]);
$listening = stream_socket_server('tcp://127.0.0.1:0');
echo explode(':', stream_socket_get_name($listening, false))[1], "\n";
foreach ($connections as $answers) {
    $client = stream_socket_accept($listening, 60);
    foreach ($answers as $answer) {
        $line = fgets($client);
        if ($line === false) {
            break;
        }
        echo rtrim($line), "\n";
        if (preg_match('/^set \S+ \d+ \d+ (\d+)/', $line, $match)) {
            stream_get_contents($client, (int) $match[1] + 2);
        }
        if ($answer === null) {
            stream_get_contents($client);
        } elseif (is_array($answer)) {
            foreach ($answer as $piece) {
                @fwrite($client, $piece);
                usleep(50_000);
            }
        } else {
            fwrite($client, $answer);
        }
    }
    fclose($client);
}
