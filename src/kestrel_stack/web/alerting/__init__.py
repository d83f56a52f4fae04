"""When somebody should look, and the webhook that says so."""
