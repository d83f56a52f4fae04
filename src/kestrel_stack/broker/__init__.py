"""The embedded broker: a durable queue that speaks Kestrel 2.4.1's memcache protocol and journal format.

For labs, tests and small installations: one process, the standard library only, no JVM. It reads and
writes the same journal files as Kestrel, so that either can be put in the place of the other.

Run it with ``python -m kestrel_stack.broker --config FILE.json``; ``kestrel_stack.broker.bundle`` packs
it into a single file. SIGTERM and SIGINT stop it in order, SIGHUP reloads the configuration.

What is here: every command of the memcache port, fanouts, aliases, all queue settings, the status and the
file that keeps it, the client timeout, the expiration timer, reload, and the admin HTTP.

What is not: the text and the thrift protocol, a change of status that takes effect later
(statusChangeGracePeriod) or is published elsewhere (ZooKeeper), and of the admin HTTP the graphs, the
profiler and the numbers of a Java virtual machine. Where it differs from Kestrel on purpose is in
docs/decisions/007.

Modules: config; protocol (bytes to requests), session (one connection), server (ports, timers, reload); spool
(all queues of a folder, fanouts, aliases), queue (items, open reads, waiting reads), records, journal and
what they stand on (the files); status; timings, stats and admin (the numbers).
"""

SERVER_VERSION = "2.4.1"
"""The Kestrel release whose behaviour clients see; ``version`` answers it."""
