"""The embedded broker: a durable queue that speaks Kestrel 2.4.1's memcache protocol and journal format.

For labs, tests and small installations: one process, the standard library only, no JVM. It reads and
writes the same journal files as Kestrel, so that either can be put in the place of the other.

Run it with ``python -m kestrel_stack.broker --config FILE.json``; ``kestrel_stack.broker.bundle`` packs
it into a single file.

What is here: set, get and gets with t=, open, close, abort and peek; delete, flush, flush_all,
flush_expired, flush_all_expired, confirm, stats, dump_stats, status (read only), version, quit,
shutdown; the admin HTTP commands ping, stats, server_info and shutdown.

What is not here yet: fanouts (a ``+`` in a queue name is refused as an illegal name is: closed without
a reply), aliases, monitor, reload, changing the status (READONLY, QUIESCENT), the text and thrift
protocols, expireToQueue, the expiration timer, keepJournal=false, read-behind (all items of a queue are
in memory), rotation and background packing (see journal.py for what keeps the files small instead).

Modules: protocol (bytes to requests), session (one connection), queue (items, open reads, waiting
reads), records and journal (the files), spool (all queues of a folder), config, stats, admin, server.
"""

SERVER_VERSION = "2.4.1"
"""The Kestrel release whose behaviour clients see; ``version`` answers it."""
