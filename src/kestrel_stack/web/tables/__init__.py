"""What pages, CSV, API and metrics show of a view: columns, filters, charts, texts."""
