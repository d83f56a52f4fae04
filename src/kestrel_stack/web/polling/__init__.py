"""What the servers say, asked once for everybody: one thread per server, and one view of them all."""
